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
    cache::{Cache, Lock, lock},
    command::command,
    components::Binaries,
    packages,
    process::{self, Record},
    progress::{Progress, now},
};

mod clean;
mod files;
mod owners;
mod parts;
mod start;

pub use files::AUDIT_POLICY;
pub use owners::Owner;

use owners::Owners;

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
        let (whole, owned) = (self.is_whole(), self.owners().any());
        match found(whole, owned, whole && Box::pin(self.answers(owned)).await) {
            Present::Joined => {
                self.owners().add(owner, &lock)?;
                progress.say(format_args!("the local Kubernetes `{}` runs already", self.name));
                return Ok(Found::Running);
            }
            Present::Busy => bail!(
                "the local Kubernetes `{0}` runs for somebody else and does not answer: try again, or end it with \
                 `cluster down --name {0}`",
                self.name
            ),
            Present::Remains => {}
        }
        self.refuse_another()?;
        let began = now();
        let result = Box::pin(self.start(owner, progress, &lock)).await;
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
        match self.owners().withdraw(owner, progress).await? {
            Some(held) => self.end(&held, progress).await,
            None => Ok(()),
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
        let held = lock(Path::new(LOCK), progress).await?;
        self.end(&held, progress).await
    }

    async fn end(&self, _held: &Lock, progress: &Progress) -> Result<()> {
        if !self.state.exists() {
            return Ok(());
        }
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
            if let Some(_held) = self.owners().deserted(progress).await? {
                return self.clean().await;
            }
        }
    }

    fn owners(&self) -> Owners {
        Owners::of(&self.state, Path::new(LOCK))
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

    /// Whether the API server is ready, with more patience when somebody uses it.
    async fn answers(&self, owned: bool) -> bool {
        let limit = Duration::from_secs(if owned { 60 } else { 10 });
        let Ok(client) = connect(&self.kubeconfig()).await else {
            return false;
        };
        let ask = async {
            while ready(&client).await.is_err() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(limit, ask).await.is_ok()
    }
}

/// What [`Plane::up`] finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Present {
    /// A plane to join.
    Joined,
    /// A plane that others use; it is too slow to be joined, and not ours to end.
    Busy,
    /// Nothing, or what is left of a plane: it may be removed.
    Remains,
}

fn found(whole: bool, owned: bool, answers: bool) -> Present {
    match (whole, owned, answers) {
        (true, _, true) => Present::Joined,
        (true, true, false) => Present::Busy,
        // A part of it has died: nobody can use it any more.
        (true, false, false) | (false, ..) => Present::Remains,
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
pub(super) fn remove(path: &Path) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plane_that_others_use_is_not_removed_for_being_slow() {
        for (whole, owned, answers, expected) in [
            (true, true, true, Present::Joined),
            (true, false, true, Present::Joined),
            (true, true, false, Present::Busy),
            (true, false, false, Present::Remains),
            (false, true, false, Present::Remains),
            (false, false, false, Present::Remains),
        ] {
            assert_eq!(
                found(whole, owned, answers),
                expected,
                "{whole} {owned} {answers}"
            );
        }
    }
}
