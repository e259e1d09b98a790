//! Faults that a test can put between an endpoint and its socket: one-way partitions, loss, delay, a thin line.
//!
//! Production passes none and pays nothing. Loss follows a seed, so that a run can be repeated.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A handle on the faults of one endpoint; clones share them. Takes effect at once.
#[derive(Clone, Debug)]
pub struct Faults(Arc<State>);

#[derive(Debug)]
struct State {
    outbound_blocked: AtomicBool,
    inbound_blocked: AtomicBool,
    outbound_loss_per_million: AtomicU32,
    outbound_delay_us: AtomicU64,
    outbound_bytes_per_second: AtomicU64,
    random: AtomicU64,
}

impl Faults {
    /// No fault yet; losses will follow `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(State {
            outbound_blocked: AtomicBool::new(false),
            inbound_blocked: AtomicBool::new(false),
            outbound_loss_per_million: AtomicU32::new(0),
            outbound_delay_us: AtomicU64::new(0),
            outbound_bytes_per_second: AtomicU64::new(0),
            random: AtomicU64::new(seed),
        }))
    }

    /// Whether everything that is sent disappears.
    pub fn block_outbound(&self, blocked: bool) {
        self.0.outbound_blocked.store(blocked, Relaxed);
    }

    /// Whether everything that arrives is thrown away.
    pub fn block_inbound(&self, blocked: bool) {
        self.0.inbound_blocked.store(blocked, Relaxed);
    }

    /// How many of a million sent packets disappear.
    pub fn lose_outbound(&self, per_million: u32) {
        self.0.outbound_loss_per_million.store(per_million, Relaxed);
    }

    /// How long each sent packet is held back. Order is kept.
    pub fn delay_outbound(&self, delay: Duration) {
        self.0
            .outbound_delay_us
            .store(delay.as_micros() as u64, Relaxed);
    }

    /// How many bytes the line takes in a second; what is sent faster waits before it, without end. 0: any number.
    pub fn limit_outbound(&self, bytes_per_second: u64) {
        self.0
            .outbound_bytes_per_second
            .store(bytes_per_second, Relaxed);
    }

    /// How long the line is taken by so many bytes.
    pub(crate) fn time_on_the_line(&self, bytes: usize) -> Duration {
        match self.0.outbound_bytes_per_second.load(Relaxed) {
            0 => Duration::ZERO,
            rate => Duration::from_nanos(bytes as u64 * 1_000_000_000 / rate),
        }
    }

    pub(crate) fn inbound_blocked(&self) -> bool {
        self.0.inbound_blocked.load(Relaxed)
    }

    pub(crate) fn outbound_delay(&self) -> Duration {
        Duration::from_micros(self.0.outbound_delay_us.load(Relaxed))
    }

    /// Whether the packets of a batch meet different fates.
    pub(crate) fn divides_batches(&self) -> bool {
        self.0.outbound_loss_per_million.load(Relaxed) > 0
            || self.0.outbound_bytes_per_second.load(Relaxed) > 0
    }

    /// Whether the next sent packet disappears.
    pub(crate) fn drops_outbound(&self) -> bool {
        if self.0.outbound_blocked.load(Relaxed) {
            return true;
        }
        let per_million = self.0.outbound_loss_per_million.load(Relaxed);
        per_million > 0 && self.random() % 1_000_000 < u64::from(per_million)
    }

    /// SplitMix64.
    fn random(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut value = self.0.random.fetch_add(STEP, Relaxed).wrapping_add(STEP);
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }
}
