//! What an operator says and does that lacks rights.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Service;
use serde_json::json;
use tokio::task::JoinSet;
use weir_operator::{
    admin::{Health, Readiness},
    caches::Watches,
    check,
    metrics::Metrics,
};

use crate::{fixture::NAMESPACE, logs::Logs, mock::Mock};

#[tokio::test]
async fn every_right_that_is_missing_is_named() {
    let mock = Arc::new(Mock::default());
    let lease = ("weir-system", "weir-operator");
    let granted = check::rights(&mock.client(), &[], lease).await;
    assert_eq!(granted, Vec::<String>::new());
    mock.deny(&[
        ("patch", "deployments"),
        ("create", "deployments"),
        ("update", "leases"),
    ]);
    let missing = check::rights(&mock.client(), &[NAMESPACE.to_owned()], lease).await;
    // The scale subresource has a line of its own.
    assert_eq!(missing.len(), 3, "{missing:?}");
    let begins = [
        "no right to create, patch deployments of apps in namespace agents: ",
        "no right to patch deployments/scale of apps in namespace agents: ",
        "no right to update leases of coordination.k8s.io in namespace weir-system: ",
    ];
    for (line, begin) in missing.iter().zip(begins) {
        assert!(
            line.starts_with(begin) && line.contains("rbac.create=true"),
            "{line}"
        );
    }
}

/// Waits, on a clock that nothing but this moves, until probes are told something that `wanted` accepts.
async fn told(health: &Health, wanted: impl Fn(&Readiness) -> bool) {
    for _ in 0..1_000 {
        if wanted(&health.get()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{:?}", health.get());
}

#[tokio::test(start_paused = true)]
async fn a_watch_without_rights_says_so_backs_off_and_recovers() {
    let mock = Arc::new(Mock::default());
    let logs = Logs::listen();
    let health = Health::default();
    health.set(Readiness::Listing);
    mock.deny(&[("list", "services")]);
    let metrics = Metrics::new().unwrap();
    let mut watches = Watches::new(
        mock.client(),
        vec![NAMESPACE.to_owned()],
        metrics.clone(),
        health.clone(),
    );
    let cache = watches.owned::<Service>("Service", |_| (), |_| ());
    let mut tasks = JoinSet::new();
    for task in watches.tasks {
        tasks.spawn(task);
    }
    let refused = |readiness: &Readiness| {
        matches!(readiness, Readiness::Waiting(why) if why.contains("cannot list resource \"services\"")
            && why.contains("rbac.create=true"))
    };
    told(&health, refused).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let tries = metrics.watch_errors.with_label_values(&["Service"]).get();
    assert!((2..20).contains(&tries), "{tries} tries in a minute");
    assert!(logs.text().contains("cannot list resource"), "{}", logs.text());

    let list =
        json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []});
    mock.put(&format!("/api/v1/namespaces/{NAMESPACE}/services"), list);
    mock.deny(&[]);
    told(&health, |readiness| *readiness == Readiness::Listing).await;
    cache.ready().await;
    tasks.shutdown().await;
}
