//! Metadata when the backing device has grown: where they go, and which copy counts when two places hold some.
//!
//! Owns the rules that make the move safe at every instant. The move itself is a job of the engine's metadata writer.
//!
//! Internal metadata lie at the end of the device, so they move when it grows. The new place must lie behind the whole old device:
//! then nothing that is written there is live, and the old metadata stay whole until the new ones are durable. A device that grew by
//! less than its metadata need is refused, with the size that would do. The order of a move:
//! 1. the shell remembers both places ([`KnownDevice::moving_to`]): whatever the device does meanwhile, an attach looks at both;
//! 2. both new superblock places blank, flush: nothing that an earlier life of the device left there counts;
//! 3. ring and bitmaps in the new place, flush;
//! 4. superblock in the new place, with the next sequence and the new device size, A, flush, B, flush: from here on they count;
//! 5. zeroes over the old ring and bitmaps, flush, then over both old superblocks, flush: they never come back, also if the device is
//!    made smaller again, and what the volume grows into reads the same on every node that was new there. As long as an old superblock
//!    is there, a crash is known to have come before the end of this step, and the next attach repeats it;
//! 6. the shell remembers the new place alone; then the volume may grow over the old one.
//!
//! Did a crash come before 4, then the next attach zeroes what was written in the new place: the device may grow past it.
//!
//! Metadata on a device of their own stay where they are; their bitmap slot becomes longer. What is added is written first, then the
//! superblock says that it is there.
//!
//! Whoever attaches a device that grew meanwhile finds its metadata by the sizes that the shell remembers ([`KnownDevice`]): see
//! [`super::load::load_grown`].

use core::fmt;
use core::ops::Range;

use super::METADATA_BLOCK_BYTES;
use super::layout::{Layout, LayoutError, Placement};
use super::superblock::Superblock;

/// Bytes of one write of zeroes.
const PART_BYTES: u64 = 1 << 20;

/// What a shell remembers of a device that it attached: enough to find its metadata after it grew, once or again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KnownDevice {
    /// Identity of the metadata.
    pub device_uuid: u64,
    /// Size of the backing device that their layout was computed for, in bytes.
    pub device_bytes: u64,
    /// The size whose end they are on the way to, in bytes: they may be there already.
    pub moving_to: Option<u64>,
}

impl KnownDevice {
    /// A device whose metadata lie still, by its superblock.
    #[must_use]
    pub fn of(superblock: &Superblock) -> KnownDevice {
        KnownDevice {
            device_uuid: superblock.device_uuid,
            device_bytes: superblock.device_bytes,
            moving_to: None,
        }
    }
}

/// Sizes of the devices of a volume as they are now, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskSizes {
    /// The backing device.
    pub device_bytes: u64,
    /// The metadata device; with internal metadata the same.
    pub metadata_bytes: u64,
}

/// Why metadata cannot follow the size of their device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GrowthError {
    /// The device is smaller than the metadata say.
    Shrunk {
        /// Size in the superblock, in bytes.
        stored_bytes: u64,
        /// Size now, in bytes.
        device_bytes: u64,
    },
    /// The new metadata would overlap the old ones.
    TooLittle {
        /// Size now, in bytes.
        device_bytes: u64,
        /// Least size that would do, in bytes.
        needed_bytes: u64,
    },
    /// The bitmap slots of several peers lie one behind the other and cannot all become longer in place.
    SlotsWouldMove {
        /// Bitmap slots.
        max_peers: u8,
    },
    /// No layout fits.
    Layout(LayoutError),
}

impl fmt::Display for GrowthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            GrowthError::Shrunk {
                stored_bytes,
                device_bytes,
            } => write!(
                f,
                "the device has {device_bytes} bytes, its metadata was made for {stored_bytes}: it shrank"
            ),
            GrowthError::TooLittle {
                device_bytes,
                needed_bytes,
            } => write!(
                f,
                "the device grew too little to move its metadata safely: it has {device_bytes} bytes, grow it to at least \
                 {needed_bytes} bytes"
            ),
            GrowthError::SlotsWouldMove { max_peers } => write!(
                f,
                "external metadata with room for {max_peers} peers cannot become longer in place: take the node down, make its \
                 metadata anew with 'create-md --max-peers 1' (a full resync follows)"
            ),
            GrowthError::Layout(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for GrowthError {}

/// The bytes up to the end of the last whole block: internal metadata end there.
pub(super) fn whole_blocks(bytes: u64) -> u64 {
    bytes / METADATA_BLOCK_BYTES * METADATA_BLOCK_BYTES
}

/// What is zeroed before the superblocks when internal metadata have left a place.
#[must_use]
pub fn left_behind(layout: &Layout) -> [Range<u64>; 2] {
    [
        layout.bitmap_offset..layout.superblock_b,
        layout.ring_offset..layout.superblock_a,
    ]
}

/// Parts of a range, none longer than one write.
pub(crate) fn parts(range: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let Range { start, end } = range;
    (start..end)
        .step_by(PART_BYTES as usize)
        .map(move |at| (at, PART_BYTES.min(end - at)))
}

/// The layout for a device that has grown since `old` was computed; `None` if it offers no more than before.
///
/// # Errors
/// [`GrowthError`], naming the size that would do.
pub fn grown_layout(old: &Layout, sizes: DiskSizes) -> Result<Option<Layout>, GrowthError> {
    let DiskSizes {
        device_bytes,
        metadata_bytes,
    } = sizes;
    if device_bytes < old.device_bytes {
        return Err(GrowthError::Shrunk {
            stored_bytes: old.device_bytes,
            device_bytes,
        });
    }
    let placement = match old.placement {
        Placement::Internal => Placement::Internal,
        Placement::External { .. } => Placement::External { metadata_bytes },
        Placement::Indexed { slot, .. } => Placement::Indexed {
            slot,
            metadata_bytes,
        },
    };
    let layout = |bytes| Layout::new(placement, bytes, old.max_peers).map_err(GrowthError::Layout);
    let new = layout(device_bytes)?;
    if placement != Placement::Internal {
        if new.data_bytes == old.data_bytes {
            return Ok(None);
        }
        if old.max_peers > 1 && new.bitmap_slot_bytes != old.bitmap_slot_bytes {
            return Err(GrowthError::SlotsWouldMove {
                max_peers: old.max_peers,
            });
        }
        return Ok(Some(new));
    }
    if new.superblock_a == old.superblock_a {
        return Ok(None);
    }
    let old_end = whole_blocks(old.device_bytes);
    if new.data_bytes >= old_end {
        return Ok(Some(new));
    }
    let mut needed_bytes = old_end + new.metadata_bytes();
    while layout(needed_bytes)?.data_bytes < old_end {
        needed_bytes += METADATA_BLOCK_BYTES;
    }
    Err(GrowthError::TooLittle {
        device_bytes,
        needed_bytes,
    })
}

#[cfg(test)]
mod tests;
