//! Hand-computed numbers, and the bounds that hold for all.

use super::*;
use crate::scaling::demand::Endpoint;

fn cost(start: f64, start_squared: f64, waiting_weight: f64, arrivals: f64) -> StopCost {
    StopCost {
        start,
        start_squared,
        waiting_weight,
        arrivals,
        refill: Some(0.0),
    }
}

fn with_refill(cost: StopCost, refill: Option<f64>) -> StopCost {
    StopCost { refill, ..cost }
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
        // The KV cache is computed again once, whatever waiting weighs.
        (with_refill(cost(60.0, 3_600.0, 0.0, 5.0), Some(12.5)), 72.5),
        (with_refill(cost(3.0, 10.0, 2.0, 0.5), Some(6.0)), 20.0),
        // Unknown is left out, and said so by the sentence.
        (with_refill(cost(3.0, 10.0, 2.0, 0.5), None), 14.0),
    ] {
        assert_eq!(break_even(given), Duration::from_secs_f64(expected), "{given:?}");
    }
}

#[test]
fn arrivals_are_found_behind_a_break_even() {
    let known = cost(3.0, 10.0, 2.0, 0.5);
    let found = arrivals_behind(known, break_even(known)).unwrap();
    assert!((found - 0.5).abs() < 1e-9, "{found}");
    let filled = with_refill(known, Some(6.0));
    let found = arrivals_behind(filled, break_even(filled)).unwrap();
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

#[test]
fn the_sentence_names_the_refill_or_says_that_it_is_unknown() {
    let policy = Policy::BreakEven {
        min_after: None,
        max_after: None,
    };
    let demand = idle_demand();
    let check = |refill: Option<f64>, expected: &str| {
        let cost = with_refill(cost(10.0, 100.0, 1.0, 0.0), refill);
        let clock = Clock {
            demand: &demand,
            starting: None,
            first_ready: None,
            not_before: None,
            now: at(12),
        };
        let verdict = judge(&clock, cost, policy, false);
        assert_eq!(verdict.refill.map(|it| it.as_secs_f64()), refill);
        let text = sentence(&verdict, cost, policy, 3);
        assert!(text.contains(expected), "{text}");
    };
    check(
        Some(4.5),
        "waiting weighs 1 and KV refill is 4.5s, so stopping pays after 24.5s of idleness",
    );
    check(
        Some(0.0),
        "KV refill is 0s, so stopping pays after 20s of idleness",
    );
    check(
        None,
        "KV refill is unknown, so stopping pays after 20s of idleness",
    );
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
