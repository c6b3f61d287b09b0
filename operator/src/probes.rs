//! Probes of our pods: always HTTP, always the router's admin port. Pure.

use k8s_openapi::{
    api::core::v1::{ContainerPort, HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use weir_wire::ports;

/// Name of the traffic port.
pub const HTTP: &str = "http";
/// Name of the admin port.
pub const ADMIN: &str = "admin";

/// `GET` of a path at the pod's admin port.
#[must_use]
pub fn get(path: &str) -> HTTPGetAction {
    HTTPGetAction {
        path: Some(path.to_owned()),
        port: IntOrString::Int(ports::ADMIN.into()),
        ..HTTPGetAction::default()
    }
}

/// A probe: seconds between two tries, seconds for an answer, failures in a row that count.
#[must_use]
pub fn probe(path: &str, period: i32, timeout: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(get(path)),
        period_seconds: Some(period),
        timeout_seconds: Some(timeout),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

/// The router's two ports.
#[must_use]
pub fn container_ports() -> Vec<ContainerPort> {
    [(HTTP, ports::TRAFFIC), (ADMIN, ports::ADMIN)]
        .map(|(name, port)| ContainerPort {
            name: Some(name.to_owned()),
            container_port: port.into(),
            ..ContainerPort::default()
        })
        .into()
}
