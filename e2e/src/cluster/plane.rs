//! A real single-node Kubernetes on this machine: etcd, API server, controller manager, scheduler, kubelet, kube-proxy,
//! containerd, runc and CoreDNS as plain processes, everything they write in one state directory.
//!
//! One plane per machine at a time. It lives until [`Plane::down`], or until the last of its owners has ended
//! ([`Plane::guard`]). NetworkPolicies are stored but not enforced: the bridge plugin knows none.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{
    cache::{Cache, lock},
    command::command,
    components::Binaries,
    packages,
    process::{self, Record},
    progress::{Progress, now},
};

mod clean;
mod files;
mod parts;
mod start;

pub use files::AUDIT_POLICY;

/// Held while a plane is started or ended on this machine.
const LOCK: &str = "/run/weir-plane.lock";
/// Names the state directory of the machine's plane.
const ACTIVE: &str = "/run/weir-plane.active";
/// GPUs the node claims to have, so that scheduling by GPU can be tested.
const GPUS: &str = "4";

/// The plane with one name, running or not.
#[derive(Debug, Clone)]
pub struct Plane {
    cache: Cache,
    name: String,
    state: PathBuf,
    binaries: Binaries,
}

/// What [`Plane::up`] had to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing: it ran already.
    Running,
    /// It was not there, and has been started.
    Absent,
}

/// On whose behalf a plane runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Until somebody calls [`Plane::down`].
    Nobody,
    /// Until this process has ended.
    Process(Record),
}

impl Owner {
    fn file_name(self) -> String {
        match self {
            Self::Nobody => "nobody".to_owned(),
            Self::Process(record) => record.pid.to_string(),
        }
    }
}

impl Plane {
    /// The plane called `name` (lower-case letters, digits, `-`).
    ///
    /// # Errors
    /// The name has other characters.
    pub fn new(cache: &Cache, name: &str) -> Result<Self> {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || !name.chars().all(valid) {
            bail!("cluster name `{name}`: lower-case letters, digits and `-` only");
        }
        Ok(Self {
            cache: cache.clone(),
            name: name.to_owned(),
            state: cache.path(&format!("cluster/{name}")),
            binaries: Binaries::locate(cache),
        })
    }

