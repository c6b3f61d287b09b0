//! The only writer of what a gateway consists of.

use std::sync::Arc;

use kube::Resource;
use serde::Serialize;

use super::{build::Desired, observe::Observed};
use crate::{
    caches::Watched,
    calls::{CallError, Calls},
    events::What,
    key::Key,
    operator::Operator,
    owned::{EnsureError, Owner, Target, ensure, remove},
};

/// Writes single objects, exactly as they were built.
struct Writer<'a>(&'a Calls);

impl Writer<'_> {
    async fn put<K: Watched + Serialize>(
        &self,
        call: &'static str,
        desired: &K,
        observed: &Option<Arc<K>>,
    ) -> Result<(), EnsureError> {
        let target = Target {
            call,
            key: &Key::of(desired),
            owner: Owner::Gateway,
        };
        let written = ensure(self.0, target, desired, observed.as_deref(), |_, _| ());
        written.await.map(drop)
    }
}

/// Writes what differs. Token, rights, configuration and policy come before the pods that need them.
///
/// # Errors
/// The first [`EnsureError`].
pub async fn apply(calls: &Calls, observed: &Observed, desired: Desired) -> Result<(), EnsureError> {
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
    let (to, seen) = (Writer(calls), observed);
    to.put("apply_token", &secret, &seen.secret).await?;
    to.put("apply_service_account", &service_account, &seen.service_account)
        .await?;
    to.put("apply_role", &role, &seen.role).await?;
    to.put("apply_role_binding", &role_binding, &seen.role_binding)
        .await?;
    to.put("apply_config", &config_map, &seen.config_map).await?;
    to.put("apply_network_policy", &network_policy, &seen.network_policy)
        .await?;
    to.put("apply_budget", &budget, &seen.budget).await?;
    to.put("apply_service", &service, &seen.service).await?;
    to.put("apply_deployment", &deployment, &seen.deployment).await
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
