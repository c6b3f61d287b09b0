//! The installed operator: who leads, how to kill it, how to take it away for a while.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use weir_crds::names;

use crate::{
    condition::{Seen, await_condition},
    manifest::FIELD_MANAGER,
    processes,
};

/// Namespace of the operator.
pub const NAMESPACE: &str = "weir-system";
/// Name of its Deployment, its ServiceAccount and its lease.
pub const NAME: &str = "weir-operator";
/// Name of its program.
pub const PROCESS: &str = "weir-operator";
const PATIENCE: Duration = Duration::from_secs(90);

/// Name of the operator pod that leads.
///
/// # Errors
/// None does within a minute and a half.
pub async fn leader(client: &Client) -> Result<String> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    await_condition("a leader among the operators", PATIENCE, async || {
        let lease = leases.get(NAME).await?;
        let holder = lease
            .spec
            .and_then(|spec| spec.holder_identity)
            .unwrap_or_default();
        let lives = pods(client).await?.contains(&holder);
        Ok(if lives {
            Seen::Done(holder)
        } else {
            Seen::NotYet(format!("held by `{holder}`"))
        })
    })
    .await
}

/// Kills every operator process with SIGKILL and removes its pod, so that the next one need not wait for the kubelet's
/// back-off.
///
/// # Errors
/// An operator's process is not on this machine, or its pod cannot be deleted.
pub async fn kill_all(client: &Client) -> Result<()> {
    let pods = pods(client).await?;
    for pod in &pods {
        processes::kill(pod, PROCESS)?;
    }
    for pod in pods {
        remove(client, &pod).await?;
    }
    Ok(())
}

/// As [`kill_all`], for one pod.
///
/// # Errors
/// As [`kill_all`].
pub async fn kill(client: &Client, pod: &str) -> Result<()> {
    processes::kill(pod, PROCESS)?;
    remove(client, pod).await
}

async fn remove(client: &Client, pod: &str) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let at_once = DeleteParams::default().grace_period(0);
    api.delete(pod, &at_once)
        .await
        .with_context(|| format!("deleting pod {pod}"))?;
    Ok(())
}

/// Sets the operator's replicas and waits until exactly so many are there and available.
///
/// # Errors
/// They are not there within a minute and a half.
pub async fn scale(client: &Client, replicas: i32) -> Result<()> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let patch = serde_json::json!({"spec": {"replicas": replicas}});
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch(NAME, &params, &Patch::Merge(&patch)).await?;
    available(client, replicas).await
}

/// Waits until exactly so many operators are there and available.
///
/// # Errors
/// They are not there within a minute and a half.
pub async fn available(client: &Client, replicas: i32) -> Result<()> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    await_condition(&format!("{replicas} operators"), PATIENCE, async || {
        let status = api.get(NAME).await?.status.unwrap_or_default();
        let available = status.available_replicas.unwrap_or(0);
        let there = pods(client).await?.len();
        Ok(if available == replicas && i32::try_from(there) == Ok(replicas) {
            Seen::Done(())
        } else {
            Seen::NotYet(format!("{available} available, {there} pods"))
        })
    })
    .await
}

/// Names of the operator's pods.
///
/// # Errors
/// They cannot be listed.
pub async fn pods(client: &Client) -> Result<BTreeSet<String>> {
    let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let of_operator = format!("{}={}", names::label::COMPONENT, names::component::OPERATOR);
    let list = api.list(&ListParams::default().labels(&of_operator)).await?;
    Ok(list.into_iter().filter_map(|pod| pod.metadata.name).collect())
}
