//! The state of a namespace in text, for the reader of a failed test.

use std::fmt::{self, Write};

use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, LogParams},
    core::{ApiResource, GroupVersionKind},
};

/// Lines of each container's log.
const LOG_LINES: i64 = 40;

/// Nodes that are not ready, pools, policies, pods with container states, events, and the end of every log. What cannot be
/// read is said so.
pub async fn dump(client: &Client, namespace: &str) -> String {
    let mut text = format!("==== state of namespace {namespace}\n");
    let result = nodes(client, &mut text).await;
    note(&mut text, "nodes", result);
    for kind in ["LLMPool", "WorkflowPolicy"] {
        objects(client, namespace, kind, &mut text).await;
    }
    let result = pods(client, namespace, &mut text).await;
    note(&mut text, "pods", result);
    let result = events(client, namespace, &mut text).await;
    note(&mut text, "events", result);
    text.push_str("==== end of state\n");
    text
}

async fn objects(client: &Client, namespace: &str, kind: &str, text: &mut String) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("weir.dev", "v1alpha1", kind));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let Ok(list) = api.list(&ListParams::default()).await else {
        text.push_str(&format!("-- no {kind} readable\n"));
        return;
    };
    for mut object in list {
        object.metadata.managed_fields = None;
        let yaml = serde_saphyr::to_string(&object).unwrap_or_default();
        text.push_str(&format!("-- {kind}\n{yaml}\n"));
    }
}

/// A kubelet that died shows here, and nowhere else.
async fn nodes(client: &Client, text: &mut String) -> anyhow::Result<()> {
    for node in Api::<Node>::all(client.clone())
        .list(&ListParams::default())
        .await?
    {
        let name = node.metadata.name.unwrap_or_default();
        let conditions = node.status.unwrap_or_default().conditions.unwrap_or_default();
        let ready = conditions
            .into_iter()
            .find(|condition| condition.type_ == "Ready");
        match ready {
            Some(ready) if ready.status == "True" => {
                let heard = ready.last_heartbeat_time.map(|time| time.0.to_string());
                writeln!(
                    text,
                    "-- node {name}: ready, said so at {}",
                    heard.unwrap_or_default()
                )?;
            }
            Some(ready) => writeln!(
                text,
                "-- node {name}: NOT READY: {}",
                ready.message.unwrap_or_default()
            )?,
            None => writeln!(text, "-- node {name}: NOT READY: it says nothing")?,
        }
    }
    Ok(())
}

async fn pods(client: &Client, namespace: &str, text: &mut String) -> anyhow::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    for pod in api.list(&ListParams::default()).await? {
        let name = pod.metadata.name.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let phase = status.phase.unwrap_or_default();
        let leaving = if pod.metadata.deletion_timestamp.is_some() {
            ", being deleted"
        } else {
            ""
        };
        writeln!(text, "-- pod {name}: {phase}{leaving}")?;
        for condition in status.conditions.unwrap_or_default() {
            if condition.status != "True" {
                let message = condition.message.unwrap_or_default();
                writeln!(text, "   not {}: {message}", condition.type_)?;
            }
        }
        let containers = status
            .init_container_statuses
            .into_iter()
            .chain(status.container_statuses)
            .flatten();
        for container in containers {
            let state = serde_json::to_string(&container.state)?;
            let last = serde_json::to_string(&container.last_state)?;
            writeln!(
                text,
                "   {} restarts {} now {state} before {last}",
                container.name, container.restart_count
            )?;
            let params = LogParams {
                container: Some(container.name.clone()),
                tail_lines: Some(LOG_LINES),
                ..LogParams::default()
            };
            match api.logs(&name, &params).await {
                Ok(log) => log.lines().try_for_each(|line| writeln!(text, "     | {line}"))?,
                Err(error) => writeln!(text, "     (no log: {error})")?,
            }
        }
    }
    Ok(())
}

async fn events(client: &Client, namespace: &str, text: &mut String) -> anyhow::Result<()> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    for event in api.list(&ListParams::default()).await? {
        let (object, reason) = (event.involved_object, event.reason.unwrap_or_default());
        let (kind, name) = (object.kind.unwrap_or_default(), object.name.unwrap_or_default());
        let message = event.message.or(event.action).unwrap_or_default();
        writeln!(text, "-- event {kind}/{name} {reason}: {message}")?;
    }
    Ok(())
}

fn note(text: &mut String, what: &str, result: anyhow::Result<()>) {
    if let Err(error) = result {
        let written: fmt::Result = writeln!(text, "-- {what} cannot be read: {error:#}");
        debug_assert!(written.is_ok(), "a String takes any text");
    }
}
