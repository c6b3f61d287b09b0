//! The chart, and Helm on it.

pub mod bench;
pub mod traffic;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{
    Cluster,
    cache::Cache,
    command::{command, find, run},
};

/// The root of the work tree this was compiled in.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// The oldest Kubernetes that the chart is for: rendering asks no cluster.
const KUBERNETES: &str = "1.33.0";

/// Directory of the chart.
#[must_use]
pub fn directory() -> PathBuf {
    Path::new(WORKSPACE).join("charts/weir")
}

/// Calls of `helm`, which leaves its files in the cache.
#[derive(Debug, Clone)]
pub struct Helm {
    program: PathBuf,
    home: PathBuf,
    kubeconfig: Option<PathBuf>,
}

/// One installation of the chart.
#[derive(Debug, Clone)]
pub struct Release {
    helm: Helm,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

impl Helm {
    /// For work that needs no cluster.
    ///
    /// # Errors
    /// There is no `helm`.
    pub fn offline() -> Result<Self> {
        let cache = Cache::from_env()?;
        let named = std::env::var_os("HELM").map(PathBuf::from);
        let built = cache.path("tools/bin/helm");
        let program = [named, Some(built)]
            .into_iter()
            .flatten()
            .find(|program| program.is_file())
            .or_else(|| find("helm"))
            .context("helm is missing: `make chart-lint` builds it")?;
        Ok(Self {
            program,
            home: cache.directory("helm")?,
            kubeconfig: None,
        })
    }

    /// For a cluster.
    ///
    /// # Errors
    /// There is no `helm`.
    pub fn on(cluster: &Cluster) -> Result<Self> {
        let mut helm = Self::offline()?;
        helm.kubeconfig = Some(cluster.kubeconfig());
        Ok(helm)
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// What `helm ARGS` prints.
    ///
    /// # Errors
    /// It fails; the error says what it wrote.
    pub async fn run(&self, args: &[&str]) -> Result<String> {
        let mut helm = command(&self.program.display().to_string(), args);
        for (name, directory) in [
            ("HELM_CACHE_HOME", "cache"),
            ("HELM_CONFIG_HOME", "config"),
            ("HELM_DATA_HOME", "data"),
        ] {
            helm.env(name, self.home.join(directory));
        }
        match &self.kubeconfig {
            Some(path) => helm.env("KUBECONFIG", path),
            None => helm.env_remove("KUBECONFIG"),
        };
        run(helm).await
    }

    /// The chart rendered as release `weir` in `weir-system`, with these values.
    ///
    /// # Errors
    /// The values or the templates are wrong.
    pub async fn render(&self, values: &Value) -> Result<String> {
        let file = file(values)?;
        let (chart, values) = (text(&directory())?, text(file.path())?);
        let fixed = ["template", "weir", &chart, "--namespace", "weir-system"];
        let more = ["--kube-version", KUBERNETES, "--values", &values];
        self.run(&[&fixed[..], &more[..]].concat()).await
    }

    /// Packs the chart in `source` into `target` and returns the archive's path.
    ///
    /// # Errors
    /// It cannot be packed.
    pub async fn package(&self, source: &Path, target: &Path) -> Result<PathBuf> {
        let said = self
            .run(&["package", &text(source)?, "--destination", &text(target)?])
            .await?;
        let path = said.lines().find_map(|line| line.split_once("saved it to: "));
        let path = PathBuf::from(path.context("helm did not say where the package is")?.1);
        ensure!(path.is_file(), "{} is missing", path.display());
        Ok(path)
    }
}

impl Release {
    /// The release of that name and namespace, installed or not.
    #[must_use]
    pub fn new(helm: Helm, name: &str, namespace: &str) -> Self {
        Self {
            helm,
            name: name.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    /// Installs `chart` or upgrades to it, and waits until the operator is Available. Takes over objects that were
    /// applied without Helm.
    ///
    /// # Errors
    /// Helm or the API server refuses, or the operator does not become Available in three minutes.
    pub async fn upgrade(&self, chart: &Path, values: &Value) -> Result<()> {
        let file = file(values)?;
        let args = [
            "upgrade",
            &self.name,
            &text(chart)?,
            "--install",
            "--namespace",
            &self.namespace,
            "--create-namespace",
            "--take-ownership",
            "--wait",
            "--timeout",
            "3m",
            "--values",
            &text(file.path())?,
        ];
        self.helm.run(&args).await.map(|_| ())
    }

    /// Removes it, if it is there, and waits until its objects are gone.
    ///
    /// # Errors
    /// Helm or the API server refuses.
    pub async fn uninstall(&self) -> Result<()> {
        let args = ["uninstall", "--ignore-not-found", "--wait", "--timeout", "2m"];
        self.on(&args).await.map(|_| ())
    }

    /// What `helm test` prints.
    ///
    /// # Errors
    /// The test fails.
    pub async fn test(&self) -> Result<String> {
        self.on(&["test", "--timeout", "2m"]).await
    }

    /// The manifests of the installed release.
    ///
    /// # Errors
    /// It is not installed.
    pub async fn manifest(&self) -> Result<String> {
        self.on(&["get", "manifest"]).await
    }

    async fn on(&self, args: &[&str]) -> Result<String> {
        let own = [self.name.as_str(), "--namespace", &self.namespace];
        self.helm.run(&[args, &own[..]].concat()).await
    }
}

fn file(values: &Value) -> Result<tempfile::NamedTempFile> {
    let file = tempfile::Builder::new().suffix(".json").tempfile()?;
    fs::write(file.path(), values.to_string())?;
    Ok(file)
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().context("a path that is no text")?;
    Ok(text.to_owned())
}
