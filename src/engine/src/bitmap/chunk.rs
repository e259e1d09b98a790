//! One chunk of a bitmap in memory: the bits that one 4 KiB block of the on-disk form describes, 126 MiB of data.
//!
//! A chunk without a set bit and one without a clear bit are a word of the table; only a mixed one owns its bits, 4 KiB. So memory
//! follows what differs between the nodes and not the size of the device: no resync and a full resync cost next to nothing.
//!
//! Invariants:
//! - A mixed chunk has at least one set and one clear bit among those `used`: equal bits mean equal chunks.
//! - Bit `w` of the summary is set exactly if word `w` is not zero; bits at and beyond `used` are zero.
//! - A spare is all zero. It is kept so that a block that is marked and cleared again costs no allocation.
//!
//! Positions are within the chunk. `used`, how many of its bits lie within the bitmap, is the owner's knowledge: only the last
//! chunk has fewer than [`CHUNK_BITS`].

use alloc::boxed::Box;
use core::ops::Range;

use super::masked_words;

/// Words of a chunk: eight sectors of 63.
pub(super) const CHUNK_WORDS: usize = 504;
/// Bits of a chunk.
pub(super) const CHUNK_BITS: u64 = CHUNK_WORDS as u64 * 64;

const SUMMARY_WORDS: usize = CHUNK_WORDS.div_ceil(64);

/// The bits of a mixed chunk.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Bits {
    words: [u64; CHUNK_WORDS],
    summary: [u64; SUMMARY_WORDS],
}

const _: () = assert!(size_of::<Bits>() == 4096);

impl Bits {
    fn zero() -> Box<Bits> {
        Box::new(Bits {
            words: [0; CHUNK_WORDS],
            summary: [0; SUMMARY_WORDS],
        })
    }

    fn put(&mut self, index: usize, word: u64) {
        self.words[index] = word;
        let bit = 1 << (index % 64);
        if word == 0 {
            self.summary[index / 64] &= !bit;
        } else {
            self.summary[index / 64] |= bit;
        }
    }

    /// First word at or after `from` that is not zero.
    fn next_used_word(&self, from: usize) -> Option<usize> {
        let mut group = from / 64;
        let mut rest = self.summary.get(group)? & u64::MAX << (from % 64);
        while rest == 0 {
            group += 1;
            rest = *self.summary.get(group)?;
        }
        Some(group * 64 + rest.trailing_zeros() as usize)
    }
}

/// A zero [`Bits`] for the next chunk that becomes mixed.
pub(super) type Spare = Option<Box<Bits>>;

/// See the head of this file.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Chunk {
    /// No bit is set.
    Clear,
    /// Every used bit is set.
    Full,
    /// Some are: `count`.
    Mixed { count: u32, bits: Box<Bits> },
}

const _: () = assert!(size_of::<Chunk>() == 16);

impl Chunk {
    /// Number of set bits.
    pub(super) fn count(&self, used: u64) -> u64 {
        match self {
            Chunk::Clear => 0,
            Chunk::Full => used,
            Chunk::Mixed { count, .. } => u64::from(*count),
        }
    }

    /// Number of set bits of `range`, which lies within the used ones.
    pub(super) fn count_in(&self, range: &Range<u64>) -> u64 {
        match self {
            Chunk::Clear => 0,
            Chunk::Full => range.end - range.start,
            Chunk::Mixed { bits, .. } => masked_words(range)
                .map(|(word, mask)| u64::from((bits.words[word] & mask).count_ones()))
                .sum(),
        }
    }

    /// 64 bits.
    pub(super) fn word(&self, index: usize, used: u64) -> u64 {
        match self {
            Chunk::Clear => 0,
            Chunk::Full => used_mask(index, used),
            Chunk::Mixed { bits, .. } => bits.words[index],
        }
    }

    /// First set bit at or after `from`, which is a used one.
    pub(super) fn next_set(&self, from: u64) -> Option<u64> {
        match self {
            Chunk::Clear => None,
            Chunk::Full => Some(from),
            Chunk::Mixed { bits, .. } => {
                let index = (from / 64) as usize;
                let rest = bits.words[index] >> (from % 64);
                if rest != 0 {
                    return Some(from + u64::from(rest.trailing_zeros()));
                }
                let index = bits.next_used_word(index + 1)?;
                Some(index as u64 * 64 + u64::from(bits.words[index].trailing_zeros()))
            }
        }
    }

    /// First clear bit at or after `from`, `limit` if there is none before it. `limit` is at most `used`.
    pub(super) fn next_clear(&self, from: u64, limit: u64) -> u64 {
        match self {
            Chunk::Clear => from.min(limit),
            Chunk::Full => limit,
            Chunk::Mixed { bits, .. } => {
                let clear = masked_words(&(from..limit))
                    .map(|(index, mask)| (index, !bits.words[index] & mask))
                    .find(|&(_, clear)| clear != 0);
                clear.map_or(limit, |(index, clear)| {
                    index as u64 * 64 + u64::from(clear.trailing_zeros())
                })
            }
        }
    }

