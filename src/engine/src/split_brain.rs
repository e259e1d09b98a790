//! Who gives way in a split brain: the policies `after-sb-0pri`, `after-sb-1pri`, `after-sb-2pri`, and a person's word.
//!
//! Owns the decision, a pure function of what both sides sent. Invariants:
//! - [`resolve`] is total and symmetric: where one node concludes that it is the target, the other concludes that it is the source.
//! - A person's word (`--discard-my-data` on exactly one side) goes before every policy. This differs from DRBD, which asks the
//!   policies first and could then discard the side that the person meant to keep.
//! - A side that is Primary loses its data only under `violently-as0p`, or after it demoted itself.
//! - A side whose disk is Inconsistent never wins.
//!
//! Deliberately not here: finding the split brain (`generation`), the handlers, the demotion, and the report of what each side
//! would lose.

use core::fmt;
use core::str::FromStr;

use crate::generation::{Extent, History};
use crate::units::{Generation, NodeId};

#[cfg(test)]
mod tests;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
        pub enum $name {
            $($(#[$word_doc])* $variant,)*
        }

        impl $name {
            /// Every value.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The word in the configuration and in logs.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words! {
    /// A policy word. Which words have a meaning depends on the number of Primaries: see [`Policies::validate`].
    Policy {
        /// Nobody loses; drop the connection.
        Disconnect = "disconnect",
        /// The side that became Primary later loses.
        DiscardYoungerPrimary = "discard-younger-primary",
        /// The side that became Primary earlier loses.
        DiscardOlderPrimary = "discard-older-primary",
        /// A side without changes loses.
        DiscardZeroChanges = "discard-zero-changes",
        /// The side with fewer changed blocks loses.
        DiscardLeastChanges = "discard-least-changes",
        /// This node loses.
        DiscardLocal = "discard-local",
        /// The peer loses.
        DiscardRemote = "discard-remote",
        /// The Secondary loses.
        DiscardSecondary = "discard-secondary",
        /// As without a Primary, if then the Secondary loses.
        Consensus = "consensus",
        /// As without a Primary, even if that changes data under a running application.
        ViolentlyAs0p = "violently-as0p",
        /// As without a Primary; a Primary that loses demotes itself first, or calls the handler `pri-lost-after-sb`.
        CallPriLostAfterSb = "call-pri-lost-after-sb",
    }
}

/// A word that is no policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownPolicy;

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a split-brain policy; the words are:")?;
        Policy::ALL
            .iter()
            .try_for_each(|policy| write!(f, " {policy}"))
    }
}

impl core::error::Error for UnknownPolicy {}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(word: &str) -> Result<Policy, UnknownPolicy> {
        Policy::ALL
            .iter()
            .copied()
            .find(|policy| policy.word() == word)
            .ok_or(UnknownPolicy)
    }
}

impl Policy {
    /// The word that the other side must have configured.
    #[must_use]
    pub fn mirrored(self) -> Policy {
        match self {
            Policy::DiscardLocal => Policy::DiscardRemote,
            Policy::DiscardRemote => Policy::DiscardLocal,
            other => other,
        }
    }
}

words! {
    /// Which of the settings a decision came from.
    Setting {
        /// Nobody was Primary.
        AfterSb0pri = "after-sb-0pri",
        /// One side was Primary.
        AfterSb1pri = "after-sb-1pri",
        /// Both sides were Primary.
        AfterSb2pri = "after-sb-2pri",
        /// Policies also for a common ancestor further back.
        AlwaysAsbp = "always-asbp",
        /// The person's word.
        DiscardMyData = "discard-my-data",
    }
}

impl Setting {
    fn incompatible(self) -> &'static str {
        match self {
            Setting::AfterSb0pri => "incompatible after-sb-0pri settings",
            Setting::AfterSb1pri => "incompatible after-sb-1pri settings",
            Setting::AfterSb2pri => "incompatible after-sb-2pri settings",
            Setting::AlwaysAsbp => "incompatible always-asbp settings",
            Setting::DiscardMyData => {
                "incompatible discard-my-data settings: give --discard-my-data on one node only"
            }
        }
    }
}

/// The policies of one side's connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Policies {
    /// Nobody is Primary now.
    pub after_sb_0pri: Policy,
    /// One side is Primary now.
    pub after_sb_1pri: Policy,
    /// Both sides are Primary now.
    pub after_sb_2pri: Policy,
    /// Use the policies also if the common ancestor lies further back; a full sync follows.
    pub always_asbp: bool,
}

impl Default for Policies {
    /// Everything by hand.
    fn default() -> Policies {
        Policies {
            after_sb_0pri: Policy::Disconnect,
            after_sb_1pri: Policy::Disconnect,
            after_sb_2pri: Policy::Disconnect,
            always_asbp: false,
        }
    }
}

