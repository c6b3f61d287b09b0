//! Only the pool's own gateway reaches its engine pods. The kubelet's probes come from the node, which network
//! plugins let through; whoever scrapes sidecars adds a policy of their own, since policies add up.

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use weir_wire::ports;

use super::{Valid, metadata, selector};
use crate::labels;

pub(super) fn network_policy(pool: &Valid) -> NetworkPolicy {
    let gateway = LabelSelector {
        match_labels: Some(labels::gateway_selector(&pool.spec.gateway)),
        ..LabelSelector::default()
    };
    NetworkPolicy {
        metadata: metadata(pool),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(pool)),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: Some(vec![NetworkPolicyPeer {
                    pod_selector: Some(gateway),
                    ..NetworkPolicyPeer::default()
                }]),
                ports: Some(vec![port(ports::TRAFFIC), port(ports::ADMIN)]),
            }]),
            egress: None,
        }),
    }
}

/// A TCP port.
pub(crate) fn port(port: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::Int(port.into())),
        protocol: Some("TCP".to_owned()),
        end_port: None,
    }
}
