//! Behaviour of the machine through its events and effects. Long because every rule of order, hold, fence, ejection and
//! lease is shown on the same few builders below, which a split would repeat.

use super::*;
use crate::types::{Class, Decision};

const E1: EndpointId = EndpointId(1);
const E2: EndpointId = EndpointId(2);
const E3: EndpointId = EndpointId(3);

fn at(seconds: f64) -> Time {
    Time(Duration::from_secs_f64(seconds))
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn settings() -> Settings {
    Settings {
        max_waiting: 100,
        max_waiting_bytes: 1_000_000,
        hold_timeout: secs(600),
        wakes: true,
        suspended: false,
        max_workflows: 100,
        first_batch: 2,
    }
}

fn request(id: u64) -> Request {
    Request {
        id: RequestId(id),
        workflow: None,
        class: Class::Standard,
        weight: 1,
        max_wait: None,
        affinity: Affinity::Preferred { max_wait: secs(2) },
        idle_ttl: secs(3_600),
        max_age: secs(86_400),
        tool_pause: secs(60),
        tool_pause_blocks_zero: true,
        prompt_tokens: None,
        bytes: 100,
        not_on: None,
    }
}

fn workflow(number: u8) -> Workflow {
    Workflow([number; 16])
}

fn turn(id: u64, number: u8) -> Request {
    Request {
        workflow: Some(workflow(number)),
        ..request(id)
    }
}

const DONE: Outcome = Outcome::Completed {
    footprint_tokens: Some(1_000),
    tool_call: false,
};
const TOOL: Outcome = Outcome::Completed {
    footprint_tokens: Some(1_000),
    tool_call: true,
};

/// A pool and the clock in front of it.
struct Bench {
    pool: Pool,
    now: f64,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        Self {
            pool: Pool::new(settings),
            now: 0.0,
        }
    }

    fn with(endpoints: &[(EndpointId, u32)]) -> Self {
        let mut bench = Self::new(settings());
        for (endpoint, concurrency) in endpoints {
            bench.ready(*endpoint, *concurrency);
        }
        bench
    }

    fn send(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.pool.on(event, at(self.now), &mut effects);
        effects
    }

    fn ready(&mut self, endpoint: EndpointId, concurrency: u32) -> Vec<Effect> {
        self.send(Event::EndpointReady {
            endpoint,
            concurrency,
        })
    }

    fn arrive(&mut self, request: Request) -> Vec<Effect> {
        self.send(Event::Arrived(request))
    }

    fn finish(&mut self, id: u64, outcome: Outcome) -> Vec<Effect> {
        self.send(Event::Finished(RequestId(id), outcome))
    }

    /// Ticks at every deadline up to then, and returns all effects with their times.
    fn until(&mut self, time: f64) -> Vec<(Time, Effect)> {
        let mut all = Vec::new();
        while let Some(deadline) = self.pool.next_deadline().filter(|deadline| *deadline <= at(time)) {
            assert!(
                deadline > at(self.now),
                "a deadline in the past would spin the shell"
            );
            self.now = deadline.0.as_secs_f64();
            all.extend(
                self.send(Event::Tick)
                    .into_iter()
                    .map(|effect| (deadline, effect)),
            );
        }
        self.now = time;
        all
    }

    fn snapshot(&self) -> crate::Snapshot {
        self.pool.snapshot(at(self.now))
    }
}

/// Short form of effects: `1@2 kept`, `shed 3 QueueFull`, `wake` …
fn short(effects: &[Effect]) -> Vec<String> {
    let one = |effect: &Effect| match effect {
        Effect::Dispatch(RequestId(id), decision) => {
            let home = format!("{:?}", decision.home).to_lowercase();
            format!("{id}@{} {home}", decision.endpoint.0)
        }
        Effect::Shed { request, reason, .. } => format!("shed {} {reason:?}", request.0),
        Effect::Wake => "wake".into(),
        Effect::Fenced(done) => format!("fenced {done}"),
        Effect::Ejected(endpoint, until) => format!("eject {} until {}", endpoint.0, until.0.as_secs_f64()),
    };
    effects.iter().map(one).collect()
}

