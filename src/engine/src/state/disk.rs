//! The state of a volume's data on one node.

use super::state_words;

state_words! {
    /// State of the data of a volume on one node, in DRBD's rank order.
    DiskState {
        /// No disk attached.
        Diskless,
        /// Metadata is being read.
        Attaching,
        /// The administrator takes the disk away.
        Detaching,
        /// A local I/O error happened; becomes Diskless.
        Failed,
        /// Attached while connected: the handshake decides.
        Negotiating,
        /// A mixture of points in time, never promotable without force.
        Inconsistent,
        /// Consistent, but known to be old.
        Outdated,
        /// The state of an unreachable peer's disk.
        DUnknown,
        /// Consistent; whether current is decided at the next contact.
        Consistent,
        /// Current.
        UpToDate,
    }
}

impl DiskState {
    /// Transition table of the local disk: true if the state may follow `self`.
    #[must_use]
    pub fn may_become(self, next: DiskState) -> bool {
        use DiskState::*;
        if self == next {
            return true;
        }
        match self {
            Diskless => matches!(next, Attaching),
            Attaching => matches!(
                next,
                Diskless | Failed | Negotiating | Inconsistent | Outdated | Consistent | UpToDate
            ),
            Detaching => matches!(next, Diskless | Failed),
            Failed => matches!(next, Diskless),
            Negotiating | Inconsistent | Outdated | Consistent | UpToDate => {
                matches!(
                    next,
                    Detaching | Failed | Inconsistent | Outdated | Consistent | UpToDate
                )
            }
            DUnknown => false,
        }
    }

    /// True if a disk with readable data is attached.
    #[must_use]
    pub fn has_data(self) -> bool {
        matches!(
            self,
            DiskState::Inconsistent
                | DiskState::Outdated
                | DiskState::Consistent
                | DiskState::UpToDate
        )
    }
}
