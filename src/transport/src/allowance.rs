//! How often refusals are reported. Strangers cause them as often as they like; the log and the event queue must not grow
//! at their pace.

use std::time::Instant;

use crate::limits::{REFUSAL_REPORT_BURST, REFUSAL_REPORT_INTERVAL};

/// How many refusals may be reported: strangers cause them, and must not fill the log or the memory.
pub(crate) struct ReportAllowance {
    left: u32,
    refilled: Instant,
    unreported: u64,
}

impl ReportAllowance {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            left: REFUSAL_REPORT_BURST,
            refilled: now,
            unreported: 0,
        }
    }

    /// Takes one report: how many were left out since the last, or `None` if this one is left out.
    pub(crate) fn take(&mut self, now: Instant) -> Option<u64> {
        let intervals = now.saturating_duration_since(self.refilled).as_secs()
            / REFUSAL_REPORT_INTERVAL.as_secs();
        if intervals > 0 {
            let intervals = u32::try_from(intervals).unwrap_or(u32::MAX);
            self.left = self
                .left
                .saturating_add(intervals)
                .min(REFUSAL_REPORT_BURST);
            self.refilled = now;
        }
        if self.left == 0 {
            self.unreported += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.unreported))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_reported_in_a_burst_and_then_once_per_interval() {
        let start = Instant::now();
        let mut allowance = ReportAllowance::new(start);
        let reported = (0..1000)
            .filter(|_| allowance.take(start).is_some())
            .count();
        assert_eq!(reported, REFUSAL_REPORT_BURST as usize);
        let later = start + REFUSAL_REPORT_INTERVAL;
        assert_eq!(
            allowance.take(later),
            Some(1000 - u64::from(REFUSAL_REPORT_BURST))
        );
        assert_eq!(allowance.take(later), None);
        let much_later = start + 10_000 * REFUSAL_REPORT_INTERVAL;
        assert_eq!(
            (0..1000)
                .filter(|_| allowance.take(much_later).is_some())
                .count(),
            REFUSAL_REPORT_BURST as usize
        );
    }
}
