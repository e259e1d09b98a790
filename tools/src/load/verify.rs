//! Proves that every acknowledged write is still there.
//!
//! A block must hold, whole, the newest generation that was acknowledged or a newer one that was issued. A block that was
//! issued but never acknowledged may also be zero; a block that was never issued must be zero unless told otherwise.
//! Verdicts are made here; where the bytes come from is [`super::source`].

use std::fmt;

use super::block::{Content, inspect};
use super::journal::History;
use super::source::Source;

/// What is tolerated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tolerance {
    /// A block may mix generations if every one of them is allowed by itself: an unacknowledged write that a power loss
    /// tore. The death of a process alone tears nothing.
    pub torn_unacknowledged: bool,
    /// Blocks that were never issued may hold anything.
    pub foreign_content: bool,
}

/// How a block breaks the promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Older than acknowledged: a completed write is lost.
    Lost {
        /// Generation found (0: zeroes).
        found: u64,
        /// Generation acknowledged.
        acknowledged: u64,
    },
    /// A generation that was never issued for the block.
    Unissued {
        /// Generation found.
        found: u64,
    },
    /// Sectors of several generations.
    Mixed {
        /// Smallest found.
        smallest: u64,
        /// Largest found.
        largest: u64,
        /// Generation acknowledged.
        acknowledged: u64,
    },
    /// Content of another block or run.
    Misplaced {
        /// Seed found.
        seed: u64,
        /// Block found.
        block: u64,
    },
    /// Neither zero nor whole.
    Damaged {
        /// First bad sector of the block.
        sector: usize,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Lost {
                found: 0,
                acknowledged,
            } => {
                write!(
                    f,
                    "acknowledged write lost: holds zeroes, acknowledged generation {acknowledged}"
                )
            }
            Violation::Lost {
                found,
                acknowledged,
            } => {
                write!(
                    f,
                    "acknowledged write lost: holds generation {found}, acknowledged generation {acknowledged}"
                )
            }
            Violation::Unissued { found } => {
                write!(f, "holds generation {found}, which was never issued for it")
            }
            Violation::Mixed {
                smallest,
                largest,
                acknowledged,
            } => write!(
                f,
                "mixes sectors of generations {smallest}..={largest}, acknowledged generation {acknowledged}"
            ),
            Violation::Misplaced { seed, block } => {
                write!(f, "holds block {block} of run {seed:#x}")
            }
            Violation::Damaged { sector } => write!(f, "sector {sector} is neither zero nor whole"),
        }
    }
}

/// Result of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Blocks looked at.
    pub blocks: u64,
    /// Blocks with an acknowledged write.
    pub acknowledged: u64,
    /// Blocks that hold a write that was issued but not acknowledged.
    pub newer: u64,
    /// Number of violations.
    pub violations: u64,
    /// The first of them, with block numbers.
    pub first: Vec<(u64, Violation)>,
}

/// Violations that a report keeps.
pub const REPORTED_VIOLATIONS: usize = 20;

/// Judges what one block holds.
#[must_use]
pub fn judge(
    history: &History,
    block: u64,
    content: &Content,
    tolerance: Tolerance,
) -> Option<Violation> {
    let known = history.blocks.get(&block);
    if known.is_none() && tolerance.foreign_content {
        return None;
    }
    let acknowledged = known.map_or(0, |known| known.acknowledged);
    let allows = |generation| known.map_or(generation == 0, |known| known.allows(generation));
    let wrong = |found| {
        if found < acknowledged {
            Violation::Lost {
                found,
                acknowledged,
            }
        } else {
            Violation::Unissued { found }
        }
    };
    match *content {
        Content::Zero => (!allows(0)).then(|| wrong(0)),
        Content::Whole(found) => (!allows(found)).then(|| wrong(found)),
        Content::Mixed(smallest, largest) => {
            let tolerated = tolerance.torn_unacknowledged && allows(smallest) && allows(largest);
            (!tolerated).then_some(Violation::Mixed {
                smallest,
                largest,
                acknowledged,
            })
        }
        Content::Misplaced { seed, block } => Some(Violation::Misplaced { seed, block }),
        Content::Damaged { sector } => Some(Violation::Damaged { sector }),
    }
}

/// Reads the whole of `source` and judges each block; `progress` sees the blocks done.
///
/// # Errors
/// The source is shorter than the journal says, or a read failed.
pub fn verify(
    source: &mut dyn Source,
    history: &History,
    tolerance: Tolerance,
    mut progress: impl FnMut(u64),
) -> anyhow::Result<Report> {
    let run = history.run;
    anyhow::ensure!(
        source.bytes() >= run.export_bytes,
        "the device has {} bytes, the journal is of an export of {}",
        source.bytes(),
        run.export_bytes
    );
    let block_bytes = run.block_bytes as usize;
    let blocks_per_read = ((1 << 20) / block_bytes).max(1);
    let mut buffer = vec![0; blocks_per_read * block_bytes];
    let mut report = Report::default();
    while report.blocks < run.blocks() {
        let count = (run.blocks() - report.blocks).min(blocks_per_read as u64) as usize;
        let chunk = &mut buffer[..count * block_bytes];
        source.read(report.blocks * block_bytes as u64, chunk)?;
        for bytes in chunk.chunks_exact(block_bytes) {
            let block = report.blocks;
            let content = inspect(bytes, run.seed, block);
            let acknowledged = history
                .blocks
                .get(&block)
                .map_or(0, |known| known.acknowledged);
            report.acknowledged += u64::from(acknowledged > 0);
            match judge(history, block, &content, tolerance) {
                Some(violation) => {
                    report.violations += 1;
                    if report.first.len() < REPORTED_VIOLATIONS {
                        report.first.push((block, violation));
                    }
                }
                None => {
                    report.newer +=
                        u64::from(matches!(content, Content::Whole(found) if found > acknowledged))
                }
            }
            report.blocks += 1;
        }
        progress(report.blocks);
    }
    Ok(report)
}