#[track_caller]
fn check(effects: &[Effect], expected: &[&str]) {
    assert_eq!(short(effects), expected);
}

#[track_caller]
fn check_at(effects: &[(Time, Effect)], expected: &[(f64, &str)]) {
    let got: Vec<_> = effects
        .iter()
        .map(|(time, effect)| {
            (
                time.0.as_secs_f64(),
                short(std::slice::from_ref(effect)).remove(0),
            )
        })
        .collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|(time, text)| (*time, (*text).to_owned()))
        .collect();
    assert_eq!(got, expected);
}

#[test]
fn a_request_without_workflow_goes_to_the_least_loaded() {
    let mut bench = Bench::with(&[(E1, 4), (E2, 4)]);
    let first = short(&bench.arrive(request(1))).remove(0);
    let second = short(&bench.arrive(request(2))).remove(0);
    assert_ne!(first.chars().nth(2), second.chars().nth(2), "{first}, {second}");
    assert!(first.ends_with("none"));
}

#[test]
fn new_workflows_spread_by_homes_before_load() {
    let mut bench = Bench::with(&[(E1, 8)]);
    check(&bench.arrive(turn(1, 1)), &["1@1 new"]);
    check(&bench.finish(1, DONE), &[]);
    bench.send(Event::EndpointNotReady(E1));
    bench.ready(E2, 8);
    for id in 2..5 {
        check(&bench.arrive(request(id)), &[&format!("{id}@2 none")]);
    }
    bench.ready(E1, 8);
    check(&bench.arrive(turn(5, 5)), &["5@2 new"]);
    check(&bench.arrive(turn(6, 6)), &["6@1 new"]);
}

#[test]
fn turns_of_a_workflow_share_its_home() {
    let mut bench = Bench::with(&[(E1, 4)]);
    check(&bench.arrive(turn(1, 1)), &["1@1 new"]);
    bench.ready(E2, 4);
    check(&bench.arrive(turn(2, 1)), &["2@1 kept"]);
    bench.finish(1, DONE);
    bench.finish(2, DONE);
    check(&bench.arrive(turn(3, 1)), &["3@1 kept"]);
    assert_eq!(bench.snapshot().open_workflows, 1);
    assert_eq!(bench.snapshot().endpoints[0].kv_tokens, 1_000);
}

#[test]
fn a_full_home_is_waited_for_and_then_left() {
    let mut bench = Bench::with(&[(E1, 1)]);
    check(&bench.arrive(turn(1, 1)), &["1@1 new"]);
    bench.ready(E2, 1);
    check(&bench.arrive(turn(2, 1)), &[]);
    assert_eq!(bench.pool.next_deadline(), Some(at(2.0)));
    check_at(&bench.until(10.0), &[(2.0, "2@2 moved")]);
    // Having moved at 2 s, the workflow stays until 32 s, although the wait for its home ends at 12 s.
    check(&bench.arrive(turn(3, 1)), &[]);
    bench.finish(1, DONE);
    check_at(&bench.until(60.0), &[(32.0, "3@1 moved")]);
}

#[test]
fn a_home_that_frees_in_time_is_kept() {
    let mut bench = Bench::with(&[(E1, 1)]);
    bench.arrive(turn(1, 1));
    bench.ready(E2, 1);
    check(&bench.arrive(turn(2, 1)), &[]);
    bench.now = 1.9;
    check(&bench.finish(1, DONE), &["2@1 kept"]);
}

