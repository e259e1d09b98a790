//! Micro benchmarks of the engine: `cargo bench -p qrbd-benches`.
//!
//! Owns the measuring ([`measure`]) and a pair of engines without disks and network ([`pair::Pair`]). What is measured is the
//! engine's own work; what disks, QUIC and the kernel add is not in these figures and cannot be derived from them.

#![forbid(unsafe_code)]

pub mod pair;

use std::time::{Duration, Instant};

const SAMPLES: usize = 7;
const SAMPLE: Duration = Duration::from_millis(200);

/// Calls `work` often enough and prints the median, the least and the most time of one unit, and units per second.
///
/// `work` does `units` units in one call.
pub fn measure(name: &str, units: u64, mut work: impl FnMut()) {
    // Warms up, and finds how many calls a sample takes.
    let mut calls = 1u64;
    loop {
        let begin = Instant::now();
        (0..calls).for_each(|_| work());
        let elapsed = begin.elapsed();
        if elapsed >= SAMPLE / 4 {
            let wanted = SAMPLE.as_secs_f64() / elapsed.as_secs_f64() * calls as f64;
            calls = (wanted.ceil() as u64).max(1);
            break;
        }
        calls *= 2;
    }
    let mut nanoseconds: Vec<f64> = (0..SAMPLES)
        .map(|_| {
            let begin = Instant::now();
            (0..calls).for_each(|_| work());
            begin.elapsed().as_nanos() as f64 / (calls * units) as f64
        })
        .collect();
    nanoseconds.sort_by(f64::total_cmp);
    let median = nanoseconds[SAMPLES / 2];
    println!(
        "{name:<58} {median:>10.1} ns  ({:.1} .. {:.1})  {:>12.0} per second",
        nanoseconds[0],
        nanoseconds[SAMPLES - 1],
        1e9 / median
    );
}

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
