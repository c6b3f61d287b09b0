//! Discovery in front of a mock API server and sidecars on loopback addresses.

mod cluster;

use serde_json::json;
use weir_wire::{
    WorkflowKey,
    control::{EndpointState, PoolState},
};

use super::*;
use crate::sidecar::now;
use cluster::{World, document, map, pod};

const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a pool's endpoints to be as asked.
async fn endpoints(world: &World, wanted: impl Fn(&[EndpointState]) -> bool) -> Vec<EndpointState> {
    let mut changes = world.pools.changes();
    let waiting = async {
        let pool = loop {
            if let Some(pool) = world.pools.by_name("p0") {
                break pool;
            }
            changes.changed().await.unwrap();
        };
        let mut states = pool.states();
        let state = states
            .wait_for(|state: &Arc<PoolState>| wanted(&state.endpoints))
            .await
            .unwrap();
        state.endpoints.clone()
    };
    timeout(PATIENCE, waiting)
        .await
        .expect("the endpoints never were as asked")
}

async fn until(reached: impl Fn() -> bool) {
    let reaching = async {
        while !reached() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, reaching).await.expect("never reached");
}

fn eligible(endpoints: &[EndpointState]) -> Vec<&str> {
    endpoints
        .iter()
        .filter(|it| it.eligible)
        .map(|it| it.uid.as_str())
        .collect()
}

#[tokio::test]
async fn a_starting_gateway_knows_its_pods_and_their_workflows_before_it_is_ready() {
    let mut world = World::new().await;
    let ready = world.sidecar("127.0.0.2", "i", false).await;
    ready.hub.set_ready(true, None);
    ready
        .homes
        .record(WorkflowKey::derive("t", "p0", "w"), Some(100), now());
    let _starting = world.sidecar("127.0.0.3", "j", false).await;
    world
        .api
        .pods
        .lock()
        .unwrap()
        .set(vec![pod("a", "127.0.0.2"), pod("b", "127.0.0.3")]);
    world.start();
    until(|| world.api.pods.lock().unwrap().is_watched()).await;
    assert!(world.readiness.check().is_err(), "no configuration yet");
    world.api.maps.lock().unwrap().tell("ADDED", &map(&["u0"]));
    until(|| world.readiness.check().is_ok()).await;
    let known = endpoints(&world, |it| eligible(it) == ["a"] && it.len() == 2).await;
    let a = known.iter().find(|it| it.uid == "a").unwrap();
    assert_eq!((a.name.as_str(), a.workflows), ("pod-a", 1));
    let asked = world.api.asked.lock().unwrap().join("\n");
    assert!(
        asked.contains("labelSelector=weir.dev%2Fgateway%3Dg%2Cweir.dev%2Fcomponent%3Dengine"),
        "{asked}"
    );
    assert!(
        asked.contains("fieldSelector=metadata.name%3Dg-gateway"),
        "{asked}"
    );
    world.end().await;
}

#[tokio::test]
async fn a_pod_that_never_answers_does_not_keep_a_gateway_from_serving() {
    let mut world = World::new().await;
    let _mute = world.sidecar("127.0.0.2", "i", true).await;
    world.api.pods.lock().unwrap().set(vec![pod("a", "127.0.0.2")]);
    world.api.maps.lock().unwrap().set(vec![map(&["u0"])]);
    world.start();
    endpoints(&world, |it| it.len() == 1).await;
    assert_eq!(
        world.readiness.check(),
        Err("the engine pods have not told their state yet\n")
    );
    until(|| world.readiness.check().is_ok()).await;
    world.end().await;
}

#[tokio::test]
async fn readiness_is_taken_from_the_sidecar_and_a_leaving_pod_is_out_at_once() {
    let mut world = World::new().await;
    let sidecar = world.sidecar("127.0.0.2", "i", false).await;
    world.api.maps.lock().unwrap().set(vec![map(&["u0"])]);
    world.start();
    until(|| world.api.pods.lock().unwrap().is_watched()).await;
    world
        .api
        .pods
        .lock()
        .unwrap()
        .tell("ADDED", &pod("a", "127.0.0.2"));
    endpoints(&world, |it| it.len() == 1 && eligible(it).is_empty()).await;
    sidecar.hub.set_ready(true, None);
    endpoints(&world, |it| eligible(it) == ["a"]).await;
    sidecar.hub.set_ready(false, None);
    endpoints(&world, |it| it.len() == 1 && eligible(it).is_empty()).await;
    sidecar.hub.set_ready(true, None);
    endpoints(&world, |it| eligible(it) == ["a"]).await;
    let mut leaving = pod("a", "127.0.0.2");
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.api.pods.lock().unwrap().tell("MODIFIED", &leaving);
    let out = endpoints(&world, |it| it.len() == 1 && eligible(it).is_empty()).await;
    assert!(out[0].draining);
    sidecar.hub.set_ready(false, None);
    sidecar.hub.set_ready(true, None);
    world.api.pods.lock().unwrap().tell("DELETED", &leaving);
    endpoints(&world, <[_]>::is_empty).await;
    world.end().await;
}

