//! The commands of the documents, run as they are written, each document on a cluster without Weir.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::DeleteParams};
use weir_e2e::{
    Seen, TestNamespace, await_condition,
    chart::{Helm, bench::Bench},
    cluster::{
        command::{command, run},
        images,
        progress::Progress,
    },
    docs::{Step, missing_from, steps},
    installation, look_again, operator,
    pool::PATIENCE,
    with_temp_namespace,
};

/// Longest run of the commands of one fence.
const LIMIT: Duration = Duration::from_secs(300);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A directory in which documents' commands find what they name, programs among it.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    /// Programs, the work tree's directories, and a client configuration whose namespace is that of the test.
    async fn new(space: &TestNamespace) -> Result<Self> {
        let place = Self {
            directory: tempfile::tempdir()?,
        };
        let bin = place.path("bin");
        fs::create_dir(&bin)?;
        let kubectl = space.cluster.kubectl(&[])?.as_std().get_program().to_owned();
        symlink(kubectl, bin.join("kubectl"))?;
        symlink(Helm::on(&space.cluster)?.program(), bin.join("helm"))?;
        symlink(images::binaries().join("weir-router"), bin.join("weir-router"))?;
        for name in ["charts", "crds", "deploy"] {
            symlink(root().join(name), place.path(name))?;
        }
        fs::copy(space.cluster.kubeconfig(), place.path("kubeconfig"))?;
        let namespace = format!("--namespace={}", space.name);
        place
            .run(&format!("kubectl config set-context --current {namespace}"))
            .await?;
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What `script` prints.
    async fn run(&self, script: &str) -> Result<String> {
        let mut shell = command("bash", ["-euo", "pipefail", "-c", script]);
        let path = std::env::var("PATH").unwrap_or_default();
        shell
            .current_dir(self.directory.path())
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env("KUBECONFIG", self.path("kubeconfig"))
            .env("HELM_CACHE_HOME", self.path("helm/cache"))
            .env("HELM_CONFIG_HOME", self.path("helm/config"))
            .env("HELM_DATA_HOME", self.path("helm/data"));
        match tokio::time::timeout(LIMIT, run(shell)).await {
            Ok(said) => said,
            Err(_) => bail!("not done in {} s", LIMIT.as_secs()),
        }
    }

    async fn follow(&self, step: Step) -> Result<()> {
        match step {
            Step::Needs(_) => {}
            Step::File { name, text } => fs::write(self.path(&name), text)?,
            Step::Run { script, output } => {
                let said = self
                    .run(&script)
                    .await
                    .with_context(|| format!("running\n{script}"))?;
                let missing = missing_from(&said, &output.unwrap_or_default());
                ensure!(
                    missing.is_empty(),
                    "the document shows {missing:?}; printed was\n{said}\nby\n{script}"
                );
            }
        }
        Ok(())
    }
}

/// Waits until the namespace of the operator is gone: the documents make it.
async fn without_namespace(bench: &Bench) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(bench.client.clone());
    let deleted = namespaces
        .delete(operator::NAMESPACE, &DeleteParams::background())
        .await;
    match deleted {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        other => drop(other.context("deleting the operator's namespace")?),
    }
    await_condition("no namespace of Weir", PATIENCE, async || {
        look_again(&bench.client, operator::NAMESPACE).await?;
        Ok(match namespaces.get_opt(operator::NAMESPACE).await? {
            None => Seen::Done(()),
            Some(_) => Seen::NotYet("still there".to_owned()),
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_documents_work() -> Result<()> {
    let mut documents = vec![root().join("README.md"), root().join("charts/weir/README.md")];
    for entry in fs::read_dir(root().join("docs"))? {
        documents.push(entry?.path());
    }
    documents.retain(|file| file.extension().is_some_and(|extension| extension == "md"));
    documents.sort();
    for document in documents {
        let name = document.display().to_string();
        let steps = steps(&fs::read_to_string(&document)?).with_context(|| name.clone())?;
        if !steps.iter().any(|step| matches!(step, Step::Run { .. })) {
            continue;
        }
        let bench = Bench::new().await?;
        without_namespace(&bench).await?;
        with_temp_namespace(async |space| {
            let place = Place::new(&space).await?;
            for step in steps {
                Progress::new()
                    .step(&name, place.follow(step))
                    .await
                    .with_context(|| name.clone())?;
            }
            Ok(())
        })
        .await?;
        installation::uninstall(&bench.cluster, &bench.client).await?;
    }
    Ok(())
}
