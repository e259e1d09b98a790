//! The congestion controller for storage links, short or long, fat or thin.
//!
//! A storage link is usually dedicated and loses packets in bursts (a switch buffer, a receive buffer that ran over) or at
//! random, rarely because it is shared. A controller that takes each loss for a full queue and then climbs by one packet per
//! round trip leaves such a link idle; one whose window stands still is too small for a long link and too large for a thin one.
//!
//! This one measures. A round is the time in which what was in flight is acknowledged; what arrives in a round in which the
//! window was full is the link's *rate*, the shortest round trip of the last seconds is its *delay*. In flight are rate × delay
//! and a standing queue of a few milliseconds, so that the link never runs empty while a timer or an acknowledgement is late.
//! The queue is bounded in bytes too: that bound is the window of a local link, where rate × delay is next to nothing.
//! - At the start there is no rate, and the link may be thin: the window begins small. While the rate grows, the window grows faster
//!   than it.
//! - Where acknowledgements come in bursts (a node that gets no processor for a while, a network that collects packets) the largest recent
//!   burst may be in flight beside it, or nothing would be under way while the next one is prepared: without that the window shrinks, what
//!   arrives in a round shrinks with it, and so on down to the least window. At most what the link takes in [`LONGEST_BURST`].
//! - A rate is forgotten after some rounds and a second with a full window, so that a link that became slower is believed; never
//!   while the owner sends less than the window allows.
//! - A delay is forgotten after [`DELAY_LIFE`]. Before, the standing queue is let run empty for a round, or it would be taken for
//!   delay.
//! - Losses up to [`TOLERATED_LOSS`] of the window in a round do not count. More (a queue shorter than ours) takes 30 % away, once
//!   per round, and what the rate allows is tried again in small steps.
//! - Persistent congestion (nothing arrives for several probe timeouts) forgets the rate and takes the window down to ten packets,
//!   so that it cannot flood a path that is gone.
//!
//! It does not share a congested path fairly with connections that yield to every loss.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

/// Packets in flight after persistent congestion.
const FLOOR_PACKETS: u64 = 10;
/// Least window for what the rate allows, and the first; losses may take it further down.
const LEAST_WINDOW_BYTES: u64 = 128 << 10;
/// Up to this delay what is late is late because a processor is busy: no less than half of the local window then, or the busier the
/// nodes are, the less they would send; as long as that is no more than they take in [`SHORT_DELAY_QUEUE`].
const SHORT_DELAY: Duration = Duration::from_micros(500);
/// See [`SHORT_DELAY`]: questions and answers wait behind what is in flight.
const SHORT_DELAY_QUEUE: Duration = Duration::from_millis(250);
/// Losses do not take the window below this, nor below rate × delay.
const LEAST_AFTER_LOSS_BYTES: u64 = 64 << 10;
/// The longest pause between bursts of acknowledgements that the window makes up for.
const LONGEST_BURST: Duration = Duration::from_millis(100);
/// The standing queue, in time: what the peer may hold an acknowledgement back, and as much for late timers. A sixteenth of the delay
/// comes on top.
const STANDING_QUEUE: Duration = Duration::from_millis(10);
/// A rate counts for one to two of these, with at least [`RATE_ROUNDS`] rounds in each.
const RATE_LIFE: Duration = Duration::from_secs(1);
/// See [`RATE_LIFE`].
const RATE_ROUNDS: u32 = 8;
/// A delay counts for one to two of these.
const DELAY_LIFE: Duration = Duration::from_secs(10);
/// Rounds in which the queue is let run empty: in the first it does, the second measures.
const DRAIN_ROUNDS: u32 = 2;
/// The part of the window (one in so many) that may be lost in a round.
const TOLERATED_LOSS: u64 = 32;

/// Makes the controllers of an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct AdaptiveFactory {
    /// Most bytes of the standing queue, which is the window of a local link.
    pub(crate) local_window_bytes: u64,
    /// Most bytes in flight.
    pub(crate) most_window_bytes: u64,
}

impl ControllerFactory for AdaptiveFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let mtu = u64::from(current_mtu);
        let local = self.local_window_bytes.max(FLOOR_PACKETS * mtu);
        Box::new(Adaptive {
            local,
            most: self.most_window_bytes.max(local),
            mtu,
            window: LEAST_WINDOW_BYTES.min(local),
            rate: Recent::new(now),
            growing: false,
            bursts: Bursts::new(now),
            delay: Recent::new(now),
            drain_rounds: 0,
            round: Round::new(now, true),
            idle: false,
            batch_bytes: 0,
            recovery_start: now,
            after_loss: None,
        })
    }
}

/// The best value of a recent time: of the current span and the one before.
#[derive(Clone, Debug)]
struct Recent<T> {
    before: Option<T>,
    current: Option<T>,
    since: Instant,
    /// Values in the current span.
    count: u32,
}

