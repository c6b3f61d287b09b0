//! Every object one pool owns, as one value. Pure.

mod deployment;
mod engine;
mod network_policy;
mod sidecar;

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        networking::v1::NetworkPolicy,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use weir_crds::names;

pub(crate) use network_policy::port;

use super::validate::Valid;
use crate::labels;

/// What a pool should own.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// Engines, without replicas: their number is the scaler's.
    pub deployment: Deployment,
    /// At most one engine at a time may be evicted.
    pub budget: PodDisruptionBudget,
    /// Only the gateway reaches engine pods.
    pub network_policy: NetworkPolicy,
}

/// Builds everything.
#[must_use]
pub fn build(pool: &Valid, router_image: &str) -> Desired {
    Desired {
        deployment: deployment::deployment(pool, router_image),
        budget: budget(pool),
        network_policy: network_policy::network_policy(pool),
    }
}

/// Metadata of an owned object.
fn metadata(pool: &Valid) -> ObjectMeta {
    ObjectMeta {
        name: Some(names::engine(&pool.key.name)),
        namespace: Some(pool.key.namespace.clone()),
        labels: Some(labels::engine(&pool.key.name, &pool.uid, &pool.spec.gateway)),
        owner_references: Some(vec![owner(&pool.key.name, &pool.uid, true)]),
        ..ObjectMeta::default()
    }
}

/// A reference that lets garbage collection remove an object with its pool. `controller` for the only owner.
#[must_use]
pub fn owner(pool: &str, uid: &str, controller: bool) -> OwnerReference {
    OwnerReference {
        api_version: names::API_VERSION.to_owned(),
        kind: "LLMPool".to_owned(),
        name: pool.to_owned(),
        uid: uid.to_owned(),
        controller: controller.then_some(true),
        // No `blockOwnerDeletion`: it would need rights on finalizers where that is enforced.
        block_owner_deletion: None,
    }
}

fn selector(pool: &Valid) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels::engine_selector(&pool.key.name, &pool.uid)),
        ..LabelSelector::default()
    }
}

fn budget(pool: &Valid) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(pool),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector(pool)),
            // A pod that is still starting holds nothing that an eviction could lose.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
