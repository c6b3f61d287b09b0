//! Looks at one pool, one after the other, with what it should do at each.

use super::*;
use crate::scaling::demand::Endpoint;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn settings() -> Settings {
    Settings {
        bounds: Bounds {
            min: 0,
            max: 3,
            concurrency: Some(10),
            kv_utilization: 0.8,
            queue_wait: secs(1),
            scale_down_delay: secs(60),
            expected_start: Duration::ZERO,
        },
        policy: Policy::Fixed(secs(20)),
        waiting_weight: 1.0,
        prior: secs(30),
        deadline: secs(100),
        mode: Mode::Run,
    }
}

fn pod(name: &str, created: i64, ready: Option<i64>) -> EnginePod {
    EnginePod {
        name: name.to_owned(),
        uid: name.to_owned(),
        created: at(created),
        scheduled: Some(at(created)),
        sidecar_started: None,
        engine_started: Some(at(created)),
        engine_up: ready.is_some(),
        restarts: 0,
        ready: ready.is_some(),
        ready_changed: ready.map(at),
        terminating: false,
        trouble: None,
        deletion_cost: None,
    }
}

fn view(replicas: u32, pods: Vec<EnginePod>, demand: Demand) -> View {
    View {
        settings: settings(),
        replicas: Some(replicas),
        rolling: false,
        pods,
        demand,
    }
}

fn known(last: Option<i64>) -> Demand {
    Demand {
        replicas: 1,
        last_activity: last.map(at),
        ..Demand::default()
    }
}

fn held(count: u32) -> Demand {
    Demand {
        held: count,
        ..known(None)
    }
}

#[test]
fn a_whole_life() {
    let mut memory = Memory::default();
    // Zero, nothing asked.
    let zero = decide(&view(0, vec![], known(Some(0))), &mut memory, at(10));
    assert_eq!(
        (zero.action, zero.verdict.zero_at, zero.look_again),
        (Action::None, None, None)
    );
    // The first requests come.
    let wake = decide(&view(0, vec![], held(4)), &mut memory, at(11));
    assert_eq!(wake.action, Action::Raise(1));
    memory.ordered_at = Some(at(11));
    // No pod yet, then one that starts: never idle, even when the requests leave.
    let starting = decide(&view(1, vec![], held(4)), &mut memory, at(12));
    assert_eq!((starting.action, starting.starting), (Action::None, 1));
    let left = decide(
        &view(1, vec![pod("a", 11, None)], known(Some(13))),
        &mut memory,
        at(60),
    );
    assert_eq!(
        (left.action, left.verdict.since),
        (Action::None, Err(idle::Blocker::Starting("a".to_owned())))
    );
    assert_eq!(left.look_again, Some(at(111)), "the start's deadline");
    // It is ready after 59 s: the start is measured and the clock begins there.
    let ready = decide(
        &view(1, vec![pod("a", 11, Some(70))], known(Some(13))),
        &mut memory,
        at(70),
    );
    assert_eq!(memory.starts.recent, [secs(59)]);
    assert_eq!((ready.serving, ready.verdict.since.clone()), (1, Ok(at(70))));
    assert_eq!(ready.look_again, Some(at(90)), "the exact instant of the stop");
    // Four were held over 59 s: three followed the first.
    assert!((memory.arrivals() - 3.0 / 59.0).abs() < 1e-9);
    // A request, its end, and the idleness after it.
    let busy = Demand {
        in_flight: 1,
        ..known(Some(75))
    };
    let serving = decide(&view(1, vec![pod("a", 11, Some(70))], busy), &mut memory, at(75));
    assert_eq!((serving.action, serving.verdict.zero_at), (Action::None, None));
    let idle = decide(
        &view(1, vec![pod("a", 11, Some(70))], known(Some(80))),
        &mut memory,
        at(99),
    );
    assert_eq!((idle.action, idle.look_again), (Action::None, Some(at(100))));
    let stop = decide(
        &view(1, vec![pod("a", 11, Some(70))], known(Some(80))),
        &mut memory,
        at(100),
    );
    assert_eq!(stop.action, Action::Zero);
    // A fence that failed is tried again later.
    memory.no_fence_until = Some(at(102));
    let wait = decide(
        &view(1, vec![pod("a", 11, Some(70))], known(Some(80))),
        &mut memory,
        at(101),
    );
    assert_eq!((wait.action, wait.look_again), (Action::None, Some(at(102))));
}