impl<T: Copy> Recent<T> {
    fn new(now: Instant) -> Self {
        Self {
            before: None,
            current: None,
            since: now,
            count: 0,
        }
    }

    fn add(&mut self, value: T, better: impl Fn(T, T) -> T) {
        self.current = Some(self.current.map_or(value, |best| better(best, value)));
        self.count = self.count.saturating_add(1);
    }

    fn best(&self, better: impl Fn(T, T) -> T) -> Option<T> {
        match (self.before, self.current) {
            (Some(before), Some(current)) => Some(better(before, current)),
            (before, current) => before.or(current),
        }
    }

    fn next_span(&mut self, now: Instant) {
        self.before = self.current.take().or(self.before);
        self.since = now;
        self.count = 0;
    }
}

/// From one acknowledgement to the first one of a packet that was sent after it.
#[derive(Clone, Debug)]
struct Round {
    begun: Instant,
    acked_bytes: u64,
    lost_bytes: u64,
    most_in_flight: u64,
    /// A packet that was sent in it has arrived.
    answered: bool,
    /// Nothing was in flight when it began: its first packets tell how long the link is, all that it could hold how much it takes.
    from_idle: bool,
}

impl Round {
    fn new(now: Instant, from_idle: bool) -> Self {
        Self {
            begun: now,
            acked_bytes: 0,
            lost_bytes: 0,
            most_in_flight: 0,
            answered: false,
            from_idle,
        }
    }

    fn is_over(&self) -> bool {
        let arrived = self.acked_bytes + self.lost_bytes;
        self.answered && (!self.from_idle || arrived >= self.most_in_flight)
    }
}

/// What is acknowledged at once beyond what the rate accounts for.
#[derive(Clone, Debug)]
struct Bursts {
    /// When what was acknowledged last was no more than the rate accounts for.
    since: Instant,
    acked_bytes: u64,
    largest: Recent<u64>,
}

impl Bursts {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            acked_bytes: 0,
            largest: Recent::new(now),
        }
    }

    fn restart(&mut self, now: Instant) {
        self.since = now;
        self.acked_bytes = 0;
    }

    fn take(&mut self, now: Instant, bytes: u64, rate: u64) {
        let expected = |since| bytes_in(rate, now.saturating_duration_since(since));
        if self.acked_bytes <= expected(self.since) {
            self.restart(now);
        }
        self.acked_bytes += bytes;
        let beyond = self.acked_bytes.saturating_sub(expected(self.since));
        self.largest.add(beyond, u64::max);
    }
}

/// A window that losses took down.
#[derive(Clone, Copy, Debug)]
struct AfterLoss {
    bytes: u64,
    /// Below this it doubles each round, above it grows in small steps.
    safe_bytes: u64,
}

/// See the module's text.
#[derive(Clone, Debug)]
struct Adaptive {
    local: u64,
    most: u64,
    mtu: u64,
    window: u64,
    /// Bytes per second.
    rate: Recent<u64>,
    /// The last full round brought a much better rate.
    growing: bool,
    bursts: Bursts,
    delay: Recent<Duration>,
    /// Rounds left in which the queue runs empty.
    drain_rounds: u32,
    round: Round,
    /// Nothing was in flight after the last acknowledgement.
    idle: bool,
    /// Acknowledged in the acknowledgement that is being taken in.
    batch_bytes: u64,
    /// Losses of packets sent before this belong to a burst that was answered already.
    recovery_start: Instant,
    after_loss: Option<AfterLoss>,
}

impl Adaptive {
    fn floor(&self) -> u64 {
        FLOOR_PACKETS * self.mtu
    }

    fn best_rate(&self) -> Option<u64> {
        self.rate.best(u64::max)
    }

    fn best_delay(&self) -> Option<Duration> {
        self.delay.best(Duration::min)
    }

    /// Rate × delay.
    fn link_bytes(&self) -> Option<u64> {
        Some(bytes_in(self.best_rate()?, self.best_delay()?))
    }

    /// What the window should be, losses left aside.
    fn wanted(&self) -> u64 {
        let (Some(rate), Some(delay)) = (self.best_rate(), self.best_delay()) else {
            return LEAST_WINDOW_BYTES.min(self.local);
        };
        let link = bytes_in(rate, delay);
        if self.drain_rounds > 0 {
            return (link / 4 * 3).max(LEAST_WINDOW_BYTES / 2);
        }
        let queue = bytes_in(rate, STANDING_QUEUE + delay / 16);
        let burst = self.bursts.largest.best(u64::max).unwrap_or(0);
        let burst = burst.min(bytes_in(rate, LONGEST_BURST));
        let mut least = LEAST_WINDOW_BYTES;
        if delay <= SHORT_DELAY {
            least = least.max(bytes_in(rate, SHORT_DELAY_QUEUE).min(self.local / 2));
        }
        let link = if self.growing { link / 2 * 3 } else { link };
        (link + (queue + burst).min(self.local)).clamp(least.min(self.most), self.most)
    }

