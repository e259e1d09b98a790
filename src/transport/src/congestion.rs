//! The congestion controller for local networks.
//!
//! A storage link is short, usually dedicated, and loses packets in bursts (a switch buffer, a receive buffer that ran
//! over) rather than by standing queues. A controller that halves on each burst and then climbs by one packet per round
//! trip leaves such a link idle. This one starts at its full window, gives up 30 % per round trip with loss, down to a
//! quarter of the window, and comes back at the pace of slow start. Persistent congestion (nothing arrives for several
//! probe timeouts) takes it down to ten packets, so it cannot flood a path that is gone.
//!
//! It does not share a congested wide-area path fairly; use Cubic or BBR there.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

/// Packets in flight after persistent congestion.
const FLOOR_PACKETS: u64 = 10;

#[derive(Clone, Debug)]
pub(crate) struct SteadyFactory {
    /// Bytes in flight while nothing is lost.
    pub(crate) window_bytes: u64,
}

impl ControllerFactory for SteadyFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let full = self
            .window_bytes
            .max(FLOOR_PACKETS * u64::from(current_mtu));
        Box::new(Steady {
            full,
            window: full,
            mtu: u64::from(current_mtu),
            recovery_start: now,
        })
    }
}

#[derive(Clone, Debug)]
struct Steady {
    full: u64,
    window: u64,
    mtu: u64,
    /// Losses of packets sent before this belong to a burst that was answered already.
    recovery_start: Instant,
}

impl Steady {
    fn floor(&self) -> u64 {
        FLOOR_PACKETS * self.mtu
    }
}

impl Controller for Steady {
    fn on_ack(
        &mut self,
        _now: Instant,
        sent: Instant,
        bytes: u64,
        _app_limited: bool,
        _rtt: &RttEstimator,
    ) {
        if self.window < self.full && sent > self.recovery_start {
            self.window = (self.window + bytes).min(self.full);
        }
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        _lost_bytes: u64,
    ) {
        if is_persistent_congestion {
            self.recovery_start = now;
            self.window = self.floor();
        } else if sent > self.recovery_start {
            self.recovery_start = now;
            // Never upwards: after persistent congestion the window may be below a quarter.
            let reduced = (self.window / 10 * 7).max(self.full / 4).max(self.floor());
            self.window = self.window.min(reduced);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = u64::from(new_mtu);
        self.full = self.full.max(self.floor());
        self.window = self.window.max(self.floor());
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.full
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FULL: u64 = 2 << 20;

    fn controller(now: Instant) -> Box<dyn Controller> {
        Arc::new(SteadyFactory { window_bytes: FULL }).build(now, 1200)
    }

    #[test]
    fn a_burst_of_losses_counts_once_and_never_takes_more_than_three_quarters() {
        let start = Instant::now();
        let mut controller = controller(start);
        let sent = start + Duration::from_millis(1);
        let now = start + Duration::from_millis(2);
        for _ in 0..100 {
            controller.on_congestion_event(now, sent, false, 1200);
        }
        assert!(controller.window() > FULL / 2);
        for round in 1..100 {
            let sent = start + Duration::from_millis(2 * round + 1);
            controller.on_congestion_event(sent + Duration::from_millis(1), sent, false, 1200);
        }
        assert_eq!(controller.window(), FULL / 4);
    }

    #[test]
    fn persistent_congestion_goes_to_the_floor_and_later_losses_do_not_raise_it() {
        let start = Instant::now();
        let mut controller = controller(start);
        controller.on_congestion_event(start + Duration::from_secs(1), start, true, 1200);
        assert_eq!(controller.window(), 12_000);
        let sent = start + Duration::from_secs(2);
        controller.on_congestion_event(sent + Duration::from_millis(1), sent, false, 1200);
        assert!(controller.window() <= 12_000);
    }
}
