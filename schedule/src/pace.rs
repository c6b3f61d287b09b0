//! When trying again may help: from the pace of dispatches while requests wait, or from the last cold start.

use std::time::Duration;

use crate::types::Time;

/// Each gap between dispatches counts this share of the mean.
const SMOOTHING: u32 = 8;
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3_600);

/// What was observed.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// The last dispatch, while requests wait.
    last: Option<Time>,
    /// Mean gap between dispatches while requests wait, moving.
    gap: Option<Duration>,
    /// Since when requests have waited with no endpoint there.
    held_since: Option<Time>,
    /// From the first held request to the first dispatch, the last time.
    cold_start: Option<Duration>,
}

impl Pace {
    /// A request was dispatched; `backlog`: others still wait.
    pub(crate) fn dispatched(&mut self, now: Time, backlog: bool) {
        if let Some(since) = self.held_since.take() {
            self.cold_start = Some(now.since(since));
        }
        if let Some(last) = self.last {
            let gap = now.since(last);
            self.gap = Some(self.gap.map_or(gap, |mean| {
                (mean.saturating_mul(SMOOTHING - 1)).saturating_add(gap) / SMOOTHING
            }));
        }
        self.last = backlog.then_some(now);
    }

    /// Whether requests wait with no endpoint there.
    pub(crate) fn note(&mut self, held_at_zero: bool, now: Time) {
        if held_at_zero {
            self.held_since.get_or_insert(now);
        } else {
            self.held_since = None;
        }
    }

    /// At zero: the last cold start, less what of this one has passed. Else: mean gap × (waiting + 1). At least 1 s, at
    /// most 1 h; `None` when nothing was observed yet.
    pub(crate) fn retry_after(&self, waiting: usize, now: Time) -> Option<Duration> {
        let estimate = match self.held_since {
            Some(since) => self.cold_start?.saturating_sub(now.since(since)),
            None => {
                let ahead = u32::try_from(waiting).unwrap_or(u32::MAX).saturating_add(1);
                self.gap?.saturating_mul(ahead)
            }
        };
        Some(estimate.clamp(SHORTEST, LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Time {
        Time(Duration::from_secs(seconds))
    }

    #[test]
    fn nothing_observed_gives_no_estimate() {
        let mut pace = Pace::default();
        assert_eq!(pace.retry_after(5, at(1)), None);
        pace.note(true, at(1));
        assert_eq!(pace.retry_after(5, at(1)), None);
    }

    #[test]
    fn a_steady_drain_gives_gap_times_waiting() {
        let mut pace = Pace::default();
        for second in 0..10 {
            pace.dispatched(at(second * 2), true);
        }
        assert_eq!(pace.retry_after(4, at(20)), Some(Duration::from_secs(10)));
        assert_eq!(pace.retry_after(100_000, at(20)), Some(LONGEST));
    }

    #[test]
    fn a_gap_without_backlog_does_not_count() {
        let mut pace = Pace::default();
        pace.dispatched(at(0), true);
        pace.dispatched(at(2), false);
        pace.dispatched(at(1_000), true);
        assert_eq!(pace.retry_after(1, at(1_000)), Some(Duration::from_secs(4)));
    }

    #[test]
    fn at_zero_the_last_cold_start_counts_down_to_a_second() {
        let mut pace = Pace::default();
        pace.note(true, at(10));
        pace.dispatched(at(50), false);
        pace.note(true, at(100));
        assert_eq!(pace.retry_after(9, at(110)), Some(Duration::from_secs(30)));
        assert_eq!(pace.retry_after(9, at(900)), Some(SHORTEST));
    }
}