    /// Sets the bits of `range`, which lies within the used ones. Returns how many were clear.
    pub(super) fn set(&mut self, range: &Range<u64>, used: u64, spare: &mut Spare) -> u64 {
        if range.end - range.start == used {
            let newly = used - self.count(used);
            *self = Chunk::Full;
            return newly;
        }
        let (count, bits) = match self {
            Chunk::Full => return 0,
            Chunk::Clear => self.become_mixed(0, spare.take().unwrap_or_else(Bits::zero)),
            Chunk::Mixed { count, bits } => (count, bits),
        };
        let mut newly = 0;
        for (index, mask) in masked_words(range) {
            let word = &mut bits.words[index];
            newly += (mask & !*word).count_ones();
            *word |= mask;
            bits.summary[index / 64] |= 1 << (index % 64);
        }
        *count += newly;
        if u64::from(*count) == used {
            *self = Chunk::Full;
        }
        u64::from(newly)
    }

    /// Clears the bits of `range`, which lies within the used ones. Returns how many were set.
    pub(super) fn clear(&mut self, range: &Range<u64>, used: u64, spare: &mut Spare) -> u64 {
        if range.end - range.start == used {
            let newly = self.count(used);
            *self = Chunk::Clear;
            return newly;
        }
        let (count, bits) = match self {
            Chunk::Clear => return 0,
            Chunk::Full => {
                self.expand(used);
                return self.clear(range, used, spare);
            }
            Chunk::Mixed { count, bits } => (count, bits),
        };
        let mut newly = 0;
        for (index, mask) in masked_words(range) {
            let word = &mut bits.words[index];
            newly += (mask & *word).count_ones();
            *word &= !mask;
            if *word == 0 {
                bits.summary[index / 64] &= !(1 << (index % 64));
            }
        }
        *count -= newly;
        self.settle(used, spare);
        u64::from(newly)
    }

    /// Sets every bit that is set in `other`, of which `other_used` bits, at most `used`, are used. Returns how many were clear.
    pub(super) fn or(
        &mut self,
        other: &Chunk,
        other_used: u64,
        used: u64,
        spare: &mut Spare,
    ) -> u64 {
        let theirs = match other {
            Chunk::Clear => return 0,
            Chunk::Full => return self.set(&(0..other_used), used, spare),
            Chunk::Mixed { bits, .. } => bits,
        };
        match self {
            Chunk::Full => 0,
            Chunk::Clear => {
                *self = other.clone();
                self.count(used)
            }
            Chunk::Mixed { count, bits } => {
                let before = *count;
                for (index, (word, &added)) in bits.words.iter_mut().zip(&theirs.words).enumerate()
                {
                    *count += (added & !*word).count_ones();
                    *word |= added;
                    bits.summary[index / 64] |= u64::from(*word != 0) << (index % 64);
                }
                let newly = u64::from(*count - before);
                self.settle(used, spare);
                newly
            }
        }
    }

    /// Replaces all bits by `words`. Returns true if bits that are not used had to be left out.
    pub(super) fn load(
        &mut self,
        words: impl Iterator<Item = (usize, u64)>,
        used: u64,
        spare: &mut Spare,
    ) -> bool {
        let mut bits = spare.take().unwrap_or_else(Bits::zero);
        let (mut count, mut stray) = (0, false);
        for (index, word) in words {
            let inside = word & used_mask(index, used);
            stray |= inside != word;
            if inside != 0 {
                count += inside.count_ones();
                bits.put(index, inside);
            }
        }
        *self = Chunk::Mixed { count, bits };
        self.settle(used, spare);
        stray
    }

    /// Changes how many bits are used, in a chunk that has none set at or beyond either number, unless it is full.
    pub(super) fn change_used(&mut self, old: u64, new: u64, spare: &mut Spare) {
        if matches!(self, Chunk::Full) && old < new {
            self.expand(old);
        }
        self.settle(new, spare);
    }

    /// Memory outside the table, in bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        match self {
            Chunk::Clear | Chunk::Full => 0,
            Chunk::Mixed { .. } => size_of::<Bits>() as u64,
        }
    }

    /// A full chunk owns its bits for a moment, so that some can be cleared or more become used.
    fn expand(&mut self, used: u64) {
        let mut bits = Bits::zero();
        for (index, mask) in masked_words(&(0..used)) {
            bits.put(index, mask);
        }
        let count = used as u32;
        *self = Chunk::Mixed { count, bits };
    }

    fn become_mixed(&mut self, count: u32, bits: Box<Bits>) -> (&mut u32, &mut Box<Bits>) {
        *self = Chunk::Mixed { count, bits };
        match self {
            Chunk::Mixed { count, bits } => (count, bits),
            _ => unreachable!("just made so"),
        }
    }

    /// A mixed chunk with all bits alike gives its memory back.
    fn settle(&mut self, used: u64, spare: &mut Spare) {
        match self {
            Chunk::Mixed { count: 0, .. } => {
                if let Chunk::Mixed { bits, .. } = core::mem::replace(self, Chunk::Clear) {
                    *spare = Some(bits);
                }
            }
            Chunk::Mixed { count, .. } if u64::from(*count) == used => *self = Chunk::Full,
            _ => {}
        }
    }
}

/// The used bits of word `index`.
fn used_mask(index: usize, used: u64) -> u64 {
    let inside = used.saturating_sub(index as u64 * 64);
    if inside < 64 {
        (1 << inside) - 1
    } else {
        u64::MAX
    }
}
