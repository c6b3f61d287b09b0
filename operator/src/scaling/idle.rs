//! When a pool has been idle long enough to stop. Pure; all costs in seconds of one running engine pod.
//!
//! Keeping an idle engine pod for a second costs one second of it. Stopping and starting again costs the start itself
//! (the pod runs, and serves nothing) and the waiting of the requests that come meanwhile. Where both are equal is
//! the break-even; stopping exactly there never costs more than twice what a stop at the best moment would have
//! (the ski-rental bound). The hourly price multiplies both sides and cancels.

use std::{fmt::Write as _, time::Duration};

use jiff::Timestamp;
use weir_crds::go_format;

use super::{
    demand::Demand,
    instant::{after, whole_second},
};

/// What a stop and a start cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StopCost {
    /// Mean start in seconds, E\[S\].
    pub start: f64,
    /// Mean square of the start in seconds squared, E\[S²\].
    pub start_squared: f64,
    /// What a second of one request's waiting costs, in seconds of one engine pod: `idle.waitingWeight`.
    pub waiting_weight: f64,
    /// Requests a second that follow the first one after a gap, λ.
    pub arrivals: f64,
}

/// `B = E[S] + w·(E[S] + λ·E[S²]/2)`: the start, and the waiting of the first request (a whole start) and of those
/// that come while it lasts (λ·S of them, half a start each on average).
#[must_use]
pub fn break_even(cost: StopCost) -> Duration {
    let StopCost {
        start,
        start_squared,
        waiting_weight,
        arrivals,
    } = cost;
    let seconds = start + waiting_weight * (start + arrivals * start_squared / 2.0);
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// The λ that gave this break-even, the rest of the cost being known: what was learned about arrivals is in the
/// pool's status only there. `None` where it cannot be told, because waiting or the start costs nothing.
#[must_use]
pub fn arrivals_behind(cost: StopCost, break_even: Duration) -> Option<f64> {
    let StopCost {
        start,
        start_squared,
        waiting_weight,
        arrivals: _,
    } = cost;
    let each = waiting_weight * start_squared / 2.0;
    let rest = break_even.as_secs_f64() - start - waiting_weight * start;
    // Less than a thousandth is the rounding of the status.
    (each > 0.0 && rest > 1e-3).then_some(rest / each)
}

/// `spec.idle.policy` with what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Stop at the break-even, inside these bounds.
    BreakEven {
        /// Least threshold.
        min_after: Option<Duration>,
        /// Greatest threshold.
        max_after: Option<Duration>,
    },
    /// Stop after this.
    Fixed(Duration),
    /// Do not stop.
    Never,
}

impl Policy {
    /// Idleness after which the pool stops; `None`: never.
    #[must_use]
    pub fn threshold(self, break_even: Duration) -> Option<Duration> {
        match self {
            Self::BreakEven { min_after, max_after } => {
                let least = min_after.unwrap_or(Duration::ZERO);
                let most = max_after.unwrap_or(Duration::MAX).max(least);
                Some(break_even.clamp(least, most))
            }
            Self::Fixed(threshold) => Some(threshold),
            Self::Never => None,
        }
    }
}

/// Why a pool with engine pods does not count as idle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocker {
    /// No gateway pod runs.
    NoGateway,
    /// Gateway pods that say nothing.
    Silent(Vec<String>),
    /// Requests wait or run.
    Busy {
        /// At engines.
        in_flight: u32,
        /// Waiting.
        waiting: u32,
    },
    /// Workflows run their tools and are expected back.
    Paused {
        /// How many.
        workflows: u32,
        /// Until when at the latest.
        until: Option<Timestamp>,
    },
    /// An engine pod starts.
    Starting(String),
    /// An engine works although the router sends it nothing.
    Bypassed {
        /// Its pod.
        pod: String,
        /// Requests it says it has.
        requests: u32,
    },
}

/// What the clock needs.
#[derive(Debug, Clone)]
pub struct Clock<'a> {
    /// What the gateways say.
    pub demand: &'a Demand,
    /// A pod that is still starting inside its deadline.
    pub starting: Option<&'a str>,
    /// When the first of the engine pods that serve became ready.
    pub first_ready: Option<Timestamp>,
    /// A lower bound known from before: when the pool was last seen busy, or `status.activity.idleSince`.
    pub not_before: Option<Timestamp>,
    /// Now.
    pub now: Timestamp,
}

