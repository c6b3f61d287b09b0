//! Reaching a Service from this process.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{Api, Client};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    cluster::{
        Cluster,
        command::{Group, tied},
    },
    condition::{Seen, await_condition},
};

/// Longest wait for a Service to accept.
const PATIENCE: Duration = Duration::from_secs(30);

/// A way to a Service; it closes when dropped.
#[derive(Debug)]
pub struct Reach {
    /// `http://HOST:PORT`, without a path.
    pub url: String,
    _forward: Option<Forward>,
}

/// A running `kubectl port-forward`. It writes a line for every connection, and ends when nobody reads them, or when
/// this process has ended.
#[derive(Debug)]
struct Forward {
    _child: tokio::process::Child,
    _group: Group,
    _reader: JoinSet<()>,
}

/// Opens a way to a port of a Service: its own address on the local Kubernetes, `kubectl port-forward` elsewhere.
///
/// # Errors
/// The Service does not exist, accepts no connection within 30 s, or cannot be forwarded.
pub async fn reach(
    cluster: &Cluster,
    client: &Client,
    namespace: &str,
    service: &str,
    port: u16,
) -> Result<Reach> {
    if !cluster.addresses_are_local() {
        return forward(cluster, namespace, &format!("service/{service}"), port).await;
    }
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let found = services
        .get(service)
        .await
        .with_context(|| format!("Service {namespace}/{service}"))?;
    let address = found
        .spec
        .and_then(|spec| spec.cluster_ip)
        .context("the Service has no address")?;
    // A Service accepts a moment after its endpoints are Ready.
    await_condition(
        &format!("{service} to accept connections"),
        PATIENCE,
        async || {
            TcpStream::connect((address.as_str(), port)).await?;
            Ok(Seen::Done(()))
        },
    )
    .await?;
    Ok(Reach::direct(&address, port))
}

/// Opens a way to a port of a pod, as [`reach`] does.
///
/// # Errors
/// The pod does not exist, has no address, or cannot be forwarded.
pub async fn reach_pod(
    cluster: &Cluster,
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
) -> Result<Reach> {
    if !cluster.addresses_are_local() {
        return forward(cluster, namespace, &format!("pod/{pod}"), port).await;
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = pods
        .get(pod)
        .await
        .with_context(|| format!("pod {namespace}/{pod}"))?;
    let address = found
        .status
        .and_then(|status| status.pod_ip)
        .context("the pod has no address")?;
    Ok(Reach::direct(&address, port))
}

impl Reach {
    fn direct(address: &str, port: u16) -> Self {
        Self {
            url: format!("http://{address}:{port}"),
            _forward: None,
        }
    }
}

/// Opens a way by `kubectl port-forward`, which also reaches what listens on a pod's own 127.0.0.1 alone.
///
/// # Errors
/// `target` cannot be forwarded.
pub async fn forward(cluster: &Cluster, namespace: &str, target: &str, port: u16) -> Result<Reach> {
    let ports = format!(":{port}");
    let mut forward = tied(&cluster.kubectl(&[
        "port-forward",
        "--address=127.0.0.1",
        "-n",
        namespace,
        target,
        &ports,
    ])?);
    // Its input stays open as long as the child is kept.
    forward.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = forward.spawn().context("starting kubectl port-forward")?;
    let group = Group::of(&child);
    let output = child
        .stdout
        .take()
        .context("the output of kubectl port-forward")?;
    let mut lines = BufReader::new(output).lines();
    let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await;
    let Ok(Ok(Some(line))) = line else {
        let mut said = String::new();
        if let Some(mut errors) = child.stderr.take() {
            // What it said so far, at most a moment's worth: it may still run.
            let read = errors.read_to_string(&mut said);
            let _ = tokio::time::timeout(Duration::from_secs(1), read).await;
        }
        bail!(
            "kubectl port-forward to {target} in {namespace} did not begin: {}",
            said.trim()
        );
    };
    let local = forwarded_port(&line).with_context(|| format!("kubectl port-forward said `{line}`"))?;
    let mut reader = JoinSet::new();
    reader.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    if let Some(errors) = child.stderr.take() {
        let mut errors = BufReader::new(errors).lines();
        reader.spawn(async move { while let Ok(Some(_)) = errors.next_line().await {} });
    }
    Ok(Reach {
        url: format!("http://127.0.0.1:{local}"),
        _forward: Some(Forward {
            _child: child,
            _group: group,
            _reader: reader,
        }),
    })
}

/// The port in `Forwarding from 127.0.0.1:40123 -> 8080`.
fn forwarded_port(line: &str) -> Option<u16> {
    let (_, rest) = line.split_once("127.0.0.1:")?;
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forwarded_port_is_read() {
        assert_eq!(
            forwarded_port("Forwarding from 127.0.0.1:40123 -> 8080"),
            Some(40_123)
        );
        assert_eq!(forwarded_port("error: unable to forward"), None);
    }
}
