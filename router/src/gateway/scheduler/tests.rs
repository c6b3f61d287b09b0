use std::time::Duration;

use tokio::time::{Instant, advance, timeout};
use weir_schedule::HomeUse;

use super::{fixtures::request, *};
use crate::{
    metrics::{Metrics, Role},
    proxy::usage::Usage,
};

#[expect(clippy::disallowed_methods, reason = "the paused clock of the test")]
fn now() -> Instant {
    Instant::now()
}

fn settings() -> Settings {
    Settings {
        max_waiting: 4,
        max_waiting_bytes: 1 << 20,
        hold_timeout: Duration::from_secs(60),
        wakes: true,
        suspended: false,
        max_workflows: 100,
        first_batch: 8,
    }
}

fn info(name: &str) -> EndpointInfo {
    EndpointInfo {
        name: name.into(),
        uid: format!("uid-{name}"),
        address: "127.0.0.1:9".into(),
        sidecar: true,
    }
}

/// A pool whose task runs as long as the test.
fn pool() -> PoolHandle {
    let (handle, task) = PoolHandle::start(PoolStart {
        name: "p".into(),
        uid: "u".into(),
        settings: settings(),
        connect: Duration::from_secs(1),
        metrics: Metrics::new(Role::Gateway).unwrap().pool("p"),
    });
    let tracker = tokio_util::task::TaskTracker::new();
    tracker.spawn(task);
    handle
}

fn add_ready(pool: &PoolHandle, name: &str, concurrency: u32) -> EndpointId {
    let endpoint = pool.set_endpoint(info(name));
    pool.notify(Event::EndpointReady {
        endpoint,
        concurrency,
    });
    endpoint
}

/// The first published state that fulfils `wanted`.
async fn state(pool: &PoolHandle, wanted: impl FnMut(&Arc<PoolState>) -> bool) -> PoolState {
    let mut states = pool.states();
    let waited = timeout(Duration::from_secs(30), states.wait_for(wanted)).await;
    (**waited.expect("the state comes").expect("the task runs")).clone()
}

