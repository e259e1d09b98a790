//! The out-of-sync bitmap of one peer, in memory: one bit per 4 KiB block that may differ from the peer's.
//!
//! Owns the bits, their count, and the knowledge which 4 KiB blocks of the on-disk form are older than the bits in memory.
//! The bits are kept in chunks that cost memory only where set and clear bits mix, see `chunk`. The on-disk form is in [`disk`],
//! the form on the wire in [`runs`].
//!
//! Invariants:
//! - `count` equals the number of set bits; bits at and beyond `blocks` are zero.
//! - Chunk `c` holds the bits of on-disk block `c`. Every change of a bit marks that block dirty.
//!
//! Memory: 16 bytes for 126 MiB of data, that is 2 MiB for 16 TiB, and 4 KiB more where both set and clear bits are.
//!
//! Deliberately ignorant of rounding (bytes to blocks is [`crate::units::ByteRange`]), of peers and of resync order; a scan that
//! should wrap is continued from 0 by its caller. A range beyond the bitmap is a bug and panics: ranges of peers are checked by
//! [`Bitmap::decode_runs`].

mod chunk;
pub mod disk;
pub mod runs;

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use chunk::{CHUNK_BITS, CHUNK_WORDS, Chunk, Spare};
pub use disk::{BITS_PER_DISK_BLOCK, BitmapError, disk_blocks_needed};
pub use runs::RunsError;

use crate::limits::MAX_DEVICE_BYTES;
use crate::units::BLOCK_BYTES;

const WORD_BITS: u64 = 64;

/// Out-of-sync bits of one peer. Positions are numbers of blocks of the data area.
#[derive(Clone)]
pub struct Bitmap {
    blocks: u64,
    count: u64,
    chunks: Vec<Chunk>,
    spare: Spare,
    dirty: Vec<u64>,
    dirty_count: u64,
}

impl PartialEq for Bitmap {
    fn eq(&self, other: &Bitmap) -> bool {
        self.blocks == other.blocks && self.chunks == other.chunks && self.dirty == other.dirty
    }
}

impl Eq for Bitmap {}

impl fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Bitmap({} of {} blocks, {} dirty)",
            self.count, self.blocks, self.dirty_count
        )
    }
}

impl Bitmap {
    /// A bitmap of `blocks` clear bits, nothing dirty. Panics beyond [`MAX_DEVICE_BYTES`].
    #[must_use]
    pub fn new(blocks: u64) -> Bitmap {
        assert!(
            blocks <= MAX_DEVICE_BYTES / BLOCK_BYTES,
            "bitmap of {blocks} blocks"
        );
        let chunks = disk_blocks_needed(blocks);
        Bitmap {
            blocks,
            count: 0,
            chunks: vec![Chunk::Clear; chunks as usize],
            spare: None,
            dirty: vec![0; chunks.div_ceil(WORD_BITS) as usize],
            dirty_count: 0,
        }
    }

    /// Number of blocks described.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Number of set bits.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// True if no bit is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// True if the bit of `block` is set.
    #[must_use]
    pub fn is_set(&self, block: u64) -> bool {
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        let word = block % CHUNK_BITS / WORD_BITS;
        let index = (block / CHUNK_BITS) as usize;
        self.chunks[index].word(word as usize, self.used(index)) >> (block % WORD_BITS) & 1 != 0
    }

    /// True if a bit within `range` is set.
    #[must_use]
    pub fn any_set(&self, range: Range<u64>) -> bool {
        self.check(&range);
        parts(range).any(|(index, part)| {
            let found = self.chunks[index].next_set(part.start);
            found.is_some_and(|block| block < part.end)
        })
    }

    /// Number of set bits within `range`.
    #[must_use]
    pub fn count_in(&self, range: Range<u64>) -> u64 {
        self.check(&range);
        parts(range)
            .map(|(index, part)| self.chunks[index].count_in(&part))
            .sum()
    }

    /// Sets the bits of `range`. Returns how many were clear.
    pub fn set(&mut self, range: Range<u64>) -> u64 {
        self.check(&range);
        let mut newly = 0;
        for (index, part) in parts(range) {
            let used = self.used(index);
            let here = self.chunks[index].set(&part, used, &mut self.spare);
            newly += here;
            if here > 0 {
                self.mark_dirty(index as u64);
            }
        }
        self.count += newly;
        newly
    }

    /// Clears the bits of `range`. Returns how many were set.
    pub fn clear(&mut self, range: Range<u64>) -> u64 {
        self.check(&range);
        let mut newly = 0;
        for (index, part) in parts(range) {
            let used = self.used(index);
            let here = self.chunks[index].clear(&part, used, &mut self.spare);
            newly += here;
            if here > 0 {
                self.mark_dirty(index as u64);
            }
        }
        self.count -= newly;
        newly
    }

    /// Sets every bit. Returns how many were clear.
    pub fn set_all(&mut self) -> u64 {
        self.set(0..self.blocks)
    }

    /// Clears every bit. Returns how many were set.
    pub fn clear_all(&mut self) -> u64 {
        self.clear(0..self.blocks)
    }

    /// Sets every bit that is set in `other`. Returns how many were clear. Panics if `other` describes more blocks.
    pub fn or_with(&mut self, other: &Bitmap) -> u64 {
        assert!(
            other.blocks <= self.blocks,
            "{} blocks into {}",
            other.blocks,
            self.blocks
        );
        let mut newly = 0;
        for (index, theirs) in other.chunks.iter().enumerate() {
            let (used, other_used) = (self.used(index), other.used(index));
            let here = self.chunks[index].or(theirs, other_used, used, &mut self.spare);
            newly += here;
            if here > 0 {
                self.mark_dirty(index as u64);
            }
        }
        self.count += newly;
        newly
    }