impl Policies {
    /// The settings that the other side must have.
    #[must_use]
    pub fn mirrored(self) -> Policies {
        Policies {
            after_sb_0pri: self.after_sb_0pri.mirrored(),
            after_sb_1pri: self.after_sb_1pri.mirrored(),
            after_sb_2pri: self.after_sb_2pri.mirrored(),
            always_asbp: self.always_asbp,
        }
    }

    /// The first setting whose word has no meaning there.
    ///
    /// # Errors
    /// The setting and its word.
    pub fn validate(&self) -> Result<(), (Setting, Policy)> {
        let zero = !matches!(
            self.after_sb_0pri,
            Policy::DiscardSecondary
                | Policy::Consensus
                | Policy::ViolentlyAs0p
                | Policy::CallPriLostAfterSb
        );
        let one = matches!(
            self.after_sb_1pri,
            Policy::Disconnect
                | Policy::Consensus
                | Policy::DiscardSecondary
                | Policy::ViolentlyAs0p
                | Policy::CallPriLostAfterSb
        );
        let two = matches!(
            self.after_sb_2pri,
            Policy::Disconnect | Policy::ViolentlyAs0p | Policy::CallPriLostAfterSb
        );
        match (zero, one, two) {
            (false, _, _) => Err((Setting::AfterSb0pri, self.after_sb_0pri)),
            (_, false, _) => Err((Setting::AfterSb1pri, self.after_sb_1pri)),
            (_, _, false) => Err((Setting::AfterSb2pri, self.after_sb_2pri)),
            _ => Ok(()),
        }
    }

    /// The first setting in which two sides contradict each other: words must be equal, `discard-local` must face
    /// `discard-remote`.
    #[must_use]
    pub fn contradiction(&self, peer: &Policies) -> Option<Setting> {
        let expected = peer.mirrored();
        if self.after_sb_0pri != expected.after_sb_0pri {
            Some(Setting::AfterSb0pri)
        } else if self.after_sb_1pri != expected.after_sb_1pri {
            Some(Setting::AfterSb1pri)
        } else if self.after_sb_2pri != expected.after_sb_2pri {
            Some(Setting::AfterSb2pri)
        } else if self.always_asbp != expected.always_asbp {
            Some(Setting::AlwaysAsbp)
        } else {
            None
        }
    }
}

/// What one side brings to the decision. Both nodes must use the same facts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SplitBrainSide {
    /// This node; the lower id wins ties.
    pub node_id: NodeId,
    /// Primary at this moment.
    pub primary_now: bool,
    /// Blocks marked out of sync towards the other: the changes since the split, roughly.
    pub bits: u64,
    /// The bitmap slot for the other. Its bit 0 tells that this side was Primary before the split.
    pub bitmap_generation: Generation,
    /// The disk is Inconsistent: it cannot be a source.
    pub inconsistent: bool,
    /// Connected with `--discard-my-data`.
    pub discard_my_data: bool,
    /// This side's configuration.
    pub policies: Policies,
}

words! {
    /// What decided.
    DecidedBy {
        /// `--discard-my-data` on one side.
        Manual = "discard-my-data",
        /// `--discard-my-data` on both sides or on a Primary.
        ManualImpossible = "discard-my-data-impossible",
        /// The two configurations contradict each other.
        IncompatibleSettings = "incompatible-settings",
        /// A policy word that has no meaning at its place.
        ConfigurationError = "configuration-error",
        /// The common ancestor is in the history and `always-asbp` is off.
        AncestorNeedsAlwaysAsbp = "ancestor-needs-always-asbp",
        /// The side that would win has an Inconsistent disk.
        WinnerInconsistent = "winner-inconsistent",
        /// `disconnect`.
        Disconnect = "disconnect",
        /// The later Primary lost.
        DiscardYoungerPrimary = "discard-younger-primary",
        /// The earlier Primary lost.
        DiscardOlderPrimary = "discard-older-primary",
        /// Neither was the younger, so the one with fewer changes lost.
        YoungerOlderUndecided = "younger-older-undecided-least-changes",
        /// The one without changes lost.
        DiscardZeroChanges = "discard-zero-changes",
        /// Both have changes.
        ZeroChangesUndecided = "discard-zero-changes-undecided",
        /// The one with fewer changes lost.
        DiscardLeastChanges = "discard-least-changes",
        /// The configuration names one side.
        DiscardNamedSide = "discard-local-or-remote",
        /// The Secondary lost.
        DiscardSecondary = "discard-secondary",
        /// Without a Primary the Primary would lose.
        ConsensusFailed = "consensus-failed",
    }
}

