//! Installs Weir from this work tree's manifests with this work tree's images.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::{
    api::apps::v1::Deployment,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, Client};
use serde_json::Value;

use crate::{
    cluster::{images::Archive, progress::Progress},
    condition::{Seen, await_condition},
    manifest,
};

/// The root of the work tree this was compiled in.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Annotation of pods that must be replaced when their image's content changes under the same name.
const CONTENT: &str = "weir.dev/image-content";
const PATIENCE: Duration = Duration::from_secs(120);

/// Applies `crds/yaml` and `deploy`, with the images of `archives`, and waits until every Deployment is Available.
///
/// # Errors
/// A manifest cannot be read or is refused, or the operator does not become Available.
pub async fn install(client: &Client, archives: &[Archive], progress: &Progress) -> Result<()> {
    progress.step("installing the kinds", kinds(client)).await?;
    let content: Vec<_> = archives.iter().map(|archive| archive.hash.as_str()).collect();
    let content = content.join("-");
    let mut deployments = Vec::new();
    for mut document in read("deploy")? {
        if document["kind"] == "Deployment" {
            let name = |path: &str| {
                document
                    .pointer(path)
                    .and_then(Value::as_str)
                    .unwrap_or("default")
                    .to_owned()
            };
            deployments.push((name("/metadata/namespace"), name("/metadata/name")));
            document["spec"]["template"]["metadata"]["annotations"][CONTENT] = Value::from(content.clone());
        }
        use_images(&mut document, archives);
        manifest::apply_document(client, "default", document).await?;
    }
    for (namespace, name) in deployments {
        let what = format!("waiting for the Deployment {namespace}/{name}");
        let api: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
        progress.step(&what, available(&api, &name)).await?;
    }
    Ok(())
}

/// Whether the cluster knows the kinds.
///
/// # Errors
/// The API server does not answer.
pub async fn is_installed(client: &Client) -> Result<bool> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    Ok(api.get_opt("llmpools.weir.dev").await?.is_some())
}

/// Deletes what [`install`] applies, and with the kinds every pool and policy.
///
/// # Errors
/// A manifest cannot be read, or the API server refuses.
pub async fn uninstall(client: &Client) -> Result<()> {
    for directory in ["crds/yaml", "deploy"] {
        for document in read(directory)? {
            manifest::delete_document(client, "default", document).await?;
        }
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

/// Waits until the Deployment's current generation is Available with no old pod left.
async fn available(api: &Api<Deployment>, name: &str) -> Result<()> {
    await_condition(&format!("Deployment {name}"), PATIENCE, async || {
        let deployment = api.get(name).await?;
        let wanted = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let status = deployment.status.unwrap_or_default();
        let count = |value: Option<i32>| value.unwrap_or(0);
        let current = status.observed_generation == deployment.metadata.generation;
        let (ready, updated) = (count(status.available_replicas), count(status.updated_replicas));
        if current && updated == wanted && ready == wanted && count(status.replicas) == wanted {
            return Ok(Seen::Done(()));
        }
        Ok(Seen::NotYet(format!(
            "{ready} of {wanted} available, {updated} updated"
        )))
    })
    .await
}

/// The documents of every `*.yaml` right in `directory`, namespaces before what lives in them.
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
    found.sort_by_key(|document| document["kind"] != "Namespace");
    Ok(found)
}

/// Puts the names of `archives` wherever a text names an image with the same last part, as a whole or after `=`.
fn use_images(value: &mut Value, archives: &[Archive]) {
    match value {
        Value::String(text) => {
            if let Some(replaced) = archives
                .iter()
                .find_map(|archive| with_image(text, &archive.name))
            {
                *text = replaced;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| use_images(value, archives)),
        Value::Object(fields) => fields.values_mut().for_each(|value| use_images(value, archives)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// `text` with its image replaced by `image`, if it names one with a registry or a tag and the same last part.
fn with_image(text: &str, image: &str) -> Option<String> {
    let part = |reference: &str| {
        let last = reference.rsplit('/').next().unwrap_or(reference);
        last.split([':', '@']).next().unwrap_or(last).to_owned()
    };
    let (before, reference) = match text.rsplit_once('=') {
        Some((before, reference)) => (format!("{before}="), reference),
        None => (String::new(), text),
    };
    let qualified = reference.contains('/') || reference.contains(':');
    let plain = !reference.contains(char::is_whitespace) && !reference.contains("://");
    (qualified && plain && part(reference) == part(image)).then(|| format!("{before}{image}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_replaced_and_names_are_not() {
        let image = "localhost/weir-router:dev";
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(with_image(text, image).as_deref(), expected, "{text}");
        };
        check("ghcr.io/weir/weir-router:0.1.0", Some(image));
        check("weir-router:0.1.0", Some(image));
        check("weir/weir-router@sha256:00ff", Some(image));
        check(
            "--router-image=weir/weir-router",
            Some("--router-image=localhost/weir-router:dev"),
        );
        check("weir-router", None);
        check("ghcr.io/weir/weir-operator:0.1.0", None);
        check("system:serviceaccount:weir-system:weir-router", None);
        check("http://weir-router:80", None);
    }
}
