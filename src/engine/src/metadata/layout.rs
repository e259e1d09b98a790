//! Where everything lies inside the metadata device, in bytes.
//!
//! Internal (metadata device = backing device), counted from the end so that both superblock copies are found from the
//! device's size alone:
//!
//! ```text
//! [ data | bitmap slot 0 | … | bitmap slot N-1 | superblock B | 30 ring blocks | superblock A ] [ < 4 KiB unused ]
//!                                              '------------ 128 KiB tail ------------------'
//! ```
//!
//! External, and each 128 MiB slot of an indexed metadata device, counted from its start:
//!
//! ```text
//! [ superblock A | 30 ring blocks | superblock B | bitmap slot 0 | … | bitmap slot N-1 ]
//! ```
//!
//! Invariants: everything is aligned to 4 KiB; nothing overlaps; data starts at byte 0 of the backing device; bitmap slots
//! (one per peer) have equal size, large enough for every block of the data area.
//! The module does not read: what is really stored at these places is judged by [`super::superblock`].

use core::fmt;

use super::METADATA_BLOCK_BYTES;
use crate::bitmap::disk_blocks_needed;
use crate::limits::{MAX_DEVICE_BYTES, MAX_PEERS};
use crate::units::{SECTOR_BYTES, blocks_of};

/// Blocks of the on-disk activity-log ring.
pub const RING_BLOCKS: u32 = 30;
/// Bytes of the part whose size does not depend on the device: two superblock copies around the ring.
pub const FIXED_BYTES: u64 = (RING_BLOCKS as u64 + 2) * METADATA_BLOCK_BYTES;
/// Bytes of one slot of an indexed metadata device (`meta-disk PATH[N]`).
pub const INDEXED_SLOT_BYTES: u64 = 128 << 20;

/// Where the metadata of a volume is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// At the end of the backing device (`meta-disk internal`).
    Internal,
    /// On a device of its own (`flexible-meta-disk PATH`).
    External {
        /// Size of the metadata device.
        metadata_bytes: u64,
    },
    /// In one of the 128 MiB slots of a shared metadata device (`meta-disk PATH[N]`).
    Indexed {
        /// Number of the slot, from 0.
        slot: u32,
        /// Size of the metadata device.
        metadata_bytes: u64,
    },
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Placement::Internal => f.write_str("internal"),
            Placement::External { .. } => f.write_str("external"),
            Placement::Indexed { slot, .. } => write!(f, "indexed[{slot}]"),
        }
    }
}

/// Name of one of the two superblock copies. An update writes A first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CopyName {
    /// Written first; at the last 4 KiB of an internal device, at the first of an external one.
    A,
    /// Written second, on the other side of the ring.
    B,
}

impl fmt::Display for CopyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CopyName::A => "A",
            CopyName::B => "B",
        })
    }
}

/// Byte offsets of everything inside the metadata device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Where the metadata is kept.
    pub placement: Placement,
    /// Size of the backing device that the layout was computed for.
    pub device_bytes: u64,
    /// Bitmap slots.
    pub max_peers: u8,
    /// Largest usable size of the volume; the data area starts at byte 0 of the backing device.
    pub data_bytes: u64,
    /// Superblock copy A.
    pub superblock_a: u64,
    /// Superblock copy B.
    pub superblock_b: u64,
    /// First block of the activity-log ring.
    pub ring_offset: u64,
    /// Blocks of the ring.
    pub ring_blocks: u32,
    /// First bitmap slot.
    pub bitmap_offset: u64,
    /// Bytes of each bitmap slot.
    pub bitmap_slot_bytes: u64,
}

