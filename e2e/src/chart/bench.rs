//! A release from nothing: the previous chart, its upgrade, and what the cluster has of it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
    core::GroupVersionKind,
    discovery::{self, Scope},
};
use serde_json::{Value, json};
use weir_crds::LLMPool;

use super::{Helm, Release, directory};
use crate::{
    Seen, await_condition,
    cluster::{Cluster, cache::Cache, images, progress::Progress},
    installation, manifest, operator,
    pool::PATIENCE,
    session, state,
};

/// A field that the previous chart's kind lacks.
pub const NEW_FIELD: &str = "podMetadata";
/// Tag of the previous chart's images.
pub const PREVIOUS: &str = "previous";

/// A cluster without Weir, and the images of both charts in it.
pub struct Bench {
    /// The cluster.
    pub cluster: Cluster,
    /// A client of the administrator.
    pub client: Client,
    /// The release, not installed at first.
    pub release: Release,
    /// Values for the images of this work tree.
    values: Value,
    /// Values for the images of the previous chart.
    previous: Value,
}

impl Bench {
    /// Makes it.
    ///
    /// # Errors
    /// Images cannot be built, or somebody uses the Weir that is there.
    pub async fn new() -> Result<Self> {
        let (cluster, client) = session::cluster().await?;
        let (cache, progress) = (Cache::from_env()?, Progress::new());
        let current = images::project(&cache, &progress).await?;
        let previous = images::project_as(&cache, PREVIOUS, &progress).await?;
        cluster.load(&current, &progress).await?;
        cluster.load(&previous, &progress).await?;
        let bench = Self {
            release: installation::release(&cluster)?,
            values: installation::values("dev", &current),
            previous: installation::values(PREVIOUS, &previous),
            cluster,
            client,
        };
        bench.clear().await?;
        Ok(bench)
    }

    /// Removes Weir, unless somebody uses it.
    async fn clear(&self) -> Result<()> {
        if installation::is_installed(&self.client).await? {
            let pools: Api<LLMPool> = Api::all(self.client.clone());
            let of_others = pools
                .list(&ListParams::default())
                .await?
                .into_iter()
                .find(|pool| {
                    let namespace = pool.metadata.namespace.as_deref().unwrap_or_default();
                    !namespace.starts_with("weir-test-")
                });
            if let Some(pool) = of_others {
                bail!(
                    "this test removes the kinds, and there is a pool that is not a test's: {:?}",
                    pool.metadata
                );
            }
        }
        installation::uninstall(&self.cluster, &self.client).await?;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        await_condition("no Weir", PATIENCE, async || {
            let kinds = installation::is_installed(&self.client).await?;
            let namespace = namespaces.get_opt(operator::NAMESPACE).await?.is_some();
            Ok(if kinds || namespace {
                Seen::NotYet(format!("kinds {kinds}, namespace {namespace}"))
            } else {
                Seen::Done(())
            })
        })
        .await?;
        let restricted = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": operator::NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        });
        manifest::apply_document(&self.client, "", restricted).await?;
        Ok(())
    }

    /// Installs `chart` or upgrades to it, with this work tree's images and these values.
    ///
    /// # Errors
    /// As [`Release::upgrade`].
    pub async fn upgrade(&self, chart: &Path, more: &Value) -> Result<()> {
        let mut values = self.values.clone();
        merge(&mut values, more);
        self.explained(self.release.upgrade(chart, &values).await).await
    }

    /// Installs the previous chart with its images.
    ///
    /// # Errors
    /// As [`Release::upgrade`].
    pub async fn install_previous(&self, chart: &Path) -> Result<()> {
        self.explained(self.release.upgrade(chart, &self.previous).await)
            .await
    }

    /// The same, with the state of the operator's namespace in an error.
    async fn explained(&self, result: Result<()>) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(state(&self.client, operator::NAMESPACE).await)),
        }
    }

    async fn kind(&self) -> Result<CustomResourceDefinition> {
        let kinds: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        Ok(kinds.get("llmpools.weir.dev").await?)
    }

    /// Whether the installed LLMPool has `spec.FIELD`.
    ///
    /// # Errors
    /// It is not installed.
    pub async fn kind_has(&self, field: &str) -> Result<bool> {
        let kind = serde_json::to_value(self.kind().await?)?;
        let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
        let fields = kind.pointer(path).context("the kind has no schema")?;
        Ok(fields.get(field).is_some())
    }

    /// `resourceVersion` of every object of the release, `generation` of those with a status. Its lease is renewed all
    /// the time, and left out.
    ///
    /// # Errors
    /// One is not there.
    pub async fn versions(&self) -> Result<BTreeMap<String, String>> {
        let mut versions = BTreeMap::new();
        for document in manifest::documents(&self.release.manifest().await?)? {
            if document["kind"] == "Lease" {
                continue;
            }
            let object: DynamicObject = serde_json::from_value(document)?;
            let kind = GroupVersionKind::try_from(object.types.clone().context("a kind")?)?;
            let (resource, capabilities) = discovery::pinned_kind(&self.client, &kind).await?;
            let api: Api<DynamicObject> = match capabilities.scope {
                Scope::Cluster => Api::all_with(self.client.clone(), &resource),
                Scope::Namespaced => {
                    let namespace = object.metadata.namespace.as_deref().context("a namespace")?;
                    Api::namespaced_with(self.client.clone(), namespace, &resource)
                }
            };
            let name = object.metadata.name.context("a name")?;
            let found = api.get(&name).await?;
            let mut version = found.metadata.resource_version.unwrap_or_default();
            if kind.kind == "Deployment" || kind.kind == "PodDisruptionBudget" {
                // Their status lives on.
                version = format!("{:?}", found.metadata.generation);
            }
            versions.insert(format!("{} {name}", kind.kind), version);
        }
        Ok(versions)
    }
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more.clone(),
    }
}

/// The chart as it might have been: an older version, whose kind lacks a field. Packed as for a registry.
///
/// # Errors
/// It cannot be packed, or the kind has not the field that it is to lack.
pub async fn previous_chart(helm: &Helm, target: &Path) -> Result<PathBuf> {
    let source = target.join("weir");
    copy(&directory(), &source)?;
    let chart = source.join("Chart.yaml");
    let text = fs::read_to_string(&chart)?.replace("\nversion: ", "\nversion: 0.0.1-previous+");
    fs::write(&chart, text)?;
    let file = source.join("files/crds/llmpools.yaml");
    let mut kind: Value = serde_saphyr::from_str(&fs::read_to_string(&file)?)?;
    let fields = kind
        .pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties")
        .and_then(Value::as_object_mut)
        .context("the kind has no schema")?;
    fields.remove(NEW_FIELD).context("the field is not there")?;
    fs::write(&file, kind.to_string())?;
    helm.package(&source, target).await
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
