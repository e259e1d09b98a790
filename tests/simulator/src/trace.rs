//! What happened, for people (text, only when asked for) and for the determinism check (a hash, always).

use crate::queue::Micros;

/// Trace of a run.
#[derive(Default)]
pub struct Trace {
    /// Print lines as they come.
    pub print: bool,
    /// A sector whose changes are printed: volume, sector.
    pub watch: Option<(usize, u64)>,
    /// Keep lines.
    pub keep: bool,
    /// Kept lines.
    pub lines: Vec<String>,
    hash: u64,
}

impl Trace {
    /// True if anyone wants lines.
    #[must_use]
    pub fn wanted(&self) -> bool {
        self.print || self.keep
    }

    /// Adds a line if anyone wants it.
    pub fn line(&mut self, now: Micros, text: impl FnOnce() -> String) {
        if self.wanted() {
            let line = format!("{:>6}.{:06} {}", now / 1_000_000, now % 1_000_000, text());
            if self.print {
                println!("{line}");
            }
            if self.keep {
                self.lines.push(line);
            }
        }
    }

    /// Mixes numbers into the hash.
    pub fn mix(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.hash = (self.hash ^ number)
                .wrapping_mul(0x0100_0000_01B3)
                .rotate_left(23);
        }
    }

    /// Hash of everything so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }
}
