//! Manifests as users write them: applied, or only asked about.

use anyhow::{Context, Result, bail};
use kube::{
    Api, Client, Error,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
    discovery::{self, Scope},
};
use serde_json::Value;

/// Field manager of everything that tests and the demo apply.
pub const FIELD_MANAGER: &str = "weir-e2e";

/// The documents of a YAML text, empty ones left out.
///
/// # Errors
/// It is not YAML.
pub fn documents(yaml: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).context("reading YAML")?;
    Ok(documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect())
}

/// Applies every document of `yaml`; those of a namespaced kind that name no namespace go to `namespace`.
///
/// # Errors
/// It is not YAML, a kind is unknown, or the API server refuses one.
pub async fn apply(client: &Client, namespace: &str, yaml: &str) -> Result<()> {
    for document in documents(yaml)? {
        apply_document(client, namespace, document).await?;
    }
    Ok(())
}

/// As [`apply`], for one document.
///
/// # Errors
/// As [`apply`].
pub async fn apply_document(client: &Client, namespace: &str, document: Value) -> Result<DynamicObject> {
    let (api, object) = resolve(client, namespace, document).await?;
    let name = name(&object)?;
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let applied = api.patch(&name, &params, &Patch::Apply(&object)).await;
    applied.with_context(|| format!("applying {} {name}", kind(&object)))
}

fn name(object: &DynamicObject) -> Result<String> {
    let name = object.metadata.name.clone();
    name.context("the manifest has no metadata.name")
}

/// Deletes the object that `document` names; one that is not there is no error.
///
/// # Errors
/// Its kind is unknown, or the API server refuses.
pub async fn delete_document(client: &Client, namespace: &str, document: Value) -> Result<()> {
    let (api, object) = resolve(client, namespace, document).await?;
    let name = name(&object)?;
    match api.delete(&name, &DeleteParams::background()).await {
        Err(Error::Api(status)) if status.code == 404 => Ok(()),
        other => other
            .map(|_| ())
            .with_context(|| format!("deleting {} {name}", kind(&object))),
    }
}

/// Checks, without storing anything, that the API server would create `yaml`.
///
/// # Errors
/// It would not.
pub async fn accepts(client: &Client, namespace: &str, yaml: &str) -> Result<()> {
    match would_create(client, namespace, yaml).await? {
        None => Ok(()),
        Some(message) => bail!("refused: {message}\n{yaml}"),
    }
}

/// Checks, without storing anything, that the API server would refuse `yaml` with a message that contains `message`.
///
/// # Errors
/// It would accept it, or refuse it with another message.
pub async fn rejects(client: &Client, namespace: &str, yaml: &str, message: &str) -> Result<()> {
    match would_create(client, namespace, yaml).await? {
        Some(said) if said.contains(message) => Ok(()),
        Some(said) => bail!("refused, but with another message than `{message}`: {said}\n{yaml}"),
        None => bail!("accepted, although `{message}` was expected\n{yaml}"),
    }
}

/// The message with which the API server would refuse `yaml`.
async fn would_create(client: &Client, namespace: &str, yaml: &str) -> Result<Option<String>> {
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    for document in documents(yaml)? {
        let (api, object) = resolve(client, namespace, document).await?;
        match api.create(&params, &object).await {
            Ok(_) => {}
            // 403 is what the Pod Security admission says, 400 and 422 the validation.
            Err(Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => {
                return Ok(Some(status.message));
            }
            Err(error) => return Err(error).context("asking the API server"),
        }
    }
    Ok(None)
}

async fn resolve(
    client: &Client,
    namespace: &str,
    document: Value,
) -> Result<(Api<DynamicObject>, DynamicObject)> {
    let object: DynamicObject =
        serde_json::from_value(document).context("the document is no Kubernetes object")?;
    let types = object
        .types
        .clone()
        .context("the manifest has no apiVersion or kind")?;
    let kind = GroupVersionKind::try_from(types).context("the manifest's apiVersion")?;
    let (resource, capabilities) = discovery::pinned_kind(client, &kind)
        .await
        .with_context(|| format!("the cluster does not know {} {}", kind.api_version(), kind.kind))?;
    let api = match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => {
            let own = object.metadata.namespace.as_deref().unwrap_or(namespace);
            Api::namespaced_with(client.clone(), own, &resource)
        }
    };
    Ok((api, object))
}

fn kind(object: &DynamicObject) -> &str {
    object
        .types
        .as_ref()
        .map_or("object", |types| types.kind.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_documents_are_left_out() {
        let found = documents("---\n# nothing\n---\na: 1\n---\nb: {c: [2]}\n").expect("YAML");
        assert_eq!(found.len(), 2);
        assert_eq!(found[1]["b"]["c"][0], 2);
        assert!(documents("a: [").is_err());
    }
}
