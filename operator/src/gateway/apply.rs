//! The only writer of what a gateway consists of.

use kube::Resource;
use serde_json::Value;
use weir_crds::names;

use super::{build::Desired, observe::Observed};
use crate::{
    calls::{CallError, Calls},
    events::What,
    key::Key,
    operator::Operator,
    owned::{EnsureError, Owner, Target, ensure, remove},
};

fn as_built<K>(_: &mut Value, _: Option<&K>) {}

/// Writes what differs. Token, rights, configuration and policy come before the pods that need them.
///
/// # Errors
/// The first [`EnsureError`].
pub async fn apply(
    calls: &Calls,
    key: &Key,
    observed: &Observed,
    desired: Desired,
) -> Result<(), EnsureError> {
    let Desired {
        secret,
        service_account,
        role,
        role_binding,
        config_map,
        network_policy,
        budget,
        service,
        deployment,
    } = desired;
    let own = key.sibling(&names::gateway(&key.name));
    let token = key.sibling(&names::control_secret(&key.name));
    let front = key.sibling(&names::gateway_service(&key.name));
    let to = |call, key| Target {
        call,
        key,
        owner: Owner::Gateway,
    };
    let seen = observed;
    ensure(
        calls,
        to("apply_token", &token),
        &secret,
        seen.secret.as_ref(),
        as_built,
    )
    .await?;
    ensure(
        calls,
        to("apply_service_account", &own),
        &service_account,
        seen.service_account.as_deref(),
        as_built,
    )
    .await?;
    ensure(
        calls,
        to("apply_role", &own),
        &role,
        seen.role.as_deref(),
        as_built,
    )
    .await?;
    ensure(
        calls,
        to("apply_role_binding", &own),
        &role_binding,
        seen.role_binding.as_deref(),
        as_built,
    )
    .await?;
    ensure(
        calls,
        to("apply_config", &own),
        &config_map,
        seen.config_map.as_deref(),
        as_built,
    )
    .await?;
    ensure(
        calls,
        to("apply_network_policy", &own),
        &network_policy,
        seen.network_policy.as_deref(),
        as_built,
    )
    .await?;
    ensure(
        calls,
        to("apply_budget", &own),
        &budget,
        seen.budget.as_deref(),
        as_built,
    )
    .await?;
    ensure(
        calls,
        to("apply_service", &front),
        &service,
        seen.service.as_deref(),
        as_built,
    )
    .await?;
    ensure(
        calls,
        to("apply_deployment", &own),
        &deployment,
        seen.deployment.as_deref(),
        as_built,
    )
    .await?;
    Ok(())
}

/// Removes a gateway that no pool names. Where its pools were deleted, garbage collection does the same.
///
/// # Errors
/// The first [`CallError`].
pub async fn remove_all(calls: &Calls, observed: &Observed) -> Result<(), CallError> {
    let Observed {
        pools: _,
        unreadable: _,
        policies: _,
        token: _,
        // The operator may not delete Secrets: garbage collection takes it with the last pool that named the gateway.
        secret: _,
        service_account,
        role,
        role_binding,
        config_map,
        network_policy,
        budget,
        service,
        deployment,
    } = observed;
    remove(calls, "remove_service", service.as_deref()).await?;
    remove(calls, "remove_deployment", deployment.as_deref()).await?;
    remove(calls, "remove_budget", budget.as_deref()).await?;
    remove(calls, "remove_network_policy", network_policy.as_deref()).await?;
    remove(calls, "remove_role_binding", role_binding.as_deref()).await?;
    remove(calls, "remove_role", role.as_deref()).await?;
    remove(calls, "remove_service_account", service_account.as_deref()).await?;
    // The ConfigMap is what the operator knows the gateway by: it goes last.
    remove(calls, "remove_config", config_map.as_deref()).await
}

/// Tells every pool that its gateway could not be written.
pub async fn tell_pools(operator: &Operator, observed: &Observed, error: &EnsureError) {
    for pool in &observed.pools {
        operator
            .events
            .publish(&pool.object_ref(&()), What::ApplyFailed, &error.to_string())
            .await;
    }
}
