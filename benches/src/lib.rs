//! What the benchmarks share: work that can be repeated, for criterion (`cargo bench -p qrbd-benches`) and for counting
//! instructions (`benches/instructions`).
//!
//! Owns a pair of engines without disks and network ([`pair::Pair`]) and the single parts ([`parts`]). What is measured is the
//! code's own work; what disks, QUIC and the kernel add is not in these figures and cannot be derived from them. All places
//! are drawn from fixed seeds: two runs do the same.

#![forbid(unsafe_code)]

pub mod pair;
pub mod parts;

/// A small generator of places, the same in each run.
#[derive(Clone, Debug)]
pub struct Places(u64);

impl Places {
    /// Starts at `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Places {
        Places(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The generator of Steele, Lea and Flood (splitmix64).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
