//! The out-of-sync bitmap of one peer, in memory: one bit per 4 KiB block that may differ from the peer's.
//!
//! Owns the bits, their count, and the knowledge which 4 KiB blocks of the on-disk form are older than the bits in memory.
//! The on-disk form is in [`disk`], the form on the wire in [`runs`].
//!
//! Invariants:
//! - `count` equals the number of set bits; bits at and beyond `blocks` are zero.
//! - Bit `w` of the summary is set exactly if word `w` is not zero, so a scan skips 256 Ki blocks of clean data per step of 64.
//! - Every change of a bit marks its on-disk block dirty.
//!
//! Deliberately ignorant of rounding (bytes to blocks is [`crate::units::ByteRange`]), of peers and of resync order; a scan that
//! should wrap is continued from 0 by its caller. A range beyond the bitmap is a bug and panics: ranges of peers are checked by
//! [`Bitmap::decode_runs`].

pub mod disk;
pub mod runs;

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

pub use disk::{BITS_PER_DISK_BLOCK, BitmapError, disk_blocks_needed};
pub use runs::RunsError;

use crate::limits::MAX_DEVICE_BYTES;
use crate::units::BLOCK_BYTES;

const WORD_BITS: u64 = 64;

/// Out-of-sync bits of one peer. Positions are numbers of blocks of the data area.
#[derive(Clone, PartialEq, Eq)]
pub struct Bitmap {
    blocks: u64,
    count: u64,
    words: Vec<u64>,
    summary: Vec<u64>,
    dirty: Vec<u64>,
    dirty_count: u64,
}

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
        let words = blocks.div_ceil(WORD_BITS);
        Bitmap {
            blocks,
            count: 0,
            words: vec![0; words as usize],
            summary: vec![0; words.div_ceil(WORD_BITS) as usize],
            dirty: vec![0; disk_blocks_needed(blocks).div_ceil(WORD_BITS) as usize],
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
        self.words[(block / WORD_BITS) as usize] >> (block % WORD_BITS) & 1 != 0
    }

    /// True if a bit within `range` is set.
    #[must_use]
    pub fn any_set(&self, range: Range<u64>) -> bool {
        self.check(&range);
        self.next_set(range.start)
            .is_some_and(|block| block < range.end)
    }

    /// Number of set bits within `range`.
    #[must_use]
    pub fn count_in(&self, range: Range<u64>) -> u64 {
        self.check(&range);
        masked_words(&range)
            .map(|(word, mask)| u64::from((self.words[word] & mask).count_ones()))
            .sum()
    }

    /// Sets the bits of `range`. Returns how many were clear.
    pub fn set(&mut self, range: Range<u64>) -> u64 {
        self.check(&range);
        let mut newly = 0;
        for (index, mask) in masked_words(&range) {
            let word = &mut self.words[index];
            newly += u64::from((mask & !*word).count_ones());
            *word |= mask;
            self.summary[index / 64] |= 1 << (index % 64);
        }
        if newly > 0 {
            self.count += newly;
            self.mark_range_dirty(range);
        }
        newly
    }

    /// Clears the bits of `range`. Returns how many were set.
    pub fn clear(&mut self, range: Range<u64>) -> u64 {
        self.check(&range);
        let mut newly = 0;
        for (index, mask) in masked_words(&range) {
            let word = &mut self.words[index];
            newly += u64::from((mask & *word).count_ones());
            *word &= !mask;
            if *word == 0 {
                self.summary[index / 64] &= !(1 << (index % 64));
            }
        }
        if newly > 0 {
            self.count -= newly;
            self.mark_range_dirty(range);
        }
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
        let mut from = 0;
        while let Some(block) = other.next_set(from) {
            let index = (block / WORD_BITS) as usize;
            let added = other.words[index] & !self.words[index];
            if added != 0 {
                self.words[index] |= added;
                self.summary[index / 64] |= 1 << (index % 64);
                newly += u64::from(added.count_ones());
                let start = index as u64 * WORD_BITS;
                self.mark_range_dirty(start..self.blocks.min(start + WORD_BITS));
            }
            from = (index as u64 + 1) * WORD_BITS;
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
        let words = blocks.div_ceil(WORD_BITS);
        let dirty_words = disk_blocks_needed(blocks).div_ceil(WORD_BITS) as usize;
        self.blocks = blocks;
        self.words.resize(words as usize, 0);
        self.summary.resize(words.div_ceil(WORD_BITS) as usize, 0);
        if blocks < old {
            let gone = disk_blocks_needed(blocks)..disk_blocks_needed(old);
            for (index, mask) in masked_words(&gone) {
                self.dirty_count -= u64::from((self.dirty[index] & mask).count_ones());
                self.dirty[index] &= !mask;
            }
        }
        self.dirty.resize(dirty_words, 0);
        if blocks > old {
            self.mark_range_dirty(old..blocks);
            if new_bits_set {
                self.set(old..blocks);
            }
        }
    }

    /// First set bit at or after `from`.
    fn next_set(&self, from: u64) -> Option<u64> {
        if from >= self.blocks {
            return None;
        }
        let index = (from / WORD_BITS) as usize;
        let rest = self.words[index] >> (from % WORD_BITS);
        if rest != 0 {
            return Some(from + u64::from(rest.trailing_zeros()));
        }
        let index = self.next_used_word(index + 1)?;
        Some(index as u64 * WORD_BITS + u64::from(self.words[index].trailing_zeros()))
    }

    /// First word at or after `from` that is not zero.
    fn next_used_word(&self, from: usize) -> Option<usize> {
        let group = from / 64;
        let rest = self.summary.get(group)? >> (from % 64);
        if rest != 0 {
            return Some(from + rest.trailing_zeros() as usize);
        }
        let skipped = self.summary[group + 1..]
            .iter()
            .position(|&summary| summary != 0)?;
        let group = group + 1 + skipped;
        Some(group * 64 + self.summary[group].trailing_zeros() as usize)
    }

    /// First clear bit at or after `from`, `limit` if there is none before it.
    fn next_clear(&self, from: u64, limit: u64) -> u64 {
        let index = (from / WORD_BITS) as usize;
        let rest = !self.words[index] >> (from % WORD_BITS);
        if rest != 0 {
            return limit.min(from + u64::from(rest.trailing_zeros()));
        }
        let last = limit.div_ceil(WORD_BITS) as usize;
        let full = self.words[index + 1..last.max(index + 1)]
            .iter()
            .take_while(|&&word| word == u64::MAX)
            .count();
        let index = index + 1 + full;
        let position = index as u64 * WORD_BITS;
        if position >= limit {
            return limit;
        }
        limit.min(position + u64::from((!self.words[index]).trailing_zeros()))
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
