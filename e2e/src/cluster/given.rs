//! A cluster that somebody else made and `$KUBECONFIG` names.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use kube::config::Kubeconfig;

use super::{
    command::{command, run},
    images::Archive,
    plane::connect,
    progress::Progress,
};

/// Set to `yes` by a user whose cluster's nodes have the images by other means.
const LOADED: &str = "WEIR_IMAGES_LOADED";

/// The given cluster.
#[derive(Debug, Clone)]
pub struct Given {
    kubeconfig: PathBuf,
}

impl Given {
    /// The cluster of `kubeconfig`.
    #[must_use]
    pub fn new(kubeconfig: PathBuf) -> Self {
        Self { kubeconfig }
    }

    /// The configuration file.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Asks the API server for its version.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn check(&self, progress: &Progress) -> Result<()> {
        let what = format!("using the cluster of {}", self.kubeconfig.display());
        let ask = async {
            let client = connect(&self.kubeconfig).await?;
            client
                .apiserver_version()
                .await
                .context("the API server does not answer")?;
            Ok(())
        };
        progress.step(&what, ask).await
    }

    /// A kind cluster is handed the image; for others the user says that their nodes have it.
    ///
    /// # Errors
    /// The nodes cannot be handed images from here.
    pub async fn load(&self, archive: &Archive, progress: &Progress) -> Result<()> {
        let context = Kubeconfig::read_from(&self.kubeconfig)?
            .current_context
            .unwrap_or_default();
        if let Some(name) = context.strip_prefix("kind-") {
            let load = async {
                let mut load = command("kind", ["load", "image-archive", "--name", name]);
                load.arg(&archive.path);
                run(load).await.map(|_| ())
            };
            return progress
                .step(&format!("loading {} into kind", archive.name), load)
                .await;
        }
        if env::var(LOADED).is_ok_and(|value| value == "yes") {
            return Ok(());
        }
        bail!(
            "the nodes of the cluster of KUBECONFIG (context `{context}`) cannot be handed images from here: load {} \
             into them as {} (and the other archives beside it), then set {LOADED}=yes",
            archive.path.display(),
            archive.name
        )
    }
}
