//! Generation identifiers: who has the newer data.
//!
//! Owns the comparison of two nodes that meet ([`compare`], a pure function) and the rotation of one node's identifiers
//! ([`Identifiers`]). `docs/generations.md` gives the reasoning for every row.
//!
//! Invariants:
//! - [`compare`] is total and symmetric: what one node concludes mirrors what the other concludes from the same facts.
//! - No verdict drops bits: [`Outcome::InSync`] is given only when no bit is set on either side.
//! - Two sides that may both hold completed writes of their own are a split brain, never a source and a target.
//! - Just-created values never become ancestors: they say nothing about data.
//!
//! Deliberately not here: the split-brain policies (`split_brain`), `rr-conflict`, `--discard-my-data`, the refusal of two
//! connected Primaries, and everything that reads or writes metadata.

mod compare;
mod identifiers;
mod rule;
#[cfg(test)]
mod tests;

use core::fmt;

use crate::units::{Generation, NodeId};

pub use compare::compare;
pub use identifiers::Identifiers;
pub use rule::Rule;

/// How much can be said for the data on a disk when two nodes meet, worst first. A diskless node does not compare.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum DiskLevel {
    /// Parts are new and parts are old, or nothing was ever written: no use to anyone.
    Inconsistent,
    /// A state the volume once had; newer data are known to exist.
    Outdated,
    /// A state the volume once had; whether newer data exist is not known.
    Consistent,
    /// The newest data, as far as this node knows.
    UpToDate,
}

/// When a write counts as complete (semantics of `protocol` in the configuration).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Protocol {
    /// Local disk has it and it is queued for the peer.
    A,
    /// Local disk has it and the peer received it.
    B,
    /// Both disks have it.
    C,
}

/// What one node brings to the meeting, for one volume and one peer.
///
/// Both nodes must compare the same facts: each sends its own side and uses what it sent, even if something changed since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Side<'a> {
    /// This node; the lower id wins ties.
    pub node_id: NodeId,
    /// Version of the data on this node's disk.
    pub current: Generation,
    /// This node's slot for the other: the generation since which it tracks differences, empty if none.
    pub bitmap: Generation,
    /// Older generations, newest first.
    pub history: &'a [Generation],
    /// This node stopped while it was Primary, and the two were not connected with both disks UpToDate since. A clean stop of
    /// the restarted node does not clear it.
    pub crashed_primary: bool,
    /// Everything this node's disk held when the two were last connected with both disks UpToDate, in this very generation, it
    /// still holds: the process is up since and the disk stayed attached. A meeting that ended before both were UpToDate is no
    /// such contact. May also be kept over a restart that provably lost nothing (an orderly stop, which flushes; or the same
    /// boot of the host).
    pub still_running_since_contact: bool,
    /// This node is Primary now, and this disk carried its writes all along. A Primary that attaches a disk anew says false.
    pub role_primary: bool,
    /// State of the disk as found at attach or left at disconnect, before this meeting.
    pub disk: DiskLevel,
    /// The metadata say that the local data were invalidated by command and wait for a full sync.
    pub full_sync_requested: bool,
    /// The metadata say that this disk is in the middle of a resync as target.
    pub sync_target: bool,
    /// Blocks marked out of sync towards the other.
    pub bits: u64,
    /// Protocol of the connection. The two must be configured alike; if they differ, the guarantees of C are not assumed.
    pub protocol: Protocol,
}

/// How much a resync has to look at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Extent {
    /// The blocks marked on either side.
    Bitmap,
    /// Every block.
    Full,
}

/// How far back the common ancestor of a split brain lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum History {
    /// The bitmaps of both sides reach back to it: the policies apply and a bitmap resync suffices.
    Bitmap,
    /// Further back: only `always-asbp` or a person may decide, and a full sync follows.
    Ancestor,
}

/// Why two nodes may not connect as they are. The text names the remedy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Refusal {
    /// Both nodes carry the same id.
    SameNodeId,
    /// Neither has data that the other could be synced from.
    NoConsistentSource,
    /// The node with the newer generation has a damaged disk that is no interrupted resync.
    DamagedSource,
    /// Both are Primary with blocks marked.
    TwoPrimaries,
}

impl Refusal {
    /// A sentence for the administrator.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Refusal::SameNodeId => {
                "both nodes have the same node-id: give each node its own in the configuration"
            }
            Refusal::NoConsistentSource => {
                "neither node has consistent data to sync from: choose the node to keep with 'primary --force' there, then connect"
            }
            Refusal::DamagedSource => {
                "the node with the newer data is Inconsistent and was not a sync target: to give its data up run 'invalidate' on it, \
                 to keep them run 'primary --force' on it, then connect"
            }
            Refusal::TwoPrimaries => {
                "both nodes are Primary and blocks are out of sync: make one Secondary, then connect"
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// What is to be done, as seen by `me`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Outcome {
    /// The bytes are equal and no bit is set: no resync.
    InSync,
    /// Neither side has usable data: stay connected, both stay Inconsistent, bits stay as they are. Never a reason to become UpToDate.
    NoSource,
    /// I am the source of a resync.
    Source(Extent),
    /// I am the target of a resync.
    Target(Extent),
    /// Both sides may hold completed writes of their own.
    SplitBrain(History),
    /// A foreign disk. Nothing is overwritten.
    Unrelated,
    /// Do not connect.
    Refuse(Refusal),
}

impl Outcome {
    /// What the other node must conclude.
    #[must_use]
    pub fn mirrored(self) -> Outcome {
        match self {
            Outcome::Source(extent) => Outcome::Target(extent),
            Outcome::Target(extent) => Outcome::Source(extent),
            other => other,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::InSync => "in sync",
            Outcome::NoSource => "no usable data on either node",
            Outcome::Source(Extent::Bitmap) => "source, bitmap",
            Outcome::Source(Extent::Full) => "source, full sync",
            Outcome::Target(Extent::Bitmap) => "target, bitmap",
            Outcome::Target(Extent::Full) => "target, full sync",
            Outcome::SplitBrain(History::Bitmap) => "split brain",
            Outcome::SplitBrain(History::Ancestor) => "split brain, common ancestor in the history",
            Outcome::Unrelated => "Unrelated data, aborting!",
            Outcome::Refuse(refusal) => refusal.text(),
        })
    }
}

/// The conclusion of [`compare`]: what is to be done and by which row of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Verdict {
    /// The row that decided.
    pub rule: Rule,
    /// What is to be done.
    pub outcome: Outcome,
}

impl Verdict {
    /// The verdict that the other node reaches.
    #[must_use]
    pub fn mirrored(self) -> Verdict {
        Verdict {
            rule: self.rule.mirrored(),
            outcome: self.outcome.mirrored(),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (by rule {})", self.outcome, self.rule)
    }
}