    /// The administrator's client configuration.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("admin.kubeconfig")
    }

    /// The API server's audit log.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.state.join("log/audit.log")
    }

    /// What the parts wrote.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.state.join("log")
    }

    /// containerd's socket.
    #[must_use]
    pub fn containerd_socket(&self) -> PathBuf {
        self.state.join("cri/containerd.sock")
    }

    /// The state directory; gone after [`Self::down`].
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The binaries it runs.
    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// Installs packages and builds binaries; returns at once when all are there.
    ///
    /// # Errors
    /// Not root, or something cannot be installed or built.
    pub async fn build(&self, progress: &Progress) -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            bail!("the local Kubernetes needs root: it starts containers and sets up networks");
        }
        packages::ensure(packages::PLANE, progress).await?;
        self.binaries.ensure(&self.cache, progress).await
    }

    /// Brings the plane up, or joins the running one.
    ///
    /// # Errors
    /// A part does not come up (the error ends with its log), or another plane runs on this machine.
    pub async fn up(&self, owner: Owner, progress: &Progress) -> Result<Found> {
        self.build(progress).await?;
        let lock = lock(Path::new(LOCK), progress).await?;
        if self.is_whole() && self.answers().await {
            self.add_owner(owner)?;
            progress.say(format_args!("the local Kubernetes `{}` runs already", self.name));
            return Ok(Found::Running);
        }
        self.refuse_another()?;
        let began = now();
        let result = self.start(owner, progress, &lock).await;
        if result.is_err() {
            self.keep_logs();
            self.clean().await?;
        } else {
            let seconds = (now() - began).as_secs_f64();
            progress.say(format_args!("the local Kubernetes is up after {seconds:.1} s"));
        }
        result.map(|()| Found::Absent)
    }

    /// Takes back what [`Self::up`] said about `owner`; ends the plane if nobody else wants it.
    ///
    /// # Errors
    /// As [`Self::down`].
    pub async fn release(&self, owner: Owner, progress: &Progress) -> Result<()> {
        remove(&self.state.join("owners").join(owner.file_name()))?;
        if self.is_owned() {
            Ok(())
        } else {
            self.down(progress).await
        }
    }

    /// Ends the plane and everything that ran in it. Nothing to end is no error.
    ///
    /// # Errors
    /// Something resists being ended or removed.
    pub async fn down(&self, progress: &Progress) -> Result<()> {
        if !self.state.exists() {
            return Ok(());
        }
        let _lock = lock(Path::new(LOCK), progress).await?;
        progress.step("ending the local Kubernetes", self.clean()).await
    }

    /// Name and state of every recorded process.
    #[must_use]
    pub fn processes(&self) -> Vec<(String, Record, bool)> {
        let alive = |(name, record): (String, Record)| (name, record, record.is_alive());
        process::recorded(&self.state).into_iter().map(alive).collect()
    }

    /// Whether all parts that were started still run.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let processes = self.processes();
        let runs = |part: &str| processes.iter().any(|(name, _, alive)| name == part && *alive);
        parts::ALL.iter().all(|part| runs(part)) && self.state.join("ready").exists()
    }

    /// Waits until the last owner has ended, then ends the plane. Run in a process of its own.
    ///
    /// # Errors
    /// As [`Self::down`].
    pub async fn guard(&self, progress: &Progress) -> Result<()> {
        let own = Record::own();
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let recorded = fs::read_to_string(self.state.join("run/guard")).unwrap_or_default();
            let replaced = Record::parse(&recorded).is_some_and(|record| Some(record) != own);
            if replaced || !self.state.exists() {
                return Ok(());
            }
            if self.is_owned() {
                continue;
            }
            let _lock = lock(Path::new(LOCK), progress).await?;
            if !self.is_owned() {
                return self.clean().await;
            }
        }
    }

    fn is_owned(&self) -> bool {
        let Ok(owners) = fs::read_dir(self.state.join("owners")) else {
            return false;
        };
        owners.flatten().any(|entry| {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            text == "nobody" || Record::parse(&text).is_some_and(|record| record.is_alive())
        })
    }

    fn add_owner(&self, owner: Owner) -> Result<()> {
        let text = match owner {
            Owner::Nobody => "nobody".to_owned(),
            Owner::Process(record) => record.text(),
        };
        let directory = self.state.join("owners");
        fs::create_dir_all(&directory)?;
        // Written whole or not at all: the guard may be reading.
        let part = self.state.join("owner.part");
        fs::write(&part, text)?;
        Ok(fs::rename(part, directory.join(owner.file_name()))?)
    }

    fn refuse_another(&self) -> Result<()> {
        let Ok(active) = fs::read_to_string(ACTIVE) else {
            return Ok(());
        };
        let other = Path::new(active.trim());
        let lives = process::recorded(other)
            .iter()
            .any(|(_, record)| record.is_alive());
        if other != self.state && lives {
            bail!(
                "another local Kubernetes runs on this machine, with its state in {}: end it first (`cluster down \
                 --name NAME`, with the WEIR_CACHE it was started with)",
                other.display()
            );
        }
        Ok(())
    }

    /// A `ctr` call on the plane's containerd, in the kubelet's namespace.
    pub(super) fn ctr(&self, args: &[&str]) -> tokio::process::Command {
        let mut ctr = command("ctr", ["-n", "k8s.io", "-a"]);
        ctr.arg(self.containerd_socket()).args(args);
        ctr
    }

    /// A failed start leaves its logs for a look.
    fn keep_logs(&self) {
        let kept = self.cache.path(&format!("failed/{}", self.name));
        let _ = fs::create_dir_all(self.cache.path("failed"));
        let _ = fs::remove_dir_all(&kept);
        let _ = fs::rename(self.logs(), kept);
    }

    async fn answers(&self) -> bool {
        match connect(&self.kubeconfig()).await {
            Ok(client) => matches!(
                tokio::time::timeout(Duration::from_secs(10), ready(&client)).await,
                Ok(Ok(()))
            ),
            Err(_) => false,
        }
    }
}

/// A client from a configuration file.
///
/// # Errors
/// The file cannot be read or names unusable credentials.
pub async fn connect(kubeconfig: &Path) -> Result<Client> {
    let what = || format!("reading {}", kubeconfig.display());
    let read = Kubeconfig::read_from(kubeconfig).with_context(what)?;
    let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
        .await
        .with_context(what)?;
    Ok(Client::try_from(config)?)
}

/// Gives `node` GPUs that are not there; the scheduler counts them like real ones.
///
/// # Errors
/// The API server refuses.
pub async fn add_gpus(client: &Client, node: &str) -> Result<()> {
    let gpus = serde_json::json!({"nvidia.com/gpu": GPUS});
    let patch = serde_json::json!({"status": {"capacity": gpus, "allocatable": gpus}});
    Api::<Node>::all(client.clone())
        .patch_status(node, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .context("adding GPUs to the node")?;
    Ok(())
}

async fn ready(client: &Client) -> Result<()> {
    let request = http::Request::get("/readyz").body(Vec::new())?;
    client
        .request_text(request)
        .await
        .map(|_| ())
        .context("the API server is not ready")
}

/// Removes a file or directory that may not exist.
fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
