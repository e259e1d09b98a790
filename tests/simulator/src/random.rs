//! The only source of chance: a splitmix64 generator per concern, all derived from the run's seed.
//!
//! Invariant: the same seed and the same sequence of calls give the same numbers on every machine.

/// A small deterministic generator.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        let mut random = Random(seed ^ 0x6A09_E667_F3BC_C908);
        random.bits();
        random
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }

    /// An independent generator.
    pub fn fork(&mut self) -> Random {
        Random::new(self.bits())
    }

    /// A number in `0..end`. Panics if `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0);
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// A number in `first..=last`.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    /// True with the probability `per_mille` / 1000.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of `items`. Panics if there is none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// An index of `weights` with a probability in proportion to its weight.
    pub fn weighted(&mut self, weights: &[u64]) -> usize {
        let mut rest = self.below(weights.iter().sum());
        for (index, &weight) in weights.iter().enumerate() {
            if rest < weight {
                return index;
            }
            rest -= weight;
        }
        unreachable!("the rest is below the sum")
    }

    /// A delay between `least` and `most` whose logarithm is evenly spread: mostly short, sometimes long.
    pub fn delay(&mut self, least: u64, most: u64) -> u64 {
        let ratio = (most / least.max(1)).max(1);
        let steps = u64::from(64 - ratio.leading_zeros());
        let top = (least << self.below(steps)).min(most);
        self.between(least, top.max(least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_numbers() {
        let numbers = |seed| {
            let mut random = Random::new(seed);
            (0..100).map(|_| random.bits()).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
    }

    #[test]
    fn delays_stay_within_their_bounds() {
        let mut random = Random::new(1);
        for _ in 0..10_000 {
            assert!((50..=3000).contains(&random.delay(50, 3000)));
        }
        assert_eq!(random.delay(5, 5), 5);
    }
}
