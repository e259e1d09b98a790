//! The on-disk form of a bitmap: sectors of 512 bytes, each with a checksum and a tag of its own.
//!
//! A sector is the unit that a disk writes whole, so a torn write of a 4 KiB block leaves each sector either old or new, and
//! never one that must be refused.
//!
//! ```text
//! 0   4    CRC-32 over the 512 bytes with the four bytes "QBM1" in this place
//! 4   4    tag: bitmap slot in the upper 5 bits, number of the sector within the slot in the lower 27
//! 8   504  4032 bits, block 4032 × sector + i at bit i % 8 of byte i / 8
//! ```
//!
//! Owns this form and which of its 4 KiB blocks are dirty (older on disk than in memory). Two writes of the same block must not
//! be in flight together; that is the caller's care, as is marking a block dirty again when its write failed.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use super::chunk::{CHUNK_BITS, Chunk};
use super::{Bitmap, masked_words};
use crate::metadata::{METADATA_BLOCK_BYTES, MetadataBlock};

const SECTOR: usize = 512;
const HEADER: usize = 8;
const SECTOR_WORDS: usize = (SECTOR - HEADER) / 8;
const SECTORS_PER_DISK_BLOCK: u64 = METADATA_BLOCK_BYTES / SECTOR as u64;
const SECTOR_INDEX_BITS: u32 = 27;
/// Stands in the place of the checksum while it is computed: tells bitmap sectors of this version from anything else.
const CHECKSUM_SEED: [u8; 4] = *b"QBM1";

/// Bits in one sector of the on-disk form.
pub const BITS_PER_DISK_SECTOR: u64 = SECTOR_WORDS as u64 * 64;
/// Bits in one 4 KiB block of the on-disk form: 126 MiB of data.
pub const BITS_PER_DISK_BLOCK: u64 = BITS_PER_DISK_SECTOR * SECTORS_PER_DISK_BLOCK;

const _: () = assert!(BITS_PER_DISK_BLOCK == 32256 && BITS_PER_DISK_BLOCK == CHUNK_BITS);
const _: () = assert!(
    (crate::limits::MAX_DEVICE_BYTES / crate::units::BLOCK_BYTES).div_ceil(BITS_PER_DISK_BLOCK)
        * SECTORS_PER_DISK_BLOCK
        <= 1 << SECTOR_INDEX_BITS
);
const _: () = assert!(crate::limits::MAX_PEERS <= 1 << (32 - SECTOR_INDEX_BITS));

/// Number of 4 KiB on-disk blocks that describe `blocks` blocks of data.
#[must_use]
pub const fn disk_blocks_needed(blocks: u64) -> u64 {
    blocks.div_ceil(BITS_PER_DISK_BLOCK)
}

/// On-disk blocks that describe the data blocks of `range`: `first..end`.
#[must_use]
pub fn disk_blocks_of(range: Range<u64>) -> Range<u64> {
    if range.start >= range.end {
        return 0..0;
    }
    range.start / BITS_PER_DISK_BLOCK..range.end.div_ceil(BITS_PER_DISK_BLOCK)
}

/// A part of the on-disk bitmap that is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BitmapError {
    /// Checksum mismatch: damaged, or never written.
    Checksum {
        /// Bitmap slot.
        slot: usize,
        /// Sector of 512 bytes within the slot.
        sector: u64,
        /// The checksum stored.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// A sector that belongs elsewhere.
    Misplaced {
        /// Bitmap slot.
        slot: usize,
        /// Sector of 512 bytes within the slot.
        sector: u64,
        /// Slot named in the sector.
        found_slot: usize,
        /// Sector number named in the sector.
        found_sector: u64,
    },
    /// Not as many bytes as the slot has.
    Length {
        /// Bitmap slot.
        slot: usize,
        /// Bytes given.
        bytes: u64,
        /// Bytes needed.
        needed_bytes: u64,
    },
}

impl fmt::Display for BitmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            BitmapError::Checksum {
                slot,
                sector,
                stored,
                computed,
            } => {
                write!(
                    f,
                    "bitmap slot {slot}, sector {sector}: checksum {stored:#010x} stored, {computed:#010x} computed"
                )
            }
            BitmapError::Misplaced {
                slot,
                sector,
                found_slot,
                found_sector,
            } => {
                write!(
                    f,
                    "bitmap slot {slot}, sector {sector}: holds slot {found_slot}, sector {found_sector}"
                )
            }
            BitmapError::Length {
                slot,
                bytes,
                needed_bytes,
            } => {
                write!(
                    f,
                    "bitmap slot {slot}: {bytes} bytes instead of {needed_bytes}"
                )
            }
        }
    }
}

