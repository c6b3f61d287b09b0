//! Everything one gateway's reconcile reads.

use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Secret, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{Role, RoleBinding},
};
use kube::Api;
use rand::Rng;
use weir_crds::{LLMPool, WorkflowPolicy, names};

use crate::{calls::CallError, key::Key, operator::Operator};

/// What there is.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Pools that name the gateway.
    pub pools: Vec<LLMPool>,
    /// Some pool of the namespace cannot be read: it may name the gateway too.
    pub unreadable: bool,
    /// Policies of the namespace.
    pub policies: Vec<WorkflowPolicy>,
    /// The token, if its Secret holds a usable one.
    pub token: Option<String>,
    /// Its Secret.
    pub secret: Option<Arc<Secret>>,
    /// Its ServiceAccount.
    pub service_account: Option<Arc<ServiceAccount>>,
    /// Its Role.
    pub role: Option<Arc<Role>>,
    /// Its RoleBinding.
    pub role_binding: Option<Arc<RoleBinding>>,
    /// Its ConfigMap.
    pub config_map: Option<Arc<ConfigMap>>,
    /// Its NetworkPolicy.
    pub network_policy: Option<Arc<NetworkPolicy>>,
    /// Its disruption budget.
    pub budget: Option<Arc<PodDisruptionBudget>>,
    /// Its Service.
    pub service: Option<Arc<Service>>,
    /// Its Deployment.
    pub deployment: Option<Arc<Deployment>>,
}

/// Bytes of a token; its text has two characters for each.
const TOKEN_BYTES: usize = 32;

/// A new token.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "a secret needs the process's own generator, not a seed"
)]
pub fn new_token() -> String {
    let mut bytes = [0_u8; TOKEN_BYTES];
    rand::rng().fill_bytes(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn usable_token(secret: &Secret) -> Option<String> {
    let bytes = &secret.data.as_ref()?.get(names::CONTROL_TOKEN_KEY)?.0;
    let text = std::str::from_utf8(bytes).ok()?.trim();
    let fits = text.len() >= TOKEN_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| text.to_owned())
}

/// Reads everything.
///
/// # Errors
/// [`CallError`] when the Secret cannot be read.
pub async fn observe(operator: &Operator, key: &Key) -> Result<Observed, CallError> {
    let mut pools = operator.pools_of(&key.namespace);
    pools.retain(|pool| pool.spec.gateway == key.name);
    let secrets: Api<Secret> = Api::namespaced(operator.calls.client(), &key.namespace);
    let secret = operator
        .calls
        .read("get_token", secrets.get_opt(&names::control_secret(&key.name)))
        .await?;
    let caches = &operator.caches;
    let name = key.sibling(&names::gateway(&key.name));
    Ok(Observed {
        pools,
        unreadable: operator
            .caches
            .pools
            .list(&key.namespace)
            .iter()
            .any(|pool| pool.0.is_err()),
        policies: operator.policies_of(&key.namespace),
        token: secret.as_ref().and_then(usable_token),
        secret: secret.map(Arc::new),
        service_account: caches.service_accounts.get(&name),
        role: caches.roles.get(&name),
        role_binding: caches.role_bindings.get(&name),
        config_map: caches.config_maps.get(&name),
        network_policy: caches.network_policies.get(&name),
        budget: caches.budgets.get(&name),
        service: caches
            .services
            .get(&key.sibling(&names::gateway_service(&key.name))),
        deployment: caches.deployments.get(&name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn tokens_are_long_random_and_read_back() {
        let token = new_token();
        assert_eq!(token.len(), 64);
        assert_ne!(token, new_token());
        let secret = |text: &str| Secret {
            data: Some(
                [(
                    names::CONTROL_TOKEN_KEY.to_owned(),
                    ByteString(text.as_bytes().to_vec()),
                )]
                .into(),
            ),
            ..Secret::default()
        };
        assert_eq!(usable_token(&secret(&token)), Some(token));
        assert_eq!(usable_token(&secret("short")), None);
        assert_eq!(usable_token(&secret(&"with space".repeat(9))), None);
        assert_eq!(usable_token(&Secret::default()), None);
    }
}
