//! The cluster of a test run: found or started once, with Weir installed once.

use anyhow::{Context, Result};
use kube::Client;
use tokio::sync::OnceCell;

use crate::{
    cluster::{Cluster, cache::Cache, images, plane::Owner, process::Record, progress::Progress},
    installation,
};

static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
static INSTALLED: OnceCell<()> = OnceCell::const_new();
static TOOLBOX: OnceCell<()> = OnceCell::const_new();

/// The cluster, started if none runs, and a client that belongs to the calling test's runtime. A started local
/// Kubernetes ends with the process that started this one (`cargo`), unless `WEIR_E2E_KEEP=1`.
///
/// # Errors
/// There is no way to a cluster, or it does not come up.
pub async fn cluster() -> Result<(Cluster, Client)> {
    let start = async || {
        let cluster = Cluster::from_env().await?;
        let keep = std::env::var_os("WEIR_E2E_KEEP").is_some();
        let owner = match Record::parent() {
            Some(parent) if !keep => Owner::Process(parent),
            _ => Owner::Nobody,
        };
        cluster.up(owner, &Progress::new()).await?;
        anyhow::Ok(cluster)
    };
    let cluster = CLUSTER.get_or_try_init(start).await?.clone();
    let client = cluster.client().await?;
    Ok((cluster, client))
}

/// Installs the kinds and the operator with images of this work tree; returns when the operator is Available.
///
/// # Errors
/// Images cannot be built, or the operator does not start.
pub async fn install() -> Result<()> {
    let install = async || {
        let (cluster, client) = cluster().await?;
        let progress = Progress::new();
        let archives = images::project(&Cache::from_env()?, &progress).await?;
        cluster.load(&archives, &progress).await?;
        installation::install(&cluster, &client, &archives, &progress).await
    };
    INSTALLED
        .get_or_try_init(install)
        .await
        .context("installing Weir")?;
    Ok(())
}

/// Hands the cluster [`images::TOOLBOX`].
///
/// # Errors
/// It cannot be built or loaded.
pub async fn toolbox() -> Result<&'static str> {
    let load = async || {
        let (cluster, _) = cluster().await?;
        let progress = Progress::new();
        let archive = images::toolbox(&Cache::from_env()?, &progress).await?;
        cluster.load(&[archive], &progress).await
    };
    TOOLBOX
        .get_or_try_init(load)
        .await
        .context("loading the toolbox image")?;
    Ok(images::TOOLBOX)
}