/// Whether the pool is idle, and since when.
///
/// # Errors
/// The [`Blocker`].
pub fn idle_since(clock: &Clock<'_>) -> Result<Timestamp, Blocker> {
    let demand = clock.demand;
    if demand.replicas == 0 {
        return Err(Blocker::NoGateway);
    }
    if !demand.silent.is_empty() {
        return Err(Blocker::Silent(demand.silent.clone()));
    }
    if demand.load() > 0 {
        return Err(Blocker::Busy {
            in_flight: demand.in_flight,
            waiting: demand.waiting(),
        });
    }
    if demand.paused > 0 {
        return Err(Blocker::Paused {
            workflows: demand.paused,
            until: demand.pauses_end.map(whole_second),
        });
    }
    if let Some(pod) = clock.starting {
        return Err(Blocker::Starting(pod.to_owned()));
    }
    let bypassed = demand.endpoints.iter().find_map(|(pod, endpoint)| {
        let requests = endpoint
            .engine_busy
            .filter(|requests| *requests > 0 && endpoint.eligible)?;
        Some(Blocker::Bypassed {
            pod: pod.clone(),
            requests,
        })
    });
    if let Some(blocker) = bypassed {
        return Err(blocker);
    }
    let latest = demand.last_activity.max(clock.first_ready).max(clock.not_before);
    Ok(latest.unwrap_or(clock.now).min(clock.now))
}

/// When the pool stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Idleness that costs as much as a stop and a start.
    pub break_even: Duration,
    /// Idleness after which it stops.
    pub threshold: Option<Duration>,
    /// Since when it is idle, or why it is not.
    pub since: Result<Timestamp, Blocker>,
    /// When it stops if nothing comes.
    pub zero_at: Option<Timestamp>,
}

/// Joins clock, cost and policy. `keep` is true when `minReplicas` keeps a pod anyway.
#[must_use]
pub fn judge(clock: &Clock<'_>, cost: StopCost, policy: Policy, keep: bool) -> Verdict {
    let break_even = break_even(cost);
    let threshold = policy.threshold(break_even).filter(|_| !keep);
    let since = idle_since(clock);
    let zero_at = match (&since, threshold) {
        (Ok(since), Some(threshold)) => Some(after(*since, threshold)),
        _ => None,
    };
    Verdict {
        break_even,
        threshold,
        since,
        zero_at,
    }
}

/// The sentence of `status.idle.reason`. It names instants, never ages, so that it changes only when its meaning does.
#[must_use]
pub fn sentence(verdict: &Verdict, cost: StopCost, policy: Policy, samples: u32) -> String {
    let mut text = match policy {
        Policy::Never => "the pool does not stop: idle.policy is Never".to_owned(),
        Policy::Fixed(threshold) => format!(
            "stops after {} of idleness: idle.policy is Fixed",
            go_format(threshold)
        ),
        Policy::BreakEven { .. } => {
            let source = match samples {
                0 => "expected, none measured yet".to_owned(),
                1 => "measured once".to_owned(),
                count => format!("mean of the last of {count} measured"),
            };
            let start = rounded(cost.start);
            let even = go_format(verdict.break_even);
            let mut text = format!(
                "a start takes {start} ({source}) and waiting weighs {}, so stopping pays after {even} of idleness",
                cost.waiting_weight
            );
            if let Some(threshold) = verdict
                .threshold
                .filter(|threshold| *threshold != verdict.break_even)
            {
                // Writing into a String cannot fail.
                let _ = write!(
                    text,
                    "; bounded to {} by minAfter or maxAfter",
                    go_format(threshold)
                );
            }
            text
        }
    };
    if verdict.threshold.is_none() && policy != Policy::Never {
        text.push_str("; scaling.minReplicas keeps it running");
    }
    let state = match &verdict.since {
        Ok(since) => match verdict.zero_at {
            Some(zero) => format!(
                "idle since {}, stops at {}",
                whole_second(*since),
                whole_second(zero)
            ),
            None => format!("idle since {}", whole_second(*since)),
        },
        Err(Blocker::NoGateway) => "not known to be idle: no gateway pod runs".to_owned(),
        Err(Blocker::Silent(pods)) => format!("not known to be idle: no word from {}", pods.join(", ")),
        Err(Blocker::Busy { .. }) => "busy now".to_owned(),
        Err(Blocker::Paused {
            until: Some(until), ..
        }) => {
            format!("workflows in a tool pause are expected back until {until}")
        }
        Err(Blocker::Paused { until: None, .. }) => "workflows in a tool pause are expected back".to_owned(),
        Err(Blocker::Starting(pod)) => format!("{pod} is starting"),
        Err(Blocker::Bypassed { pod, requests }) => format!(
            "the engine of pod {pod} works on {requests} requests that did not come through the router: not stopped"
        ),
    };
    // Writing into a String cannot fail.
    let _ = write!(text, "; {state}");
    text
}

