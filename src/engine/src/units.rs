//! Units and identifiers. Conversions between units live here and nowhere else.
//!
//! Byte offsets and lengths are relative to the start of a volume's data area (the device as the client sees it)
//! unless a name says otherwise.

use core::fmt;

/// Smallest unit a request may address: 512 bytes.
pub const SECTOR_BYTES: u64 = 512;
/// Bytes that one bit of the out-of-sync bitmap stands for.
pub const BLOCK_BYTES: u64 = 4096;
/// Bytes that one slot of the activity log stands for.
pub const EXTENT_BYTES: u64 = 4 << 20;
/// Blocks in one activity-log extent.
pub const BLOCKS_PER_EXTENT: u64 = EXTENT_BYTES / BLOCK_BYTES;

/// Monotonic time in milliseconds since an origin the shell chose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Time(pub u64);

impl Time {
    /// This moment plus `milliseconds`, saturating.
    #[must_use]
    pub fn after(self, milliseconds: u64) -> Time {
        Time(self.0.saturating_add(milliseconds))
    }
    /// Milliseconds from `earlier` to this moment, zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Number of a node within the cluster, 0..=31.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct NodeId(pub u8);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Number of a volume within its resource.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct VolumeNumber(pub u16);

impl fmt::Display for VolumeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A generation identifier: 64 random bits; bit 0 tells that a Primary made it and is ignored in comparisons.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// Empty slot.
    pub const NONE: Generation = Generation(0);
    /// The current generation of metadata that was just created and never connected.
    pub const JUST_CREATED: Generation = Generation(4);
    /// Set when the node was Primary as it made this generation.
    pub const PRIMARY_BIT: u64 = 1;

    /// True for an empty slot (bit 0 ignored).
    #[must_use]
    pub fn is_none(self) -> bool {
        self.0 & !Self::PRIMARY_BIT == 0
    }
    /// True for [`Generation::JUST_CREATED`] and for an empty value.
    #[must_use]
    pub fn is_just_created(self) -> bool {
        self.is_none() || self.same(Self::JUST_CREATED)
    }
    /// Equality without bit 0.
    #[must_use]
    pub fn same(self, other: Generation) -> bool {
        (self.0 ^ other.0) & !Self::PRIMARY_BIT == 0
    }
    /// True if a Primary made this generation.
    #[must_use]
    pub fn made_by_primary(self) -> bool {
        self.0 & Self::PRIMARY_BIT != 0
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

/// A range of bytes of a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
}

impl ByteRange {
    /// The range of `length` bytes from `offset`.
    #[must_use]
    pub fn new(offset: u64, length: u32) -> Self {
        ByteRange { offset, length }
    }
    /// First byte after the range.
    #[must_use]
    pub fn end(self) -> u64 {
        self.offset + u64::from(self.length)
    }
    /// True if the two ranges share a byte.
    #[must_use]
    pub fn overlaps(self, other: ByteRange) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
    /// Blocks touched, rounded outwards: `first..end`.
    #[must_use]
    pub fn blocks_touched(self) -> core::ops::Range<u64> {
        if self.length == 0 {
            return 0..0;
        }
        self.offset / BLOCK_BYTES..self.end().div_ceil(BLOCK_BYTES)
    }
    /// Blocks fully covered, rounded inwards: `first..end`, possibly empty. `device_bytes` is the size of the volume:
    /// a last block that is cut short by the end of the volume counts as covered.
    #[must_use]
    pub fn blocks_covered(self, device_bytes: u64) -> core::ops::Range<u64> {
        let first = self.offset.div_ceil(BLOCK_BYTES);
        let end = if self.end() >= device_bytes {
            self.end().div_ceil(BLOCK_BYTES)
        } else {
            self.end() / BLOCK_BYTES
        };
        if end <= first {
            first..first
        } else {
            first..end
        }
    }
    /// Activity-log extents touched: `first..end`.
    #[must_use]
    pub fn extents_touched(self) -> core::ops::Range<u32> {
        if self.length == 0 {
            return 0..0;
        }
        (self.offset / EXTENT_BYTES) as u32..self.end().div_ceil(EXTENT_BYTES) as u32
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.length)
    }
}

/// Number of blocks of a device of `bytes` bytes.
#[must_use]
pub fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES)
}
