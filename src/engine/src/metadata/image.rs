//! All metadata of one volume at once: made, read, brought into order after a crash, written.
//!
//! Owns the order of writes that makes each of these safe at every instant. Pure: reads come through a closure, writes leave as
//! [`Step`]s, which a shell carries out in order; a `Flush` is done when everything before it is durable, and the next step
//! waits for it.
//!
//! Orders:
//! - making: both superblock places blank, flush; ring and bitmaps, flush; superblock A, flush; B, flush. A crash leaves no
//!   metadata or whole metadata.
//! - updating the superblock: A, flush; B, flush. If one copy is stale after a crash, that one first.
//! - after a crash ([`MetadataImage::clean_steps`]): an update if a superblock copy is stale; bitmap blocks with the bits of the logged
//!   extents, flush; superblock with `al_clean`. Only then may the ring be laid anew ([`MetadataImage::start_log_steps`]), and
//!   `al_clean` falls after that is durable.
//!
//! Deliberately decides nothing about generations, roles or disk states.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use super::copies::{Candidate, MetadataError, RefusedCopy, choose};
use super::layout::{CopyName, Layout, LayoutError, Placement, superblock_candidates};
use super::ring::{self, RingError, RingWriter};
use super::superblock::{Flags, PeerSlot, Superblock};
use super::{METADATA_BLOCK_BYTES, MetadataBlock};
use crate::bitmap::{Bitmap, BitmapError};
use crate::limits::MIN_AL_EXTENTS;
use crate::units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, Generation, NodeId, blocks_of};

/// On-disk bitmap blocks moved by one read or write.
const BLOCKS_PER_TRANSFER: u64 = 256;

/// One thing for a shell to do on the metadata device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Write `bytes` (a multiple of 4 KiB) at `offset`.
    Write {
        /// Byte offset on the metadata device.
        offset: u64,
        /// What to write.
        bytes: Vec<u8>,
    },
    /// Make everything before durable, then go on.
    Flush,
}

/// What new metadata is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CreateOptions {
    /// Where it goes.
    pub placement: Placement,
    /// Size of the backing device in bytes.
    pub device_bytes: u64,
    /// Bitmap slots.
    pub max_peers: u8,
    /// This node.
    pub node_id: NodeId,
    /// Random identity.
    pub device_uuid: u64,
    /// Slots of the activity log (`al-extents`).
    pub al_slots: u32,
}

/// Why metadata cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CreateError {
    /// It does not fit.
    Layout(LayoutError),
    /// `al-extents` is out of range.
    ActivityLogSlots {
        /// The number asked for.
        slots: u32,
        /// The largest possible.
        most: u32,
    },
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CreateError::Layout(error) => error.fmt(f),
            CreateError::ActivityLogSlots { slots, most } => {
                write!(
                    f,
                    "al-extents {slots} is not within {MIN_AL_EXTENTS}..={most}"
                )
            }
        }
    }
}

impl core::error::Error for CreateError {}

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

/// The extents that a crash may have left different from the peers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LoggedExtents {
    /// These, possibly none.
    Known(Vec<u32>),
    /// Not known: all of them.
    Unknown,
}

/// All metadata of one volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetadataImage {
    /// The superblock that counts.
    pub superblock: Superblock,
    /// Where everything lies.
    pub layout: Layout,
    /// Size of the volume in bytes: the size agreed with the peers, else all that the device offers.
    pub volume_bytes: u64,
    /// Extents in the activity log, not yet in the bitmaps. Empty if the log was clean.
    pub logged: LoggedExtents,
    /// Sequence above every block of the ring.
    pub ring_sequence: u64,
    /// One bitmap per slot, each of [`blocks_of`]`(volume_bytes)` bits.
    pub bitmaps: Vec<Bitmap>,
    /// Superblock copies that are older or refused: the next update writes them first.
    pub stale: Vec<CopyName>,
    /// Superblock copies that were refused, to be reported.
    pub refused: Vec<RefusedCopy>,
    /// Damage bridged by [`load_for_repair`]; empty after [`load`].
    pub damage: Vec<Damage>,
}

