//! What the demo plays on: the cluster, Weir in it, and a namespace. It knows what it has put up, and takes that down.

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::{Api, Client, api::DeleteParams};
use weir_e2e::{
    Seen, await_condition,
    cluster::{
        Cluster,
        cache::Cache,
        command::run,
        images,
        plane::{Found, Owner},
        process::Record,
        progress::Progress,
    },
    installation, manifest, state,
};

/// Where the demo lives.
pub(crate) const NAMESPACE: &str = "weir-demo";
/// The root of the work tree this was compiled in.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Everything that was put up so far.
pub(crate) struct Stage {
    pub(crate) progress: Progress,
    cluster: Option<(Cluster, Owner)>,
    found: Option<Found>,
    client: Option<Client>,
    installed: bool,
    namespace: bool,
}

impl Stage {
    pub(crate) fn new(progress: Progress) -> Self {
        Self {
            progress,
            cluster: None,
            found: None,
            client: None,
            installed: false,
            namespace: false,
        }
    }

    /// Where reports go.
    pub(crate) fn directory() -> Result<PathBuf> {
        let directory = PathBuf::from(WORKSPACE).join("target/demo");
        std::fs::create_dir_all(&directory)?;
        Ok(directory.canonicalize()?)
    }

    pub(crate) fn cluster(&self) -> Result<&Cluster> {
        self.cluster
            .as_ref()
            .map(|(cluster, _)| cluster)
            .context("no cluster yet")
    }

    pub(crate) fn client(&self) -> Result<&Client> {
        self.client.as_ref().context("no cluster yet")
    }

    /// Chooses a cluster and makes it answer.
    pub(crate) async fn take_cluster(&mut self) -> Result<()> {
        let cluster = Cluster::from_env().await?;
        let owner = Record::own().map_or(Owner::Nobody, Owner::Process);
        self.cluster = Some((cluster.clone(), owner));
        self.found = Some(cluster.up(owner, &self.progress).await?);
        self.client = Some(cluster.client().await?);
        Ok(())
    }

    /// Builds the images and installs the operator.
    pub(crate) async fn install(&mut self) -> Result<()> {
        let archives = images::project(&Cache::from_env()?, &self.progress).await?;
        let cluster = self.cluster()?.clone();
        cluster.load(&archives, &self.progress).await?;
        let client = self.client()?.clone();
        self.installed = !installation::is_installed(&client).await?;
        installation::install(&cluster, &client, &archives, &self.progress).await
    }

    /// Makes the namespace anew, with restricted Pod Security enforced.
    pub(crate) async fn make_namespace(&mut self) -> Result<()> {
        let client = self.client()?.clone();
        self.delete_namespace(&client).await?;
        self.namespace = true;
        let yaml = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n  labels:\n    \
             pod-security.kubernetes.io/enforce: restricted\n"
        );
        manifest::apply(&client, NAMESPACE, &yaml).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client, NAMESPACE);
        await_condition(
            "the namespace's service account",
            Duration::from_secs(60),
            async || {
                let found = accounts.get_opt("default").await?;
                Ok(found.map_or_else(|| Seen::NotYet("absent".to_owned()), |_| Seen::Done(())))
            },
        )
        .await
    }

    /// What `kubectl ARGS` prints in the demo's namespace; printed, too.
    pub(crate) async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut command = self.cluster()?.kubectl(args)?;
        command.args(["-n", NAMESPACE]);
        let text = run(command).await?;
        let mut out = io::stdout();
        writeln!(out, "\n    $ kubectl {} -n {NAMESPACE}", args.join(" "))?;
        for line in text.lines() {
            writeln!(out, "    {line}")?;
        }
        writeln!(out)?;
        Ok(text)
    }

    /// The state of the namespace, for the reader of a failure.
    pub(crate) async fn explain(&self) {
        if let (true, Some(client)) = (self.namespace, &self.client) {
            let describe = async {
                let text = state(client, NAMESPACE).await;
                let operator = state(client, "weir-system").await;
                let _ = write!(io::stderr(), "{text}{operator}");
            };
            let _ = tokio::time::timeout(Duration::from_secs(20), describe).await;
        }
    }

    /// Takes down what was put up, or with `keep` says how to go on.
    pub(crate) async fn strike(&mut self, keep: bool) -> Result<()> {
        let Some((cluster, owner)) = self.cluster.clone() else {
            return Ok(());
        };
        if keep {
            cluster.up(Owner::Nobody, &self.progress).await?;
            return self.say_how_to_go_on(&cluster);
        }
        // A cluster that was there before is left as it was; one that was not takes everything with it.
        if self.found != Some(Found::Absent)
            && let Some(client) = self.client.clone()
        {
            if self.namespace {
                self.progress
                    .step("deleting the demo's namespace", self.delete_namespace(&client))
                    .await?;
            }
            if self.installed {
                self.progress
                    .step("uninstalling Weir", installation::uninstall(&cluster, &client))
                    .await?;
            }
        }
        cluster.release(owner, &self.progress).await
    }

    async fn delete_namespace(&self, client: &Client) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        if namespaces.get_opt(NAMESPACE).await?.is_none() {
            return Ok(());
        }
        namespaces.delete(NAMESPACE, &DeleteParams::background()).await?;
        await_condition(
            "the old namespace to be gone",
            Duration::from_secs(120),
            async || {
                let found = namespaces.get_opt(NAMESPACE).await?;
                Ok(found.map_or_else(|| Seen::Done(()), |_| Seen::NotYet("still there".to_owned())))
            },
        )
        .await
    }

    fn say_how_to_go_on(&self, cluster: &Cluster) -> Result<()> {
        let kubeconfig = cluster.kubeconfig();
        let mut out = io::stdout();
        writeln!(out, "\nThe cluster goes on. By hand:")?;
        writeln!(out, "  export KUBECONFIG={}", kubeconfig.display())?;
        writeln!(out, "  kubectl -n {NAMESPACE} get llmpools --watch")?;
        if cluster.addresses_are_local() {
            writeln!(
                out,
                "  URL=http://$(kubectl -n {NAMESPACE} get service weir -o 'jsonpath={{.spec.clusterIP}}')"
            )?;
        } else {
            writeln!(
                out,
                "  kubectl -n {NAMESPACE} port-forward service/weir 8080:80 & URL=http://127.0.0.1:8080"
            )?;
        }
        let body = r#"{"model": "coder-8b", "messages": [{"role": "user", "content": "Hello"}]}"#;
        writeln!(
            out,
            "  curl $URL/v1/chat/completions -H 'content-type: application/json' -d '{body}'"
        )?;
        Ok(writeln!(
            out,
            "  unset KUBECONFIG; make cluster-down   # the end of it"
        )?)
    }
}
