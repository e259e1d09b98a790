//! The controller on a link that is calculated: nothing here takes time, and each run is the same.

use std::collections::VecDeque;

use super::*;

const LOCAL: u64 = 2 << 20;
const PACKET: u64 = 1452;
/// Packets that an acknowledgement covers.
const BATCH: usize = 16;

fn controller(now: Instant) -> Adaptive {
    let factory = AdaptiveFactory {
        local_window_bytes: LOCAL,
        most_window_bytes: 64 << 20,
    };
    *Arc::new(factory)
        .build(now, PACKET as u16)
        .into_any()
        .downcast()
        .expect("the factory's own")
}

#[derive(Clone, Copy)]
struct Link {
    bytes_per_second: u64,
    round_trip: Duration,
    queue: Duration,
    /// One packet in so many is lost at random.
    loses_one_in: Option<u64>,
    /// The node at the other end gets its processor after pauses of any length up to this.
    pauses: Duration,
}

fn link(megabits: u64, round_trip_us: u64, queue_ms: u64) -> Link {
    Link {
        bytes_per_second: megabits * 125_000,
        round_trip: Duration::from_micros(round_trip_us),
        queue: Duration::from_millis(queue_ms),
        loses_one_in: None,
        pauses: Duration::ZERO,
    }
}

/// What came of a while.
#[derive(Debug)]
struct Outcome {
    /// Part of the link that was used.
    used: f64,
    /// Longest wait at the line.
    queue: Duration,
    /// Part of the packets that the queue had no room for.
    overflowed: f64,
}

/// A sender that always has more, on a link whose properties may change.
struct Run {
    controller: Adaptive,
    link: Link,
    start: Instant,
    now: Instant,
    line_free: Instant,
    /// When the other node looks at what arrived.
    awake_at: Instant,
    /// In the order of arrival: when what is known of the packet arrives, when it was sent, whether it was lost.
    under_way: VecDeque<(Instant, Instant, bool)>,
    /// Packets that the owner has for sending at once at most; `None`: no end of them.
    depth: Option<usize>,
    random: u64,
    sent: u64,
    overflowed: u64,
    longest_queue: Duration,
}

impl Run {
    fn new(link: Link) -> Self {
        let now = Instant::now();
        Run {
            controller: controller(now),
            link,
            start: now,
            now,
            line_free: now,
            awake_at: now,
            under_way: VecDeque::new(),
            depth: None,
            random: 7,
            sent: 0,
            overflowed: 0,
            longest_queue: Duration::ZERO,
        }
    }

    fn random(&mut self) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.random >> 33
    }

    fn send(&mut self) {
        let most = self.depth.unwrap_or(usize::MAX);
        while (self.under_way.len() as u64 + 1) * PACKET < self.controller.window()
            && self.under_way.len() < most
        {
            self.controller.on_sent(self.now, PACKET, 0);
            self.sent += 1;
            let wait = self.line_free.saturating_duration_since(self.now);
            let random = self.random();
            let unlucky = self
                .link
                .loses_one_in
                .is_some_and(|many| random.is_multiple_of(many));
            let full = wait > self.link.queue;
            if full {
                self.overflowed += 1;
            } else {
                self.longest_queue = self.longest_queue.max(wait);
                let nanos = PACKET * 1_000_000_000 / self.link.bytes_per_second;
                self.line_free = self.line_free.max(self.now) + Duration::from_nanos(nanos);
            }
            let arrived = self.line_free + self.link.round_trip;
            if !self.link.pauses.is_zero() {
                while self.awake_at < arrived {
                    let micros = self.link.pauses.as_micros() as u64;
                    let pause = self.random() % micros;
                    self.awake_at += Duration::from_micros(pause);
                }
            }
            let known = arrived
                .max(self.awake_at)
                .max(self.under_way.back().map_or(self.now, |last| last.0));
            self.under_way.push_back((known, self.now, full || unlucky));
        }
    }

    fn acknowledge(&mut self) {
        let count = BATCH.min(self.under_way.len());
        self.now = self.under_way[count - 1].0.max(self.now);
        let mut lost = (0, None);
        for (_, sent, was_lost) in self.under_way.drain(..count) {
            if was_lost {
                lost = (lost.0 + PACKET, Some(sent));
            } else {
                self.controller.acknowledged(self.now, sent, PACKET);
            }
        }
        let in_flight = self.under_way.len() as u64 * PACKET;
        self.controller
            .on_end_acks(self.now, in_flight, false, None);
        if let (bytes, Some(sent)) = lost {
            self.controller
                .on_congestion_event(self.now, sent, false, bytes);
        }
    }

    fn go_on(&mut self, seconds: u64) -> Outcome {
        let begun = self.now;
        let until = begun + Duration::from_secs(seconds);
        (self.sent, self.overflowed, self.longest_queue) = (0, 0, Duration::ZERO);
        let busy = self.line_free;
        while self.now < until {
            self.send();
            self.acknowledge();
        }
        let carried = (self.sent - self.overflowed) * PACKET;
        let time = self.line_free.saturating_duration_since(busy.max(begun));
        let time = time.max(self.now - begun);
        Outcome {
            used: carried as f64 / (time.as_secs_f64() * self.link.bytes_per_second as f64),
            queue: self.longest_queue,
            overflowed: self.overflowed as f64 / self.sent as f64,
        }
    }
}