#[test]
fn required_affinity_waits_for_a_home_that_is_full_or_not_ready() {
    let required = |id| Request {
        affinity: Affinity::Required,
        ..turn(id, 1)
    };
    let mut bench = Bench::with(&[(E1, 1)]);
    bench.arrive(required(1));
    bench.ready(E2, 1);
    check(&bench.arrive(required(2)), &[]);
    check_at(&bench.until(500.0), &[]);
    check(&bench.send(Event::EndpointNotReady(E1)), &[]);
    check(&bench.finish(1, DONE), &[]);
    check(&bench.ready(E1, 1), &["2@1 kept"]);
    // A home that drains, or is gone, is left at once.
    check(&bench.arrive(required(3)), &[]);
    check(&bench.send(Event::EndpointDraining(E1, true)), &["3@2 moved"]);
    check(&bench.arrive(required(4)), &[]);
    bench.finish(3, DONE);
    bench.arrive(required(5));
    check(&bench.send(Event::EndpointGone(E2)), &["wake"]);
    check(&bench.ready(E3, 2), &["5@3 new"]);
}

#[test]
fn a_required_home_that_stays_away_sheds_at_the_hold_timeout() {
    let required = |id| Request {
        affinity: Affinity::Required,
        ..turn(id, 1)
    };
    let mut bench = Bench::with(&[(E1, 1), (E2, 1)]);
    let home = match bench.arrive(required(1)).as_slice() {
        [Effect::Dispatch(_, decision)] => decision.endpoint,
        other => panic!("{other:?}"),
    };
    bench.finish(1, DONE);
    bench.now = 5.0;
    bench.send(Event::EndpointNotReady(home));
    bench.now = 10.0;
    check(&bench.arrive(required(2)), &[]);
    check_at(&bench.until(700.0), &[(610.0, "shed 2 ColdStartTimeout")]);
}

#[test]
fn a_home_that_is_not_ready_drains_or_is_gone_is_left_at_once() {
    for (lose, home) in [
        (Event::EndpointNotReady(E1), "moved"),
        (Event::EndpointDraining(E1, true), "moved"),
        (Event::EndpointGone(E1), "new"),
    ] {
        let mut bench = Bench::with(&[(E1, 1)]);
        bench.arrive(turn(1, 1));
        bench.ready(E2, 1);
        check(&bench.arrive(turn(2, 1)), &[]);
        check(&bench.send(lose.clone()), &[&format!("2@2 {home}")]);
    }
}

#[test]
fn waiting_turns_follow_the_home_that_their_workflow_gets() {
    let mut bench = Bench::new(Settings {
        first_batch: 1,
        ..settings()
    });
    check(&bench.arrive(turn(1, 1)), &["wake"]);
    for id in 2..5 {
        check(&bench.arrive(turn(id, 1)), &[]);
    }
    bench.now = 60.0;
    check(&bench.ready(E1, 4), &["1@1 new"]);
    check(&bench.ready(E2, 4), &[]);
    bench.now = 61.0;
    check(
        &bench.send(Event::FirstByte(RequestId(1))),
        &["2@1 kept", "3@1 kept", "4@1 kept"],
    );
}

#[test]
fn a_cold_endpoint_gets_a_first_batch_until_it_answers() {
    let mut bench = Bench::new(settings());
    for id in 1..8 {
        bench.arrive(request(id));
    }
    bench.now = 40.0;
    let first = bench.ready(E1, 4);
    check(&first, &["1@1 none", "2@1 none"]);
    assert!(
        matches!(first[0], Effect::Dispatch(_, Decision { held: true, waited, .. }) if waited == secs(40))
    );
    assert_eq!(
        bench.snapshot().endpoints[0].ready_to_first_dispatch,
        Some(Duration::ZERO)
    );
    // One that ends without an answer makes room for one, not for all.
    check(&bench.finish(1, Outcome::Failed), &["3@1 none"]);
    check(
        &bench.send(Event::FirstByte(RequestId(2))),
        &["4@1 none", "5@1 none"],
    );
    check(&bench.finish(2, DONE), &["6@1 none"]);
}

#[test]
fn an_endpoint_that_appears_with_nothing_waiting_is_not_cold() {
    let mut bench = Bench::with(&[(E1, 4)]);
    for id in 1..5 {
        check(&bench.arrive(request(id)), &[&format!("{id}@1 none")]);
    }
}

