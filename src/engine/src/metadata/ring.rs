//! The on-disk activity log: a ring of 4 KiB transaction blocks.
//!
//! Every block names the slots that one transaction changes, and describes a window of all slots as they are after it. The
//! windows of consecutive blocks follow each other cyclically, so any `ring length - 1` consecutive blocks describe every slot.
//!
//! Crash order, which callers follow: one transaction is in flight at a time, and it is durable before a write to an extent it
//! activates is submitted and before the next transaction is. So at most one block is torn by a crash, it is the newest, no
//! data depends on it, and the rest of the ring still describes every slot.
//!
//! Invariants: the transaction of sequence `s` lies in block `s % ring length`; sequences are consecutive.
//! A ring is never laid anew over a log that may be needed: the superblock's `al_clean` is made durable first, see
//! [`super::image`]. Deliberately ignorant of which extents should be active: that is [`crate::activity_log`].
//! Byte-level description: `docs/metadata-format.md`.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use super::bytes::{
    checksum, first_not_zero, get_u16, get_u32, get_u64, put_u16, put_u32, put_u64,
};
use super::superblock::MAX_SEQUENCE;
use super::{METADATA_BLOCK_BYTES, MetadataBlock};

/// First four bytes of a transaction block.
pub const MAGIC: [u8; 4] = *b"QBAL";
/// Format version of a transaction block.
pub const FORMAT_VERSION: u16 = 1;
/// Most slots that one transaction changes.
pub const MAX_UPDATES: usize = 64;
/// Slots in the context window of one block.
pub const CONTEXT_SLOTS: usize = 920;
/// Most slots of an activity log, whatever the ring: slot numbers are 16 bits.
pub const MAX_SLOTS: u32 = 65_535;

const EMPTY: u32 = u32::MAX;

const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 4;
const AT_UPDATE_COUNT: usize = 6;
const AT_CRC: usize = 8;
const AT_SLOT_COUNT: usize = 12;
const AT_SEQUENCE: usize = 16;
const AT_CONTEXT_START: usize = 24;
const AT_CONTEXT_COUNT: usize = 26;
const AT_RING_BLOCKS: usize = 28;
const AT_UPDATE_SLOTS: usize = 32;
const AT_UPDATE_EXTENTS: usize = AT_UPDATE_SLOTS + 2 * MAX_UPDATES;
const AT_CONTEXT: usize = AT_UPDATE_EXTENTS + 4 * MAX_UPDATES;

const _: () = assert!(AT_UPDATE_EXTENTS == 160 && AT_CONTEXT == 416);
const _: () = assert!(AT_CONTEXT + 4 * CONTEXT_SLOTS == METADATA_BLOCK_BYTES as usize);

/// Most slots that a ring of `ring_blocks` blocks can describe with one block torn.
#[must_use]
pub const fn max_extents(ring_blocks: u32) -> u32 {
    let described = (CONTEXT_SLOTS as u64) * ring_blocks.saturating_sub(1) as u64;
    if described > MAX_SLOTS as u64 {
        MAX_SLOTS
    } else {
        described as u32
    }
}

/// First slot of the context window of the block with sequence `sequence`.
fn context_start(sequence: u64, slots: usize) -> usize {
    let window = CONTEXT_SLOTS.min(slots) as u64;
    ((sequence % slots as u64) * window % slots as u64) as usize
}

/// Produces the blocks of the ring, one per transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingWriter {
    ring_blocks: u32,
    slots: usize,
    next_sequence: u64,
}

impl RingWriter {
    /// Continues a ring of `ring_blocks` blocks that describes `slots` slots.
    /// Panics if the ring is too short for them, see [`max_extents`].
    #[must_use]
    pub fn new(ring_blocks: u32, slots: u32, next_sequence: u64) -> RingWriter {
        assert!(
            ring_blocks >= 2 && (1..=max_extents(ring_blocks)).contains(&slots),
            "{slots} slots, {ring_blocks} blocks"
        );
        RingWriter {
            ring_blocks,
            slots: slots as usize,
            next_sequence,
        }
    }

