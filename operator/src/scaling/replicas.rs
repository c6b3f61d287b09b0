//! How many engine pods a pool with work should have. Pure. Going to zero is not decided here (`idle.rs`).

use std::time::Duration;

use jiff::Timestamp;
use weir_wire::sidecar::AUTO_CONCURRENCY;

use super::{
    demand::Demand,
    instant::{after, between},
};

/// Share of a pod's concurrency that the pods left after a removal may fill: keeps a pool from swinging.
const FILL_AFTER_REMOVAL: f64 = 0.8;

/// `spec.scaling` and what one pod can take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Fewest pods.
    pub min: u32,
    /// Most pods.
    pub max: u32,
    /// Requests one pod works on at once, when the spec says so.
    pub concurrency: Option<u32>,
    /// KV share above which one more pod is wanted.
    pub kv_utilization: f64,
    /// How long a shortage must last.
    pub queue_wait: Duration,
    /// How long a surplus must last.
    pub scale_down_delay: Duration,
    /// What a start takes.
    pub expected_start: Duration,
}

/// What is remembered between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trend {
    /// Since when more pods have been wanted than there are.
    pub short_since: Option<Timestamp>,
    /// Since when one less would have been enough.
    pub surplus_since: Option<Timestamp>,
    /// Requests that one endpoint works on at once, as gateways said last.
    pub told_concurrency: Option<u32>,
}

/// What there is now.
#[derive(Debug, Clone, Copy)]
pub struct Now<'a> {
    /// Replicas asked for.
    pub replicas: u32,
    /// Pods that are not ready yet, or not made yet.
    pub starting: u32,
    /// A new template is being rolled out: no pod is removed meanwhile.
    pub rolling: bool,
    /// What the gateways say.
    pub demand: &'a Demand,
    /// Now.
    pub at: Timestamp,
}

/// What should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Replicas.
    pub replicas: u32,
    /// To remember.
    pub trend: Trend,
    /// When to look again if nothing happens.
    pub look_again: Option<Timestamp>,
}

fn ceil_div(load: u32, per_pod: f64) -> u32 {
    let pods = (f64::from(load) / per_pod.max(1.0)).ceil();
    // Bounded by `load`, which is a u32.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 <= pods <= load"
    )]
    let pods = pods as u32;
    pods
}

/// Requests that one pod works on at once: what the spec says its sidecar is to allow, else what sidecars said last,
/// else (before the first pod ever served) what a sidecar allows by itself.
fn per_pod(bounds: &Bounds, trend: &Trend) -> u32 {
    bounds
        .concurrency
        .or(trend.told_concurrency)
        .unwrap_or(AUTO_CONCURRENCY)
        .max(1)
}

/// Pods whose KV caches together would hold what is live now at the wanted share.
fn for_kv(demand: &Demand, share: f64) -> u32 {
    let used: f64 = demand
        .endpoints
        .values()
        .filter(|endpoint| endpoint.eligible)
        .filter_map(|e| e.kv_usage)
        .sum();
    let pods = (used / share.max(0.01) - 1e-9).ceil().clamp(0.0, 100_000.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0..=100000"
    )]
    let pods = pods as u32;
    pods
}

/// Of endpoints that differ, as in a rollout, the one that takes least counts.
fn hear(trend: Trend, demand: &Demand) -> Trend {
    let told = demand
        .endpoints
        .values()
        .filter(|endpoint| endpoint.eligible)
        .filter_map(|endpoint| endpoint.concurrency)
        .min();
    Trend {
        told_concurrency: told.or(trend.told_concurrency),
        ..trend
    }
}

