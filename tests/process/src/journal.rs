//! Judges what survived under protocols A and B: acknowledged writes may be missing, but only the last ones.
//!
//! The rule (order of dependent writes): if a write is there, every write that was acknowledged before the first one was issued is
//! there too. And nothing is there that was not written: no torn block, no foreign content.
//!
//! Reads `qrbd-load`'s journal record by record, since the order is the point: a header of 64 bytes, then records of 32 bytes (kind
//! 4 (1 issued, 2 acknowledged), zeroes 4, block 8, generation 8, zeroes 4, checksum 4; little endian). Checksums are left to
//! `qrbd-load`, which reads the same file.

use std::collections::HashMap;
use std::path::Path;

use qrbd_tools::load::block::{Content, inspect};

use crate::node::Node;

const HEADER_BYTES: usize = 64;
const RECORD_BYTES: usize = 32;
const ISSUED: u32 = 1;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survivors {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Blocks whose newest acknowledged write is missing.
    pub lost: u64,
}

/// One record with its number.
struct Record {
    issued: bool,
    block: u64,
    generation: u64,
}

/// Checks the whole export against a journal that was begun on a device of zeroes.
///
/// # Panics
/// If a block is torn, foreign or of a generation that was never issued, or if a write survived one that it came after.
#[track_caller]
pub fn assert_ordered_prefix(node: &Node, journal: &Path) -> Survivors {
    let bytes = std::fs::read(journal).expect("the journal can be read");
    let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (block_bytes, seed) = (half(12) as usize, word(16));
    let records: Vec<Record> = (0..(bytes.len() - HEADER_BYTES) / RECORD_BYTES)
        .map(|number| HEADER_BYTES + number * RECORD_BYTES)
        .map(|at| Record {
            issued: half(at) == ISSUED,
            block: word(at + 8),
            generation: word(at + 16),
        })
        .collect();

    let present = generations(node, block_bytes, seed);
    let mut issued_at: HashMap<(u64, u64), usize> = HashMap::new();
    for (number, record) in records
        .iter()
        .enumerate()
        .filter(|(_, record)| record.issued)
    {
        issued_at.insert((record.block, record.generation), number);
    }
    // The newest write that is there: everything acknowledged before it was issued must be there.
    let mut newest = 0;
    for (&block, &generation) in &present {
        let at = issued_at.get(&(block, generation));
        let at = at.unwrap_or_else(|| {
            panic!("block {block} holds generation {generation}, which was never issued for it")
        });
        newest = newest.max(*at);
    }
    let mut survivors = Survivors {
        acknowledged: 0,
        lost: 0,
    };
    let mut lost: HashMap<u64, bool> = HashMap::new();
    for (number, record) in records
        .iter()
        .enumerate()
        .filter(|(_, record)| !record.issued)
    {
        survivors.acknowledged += 1;
        let missing = present.get(&record.block).copied().unwrap_or(0) < record.generation;
        lost.insert(record.block, missing);
        assert!(
            !missing || number > newest,
            "record {number}: generation {} of block {} was acknowledged and is missing, although a write issued later (record {newest}) is there",
            record.generation,
            record.block
        );
    }
    survivors.lost = lost.values().filter(|&&missing| missing).count() as u64;
    survivors
}

/// The generation of each block that is not zero.
#[track_caller]
fn generations(node: &Node, block_bytes: usize, seed: u64) -> HashMap<u64, u64> {
    let mut client = node.client();
    let blocks = client.size() / block_bytes as u64;
    let per_read = ((1 << 20) / block_bytes) as u64;
    let mut present = HashMap::new();
    let mut first = 0;
    while first < blocks {
        let count = per_read.min(blocks - first);
        let mut buffer = vec![0; count as usize * block_bytes];
        client
            .read(first * block_bytes as u64, &mut buffer)
            .expect("the export can be read");
        for (block, content) in (first..).zip(buffer.chunks_exact(block_bytes)) {
            match inspect(content, seed, block) {
                Content::Zero => {}
                Content::Whole(generation) => {
                    present.insert(block, generation);
                }
                other => panic!("block {block} is torn or foreign: {other:?}"),
            }
        }
        first += count;
    }
    client.disconnect().expect("the session ends");
    present
}