    /// The first run of set bits at or after `from`, cut to `max_blocks`. `None` if no bit is set there; a scan that should
    /// wrap is continued from 0 by the caller.
    #[must_use]
    pub fn next_run(&self, from: u64, max_blocks: u64) -> Option<Range<u64>> {
        let start = self.next_set(from)?;
        let limit = start.saturating_add(max_blocks).min(self.blocks);
        (limit > start).then(|| start..self.next_clear(start, limit))
    }

    /// All runs of set bits in ascending order.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        let mut from = 0;
        core::iter::from_fn(move || {
            let run = self.next_run(from, u64::MAX)?;
            from = run.end;
            Some(run)
        })
    }

    /// Changes the number of blocks. New bits are set if `new_bits_set`. The on-disk blocks of the part that is added become
    /// dirty, since the disk may hold bits there from an earlier time.
    pub fn resize(&mut self, blocks: u64, new_bits_set: bool) {
        assert!(
            blocks <= MAX_DEVICE_BYTES / BLOCK_BYTES,
            "bitmap of {blocks} blocks"
        );
        let old = self.blocks;
        if blocks < old {
            self.clear(blocks..old);
        }
        let chunks = disk_blocks_needed(blocks);
        let last = disk_blocks_needed(old.min(blocks)).checked_sub(1);
        let used_before = last.map_or(0, |last| self.used(last as usize));
        self.blocks = blocks;
        self.chunks.resize(chunks as usize, Chunk::Clear);
        if let Some(last) = last.map(|last| last as usize) {
            let used = self.used(last);
            self.chunks[last].change_used(used_before, used, &mut self.spare);
        }
        if blocks < old {
            let gone = disk_blocks_needed(blocks)..disk_blocks_needed(old);
            for (index, mask) in masked_words(&gone) {
                self.dirty_count -= u64::from((self.dirty[index] & mask).count_ones());
                self.dirty[index] &= !mask;
            }
        }
        self.dirty.resize(chunks.div_ceil(WORD_BITS) as usize, 0);
        if blocks > old {
            self.mark_range_dirty(old..blocks);
            if new_bits_set {
                self.set(old..blocks);
            }
        }
    }

    /// Memory held, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let table = self.chunks.len() * size_of::<Chunk>() + self.dirty.len() * 8;
        let spare = self.spare.as_ref().map_or(0, |bits| size_of_val(&**bits));
        let mixed: u64 = self.chunks.iter().map(Chunk::memory_bytes).sum();
        (table + spare) as u64 + mixed
    }

    /// First set bit at or after `from`.
    fn next_set(&self, from: u64) -> Option<u64> {
        if from >= self.blocks {
            return None;
        }
        let index = (from / CHUNK_BITS) as usize;
        if let Some(found) = self.chunks[index].next_set(from % CHUNK_BITS) {
            return Some(index as u64 * CHUNK_BITS + found);
        }
        let rest = &self.chunks[index + 1..];
        let index = index + 1 + rest.iter().position(|chunk| *chunk != Chunk::Clear)?;
        let found = self.chunks[index].next_set(0)?;
        Some(index as u64 * CHUNK_BITS + found)
    }

    /// First clear bit at or after `from`, `limit` if there is none before it.
    fn next_clear(&self, from: u64, limit: u64) -> u64 {
        for (index, part) in parts(from..limit) {
            let found = self.chunks[index].next_clear(part.start, part.end);
            if found < part.end {
                return index as u64 * CHUNK_BITS + found;
            }
        }
        limit
    }

    /// 64 bits; zero beyond the end.
    fn word(&self, index: usize) -> u64 {
        let chunk = index / CHUNK_WORDS;
        self.chunks
            .get(chunk)
            .map_or(0, |bits| bits.word(index % CHUNK_WORDS, self.used(chunk)))
    }

    /// How many bits of a chunk lie within the bitmap.
    fn used(&self, chunk: usize) -> u64 {
        self.blocks
            .saturating_sub(chunk as u64 * CHUNK_BITS)
            .min(CHUNK_BITS)
    }

    fn check(&self, range: &Range<u64>) {
        assert!(
            range.end <= self.blocks,
            "blocks {}..{} of {}",
            range.start,
            range.end,
            self.blocks
        );
    }
}

/// Chunks that `range` touches, each with the part of the range that lies in it, counted from the chunk's begin.
fn parts(range: Range<u64>) -> impl Iterator<Item = (usize, Range<u64>)> {
    let chunks = disk::disk_blocks_of(range.clone());
    chunks.map(move |chunk| {
        let first = chunk * CHUNK_BITS;
        let start = range.start.saturating_sub(first);
        let end = (range.end - first).min(CHUNK_BITS);
        (chunk as usize, start..end)
    })
}

/// Words that `range` touches, each with the mask of its bits within the range.
fn masked_words(range: &Range<u64>) -> impl Iterator<Item = (usize, u64)> + use<> {
    let Range { start, end } = range.clone();
    let words = if start < end {
        start / WORD_BITS..end.div_ceil(WORD_BITS)
    } else {
        0..0
    };
    words.map(move |word| {
        let first = word * WORD_BITS;
        let low = u64::MAX << start.saturating_sub(first);
        let high = u64::MAX >> (first + WORD_BITS).saturating_sub(end);
        (word as usize, low & high)
    })
}

#[cfg(test)]
mod tests;
