//! Looking again instead of sleeping, where what is waited for comes within microseconds.
//!
//! A thread that sleeps is woken through the scheduler and, where nothing else ran, out of the processor's idle state: tens of
//! microseconds in a virtual machine, five times for each write that a client waits for. While waits of late were short, the thread
//! therefore looks at its descriptors again and again for a while before it sleeps.
//!
//! It costs others little: with nothing to do it gives the processor away each time, so that the client, the peer's daemon on the same
//! machine or a worker of the kernel runs at once; with much under way, where throughput counts, it is given up for a while where others
//! want the processor; and what was in vain a few times is given up until waits are short again. An idle daemon never does it.
//!
//! With much under way it is not the waking that costs most. A client and a daemon that wake each other are put on one processor by the
//! kernel, in turns, while the next one idles: all requests arrive together and are answered together. One that does not sleep is moved
//! within milliseconds; where there is no idle processor, that is found out soon ([`Toll`]).
//!
//! Two parts: [`Waits`] learns how long one resource waits and decides, [`BusyWait`] keeps the thread's runtime awake.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sched::sched_yield;
use tokio::sync::Notify;

/// With more than this under way, throughput counts: whoever has something to do needs the processor more.
const FEW_UNDER_WAY: usize = 4;
/// With more under way the disk takes longer: so many times as long is looked.
const MUCH_TAKES_LONGER: u32 = 3;
/// Who gave the processor away and has it back only now was displaced.
const DISPLACED: Duration = Duration::from_micros(10);
/// With much under way, so much looking is judged at once,
const JUDGED: Duration = Duration::from_millis(30);
/// too much if this part of it, one of so many, was spent displaced;
const TOO_MUCH: u32 = 3;
/// then nothing is looked for so long, at first; each time twice as long,
const REST: Duration = Duration::from_millis(100);
/// up to this.
const LONGEST_REST: Duration = Duration::from_millis(1600);
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

/// Whether looking with much under way takes the processor from others.
#[derive(Debug)]
struct Toll {
    looked: Duration,
    displaced: Duration,
    rests_until: Option<Instant>,
    rest: Duration,
}

impl Toll {
    fn new() -> Self {
        Toll {
            looked: Duration::ZERO,
            displaced: Duration::ZERO,
            rests_until: None,
            rest: REST,
        }
    }

    /// True while nothing is looked for.
    fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    /// The processor was given away until `now`, for so long.
    fn gave_away(&mut self, now: Instant, time: Duration) {
        self.looked += time;
        if time > DISPLACED {
            self.displaced += time;
        }
        if self.looked < JUDGED {
            return;
        }
        if self.displaced * TOO_MUCH > self.looked {
            self.rests_until = Some(now + self.rest);
            self.rest = (self.rest * 2).min(LONGEST_REST);
        } else {
            self.rest = REST;
        }
        (self.looked, self.displaced) = (Duration::ZERO, Duration::ZERO);
    }
}

/// Keeps the thread's runtime from sleeping. Its invariant: `until` is `None` exactly while the task sleeps or is about to.
#[derive(Debug)]
pub(crate) struct BusyWait {
    limit: Duration,
    until: Cell<Option<Instant>>,
    /// Much is under way.
    much: Cell<bool>,
    toll: RefCell<Toll>,
    work: Notify,
}

impl BusyWait {
    /// Looks again for `limit` at most, or [`MUCH_TAKES_LONGER`] times as long; never, if that is zero or if there is one processor only,
    /// which who is waited for needs. Must be called where local tasks can be spawned.
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
            much: Cell::default(),
            toll: RefCell::new(Toll::new()),
            work: Notify::new(),
        })
    }

    async fn run(self: Rc<Self>) {
        loop {
            self.work.notified().await;
            loop {
                let now = Instant::now();
                if self.until.get().is_none_or(|until| now >= until) {
                    break;
                }
                if !HAPPENING.replace(false) {
                    let _ = sched_yield();
                    if self.much.get() {
                        let back = Instant::now();
                        let mut toll = self.toll.borrow_mut();
                        toll.gave_away(back, back - now);
                        if toll.rests(back) {
                            break;
                        }
                    }
                }
                // When every task that is ready has run, the runtime looks at its descriptors without waiting and comes back.
                tokio::task::yield_now().await;
            }
            self.until.set(None);
        }
    }

    fn look_until(&self, now: Instant, time: Instant, much: bool) {
        if much && self.toll.borrow().rests(now) {
            return;
        }
        self.much.set(much);
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
    /// With little and with much under way.
    confidence: [u32; 2],
    /// Much is under way in the wait that is on.
    much: bool,
    /// The most that was under way of late.
    most_under_way: usize,
}

