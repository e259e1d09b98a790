//! The memory of the load generator: which write of which block was issued, and which was acknowledged.
//!
//! An append-only file of 32-byte records after a 64-byte header, written without a buffer of our own: what was appended
//! survives the death of the generator (not of the machine). A record that the end of the file cuts short is dropped; a
//! damaged record before the end is an error, since nothing may be concluded from such a journal.
//!
//! Invariants: generations are unique within a journal and grow; a write is issued in the journal before its bytes leave,
//! acknowledged in the journal after its reply arrived.
//!
//! Header, little endian: magic 8, version 4, block bytes 4, seed 8, export bytes 8, zeroes 28, CRC32 4.
//! Record: kind 4 (1 issued, 2 acknowledged), zeroes 4, block 8, generation 8, zeroes 4, CRC32 4.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, bail, ensure};

const MAGIC: [u8; 8] = *b"QRBDJRNL";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const RECORD_BYTES: usize = 32;
const ISSUED: u32 = 1;
const ACKNOWLEDGED: u32 = 2;

/// What all writes of a journal have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Seed of the content.
    pub seed: u64,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Bytes of the export.
    pub export_bytes: u64,
}

impl Run {
    /// Blocks of the export; a tail shorter than a block is left alone.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.export_bytes / u64::from(self.block_bytes)
    }
}

/// What is known of one block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockHistory {
    /// Newest generation that was acknowledged, 0 if none.
    pub acknowledged: u64,
    /// Issued generations newer than `acknowledged`, oldest first.
    pub issued: Vec<u64>,
}

impl BlockHistory {
    /// Whether the block may hold `generation` now.
    #[must_use]
    pub fn allows(&self, generation: u64) -> bool {
        generation == self.acknowledged || self.issued.contains(&generation)
    }

    fn issue(&mut self, generation: u64) {
        self.issued.push(generation);
    }

    fn acknowledge(&mut self, generation: u64) {
        self.acknowledged = self.acknowledged.max(generation);
        self.issued.retain(|&issued| issued > self.acknowledged);
    }
}

/// Everything a journal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Header.
    pub run: Run,
    /// Blocks that were ever written.
    pub blocks: HashMap<u64, BlockHistory>,
    /// Largest generation issued, 0 if none.
    pub newest: u64,
    /// Number of acknowledged writes.
    pub acknowledged: u64,
}

impl History {
    fn new(run: Run) -> History {
        History {
            run,
            blocks: HashMap::new(),
            newest: 0,
            acknowledged: 0,
        }
    }

    /// Notes an issued write.
    pub fn issue(&mut self, block: u64, generation: u64) {
        self.newest = self.newest.max(generation);
        self.blocks.entry(block).or_default().issue(generation);
    }

    /// Notes an acknowledged write.
    pub fn acknowledge(&mut self, block: u64, generation: u64) {
        self.acknowledged += 1;
        self.blocks
            .entry(block)
            .or_default()
            .acknowledge(generation);
    }
}

/// Reads the journal at `path`.
///
/// # Errors
/// It cannot be read, is not a journal, or a record before its end is damaged.
pub fn read(path: &Path) -> anyhow::Result<History> {
    let file =
        File::open(path).with_context(|| format!("cannot open the journal {}", path.display()))?;
    read_from(file)
        .map(|(history, _)| history)
        .with_context(|| format!("journal {}", path.display()))
}

