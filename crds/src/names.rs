//! Names in the cluster: group, labels, annotations, containers, and the objects that a pool or a gateway owns.

/// API group of both kinds; also the prefix of our labels and annotations.
pub const GROUP: &str = "weir.dev";
/// Version of both kinds.
pub const VERSION: &str = "v1alpha1";
/// Group and version as objects carry them.
pub const API_VERSION: &str = "weir.dev/v1alpha1";
/// Field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "weir-operator";
/// Gateway name of pools that name none.
pub const DEFAULT_GATEWAY: &str = "weir";
/// Longest name of an LLMPool and of a gateway: leaves room for suffixes inside the 63 bytes of a label.
pub const MAX_NAME: usize = 52;

/// Labels.
pub mod label {
    /// The gateway a pod, Service or ConfigMap belongs to; gateways watch pods by it.
    pub const GATEWAY: &str = "weir.dev/gateway";
    /// The pool an engine pod belongs to.
    pub const POOL: &str = "weir.dev/pool";
    /// UID of that pool: a pod of a deleted and recreated pool of the same name is not an endpoint.
    pub const POOL_UID: &str = "weir.dev/pool-uid";
    /// `engine`, `gateway` or `operator`.
    pub const COMPONENT: &str = "weir.dev/component";
    /// Recommended label: what the program is.
    pub const APP_NAME: &str = "app.kubernetes.io/name";
    /// Recommended label: which instance of it.
    pub const APP_INSTANCE: &str = "app.kubernetes.io/instance";
    /// Recommended label: its part in the whole.
    pub const APP_COMPONENT: &str = "app.kubernetes.io/component";
    /// Recommended label: who keeps it.
    pub const APP_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
}

/// Annotations.
pub mod annotation {
    /// UID of the LLMPool, on engine pods.
    pub const POOL_UID: &str = "weir.dev/pool-uid";
    /// Kubernetes' own: among the pods of a Deployment the one with the least cost is deleted first.
    pub const POD_DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
}

/// Values of [`label::COMPONENT`] and [`label::APP_COMPONENT`].
pub mod component {
    /// An engine pod: sidecar and engine.
    pub const ENGINE: &str = "engine";
    /// A gateway pod.
    pub const GATEWAY: &str = "gateway";
    /// The operator.
    pub const OPERATOR: &str = "operator";
}

/// Containers.
pub mod container {
    /// Native sidecar of an engine pod: an init container that keeps running.
    pub const SIDECAR: &str = "sidecar";
    /// The engine in an engine pod.
    pub const ENGINE: &str = "engine";
    /// The only container of a gateway pod.
    pub const GATEWAY: &str = "gateway";
    /// The only container of an operator pod.
    pub const OPERATOR: &str = "operator";
}

/// Key of the control token in the Secret [`control_secret`].
pub const CONTROL_TOKEN_KEY: &str = "token";
/// Where that Secret is mounted in gateway and sidecar containers.
pub const CONTROL_TOKEN_DIR: &str = "/etc/weir/control";
/// The file of the token there.
pub const CONTROL_TOKEN_FILE: &str = "/etc/weir/control/token";

/// Deployment, PodDisruptionBudget and NetworkPolicy of a pool's engines.
#[must_use]
pub fn engine(pool: &str) -> String {
    format!("{pool}-engine")
}

/// Deployment, ServiceAccount, Role, RoleBinding, ConfigMap, PodDisruptionBudget and NetworkPolicy of a gateway.
#[must_use]
pub fn gateway(gateway: &str) -> String {
    format!("{gateway}-gateway")
}

/// Service of a gateway: its name is the host name that agents use.
#[must_use]
pub fn gateway_service(gateway: &str) -> String {
    gateway.to_owned()
}

/// Secret with the token of the control protocol and of the sidecars' state protocol.
#[must_use]
pub fn control_secret(gateway: &str) -> String {
    format!("{gateway}-control")
}

/// The OpenAI base URL of a gateway inside the cluster.
#[must_use]
pub fn gateway_url(gateway: &str, namespace: &str) -> String {
    format!("http://{gateway}.{namespace}.svc/v1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owned_names_fit_a_label_value() {
        let longest = "p".repeat(MAX_NAME);
        for name in [
            engine(&longest),
            gateway(&longest),
            gateway_service(&longest),
            control_secret(&longest),
        ] {
            assert!(name.len() <= 63, "{name}");
        }
    }

    #[test]
    fn gateway_url_is_the_service_on_port_80() {
        assert_eq!(gateway_url("weir", "agents"), "http://weir.agents.svc/v1");
    }
}
