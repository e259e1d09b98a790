//! Names of the rows of the comparison table.
//!
//! A rule is what is logged, shown by `status` and asserted in tests: every verdict carries exactly one. Names end in
//! `-self` or `-peer` where the two nodes see the same row from different sides; [`Rule::mirrored`] gives the name that the
//! other node logs for the same meeting.

use core::fmt;

macro_rules! rules {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, mirror $mirror:ident;)*) => {
        /// The row of the comparison table that decided.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
        pub enum Rule {
            $($(#[$doc])* $variant,)*
        }

        impl Rule {
            /// Every rule, in table order.
            pub const ALL: &'static [Rule] = &[$(Rule::$variant),*];

            /// The name in logs and in `status`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Rule::$variant => $name,)* }
            }

            /// The rule that the other node finds for the same meeting.
            #[must_use]
            pub fn mirrored(self) -> Rule {
                match self { $(Rule::$variant => Rule::$mirror,)* }
            }
        }
    };
}

rules! {
    /// Both sides carry the same node id: a configuration mistake, and no tie could be broken.
    SameNodeId = "same-node-id", mirror SameNodeId;
    /// Both sides were told to throw their data away.
    FullSyncRequestedBoth = "full-sync-requested-both", mirror FullSyncRequestedBoth;
    /// My data were invalidated by command.
    FullSyncRequestedSelf = "full-sync-requested-self", mirror FullSyncRequestedPeer;
    /// The peer's data were invalidated by command.
    FullSyncRequestedPeer = "full-sync-requested-peer", mirror FullSyncRequestedSelf;
    /// Neither side ever had a generation.
    JustCreatedBoth = "just-created-both", mirror JustCreatedBoth;
    /// My metadata are new.
    JustCreatedSelf = "just-created-self", mirror JustCreatedPeer;
    /// The peer's metadata are new.
    JustCreatedPeer = "just-created-peer", mirror JustCreatedSelf;
    /// Same generation, both Inconsistent.
    InconsistentBoth = "inconsistent-both", mirror InconsistentBoth;
    /// Same generation, I am in the middle of a resync from the peer.
    ResyncInterruptedSelf = "resync-interrupted-self", mirror ResyncInterruptedPeer;
    /// Same generation, the peer is in the middle of a resync from me.
    ResyncInterruptedPeer = "resync-interrupted-peer", mirror ResyncInterruptedSelf;
    /// I am the target and Inconsistent for a reason that the bitmap need not know.
    InconsistentSelf = "inconsistent-self", mirror InconsistentPeer;
    /// The peer is the target and Inconsistent for a reason that the bitmap need not know.
    InconsistentPeer = "inconsistent-peer", mirror InconsistentSelf;
    /// Same generation, nobody restarted since the two were last connected, nothing marked.
    Reconnected = "reconnected", mirror Reconnected;
    /// Same generation, nothing marked.
    Equal = "equal", mirror Equal;
    /// Same generation, a Primary crashed, but nothing is marked: no write was under way.
    CrashedNothingMarked = "crashed-nothing-marked", mirror CrashedNothingMarked;
    /// Same generation, yet a side tracks changes since an older one and both hold bits.
    EqualDiverged = "equal-diverged", mirror EqualDiverged;
    /// Same generation, I still track changes since an older one.
    SyncSourceMissedFinish = "sync-source-missed-finish", mirror SyncTargetPeerMissedFinish;
    /// Same generation, the peer still tracks changes since an older one.
    SyncTargetPeerMissedFinish = "sync-target-peer-missed-finish", mirror SyncSourceMissedFinish;
    /// Same generation, blocks marked, both are Primary.
    TwoPrimaries = "two-primaries", mirror TwoPrimaries;
    /// Same generation, blocks marked, I am the Primary.
    PrimarySelf = "primary-self", mirror PrimaryPeer;
    /// Same generation, blocks marked, the peer is the Primary.
    PrimaryPeer = "primary-peer", mirror PrimarySelf;
    /// Same generation, both crashed as Primary: the lower node id is the source.
    CrashedBoth = "crashed-both", mirror CrashedBoth;
    /// The peer crashed as Primary; I stayed up and hold every completed write (protocol C).
    SurvivorSelf = "survivor-self", mirror SurvivorPeer;
    /// I crashed as Primary; the peer stayed up and holds every completed write (protocol C).
    SurvivorPeer = "survivor-peer", mirror SurvivorSelf;
    /// I crashed as Primary and hold the most.
    CrashedPrimarySelf = "crashed-primary-self", mirror CrashedPrimaryPeer;
    /// The peer crashed as Primary and holds the most.
    CrashedPrimaryPeer = "crashed-primary-peer", mirror CrashedPrimarySelf;
    /// Same generation, only I hold bits.
    LeftoverBitsSelf = "leftover-bits-self", mirror LeftoverBitsPeer;
    /// Same generation, only the peer holds bits.
    LeftoverBitsPeer = "leftover-bits-peer", mirror LeftoverBitsSelf;
    /// Same generation, both hold bits, the peer alone is Outdated.
    BetterDiskSelf = "better-disk-self", mirror BetterDiskPeer;
    /// Same generation, both hold bits, I alone am Outdated.
    BetterDiskPeer = "better-disk-peer", mirror BetterDiskSelf;
    /// Same generation, both hold bits: the lower node id is the source.
    LeftoverBitsBoth = "leftover-bits-both", mirror LeftoverBitsBoth;
    /// The peer's generation was begun for my lost disk and given up by me: nothing was completed in it.
    GivenUpSelf = "given-up-self", mirror GivenUpPeer;
    /// My generation was begun for the peer's lost disk and given up by it: nothing was completed in it.
    GivenUpPeer = "given-up-peer", mirror GivenUpSelf;
    /// Each side left the other's current generation behind.
    BitmapCrossed = "bitmap-crossed", mirror BitmapCrossed;
    /// The peer went on from my generation, but I track changes of my own.
    BitmapPeerDiverged = "bitmap-peer-diverged", mirror BitmapSelfDiverged;
    /// I went on from the peer's generation, but it tracks changes of its own.
    BitmapSelfDiverged = "bitmap-self-diverged", mirror BitmapPeerDiverged;
    /// The peer went on from my generation.
    BitmapPeer = "bitmap-peer", mirror BitmapSelf;
    /// I went on from the peer's generation.
    BitmapSelf = "bitmap-self", mirror BitmapPeer;
    /// The peer began a resync from me; I never learned it and went on.
    SyncSourceMissedStart = "sync-source-missed-start", mirror SyncTargetPeerMissedStart;
    /// I began a resync from the peer; it never learned it and went on.
    SyncTargetPeerMissedStart = "sync-target-peer-missed-start", mirror SyncSourceMissedStart;
    /// Each side has the other's current generation in its history.
    HistoryCrossed = "history-crossed", mirror HistoryCrossed;
    /// My generation is an old one of the peer, but I track changes of my own.
    HistoryPeerDiverged = "history-peer-diverged", mirror HistorySelfDiverged;
    /// The peer's generation is an old one of mine, but it tracks changes of its own.
    HistorySelfDiverged = "history-self-diverged", mirror HistoryPeerDiverged;
    /// My generation is an old one of the peer.
    HistoryPeer = "history-peer", mirror HistorySelf;
    /// The peer's generation is an old one of mine.
    HistorySelf = "history-self", mirror HistoryPeer;
    /// Both went on from the same generation.
    BitmapBoth = "bitmap-both", mirror BitmapBoth;
    /// Both descend from a common generation further back.
    HistoryBoth = "history-both", mirror HistoryBoth;
    /// Nothing in common.
    Unrelated = "unrelated", mirror Unrelated;
    /// The side that the generations name as target is the only one with usable data: that side is me.
    OnlyConsistentSelf = "only-consistent-self", mirror OnlyConsistentPeer;
    /// The side that the generations name as target is the only one with usable data: that side is the peer.
    OnlyConsistentPeer = "only-consistent-peer", mirror OnlyConsistentSelf;
    /// Neither side could be a source.
    NoConsistentSource = "no-consistent-source", mirror NoConsistentSource;
    /// I hold the newer generation, but my disk is damaged.
    DamagedSourceSelf = "damaged-source-self", mirror DamagedSourcePeer;
    /// The peer holds the newer generation, but its disk is damaged.
    DamagedSourcePeer = "damaged-source-peer", mirror DamagedSourceSelf;
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