#[test]
fn at_zero_requests_are_held_and_wake_once() {
    let mut bench = Bench::new(settings());
    check(&bench.arrive(request(1)), &["wake"]);
    check(&bench.arrive(request(2)), &[]);
    bench.now = 3.0;
    let snapshot = bench.snapshot();
    assert_eq!(
        (snapshot.held, snapshot.queued, snapshot.waiting_bytes),
        (2, 0, 200)
    );
    assert_eq!(snapshot.oldest_held, Some(secs(3)));
    // An endpoint that vanishes before it served is a reason to say it again.
    check(&bench.send(Event::EndpointNotReady(E1)), &[]);
    check(&bench.send(Event::EndpointGone(E1)), &["wake"]);
    // Gone is final.
    check(&bench.ready(E1, 4), &[]);
    check(&bench.ready(E2, 4), &["1@2 none", "2@2 none"]);
    // A pool that loses its endpoints while requests are queued wakes, too.
    check(&bench.arrive(request(3)), &[]);
    check(&bench.send(Event::EndpointGone(E2)), &["wake"]);
}

#[test]
fn a_hold_ends_at_its_timeout() {
    let mut bench = Bench::new(Settings {
        hold_timeout: secs(30),
        ..settings()
    });
    bench.arrive(request(1));
    bench.now = 10.0;
    bench.arrive(request(2));
    check_at(
        &bench.until(100.0),
        &[
            (30.0, "shed 1 ColdStartTimeout"),
            (40.0, "shed 2 ColdStartTimeout"),
        ],
    );
    check(&bench.arrive(request(3)), &["wake"]);
}

#[test]
fn time_in_a_queue_does_not_count_as_held() {
    let mut bench = Bench::new(Settings {
        hold_timeout: secs(30),
        ..settings()
    });
    bench.ready(E1, 1);
    bench.arrive(request(1));
    bench.arrive(request(2));
    check_at(&bench.until(100.0), &[]);
    check(&bench.send(Event::EndpointNotReady(E1)), &["wake"]);
    check_at(&bench.until(200.0), &[(130.0, "shed 2 ColdStartTimeout")]);
}

#[test]
fn without_anything_to_start_an_endpoint_nothing_is_held() {
    let mut bench = Bench::new(Settings {
        wakes: false,
        ..settings()
    });
    check(&bench.arrive(request(1)), &["shed 1 NoCapacity"]);
    bench.ready(E1, 1);
    check(&bench.arrive(request(2)), &["2@1 none"]);
    check(&bench.arrive(request(3)), &[]);
    check(&bench.send(Event::EndpointGone(E1)), &["shed 3 NoCapacity"]);
}

#[test]
fn a_suspended_pool_sheds_arrivals_and_waiting() {
    let mut bench = Bench::with(&[(E1, 1)]);
    bench.arrive(request(1));
    bench.arrive(request(2));
    check(
        &bench.send(Event::Settings(Settings {
            suspended: true,
            ..settings()
        })),
        &["shed 2 Suspended"],
    );
    check(&bench.arrive(request(3)), &["shed 3 Suspended"]);
    assert_eq!(bench.snapshot().in_flight, 1);
}

#[test]
fn bounds_shed_the_newcomer() {
    let mut bench = Bench::new(Settings {
        max_waiting: 2,
        ..settings()
    });
    bench.arrive(request(1));
    bench.arrive(request(2));
    check(&bench.arrive(request(3)), &["shed 3 QueueFull"]);
    let mut bench = Bench::new(Settings {
        max_waiting_bytes: 250,
        ..settings()
    });
    bench.arrive(request(1));
    bench.arrive(request(2));
    check(&bench.arrive(request(3)), &["shed 3 QueueFull"]);
    check(
        &bench.arrive(Request {
            bytes: 50,
            ..request(4)
        }),
        &[],
    );
    assert_eq!(bench.snapshot().waiting_bytes, 250);
    // Bounds are on waiting: what an endpoint can start at once passes.
    bench.ready(E1, 9);
    bench.send(Event::FirstByte(RequestId(1)));
    check(
        &bench.arrive(Request {
            bytes: 9_999,
            ..request(5)
        }),
        &["5@1 none"],
    );
}