    /// A new ring with every slot empty, whose sequences are at least `first_sequence`: the writer and all blocks, in the order
    /// of their place in the ring.
    #[must_use]
    pub fn fresh(
        ring_blocks: u32,
        slots: u32,
        first_sequence: u64,
    ) -> (RingWriter, Vec<MetadataBlock>) {
        let first = first_sequence.next_multiple_of(u64::from(ring_blocks));
        let mut writer = RingWriter::new(ring_blocks, slots, first);
        let empty = vec![None; writer.slots];
        let blocks = (0..ring_blocks)
            .map(|_| writer.transaction(&[], &empty).1)
            .collect();
        (writer, blocks)
    }

    /// Sequence of the next transaction.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// The block of one transaction and its place in the ring. `slots` is the whole log; whether it already contains `updates`
    /// makes no difference. Panics if there are more than [`MAX_UPDATES`] or a slot is out of range.
    pub fn transaction(
        &mut self,
        updates: &[(u16, Option<u32>)],
        slots: &[Option<u32>],
    ) -> (u32, MetadataBlock) {
        assert_eq!(slots.len(), self.slots, "slots of the log and of the ring");
        assert!(updates.len() <= MAX_UPDATES, "{} updates", updates.len());
        assert!(
            self.next_sequence < MAX_SEQUENCE,
            "sequence {}",
            self.next_sequence
        );
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let start = context_start(sequence, self.slots);
        let count = CONTEXT_SLOTS.min(self.slots);
        let mut block = [0; METADATA_BLOCK_BYTES as usize];
        block[AT_MAGIC..AT_VERSION].copy_from_slice(&MAGIC);
        put_u16(&mut block, AT_VERSION, FORMAT_VERSION);
        put_u16(&mut block, AT_UPDATE_COUNT, updates.len() as u16);
        put_u32(&mut block, AT_SLOT_COUNT, self.slots as u32);
        put_u64(&mut block, AT_SEQUENCE, sequence);
        put_u16(&mut block, AT_CONTEXT_START, start as u16);
        put_u16(&mut block, AT_CONTEXT_COUNT, count as u16);
        put_u32(&mut block, AT_RING_BLOCKS, self.ring_blocks);
        for (index, &(slot, extent)) in updates.iter().enumerate() {
            assert!(
                usize::from(slot) < self.slots,
                "slot {slot} of {}",
                self.slots
            );
            put_u16(&mut block, AT_UPDATE_SLOTS + 2 * index, slot);
            put_u32(
                &mut block,
                AT_UPDATE_EXTENTS + 4 * index,
                extent.unwrap_or(EMPTY),
            );
        }
        for index in 0..count {
            let slot = (start + index) % self.slots;
            put_u32(
                &mut block,
                AT_CONTEXT + 4 * index,
                slots[slot].unwrap_or(EMPTY),
            );
        }
        let crc = checksum(&block, AT_CRC);
        put_u32(&mut block, AT_CRC, crc);
        ((sequence % u64::from(self.ring_blocks)) as u32, block)
    }
}

/// What is wrong with one block of the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockError {
    /// Not a transaction block.
    NoMagic,
    /// Checksum mismatch: torn or damaged.
    Checksum,
    /// Whole, but of a version that this release does not know.
    Version {
        /// The version stored.
        version: u16,
    },
    /// Whole, but a field has a value that it cannot have.
    Field {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            BlockError::NoMagic => f.write_str("field magic: not a transaction block"),
            BlockError::Checksum => f.write_str("field checksum: torn or damaged"),
            BlockError::Version { version } => {
                write!(
                    f,
                    "field version: {version}, this release reads {FORMAT_VERSION}"
                )
            }
            BlockError::Field { field, value } => {
                write!(f, "field {field}: impossible value {value}")
            }
        }
    }
}