#[tokio::test(start_paused = true)]
async fn a_request_is_held_until_an_endpoint_is_ready_and_its_place_is_given_back() {
    let pool = pool();
    let waiting = pool.submit(request());
    let held = state(&pool, |state| state.held == 1).await;
    assert_eq!((held.queued, held.in_flight, held.totals.arrived), (0, 0, 1));
    add_ready(&pool, "a", 1);
    let admission = waiting.await.unwrap();
    assert!(admission.decision.held);
    assert_eq!(admission.endpoint.info.name, "a");
    assert_eq!(admission.decision.home, HomeUse::None);
    state(&pool, |state| state.in_flight == 1 && state.endpoints[0].eligible).await;
    admission.permit.finish(
        Outcome::Completed {
            footprint_tokens: None,
            tool_call: false,
        },
        Record::Completed {
            usage: None,
            slo_met: Some(true),
            first_byte: None,
        },
    );
    let done = state(&pool, |state| state.in_flight == 0).await;
    assert_eq!(
        (done.totals.completed, done.totals.held, done.totals.slo_met),
        (1, 1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn dropping_a_waiting_or_admitted_request_leaves_nothing_behind() {
    let pool = pool();
    drop(pool.submit(request()));
    add_ready(&pool, "a", 1);
    let admitted = pool.submit(request()).await.unwrap();
    let queued = pool.submit(request());
    state(&pool, |state| state.queued == 1).await;
    drop(queued);
    drop(admitted);
    let idle = state(&pool, |state| state.totals.cancelled == 3).await;
    assert!(idle.is_idle());
    assert!(pool.submit(request()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_admission_that_nobody_takes_is_given_back() {
    let pool = pool();
    add_ready(&pool, "a", 1);
    let first = pool.submit(request()).await.unwrap();
    let second = pool.submit(request());
    state(&pool, |state| state.queued == 1).await;
    first.permit.finish(Outcome::Failed, Record::Attempt);
    // The second has been admitted now, and is dropped without ever having been polled.
    state(&pool, |state| state.queued == 0).await;
    drop(second);
    assert!(state(&pool, |state| state.totals.cancelled == 1).await.is_idle());
}

#[tokio::test(start_paused = true)]
async fn bounds_and_closing_shed() {
    let pool = pool();
    let held: Vec<_> = (0..4).map(|_| pool.submit(request())).collect();
    let shed = pool.submit(request()).await.unwrap_err();
    assert_eq!(shed.reason, ShedReason::QueueFull);
    pool.close();
    for waiting in held {
        assert_eq!(waiting.await.unwrap_err().reason, ShedReason::NoCapacity);
    }
    assert_eq!(
        pool.submit(request()).await.unwrap_err().reason,
        ShedReason::NoCapacity
    );
    assert_eq!(state(&pool, |state| state.totals.shed == 6).await.held, 0);
}

#[tokio::test(start_paused = true)]
async fn holds_end_by_the_clock() {
    let pool = pool();
    let waiting = pool.submit(request());
    state(&pool, |state| state.held == 1).await;
    advance(Duration::from_secs(61)).await;
    assert_eq!(waiting.await.unwrap_err().reason, ShedReason::ColdStartTimeout);
}

#[tokio::test(start_paused = true)]
async fn orders_are_obeyed_by_epoch() {
    let pool = pool();
    add_ready(&pool, "a", 1);
    let busy = pool.submit(request()).await.unwrap();
    let fence = |epoch| pool.order(epoch, Order::Fence { lease_ms: 5_000 });
    assert!(!fence(7).await.unwrap().done);
    drop(busy);
    let answer = fence(7).await.unwrap();
    assert!(answer.done && answer.state.fenced);
    assert_eq!(answer.state.epoch, 7);
    assert_eq!(fence(6).await, Err(OrderError::Stale { seen: 7 }));
    let fenced = pool.submit(request());
    assert_eq!(state(&pool, |state| state.held == 1).await.in_flight, 0);
    assert!(pool.order(8, Order::Unfence).await.unwrap().done);
    assert!(fenced.await.unwrap().decision.held);
}

#[tokio::test(start_paused = true)]
async fn drains_are_by_uid_and_lapse() {
    let pool = pool();
    add_ready(&pool, "a", 1);
    let drain = |uid: &str| {
        pool.order(
            1,
            Order::Drain {
                uid: uid.into(),
                lease_ms: 10_000,
            },
        )
    };
    assert!(!drain("uid-b").await.unwrap().done);
    let answer = drain("uid-a").await.unwrap();
    assert!(answer.done && answer.state.endpoints[0].draining && !answer.state.endpoints[0].eligible);
    let waiting = pool.submit(request());
    state(&pool, |state| state.held == 1).await;
    let before = now();
    assert!(waiting.await.is_ok());
    assert!(
        before.elapsed() >= Duration::from_secs(8),
        "{:?}",
        before.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn the_same_pod_keeps_its_id_and_a_new_address_is_a_new_endpoint() {
    let pool = pool();
    let first = add_ready(&pool, "a", 1);
    assert_eq!(pool.set_endpoint(info("a")), first);
    let moved = EndpointInfo {
        address: "127.0.0.1:10".into(),
        ..info("a")
    };
    let second = pool.set_endpoint(moved);
    assert_ne!(second, first);
    pool.notify(Event::EndpointReady {
        endpoint: second,
        concurrency: 1,
    });
    let seen = state(&pool, |state| state.endpoints.iter().any(|it| it.eligible)).await;
    assert_eq!(seen.endpoints.len(), 1);
    pool.remove_endpoint(second);
    assert!(state(&pool, |state| state.endpoints.is_empty()).await.is_idle());
}

#[tokio::test(start_paused = true)]
async fn quiet_changes_are_published_once_a_second_and_urgent_ones_at_once() {
    let pool = pool();
    add_ready(&pool, "a", 100);
    state(&pool, |state| state.endpoints.len() == 1).await;
    let mut states = pool.states();
    let begun = now();
    let mut permits = Vec::new();
    for _ in 0..50 {
        permits.push(pool.submit(request()).await.unwrap());
    }
    states.wait_for(|state| state.in_flight == 50).await.unwrap();
    assert!(begun.elapsed() <= Duration::from_millis(1_100));
    let begun = now();
    pool.set_engine_load(
        EndpointId(0),
        Some(EngineLoad {
            busy: 3,
            kv_usage: None,
            kv_capacity_tokens: Some(1_000),
        }),
    );
    pool.notify(Event::EndpointNotReady(EndpointId(0)));
    let told = states
        .wait_for(|state| !state.endpoints[0].eligible)
        .await
        .unwrap()
        .clone();
    assert!(
        begun.elapsed() <= Duration::from_millis(50),
        "{:?}",
        begun.elapsed()
    );
    let endpoint = &told.endpoints[0];
    assert_eq!((endpoint.engine_busy, endpoint.concurrency), (Some(3), Some(100)));
    assert_eq!(endpoint.kv_capacity_tokens, Some(1_000));
}

#[tokio::test(start_paused = true)]
async fn first_bytes_and_prefill_are_told_with_the_state_and_stand_still_in_silence() {
    let pool = pool();
    add_ready(&pool, "a", 8);
    let answer = |millis| {
        let pool = pool.clone();
        async move {
            let admission = pool.submit(request()).await.unwrap();
            let since = Duration::from_millis(millis);
            admission.permit.finish(
                Outcome::Completed {
                    footprint_tokens: None,
                    tool_call: false,
                },
                Record::Completed {
                    usage: Some(Usage {
                        prompt_tokens: 3_000,
                        cached_tokens: Some(1_000),
                        completion_tokens: 1,
                    }),
                    slo_met: Some(millis < 1_500),
                    first_byte: Some(FirstByte {
                        since_arrival: since,
                        since_dispatch: since / 2,
                    }),
                },
            );
        }
    };
    assert_eq!(pool.state_now().await.unwrap().recent, None);
    for millis in [1_000, 1_000, 1_000, 2_000] {
        answer(millis).await;
    }
    let told = pool.state_now().await.unwrap();
    let recent = told.recent.unwrap();
    assert_eq!((recent.slo_met, recent.slo_total), (3, 4));
    assert!(
        (1_900..2_300).contains(&recent.ttft_p95_ms.unwrap()),
        "{recent:?}"
    );
    // 8,000 tokens in 2.5 s.
    let rate = told.prefill_tokens_per_s.unwrap();
    assert!((3_100.0..=3_300.0).contains(&rate), "{rate}");
    advance(Duration::from_secs(7_200)).await;
    let later = pool.state_now().await.unwrap();
    assert_eq!(
        (later.recent, later.prefill_tokens_per_s),
        (told.recent, told.prefill_tokens_per_s)
    );
}
