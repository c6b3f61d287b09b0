//! Tables: pods in, changes out.

use serde_json::{Value, json};

use super::*;

/// A pod of pool `p` (UID `pu`) with the given status and metadata laid over it.
fn pod(uid: &str, over: Value) -> Pod {
    let mut base = json!({
        "metadata": {"uid": uid, "name": format!("pod-{uid}"),
            "labels": {"weir.dev/pool": "p", "weir.dev/pool-uid": "pu"}},
        "status": {"podIP": "10.0.0.1", "phase": "Running"},
    });
    merge(&mut base, over);
    serde_json::from_value(base).unwrap()
}

fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

fn ready() -> Value {
    json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
}

fn leaving() -> Value {
    json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
}

struct World {
    pods: Pods,
    followed: BTreeMap<String, Target>,
    pools: BTreeMap<String, String>,
}

impl World {
    fn new() -> Self {
        let pools = BTreeMap::from([("p".to_owned(), "pu".to_owned())]);
        Self {
            pods: Pods::default(),
            followed: BTreeMap::new(),
            pools,
        }
    }

    /// Applies events and compares the changes, written as `verb uid`.
    fn check(&mut self, events: &[Event<Pod>], expected: &[&str]) {
        let mut changes = Vec::new();
        for event in events {
            if self.pods.observe(event) {
                changes.extend(advance(&mut self.followed, self.pods.wanted(&self.pools)));
            }
        }
        let words: Vec<String> = changes
            .into_iter()
            .map(|change| match change {
                Change::Forget(uid) => format!("forget {uid}"),
                Change::Withdraw(uid) => format!("withdraw {uid}"),
                Change::Kubelet(uid, ready) => format!("kubelet {uid} {ready}"),
                Change::Follow(target) => format!("follow {} {}", target.uid, target.address),
            })
            .collect();
        assert_eq!(words, expected, "{events:?}");
    }
}

fn list(pods: Vec<Pod>) -> Vec<Event<Pod>> {
    let listed = pods.into_iter().map(Event::InitApply);
    std::iter::once(Event::Init)
        .chain(listed)
        .chain([Event::InitDone])
        .collect()
}

#[test]
fn a_pods_whole_life() {
    let mut world = World::new();
    world.check(&list(vec![]), &[]);
    assert!(world.pods.is_complete());
    let no_address = json!({"status": {"podIP": null, "phase": "Pending"}});
    world.check(&[Event::Apply(pod("a", no_address))], &[]);
    world.check(&[Event::Apply(pod("a", json!({})))], &["follow a 10.0.0.1"]);
    world.check(&[Event::Apply(pod("a", json!({})))], &[]);
    world.check(&[Event::Apply(pod("a", ready()))], &["kubelet a true"]);
    world.check(&[Event::Apply(pod("a", json!({})))], &["kubelet a false"]);
    world.check(&[Event::Apply(pod("a", leaving()))], &["withdraw a"]);
    let mut late = leaving();
    merge(&mut late, ready());
    world.check(&[Event::Apply(pod("a", late))], &[]);
    world.check(&[Event::Delete(pod("a", leaving()))], &["forget a"]);
    world.check(&[Event::Delete(pod("a", leaving()))], &[]);
}

#[test]
fn a_deletion_missed_while_the_watch_was_down_shows_in_the_next_list() {
    let mut world = World::new();
    world.check(
        &list(vec![pod("a", json!({})), pod("b", json!({}))]),
        &["follow a 10.0.0.1", "follow b 10.0.0.1"],
    );
    world.check(
        &list(vec![pod("b", json!({})), pod("c", json!({}))]),
        &["forget a", "follow c 10.0.0.1"],
    );
}

#[test]
fn a_list_that_breaks_off_changes_nothing() {
    let mut world = World::new();
    world.check(&list(vec![pod("a", json!({}))]), &["follow a 10.0.0.1"]);
    world.check(
        &[Event::Init, Event::InitApply(pod("b", json!({}))), Event::Init],
        &[],
    );
    world.check(&list(vec![pod("a", json!({}))]), &[]);
}

#[test]
fn a_new_address_is_a_new_endpoint() {
    let mut world = World::new();
    world.check(&list(vec![pod("a", json!({}))]), &["follow a 10.0.0.1"]);
    let moved = json!({"status": {"podIP": "10.0.0.2"}});
    world.check(
        &[Event::Apply(pod("a", moved))],
        &["forget a", "follow a 10.0.0.2"],
    );
    let lost = json!({"status": {"podIP": null}});
    world.check(&[Event::Apply(pod("a", lost))], &["forget a"]);
}

#[test]
fn pods_that_are_no_endpoints_are_left_alone() {
    let mut world = World::new();
    world.check(&list(vec![]), &[]);
    for over in [
        json!({"metadata": {"labels": {"weir.dev/pool": "other"}}}),
        json!({"metadata": {"labels": {"weir.dev/pool-uid": "another life of p"}}}),
        json!({"metadata": {"labels": null}}),
        json!({"metadata": {"uid": null}}),
        json!({"status": {"podIP": "not an address"}}),
        json!({"status": {"phase": "Failed"}}),
        json!({"status": {"phase": "Succeeded"}}),
        leaving(),
    ] {
        world.check(&[Event::Apply(pod("x", over))], &[]);
    }
}

#[test]
fn an_ended_pod_and_one_without_its_labels_are_forgotten() {
    for over in [
        json!({"status": {"phase": "Failed"}}),
        json!({"metadata": {"labels": null}}),
    ] {
        let mut world = World::new();
        world.check(&list(vec![pod("a", json!({}))]), &["follow a 10.0.0.1"]);
        world.check(&[Event::Apply(pod("a", over))], &["forget a"]);
    }
}

#[test]
fn pods_follow_the_configured_pools() {
    let mut world = World::new();
    let pools = std::mem::take(&mut world.pools);
    world.check(&list(vec![pod("a", json!({}))]), &[]);
    let wanted = world.pods.wanted(&pools);
    assert!(matches!(
        advance(&mut world.followed, wanted)[..],
        [Change::Follow(_)]
    ));
    let reborn = BTreeMap::from([("p".to_owned(), "a new uid".to_owned())]);
    let wanted = world.pods.wanted(&reborn);
    assert_eq!(
        advance(&mut world.followed, wanted),
        [Change::Forget("a".to_owned())]
    );
}