#[test]
fn links_of_every_length_and_rate_are_filled_with_a_short_queue() {
    for (megabits, round_trip_us) in [
        (100, 1_000),
        (100, 10_000),
        (100, 50_000),
        (1_000, 1_000),
        (1_000, 10_000),
        (1_000, 50_000),
        (2_500, 100_000),
    ] {
        let mut run = Run::new(link(megabits, round_trip_us, 100));
        run.go_on(5);
        // Longer than the delay is remembered: the queue has been drained in between.
        let outcome = run.go_on(30);
        let what = format!("{megabits} Mbit/s, {round_trip_us} us: {outcome:?}");
        assert!(outcome.used >= 0.95, "{what}");
        assert!(outcome.overflowed == 0.0, "{what}");
        assert!(outcome.queue <= Duration::from_millis(40), "{what}");
    }
}

#[test]
fn local_link_has_its_whole_window_after_a_few_round_trips_and_keeps_it() {
    let mut run = Run::new(link(10_000, 60, 100));
    while run.controller.window() < LOCAL {
        run.send();
        run.acknowledge();
        assert!(run.now - run.start < Duration::from_millis(10));
    }
    for _ in 0..25 {
        run.go_on(1);
        assert!(
            (LOCAL..LOCAL * 2).contains(&run.controller.window()),
            "{} after {:?}",
            run.controller.window(),
            run.now - run.start
        );
    }
}

#[test]
fn busy_processors_do_not_shrink_the_window_of_a_local_link() {
    let mut run = Run::new(link(10_000, 60, 100));
    run.go_on(1);
    // Nothing is answered for long, whatever is sent.
    run.link.round_trip = Duration::from_millis(60);
    for _ in 0..8 {
        run.go_on(1);
        assert!(run.controller.window() >= LOCAL / 2);
    }
}

#[test]
fn one_packet_in_a_hundred_lost_at_random_leaves_the_link_full() {
    for round_trip_us in [1_000, 10_000, 50_000] {
        let mut run = Run::new(Link {
            loses_one_in: Some(100),
            ..link(1_000, round_trip_us, 100)
        });
        run.go_on(2);
        let outcome = run.go_on(10);
        assert!(outcome.used >= 0.9, "{round_trip_us} us: {outcome:?}");
    }
}

#[test]
fn queue_shorter_than_ours_is_respected_and_the_link_still_used() {
    for round_trip_us in [1_000, 10_000, 50_000] {
        let mut run = Run::new(link(1_000, round_trip_us, 3));
        run.go_on(3);
        let outcome = run.go_on(10);
        assert!(outcome.used >= 0.85, "{round_trip_us} us: {outcome:?}");
        assert!(
            outcome.overflowed <= 0.05,
            "{round_trip_us} us: {outcome:?}"
        );
    }
}

