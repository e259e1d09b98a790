//! Requests and responses of the control socket.
//!
//! Order of variants and fields is wire format (see [`crate::codec`]): append, never reorder, and raise the codec's
//! version when an existing message changes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::generations::GenerationReport;
use crate::refusal::Refusal;
use crate::status::StatusReport;

/// One command for one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// To what.
    pub target: Target,
}

/// What the daemon is asked to do; names are those of `drbdadm`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Configure the resource, attach its disks and connect.
    Up,
    /// Demote, disconnect, detach and forget the resource. Not configured is success.
    Down,
    /// Make the running resource equal to the configuration file; like `Up` if it is not configured.
    Adjust,
    /// Take the backing device into use.
    Attach,
    /// Release the backing device.
    Detach {
        /// Do not wait for I/O on the backing device and do not mind losing the last copy.
        force: bool,
    },
    /// Leave StandAlone.
    Connect {
        /// In a split brain this node's changes lose.
        discard_my_data: bool,
    },
    /// Go StandAlone.
    Disconnect {
        /// Do not ask the peer.
        force: bool,
    },
    /// Promote.
    Primary {
        /// Declare the local data UpToDate although it is not known to be.
        force: bool,
    },
    /// Demote.
    Secondary {
        /// Fail the I/O of those who hold the device open.
        force: bool,
    },
    /// Own role (with a peer in the target: the peer's). Answered with [`Response::Status`].
    Role,
    /// Connection state. Answered with [`Response::Status`].
    Cstate,
    /// Disk states. Answered with [`Response::Status`].
    Dstate,
    /// Full report of the target. Answered with [`Response::Status`]; must never wait for a peer.
    Status,
    /// Wait until connected; [`Response::Progress`] may precede the answer.
    WaitConnect {
        /// Seconds to wait, `None` for ever.
        timeout_seconds: Option<u32>,
    },
    /// Wait until no resync runs; [`Response::Progress`] may precede the answer.
    WaitSync {
        /// Seconds to wait, `None` for ever.
        timeout_seconds: Option<u32>,
    },
    /// Local data is bad: become SyncTarget.
    Invalidate,
    /// The peer's data is bad: make it SyncTarget.
    InvalidateRemote,
    /// Set this node's pause flag of the resync.
    PauseSync,
    /// Clear this node's pause flag of the resync.
    ResumeSync,
    /// Mark the local data Outdated.
    Outdate,
    /// Begin a new data generation.
    NewCurrentUuid {
        /// Declare the fresh mirrors identical: skip the initial sync.
        clear_bitmap: bool,
    },
    /// Generation identifiers. Answered with [`Response::Generations`].
    ShowGi,
    /// Generation identifiers. Answered with [`Response::Generations`].
    GetGi,
    /// Liveness and version. Answered with [`Response::Version`].
    Version,
    /// Freeze application I/O.
    SuspendIo,
    /// Let application I/O go on.
    ResumeIo,
    /// The backing disks have grown: use what was added.
    Resize {
        /// At most this many bytes, `None` for all that the disks offer.
        bytes: Option<u64>,
        /// What was added is the same on every node: do not copy it.
        assume_clean: bool,
    },
}

/// What a command is aimed at. Everything `None` means all resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Resource name, `None` for all.
    pub resource: Option<String>,
    /// Volume number, `None` for all volumes.
    pub volume: Option<u16>,
    /// Peer's host name, `None` for all peers.
    pub peer: Option<String>,
}

impl Target {
    /// All resources.
    #[must_use]
    pub fn all() -> Target {
        Target::default()
    }
    /// All volumes and peers of one resource.
    #[must_use]
    pub fn resource(name: &str) -> Target {
        Target {
            resource: Some(name.to_owned()),
            volume: None,
            peer: None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.resource.as_deref().unwrap_or("all"))?;
        if let Some(peer) = &self.peer {
            write!(f, ":{peer}")?;
        }
        if let Some(volume) = self.volume {
            write!(f, "/{volume}")?;
        }
        Ok(())
    }
}

/// A target that is not `RES`, `RES/VOL`, `RES:PEER`, `RES:PEER/VOL` or `all`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is not a target: {reason} (allowed are RES, RES/VOL, RES:PEER, RES:PEER/VOL, all)"
)]
pub struct TargetError {
    text: String,
    reason: &'static str,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Target, TargetError> {
        let error = |reason| TargetError {
            text: text.to_owned(),
            reason,
        };
        let (rest, volume) = match text.split_once('/') {
            Some((rest, number)) => {
                if !number.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(error("the volume is not a number"));
                }
                (
                    rest,
                    Some(
                        number
                            .parse()
                            .map_err(|_| error("the volume is not a number of 0..=65535"))?,
                    ),
                )
            }
            None => (text, None),
        };
        let (resource, peer) = match rest.split_once(':') {
            Some((_, "")) => return Err(error("the peer's name is empty")),
            Some((resource, peer)) => (resource, Some(peer.to_owned())),
            None => (rest, None),
        };
        match resource {
            "" => Err(error("the resource name is empty")),
            "all" if volume.is_some() || peer.is_some() => {
                Err(error("'all' takes neither volume nor peer"))
            }
            "all" => Ok(Target::all()),
            name => Ok(Target {
                resource: Some(name.to_owned()),
                volume,
                peer,
            }),
        }
    }
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// Done.
    Ok {
        /// Printed to stdout if not empty (warnings and hints belong to the log).
        text: String,
    },
    /// Not done, and why.
    Refused(Refusal),
    /// Answer to `Status`, `Role`, `Cstate`, `Dstate`.
    Status(StatusReport),
    /// Not final: how far `WaitConnect`, `WaitSync`, `Up`, `Adjust` have come.
    Progress(Progress),
    /// Answer to `ShowGi`, `GetGi`: one report per volume.
    Generations(Vec<GenerationReport>),
    /// Answer to `Version`.
    Version(VersionInformation),
}

impl Response {
    /// Whether the request is answered with this response.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Response::Progress(_))
    }
}

/// How far a long command has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Resource name.
    pub resource: String,
    /// Volume number if it concerns one.
    pub volume: Option<u16>,
    /// Peer's name if it concerns one.
    pub peer: Option<String>,
    /// What is going on, in a few words: a replication state, "attaching", "waiting for bob".
    pub phase: String,
    /// Amount done, KiB; zero if `total_kib` is zero.
    pub done_kib: u64,
    /// Amount to do, KiB; zero if unknown.
    pub total_kib: u64,
    /// Present speed, KiB per second.
    pub kib_per_second: u64,
    /// Expected time to the end, seconds.
    pub remaining_seconds: Option<u64>,
}

/// Who answers on the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInformation {
    /// Version of the daemon's package.
    pub version: String,
    /// Name of the node that the daemon is.
    pub node: String,
    /// Configuration file that the daemon reads.
    pub configuration_file: String,
    /// Process id of the daemon.
    pub process_id: u32,
}