/// New metadata: just created, Inconsistent, no peers, clean log. [`MetadataImage::write_steps`] puts it on the device.
///
/// # Errors
/// [`CreateError`] if it does not fit or the activity log's size is out of range.
pub fn create(options: &CreateOptions) -> Result<MetadataImage, CreateError> {
    let layout = Layout::new(options.placement, options.device_bytes, options.max_peers)
        .map_err(CreateError::Layout)?;
    let most = ring::max_extents(layout.ring_blocks);
    if !(MIN_AL_EXTENTS..=most).contains(&options.al_slots) {
        return Err(CreateError::ActivityLogSlots {
            slots: options.al_slots,
            most,
        });
    }
    let superblock = Superblock {
        sequence: 1,
        device_uuid: options.device_uuid,
        device_bytes: options.device_bytes,
        effective_bytes: 0,
        node_id: options.node_id,
        max_peers: options.max_peers,
        current: Generation::JUST_CREATED,
        history: Vec::new(),
        flags: Flags {
            al_clean: true,
            ..Flags::default()
        },
        peers: vec![PeerSlot::default(); usize::from(options.max_peers)],
        bit_bytes: BLOCK_BYTES as u32,
        al_ring_blocks: layout.ring_blocks,
        al_slots: options.al_slots,
    };
    let blocks = blocks_of(layout.data_bytes);
    Ok(MetadataImage {
        superblock,
        layout,
        volume_bytes: layout.data_bytes,
        logged: LoggedExtents::Known(Vec::new()),
        ring_sequence: 0,
        bitmaps: (0..options.max_peers)
            .map(|_| Bitmap::new(blocks))
            .collect(),
        stale: Vec::new(),
        refused: Vec::new(),
        damage: Vec::new(),
    })
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

/// Marks every logged extent out of sync in the bitmap of every peer that owns a slot. Returns how many bits were clear; the
/// logged extents are forgotten, so a second call does nothing.
pub fn apply_activity_log(image: &mut MetadataImage) -> u64 {
    let logged = core::mem::replace(&mut image.logged, LoggedExtents::Known(Vec::new()));
    let slots: Vec<usize> = image.superblock.allocated_slots().collect();
    let mut newly = 0;
    for slot in slots {
        let bitmap = &mut image.bitmaps[slot];
        newly += match &logged {
            LoggedExtents::Unknown => bitmap.set_all(),
            LoggedExtents::Known(extents) => extents
                .iter()
                .map(|&extent| set_extent(bitmap, extent))
                .sum(),
        };
    }
    newly
}

fn set_extent(bitmap: &mut Bitmap, extent: u32) -> u64 {
    let first = (u64::from(extent) * BLOCKS_PER_EXTENT).min(bitmap.blocks());
    bitmap.set(first..bitmap.blocks().min(first + BLOCKS_PER_EXTENT))
}

/// The steps of one superblock update, both copies being equal before; raises its sequence. It is durable after the first
/// flush. After a load, [`MetadataImage::superblock_update`] takes care of a stale copy.
pub fn superblock_update(superblock: &mut Superblock, layout: &Layout) -> [Step; 4] {
    update_in_order(superblock, layout, [CopyName::A, CopyName::B])
}

/// One superblock update that writes the copies in the given order.
fn update_in_order(
    superblock: &mut Superblock,
    layout: &Layout,
    order: [CopyName; 2],
) -> [Step; 4] {
    superblock.sequence += 1;
    let block = superblock.encode();
    let [first, second] = order.map(|copy| Step::Write {
        offset: layout.superblock_offset(copy),
        bytes: block.to_vec(),
    });
    [first, Step::Flush, second, Step::Flush]
}

impl MetadataImage {
    /// Everything, written to a place whose present content does not count: for new metadata, `restore-md` and a move. The log
    /// is written empty, so the logged extents must have been applied. Panics otherwise.
    pub fn write_steps(&self) -> impl Iterator<Item = Step> {
        assert_eq!(
            self.logged,
            LoggedExtents::Known(Vec::new()),
            "logged extents not applied"
        );
        assert!(
            self.superblock.flags.al_clean,
            "an empty log is written, and al_clean says so"
        );
        let (layout, superblock) = (&self.layout, &self.superblock);
        let place = |copy| layout.superblock_offset(copy);
        let blank = vec![0; METADATA_BLOCK_BYTES as usize];
        let head = [
            Step::Write {
                offset: place(CopyName::A),
                bytes: blank.clone(),
            },
            Step::Write {
                offset: place(CopyName::B),
                bytes: blank,
            },
            Step::Flush,
            self.fresh_ring(superblock.al_slots).1,
        ];
        let bitmaps = self
            .bitmaps
            .iter()
            .enumerate()
            .flat_map(|(slot, bitmap)| bitmap_writes(layout, slot, bitmap));
        let block = superblock.encode().to_vec();
        let tail = [
            Step::Flush,
            Step::Write {
                offset: place(CopyName::A),
                bytes: block.clone(),
            },
            Step::Flush,
            Step::Write {
                offset: place(CopyName::B),
                bytes: block,
            },
            Step::Flush,
        ];
        head.into_iter().chain(bitmaps).chain(tail)
    }

    /// The steps of one superblock update; raises its sequence. It is durable after the first flush. A stale copy is written
    /// first, so that the good one stays until then.
    pub fn superblock_update(&mut self) -> [Step; 4] {
        let order = match self.stale.first() {
            Some(CopyName::B) => [CopyName::B, CopyName::A],
            _ => [CopyName::A, CopyName::B],
        };
        self.stale.clear();
        update_in_order(&mut self.superblock, &self.layout, order)
    }

    /// Brings the metadata into order after a crash (`apply-al`): afterwards both superblock copies are equal, the logged extents
    /// are in the bitmaps and `al_clean` is set. Applies the log in memory too.
    pub fn clean_steps(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        if !self.stale.is_empty() {
            steps.extend(self.superblock_update());
        }
        apply_activity_log(self);
        let before = steps.len();
        for (slot, bitmap) in self.bitmaps.iter_mut().enumerate() {
            for index in bitmap.take_all_dirty() {
                let offset = self.layout.bitmap_block_offset(slot, index);
                steps.push(Step::Write {
                    offset,
                    bytes: bitmap.encode_block(slot, index).to_vec(),
                });
            }
        }
        if steps.len() > before {
            steps.push(Step::Flush);
        }
        if !self.superblock.flags.al_clean {
            self.superblock.flags.al_clean = true;
            steps.extend(self.superblock_update());
        }
        steps
    }

    /// [`MetadataImage::clean_steps`], then a new empty log of `al_slots` slots, then `al_clean` falls: what an attach does. The
    /// writer continues the ring; every slot of the log is empty. Panics if `al_slots` exceeds [`ring::max_extents`].
    pub fn start_log_steps(&mut self, al_slots: u32) -> (RingWriter, Vec<Step>) {
        let mut steps = self.clean_steps();
        let (writer, ring) = self.fresh_ring(al_slots);
        steps.extend([ring, Step::Flush]);
        self.ring_sequence = writer.next_sequence();
        self.superblock.al_slots = al_slots;
        self.superblock.flags.al_clean = false;
        steps.extend(self.superblock_update());
        (writer, steps)
    }

    fn fresh_ring(&self, al_slots: u32) -> (RingWriter, Step) {
        let (writer, blocks) =
            RingWriter::fresh(self.layout.ring_blocks, al_slots, self.ring_sequence);
        (
            writer,
            Step::Write {
                offset: self.layout.ring_offset,
                bytes: blocks.concat(),
            },
        )
    }
}

/// Writes of every block of a slot, also those beyond the end of a bitmap that is smaller than the slot.
fn bitmap_writes<'a>(
    layout: &'a Layout,
    slot: usize,
    bitmap: &'a Bitmap,
) -> impl Iterator<Item = Step> + 'a {
    let end = layout.bitmap_slot_blocks();
    (0..end.div_ceil(BLOCKS_PER_TRANSFER)).map(move |transfer| {
        let first = transfer * BLOCKS_PER_TRANSFER;
        let blocks = first..end.min(first + BLOCKS_PER_TRANSFER);
        let bytes = blocks
            .flat_map(|index| bitmap.encode_block(slot, index))
            .collect();
        Step::Write {
            offset: layout.bitmap_block_offset(slot, first),
            bytes,
        }
    })
}

#[cfg(test)]
mod tests;
