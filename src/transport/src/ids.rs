//! Identifiers and versions, and the one rule by which two version ranges agree.

use std::fmt;

/// A node's id in its resource, as configured (`node-id`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u8);

impl fmt::Display for NodeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A session of one endpoint; never used twice by the same endpoint. The two nodes number their sessions independently.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Version of what the owner's frames mean; the transport only negotiates it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProtocolVersion(pub u16);

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The protocol versions that a node speaks, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionRange {
    /// Oldest version spoken.
    pub min: ProtocolVersion,
    /// Newest version spoken.
    pub max: ProtocolVersion,
}

impl VersionRange {
    /// The range from `min` to `max`.
    ///
    /// # Panics
    /// If `min` is above `max`.
    pub const fn new(min: u16, max: u16) -> Self {
        assert!(min <= max);
        Self {
            min: ProtocolVersion(min),
            max: ProtocolVersion(max),
        }
    }

    /// The newest version that both ranges hold.
    pub fn newest_common(self, other: Self) -> Option<ProtocolVersion> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.min, self.max)
    }
}