fn read_from(file: File) -> anyhow::Result<(History, u64)> {
    let length = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut header = [0; HEADER_BYTES];
    reader
        .read_exact(&mut header)
        .context("shorter than a header")?;
    let mut history = History::new(decode_header(&header)?);
    let records = (length - HEADER_BYTES as u64) / RECORD_BYTES as u64;
    let blocks = history.run.blocks();
    let mut record = [0; RECORD_BYTES];
    for number in 0..records {
        reader.read_exact(&mut record)?;
        let Some((kind, block, generation)) = decode_record(&record) else {
            bail!("record {number} of {records} is damaged");
        };
        ensure!(
            block < blocks,
            "record {number} names block {block} of {blocks}"
        );
        match kind {
            ISSUED => {
                ensure!(
                    generation > history.newest,
                    "record {number}: generation {generation} is not new"
                );
                history.issue(block, generation);
            }
            ACKNOWLEDGED => {
                let known = history
                    .blocks
                    .get(&block)
                    .is_some_and(|block| block.issued.contains(&generation));
                ensure!(
                    known,
                    "record {number}: generation {generation} of block {block} was never issued"
                );
                history.acknowledge(block, generation);
            }
            kind => bail!("record {number} is of unknown kind {kind}"),
        }
    }
    Ok((history, HEADER_BYTES as u64 + records * RECORD_BYTES as u64))
}

/// A journal that is open for appending.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// What it says up to now.
    pub history: History,
}

impl Journal {
    /// Opens the journal at `path` for a run, or begins it. An existing one must have the same seed, block size and export
    /// size; its writes count on.
    ///
    /// # Errors
    /// As [`read`], or the runs differ.
    pub fn open(path: &Path, run: Run) -> anyhow::Result<Journal> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("cannot open the journal {}", path.display()))?;
        if file.metadata()?.len() == 0 {
            file.write_all(&encode_header(run))?;
            return Ok(Journal {
                file,
                history: History::new(run),
            });
        }
        let (history, end) =
            read_from(file.try_clone()?).with_context(|| format!("journal {}", path.display()))?;
        ensure!(
            history.run == run,
            "the journal {} is of another run: {:?}, asked for {run:?}",
            path.display(),
            history.run
        );
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        Ok(Journal { file, history })
    }

    /// Notes that a write is about to be sent.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn issue(&mut self, block: u64, generation: u64) -> anyhow::Result<()> {
        self.file
            .write_all(&encode_record(ISSUED, block, generation))
            .context("cannot append to the journal")?;
        self.history.issue(block, generation);
        Ok(())
    }

    /// Notes that a write was acknowledged.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn acknowledge(&mut self, block: u64, generation: u64) -> anyhow::Result<()> {
        self.file
            .write_all(&encode_record(ACKNOWLEDGED, block, generation))
            .context("cannot append to the journal")?;
        self.history.acknowledge(block, generation);
        Ok(())
    }
}

fn seal(bytes: &mut [u8]) {
    let end = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
}

fn is_sealed(bytes: &[u8]) -> bool {
    let end = bytes.len() - 4;
    crc32fast::hash(&bytes[..end]).to_le_bytes() == bytes[end..]
}

fn encode_header(run: Run) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[0..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&run.block_bytes.to_le_bytes());
    bytes[16..24].copy_from_slice(&run.seed.to_le_bytes());
    bytes[24..32].copy_from_slice(&run.export_bytes.to_le_bytes());
    seal(&mut bytes);
    bytes
}

fn decode_header(bytes: &[u8; HEADER_BYTES]) -> anyhow::Result<Run> {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    ensure!(bytes[0..8] == MAGIC, "not a journal of qrbd-load");
    ensure!(
        half(8) == VERSION,
        "version {} (this program reads {VERSION})",
        half(8)
    );
    ensure!(is_sealed(bytes), "the header is damaged");
    let run = Run {
        block_bytes: half(12),
        seed: word(16),
        export_bytes: word(24),
    };
    ensure!(
        run.block_bytes >= 512 && run.block_bytes.is_multiple_of(512),
        "block size {}",
        run.block_bytes
    );
    Ok(run)
}

fn encode_record(kind: u32, block: u64, generation: u64) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[0..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&block.to_le_bytes());
    bytes[16..24].copy_from_slice(&generation.to_le_bytes());
    seal(&mut bytes);
    bytes
}

fn decode_record(bytes: &[u8; RECORD_BYTES]) -> Option<(u32, u64, u64)> {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let kind = u32::from_le_bytes(bytes[0..4].try_into().expect("four bytes"));
    is_sealed(bytes).then(|| (kind, word(8), word(16)))
}
