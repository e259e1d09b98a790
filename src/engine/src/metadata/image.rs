//! All metadata of one volume at once: made, brought into order after a crash, written. Reading is [`super::load`].
//!
//! Owns the order of writes that makes each of these safe at every instant. Pure: writes leave as [`Step`]s, which a shell
//! carries out in order; a `Flush` is done when everything before it is durable, and the next step waits for it.
//!
//! Orders:
//! - making: both superblock places blank, flush; ring and bitmaps, flush; superblock A, flush; B, flush. A crash leaves no
//!   metadata or whole metadata.
//! - updating the superblock: A, flush; B, flush. If one copy is stale after a crash, that one first.
//! - after a crash ([`MetadataImage::clean_steps`]): an update if a superblock copy is stale; bitmap blocks with the bits of the
//!   logged extents, flush; superblock with `al_clean`. Only then may the ring be laid anew
//!   ([`MetadataImage::start_log_steps`]), and `al_clean` falls after that is durable.
//!
//! Deliberately decides nothing about generations, roles or disk states.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use super::METADATA_BLOCK_BYTES;
use super::copies::RefusedCopy;
use super::growth::{left_behind, parts};
use super::layout::{CopyName, Layout, LayoutError, Placement};
pub use super::load::{Damage, LoadError, load, load_for_repair, load_grown};
use super::ring::{self, RingWriter};
use super::superblock::{Flags, PeerSlot, Superblock};
use crate::bitmap::Bitmap;
use crate::limits::MIN_AL_EXTENTS;
use crate::units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, Generation, NodeId, blocks_of};

/// On-disk bitmap blocks moved by one read or write.
pub(super) const BLOCKS_PER_TRANSFER: u64 = 256;

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
    /// Places where a move that was cut short left something: they are zeroed first.
    pub superseded: Vec<Layout>,
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
        superseded: Vec::new(),
        damage: Vec::new(),
    })
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
        for left in core::mem::take(&mut self.superseded) {
            let zeroes = |(offset, bytes): (u64, u64)| Step::Write {
                offset,
                bytes: vec![0; bytes as usize],
            };
            steps.extend(left_behind(&left).into_iter().flat_map(parts).map(zeroes));
            steps.push(Step::Flush);
            for copy in [CopyName::A, CopyName::B] {
                steps.push(zeroes((left.superblock_offset(copy), METADATA_BLOCK_BYTES)));
            }
            steps.push(Step::Flush);
        }
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