impl core::error::Error for BitmapError {}

fn tag(slot: usize, sector: u64) -> u32 {
    (slot as u32) << SECTOR_INDEX_BITS | sector as u32
}

fn checksum(sector: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&CHECKSUM_SEED);
    hasher.update(&sector[4..]);
    hasher.finalize()
}

fn check_sector(slot: usize, sector: u64, bytes: &[u8]) -> Result<(), BitmapError> {
    let number =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (stored, computed) = (number(0), checksum(bytes));
    if stored != computed {
        return Err(BitmapError::Checksum {
            slot,
            sector,
            stored,
            computed,
        });
    }
    let found = number(4);
    if found != tag(slot, sector) {
        return Err(BitmapError::Misplaced {
            slot,
            sector,
            found_slot: (found >> SECTOR_INDEX_BITS) as usize,
            found_sector: u64::from(found & ((1 << SECTOR_INDEX_BITS) - 1)),
        });
    }
    Ok(())
}

impl Bitmap {
    /// Block `index` of the on-disk form in bitmap slot `slot`. A block beyond the bitmap holds clear bits.
    #[must_use]
    pub fn encode_block(&self, slot: usize, index: u64) -> MetadataBlock {
        let mut block = [0; METADATA_BLOCK_BYTES as usize];
        let chunk = self.chunks.get(index as usize).unwrap_or(&Chunk::Clear);
        let used = self.used(index as usize);
        for (part, bytes) in block.chunks_exact_mut(SECTOR).enumerate() {
            let sector = index * SECTORS_PER_DISK_BLOCK + part as u64;
            bytes[4..HEADER].copy_from_slice(&tag(slot, sector).to_le_bytes());
            if *chunk != Chunk::Clear {
                let words = (part * SECTOR_WORDS..).map(|word| chunk.word(word, used));
                for (place, word) in bytes[HEADER..].chunks_exact_mut(8).zip(words) {
                    place.copy_from_slice(&word.to_le_bytes());
                }
            }
            let crc = checksum(bytes);
            bytes[..4].copy_from_slice(&crc.to_le_bytes());
        }
        block
    }

    /// Replaces the bits that block `index` of the on-disk form describes by what `block` says. Afterwards the block is not
    /// dirty, unless it has bits set beyond the end of the bitmap: those are left out, and the block is marked to be rewritten.
    ///
    /// # Errors
    /// [`BitmapError`] naming slot and sector; the bitmap is unchanged then.
    pub fn decode_block(
        &mut self,
        slot: usize,
        index: u64,
        block: &MetadataBlock,
    ) -> Result<(), BitmapError> {
        let first_sector = index * SECTORS_PER_DISK_BLOCK;
        for (part, bytes) in block.chunks_exact(SECTOR).enumerate() {
            check_sector(slot, first_sector + part as u64, bytes)?;
        }
        let sectors = || block.chunks_exact(SECTOR).map(|bytes| &bytes[HEADER..]);
        let blank = sectors().all(|bytes| bytes.iter().fold(0, |all, byte| all | byte) == 0);
        let used = self.used(index as usize);
        let stray = match self.chunks.get_mut(index as usize) {
            None => !blank,
            Some(chunk) => {
                let before = chunk.count(used);
                let words = sectors()
                    .flat_map(|bytes| bytes.chunks_exact(8))
                    .map(|word| u64::from_le_bytes(word.try_into().expect("a chunk of eight")));
                let stray = if blank {
                    // Nearly every block of a large device.
                    *chunk = Chunk::Clear;
                    false
                } else {
                    chunk.load(words.enumerate(), used, &mut self.spare)
                };
                self.count = self.count - before + chunk.count(used);
                stray
            }
        };
        self.clean(index);
        if stray {
            self.mark_dirty(index);
        }
        Ok(())
    }

