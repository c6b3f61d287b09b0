//! The engine Deployment: pods that anybody can read with kubectl, scaled by the operator alone.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{Affinity, PodSpec, PodTemplateSpec},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use weir_crds::names;

use super::{Valid, engine, metadata, selector, sidecar};
use crate::{labels, restricted};

/// Seconds that the engine gets between SIGTERM and its own end; its requests have ended before.
pub(super) const SHUTDOWN_SECONDS: u64 = 30;
/// Seconds for tear-down after that.
const TEARDOWN_SECONDS: u64 = 15;

pub(super) fn deployment(pool: &Valid, router_image: &str) -> Deployment {
    let rollout = &pool.spec.rollout;
    let deadline = engine::seconds(pool.spec.startup.deadline);
    Deployment {
        metadata: metadata(pool),
        spec: Some(DeploymentSpec {
            // No replicas: `apply.rs` keeps what the scaler wrote.
            replicas: None,
            selector: selector(pool),
            template: template(pool, router_image),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(int(rollout.max_surge)),
                    max_unavailable: Some(int(rollout.max_unavailable)),
                }),
            }),
            revision_history_limit: Some(2),
            progress_deadline_seconds: Some(engine::to_i32(deadline.saturating_add(60))),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn int(value: u32) -> IntOrString {
    IntOrString::Int(engine::to_i32(value.into()))
}

fn template(pool: &Valid, router_image: &str) -> PodTemplateSpec {
    let user = &pool.spec.pod_metadata;
    let mut all_labels = user.labels.clone();
    all_labels.extend(labels::engine(&pool.key.name, &pool.uid, &pool.spec.gateway));
    let mut annotations = user.annotations.clone();
    annotations.insert(names::annotation::POOL_UID.to_owned(), pool.uid.clone());
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(all_labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(pool, router_image)),
    }
}

fn pod(pool: &Valid, router_image: &str) -> PodSpec {
    let scheduling = &pool.spec.scheduling;
    let grace = engine::seconds(pool.spec.drain.timeout) + SHUTDOWN_SECONDS + TEARDOWN_SECONDS;
    PodSpec {
        init_containers: Some(vec![sidecar::sidecar(pool, router_image)]),
        containers: vec![engine::engine(pool)],
        volumes: Some(engine::volumes(pool)),
        termination_grace_period_seconds: i64::try_from(grace).ok(),
        enable_service_links: Some(false),
        automount_service_account_token: Some(false),
        security_context: Some(restricted::pod()),
        node_selector: (!scheduling.node_selector.is_empty()).then(|| scheduling.node_selector.clone()),
        tolerations: (!scheduling.tolerations.is_empty()).then(|| scheduling.tolerations.clone()),
        affinity: scheduling.node_affinity.clone().map(|node_affinity| Affinity {
            node_affinity: Some(node_affinity),
            ..Affinity::default()
        }),
        topology_spread_constraints: (!scheduling.topology_spread_constraints.is_empty())
            .then(|| scheduling.topology_spread_constraints.clone()),
        priority_class_name: scheduling.priority_class_name.clone(),
        runtime_class_name: scheduling.runtime_class_name.clone(),
        ..PodSpec::default()
    }
}
