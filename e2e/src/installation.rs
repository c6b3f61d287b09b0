//! Installs Weir with this work tree's chart and this work tree's images.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::{
    chart::{self, Helm, Release},
    cluster::{Cluster, images::Archive, progress::Progress},
    condition::{Seen, await_condition},
    manifest, operator,
};

/// The root of the work tree this was compiled in.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Annotation of pods that must be replaced when their image's content changes under the same name.
const CONTENT: &str = "weir.dev/image-content";
/// Every pod of the operator is admitted under the restricted level.
const NAMESPACE: &str = "apiVersion: v1
kind: Namespace
metadata:
  name: weir-system
  labels:
    app.kubernetes.io/name: weir
    pod-security.kubernetes.io/enforce: restricted
";
const PATIENCE: Duration = Duration::from_secs(120);

/// Installs the chart with the images of `archives`, and waits until the operator is Available.
///
/// # Errors
/// Helm or the API server refuses, or the operator does not become Available.
pub async fn install(
    cluster: &Cluster,
    client: &Client,
    archives: &[Archive],
    progress: &Progress,
) -> Result<()> {
    manifest::apply(client, operator::NAMESPACE, NAMESPACE).await?;
    let values = values("dev", archives);
    let install = async { release(cluster)?.upgrade(&chart::directory(), &values).await };
    progress.step("installing the chart", install).await
}

/// The release that [`install`] makes.
///
/// # Errors
/// There is no `helm`.
pub fn release(cluster: &Cluster) -> Result<Release> {
    Ok(Release::new(Helm::on(cluster)?, "weir", operator::NAMESPACE))
}

/// The chart's values for images with this tag.
#[must_use]
pub fn values(tag: &str, archives: &[Archive]) -> Value {
    let content: Vec<_> = archives.iter().map(|archive| archive.hash.as_str()).collect();
    json!({
        "image": {"registry": "localhost", "tag": tag},
        "operator": {"podAnnotations": {CONTENT: content.join("-")}},
    })
}

/// Whether the cluster knows the kinds.
///
/// # Errors
/// The API server does not answer.
pub async fn is_installed(client: &Client) -> Result<bool> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    Ok(api.get_opt("llmpools.weir.dev").await?.is_some())
}

/// Removes what [`install`] makes, and with the kinds every pool and policy.
///
/// # Errors
/// Helm or the API server refuses.
pub async fn uninstall(cluster: &Cluster, client: &Client) -> Result<()> {
    release(cluster)?.uninstall().await?;
    for document in read("crds/yaml")? {
        manifest::delete_document(client, "", document).await?;
    }
    for document in manifest::documents(NAMESPACE)? {
        manifest::delete_document(client, "", document).await?;
    }
    Ok(())
}

/// Applies `crds/yaml` alone and waits until the API server serves the kinds.
///
/// # Errors
/// A manifest cannot be read or is refused.
pub async fn kinds(client: &Client) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for document in read("crds/yaml")? {
        let applied = manifest::apply_document(client, "", document).await?;
        let name = applied.metadata.name.unwrap_or_default();
        await_condition(&format!("{name} to be served"), PATIENCE, async || {
            let crd = api.get(&name).await?;
            let conditions = crd
                .status
                .and_then(|status| status.conditions)
                .unwrap_or_default();
            let served = conditions
                .iter()
                .any(|one| one.type_ == "Established" && one.status == "True");
            Ok(if served {
                Seen::Done(())
            } else {
                Seen::NotYet("not established".to_owned())
            })
        })
        .await?;
    }
    Ok(())
}

/// The documents of every `*.yaml` right in `directory`, in the order of their names.
fn read(directory: &str) -> Result<Vec<Value>> {
    let path = Path::new(WORKSPACE).join(directory);
    let mut files: Vec<_> = fs::read_dir(&path)
        .with_context(|| format!("reading {}", path.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|file| file.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        found.extend(manifest::documents(&text).with_context(|| format!("in {}", file.display()))?);
    }
    Ok(found)
}
