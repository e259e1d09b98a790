//! Random bits for generation identifiers and handles, from a seed that is passed in (SplitMix64 over a 128-bit state).

/// A generator seeded by the shell.
#[derive(Clone, Debug)]
pub struct Random {
    state: [u64; 2],
}

impl Random {
    /// From 128 random bits.
    #[must_use]
    pub fn new(seed: [u64; 2]) -> Self {
        Random { state: seed }
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.state[0] = self.state[0].wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state[0] ^ self.state[1].rotate_left(17);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
