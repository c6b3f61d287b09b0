//! An operator whose caches hold what the mock holds.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::core::DeserializeGuard;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weir_crds::{LLMPool, WorkflowPolicy};
use weir_operator::{
    caches::{Cache, Caches},
    calls::Calls,
    control::{Tokens, board::Board},
    events::Events,
    key::Key,
    lease::Leadership,
    metrics::Metrics,
    operator::{Operator, Work},
    scaling::outlook::Outlooks,
};

use crate::mock::Mock;

/// Namespace of everything.
pub(crate) const NAMESPACE: &str = "agents";

/// A key there.
pub(crate) fn key(name: &str) -> Key {
    Key::new(NAMESPACE, name)
}

/// Path of a pool.
pub(crate) fn pool_path(name: &str) -> String {
    format!("/apis/weir.dev/v1alpha1/namespaces/{NAMESPACE}/llmpools/{name}")
}

/// Path of a Deployment.
pub(crate) fn deployment_path(name: &str) -> String {
    format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{name}")
}

/// A pool as a user writes it, put into the mock.
pub(crate) fn put_pool(mock: &Mock, name: &str, model: &str, more: &Value) -> Value {
    let mut spec = json!({
        "model": {"name": model, "source": "hf://Qwen/Qwen3-8B"},
        "engine": {"image": "engine:1", "maxConcurrency": 4},
        "resources": {"requests": {"cpu": "0.5"}},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let pool = json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "LLMPool",
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("uid-{name}"), "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": spec,
    });
    mock.put(&pool_path(name), pool)
}

fn cache<K>(mock: &Mock, group: &str, plural: &str) -> Cache<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + 'static,
{
    let prefix = format!("/{group}/namespaces/{NAMESPACE}/{plural}/");
    Cache::fixed(
        mock.list(&prefix)
            .into_iter()
            .map(|object| serde_json::from_value(object).unwrap())
            .collect(),
    )
}

/// An operator that sees what the mock holds now, and these pods.
pub(crate) fn operator(mock: &Arc<Mock>, pods: Vec<Pod>) -> Operator {
    let metrics = Metrics::new().unwrap();
    let client = mock.client();
    Operator {
        calls: Calls::new(client.clone(), Leadership::new(1, None), metrics.clone()),
        caches: Caches {
            pools: cache::<DeserializeGuard<LLMPool>>(mock, "apis/weir.dev/v1alpha1", "llmpools"),
            policies: cache::<DeserializeGuard<WorkflowPolicy>>(
                mock,
                "apis/weir.dev/v1alpha1",
                "workflowpolicies",
            ),
            deployments: cache(mock, "apis/apps/v1", "deployments"),
            pods: Cache::fixed(pods),
            services: cache(mock, "api/v1", "services"),
            service_accounts: cache(mock, "api/v1", "serviceaccounts"),
            roles: cache(mock, "apis/rbac.authorization.k8s.io/v1", "roles"),
            role_bindings: cache(mock, "apis/rbac.authorization.k8s.io/v1", "rolebindings"),
            config_maps: cache(mock, "api/v1", "configmaps"),
            budgets: cache(mock, "apis/policy/v1", "poddisruptionbudgets"),
            network_policies: cache(mock, "apis/networking.k8s.io/v1", "networkpolicies"),
        },
        board: Arc::new(Board::default()),
        tokens: Arc::new(Tokens::default()),
        outlooks: Arc::new(Outlooks::default()),
        work: Arc::new(Work::default()),
        events: Events::new(client, "test"),
        metrics,
        router_image: "router:1".into(),
        workflows: Default::default(),
        reported: Arc::default(),
    }
}

/// Now, on the clock that a test may have paused.
#[expect(
    clippy::disallowed_methods,
    reason = "a test measures how long something waited"
)]
pub(crate) fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