/// Why no layout can be computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LayoutError {
    /// The backing device cannot hold internal metadata and one block of data.
    DeviceTooSmall {
        /// Size of the device.
        device_bytes: u64,
        /// Least size that would do.
        needed_bytes: u64,
    },
    /// The metadata device cannot hold the metadata of this backing device.
    MetadataDeviceTooSmall {
        /// Size of the metadata device.
        metadata_bytes: u64,
        /// Least size that would do.
        needed_bytes: u64,
    },
    /// The metadata does not fit into one slot of an indexed metadata device.
    SlotTooSmall {
        /// Bytes the metadata needs; a slot has [`INDEXED_SLOT_BYTES`].
        needed_bytes: u64,
    },
    /// The backing device exceeds [`MAX_DEVICE_BYTES`].
    DeviceTooLarge {
        /// Size of the device.
        device_bytes: u64,
    },
    /// Not within 1..=[`MAX_PEERS`].
    MaxPeers {
        /// The number asked for.
        max_peers: u8,
    },
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            LayoutError::DeviceTooSmall {
                device_bytes,
                needed_bytes,
            } => write!(
                f,
                "device too small: {device_bytes} bytes, internal metadata and one data block need {needed_bytes} bytes"
            ),
            LayoutError::MetadataDeviceTooSmall {
                metadata_bytes,
                needed_bytes,
            } => write!(
                f,
                "metadata device too small: {metadata_bytes} bytes, this volume's metadata needs {needed_bytes} bytes"
            ),
            LayoutError::SlotTooSmall { needed_bytes } => write!(
                f,
                "metadata needs {needed_bytes} bytes, an indexed slot has {INDEXED_SLOT_BYTES}: \
                 use flexible-meta-disk or fewer peers"
            ),
            LayoutError::DeviceTooLarge { device_bytes } => {
                write!(
                    f,
                    "device too large: {device_bytes} bytes, at most {MAX_DEVICE_BYTES} bytes are supported"
                )
            }
            LayoutError::MaxPeers { max_peers } => {
                write!(f, "max-peers {max_peers} is not within 1..={MAX_PEERS}")
            }
        }
    }
}

impl core::error::Error for LayoutError {}

impl Layout {
    /// The layout for a backing device of `device_bytes` with `max_peers` bitmap slots.
    ///
    /// # Errors
    /// [`LayoutError`] if a device is too small (naming the bytes needed) or too large, or `max_peers` is out of range.
    pub fn new(
        placement: Placement,
        device_bytes: u64,
        max_peers: u8,
    ) -> Result<Layout, LayoutError> {
        if device_bytes > MAX_DEVICE_BYTES {
            return Err(LayoutError::DeviceTooLarge { device_bytes });
        }
        if max_peers == 0 || usize::from(max_peers) > MAX_PEERS {
            return Err(LayoutError::MaxPeers { max_peers });
        }
        match placement {
            Placement::Internal => Self::internal(device_bytes, max_peers),
            Placement::External { .. } | Placement::Indexed { .. } => {
                Self::separate(placement, device_bytes, max_peers)
            }
        }
    }

    fn internal(device_bytes: u64, max_peers: u8) -> Result<Layout, LayoutError> {
        let peers = u64::from(max_peers);
        let needed_bytes = FIXED_BYTES + (peers + 1) * METADATA_BLOCK_BYTES;
        if device_bytes < needed_bytes {
            return Err(LayoutError::DeviceTooSmall {
                device_bytes,
                needed_bytes,
            });
        }
        let blocks = device_bytes / METADATA_BLOCK_BYTES - FIXED_BYTES / METADATA_BLOCK_BYTES;
        let slot_blocks = internal_slot_blocks(blocks, peers);
        let data_bytes = (blocks - slot_blocks * peers) * METADATA_BLOCK_BYTES;
        let superblock_b = blocks * METADATA_BLOCK_BYTES;
        let ring_offset = superblock_b + METADATA_BLOCK_BYTES;
        Ok(Layout {
            placement: Placement::Internal,
            device_bytes,
            max_peers,
            data_bytes,
            superblock_a: ring_offset + u64::from(RING_BLOCKS) * METADATA_BLOCK_BYTES,
            superblock_b,
            ring_offset,
            ring_blocks: RING_BLOCKS,
            bitmap_offset: data_bytes,
            bitmap_slot_bytes: slot_blocks * METADATA_BLOCK_BYTES,
        })
    }

    fn separate(
        placement: Placement,
        device_bytes: u64,
        max_peers: u8,
    ) -> Result<Layout, LayoutError> {
        let data_bytes = device_bytes / SECTOR_BYTES * SECTOR_BYTES;
        if data_bytes == 0 {
            return Err(LayoutError::DeviceTooSmall {
                device_bytes,
                needed_bytes: SECTOR_BYTES,
            });
        }
        let bitmap_slot_bytes = disk_blocks_needed(blocks_of(data_bytes)) * METADATA_BLOCK_BYTES;
        let needed = FIXED_BYTES + u64::from(max_peers) * bitmap_slot_bytes;
        if matches!(placement, Placement::Indexed { .. }) && needed > INDEXED_SLOT_BYTES {
            return Err(LayoutError::SlotTooSmall {
                needed_bytes: needed,
            });
        }
        let (start, metadata_bytes) = area_start(placement);
        let needed_bytes = start + needed;
        if metadata_bytes < needed_bytes {
            return Err(LayoutError::MetadataDeviceTooSmall {
                metadata_bytes,
                needed_bytes,
            });
        }
        let ring_offset = start + METADATA_BLOCK_BYTES;
        let superblock_b = ring_offset + u64::from(RING_BLOCKS) * METADATA_BLOCK_BYTES;
        Ok(Layout {
            placement,
            device_bytes,
            max_peers,
            data_bytes,
            superblock_a: start,
            superblock_b,
            ring_offset,
            ring_blocks: RING_BLOCKS,
            bitmap_offset: superblock_b + METADATA_BLOCK_BYTES,
            bitmap_slot_bytes,
        })
    }

