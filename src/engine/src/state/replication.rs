//! The replication state of one volume on one connection.

use super::state_words;

state_words! {
    /// Replication state of one volume toward one peer, in DRBD's rank order.
    ReplicationState {
        /// Not connected.
        Off,
        /// Mirroring, nothing to resynchronise.
        Established,
        /// A full sync is being prepared here as source.
        StartingSyncS,
        /// A full sync is being prepared here as target.
        StartingSyncT,
        /// Bitmaps are exchanged, this node will be source.
        WFBitMapS,
        /// Bitmaps are exchanged, this node will be target.
        WFBitMapT,
        /// Waiting for the generation of the resync.
        WFSyncUUID,
        /// Resync runs, this node is the source.
        SyncSource,
        /// Resync runs, this node is the target.
        SyncTarget,
        /// Online verify runs, this node compares.
        VerifyS,
        /// Online verify runs, this node answers.
        VerifyT,
        /// Resync is held, this node is the source.
        PausedSyncS,
        /// Resync is held, this node is the target.
        PausedSyncT,
        /// Mirroring stopped because of congestion, this node is ahead.
        Ahead,
        /// Mirroring stopped because of congestion, this node is behind.
        Behind,
    }
}

impl ReplicationState {
    /// Transition table: true if the state may follow `self`.
    #[must_use]
    pub fn may_become(self, next: ReplicationState) -> bool {
        use ReplicationState::*;
        if self == next || next == Off {
            return true;
        }
        match self {
            Off => matches!(next, Established | WFBitMapS | WFBitMapT),
            Established => matches!(
                next,
                StartingSyncS
                    | StartingSyncT
                    | WFBitMapS
                    | WFBitMapT
                    | VerifyS
                    | VerifyT
                    | Ahead
                    | Behind
            ),
            StartingSyncS => matches!(next, WFBitMapS),
            StartingSyncT => matches!(next, WFBitMapT | WFSyncUUID),
            WFBitMapS => matches!(next, SyncSource | PausedSyncS | Established),
            WFBitMapT => matches!(next, WFSyncUUID | SyncTarget | PausedSyncT | Established),
            WFSyncUUID => matches!(next, SyncTarget | PausedSyncT),
            SyncSource => matches!(next, PausedSyncS | Established),
            SyncTarget => matches!(next, PausedSyncT | Established),
            PausedSyncS => matches!(next, SyncSource | Established),
            PausedSyncT => matches!(next, SyncTarget | Established),
            VerifyS | VerifyT => matches!(next, Established),
            Ahead => matches!(next, SyncSource | WFBitMapS),
            Behind => matches!(next, SyncTarget | WFBitMapT),
        }
    }

    /// True while application writes are sent to the peer.
    #[must_use]
    pub fn mirrors(self) -> bool {
        use ReplicationState::*;
        matches!(
            self,
            Established | SyncSource | SyncTarget | PausedSyncS | PausedSyncT | VerifyS | VerifyT
        )
    }

    /// True while the bitmaps are exchanged, before a resync.
    #[must_use]
    pub fn is_exchanging_bitmaps(self) -> bool {
        matches!(
            self,
            ReplicationState::WFBitMapS | ReplicationState::WFBitMapT
        )
    }

    /// True on the source side of a resync, running or held.
    #[must_use]
    pub fn is_sync_source(self) -> bool {
        matches!(
            self,
            ReplicationState::SyncSource | ReplicationState::PausedSyncS
        )
    }

    /// True on the target side of a resync, running or held.
    #[must_use]
    pub fn is_sync_target(self) -> bool {
        matches!(
            self,
            ReplicationState::SyncTarget | ReplicationState::PausedSyncT
        )
    }
}
