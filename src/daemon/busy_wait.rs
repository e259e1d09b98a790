//! Looking again instead of sleeping, where what is waited for comes within microseconds.
//!
//! A thread that sleeps is woken through the scheduler and, where nothing else ran, out of the processor's idle state: tens of
//! microseconds in a virtual machine, five times for each write that a client waits for. While waits of late were short, the thread
//! therefore looks at its descriptors again and again for a while before it sleeps.
//!
//! It costs others little: with nothing to do it gives the processor away each time, so that the client, the peer's daemon on the same
//! machine or a worker of the kernel runs at once; it does so only while little is under way, since with much there is always something to
//! do; and what was in vain a few times is given up until waits are short again. An idle daemon never does it.
//!
//! Two parts: [`Waits`] learns how long one resource waits and decides, [`BusyWait`] keeps the thread's runtime awake.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sched::sched_yield;
use tokio::sync::Notify;

/// With more than this under way, throughput counts: whoever has something to do needs the processor more.
const FEW_UNDER_WAY: usize = 4;
/// So much confidence makes looking again worth it; a wait that was short adds one.
const CONFIDENT: u32 = 8;
/// Confidence does not go beyond this.
const MOST_CONFIDENT: u32 = 32;
/// What a wait that was too long takes away.
const DISAPPOINTMENT: u32 = 6;

thread_local! {
    static HAPPENING: Cell<bool> = const { Cell::new(false) };
}

/// This thread has something to do, perhaps in a task that is only about to become ready: it keeps the processor for now.
pub(crate) fn something_happens() {
    HAPPENING.set(true);
}

/// Keeps the thread's runtime from sleeping. Its invariant: `until` is `None` exactly while the task sleeps or is about to.
#[derive(Debug)]
pub(crate) struct BusyWait {
    limit: Duration,
    until: Cell<Option<Instant>>,
    work: Notify,
}

impl BusyWait {
    /// Looks again for `limit` at most; never, if that is zero or if there is one processor only, which who is waited for needs. Must
    /// be called where local tasks can be spawned.
    pub(crate) fn start(limit: Duration) -> Rc<Self> {
        let alone = std::thread::available_parallelism().is_ok_and(|count| count.get() == 1);
        Self::start_on_several(if alone { Duration::ZERO } else { limit })
    }

    fn start_on_several(limit: Duration) -> Rc<Self> {
        let busy_wait = Self::new(limit);
        if !limit.is_zero() {
            tokio::task::spawn_local(Rc::clone(&busy_wait).run());
        }
        busy_wait
    }

    fn new(limit: Duration) -> Rc<Self> {
        Rc::new(BusyWait {
            limit,
            until: Cell::default(),
            work: Notify::new(),
        })
    }

    async fn run(self: Rc<Self>) {
        loop {
            self.work.notified().await;
            while self.until.get().is_some_and(|until| Instant::now() < until) {
                if !HAPPENING.replace(false) {
                    let _ = sched_yield();
                }
                // When every task that is ready has run, the runtime looks at its descriptors without waiting and comes back.
                tokio::task::yield_now().await;
            }
            self.until.set(None);
        }
    }

    fn look_until(&self, time: Instant) {
        if self.until.replace(Some(time)).is_none() {
            self.work.notify_one();
        }
    }
}

/// How long one resource waits for something to do.
#[derive(Debug)]
pub(crate) struct Waits {
    busy_wait: Rc<BusyWait>,
    idle_since: Option<Instant>,
    confidence: u32,
    /// The most that was under way of late.
    most_under_way: usize,
}

impl Waits {
    pub(crate) fn new(busy_wait: Rc<BusyWait>) -> Self {
        Waits {
            busy_wait,
            idle_since: None,
            confidence: 0,
            most_under_way: 0,
        }
    }

    /// There is nothing to do, and so many operations of clients and disks are under way.
    pub(crate) fn idle(&mut self, under_way: usize) {
        if self.busy_wait.limit.is_zero() || self.idle_since.is_some() {
            return;
        }
        let now = Instant::now();
        if let Some(until) = self.idle_at(now, under_way) {
            self.busy_wait.look_until(until);
        }
    }