    /// Offset of a superblock copy.
    #[must_use]
    pub fn superblock_offset(&self, copy: CopyName) -> u64 {
        match copy {
            CopyName::A => self.superblock_a,
            CopyName::B => self.superblock_b,
        }
    }

    /// Offset of block `index` of the ring. Panics outside the ring.
    #[must_use]
    pub fn ring_block_offset(&self, index: u32) -> u64 {
        assert!(
            index < self.ring_blocks,
            "ring block {index} of {}",
            self.ring_blocks
        );
        self.ring_offset + u64::from(index) * METADATA_BLOCK_BYTES
    }

    /// Number of 4 KiB blocks of one bitmap slot.
    #[must_use]
    pub fn bitmap_slot_blocks(&self) -> u64 {
        self.bitmap_slot_bytes / METADATA_BLOCK_BYTES
    }

    /// Offset of 4 KiB block `block` of bitmap slot `slot`. Panics outside the area.
    #[must_use]
    pub fn bitmap_block_offset(&self, slot: usize, block: u64) -> u64 {
        assert!(
            slot < usize::from(self.max_peers),
            "bitmap slot {slot} of {}",
            self.max_peers
        );
        assert!(
            block < self.bitmap_slot_blocks(),
            "bitmap block {block} of {}",
            self.bitmap_slot_blocks()
        );
        self.bitmap_offset + slot as u64 * self.bitmap_slot_bytes + block * METADATA_BLOCK_BYTES
    }

    /// Bytes of all metadata: superblock copies, ring and bitmap slots.
    #[must_use]
    pub fn metadata_bytes(&self) -> u64 {
        FIXED_BYTES + u64::from(self.max_peers) * self.bitmap_slot_bytes
    }

    /// Offset of the first metadata byte.
    #[must_use]
    pub fn metadata_offset(&self) -> u64 {
        self.superblock_a.min(self.bitmap_offset)
    }
}

/// Offsets at which superblock copies may lie, before anything was read: copy A, then copy B.
///
/// # Errors
/// [`LayoutError`] if the device cannot hold the fixed part.
pub fn superblock_candidates(
    placement: Placement,
    device_bytes: u64,
) -> Result<[(CopyName, u64); 2], LayoutError> {
    let distance = FIXED_BYTES - METADATA_BLOCK_BYTES;
    if placement == Placement::Internal {
        let end = device_bytes / METADATA_BLOCK_BYTES * METADATA_BLOCK_BYTES;
        if end < FIXED_BYTES {
            return Err(LayoutError::DeviceTooSmall {
                device_bytes,
                needed_bytes: FIXED_BYTES,
            });
        }
        let a = end - METADATA_BLOCK_BYTES;
        return Ok([(CopyName::A, a), (CopyName::B, a - distance)]);
    }
    let (start, metadata_bytes) = area_start(placement);
    let needed_bytes = start + FIXED_BYTES;
    if metadata_bytes < needed_bytes {
        return Err(LayoutError::MetadataDeviceTooSmall {
            metadata_bytes,
            needed_bytes,
        });
    }
    Ok([(CopyName::A, start), (CopyName::B, start + distance)])
}

/// Start of the metadata area on a metadata device, and the size of that device.
fn area_start(placement: Placement) -> (u64, u64) {
    match placement {
        Placement::Internal => (0, 0),
        Placement::External { metadata_bytes } => (0, metadata_bytes),
        Placement::Indexed {
            slot,
            metadata_bytes,
        } => (u64::from(slot) * INDEXED_SLOT_BYTES, metadata_bytes),
    }
}

/// Least slot size `s` (4 KiB blocks) so that a slot describes the `blocks - s × peers` data blocks that remain.
fn internal_slot_blocks(blocks: u64, peers: u64) -> u64 {
    blocks.div_ceil(crate::bitmap::BITS_PER_DISK_BLOCK + peers)
}

#[cfg(test)]
mod tests;