/// Why the ring cannot tell which extents were active.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingError {
    /// Not a whole number of blocks, or fewer than two.
    Length {
        /// Bytes given.
        bytes: usize,
    },
    /// A block other than the one that a crash may tear is damaged.
    Damaged {
        /// The block.
        block: u32,
        /// What is wrong with it.
        error: BlockError,
    },
    /// Transactions are missing: a write that was called durable is lost.
    Gap {
        /// The block.
        block: u32,
        /// Sequence that it should have.
        expected: u64,
        /// Sequence that it has.
        found: u64,
    },
    /// Two slots hold the same extent.
    Duplicate {
        /// The extent.
        extent: u32,
    },
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            RingError::Length { bytes } => write!(f, "activity log of {bytes} bytes")?,
            RingError::Damaged { block, error } => {
                write!(f, "activity log block {block}: {error}")?
            }
            RingError::Gap {
                block,
                expected,
                found,
            } => {
                write!(
                    f,
                    "activity log block {block}, field sequence: {found} instead of {expected}"
                )?;
            }
            RingError::Duplicate { extent } => {
                write!(f, "activity log: extent {extent} is in two slots")?
            }
        }
        f.write_str("; the extents active at the crash are not known: apply-al marks the whole device out of sync (full resync)")
    }
}

impl core::error::Error for RingError {}

/// What the ring says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replay {
    /// Extent of each slot after the newest whole transaction.
    pub slots: Vec<Option<u32>>,
    /// Sequence of the next transaction.
    pub next_sequence: u64,
    /// The newest block if a crash tore it; it is overwritten by the next transaction.
    pub torn: Option<u32>,
}

impl Replay {
    /// The active extents.
    pub fn extents(&self) -> impl Iterator<Item = u32> {
        self.slots.iter().copied().flatten()
    }
}

struct Transaction<'a> {
    block: &'a MetadataBlock,
    sequence: u64,
    slots: usize,
}

