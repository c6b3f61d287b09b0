//! The cluster that tests and the demo run on: the one `$KUBECONFIG` names, one made with `kind`, or a real
//! single-node Kubernetes on this machine.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use kube::Client;
use tokio::process::Command;

use audit::Audit;
use cache::Cache;
use command::{command, find, succeeds};
use given::Given;
use images::Archive;
use kind::KindCluster;
use plane::{Found, Owner, Plane};
use progress::Progress;

pub mod audit;
pub mod cache;
pub mod command;
pub mod components;
pub mod given;
pub mod images;
pub mod kind;
pub mod packages;
mod pki;
pub mod plane;
pub mod process;
pub mod progress;

/// The chosen cluster, running or not.
#[derive(Debug, Clone)]
pub enum Cluster {
    /// Somebody else's, named by `$KUBECONFIG`.
    Given(Given),
    /// Made with `kind`.
    Kind(KindCluster),
    /// On this machine.
    Plane(Plane),
}

/// What a choice depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// `$KUBECONFIG` is set and not empty.
    pub kubeconfig: bool,
    /// `kind` is on `PATH`.
    pub kind: bool,
    /// A container engine answers.
    pub engine: bool,
    /// The operating system is Linux.
    pub linux: bool,
    /// This user is root.
    pub root: bool,
    /// `go` is on `PATH`, or its products are in the cache.
    pub go: bool,
}

/// A way to get a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Use what `$KUBECONFIG` names.
    Given,
    /// Make one with `kind`.
    Kind,
    /// Build and start the local plane.
    Plane,
}

/// The way that `machine` allows: a given cluster before `kind` before the local plane.
///
/// # Errors
/// None of them; the text says what is missing for each.
pub fn choose(machine: Machine) -> Result<Way, String> {
    match machine {
        Machine { kubeconfig: true, .. } => Ok(Way::Given),
        Machine {
            kind: true,
            engine: true,
            ..
        } => Ok(Way::Kind),
        Machine {
            linux: true,
            root: true,
            go: true,
            ..
        } => Ok(Way::Plane),
        _ => Err(missing(machine)),
    }
}

fn missing(machine: Machine) -> String {
    let kind = if machine.kind {
        "`kind` is there, but no container engine answers (start docker or podman)"
    } else {
        "`kind` is not on PATH"
    };
    let mut plane = Vec::new();
    if !machine.linux {
        plane.push("Linux");
    }
    if !machine.root {
        plane.push("root (it starts containers and sets up networks)");
    }
    if !machine.go {
        plane.push("Go (it is built from its Go modules)");
    }
    format!(
        "no Kubernetes to run on. One of these helps:\n  - set KUBECONFIG to a cluster's configuration\n  - {kind}\n  \
         - the local Kubernetes still needs: {}",
        plane.join(", ")
    )
}

impl Cluster {
    /// The cluster for this environment: `$KUBECONFIG`, else by [`choose`] one called `$WEIR_CLUSTER` (`weir`).
    ///
    /// # Errors
    /// No cache directory, or no way to a cluster.
    pub async fn from_env() -> Result<Self> {
        let name = env::var("WEIR_CLUSTER").unwrap_or_else(|_| "weir".to_owned());
        Self::named(&name).await
    }

    /// As [`Self::from_env`], with a name.
    ///
    /// # Errors
    /// As [`Self::from_env`].
    pub async fn named(name: &str) -> Result<Self> {
        let cache = Cache::from_env()?;
        let plane = Plane::new(&cache, name)?;
        let kubeconfig = env::var_os("KUBECONFIG")
            .filter(|value| !value.is_empty())
            .map(PathBuf::from);
        let kind = find("kind").is_some();
        let machine = Machine {
            kubeconfig: kubeconfig.is_some(),
            kind,
            engine: kind && kubeconfig.is_none() && engine_answers().await,
            linux: cfg!(target_os = "linux"),
            root: rustix::process::geteuid().is_root(),
            go: find("go").is_some() || plane.binaries().path("kubelet").is_file(),
        };
        match (choose(machine), kubeconfig) {
            // The plane's own configuration, exported by hand.
            (Ok(Way::Given), Some(path)) if same_file(&path, &plane.kubeconfig()) => Ok(Self::Plane(plane)),
            (Ok(Way::Given), Some(path)) => Ok(Self::Given(Given::new(path))),
            (Ok(Way::Kind), _) => Ok(Self::Kind(KindCluster::new(&cache, name))),
            (Ok(_), _) => Ok(Self::Plane(plane)),
            (Err(missing), _) => bail!(missing),
        }
    }