#[test]
fn link_that_becomes_slower_or_longer_or_faster_is_believed() {
    let mut run = Run::new(link(1_000, 10_000, 1_000));
    run.go_on(5);
    run.link.bytes_per_second /= 10;
    run.go_on(5);
    let slower = run.go_on(10);
    assert!(slower.used >= 0.9, "{slower:?}");
    assert!(slower.queue <= Duration::from_millis(40), "{slower:?}");
    run.link.bytes_per_second *= 10;
    run.go_on(3);
    let faster = run.go_on(5);
    assert!(faster.used >= 0.9, "{faster:?}");
    run.link.round_trip *= 5;
    run.go_on(30);
    let longer = run.go_on(5);
    assert!(longer.used >= 0.9, "{longer:?}");
}

#[test]
fn sender_with_little_to_send_keeps_the_window_that_it_had() {
    let mut run = Run::new(link(1_000, 50_000, 100));
    run.go_on(5);
    let before = run.controller.window();
    run.depth = Some(1);
    run.go_on(60);
    assert!(run.controller.window() >= before / 4 * 3);
    run.depth = None;
    assert!(run.go_on(2).used >= 0.9);
}

#[test]
fn link_that_nothing_is_known_of_is_taken_for_a_thin_one() {
    for round_trip_us in [60, 50_000] {
        let mut run = Run::new(link(1_000, round_trip_us, 100));
        run.depth = Some(4);
        run.go_on(1);
        assert_eq!(run.controller.window(), LEAST_WINDOW_BYTES);
    }
}

#[test]
fn thin_link_is_filled_and_what_is_in_flight_passes_it_within_a_third_of_a_second() {
    for round_trip_us in [100, 1_000, 5_000] {
        let mut run = Run::new(link(8, round_trip_us, 10_000));
        let first = run.go_on(5);
        // The second round trip finds out that the first one was as fast as it gets.
        assert!(
            first.queue <= Duration::from_millis(333),
            "{round_trip_us} us: {first:?}"
        );
        let later = run.go_on(30);
        assert!(later.used >= 0.95, "{round_trip_us} us: {later:?}");
        assert!(
            later.queue <= Duration::from_millis(333),
            "{round_trip_us} us: {later:?}"
        );
    }
}

#[test]
fn peer_that_gets_its_processor_with_pauses_is_kept_busy() {
    for (round_trip_us, pauses_ms) in [(1_000, 60), (3_000, 60), (3_000, 120), (5_000, 120)] {
        let mut run = Run::new(Link {
            pauses: Duration::from_millis(pauses_ms),
            ..link(120, round_trip_us, 10_000)
        });
        run.go_on(5);
        let outcome = run.go_on(30);
        let what = format!("{round_trip_us} us, pauses of {pauses_ms} ms: {outcome:?}");
        assert!(outcome.used >= 0.7, "{what}");
        assert!(outcome.queue <= Duration::from_millis(500), "{what}");
    }
}

#[test]
fn a_burst_of_losses_counts_once() {
    let start = Instant::now();
    let mut controller = controller(start);
    let sent = start + Duration::from_millis(1);
    let now = start + Duration::from_millis(2);
    for _ in 0..1000 {
        controller.on_congestion_event(now, sent, false, PACKET);
    }
    let before = LEAST_WINDOW_BYTES;
    assert!((before / 2..before).contains(&controller.window()));
}

#[test]
fn persistent_congestion_goes_to_the_floor_and_later_losses_do_not_raise_it() {
    let start = Instant::now();
    let mut controller = controller(start);
    controller.on_congestion_event(start + Duration::from_secs(1), start, true, PACKET);
    assert_eq!(controller.window(), FLOOR_PACKETS * PACKET);
    let sent = start + Duration::from_secs(2);
    controller.on_congestion_event(sent + Duration::from_millis(1), sent, false, 100 * PACKET);
    assert!(controller.window() <= FLOOR_PACKETS * PACKET);
}

#[test]
fn window_comes_back_after_persistent_congestion() {
    let mut run = Run::new(link(1_000, 10_000, 100));
    run.go_on(3);
    run.controller
        .on_congestion_event(run.now, run.now, true, PACKET);
    run.go_on(2);
    assert!(run.go_on(3).used >= 0.9);
}