/// What is to be done, as seen by `me`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// My data are discarded.
    IAmTarget(Extent),
    /// The peer's data are discarded.
    IAmSource(Extent),
    /// My data are discarded, but I am Primary: become Secondary first; if that fails call `pri-lost-after-sb` and disconnect.
    IMustDemote(Extent),
    /// The peer's data are discarded once it has become Secondary; until then nothing is sent.
    PeerMustDemote(Extent),
    /// Nobody loses: call the handler `split-brain` and drop the connection.
    Unresolved {
        /// For the log and `status`.
        text: &'static str,
    },
    /// The configurations do not work together: drop the connection.
    ConfigurationError {
        /// For the log and `status`.
        text: &'static str,
    },
}

impl Resolution {
    /// What the other node must conclude.
    #[must_use]
    pub fn mirrored(self) -> Resolution {
        match self {
            Resolution::IAmTarget(extent) => Resolution::IAmSource(extent),
            Resolution::IAmSource(extent) => Resolution::IAmTarget(extent),
            Resolution::IMustDemote(extent) => Resolution::PeerMustDemote(extent),
            Resolution::PeerMustDemote(extent) => Resolution::IMustDemote(extent),
            other => other,
        }
    }
}

/// The conclusion of [`resolve`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What decided, for the log and `status`.
    pub decided_by: DecidedBy,
    /// What is to be done.
    pub resolution: Resolution,
}

impl Decision {
    /// The decision that the other node reaches.
    #[must_use]
    pub fn mirrored(self) -> Decision {
        Decision {
            resolution: self.resolution.mirrored(),
            ..self
        }
    }
}

/// Logged when nobody loses.
pub const UNRESOLVED: &str = "Split-Brain detected but unresolved, dropping connection!";
/// Logged when a policy word has no meaning at its place.
pub const CONFIGURATION_ERROR: &str = "Configuration error.";
/// Logged when the younger or older Primary cannot be told.
pub const USING_LEAST_CHANGES: &str =
    "Discard younger/older primary did not find a decision\nUsing discard-least-changes instead";

const NEEDS_ALWAYS_ASBP: &str = "Split-Brain detected but unresolved, dropping connection! The common ancestor lies in the history: \
     automatic policies need always-asbp; or connect one node with --discard-my-data";
const WINNER_INCONSISTENT: &str = "Split-Brain detected but unresolved, dropping connection! The node that would keep its data is \
     Inconsistent: connect it with --discard-my-data, or declare its data good with 'primary --force' first";
const DISCARD_ON_PRIMARY: &str = "--discard-my-data not allowed when primary.";

/// A side of the decision, seen from `me`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loser {
    Me,
    Peer,
}

fn unresolved(decided_by: DecidedBy, text: &'static str) -> Decision {
    Decision {
        decided_by,
        resolution: Resolution::Unresolved { text },
    }
}

fn configuration_error(decided_by: DecidedBy, text: &'static str) -> Decision {
    Decision {
        decided_by,
        resolution: Resolution::ConfigurationError { text },
    }
}

/// Decides a split brain whose common ancestor lies as far back as `history` says. Pure, total, symmetric.
#[must_use]
pub fn resolve(me: &SplitBrainSide, peer: &SplitBrainSide, history: History) -> Decision {
    let extent = match history {
        History::Bitmap => Extent::Bitmap,
        History::Ancestor => Extent::Full,
    };
    if let Some(decision) = by_person(me, peer, extent) {
        return decision;
    }
    if let Some(setting) = me.policies.contradiction(&peer.policies) {
        return configuration_error(DecidedBy::IncompatibleSettings, setting.incompatible());
    }
    if me.policies.validate().is_err() {
        return configuration_error(DecidedBy::ConfigurationError, CONFIGURATION_ERROR);
    }
    if history == History::Ancestor && !me.policies.always_asbp {
        return unresolved(DecidedBy::AncestorNeedsAlwaysAsbp, NEEDS_ALWAYS_ASBP);
    }
    let primaries = u8::from(me.primary_now) + u8::from(peer.primary_now);
    let policy = match primaries {
        0 => me.policies.after_sb_0pri,
        1 => me.policies.after_sb_1pri,
        _ => me.policies.after_sb_2pri,
    };
    let without_primaries = as_0p(me, peer);
    let (decided_by, loser) = match (primaries, policy) {
        (0, _) => without_primaries,
        (1, Policy::DiscardSecondary) => (
            DecidedBy::DiscardSecondary,
            Some(if me.primary_now {
                Loser::Peer
            } else {
                Loser::Me
            }),
        ),
        (1, Policy::Consensus) => match without_primaries {
            (_, Some(loser)) if is_primary(loser, me, peer) => (DecidedBy::ConsensusFailed, None),
            decided => decided,
        },
        (_, Policy::ViolentlyAs0p | Policy::CallPriLostAfterSb) => without_primaries,
        _ => (DecidedBy::Disconnect, None),
    };
    match loser {
        None => unresolved(decided_by, UNRESOLVED),
        Some(loser) => {
            let demote_first = is_primary(loser, me, peer) && policy == Policy::CallPriLostAfterSb;
            discard(decided_by, loser, me, peer, extent, demote_first)
        }
    }
}