/// `max(⌈(running + waiting) / per-pod concurrency⌉, ⌈Σ KV use / kvUtilization⌉)` inside the bounds, with these brakes:
///
/// * none → some: at once, as soon as one request waits.
/// * more: when the shortage has lasted `queueWait`; while a pod is starting only when it has lasted a whole start,
///   so that the backlog outlives the pod on its way.
/// * fewer: one at a time, when for `scaleDownDelay` the load would have filled at most 80 % of the pods left; never
///   while the demand is not fully known, a pod is starting, or a rollout is under way; never the last one.
#[must_use]
pub fn wanted(bounds: &Bounds, trend: Trend, now: Now<'_>) -> Wanted {
    let Now {
        replicas,
        starting,
        rolling,
        demand,
        at,
    } = now;
    let mut trend = hear(trend, demand);
    let per_pod = f64::from(per_pod(bounds, &trend));
    let max = bounds.max.max(bounds.min);
    let load = demand.load();
    let needed = ceil_div(load, per_pod).max(for_kv(demand, bounds.kv_utilization));
    let stay = |trend| Wanted {
        replicas,
        trend,
        look_again: None,
    };

    if replicas < bounds.min || replicas > max {
        let replicas = if replicas < bounds.min {
            bounds.min
        } else {
            replicas - 1
        };
        return Wanted {
            replicas,
            trend: Trend {
                surplus_since: None,
                ..trend
            },
            look_again: None,
        };
    }
    if replicas == 0 {
        trend.short_since = None;
        trend.surplus_since = None;
        let replicas = if demand.waiting() > 0 {
            needed.clamp(1, max)
        } else {
            0
        };
        return Wanted {
            replicas,
            trend,
            look_again: None,
        };
    }
    let goal = needed.min(max);
    if goal > replicas {
        trend.surplus_since = None;
        let since = *trend.short_since.get_or_insert(at);
        let brake = if starting > 0 {
            bounds.queue_wait.max(bounds.expected_start)
        } else {
            bounds.queue_wait
        };
        let due = after(since, brake);
        return if due <= at {
            Wanted {
                replicas: goal,
                trend: Trend {
                    short_since: None,
                    ..trend
                },
                look_again: None,
            }
        } else {
            Wanted {
                look_again: Some(due),
                ..stay(trend)
            }
        };
    }
    trend.short_since = None;
    let left = replicas - 1;
    let fits = ceil_div(load, per_pod * FILL_AFTER_REMOVAL) <= left
        && for_kv(demand, bounds.kv_utilization * FILL_AFTER_REMOVAL) <= left;
    if left < bounds.min.max(1) || !fits || starting > 0 || rolling || !demand.known() {
        trend.surplus_since = None;
        return stay(trend);
    }
    let since = *trend.surplus_since.get_or_insert(at);
    if between(since, at) >= bounds.scale_down_delay {
        return Wanted {
            replicas: left,
            trend: Trend {
                surplus_since: None,
                ..trend
            },
            look_again: None,
        };
    }
    Wanted {
        look_again: Some(after(since, bounds.scale_down_delay)),
        ..stay(trend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::demand::Endpoint;

    fn bounds() -> Bounds {
        Bounds {
            min: 0,
            max: 8,
            concurrency: Some(10),
            kv_utilization: 0.8,
            queue_wait: Duration::from_secs(1),
            scale_down_delay: Duration::from_secs(60),
            expected_start: Duration::from_secs(30),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn demand(in_flight: u32, queued: u32, held: u32) -> Demand {
        Demand {
            replicas: 1,
            in_flight,
            queued,
            held,
            ..Demand::default()
        }
    }

    fn look(bounds: &Bounds, trend: Trend, replicas: u32, demand: &Demand, second: i64) -> Wanted {
        wanted(
            bounds,
            trend,
            Now {
                replicas,
                starting: 0,
                rolling: false,
                demand,
                at: at(second),
            },
        )
    }

    #[test]
    fn from_zero_at_once_and_as_many_as_the_held_need() {
        for (held, expected) in [(0, 0), (1, 1), (10, 1), (11, 2), (500, 8)] {
            assert_eq!(
                look(&bounds(), Trend::default(), 0, &demand(0, 0, held), 0).replicas,
                expected,
                "{held}"
            );
        }
    }

    #[test]
    fn more_only_after_queue_wait() {
        let first = look(&bounds(), Trend::default(), 1, &demand(10, 15, 0), 0);
        assert_eq!((first.replicas, first.look_again), (1, Some(at(1))));
        let second = look(&bounds(), first.trend, 1, &demand(10, 15, 0), 1);
        assert_eq!(second.replicas, 3, "25 requests at 10 a pod");
        let gone = look(&bounds(), first.trend, 1, &demand(5, 0, 0), 1);
        assert_eq!((gone.replicas, gone.trend.short_since), (1, None));
    }

    #[test]
    fn none_added_while_one_starts_unless_the_backlog_outlives_it() {
        let demand = demand(0, 0, 25);
        let now = |second| Now {
            replicas: 1,
            starting: 1,
            rolling: false,
            demand: &demand,
            at: at(second),
        };
        let first = wanted(&bounds(), Trend::default(), now(0));
        assert_eq!((first.replicas, first.look_again), (1, Some(at(30))));
        assert_eq!(wanted(&bounds(), first.trend, now(29)).replicas, 1);
        assert_eq!(wanted(&bounds(), first.trend, now(30)).replicas, 3);
    }

    #[test]
    fn kv_use_asks_for_pods_too() {
        let mut demand = demand(2, 0, 0);
        for pod in ["a", "b"] {
            let endpoint = Endpoint {
                eligible: true,
                kv_usage: Some(0.9),
                ..Endpoint::default()
            };
            demand.endpoints.insert(pod.to_owned(), endpoint);
        }
        let trend = Trend {
            short_since: Some(at(0)),
            ..Trend::default()
        };
        assert_eq!(
            look(&bounds(), trend, 2, &demand, 1).replicas,
            3,
            "1.8 / 0.8 = 2.25"
        );
    }

    #[test]
    fn fewer_one_at_a_time_after_the_delay() {
        let idle = demand(3, 0, 0);
        let first = look(&bounds(), Trend::default(), 4, &idle, 0);
        assert_eq!((first.replicas, first.look_again), (4, Some(at(60))));
        let second = look(&bounds(), first.trend, 4, &idle, 60);
        assert_eq!((second.replicas, second.trend.surplus_since), (3, None));
        assert_eq!(
            look(&bounds(), first.trend, 1, &demand(0, 0, 0), 999).replicas,
            1,
            "never the last"
        );
        let full = look(&bounds(), first.trend, 2, &demand(9, 0, 0), 60);
        assert_eq!(
            (full.replicas, full.trend.surplus_since),
            (2, None),
            "9 > 80 % of 10"
        );
    }

    #[test]
    fn nothing_is_removed_on_half_knowledge_or_in_a_rollout() {
        let trend = Trend {
            surplus_since: Some(at(0)),
            ..Trend::default()
        };
        let silent = Demand {
            silent: vec!["g".to_owned()],
            ..demand(0, 0, 0)
        };
        assert_eq!(look(&bounds(), trend, 3, &silent, 100).replicas, 3);
        let known = demand(0, 0, 0);
        let now = Now {
            replicas: 3,
            starting: 0,
            rolling: true,
            demand: &known,
            at: at(100),
        };
        assert_eq!(wanted(&bounds(), trend, now).replicas, 3);
    }

    #[test]
    fn bounds_hold_at_once() {
        let bounds = Bounds {
            min: 2,
            max: 3,
            ..bounds()
        };
        let idle = demand(0, 0, 0);
        assert_eq!(look(&bounds, Trend::default(), 0, &idle, 0).replicas, 2);
        assert_eq!(
            look(&bounds, Trend::default(), 6, &idle, 0).replicas,
            5,
            "one at a time"
        );
        let trend = Trend {
            surplus_since: Some(at(0)),
            ..Trend::default()
        };
        assert_eq!(look(&bounds, trend, 2, &idle, 100).replicas, 2);
    }

    #[test]
    fn a_pod_takes_what_the_spec_or_its_sidecar_says() {
        let endpoint = |concurrency, eligible| Endpoint {
            eligible,
            concurrency,
            in_flight: 3,
            ..Endpoint::default()
        };
        // Spec, endpoints, what was heard before → requests at once.
        let check = |spec: Option<u32>, endpoints: &[Endpoint], before: Option<u32>, expected: u32| {
            let bounds = Bounds {
                concurrency: spec,
                ..bounds()
            };
            let demand = Demand {
                endpoints: endpoints
                    .iter()
                    .enumerate()
                    .map(|(index, endpoint)| (index.to_string(), endpoint.clone()))
                    .collect(),
                // A queue beside an endpoint that is not full teaches nothing.
                ..demand(3, 1, 0)
            };
            let trend = hear(
                Trend {
                    told_concurrency: before,
                    ..Trend::default()
                },
                &demand,
            );
            assert_eq!(
                per_pod(&bounds, &trend),
                expected,
                "{spec:?} {endpoints:?} {before:?}"
            );
        };
        check(Some(10), &[endpoint(Some(4), true)], None, 10);
        check(None, &[endpoint(Some(4), true)], None, 4);
        check(
            None,
            &[endpoint(Some(4), true), endpoint(Some(9), true)],
            Some(2),
            4,
        );
        check(None, &[endpoint(Some(4), false)], Some(9), 9);
        check(None, &[], Some(9), 9);
        check(None, &[endpoint(None, true)], None, AUTO_CONCURRENCY);
    }

    #[test]
    fn what_sidecars_said_is_remembered_at_zero() {
        let bounds = Bounds {
            concurrency: None,
            ..bounds()
        };
        let mut serving = demand(4, 4, 0);
        serving.endpoints.insert(
            "a".to_owned(),
            Endpoint {
                eligible: true,
                concurrency: Some(4),
                ..Endpoint::default()
            },
        );
        let first = look(&bounds, Trend::default(), 1, &serving, 0);
        assert_eq!(look(&bounds, first.trend, 1, &serving, 1).replicas, 2);
        let zero = look(&bounds, first.trend, 0, &demand(0, 0, 9), 2);
        assert_eq!(zero.replicas, 3);
        let never = look(&bounds, Trend::default(), 0, &demand(0, 0, 65), 2);
        assert_eq!(never.replicas, 2, "what a sidecar allows by itself");
    }

    proptest::proptest! {
        #[test]
        fn always_inside_the_bounds_and_down_by_one_at_most(
            min in 0_u32..4, span in 0_u32..6, replicas in 0_u32..12, in_flight in 0_u32..200, queued in 0_u32..200,
            held in 0_u32..200, starting in 0_u32..3, second in 0_i64..1_000, since in 0_i64..1_000,
        ) {
            let bounds = Bounds { min, max: (min + span).max(1), ..bounds() };
            let demand = demand(in_flight, queued, held);
            let trend = Trend {
                short_since: Some(at(since)), surplus_since: Some(at(since)), told_concurrency: None,
            };
            let now = Now { replicas, starting, rolling: false, demand: &demand, at: at(second) };
            let wanted = wanted(&bounds, trend, now).replicas;
            proptest::prop_assert!(wanted + 1 >= replicas);
            proptest::prop_assert!(wanted <= bounds.max || wanted + 1 == replicas);
            proptest::prop_assert!(wanted >= min || wanted + 1 == replicas && replicas > bounds.max);
            proptest::prop_assert!(wanted >= 1 || replicas == 0, "the last pod goes only through idleness");
        }
    }
}