impl Waits {
    pub(crate) fn new(busy_wait: Rc<BusyWait>) -> Self {
        Waits {
            busy_wait,
            idle_since: None,
            confidence: [0; 2],
            much: false,
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
            self.busy_wait.look_until(now, until, self.much);
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
        self.much = self.most_under_way.max(under_way) > FEW_UNDER_WAY;
        // Not forgotten at once: between two batches of many there is a moment with nothing under way.
        self.most_under_way = under_way.max(self.most_under_way.saturating_sub(1));
        (self.confidence[usize::from(self.much)] >= CONFIDENT).then(|| now + self.limit())
    }

    fn limit(&self) -> Duration {
        self.busy_wait.limit * if self.much { MUCH_TAKES_LONGER } else { 1 }
    }

    fn worked_at(&mut self, now: Instant) {
        let Some(since) = self.idle_since.take() else {
            return;
        };
        let short = now.saturating_duration_since(since) <= self.limit();
        let confidence = &mut self.confidence[usize::from(self.much)];
        *confidence = if short {
            (*confidence + 1).min(MOST_CONFIDENT)
        } else {
            confidence.saturating_sub(DISAPPOINTMENT)
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
        let limit = if waits.much {
            MUCH_TAKES_LONGER * LIMIT
        } else {
            LIMIT
        };
        assert!(looked.is_none_or(|until| until == *now + limit));
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
    fn with_much_under_way_longer_waits_are_short_and_have_their_own_confidence() {
        let (mut waits, mut now) = (waits(), Instant::now());
        let mut looks = |length, under_way| wait(&mut waits, &mut now, length, under_way);
        (0..CONFIDENT).for_each(|_| assert!(!looks(2 * LIMIT, 32)));
        assert!(looks(2 * LIMIT, 32));
        // Between two batches there is a moment with nothing under way: that is no other kind of wait.
        assert!(looks(2 * LIMIT, 0));
        // Fewer by and by; with few, such waits are too long.
        (0..32).for_each(|_| _ = looks(2 * LIMIT, 1));
        assert!((0..20).all(|_| !looks(2 * LIMIT, 1)));
        assert!(looks(2 * LIMIT, 32));
    }

    #[test]
    fn who_takes_the_processor_from_others_rests_longer_each_time() {
        let (mut toll, mut now) = (Toll::new(), Instant::now());
        let mut look = |toll: &mut Toll, others: Duration| {
            let free = Duration::from_micros(1);
            for _ in 0..JUDGED.as_micros() {
                now += free + others;
                toll.gave_away(now, free);
                toll.gave_away(now, others);
                if toll.rests(now) {
                    let until = toll.rests_until.expect("it rests");
                    return until - std::mem::replace(&mut now, until);
                }
            }
            Duration::ZERO
        };
        let nobody = Duration::from_nanos(200);
        assert_eq!(look(&mut toll, nobody), Duration::ZERO);
        for rest in [1, 2, 4, 8, 16, 16] {
            assert_eq!(look(&mut toll, 2 * DISPLACED), rest * REST);
        }
        assert_eq!(LONGEST_REST, 16 * REST);
        assert_eq!(look(&mut toll, nobody), Duration::ZERO);
        assert_eq!(look(&mut toll, 2 * DISPLACED), REST, "all is forgiven");
    }

    #[test]
    fn nothing_is_looked_for_during_a_rest_with_much_under_way() {
        let (busy_wait, now) = (BusyWait::new(LIMIT), Instant::now());
        busy_wait.toll.borrow_mut().rests_until = Some(now + REST);
        busy_wait.look_until(now, now + LIMIT, true);
        assert!(busy_wait.until.get().is_none());
        busy_wait.look_until(now, now + LIMIT, false);
        assert!(
            busy_wait.until.get().is_some(),
            "with little there is no toll"
        );
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
                let now = Instant::now();
                busy_wait.look_until(now, now + Duration::from_millis(20), false);
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
