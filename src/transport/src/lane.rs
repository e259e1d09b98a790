//! The four lanes of a session and how they open on the wire.
//!
//! A lane is one unidirectional QUIC stream in each direction. Its first [`PREAMBLE_BYTES`] bytes name it; after them
//! come frames and nothing else, until the session ends.

/// One of the four ordered lanes of a session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Lane {
    /// Application writes, barriers and whatever must keep their order.
    Data,
    /// Acknowledgements of what came on the peer's data lane.
    Acks,
    /// State changes, handshakes, pings.
    Control,
    /// Resync and verify traffic, which yields to everything else.
    Resync,
}

/// Length of what opens a lane.
pub(crate) const PREAMBLE_BYTES: usize = 4;
/// Format of the preamble.
const PREAMBLE_FORMAT: u8 = 1;

impl Lane {
    /// All lanes, in the order of their wire numbers.
    pub const ALL: [Self; 4] = [Self::Data, Self::Acks, Self::Control, Self::Resync];

    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// Strict priority of the lane's stream: a lower one sends only when no higher one has anything to send.
    pub(crate) const fn priority(self) -> i32 {
        match self {
            Self::Control | Self::Acks => 2,
            Self::Data => 1,
            Self::Resync => 0,
        }
    }

    pub(crate) const fn preamble(self) -> [u8; PREAMBLE_BYTES] {
        [b'Q', b'L', PREAMBLE_FORMAT, self as u8]
    }

    pub(crate) fn from_preamble(preamble: [u8; PREAMBLE_BYTES]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|lane| lane.preamble() == preamble)
    }
}

impl std::fmt::Display for Lane {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Data => "data",
            Self::Acks => "acks",
            Self::Control => "control",
            Self::Resync => "resync",
        })
    }
}
