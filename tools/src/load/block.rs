//! Self-describing content of a block.
//!
//! Every 512-byte sector is complete in itself: magic, seed, block number, generation, its index within the block, a CRC32
//! over the sector, and a filler that differs from sector to sector and from generation to generation (so that neither
//! compression nor deduplication below can fake a write). So a block that mixes two writes, that was written to the wrong
//! place or that was damaged is told apart from one that merely is old.
//!
//! Sector layout, little endian: magic 8, seed 8, block 8, generation 8, sector index 4, CRC32 4 (taken with this field
//! zero), filler 472.

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;

const MAGIC: [u8; 8] = *b"QRBDLOAD";
const CRC_RANGE: std::ops::Range<usize> = 36..40;
const FILLER_START: usize = 40;

/// Fills `buffer` (one block, a multiple of 512 bytes) with generation `generation` of block `block`.
pub fn fill(buffer: &mut [u8], seed: u64, block: u64, generation: u64) {
    assert!(
        buffer.len().is_multiple_of(SECTOR_BYTES),
        "a block is whole sectors"
    );
    for (index, sector) in buffer.chunks_exact_mut(SECTOR_BYTES).enumerate() {
        sector[0..8].copy_from_slice(&MAGIC);
        sector[8..16].copy_from_slice(&seed.to_le_bytes());
        sector[16..24].copy_from_slice(&block.to_le_bytes());
        sector[24..32].copy_from_slice(&generation.to_le_bytes());
        sector[32..36].copy_from_slice(&(index as u32).to_le_bytes());
        sector[CRC_RANGE].fill(0);
        let mut random =
            Random::new(seed ^ block.rotate_left(24) ^ generation.rotate_left(48) ^ index as u64);
        for word in sector[FILLER_START..].chunks_exact_mut(8) {
            word.copy_from_slice(&random.draw().to_le_bytes());
        }
        let crc = crc32fast::hash(sector);
        sector[CRC_RANGE].copy_from_slice(&crc.to_le_bytes());
    }
}

/// What a block turned out to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Only zeroes: never written (or discarded).
    Zero,
    /// All sectors are of this generation.
    Whole(u64),
    /// Sectors of different generations; a sector of zeroes counts as generation 0. Smallest and largest.
    Mixed(u64, u64),
    /// Whole sectors, but of another block or another seed.
    Misplaced {
        /// Seed found.
        seed: u64,
        /// Block number found.
        block: u64,
    },
    /// A sector that is neither zero nor ours, or whose CRC is wrong.
    Damaged {
        /// Index of the first such sector within the block.
        sector: usize,
    },
}

/// Reads the content of `buffer`, which stands where block `block` of the run `seed` belongs.
#[must_use]
pub fn inspect(buffer: &[u8], seed: u64, block: u64) -> Content {
    let mut smallest = u64::MAX;
    let mut largest = 0;
    let mut any = false;
    for (index, sector) in buffer.chunks_exact(SECTOR_BYTES).enumerate() {
        let generation = if sector.iter().all(|&byte| byte == 0) {
            0
        } else {
            let Some(found) = Sector::read(sector) else {
                return Content::Damaged { sector: index };
            };
            if found.seed != seed || found.block != block || found.index as usize != index {
                return Content::Misplaced {
                    seed: found.seed,
                    block: found.block,
                };
            }
            any = true;
            found.generation
        };
        smallest = smallest.min(generation);
        largest = largest.max(generation);
    }
    match any {
        false => Content::Zero,
        true if smallest == largest => Content::Whole(largest),
        true => Content::Mixed(smallest, largest),
    }
}

struct Sector {
    seed: u64,
    block: u64,
    generation: u64,
    index: u32,
}

impl Sector {
    fn read(sector: &[u8]) -> Option<Sector> {
        if sector[0..8] != MAGIC {
            return None;
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&sector[..CRC_RANGE.start]);
        hasher.update(&[0; 4]);
        hasher.update(&sector[CRC_RANGE.end..]);
        if hasher.finalize().to_le_bytes() != sector[CRC_RANGE] {
            return None;
        }
        let word =
            |at: usize| u64::from_le_bytes(sector[at..at + 8].try_into().expect("eight bytes"));
        Some(Sector {
            seed: word(8),
            block: word(16),
            generation: word(24),
            index: u32::from_le_bytes(sector[32..36].try_into().expect("four bytes")),
        })
    }
}

/// Deterministic random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence that depends on `seed` alone.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }
}
