//! Leader election against an API server in memory, on paused time.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use weir_operator::lease::{Elector, Settings};

use crate::{fixture::now, logs::Logs, mock::Mock};

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/weir-system/leases/weir-operator";
const SETTINGS: Settings = Settings {
    duration: Duration::from_secs(15),
    renew_deadline: Duration::from_secs(10),
    retry: Duration::from_secs(2),
};

fn elector(mock: &Arc<Mock>, identity: &str) -> Elector {
    Elector::new(mock.client(), "weir-system", "weir-operator", identity, SETTINGS)
}

fn holder(mock: &Mock) -> (String, i64) {
    let lease = mock.get(PATH).unwrap();
    let spec = &lease["spec"];
    (
        spec["holderIdentity"].as_str().unwrap().to_owned(),
        spec["leaseTransitions"].as_i64().unwrap(),
    )
}

#[tokio::test(start_paused = true)]
async fn the_first_takes_it_and_a_follower_waits_the_whole_duration_on_its_own_clock() {
    let mock = Arc::new(Mock::default());
    let first = elector(&mock, "a").acquire().await;
    assert_eq!(holder(&mock), ("a".to_owned(), 1));
    assert_eq!(first.next_epoch(), (1 << 32) + 1);
    assert_eq!(first.next_epoch(), (1 << 32) + 2);
    // The leader is gone: nobody renews. Its record's wall-clock time plays no part.
    let began = now();
    let second = elector(&mock, "b").acquire().await;
    let waited = began.elapsed();
    assert!(
        waited > SETTINGS.duration && waited < SETTINGS.duration + SETTINGS.retry * 2,
        "{waited:?}"
    );
    assert_eq!(holder(&mock), ("b".to_owned(), 2));
    assert!(
        second.next_epoch() > first.next_epoch(),
        "epochs of a later term are higher"
    );
    assert!(
        first.remaining().is_zero(),
        "the old term has ended before the new one began"
    );
}

#[tokio::test(start_paused = true)]
async fn losing_the_race_for_the_lease_is_no_warning_and_losing_the_api_server_is() {
    let mock = Arc::new(Mock::default());
    let logs = Logs::listen();
    // Both replicas find no lease, then one that is free; each time the other one writes first.
    mock.refuse_once("/leases", 409);
    elector(&mock, "a").acquire().await;
    mock.refuse_once("/leases", 409);
    elector(&mock, "b").acquire().await;
    assert_eq!(logs.text(), "");
    mock.refuse_once("/leases", 500);
    elector(&mock, "c").acquire().await;
    assert!(logs.text().contains("WARN"), "{}", logs.text());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_renews_is_never_displaced() {
    let mock = Arc::new(Mock::default());
    let mut first = elector(&mock, "a");
    let term = first.acquire().await;
    let mut second = elector(&mock, "b");
    tokio::select! {
        _ = second.acquire() => panic!("taken while it was being renewed"),
        () = first.keep(&term) => panic!("lost while the API server answers"),
        () = tokio::time::sleep(Duration::from_secs(300)) => {}
    }
    assert!(!term.remaining().is_zero());
    assert_eq!(holder(&mock), ("a".to_owned(), 1));
}

#[tokio::test(start_paused = true)]
async fn a_leader_cut_off_stops_before_anyone_may_take_over() {
    let mock = Arc::new(Mock::default());
    let mut leader = elector(&mock, "a");
    let term = leader.acquire().await;
    let began = now();
    mock.hang("/leases/");
    leader.keep(&term).await;
    assert!(term.remaining().is_zero());
    assert!(began.elapsed() < SETTINGS.duration, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_finds_another_holder_stops_at_once() {
    let mock = Arc::new(Mock::default());
    let mut leader = elector(&mock, "a");
    let term = leader.acquire().await;
    let mut stolen = mock.get(PATH).unwrap();
    stolen["spec"]["holderIdentity"] = json!("thief");
    mock.put(PATH, stolen);
    leader.keep(&term).await;
    assert!(term.remaining().is_zero());
    assert_eq!(holder(&mock).0, "thief");
}

#[tokio::test(start_paused = true)]
async fn a_released_lease_is_taken_at_the_next_attempt() {
    let mock = Arc::new(Mock::default());
    let mut first = elector(&mock, "a");
    let term = first.acquire().await;
    first.release(&term).await;
    assert!(term.remaining().is_zero());
    let began = now();
    elector(&mock, "b").acquire().await;
    assert!(began.elapsed() <= SETTINGS.retry, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_restart_under_the_same_name_is_a_new_term() {
    let mock = Arc::new(Mock::default());
    let before = elector(&mock, "a").acquire().await.next_epoch();
    let after = elector(&mock, "a").acquire().await.next_epoch();
    assert!(after > before, "epochs are never used twice");
}
