//! The only writer of what a pool owns, and of its status.

use k8s_openapi::api::{
    apps::v1::Deployment, networking::v1::NetworkPolicy, policy::v1::PodDisruptionBudget,
};
use kube::{Api, Resource, ResourceExt, api::Patch};
use serde_json::{Value, json};
use weir_crds::{LLMPool, LLMPoolStatus, names};

use super::{build::Desired, observe::Observed};
use crate::{
    calls::{CallError, Calls, TIMEOUT, manager},
    key::Key,
    owned::{EnsureError, Owner, Target, ensure},
};

/// What a pool owns now.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// Engines.
    pub deployment: Deployment,
    /// Disruption budget.
    pub budget: PodDisruptionBudget,
    /// NetworkPolicy.
    pub network_policy: NetworkPolicy,
}

/// Writes what differs. The policy comes first, so that no engine pod is ever open; the Deployment last.
///
/// # Errors
/// The first [`EnsureError`].
pub async fn apply(
    calls: &Calls,
    key: &Key,
    observed: &Observed,
    desired: Desired,
) -> Result<Applied, EnsureError> {
    let Desired {
        deployment,
        budget,
        network_policy,
    } = desired;
    let uid = observed.pool.uid().unwrap_or_default();
    let name = key.sibling(&names::engine(&key.name));
    let target = |call| Target {
        call,
        key: &name,
        owner: Owner::Pool(&uid),
    };
    let network_policy = ensure(
        calls,
        target("apply_network_policy"),
        &network_policy,
        observed.network_policy.as_deref(),
        |_, _| (),
    )
    .await?;
    let budget = ensure(
        calls,
        target("apply_budget"),
        &budget,
        observed.budget.as_deref(),
        |_, _| (),
    )
    .await?;
    let deployment = ensure(
        calls,
        target("apply_deployment"),
        &deployment,
        observed.deployment.as_deref(),
        keep_replicas,
    )
    .await?;
    Ok(Applied {
        deployment,
        budget,
        network_policy,
    })
}

/// A new Deployment begins with no pods. An existing one keeps its replicas, and is written only if it still is as
/// it was read: a replica patch in between makes this write fail and be tried again, never the other way round.
fn keep_replicas(value: &mut Value, current: Option<&Deployment>) {
    let replicas = current.map_or(Some(0), |current| {
        current.spec.as_ref().and_then(|spec| spec.replicas)
    });
    value["spec"]["replicas"] = json!(replicas);
    if let Some(version) = current.and_then(ResourceExt::resource_version) {
        value["metadata"]["resourceVersion"] = json!(version);
    }
}

/// Writes the status if anything but what grows with time differs. Cost grows while nothing happens, so it is
/// brought up to date only when something else is written.
///
/// # Errors
/// [`CallError`].
pub async fn write_status(
    calls: &Calls,
    key: &Key,
    pool: &LLMPool,
    wanted: LLMPoolStatus,
) -> Result<(), CallError> {
    let current = pool.status.clone().unwrap_or_default();
    let without_cost = |status: &LLMPoolStatus| LLMPoolStatus {
        cost: None,
        ..status.clone()
    };
    if without_cost(&current) == without_cost(&wanted) {
        return Ok(());
    }
    let api: Api<LLMPool> = Api::namespaced(calls.client(), &key.namespace);
    let body = json!({
        "apiVersion": LLMPool::api_version(&()), "kind": LLMPool::kind(&()),
        "metadata": {"name": key.name, "uid": pool.uid()},
        "status": wanted,
    });
    match calls
        .write(
            "write_status",
            TIMEOUT,
            api.patch_status(&key.name, &manager(), &Patch::Apply(body)),
        )
        .await
    {
        // The pool was deleted, or made anew: its status is nobody's business.
        Err(error) if error.is_stale() => Ok(()),
        other => other.map(drop),
    }
}
