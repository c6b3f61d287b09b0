//! The kinds as the cluster has them: missing, out of reach, or older than this operator.

use std::time::Duration;

use kube::{
    Api, Client, CustomResourceExt,
    api::ListParams,
    core::{ApiResource, DynamicObject},
};
use serde_json::Value;
use weir_crds::{LLMPool, WorkflowPolicy, names};

use crate::{
    admin::{Health, Readiness},
    calls::TIMEOUT,
    rights,
};

/// Pause between two looks for missing kinds.
const PAUSE: Duration = Duration::from_secs(2);
/// The API server publishes a changed schema a moment after the change, and an upgrade changes kinds and operator
/// together.
const SETTLED: Duration = Duration::from_secs(10);
/// Looks at a schema that cannot be read before it is left alone.
const MOST_LOOKS: u32 = 30;

/// Waits for both kinds, naming in `/readyz` what is missing.
pub async fn wait(client: &Client, namespaces: &[String], health: &Health) {
    loop {
        let missing = missing(client, namespaces).await;
        if missing.is_empty() {
            return;
        }
        tracing::warn!(missing = missing.join("; "), "waiting for the kinds");
        health.set(Readiness::Waiting(missing.join("; ")));
        tokio::time::sleep(PAUSE).await;
    }
}

/// What keeps the operator from listing its kinds, each with what to do.
pub async fn missing(client: &Client, namespaces: &[String]) -> Vec<String> {
    let mut missing = Vec::new();
    for kind in [
        ApiResource::erase::<LLMPool>(&()),
        ApiResource::erase::<WorkflowPolicy>(&()),
    ] {
        // An operator of some namespaces may not list all, and would be refused whether the kind exists or not.
        let scopes: Vec<Api<DynamicObject>> = if namespaces.is_empty() {
            vec![Api::all_with(client.clone(), &kind)]
        } else {
            let of = |namespace| Api::namespaced_with(client.clone(), namespace, &kind);
            namespaces.iter().map(|namespace| of(namespace)).collect()
        };
        let name = format!("{}.{}", kind.plural, kind.group);
        for api in scopes {
            let one = ListParams::default().limit(1);
            missing.extend(match tokio::time::timeout(TIMEOUT, api.list_metadata(&one)).await {
                Ok(Ok(_)) => None,
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => Some(format!(
                    "CustomResourceDefinition {name} is not installed: kubectl apply --server-side -f crds/yaml, or the \
                     chart with crds.install=true"
                )),
                Ok(Err(kube::Error::Api(status))) if status.code == 403 => Some(format!(
                    "no right to list {name}: {}",
                    rights::explained(&kube::Error::Api(status))
                )),
                Ok(Err(error)) => Some(format!("{name}: {error}")),
                Err(_) => Some(format!("{name}: the API server does not answer")),
            });
        }
    }
    missing.dedup();
    missing
}

/// Why the schema of the installed kinds is not known.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The API server does not tell it.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// It has no text to be read.
    #[error("the schema is not JSON: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// A kind was installed a moment ago.
    #[error("the API server has not published the schema of {0} yet")]
    Unpublished(String),
}

/// Says once, a while after the start, if the installed kinds lack fields; never returns.
pub async fn warn_of_old(client: Client) {
    for _ in 0..MOST_LOOKS {
        tokio::time::sleep(SETTLED).await;
        match lacking(&client).await {
            Ok(fields) if fields.is_empty() => break,
            Ok(fields) => {
                tracing::warn!(
                    fields = fields.join(", "),
                    "the installed kinds are older than this operator, and the API server drops what they lack: apply \
                     crds/yaml of this version, or upgrade the chart with crds.install=true"
                );
                break;
            }
            Err(error) => tracing::debug!(%error, "the schema of the kinds is not known"),
        }
    }
    std::future::pending().await
}

/// Fields that this operator knows and the installed kinds lack, such as `LLMPool.spec.hold`.
///
/// # Errors
/// The API server does not tell the schema.
pub async fn lacking(client: &Client) -> Result<Vec<String>, SchemaError> {
    let path = format!("/openapi/v3/apis/{}", names::API_VERSION);
    let request = http::Request::get(path)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    let published: Value = client.request(request).await?;
    let mut lacking = Vec::new();
    for crd in [LLMPool::crd(), WorkflowPolicy::crd()] {
        let kind = crd.spec.names.kind;
        let wanted = crd.spec.versions.into_iter().find_map(|version| version.schema);
        let wanted = serde_json::to_value(wanted.and_then(|schema| schema.open_api_v3_schema))?;
        let mut group: Vec<&str> = names::GROUP.split('.').collect();
        group.reverse();
        let name = format!("{}.{}.{kind}", group.join("."), names::VERSION);
        match published["components"]["schemas"].get(&name) {
            Some(found) => compare(&kind, &wanted, found, &mut lacking),
            None => return Err(SchemaError::Unpublished(kind)),
        }
    }
    Ok(lacking)
}

/// Collects the properties of `wanted` that `found` has not.
fn compare(path: &str, wanted: &Value, found: &Value, lacking: &mut Vec<String>) {
    for (name, field) in wanted["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match found["properties"].get(name) {
            Some(known) => compare(&path, field, known, lacking),
            None => lacking.push(path),
        }
    }
    for part in ["items", "additionalProperties"] {
        if wanted[part].is_object() {
            compare(&format!("{path}[]"), &wanted[part], &found[part], lacking);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_that_are_not_there_are_named_once() {
        let wanted = json!({"properties": {
            "spec": {"properties": {"a": {}, "b": {"properties": {"c": {}}},
                "list": {"items": {"properties": {"d": {}, "e": {}}}}}},
            "status": {"properties": {"f": {}}},
        }});
        let mut lacking = Vec::new();
        compare("Kind", &wanted, &wanted, &mut lacking);
        assert_eq!(lacking, Vec::<String>::new());
        let older = json!({"properties": {"spec": {"properties": {"a": {}, "extra": {},
            "list": {"items": {"properties": {"d": {}}}}}}}});
        compare("Kind", &wanted, &older, &mut lacking);
        assert_eq!(lacking, ["Kind.spec.b", "Kind.spec.list[].e", "Kind.status"]);
    }
}
