//! The form of a bitmap on the wire: chunks that fit a frame, each readable by itself.
//!
//! ```text
//! kind 0:  00, first, then (gap, length)…   gap clear blocks, then length set blocks, starting from first
//! kind 1:  01, first, then bytes            block first + i at bit i % 8 of byte i / 8
//! ```
//!
//! Numbers are LEB128 in their shortest form. The encoder takes whichever kind describes more blocks, so no pattern costs more
//! than its plain bits. A receiver that ORs all chunks has the sender's bitmap.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use super::Bitmap;

const KIND_RUNS: u8 = 0;
const KIND_BITS: u8 = 1;
/// Longest LEB128 form of a 64-bit number.
const NUMBER_BYTES: usize = 10;

/// Least budget of one chunk, in bytes.
pub const MIN_CHUNK_BYTES: usize = 64;

/// Why a chunk is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunsError {
    /// The chunk ends within a number or has none at all.
    Truncated {
        /// Position of the missing byte.
        at: usize,
    },
    /// Unknown kind of chunk.
    Kind {
        /// The kind.
        kind: u8,
    },
    /// A number longer than it needs to be, or beyond 64 bits.
    Number {
        /// Position of the number.
        at: usize,
    },
    /// A run without blocks, or one that touches the run before it.
    EmptyRun {
        /// Position of the run.
        at: usize,
    },
    /// A run beyond the end of the device.
    Beyond {
        /// Block after the run.
        end: u64,
        /// Blocks of the device.
        blocks: u64,
    },
}

impl fmt::Display for RunsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            RunsError::Truncated { at } => write!(f, "bitmap chunk ends at byte {at}"),
            RunsError::Kind { kind } => write!(f, "bitmap chunk of unknown kind {kind}"),
            RunsError::Number { at } => write!(
                f,
                "bitmap chunk, byte {at}: not a number in its shortest form"
            ),
            RunsError::EmptyRun { at } => write!(f, "bitmap chunk, byte {at}: empty run or gap"),
            RunsError::Beyond { end, blocks } => {
                write!(
                    f,
                    "bitmap chunk: run up to block {end}, the device has {blocks}"
                )
            }
        }
    }
}

impl core::error::Error for RunsError {}

impl Bitmap {
    /// A chunk of at most `budget_bytes` (at least [`MIN_CHUNK_BYTES`]) that describes the blocks from `from` on, and where the
    /// next chunk begins; `None` after the last.
    #[must_use]
    pub fn encode_runs(&self, from: u64, budget_bytes: usize) -> (Vec<u8>, Option<u64>) {
        assert!(
            budget_bytes >= MIN_CHUNK_BYTES,
            "budget of {budget_bytes} bytes"
        );
        let mut chunk = Vec::new();
        chunk.push(KIND_RUNS);
        put_number(&mut chunk, from);
        let header = chunk.len();
        let mut position = from;
        loop {
            let Some(run) = self.next_run(position, u64::MAX) else {
                return (chunk, None);
            };
            if chunk.len() + 2 * NUMBER_BYTES > budget_bytes {
                break;
            }
            put_number(&mut chunk, run.start - position);
            put_number(&mut chunk, run.end - run.start);
            position = run.end;
        }
        let plain_blocks = ((budget_bytes - header) * 8) as u64;
        if position - from >= plain_blocks {
            return (chunk, Some(position));
        }
        chunk.truncate(header);
        chunk[0] = KIND_BITS;
        let end = self.blocks.min(from + plain_blocks);
        let mut at = from;
        while at < end {
            let bits = self.bits_at(at).to_le_bytes();
            let bytes = (end - at).div_ceil(8).min(8) as usize;
            chunk.extend_from_slice(&bits[..bytes]);
            at += bytes as u64 * 8;
        }
        let used = chunk
            .iter()
            .rposition(|&byte| byte != 0)
            .map_or(0, |last| last + 1);
        chunk.truncate(used.max(header));
        (chunk, self.next_set(end).map(|_| end))
    }

    /// The 64 bits from block `at` on; zero beyond the end.
    fn bits_at(&self, at: u64) -> u64 {
        let (index, shift) = ((at / 64) as usize, at % 64);
        let low = self.word(index) >> shift;
        if shift == 0 {
            low
        } else {
            low | self.word(index + 1) << (64 - shift)
        }
    }

    /// The runs of set blocks that a chunk describes, ascending, each within this bitmap; at most four per byte of the chunk.
    ///
    /// # Errors
    /// [`RunsError`] naming the byte.
    pub fn decode_runs(&self, chunk: &[u8]) -> Result<Vec<Range<u64>>, RunsError> {
        decode_runs(chunk, self.blocks)
    }
}

/// [`Bitmap::decode_runs`] for a device of `blocks` blocks.
///
/// # Errors
/// [`RunsError`] naming the byte.
pub fn decode_runs(chunk: &[u8], blocks: u64) -> Result<Vec<Range<u64>>, RunsError> {
    let kind = *chunk.first().ok_or(RunsError::Truncated { at: 0 })?;
    let mut at = 1;
    let first = match kind {
        KIND_RUNS | KIND_BITS => take_number(chunk, &mut at)?,
        kind => return Err(RunsError::Kind { kind }),
    };
    if first > blocks {
        return Err(RunsError::Beyond { end: first, blocks });
    }
    if kind == KIND_BITS {
        decode_bits(&chunk[at..], first, blocks)
    } else {
        decode_pairs(chunk, at, first, blocks)
    }
}

fn decode_pairs(
    chunk: &[u8],
    mut at: usize,
    first: u64,
    blocks: u64,
) -> Result<Vec<Range<u64>>, RunsError> {
    let mut runs = Vec::new();
    let mut position = first;
    while at < chunk.len() {
        let pair_at = at;
        let gap = take_number(chunk, &mut at)?;
        let length = take_number(chunk, &mut at)?;
        if length == 0 || (gap == 0 && !runs.is_empty()) {
            return Err(RunsError::EmptyRun { at: pair_at });
        }
        let start = position.saturating_add(gap);
        let end = start.saturating_add(length);
        if end > blocks {
            return Err(RunsError::Beyond { end, blocks });
        }
        runs.push(start..end);
        position = end;
    }
    Ok(runs)
}

fn decode_bits(bytes: &[u8], first: u64, blocks: u64) -> Result<Vec<Range<u64>>, RunsError> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (index, &byte) in bytes.iter().enumerate() {
        for bit in (0..8).filter(|bit| byte >> bit & 1 != 0) {
            let block = first + index as u64 * 8 + bit;
            if block >= blocks {
                return Err(RunsError::Beyond {
                    end: block + 1,
                    blocks,
                });
            }
            match runs.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
    }
    Ok(runs)
}

fn put_number(chunk: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        chunk.push(number as u8 | 0x80);
        number >>= 7;
    }
    chunk.push(number as u8);
}

fn take_number(chunk: &[u8], at: &mut usize) -> Result<u64, RunsError> {
    let start = *at;
    let mut number = 0u64;
    for shift in (0..NUMBER_BYTES as u32).map(|index| 7 * index) {
        let byte = *chunk.get(*at).ok_or(RunsError::Truncated { at: *at })?;
        *at += 1;
        let part = u64::from(byte & 0x7F);
        if part << shift >> shift != part || (byte == 0 && shift > 0) {
            return Err(RunsError::Number { at: start });
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(RunsError::Number { at: start })
}