fn rounded(seconds: f64) -> String {
    let tenths = Duration::try_from_secs_f64((seconds * 10.0).round() / 10.0).unwrap_or(Duration::MAX);
    go_format(tenths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::demand::Endpoint;

    fn cost(start: f64, start_squared: f64, waiting_weight: f64, arrivals: f64) -> StopCost {
        StopCost {
            start,
            start_squared,
            waiting_weight,
            arrivals,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000 + second).unwrap()
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn break_even_by_hand() {
        for (given, expected) in [
            // Waiting costs nothing: the start alone.
            (cost(60.0, 3_600.0, 0.0, 5.0), 60.0),
            // One waiting request weighs as much as the pod: twice the start.
            (cost(60.0, 3_600.0, 1.0, 0.0), 120.0),
            // 60 + 1·(60 + 0.1·3600/2) = 300
            (cost(60.0, 3_600.0, 1.0, 0.1), 300.0),
            // Starts of 2 s and 4 s: E = 3, E² = 10; 3 + 2·(3 + 0.5·10/2) = 14
            (cost(3.0, 10.0, 2.0, 0.5), 14.0),
        ] {
            assert_eq!(break_even(given), Duration::from_secs_f64(expected), "{given:?}");
        }
    }

    #[test]
    fn arrivals_are_found_behind_a_break_even() {
        let known = cost(3.0, 10.0, 2.0, 0.5);
        let found = arrivals_behind(known, break_even(known)).unwrap();
        assert!((found - 0.5).abs() < 1e-9, "{found}");
        assert_eq!(arrivals_behind(cost(3.0, 10.0, 0.0, 0.0), secs(3)), None);
        assert_eq!(arrivals_behind(cost(3.0, 10.0, 1.0, 0.0), secs(6)), None);
    }

    #[test]
    fn thresholds_stay_inside_their_bounds() {
        let even = |min: Option<u64>, max: Option<u64>| {
            Policy::BreakEven {
                min_after: min.map(secs),
                max_after: max.map(secs),
            }
            .threshold(secs(100))
        };
        assert_eq!(even(None, None), Some(secs(100)));
        assert_eq!(even(Some(300), None), Some(secs(300)));
        assert_eq!(even(None, Some(30)), Some(secs(30)));
        assert_eq!(
            even(Some(50), Some(30)),
            Some(secs(50)),
            "a contradiction keeps the pool longer"
        );
        assert_eq!(Policy::Fixed(secs(7)).threshold(secs(100)), Some(secs(7)));
        assert_eq!(Policy::Never.threshold(secs(100)), None);
    }

    fn idle_demand() -> Demand {
        Demand {
            replicas: 1,
            last_activity: Some(at(10)),
            ..Demand::default()
        }
    }

    fn check(change: impl FnOnce(&mut Demand), starting: Option<&str>, expected: Result<i64, Blocker>) {
        let mut demand = idle_demand();
        change(&mut demand);
        let clock = Clock {
            demand: &demand,
            starting,
            first_ready: Some(at(5)),
            not_before: None,
            now: at(50),
        };
        assert_eq!(idle_since(&clock), expected.map(at));
    }

    #[test]
    fn only_a_pool_known_to_do_nothing_is_idle() {
        check(|_| (), None, Ok(10));
        check(|demand| demand.replicas = 0, None, Err(Blocker::NoGateway));
        check(
            |demand| demand.silent.push("g".to_owned()),
            None,
            Err(Blocker::Silent(vec!["g".to_owned()])),
        );
        check(
            |demand| demand.in_flight = 1,
            None,
            Err(Blocker::Busy {
                in_flight: 1,
                waiting: 0,
            }),
        );
        check(
            |demand| demand.held = 2,
            None,
            Err(Blocker::Busy {
                in_flight: 0,
                waiting: 2,
            }),
        );
        check(
            |demand| demand.paused = 1,
            None,
            Err(Blocker::Paused {
                workflows: 1,
                until: None,
            }),
        );
        check(|_| (), Some("p"), Err(Blocker::Starting("p".to_owned())));
        let busy = |eligible| Endpoint {
            engine_busy: Some(3),
            eligible,
            ..Endpoint::default()
        };
        check(
            |demand| demand.endpoints = [("p".to_owned(), busy(true))].into(),
            None,
            Err(Blocker::Bypassed {
                pod: "p".to_owned(),
                requests: 3,
            }),
        );
        check(
            |demand| demand.endpoints = [("p".to_owned(), busy(false))].into(),
            None,
            Ok(10),
        );
    }

    #[test]
    fn the_clock_starts_at_the_later_of_last_completion_and_first_ready() {
        let since = |last: Option<i64>, ready: Option<i64>, known: Option<i64>| {
            let demand = Demand {
                last_activity: last.map(at),
                ..idle_demand()
            };
            let clock = Clock {
                demand: &demand,
                starting: None,
                first_ready: ready.map(at),
                not_before: known.map(at),
                now: at(50),
            };
            idle_since(&clock).unwrap()
        };
        assert_eq!(since(Some(10), Some(20), None), at(20));
        assert_eq!(since(Some(30), Some(20), Some(1)), at(30));
        assert_eq!(
            since(Some(10), Some(20), Some(25)),
            at(25),
            "it was seen busy at 25"
        );
        assert_eq!(since(None, None, None), at(50), "nobody knows: it starts now");
        assert_eq!(since(Some(99), None, None), at(50), "never in the future");
    }

    #[test]
    fn the_verdict_names_the_instant_and_the_sentence_does_not_tick() {
        let cost = cost(10.0, 100.0, 1.0, 0.0);
        let policy = Policy::BreakEven {
            min_after: None,
            max_after: None,
        };
        let demand = idle_demand();
        let verdict = |now| {
            let clock = Clock {
                demand: &demand,
                starting: None,
                first_ready: None,
                not_before: None,
                now,
            };
            judge(&clock, cost, policy, false)
        };
        assert_eq!(verdict(at(12)).zero_at, Some(at(30)));
        let text = sentence(&verdict(at(12)), cost, policy, 3);
        assert_eq!(text, sentence(&verdict(at(29)), cost, policy, 3));
        assert!(
            text.contains("a start takes 10s (mean of the last of 3 measured)"),
            "{text}"
        );
        assert!(text.contains("stopping pays after 20s of idleness"), "{text}");
        assert!(text.contains("stops at 1970-01-01T00:17:10Z"), "{text}");
        let clock = Clock {
            demand: &demand,
            starting: None,
            first_ready: None,
            not_before: None,
            now: at(12),
        };
        let kept = judge(&clock, cost, policy, true);
        assert_eq!((kept.threshold, kept.zero_at), (None, None));
        assert!(sentence(&kept, cost, policy, 0).contains("minReplicas keeps it running"));
    }

    proptest::proptest! {
        /// The ski-rental bound: with a fixed start and no waiting price, stopping at the break-even costs at most
        /// twice the best that is possible, whatever the gap.
        #[test]
        fn never_worse_than_twice_a_clairvoyant(start in 0.1_f64..1_000.0, gap in 0.0_f64..10_000.0) {
            let even = break_even(cost(start, start * start, 0.0, 0.0)).as_secs_f64();
            let ours = if gap < even { gap } else { even + start };
            let best = gap.min(start);
            proptest::prop_assert!(ours <= 2.0 * best + 1e-6, "{ours} > 2 x {best}");
        }

        #[test]
        fn more_expensive_waiting_never_shortens_the_threshold(
            start in 0.1_f64..1_000.0, weight in 0.0_f64..100.0, more in 0.0_f64..100.0, arrivals in 0.0_f64..50.0,
        ) {
            let even = |weight| break_even(cost(start, start * start, weight, arrivals));
            proptest::prop_assert!(even(weight + more) >= even(weight));
        }
    }
}
