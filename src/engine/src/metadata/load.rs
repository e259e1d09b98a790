//! Reads all metadata of one volume and checks that its parts fit together.
//!
//! Invariant: nothing that does not check out is used; it is refused with the place and the field named, or, on an
//! administrator's order ([`load_for_repair`]), bridged by treating more blocks as out of sync. Nothing is written here.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use super::copies::{Candidate, MetadataError, choose};
use super::growth::{KnownDevice, whole_blocks};
use super::image::{BLOCKS_PER_TRANSFER, LoggedExtents, MetadataImage};
use super::layout::{Layout, LayoutError, Placement, superblock_candidates};
use super::ring::{self, RingError};
use super::superblock::Superblock;
use super::{METADATA_BLOCK_BYTES, MetadataBlock};
use crate::bitmap::{Bitmap, BitmapError};
use crate::units::blocks_of;

/// Why metadata cannot be read. `E` is the shell's read error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LoadError<E> {
    /// The device cannot hold metadata.
    Layout(LayoutError),
    /// The device could not read.
    Read {
        /// Byte offset on the metadata device.
        offset: u64,
        /// What the shell says.
        error: E,
    },
    /// No superblock copy counts.
    Superblock(MetadataError),
    /// The metadata was made for a device of another size.
    DeviceSize {
        /// Size in the superblock, in bytes.
        stored_bytes: u64,
        /// Size now, in bytes.
        device_bytes: u64,
    },
    /// The device grew, and holds metadata of another volume at its end.
    OtherVolume {
        /// Device uuid at the end.
        found: u64,
        /// Device uuid of the volume that it held the last time.
        known: u64,
        /// Size of the device then: these metadata are still there.
        known_bytes: u64,
    },
    /// The size agreed with the peers exceeds what there is.
    EffectiveSize {
        /// Size agreed with the peers, in bytes.
        effective_bytes: u64,
        /// Size available, in bytes.
        available_bytes: u64,
    },
    /// The activity log is needed and cannot be read.
    ActivityLog(RingError),
    /// A bitmap is damaged.
    Bitmap(BitmapError),
}

impl<E: fmt::Display> fmt::Display for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Layout(error) => error.fmt(f),
            LoadError::Read { offset, error } => {
                write!(f, "cannot read metadata at byte {offset}: {error}")
            }
            LoadError::Superblock(error) => error.fmt(f),
            LoadError::DeviceSize {
                stored_bytes,
                device_bytes,
            } => write!(
                f,
                "field device size: metadata was made for {stored_bytes} bytes, the device has {device_bytes} (resize)"
            ),
            LoadError::OtherVolume {
                found,
                known,
                known_bytes,
            } => write!(
                f,
                "field device-uuid: the device grew; at its end lies metadata of the volume {found:016X}, and metadata of {known:016X}, \
                 the volume that was attached last, where it ended then ({known_bytes} bytes): make new metadata with create-md \
                 (a full resync follows), or make the device {known_bytes} bytes again"
            ),
            LoadError::EffectiveSize {
                effective_bytes,
                available_bytes,
            } => write!(
                f,
                "field effective size: {effective_bytes} bytes were agreed with the peers, only {available_bytes} are \
                 available: the device shrank"
            ),
            LoadError::ActivityLog(error) => error.fmt(f),
            LoadError::Bitmap(error) => {
                write!(
                    f,
                    "{error}; apply-al marks the blocks it describes out of sync"
                )
            }
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for LoadError<E> {}

/// Damage that [`load_for_repair`] bridged by treating more blocks as out of sync.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// The logged extents are unknown: the whole device counts as out of sync.
    ActivityLog(RingError),
    /// A block of a bitmap is damaged: the 126 MiB it describes count as out of sync.
    Bitmap(BitmapError),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::ActivityLog(error) => error.fmt(f),
            Damage::Bitmap(error) => {
                write!(f, "{error}; the 126 MiB around it count as out of sync")
            }
        }
    }
}