#[test]
fn a_start_past_its_deadline_is_begun_anew_while_someone_waits_and_given_up_when_nobody_does() {
    let late = || vec![pod("a", 0, None)];
    let anew = decide(&view(1, late(), held(1)), &mut Memory::default(), at(100));
    assert_eq!(
        anew.action,
        Action::Restart {
            name: "a".to_owned(),
            uid: "a".to_owned()
        }
    );
    let given_up = decide(&view(1, late(), known(Some(5))), &mut Memory::default(), at(100));
    assert_eq!(given_up.action, Action::Zero);
    let kept = View {
        settings: Settings {
            bounds: Bounds {
                min: 1,
                ..settings().bounds
            },
            ..settings()
        },
        ..view(1, late(), known(Some(5)))
    };
    assert!(matches!(
        decide(&kept, &mut Memory::default(), at(100)).action,
        Action::Restart { .. }
    ));
    let mut told = Memory::default();
    told.hurried.insert("a".to_owned());
    assert_eq!(
        decide(&view(1, late(), held(1)), &mut told, at(101)).action,
        Action::None,
        "deleted already"
    );
}

#[test]
fn a_pod_without_a_node_or_an_image_has_no_deadline() {
    let waiting = EnginePod {
        engine_started: None,
        ..pod("a", 0, None)
    };
    let decision = decide(
        &view(1, vec![waiting], held(1)),
        &mut Memory::default(),
        at(9_999),
    );
    assert_eq!((decision.action, decision.look_again), (Action::None, None));
}

#[test]
fn a_pod_that_cannot_come_up_is_given_up_when_nobody_waits() {
    let look = |trouble, demand| {
        let stuck = EnginePod {
            trouble: Some(trouble),
            ..pod("a", 90, None)
        };
        decide(&view(1, vec![stuck], demand), &mut Memory::default(), at(100)).action
    };
    assert_eq!(
        look(Trouble::Crashing("x".to_owned()), known(Some(5))),
        Action::Zero
    );
    assert_eq!(look(Trouble::Image("x".to_owned()), known(Some(5))), Action::Zero);
    assert_eq!(
        look(Trouble::Crashing("x".to_owned()), held(1)),
        Action::None,
        "somebody waits"
    );
    assert_eq!(
        look(Trouble::Unschedulable("x".to_owned()), known(Some(5))),
        Action::None,
        "a node may come"
    );
}

#[test]
fn suspended_and_refused_pools_stop_without_a_fence() {
    for mode in [Mode::Suspended, Mode::Refused] {
        let off = |replicas, pods| View {
            settings: Settings { mode, ..settings() },
            ..view(
                replicas,
                pods,
                Demand {
                    in_flight: 3,
                    held: 2,
                    ..known(None)
                },
            )
        };
        let memory = &mut Memory::default();
        assert_eq!(
            decide(&off(2, vec![pod("a", 0, Some(9))]), memory, at(10)).action,
            Action::Stop
        );
        assert_eq!(
            decide(&off(0, vec![]), memory, at(11)).action,
            Action::None,
            "held requests wake nobody"
        );
    }
}

#[test]
fn a_fence_left_in_force_is_lifted() {
    let fenced = Demand {
        fenced: true,
        held: 1,
        ..known(None)
    };
    let memory = &mut Memory::default();
    assert_eq!(
        decide(
            &view(1, vec![pod("a", 0, Some(9))], fenced.clone()),
            memory,
            at(10)
        )
        .action,
        Action::Unfence
    );
    assert_eq!(
        decide(&view(0, vec![], fenced), memory, at(11)).action,
        Action::Raise(1),
        "first the wake"
    );
}

