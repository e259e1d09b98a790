//! Two nodes with real (tiny) data, random faults, and the truth beside them: the verdict must never contradict it.

mod world;

use alloc::string::String;

use world::{Plant, World};

/// A small generator (SplitMix64): one seed, one run.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

const STEPS: usize = 300;

fn run(seed: u64, plant: Plant) -> Result<World, String> {
    let mut world = World::new(seed, plant);
    let result = (0..STEPS)
        .try_for_each(|_| world.step())
        .and_then(|()| world.settle());
    result.map_err(|text| alloc::format!("{text}\n{}", world.trace()))?;
    Ok(world)
}

#[test]
fn verdict_never_contradicts_the_truth() {
    let (mut resyncs, mut splits, mut in_sync) = (0, 0, 0);
    for seed in 0..2500 {
        match run(seed, Plant::Nothing) {
            Ok(world) => {
                resyncs += world.resyncs;
                splits += world.splits;
                in_sync += world.in_sync;
            }
            Err(text) => panic!("seed {seed}: {text}"),
        }
    }
    // The walk must really have been there.
    assert!(
        resyncs > 10_000 && splits > 1_000 && in_sync > 1_000,
        "{resyncs} resyncs, {splits} splits, {in_sync} in sync"
    );
}

#[test]
fn model_finds_every_planted_error() {
    for plant in Plant::ERRORS {
        let found = (0..4000).find_map(|seed| run(seed, *plant).err());
        assert!(found.is_some(), "{plant:?} was not found");
    }
}