    fn set_window(&mut self) {
        let wanted = self.wanted();
        let allowed = match self.after_loss {
            Some(after) if after.bytes < wanted => after.bytes,
            _ => wanted,
        };
        self.window = allowed.max(self.floor());
    }

    fn end_round(&mut self, now: Instant) {
        let round = std::mem::replace(&mut self.round, Round::new(now, false));
        let full = round.most_in_flight >= self.window / 4 * 3;
        if self.drain_rounds > 0 {
            self.drain_rounds -= 1;
            if self.drain_rounds == 0 {
                self.delay.next_span(now);
            }
        } else {
            if full {
                self.take_rate(now, &round);
            }
            if now.saturating_duration_since(self.delay.since) >= DELAY_LIFE {
                if full && self.rate.best(u64::max).is_some() {
                    self.drain_rounds = DRAIN_ROUNDS;
                } else {
                    // No queue of ours hides the delay.
                    self.delay.next_span(now);
                }
            }
        }
        if full
            && round.lost_bytes <= self.tolerated_loss()
            && let Some(after) = &mut self.after_loss
        {
            after.bytes += if after.bytes < after.safe_bytes {
                after.bytes
            } else {
                after.bytes / 16
            };
        }
        self.set_window();
        if self
            .after_loss
            .is_some_and(|after| after.bytes > self.window)
            && self.drain_rounds == 0
        {
            self.after_loss = None;
        }
    }

    fn take_rate(&mut self, now: Instant, round: &Round) {
        let micros = now
            .saturating_duration_since(round.begun)
            .as_micros()
            .max(1);
        let rate =
            u64::try_from(u128::from(round.acked_bytes) * 1_000_000 / micros).unwrap_or(u64::MAX);
        self.growing = self
            .best_rate()
            .is_none_or(|before| rate > before.saturating_add(before / 8));
        self.rate.add(rate, u64::max);
        if self.rate.count >= RATE_ROUNDS
            && now.saturating_duration_since(self.rate.since) >= RATE_LIFE
        {
            self.rate.next_span(now);
            self.bursts.largest.next_span(now);
        }
    }

    fn acknowledged(&mut self, now: Instant, sent: Instant, bytes: u64) {
        self.delay
            .add(now.saturating_duration_since(sent), Duration::min);
        self.batch_bytes += bytes;
        self.round.answered |= sent >= self.round.begun;
    }

    fn tolerated_loss(&self) -> u64 {
        (self.window / TOLERATED_LOSS).max(2 * self.mtu)
    }
}

fn bytes_in(rate: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(rate) * time.as_micros() / 1_000_000).unwrap_or(u64::MAX)
}

impl Controller for Adaptive {
    fn on_sent(&mut self, now: Instant, _bytes: u64, _last_packet_number: u64) {
        if self.idle {
            // The pause before is nobody's delay.
            self.idle = false;
            self.round = Round::new(now, true);
            self.bursts.restart(now);
        }
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        _app_limited: bool,
        _rtt: &RttEstimator,
    ) {
        self.acknowledged(now, sent, bytes);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        _app_limited: bool,
        _largest_packet_num_acked: Option<u64>,
    ) {
        let batch = std::mem::take(&mut self.batch_bytes);
        self.round.acked_bytes += batch;
        self.round.most_in_flight = self.round.most_in_flight.max(in_flight + batch);
        if let Some(rate) = self.best_rate() {
            self.bursts.take(now, batch, rate);
        }
        if self.round.is_over() {
            self.end_round(now);
        }
        self.idle = in_flight == 0;
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        if is_persistent_congestion {
            self.recovery_start = now;
            self.rate = Recent::new(now);
            self.bursts = Bursts::new(now);
            self.growing = false;
            self.drain_rounds = 0;
            self.after_loss = Some(AfterLoss {
                bytes: self.floor(),
                safe_bytes: self.window / 2,
            });
        } else if sent > self.recovery_start {
            self.round.lost_bytes += lost_bytes;
            // No bytes: the network marked packets instead of losing them.
            if lost_bytes > 0 && self.round.lost_bytes <= self.tolerated_loss() {
                return;
            }
            self.recovery_start = now;
            let least = self
                .link_bytes()
                .unwrap_or(0)
                .max(LEAST_AFTER_LOSS_BYTES)
                // Never upwards: after persistent congestion the window may be smaller.
                .min(self.window);
            let bytes = (self.window / 10 * 7).max(least);
            self.after_loss = Some(AfterLoss {
                bytes,
                safe_bytes: bytes,
            });
        }
        self.set_window();
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = u64::from(new_mtu);
        self.local = self.local.max(self.floor());
        self.most = self.most.max(self.local);
        self.set_window();
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        LEAST_WINDOW_BYTES.min(self.local)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests;
