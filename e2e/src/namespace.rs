//! A namespace per test.

use std::{
    io::{self, Write},
    panic::{AssertUnwindSafe, resume_unwind},
    time::Duration,
};

use anyhow::{Context, Result};
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};

use crate::{
    cluster::Cluster,
    condition::{Seen, await_condition},
    manifest,
    reach::{Reach, reach},
    session::cluster,
    state_dump::dump,
};

/// A namespace of a test's own, with restricted Pod Security enforced.
#[derive(Clone)]
pub struct TestNamespace {
    /// Its name, unique in the cluster.
    pub name: String,
    /// A client of the administrator.
    pub client: Client,
    /// The cluster it is in.
    pub cluster: Cluster,
}

impl TestNamespace {
    /// Applies manifests to this namespace.
    ///
    /// # Errors
    /// As [`manifest::apply`].
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        manifest::apply(&self.client, &self.name, yaml).await
    }

    /// The API of a namespaced kind in this namespace.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// A way to a port of one of its Services.
    ///
    /// # Errors
    /// As [`reach`].
    pub async fn reach(&self, service: &str, port: u16) -> Result<Reach> {
        reach(&self.cluster, &self.client, &self.name, service, port).await
    }
}

/// Runs `test` in a namespace of its own, which is deleted afterwards. If the test fails or panics, the namespace's
/// state is printed first; with `WEIR_E2E_KEEP=1` it is kept then.
///
/// # Errors
/// Those of the test, and a cluster that cannot be used.
///
/// # Panics
/// When the test does.
pub async fn with_temp_namespace<F, Fut>(test: F) -> Result<()>
where
    F: FnOnce(TestNamespace) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let (cluster, client) = cluster().await?;
    let namespace = create(cluster, client).await?;
    // A panic in the test must not skip the deletion.
    let outcome = AssertUnwindSafe(Box::pin(test(namespace.clone())))
        .catch_unwind()
        .await;
    if !matches!(outcome, Ok(Ok(()))) {
        let text = dump(&namespace.client, &namespace.name).await;
        let _ = io::stderr().write_all(text.as_bytes());
    }
    if matches!(outcome, Ok(Ok(()))) || std::env::var_os("WEIR_E2E_KEEP").is_none() {
        let namespaces: Api<Namespace> = Api::all(namespace.client.clone());
        let deleted = namespaces
            .delete(&namespace.name, &DeleteParams::background())
            .await;
        match deleted {
            Ok(_) => {}
            // The test itself deleted it.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                return Err(error).with_context(|| format!("deleting namespace {}", namespace.name));
            }
        }
    }
    match outcome {
        Ok(result) => result.with_context(|| format!("in namespace {}", namespace.name)),
        Err(panic) => resume_unwind(panic),
    }
}

/// Has Kubernetes look at what is left of a namespace that ends. From 1.33 on it ends pods before anything else, and where
/// some still stop it comes back only after half of their longest grace, which is five minutes with a gateway, although
/// they are gone within seconds; any change of the namespace brings it back at once.
///
/// # Errors
/// The API server refuses the change. A namespace that is gone is none.
pub async fn look_again(client: &Client, name: &str) -> Result<()> {
    // No two looks in one second: the change would be none.
    let second = jiff::Timestamp::now().as_second().to_string();
    let mark = serde_json::json!({"metadata": {"annotations": {"weir.dev/test-looked": second}}});
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let patched = namespaces
        .patch(name, &PatchParams::default(), &Patch::Merge(mark))
        .await;
    match patched {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("marking namespace {name}")),
    }
}

/// Waits until the namespaces of tests before this one have ended: the operator answers what Kubernetes deletes there.
///
/// # Errors
/// Not within `limit`.
pub async fn others_ended(client: &Client, limit: Duration) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let of_tests = ListParams::default().labels("weir.dev/test=true");
    await_condition("other namespaces to end", limit, async || {
        let mut left = Vec::new();
        for namespace in namespaces.list(&of_tests).await? {
            let name = namespace.metadata.name.unwrap_or_default();
            if namespace.metadata.deletion_timestamp.is_some() {
                look_again(client, &name).await?;
                left.push(name);
            }
        }
        Ok(if left.is_empty() {
            Seen::Done(())
        } else {
            Seen::NotYet(left.join(", "))
        })
    })
    .await
}

async fn create(cluster: Cluster, client: Client) -> Result<TestNamespace> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let wanted = serde_json::from_value(serde_json::json!({
        "metadata": {
            "generateName": "weir-test-",
            "labels": {
                "pod-security.kubernetes.io/enforce": "restricted",
                "weir.dev/test": "true",
            },
        },
    }))?;
    let created = namespaces
        .create(&PostParams::default(), &wanted)
        .await
        .context("creating a namespace")?;
    let name = created.metadata.name.context("a namespace without a name")?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &name);
    await_condition(
        "the namespace's service account",
        Duration::from_secs(60),
        async || {
            Ok(match accounts.get_opt("default").await? {
                Some(_) => Seen::Done(()),
                None => Seen::NotYet("absent".to_owned()),
            })
        },
    )
    .await?;
    Ok(TestNamespace {
        name,
        client,
        cluster,
    })
}
