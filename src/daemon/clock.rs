//! Monotonic time in milliseconds since the process started: the only clock that engines see.

use std::time::{Duration, Instant};

use qrbd_engine::units::Time;

/// The origin of time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that shows zero now.
    pub(crate) fn start() -> Self {
        Clock {
            origin: Instant::now(),
        }
    }

    /// Milliseconds since the origin.
    pub(crate) fn now(self) -> Time {
        Time(u64::try_from(self.origin.elapsed().as_millis()).expect("584 million years"))
    }

    /// The moment as the runtime's timers know it, rounded up so that a timer never fires before it.
    pub(crate) fn instant(self, time: Time) -> tokio::time::Instant {
        // Far deadlines are cut: a timer that fires early is set anew.
        tokio::time::Instant::from_std(
            self.origin + Duration::from_millis(time.0.min(self.now().0 + 3_600_000) + 1),
        )
    }
}
