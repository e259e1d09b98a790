//! The state of the connection to one peer.

use super::state_words;

state_words! {
    /// State of the connection to one peer, in DRBD's rank order.
    ConnectionState {
        /// No networking wanted.
        StandAlone,
        /// The administrator disconnects.
        Disconnecting,
        /// Before the next attempt.
        Unconnected,
        /// The peer missed the deadline of a request.
        Timeout,
        /// The peer closed the connection.
        BrokenPipe,
        /// The network or the peer does not answer.
        NetworkFailure,
        /// The peer sent something that makes no sense.
        ProtocolError,
        /// The peer disconnects on purpose.
        TearDown,
        /// Trying to reach the peer, or shaking hands.
        Connecting,
        /// Connected.
        Connected,
    }
}

impl ConnectionState {
    /// Transition table: true if the state may follow `self` (drbd-9: any failure leads to Unconnected or Disconnecting only).
    #[must_use]
    pub fn may_become(self, next: ConnectionState) -> bool {
        use ConnectionState::*;
        if self == next {
            return true;
        }
        match self {
            StandAlone => matches!(next, Unconnected),
            Disconnecting => matches!(next, StandAlone),
            Unconnected => matches!(next, Connecting | Disconnecting),
            Timeout | BrokenPipe | NetworkFailure | ProtocolError | TearDown => {
                matches!(next, Unconnected | Disconnecting)
            }
            Connecting => matches!(
                next,
                Connected
                    | Disconnecting
                    | Timeout
                    | BrokenPipe
                    | NetworkFailure
                    | ProtocolError
                    | TearDown
            ),
            Connected => matches!(
                next,
                Disconnecting | Timeout | BrokenPipe | NetworkFailure | ProtocolError | TearDown
            ),
        }
    }

    /// True for the states that lead back to Unconnected by themselves.
    #[must_use]
    pub fn is_failure(self) -> bool {
        use ConnectionState::*;
        matches!(
            self,
            Timeout | BrokenPipe | NetworkFailure | ProtocolError | TearDown
        )
    }
}
