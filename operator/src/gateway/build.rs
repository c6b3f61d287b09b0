//! Every object one gateway consists of, as one value. Pure.

mod deployment;

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Secret, Service, ServiceAccount, ServicePort, ServiceSpec},
        networking::v1::{NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicySpec},
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
        rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use kube::ResourceExt;
use weir_crds::{LLMPool, names};
use weir_wire::{
    config::{ConfigError, FILE_KEY, GatewayConfig},
    ports,
};

use crate::{
    key::Key,
    labels,
    llm_pool::build::{owner, port},
    probes,
};

/// Port of the Service.
const SERVICE_PORT: i32 = 80;

/// What a gateway consists of.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// The control token.
    pub secret: Secret,
    /// The gateway's identity.
    pub service_account: ServiceAccount,
    /// What it may read: pods, and its own ConfigMap.
    pub role: Role,
    /// That it may.
    pub role_binding: RoleBinding,
    /// Its configuration.
    pub config_map: ConfigMap,
    /// Who reaches it.
    pub network_policy: NetworkPolicy,
    /// At most one replica at a time may be evicted.
    pub budget: PodDisruptionBudget,
    /// Its name in the cluster.
    pub service: Service,
    /// Its pods.
    pub deployment: Deployment,
}

struct Maker<'a> {
    key: &'a Key,
    pools: &'a [LLMPool],
}

impl Maker<'_> {
    fn metadata(&self, name: String) -> ObjectMeta {
        let mut owners: Vec<_> = self
            .pools
            .iter()
            .map(|pool| owner(&pool.name_any(), &pool.uid().unwrap_or_default(), false))
            .collect();
        owners.sort_by(|one, other| one.name.cmp(&other.name));
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.key.namespace.clone()),
            labels: Some(labels::gateway(&self.key.name)),
            owner_references: Some(owners),
            ..ObjectMeta::default()
        }
    }

    fn own(&self) -> ObjectMeta {
        self.metadata(names::gateway(&self.key.name))
    }

    fn selector(&self) -> LabelSelector {
        LabelSelector {
            match_labels: Some(labels::gateway_selector(&self.key.name)),
            ..LabelSelector::default()
        }
    }
}

/// Builds everything.
///
/// # Errors
/// [`ConfigError`] when the configuration has no YAML form.
pub fn build(
    key: &Key,
    pools: &[LLMPool],
    config: &GatewayConfig,
    token: &str,
    router_image: &str,
) -> Result<Desired, ConfigError> {
    let maker = Maker { key, pools };
    let own_name = names::gateway(&key.name);
    Ok(Desired {
        secret: Secret {
            metadata: maker.metadata(names::control_secret(&key.name)),
            type_: Some("Opaque".to_owned()),
            data: Some(
                [(
                    names::CONTROL_TOKEN_KEY.to_owned(),
                    ByteString(token.as_bytes().to_vec()),
                )]
                .into(),
            ),
            ..Secret::default()
        },
        service_account: ServiceAccount {
            metadata: maker.own(),
            ..ServiceAccount::default()
        },
        role: Role {
            metadata: maker.own(),
            rules: Some(rules(&own_name)),
        },
        role_binding: RoleBinding {
            metadata: maker.own(),
            role_ref: RoleRef {
                api_group: "rbac.authorization.k8s.io".to_owned(),
                kind: "Role".to_owned(),
                name: own_name.clone(),
            },
            subjects: Some(vec![Subject {
                kind: "ServiceAccount".to_owned(),
                name: own_name,
                namespace: Some(key.namespace.clone()),
                api_group: None,
            }]),
        },
        config_map: ConfigMap {
            metadata: maker.own(),
            data: Some(BTreeMap::from([(FILE_KEY.to_owned(), config.to_yaml()?)])),
            ..ConfigMap::default()
        },
        network_policy: network_policy(&maker),
        budget: PodDisruptionBudget {
            metadata: maker.own(),
            spec: Some(PodDisruptionBudgetSpec {
                max_unavailable: Some(IntOrString::Int(1)),
                selector: Some(maker.selector()),
                ..PodDisruptionBudgetSpec::default()
            }),
            status: None,
        },
        service: service(&maker),
        deployment: deployment::deployment(&maker, router_image),
    })
}

/// What the gateway role of the router does with the API: watch its pods and its one ConfigMap.
fn rules(config_map: &str) -> Vec<PolicyRule> {
    let rule = |resource: &str, name: Option<&str>| PolicyRule {
        api_groups: Some(vec![String::new()]),
        resources: Some(vec![resource.to_owned()]),
        resource_names: name.map(|name| vec![name.to_owned()]),
        verbs: ["get", "list", "watch"].map(str::to_owned).into(),
        non_resource_urls: None,
    };
    vec![rule("pods", None), rule("configmaps", Some(config_map))]
}

fn service(maker: &Maker<'_>) -> Service {
    Service {
        metadata: maker.metadata(names::gateway_service(&maker.key.name)),
        spec: Some(ServiceSpec {
            selector: Some(labels::gateway_selector(&maker.key.name)),
            ports: Some(vec![ServicePort {
                name: Some(probes::HTTP.to_owned()),
                port: SERVICE_PORT,
                target_port: Some(IntOrString::String(probes::HTTP.to_owned())),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Traffic from anywhere; probes, metrics and the (token-protected) control API from inside the cluster.
fn network_policy(maker: &Maker<'_>) -> NetworkPolicy {
    let everywhere_inside = NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    };
    NetworkPolicy {
        metadata: maker.own(),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(maker.selector()),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule {
                    from: None,
                    ports: Some(vec![port(ports::TRAFFIC)]),
                },
                NetworkPolicyIngressRule {
                    from: Some(vec![everywhere_inside]),
                    ports: Some(vec![port(ports::ADMIN)]),
                },
            ]),
            egress: None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn objects_of_a_gateway() {
        let pools: Vec<LLMPool> = ["b", "a"]
            .iter()
            .map(|name| {
                serde_json::from_value(json!({
                    "apiVersion": "weir.dev/v1alpha1", "kind": "LLMPool",
                    "metadata": {"name": name, "namespace": "agents", "uid": format!("uid-{name}")},
                    "spec": {"model": {"name": name, "source": "image"}, "engine": {"image": "e"}},
                }))
                .unwrap()
            })
            .collect();
        let config = crate::gateway::config::render("weir", &pools, &[], &Default::default()).unwrap();
        let desired = build(&Key::new("agents", "weir"), &pools, &config, "t0ken", "router:1").unwrap();
        insta::assert_yaml_snapshot!("gateway_deployment", desired.deployment);
        insta::assert_yaml_snapshot!("gateway_service", desired.service);
        insta::assert_yaml_snapshot!("gateway_role", desired.role);
        insta::assert_yaml_snapshot!("gateway_network_policy", desired.network_policy);
        let owners = |metadata: &ObjectMeta| {
            let references = metadata.owner_references.clone().unwrap_or_default();
            references.into_iter().map(|owner| owner.uid).collect::<Vec<_>>()
        };
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
        for metadata in [
            secret.metadata,
            service_account.metadata,
            role.metadata,
            role_binding.metadata,
            config_map.metadata,
            network_policy.metadata,
            budget.metadata,
            service.metadata,
            deployment.metadata,
        ] {
            assert_eq!(owners(&metadata), ["uid-a", "uid-b"], "{:?}", metadata.name);
        }
    }
}