fn is_primary(loser: Loser, me: &SplitBrainSide, peer: &SplitBrainSide) -> bool {
    match loser {
        Loser::Me => me.primary_now,
        Loser::Peer => peer.primary_now,
    }
}

fn by_person(me: &SplitBrainSide, peer: &SplitBrainSide, extent: Extent) -> Option<Decision> {
    let loser = match (me.discard_my_data, peer.discard_my_data) {
        (false, false) => return None,
        (true, true) => {
            return Some(configuration_error(
                DecidedBy::ManualImpossible,
                Setting::DiscardMyData.incompatible(),
            ));
        }
        (true, false) => Loser::Me,
        (false, true) => Loser::Peer,
    };
    if is_primary(loser, me, peer) {
        return Some(unresolved(DecidedBy::ManualImpossible, DISCARD_ON_PRIMARY));
    }
    Some(discard(DecidedBy::Manual, loser, me, peer, extent, false))
}

fn discard(
    decided_by: DecidedBy,
    loser: Loser,
    me: &SplitBrainSide,
    peer: &SplitBrainSide,
    extent: Extent,
    demote_first: bool,
) -> Decision {
    let winner = if loser == Loser::Me { peer } else { me };
    if winner.inconsistent {
        return unresolved(DecidedBy::WinnerInconsistent, WINNER_INCONSISTENT);
    }
    let resolution = match (loser, demote_first) {
        (Loser::Me, false) => Resolution::IAmTarget(extent),
        (Loser::Peer, false) => Resolution::IAmSource(extent),
        (Loser::Me, true) => Resolution::IMustDemote(extent),
        (Loser::Peer, true) => Resolution::PeerMustDemote(extent),
    };
    Decision {
        decided_by,
        resolution,
    }
}

/// What `after-sb-0pri` says, whatever the roles.
fn as_0p(me: &SplitBrainSide, peer: &SplitBrainSide) -> (DecidedBy, Option<Loser>) {
    // A slot that a Primary left behind: that side was Primary before the split, the other became it later.
    let (my_bit, peer_bit) = (
        me.bitmap_generation.made_by_primary(),
        peer.bitmap_generation.made_by_primary(),
    );
    let younger = match (my_bit, peer_bit) {
        (false, true) => Some(Loser::Me),
        (true, false) => Some(Loser::Peer),
        _ => None,
    };
    let older = younger.map(|side| {
        if side == Loser::Me {
            Loser::Peer
        } else {
            Loser::Me
        }
    });
    match me.policies.after_sb_0pri {
        Policy::DiscardYoungerPrimary if younger.is_some() => {
            (DecidedBy::DiscardYoungerPrimary, younger)
        }
        Policy::DiscardOlderPrimary if older.is_some() => (DecidedBy::DiscardOlderPrimary, older),
        Policy::DiscardYoungerPrimary | Policy::DiscardOlderPrimary => (
            DecidedBy::YoungerOlderUndecided,
            Some(least_changes(me, peer)),
        ),
        Policy::DiscardZeroChanges if me.bits == 0 || peer.bits == 0 => {
            (DecidedBy::DiscardZeroChanges, Some(least_changes(me, peer)))
        }
        Policy::DiscardZeroChanges => (DecidedBy::ZeroChangesUndecided, None),
        Policy::DiscardLeastChanges => (
            DecidedBy::DiscardLeastChanges,
            Some(least_changes(me, peer)),
        ),
        Policy::DiscardLocal => (DecidedBy::DiscardNamedSide, Some(Loser::Me)),
        Policy::DiscardRemote => (DecidedBy::DiscardNamedSide, Some(Loser::Peer)),
        _ => (DecidedBy::Disconnect, None),
    }
}

/// The side with fewer changes; with equally many the higher node id.
fn least_changes(me: &SplitBrainSide, peer: &SplitBrainSide) -> Loser {
    let mine = (me.bits, core::cmp::Reverse(me.node_id));
    let theirs = (peer.bits, core::cmp::Reverse(peer.node_id));
    if mine < theirs {
        Loser::Me
    } else {
        Loser::Peer
    }
}