    /// Makes the cluster answer: starts or joins it. A plane ends with `owner`; the others do not.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn up(&self, owner: Owner, progress: &Progress) -> Result<Found> {
        match self {
            Self::Given(given) => given.check(progress).await.map(|()| Found::Running),
            Self::Kind(kind) => kind.up(owner, progress).await,
            Self::Plane(plane) => Box::pin(plane.up(owner, progress)).await,
        }
    }

    /// Ends the cluster if the [`Self::up`] with this owner started it and nobody else has joined; half of one, when that
    /// call did not come to its end.
    ///
    /// # Errors
    /// Something of it resists.
    pub async fn release(&self, owner: Owner, progress: &Progress) -> Result<()> {
        match self {
            Self::Plane(plane) => plane.release(owner, progress).await,
            Self::Kind(kind) => kind.release(owner, progress).await,
            Self::Given(_) => Ok(()),
        }
    }

    /// Ends the cluster, unless it is somebody else's.
    ///
    /// # Errors
    /// Something of it resists.
    pub async fn down(&self, progress: &Progress) -> Result<()> {
        match self {
            Self::Given(_) => Ok(()),
            Self::Kind(kind) => kind.down(progress).await,
            Self::Plane(plane) => plane.down(progress).await,
        }
    }

    /// `kubeconfig`, `kind` or `local`: the word in reports.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Given(_) => "kubeconfig",
            Self::Kind(_) => "kind",
            Self::Plane(_) => "local",
        }
    }

    /// The administrator's client configuration.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        match self {
            Self::Given(given) => given.kubeconfig().to_path_buf(),
            Self::Kind(kind) => kind.kubeconfig(),
            Self::Plane(plane) => plane.kubeconfig(),
        }
    }

    /// A client; it belongs to the runtime it is made in.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub async fn client(&self) -> Result<Client> {
        plane::connect(&self.kubeconfig()).await
    }

    /// Whether the API server answers now.
    pub async fn is_running(&self) -> bool {
        let ask = async {
            self.client()
                .await?
                .apiserver_version()
                .await
                .map_err(anyhow::Error::from)
        };
        matches!(
            tokio::time::timeout(std::time::Duration::from_secs(5), ask).await,
            Ok(Ok(_))
        )
    }

    /// The API server's audit log.
    ///
    /// # Errors
    /// A given cluster keeps its audit log where only its owner can read it.
    pub fn audit(&self) -> Result<Audit> {
        match self {
            Self::Given(_) => bail!("the audit log of the cluster of KUBECONFIG cannot be read from here"),
            Self::Kind(kind) => Ok(Audit::at(&kind.audit_log())),
            Self::Plane(plane) => Ok(Audit::at(&plane.audit_log())),
        }
    }

    /// Whether pod and service addresses can be reached from this process.
    #[must_use]
    pub fn addresses_are_local(&self) -> bool {
        matches!(self, Self::Plane(_))
    }

    /// A `kubectl` call on this cluster.
    ///
    /// # Errors
    /// There is no `kubectl`.
    pub fn kubectl(&self, args: &[&str]) -> Result<Command> {
        let built = match self {
            Self::Plane(plane) => Some(plane.binaries().path("kubectl")),
            _ => None,
        };
        let program = find("kubectl").or(built).context("kubectl is not on PATH")?;
        let mut kubectl = command(&program.display().to_string(), args);
        kubectl.env("KUBECONFIG", self.kubeconfig());
        Ok(kubectl)
    }

    /// Hands images to the cluster, those that it does not have yet.
    ///
    /// # Errors
    /// It refuses one, or cannot be handed any.
    pub async fn load(&self, archives: &[Archive], progress: &Progress) -> Result<()> {
        for archive in archives {
            images::load(self, archive, progress).await?;
        }
        Ok(())
    }
}

async fn engine_answers() -> bool {
    succeeds(command("docker", ["info"])).await || succeeds(command("podman", ["info"])).await
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Machine = Machine {
        kubeconfig: false,
        kind: false,
        engine: false,
        linux: true,
        root: false,
        go: false,
    };

    #[test]
    fn the_first_way_that_works_is_taken() {
        let plane = Machine {
            root: true,
            go: true,
            ..NOTHING
        };
        let kind = Machine {
            kind: true,
            engine: true,
            ..plane
        };
        assert_eq!(choose(plane), Ok(Way::Plane));
        assert_eq!(choose(kind), Ok(Way::Kind));
        assert_eq!(
            choose(Machine {
                engine: false,
                ..kind
            }),
            Ok(Way::Plane)
        );
        assert_eq!(
            choose(Machine {
                kubeconfig: true,
                ..kind
            }),
            Ok(Way::Given)
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let text = choose(NOTHING).expect_err("no way");
        assert!(
            text.contains("KUBECONFIG") && text.contains("root") && text.contains("Go"),
            "{text}"
        );
        assert!(!text.contains("Linux"), "{text}");
        let text = choose(Machine {
            kind: true,
            linux: false,
            root: true,
            ..NOTHING
        })
        .expect_err("no way");
        assert!(
            text.contains("no container engine") && text.contains("Linux"),
            "{text}"
        );
    }
}