impl<'a> Transaction<'a> {
    fn decode(block: &'a MetadataBlock, ring_blocks: u32) -> Result<Transaction<'a>, BlockError> {
        let field = |field, value: usize| {
            Err(BlockError::Field {
                field,
                value: value as u64,
            })
        };
        if block[AT_MAGIC..AT_VERSION] != MAGIC {
            return Err(BlockError::NoMagic);
        }
        if get_u32(block, AT_CRC) != checksum(block, AT_CRC) {
            return Err(BlockError::Checksum);
        }
        let version = get_u16(block, AT_VERSION);
        if version != FORMAT_VERSION {
            return Err(BlockError::Version { version });
        }
        let found = get_u32(block, AT_RING_BLOCKS);
        if found != ring_blocks {
            return field("ring blocks", found as usize);
        }
        let sequence = get_u64(block, AT_SEQUENCE);
        let slots = get_u32(block, AT_SLOT_COUNT);
        if slots == 0 || slots > MAX_SLOTS {
            return field("slot count", slots as usize);
        }
        let slots = slots as usize;
        if sequence >= MAX_SEQUENCE {
            return Err(BlockError::Field {
                field: "sequence",
                value: sequence,
            });
        }
        let transaction = Transaction {
            block,
            sequence,
            slots,
        };
        let updates = transaction.update_count();
        if updates > MAX_UPDATES {
            return field("update count", updates);
        }
        let start = usize::from(get_u16(block, AT_CONTEXT_START));
        if start != context_start(sequence, slots) {
            return field("context start", start);
        }
        let count = usize::from(get_u16(block, AT_CONTEXT_COUNT));
        if count != CONTEXT_SLOTS.min(slots) {
            return field("context count", count);
        }
        if let Some((slot, _)) = transaction.updates().find(|&(slot, _)| slot >= slots) {
            return field("update slot", slot);
        }
        let unused = [
            (AT_UPDATE_SLOTS + 2 * updates, AT_UPDATE_EXTENTS),
            (AT_UPDATE_EXTENTS + 4 * updates, AT_CONTEXT),
            (AT_CONTEXT + 4 * count, block.len()),
        ];
        for (start, end) in unused {
            if let Some(at) = first_not_zero(block, start..end) {
                return field("reserved bytes", at);
            }
        }
        Ok(transaction)
    }

    fn update_count(&self) -> usize {
        usize::from(get_u16(self.block, AT_UPDATE_COUNT))
    }

    fn updates(&self) -> impl Iterator<Item = (usize, u32)> {
        (0..self.update_count()).map(|index| {
            let slot = usize::from(get_u16(self.block, AT_UPDATE_SLOTS + 2 * index));
            (slot, get_u32(self.block, AT_UPDATE_EXTENTS + 4 * index))
        })
    }

    fn context(&self) -> impl Iterator<Item = (usize, u32)> {
        let start = context_start(self.sequence, self.slots);
        (0..CONTEXT_SLOTS.min(self.slots)).map(move |index| {
            (
                (start + index) % self.slots,
                get_u32(self.block, AT_CONTEXT + 4 * index),
            )
        })
    }
}

/// Reads the whole ring.
///
/// The block in which the next transaction would lie may fail its checksum: a crash tore it, and it is ignored.
///
/// # Errors
/// [`RingError`] for damage beyond that.
pub fn replay(bytes: &[u8]) -> Result<Replay, RingError> {
    let block_bytes = METADATA_BLOCK_BYTES as usize;
    if !bytes.len().is_multiple_of(block_bytes)
        || bytes.len() < 2 * block_bytes
        || bytes.len() / block_bytes > u32::MAX as usize
    {
        return Err(RingError::Length { bytes: bytes.len() });
    }
    let blocks: Vec<Result<Transaction<'_>, BlockError>> = transactions(bytes).collect();
    let ring = blocks.len() as u64;
    let Some(newest) = blocks.iter().flatten().max_by_key(|block| block.sequence) else {
        let error = blocks
            .iter()
            .find_map(|block| block.as_ref().err().copied())
            .expect("no block is whole");
        return Err(RingError::Damaged { block: 0, error });
    };
    let next_sequence = newest.sequence + 1;
    let mut slots = vec![None; newest.slots];
    let mut described = vec![false; newest.slots];
    let mut torn = None;
    for step in 0..ring {
        // The oldest first: block `next_sequence % ring` holds the transaction that is one ring length before the next one.
        let index = ((next_sequence + step) % ring) as u32;
        let transaction = match &blocks[index as usize] {
            Ok(transaction) => transaction,
            Err(BlockError::NoMagic | BlockError::Checksum) if step == 0 => {
                torn = Some(index);
                continue;
            }
            Err(error) => {
                return Err(RingError::Damaged {
                    block: index,
                    error: *error,
                });
            }
        };
        if transaction.sequence + ring != next_sequence + step {
            let expected = (next_sequence + step).saturating_sub(ring);
            return Err(RingError::Gap {
                block: index,
                expected,
                found: transaction.sequence,
            });
        }
        if transaction.slots != newest.slots {
            let error = BlockError::Field {
                field: "slot count",
                value: transaction.slots as u64,
            };
            return Err(RingError::Damaged {
                block: index,
                error,
            });
        }
        for (slot, extent) in transaction.context().chain(transaction.updates()) {
            slots[slot] = (extent != EMPTY).then_some(extent);
            described[slot] = true;
        }
    }
    if described.contains(&false) {
        let error = BlockError::Field {
            field: "slot count",
            value: newest.slots as u64,
        };
        return Err(RingError::Damaged {
            block: (newest.sequence % ring) as u32,
            error,
        });
    }
    let mut extents: Vec<u32> = slots.iter().copied().flatten().collect();
    extents.sort_unstable();
    if let Some(pair) = extents.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(RingError::Duplicate { extent: pair[0] });
    }
    Ok(Replay {
        slots,
        next_sequence,
        torn,
    })
}

/// A sequence above every whole block of a ring that needs no replay, for [`RingWriter::fresh`].
#[must_use]
pub fn sequence_after(bytes: &[u8]) -> u64 {
    transactions(bytes)
        .flatten()
        .map(|block| block.sequence + 1)
        .max()
        .unwrap_or(0)
}

fn transactions(bytes: &[u8]) -> impl Iterator<Item = Result<Transaction<'_>, BlockError>> {
    let blocks = bytes.chunks_exact(METADATA_BLOCK_BYTES as usize);
    let ring_blocks = blocks.len() as u32;
    blocks.map(move |block| {
        Transaction::decode(block.try_into().expect("a chunk of 4 KiB"), ring_blocks)
    })
}

#[cfg(test)]
mod tests;