#[tokio::test]
async fn a_deletion_missed_by_the_watch_is_seen_in_the_next_list() {
    let mut world = World::new().await;
    for (address, instance) in [("127.0.0.2", "i"), ("127.0.0.3", "j")] {
        world
            .sidecar(address, instance, false)
            .await
            .hub
            .set_ready(true, None);
    }
    world.api.maps.lock().unwrap().set(vec![map(&["u0"])]);
    world
        .api
        .pods
        .lock()
        .unwrap()
        .set(vec![pod("a", "127.0.0.2"), pod("b", "127.0.0.3")]);
    world.start();
    endpoints(&world, |it| eligible(it).len() == 2).await;
    until(|| world.api.pods.lock().unwrap().is_watched()).await;
    world.api.pods.lock().unwrap().set(vec![pod("b", "127.0.0.3")]);
    world.api.pods.lock().unwrap().expire();
    let left = endpoints(&world, |it| it.len() == 1).await;
    assert_eq!(eligible(&left), ["b"]);
    world.end().await;
}

#[tokio::test]
async fn a_failed_list_is_tried_again() {
    let mut world = World::new().await;
    world.api.pods.lock().unwrap().break_next_list();
    world.api.maps.lock().unwrap().set(vec![map(&["u0"])]);
    world.start();
    until(|| world.readiness.check().is_ok()).await;
    assert_eq!(world.metrics.watch_errors.with_label_values(&["pods"]).get(), 1);
    assert_eq!(world.api.pods.lock().unwrap().lists(), 2);
    world.end().await;
}

#[tokio::test]
async fn a_bad_configuration_leaves_the_last_good_one_in_force() {
    let mut world = World::new().await;
    world.api.maps.lock().unwrap().set(vec![map(&["u0"])]);
    world.start();
    until(|| world.api.maps.lock().unwrap().is_watched() && world.readiness.is_configured()).await;
    let good = world.pools.config_hash();
    let loads = |result| world.metrics.config_loads.with_label_values(&[result]).get();
    for (index, bad) in ["pools: [", "pools: []\nsurprise: 1\n"].into_iter().enumerate() {
        world.api.maps.lock().unwrap().tell("MODIFIED", &document(bad));
        until(|| loads("refused") == index as u64 + 1).await;
        assert_eq!(
            (world.pools.config_hash(), world.metrics.config_current.get()),
            (good.clone(), 0)
        );
    }
    world.api.maps.lock().unwrap().tell("DELETED", &map(&["u0"]));
    world.api.maps.lock().unwrap().tell("ADDED", &map(&["u0"]));
    until(|| loads("unchanged") == 1).await;
    assert_eq!(world.metrics.config_current.get(), 1);
    world
        .api
        .maps
        .lock()
        .unwrap()
        .tell("MODIFIED", &map(&["u0", "u1"]));
    until(|| world.pools.by_name("p1").is_some()).await;
    assert!(world.readiness.check().is_ok());
    world.end().await;
}

#[tokio::test]
async fn pods_of_another_life_of_the_pool_are_no_endpoints() {
    let mut world = World::new().await;
    world
        .sidecar("127.0.0.2", "i", false)
        .await
        .hub
        .set_ready(true, None);
    world.api.maps.lock().unwrap().set(vec![map(&["u0"])]);
    world.api.pods.lock().unwrap().set(vec![pod("a", "127.0.0.2")]);
    world.start();
    endpoints(&world, |it| eligible(it) == ["a"]).await;
    until(|| world.api.maps.lock().unwrap().is_watched()).await;
    world
        .api
        .maps
        .lock()
        .unwrap()
        .tell("MODIFIED", &map(&["recreated"]));
    until(|| {
        world
            .pools
            .by_name("p0")
            .is_some_and(|pool| pool.uid() == "recreated")
    })
    .await;
    endpoints(&world, <[_]>::is_empty).await;
    until(|| world.metrics.pods_followed.get() == 0).await;
    world.end().await;
}