    /// Sets every bit that block `index` of the on-disk form describes: the remedy for a damaged block, and it copies at most
    /// 126 MiB too much. Returns how many were clear.
    pub fn set_disk_block(&mut self, index: u64) -> u64 {
        let first = (index * BITS_PER_DISK_BLOCK).min(self.blocks);
        self.set(first..self.blocks.min(first + BITS_PER_DISK_BLOCK))
    }

    /// Reads a whole slot: `bytes` are its 4 KiB blocks, at least as many as `blocks` bits need.
    ///
    /// # Errors
    /// [`BitmapError`] naming slot and sector.
    pub fn decode_slot(slot: usize, blocks: u64, bytes: &[u8]) -> Result<Bitmap, BitmapError> {
        let needed_bytes = disk_blocks_needed(blocks) * METADATA_BLOCK_BYTES;
        let given = bytes.len() as u64;
        if given < needed_bytes || !given.is_multiple_of(METADATA_BLOCK_BYTES) {
            return Err(BitmapError::Length {
                slot,
                bytes: given,
                needed_bytes,
            });
        }
        let mut bitmap = Bitmap::new(blocks);
        for (index, block) in bytes
            .chunks_exact(METADATA_BLOCK_BYTES as usize)
            .enumerate()
        {
            bitmap.decode_block(
                slot,
                index as u64,
                block.try_into().expect("a chunk of 4 KiB"),
            )?;
        }
        Ok(bitmap)
    }

    /// Number of 4 KiB blocks of the on-disk form that hold bits of this bitmap.
    #[must_use]
    pub fn disk_blocks(&self) -> u64 {
        disk_blocks_needed(self.blocks)
    }

    /// On-disk blocks that are older than the bits in memory, ascending.
    pub fn dirty_blocks(&self) -> impl Iterator<Item = u64> {
        let words = self
            .dirty
            .iter()
            .enumerate()
            .filter(|(_, word)| **word != 0);
        words.flat_map(|(index, &word)| bits_of(word).map(move |bit| index as u64 * 64 + bit))
    }

    /// Number of dirty on-disk blocks.
    #[must_use]
    pub fn dirty_count(&self) -> u64 {
        self.dirty_count
    }

    /// Dirty on-disk blocks that describe data blocks of `range`, ascending; they count as clean from now on, and the caller
    /// encodes and writes them. An extent's bits are on disk when these writes are durable.
    pub fn take_dirty(&mut self, range: Range<u64>) -> Vec<u64> {
        let mut taken = Vec::new();
        if self.dirty_count > 0 {
            for (index, mask) in
                masked_words(&disk_blocks_of(range.start..range.end.min(self.blocks)))
            {
                let found = self.dirty[index] & mask;
                taken.extend(bits_of(found).map(|bit| index as u64 * 64 + bit));
                self.dirty[index] &= !found;
            }
        }
        self.dirty_count -= taken.len() as u64;
        taken
    }

    /// All dirty on-disk blocks; they count as clean from now on.
    pub fn take_all_dirty(&mut self) -> Vec<u64> {
        self.take_dirty(0..self.blocks)
    }

    /// Marks one on-disk block dirty, as after a failed write.
    pub fn mark_dirty(&mut self, index: u64) {
        if index < self.disk_blocks() {
            let word = &mut self.dirty[(index / 64) as usize];
            self.dirty_count += u64::from(*word >> (index % 64) & 1 == 0);
            *word |= 1 << (index % 64);
        }
    }

    /// Marks every on-disk block dirty, as after the metadata moved.
    pub fn mark_all_dirty(&mut self) {
        self.mark_range_dirty(0..self.blocks);
    }

    pub(super) fn mark_range_dirty(&mut self, range: Range<u64>) {
        for (index, mask) in masked_words(&disk_blocks_of(range)) {
            self.dirty_count += u64::from((mask & !self.dirty[index]).count_ones());
            self.dirty[index] |= mask;
        }
    }

    fn clean(&mut self, index: u64) {
        if index < self.disk_blocks() {
            let word = &mut self.dirty[(index / 64) as usize];
            self.dirty_count -= *word >> (index % 64) & 1;
            *word &= !(1 << (index % 64));
        }
    }
}

/// Numbers of the set bits, ascending.
fn bits_of(mut word: u64) -> impl Iterator<Item = u64> {
    core::iter::from_fn(move || {
        (word != 0).then(|| {
            let bit = u64::from(word.trailing_zeros());
            word &= word - 1;
            bit
        })
    })
}