/// Reads the metadata of a backing device of `device_bytes`. `read` fills a buffer from a byte offset of the metadata device;
/// offset and length are multiples of 4 KiB.
///
/// # Errors
/// [`LoadError`]: anything that does not check out is refused, named, and nothing is changed. A superblock copy that is refused
/// or cannot be read does not hide a good one, see [`choose`].
pub fn load<E>(
    placement: Placement,
    device_bytes: u64,
    read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<MetadataImage, LoadError<E>> {
    Loader {
        read,
        bridge: false,
    }
    .load(placement, device_bytes)
}

/// As [`load`], but damage of the activity log and of bitmap blocks is bridged by treating what they describe as out of sync,
/// and listed in [`MetadataImage::damage`]. For tools, on an administrator's order.
///
/// # Errors
/// As [`load`], without [`LoadError::ActivityLog`] and [`LoadError::Bitmap`].
pub fn load_for_repair<E>(
    placement: Placement,
    device_bytes: u64,
    read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<MetadataImage, LoadError<E>> {
    Loader { read, bridge: true }.load(placement, device_bytes)
}

/// As [`load`], for a device that may have grown since it was attached the last time: then internal metadata are still where it
/// ended, or on the way from there to where it ended for a while. Of all that is found, the newest counts; what a move that was
/// cut short left elsewhere is listed in [`MetadataImage::superseded`].
///
/// # Errors
/// As [`load`]; [`LoadError::OtherVolume`] if the device's end belongs to another volume.
pub fn load_grown<E>(
    placement: Placement,
    device_bytes: u64,
    known: Option<KnownDevice>,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<MetadataImage, LoadError<E>> {
    let at_end = load(placement, device_bytes, &mut read);
    let Some(known) = known.filter(|_| placement == Placement::Internal) else {
        return at_end;
    };
    let end = whole_blocks(device_bytes);
    // What a move left is half zeroed already, perhaps; its superblock still tells what it was.
    let mut found: Vec<(u64, MetadataImage)> = Vec::new();
    for bytes in [Some(known.device_bytes), known.moving_to]
        .into_iter()
        .flatten()
    {
        if whole_blocks(bytes) < end
            && let Ok(image) = load_for_repair(placement, bytes, &mut read)
            && image.superblock.device_uuid == known.device_uuid
        {
            found.push((bytes, image));
        }
    }
    let newest = (found.iter())
        .map(|(bytes, image)| (image.superblock.sequence, *bytes))
        .max();
    let Some((sequence, known_bytes)) = newest else {
        return at_end;
    };
    // Whatever lay at the end to which they were moving was given up.
    let is_target = known.moving_to.map(whole_blocks) == Some(end);
    let mut image = match at_end {
        Ok(image) if image.superblock.device_uuid != known.device_uuid && !is_target => {
            return Err(LoadError::OtherVolume {
                found: image.superblock.device_uuid,
                known: known.device_uuid,
                known_bytes,
            });
        }
        Ok(image)
            if image.superblock.device_uuid == known.device_uuid
                && image.superblock.sequence > sequence =>
        {
            image
        }
        Ok(_)
        | Err(
            LoadError::DeviceSize { .. }
            | LoadError::Superblock(MetadataError::NotFound { .. } | MetadataError::Damaged { .. }),
        ) => load(placement, known_bytes, &mut read)?,
        Err(error) => return Err(error),
    };
    let mut left: Vec<Layout> = found.iter().map(|(_, image)| image.layout).collect();
    if image.layout.device_bytes == known.device_bytes
        && let Some(bytes) = known.moving_to.filter(|&bytes| whole_blocks(bytes) <= end)
        && left.iter().all(|layout| layout.device_bytes != bytes)
    {
        // The move did not get as far as a superblock.
        left.extend(Layout::new(placement, bytes, image.superblock.max_peers));
    }
    let bounds = |layout: &Layout| {
        let end = layout.superblock_a + METADATA_BLOCK_BYTES;
        (layout.metadata_offset(), end)
    };
    let (first, after) = bounds(&image.layout);
    left.retain(|left| {
        let (start, end) = bounds(left);
        // Where the volume has grown since, there are data now.
        start >= image.volume_bytes && (end <= first || start >= after)
    });
    image.superseded = left;
    Ok(image)
}

struct Loader<R> {
    read: R,
    bridge: bool,
}

impl<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>> Loader<R> {
    fn load(
        mut self,
        placement: Placement,
        device_bytes: u64,
    ) -> Result<MetadataImage, LoadError<E>> {
        let places = superblock_candidates(placement, device_bytes).map_err(LoadError::Layout)?;
        let mut copies = [[0; METADATA_BLOCK_BYTES as usize]; 2];
        let mut read_errors = [None, None];
        for (index, &(_, offset)) in places.iter().enumerate() {
            read_errors[index] = self.read(offset, &mut copies[index]).err();
        }
        let candidates = [0, 1].map(|index| Candidate {
            copy: places[index].0,
            offset: places[index].1,
            bytes: read_errors[index].is_none().then_some(&copies[index][..]),
        });
        let chosen = match choose(&candidates) {
            Ok(chosen) => chosen,
            Err(error @ (MetadataError::NotFound { .. } | MetadataError::Damaged { .. })) => {
                let unread = read_errors.into_iter().flatten().next();
                return Err(unread.unwrap_or(LoadError::Superblock(error)));
            }
            Err(error) => return Err(LoadError::Superblock(error)),
        };
        let superblock = chosen.superblock;
        let layout = Layout::new(placement, superblock.device_bytes, superblock.max_peers)
            .map_err(LoadError::Layout)?;
        if placement == Placement::Internal && layout.superblock_a != places[0].1 {
            return Err(LoadError::DeviceSize {
                stored_bytes: superblock.device_bytes,
                device_bytes,
            });
        }
        let available_bytes = layout.data_bytes.min(device_bytes);
        if superblock.effective_bytes > available_bytes {
            let effective_bytes = superblock.effective_bytes;
            return Err(LoadError::EffectiveSize {
                effective_bytes,
                available_bytes,
            });
        }
        let volume_bytes = if superblock.effective_bytes == 0 {
            available_bytes
        } else {
            superblock.effective_bytes
        };
        let mut damage = Vec::new();
        let (logged, ring_sequence) = self.load_log(&superblock, &layout, &mut damage)?;
        let bitmaps = (0..usize::from(superblock.max_peers))
            .map(|slot| self.load_bitmap(&layout, slot, blocks_of(volume_bytes), &mut damage))
            .collect::<Result<_, _>>()?;
        Ok(MetadataImage {
            superblock,
            layout,
            volume_bytes,
            logged,
            ring_sequence,
            bitmaps,
            stale: chosen.stale,
            refused: chosen.refused,
            superseded: Vec::new(),
            damage,
        })
    }

    fn load_log(
        &mut self,
        superblock: &Superblock,
        layout: &Layout,
        damage: &mut Vec<Damage>,
    ) -> Result<(LoggedExtents, u64), LoadError<E>> {
        let mut bytes = vec![0; layout.ring_blocks as usize * METADATA_BLOCK_BYTES as usize];
        self.read(layout.ring_offset, &mut bytes)?;
        let ring_sequence = ring::sequence_after(&bytes);
        let flags = superblock.flags;
        if flags.al_clean {
            return Ok((LoggedExtents::Known(Vec::new()), ring_sequence));
        }
        if flags.al_disabled && (flags.primary_indicator || flags.crashed_primary) {
            return Ok((LoggedExtents::Unknown, ring_sequence));
        }
        match ring::replay(&bytes) {
            Ok(replay) => Ok((
                LoggedExtents::Known(replay.extents().collect()),
                ring_sequence,
            )),
            Err(error) if self.bridge => {
                damage.push(Damage::ActivityLog(error));
                Ok((LoggedExtents::Unknown, ring_sequence))
            }
            Err(error) => Err(LoadError::ActivityLog(error)),
        }
    }

    fn load_bitmap(
        &mut self,
        layout: &Layout,
        slot: usize,
        blocks: u64,
        damage: &mut Vec<Damage>,
    ) -> Result<Bitmap, LoadError<E>> {
        let mut bitmap = Bitmap::new(blocks);
        let end = bitmap.disk_blocks();
        let mut buffer = vec![0; (BLOCKS_PER_TRANSFER.min(end) * METADATA_BLOCK_BYTES) as usize];
        let mut first = 0;
        while first < end {
            let count = BLOCKS_PER_TRANSFER.min(end - first);
            let bytes = &mut buffer[..(count * METADATA_BLOCK_BYTES) as usize];
            self.read(layout.bitmap_block_offset(slot, first), bytes)?;
            for (index, block) in (first..).zip(bytes.chunks_exact(METADATA_BLOCK_BYTES as usize)) {
                let block: &MetadataBlock = block.try_into().expect("a chunk of 4 KiB");
                match bitmap.decode_block(slot, index, block) {
                    Ok(()) => {}
                    Err(error) if self.bridge => {
                        bitmap.set_disk_block(index);
                        bitmap.mark_dirty(index);
                        damage.push(Damage::Bitmap(error));
                    }
                    Err(error) => return Err(LoadError::Bitmap(error)),
                }
            }
            first += count;
        }
        Ok(bitmap)
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), LoadError<E>> {
        (self.read)(offset, bytes).map_err(|error| LoadError::Read { offset, error })
    }
}