#[test]
fn the_end_of_a_pod_whose_engine_never_started_is_hurried_once() {
    let mut ending = pod("a", 0, None);
    ending.terminating = true;
    let memory = &mut Memory::default();
    let hurry = decide(&view(0, vec![ending.clone()], known(Some(0))), memory, at(10));
    assert_eq!(
        hurry.action,
        Action::Hurry {
            name: "a".to_owned(),
            uid: "a".to_owned()
        }
    );
    memory.hurried.insert("a".to_owned());
    assert_eq!(
        decide(&view(0, vec![ending.clone()], known(Some(0))), memory, at(11)).action,
        Action::None
    );
    let mut busy = known(Some(0));
    busy.endpoints.insert(
        "a".to_owned(),
        Endpoint {
            in_flight: 1,
            ..Endpoint::default()
        },
    );
    let spared = decide(&view(0, vec![ending], busy), &mut Memory::default(), at(10));
    assert_eq!(spared.action, Action::None, "it has a request");
}

#[test]
fn nothing_is_done_before_there_is_a_deployment() {
    let none = View {
        replicas: None,
        ..view(0, vec![], held(9))
    };
    assert_eq!(decide(&none, &mut Memory::default(), at(0)).action, Action::None);
}

#[test]
fn the_idle_instant_does_not_tremble() {
    let memory = &mut Memory::default();
    let since = |memory: &mut Memory, millis: i64| {
        let last = Timestamp::from_millisecond(1_000_080_000 + millis).unwrap();
        let demand = Demand {
            last_activity: Some(last),
            ..known(None)
        };
        decide(&view(1, vec![pod("a", 0, Some(9))], demand), memory, at(85))
            .verdict
            .since
            .unwrap()
    };
    let first = since(memory, 0);
    assert_eq!(since(memory, 37), first);
    assert_eq!(since(memory, -41), first);
    assert_ne!(since(memory, 3_000), first);
}

#[test]
fn a_pod_that_served_before_is_no_cold_start() {
    let memory = &mut Memory::default();
    decide(
        &view(1, vec![pod("a", 0, Some(9))], known(Some(10))),
        memory,
        at(50),
    );
    assert_eq!(memory.starts.samples, 0);
}

#[test]
fn what_the_kv_cache_holds_keeps_a_pool_longer_even_when_its_gateway_is_new() {
    let mut memory = Memory::default();
    let look = |memory: &mut Memory, prefill: Option<f64>| {
        let endpoint = Endpoint {
            eligible: true,
            workflows: 2,
            kv_tokens: 60_000,
            ..Endpoint::default()
        };
        let demand = Demand {
            prefill,
            endpoints: [("a".to_owned(), endpoint)].into(),
            ..known(Some(100))
        };
        let mut view = view(1, vec![pod("a", 0, Some(0))], demand);
        view.settings.policy = Policy::BreakEven {
            min_after: None,
            max_after: None,
        };
        let decision = decide(&view, memory, at(110));
        (
            decision.verdict.zero_at,
            decision.verdict.refill,
            decision.sentence,
        )
    };
    // A prior of 30 s and its waiting: a minute, and nobody knows what a refill takes.
    let (zero_at, refill, sentence) = look(&mut memory, None);
    assert_eq!((zero_at, refill), (Some(at(160)), None));
    assert!(sentence.contains("KV refill is unknown"), "{sentence}");
    let known = look(&mut memory, Some(5_000.0));
    assert_eq!((known.0, known.1), (Some(at(172)), Some(secs(12))));
    // A gateway that has just started has learned nothing: what the one before learned still holds.
    assert_eq!(look(&mut memory, None), known);
}
