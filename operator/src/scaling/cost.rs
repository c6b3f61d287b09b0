//! Hours of engine pods, by what they did. Pure.

use jiff::Timestamp;

use super::instant::between;

/// Engine pods by what they do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Doing {
    /// With requests.
    pub serving: u32,
    /// Ready, without requests.
    pub idle: u32,
    /// Not ready.
    pub starting: u32,
}

/// Pod-seconds so far. It grows while nothing changes, so it is read only when something is written anyway.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ledger {
    serving: f64,
    idle: f64,
    starting: f64,
    since: Option<(Timestamp, Doing)>,
}

impl Ledger {
    /// Goes on from pod-hours written earlier; `since` says when, and what pods did then and have done since.
    #[must_use]
    pub fn resume(serving: f64, idle: f64, starting: f64, since: Option<(Timestamp, Doing)>) -> Self {
        Self {
            serving: serving * 3_600.0,
            idle: idle * 3_600.0,
            starting: starting * 3_600.0,
            since,
        }
    }

    /// Books the time up to `now` to what pods did until now, and notes what they do from now on.
    pub fn book(&mut self, now: Timestamp, doing: Doing) {
        if let Some((since, before)) = self.since {
            let seconds = between(since, now).as_secs_f64();
            self.serving += seconds * f64::from(before.serving);
            self.idle += seconds * f64::from(before.idle);
            self.starting += seconds * f64::from(before.starting);
        }
        self.since = Some((now, doing));
    }

    /// Pod-hours serving, idle and starting.
    #[must_use]
    pub fn hours(&self) -> (f64, f64, f64) {
        (
            self.serving / 3_600.0,
            self.idle / 3_600.0,
            self.starting / 3_600.0,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn time_is_booked_to_what_was_done_in_it() {
        let mut ledger = Ledger::resume(1.0, 0.0, 0.0, None);
        ledger.book(
            at(0),
            Doing {
                starting: 2,
                ..Doing::default()
            },
        );
        ledger.book(
            at(1_800),
            Doing {
                serving: 1,
                idle: 1,
                starting: 0,
            },
        );
        ledger.book(at(5_400), Doing::default());
        ledger.book(at(99_999), Doing::default());
        assert_eq!(ledger.hours(), (2.0, 1.0, 1.0));
    }

    #[test]
    fn a_resumed_ledger_books_the_time_between() {
        let idle = Doing {
            idle: 1,
            ..Doing::default()
        };
        let mut ledger = Ledger::resume(0.0, 0.5, 0.0, Some((at(0), idle)));
        ledger.book(at(1_800), idle);
        assert_eq!(ledger.hours(), (0.0, 1.0, 0.0));
    }
}