#[test]
fn advice_on_when_to_retry_comes_from_the_last_cold_start() {
    let mut bench = Bench::new(Settings {
        max_waiting: 1,
        ..settings()
    });
    bench.arrive(request(1));
    let advice = |effects: Vec<Effect>| match effects.as_slice() {
        [Effect::Shed { retry_after, .. }] => *retry_after,
        other => panic!("{other:?}"),
    };
    assert_eq!(advice(bench.arrive(request(2))), None);
    bench.now = 50.0;
    bench.ready(E1, 1);
    bench.finish(1, DONE);
    bench.send(Event::EndpointGone(E1));
    bench.arrive(request(3));
    bench.now = 60.0;
    assert_eq!(advice(bench.arrive(request(4))), Some(secs(40)));
}

#[test]
fn failed_connects_eject_for_longer_and_longer() {
    let mut bench = Bench::with(&[(E1, 8)]);
    let mut id = 0;
    for span in [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
        id += 1;
        check(&bench.arrive(request(id)), &[&format!("{id}@1 none")]);
        let end = bench.now + span;
        check(
            &bench.finish(id, Outcome::ConnectFailed),
            &[&format!("eject 1 until {end}")],
        );
        assert!(!bench.snapshot().endpoints[0].eligible);
        check_at(&bench.until(end), &[]);
        assert!(bench.snapshot().endpoints[0].eligible);
    }
    // An answer restores full trust.
    check(&bench.arrive(request(50)), &["50@1 none"]);
    check(&bench.arrive(request(51)), &[]);
    check(&bench.send(Event::FirstByte(RequestId(50))), &["51@1 none"]);
    let end = bench.now + 1.0;
    check(
        &bench.finish(51, Outcome::ConnectFailed),
        &[&format!("eject 1 until {end}")],
    );
    check(&bench.finish(50, Outcome::ConnectFailed), &[]);
}

#[test]
fn with_all_ejected_requests_are_queued_and_tried_one_at_a_time() {
    let mut bench = Bench::new(Settings {
        hold_timeout: secs(5),
        ..settings()
    });
    bench.ready(E1, 8);
    bench.arrive(request(1));
    check(&bench.finish(1, Outcome::ConnectFailed), &["eject 1 until 1"]);
    for id in 2..5 {
        check(&bench.arrive(request(id)), &[]);
    }
    assert_eq!((bench.snapshot().queued, bench.snapshot().held), (3, 0));
    check_at(&bench.until(1.0), &[(1.0, "2@1 none")]);
    check(&bench.finish(2, Outcome::ConnectFailed), &["eject 1 until 3"]);
    // Probation does not stop the clock of the hold: 5 s after the arrival at 0 s it is over.
    check_at(
        &bench.until(9.0),
        &[(3.0, "3@1 none"), (5.0, "shed 4 ColdStartTimeout")],
    );
}

#[test]
fn being_ready_again_ends_an_ejection_only_after_not_being_ready() {
    let mut bench = Bench::with(&[(E1, 8)]);
    bench.arrive(request(1));
    bench.finish(1, Outcome::ConnectFailed);
    bench.arrive(request(2));
    check(&bench.ready(E1, 9), &[]);
    check(&bench.send(Event::EndpointNotReady(E1)), &["wake"]);
    check(&bench.ready(E1, 9), &["2@1 none"]);
}

#[test]
fn a_retry_goes_first_in_its_class_and_not_to_the_endpoint_that_failed() {
    let mut bench = Bench::with(&[(E1, 1)]);
    bench.arrive(turn(1, 1));
    bench.ready(E2, 1);
    bench.arrive(turn(2, 2));
    check(&bench.arrive(turn(3, 2)), &[]);
    check(&bench.finish(1, Outcome::Failed), &[]);
    check(
        &bench.arrive(Request {
            not_on: Some(E1),
            ..turn(4, 1)
        }),
        &[],
    );
    check(&bench.finish(2, DONE), &["4@2 moved"]);
}