    /// There was something to do.
    pub(crate) fn worked(&mut self, under_way: usize) {
        self.most_under_way = self.most_under_way.max(under_way);
        if self.idle_since.is_some() {
            self.worked_at(Instant::now());
        }
    }

    /// Until when to look again.
    fn idle_at(&mut self, now: Instant, under_way: usize) -> Option<Instant> {
        self.idle_since = Some(now);
        let few = self.most_under_way.max(under_way) <= FEW_UNDER_WAY;
        // Not forgotten at once: between two batches of many there is a moment with nothing under way.
        self.most_under_way = under_way.max(self.most_under_way.saturating_sub(1));
        (few && self.confidence >= CONFIDENT).then(|| now + self.busy_wait.limit)
    }

    fn worked_at(&mut self, now: Instant) {
        let Some(since) = self.idle_since.take() else {
            return;
        };
        let short = now.saturating_duration_since(since) <= self.busy_wait.limit;
        self.confidence = if short {
            (self.confidence + 1).min(MOST_CONFIDENT)
        } else {
            self.confidence.saturating_sub(DISAPPOINTMENT)
        };
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::LocalOptions;

    use super::*;

    const LIMIT: Duration = Duration::from_micros(200);

    /// Waits of a thread whose runtime is not there: decisions alone.
    fn waits() -> Waits {
        Waits::new(BusyWait::new(LIMIT))
    }

    /// One wait; whether it was spent looking.
    fn wait(waits: &mut Waits, now: &mut Instant, length: Duration, under_way: usize) -> bool {
        waits.most_under_way = waits.most_under_way.max(under_way);
        let looked = waits.idle_at(*now, under_way);
        assert!(looked.is_none_or(|until| until == *now + LIMIT));
        *now += length;
        waits.worked_at(*now);
        looked.is_some()
    }

    #[test]
    fn short_waits_earn_looking_again_and_long_ones_end_it() {
        let (mut waits, mut now) = (waits(), Instant::now());
        let mut looks = |length, times| {
            (0..times)
                .filter(|_| wait(&mut waits, &mut now, length, 1))
                .count()
        };
        let (short, long) = (LIMIT / 4, 10 * LIMIT);
        assert_eq!(looks(short, CONFIDENT), 0);
        assert_eq!(looks(short, 100), 100);
        // At most so often in vain.
        assert!(looks(long, 100) <= 5);
        assert_eq!(looks(short, CONFIDENT), 0);
        assert_eq!(looks(short, 100), 100);
    }

    #[test]
    fn an_idle_resource_never_looks_again() {
        let (mut waits, mut now) = (waits(), Instant::now());
        let looked = (0..1000).any(|_| {
            // A ping and its answer, then nothing for long.
            wait(&mut waits, &mut now, LIMIT / 4, 0)
                | wait(&mut waits, &mut now, LIMIT / 4, 0)
                | wait(&mut waits, &mut now, Duration::from_secs(3), 0)
        });
        assert!(!looked);
    }

    #[test]
    fn with_much_under_way_the_processor_is_left_to_others_also_between_two_batches() {
        let (mut waits, mut now) = (waits(), Instant::now());
        let mut looks = |under_way| wait(&mut waits, &mut now, LIMIT / 4, under_way);
        (0..100).for_each(|_| assert!(!looks(32)));
        assert!(!looks(0));
        assert!(!looks(32));
        // Fewer by and by.
        assert_eq!((0..32).filter(|_| looks(1)).count(), FEW_UNDER_WAY);
        assert!(looks(1));
    }

    #[test]
    fn the_runtime_looks_as_long_as_it_was_told_and_sleeps_afterwards() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .unwrap();
        runtime.block_on(async {
            let busy_wait = BusyWait::start_on_several(LIMIT);
            for _ in 0..3 {
                busy_wait.look_until(Instant::now() + Duration::from_millis(20));
                tokio::task::yield_now().await;
                assert!(busy_wait.until.get().is_some());
                tokio::time::timeout(Duration::from_secs(20), async {
                    while busy_wait.until.get().is_some() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                })
                .await
                .expect("it looks for ever");
            }
        });
    }
}