#[test]
fn a_retry_without_another_endpoint_is_refused() {
    let retry = |id| Request {
        not_on: Some(E1),
        ..request(id)
    };
    let mut bench = Bench::with(&[(E1, 1)]);
    check(&bench.arrive(retry(1)), &["shed 1 NoCapacity"]);
    // Another that starts is waited for; if it never gets ready, no longer than a hold.
    check(&bench.send(Event::EndpointNotReady(E2)), &[]);
    check(&bench.arrive(retry(2)), &[]);
    check_at(&bench.until(700.0), &[(600.0, "shed 2 ColdStartTimeout")]);
    check(&bench.arrive(retry(3)), &[]);
    check(&bench.ready(E2, 1), &["3@2 none"]);
    check(&bench.arrive(retry(4)), &[]);
    check(
        &bench.send(Event::EndpointDraining(E2, true)),
        &["shed 4 NoCapacity"],
    );
    // The failed endpoint being gone, the retry is as any other request.
    check(&bench.send(Event::EndpointGone(E1)), &[]);
    check(&bench.arrive(retry(5)), &["wake"]);
    check(&bench.ready(E3, 1), &["5@3 none"]);
}

#[test]
fn a_retry_of_a_required_turn_whose_home_failed_it_is_refused() {
    let mut bench = Bench::with(&[(E1, 1)]);
    bench.arrive(Request {
        affinity: Affinity::Required,
        ..turn(1, 1)
    });
    bench.ready(E2, 1);
    bench.finish(1, Outcome::Failed);
    let retry = Request {
        affinity: Affinity::Required,
        not_on: Some(E1),
        ..turn(2, 1)
    };
    check(&bench.arrive(retry), &["shed 2 NoCapacity"]);
}

#[test]
fn the_order_is_overdue_returning_new_and_inside_by_class_and_urgency() {
    let mut bench = Bench::with(&[(E1, 1)]);
    bench.arrive(turn(1, 1));
    let affinity = Affinity::Preferred { max_wait: secs(500) };
    let class = |id, class| Request {
        class,
        affinity,
        ..request(id)
    };
    bench.arrive(Request {
        max_wait: Some(secs(250)),
        ..class(2, Class::Batch)
    });
    bench.arrive(class(3, Class::Batch));
    bench.arrive(class(4, Class::Standard));
    bench.now = 70.0;
    // At 130 s: 1·(60 + 130) of the one above, 2·(60 + 60) of this, 1·(60 + 60) of the last.
    bench.arrive(Request {
        weight: 2,
        ..class(5, Class::Standard)
    });
    bench.arrive(class(6, Class::Standard));
    bench.arrive(Request {
        affinity,
        class: Class::Batch,
        ..turn(7, 1)
    });
    bench.now = 125.0;
    bench.arrive(class(8, Class::Interactive));
    bench.now = 130.0;
    let mut order = Vec::new();
    let mut running = 1;
    for _ in 0..7 {
        if running == 8 {
            bench.now = 250.0;
        }
        match bench.finish(running, DONE).as_slice() {
            [Effect::Dispatch(RequestId(id), _)] => running = *id,
            other => panic!("{other:?}"),
        }
        order.push(running);
    }
    assert_eq!(order, [7, 8, 2, 5, 4, 6, 3]);
}

#[test]
fn a_fence_needs_an_idle_pool_holds_arrivals_and_lapses() {
    let mut bench = Bench::with(&[(E1, 4)]);
    bench.arrive(request(1));
    check(&bench.send(Event::Fence { until: at(9.0) }), &["fenced false"]);
    bench.finish(1, DONE);
    check(&bench.send(Event::Fence { until: at(9.0) }), &["fenced true"]);
    check(&bench.send(Event::Fence { until: at(20.0) }), &["fenced true"]);
    bench.now = 10.0;
    assert!(bench.snapshot().fenced);
    check(&bench.arrive(request(2)), &["wake"]);
    assert_eq!(bench.snapshot().held, 1);
    check(&bench.send(Event::Fence { until: at(30.0) }), &["fenced false"]);
    check_at(&bench.until(25.0), &[(20.0, "2@1 none")]);
    bench.finish(2, DONE);
    check(&bench.send(Event::Fence { until: at(90.0) }), &["fenced true"]);
    bench.arrive(request(3));
    match bench.send(Event::Unfence).as_slice() {
        [Effect::Dispatch(_, decision)] => assert!(decision.held),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tool_pause_keeps_the_pool_from_being_idle_until_the_workflow_is_back() {
    let mut bench = Bench::with(&[(E1, 4)]);
    let fence = |bench: &mut Bench| {
        let until = at(bench.now + 1.0);
        let answer = short(&bench.send(Event::Fence { until })).remove(0);
        bench.send(Event::Unfence);
        answer
    };
    bench.arrive(turn(1, 1));
    bench.finish(1, TOOL);
    assert_eq!(bench.snapshot().pause_ends, Some(at(60.0)));
    assert_eq!(bench.snapshot().paused_workflows, 1);
    assert_eq!(fence(&mut bench), "fenced false");
    bench.until(60.0);
    assert_eq!(fence(&mut bench), "fenced true");
    bench.arrive(turn(2, 1));
    bench.finish(2, TOOL);
    bench.arrive(turn(3, 1));
    bench.finish(3, DONE);
    assert_eq!(fence(&mut bench), "fenced true");
    bench.arrive(Request {
        tool_pause_blocks_zero: false,
        ..turn(4, 1)
    });
    bench.finish(4, TOOL);
    assert_eq!(fence(&mut bench), "fenced true");
    bench.arrive(Request {
        tool_pause: Duration::ZERO,
        ..turn(5, 1)
    });
    bench.finish(5, TOOL);
    assert_eq!(fence(&mut bench), "fenced true");
}

#[test]
fn bindings_end_by_idle_time_age_and_count() {
    let mut bench = Bench::with(&[(E1, 9)]);
    let brief = |id| Request {
        idle_ttl: secs(10),
        ..turn(id, 1)
    };
    bench.arrive(brief(1));
    bench.until(100.0);
    assert_eq!(bench.snapshot().open_workflows, 1, "in use");
    bench.finish(1, DONE);
    assert_eq!(bench.pool.next_deadline(), Some(at(110.0)));
    bench.now = 109.0;
    check(&bench.arrive(brief(2)), &["2@1 kept"]);
    bench.finish(2, DONE);
    bench.until(119.0);
    assert_eq!(bench.snapshot().open_workflows, 0);
    check(
        &bench.arrive(Request {
            max_age: secs(50),
            ..turn(3, 1)
        }),
        &["3@1 new"],
    );
    bench.until(200.0);
    assert_eq!(bench.snapshot().open_workflows, 1);
    bench.finish(3, DONE);
    assert_eq!(bench.snapshot().open_workflows, 0, "too old, and idle");
    let mut few = settings();
    few.max_workflows = 2;
    bench.send(Event::Settings(few));
    check(&bench.arrive(turn(11, 11)), &["11@1 new"]);
    check(&bench.arrive(turn(12, 12)), &["12@1 new"]);
    check(&bench.arrive(turn(13, 13)), &["13@1 new"]);
    assert_eq!(bench.snapshot().open_workflows, 2, "those in use are kept");
    for id in [12, 11, 13] {
        bench.now += 1.0;
        bench.finish(id, DONE);
    }
    check(&bench.arrive(turn(14, 14)), &["14@1 new"]);
    check(&bench.arrive(turn(15, 11)), &["15@1 kept"]);
    check(&bench.arrive(turn(16, 12)), &["16@1 new"]);
}

#[test]
fn what_endpoints_remember_restores_homes() {
    let mut bench = Bench::new(settings());
    let homes = |age: u64| vec![(workflow(1), Some(500), secs(age))];
    check(
        &bench.send(Event::Remembered {
            endpoint: E1,
            homes: homes(100),
        }),
        &[],
    );
    check(
        &bench.send(Event::Remembered {
            endpoint: E2,
            homes: homes(50),
        }),
        &[],
    );
    check(
        &bench.send(Event::Remembered {
            endpoint: E1,
            homes: homes(60),
        }),
        &[],
    );
    check(
        &bench.send(Event::Remembered {
            endpoint: E3,
            homes: homes(3_600),
        }),
        &[],
    );
    assert_eq!(bench.snapshot().endpoints[1].kv_tokens, 500);
    for endpoint in [E1, E2, E3] {
        bench.ready(endpoint, 4);
    }
    check(&bench.arrive(turn(1, 1)), &["1@2 kept"]);
    // In use, the binding is not changed by anyone's memory, however fresh.
    bench.now = 10.0;
    bench.send(Event::Remembered {
        endpoint: E1,
        homes: homes(0),
    });
    check(&bench.arrive(turn(2, 1)), &["2@2 kept"]);
    bench.send(Event::EndpointGone(E2));
    bench.send(Event::Remembered {
        endpoint: E2,
        homes: homes(0),
    });
    bench.send(Event::Remembered {
        endpoint: E1,
        homes: homes(0),
    });
    check(&bench.arrive(turn(3, 1)), &["3@1 kept"]);
}

#[test]
fn cancel_and_unknown_ids_change_nothing_else() {
    let mut bench = Bench::with(&[(E1, 1)]);
    bench.arrive(request(1));
    bench.arrive(request(2));
    check(&bench.send(Event::Cancel(RequestId(2))), &[]);
    let before = bench.snapshot();
    assert_eq!((before.in_flight, before.queued, before.waiting_bytes), (1, 0, 0));
    bench.now = 5.0;
    for event in [
        Event::Cancel(RequestId(1)),
        Event::Cancel(RequestId(7)),
        Event::FirstByte(RequestId(7)),
        Event::Finished(RequestId(2), DONE),
        Event::EndpointGone(E3),
        Event::Tick,
    ] {
        check(&bench.send(event), &[]);
    }
    assert_eq!(bench.snapshot(), before);
}

#[test]
fn places_at_a_gone_endpoint_still_count_until_they_end() {
    let mut bench = Bench::with(&[(E1, 1)]);
    bench.arrive(turn(1, 1));
    bench.send(Event::EndpointGone(E1));
    assert_eq!(bench.snapshot().in_flight, 1);
    check(&bench.send(Event::Fence { until: at(9.0) }), &["fenced false"]);
    bench.ready(E2, 1);
    check(&bench.arrive(turn(2, 1)), &["2@2 new"]);
    bench.finish(1, DONE);
    assert_eq!(bench.snapshot().endpoints[0].in_flight, 1);
    assert_eq!(
        bench.snapshot().endpoints[0].kv_tokens,
        0,
        "its tokens were elsewhere"
    );
}

#[test]
fn the_end_of_a_turn_of_a_forgotten_home_leaves_the_new_one_in_use() {
    let mut bench = Bench::with(&[(E1, 1)]);
    let brief = |id| Request {
        idle_ttl: secs(10),
        ..turn(id, 1)
    };
    bench.arrive(brief(1));
    bench.send(Event::EndpointGone(E1));
    bench.ready(E2, 3);
    check(&bench.arrive(brief(2)), &["2@2 new"]);
    bench.finish(1, DONE);
    check_at(&bench.until(100.0), &[]);
    check(&bench.arrive(brief(3)), &["3@2 kept"]);
}

#[test]
fn less_concurrency_takes_effect_as_requests_end() {
    let mut bench = Bench::with(&[(E1, 3)]);
    for id in 1..4 {
        bench.arrive(request(id));
    }
    bench.ready(E1, 1);
    bench.arrive(request(4));
    check(&bench.finish(1, DONE), &[]);
    check(&bench.finish(2, DONE), &[]);
    check(&bench.finish(3, DONE), &["4@1 none"]);
}
