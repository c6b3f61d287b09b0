//! Ending a plane, whole or half started or killed: processes, containers, mounts, network, files.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::{
    ACTIVE, Plane,
    files::{NFT_TABLE, NODE_BRIDGE, POD_BRIDGE},
    parts, remove,
};
use crate::cluster::{
    command::{command, find, run, succeeds},
    process::{self, Record},
};

/// Their state goes with them: the parts get no time for more than closing files.
const GRACE: Duration = Duration::from_millis(400);
const SHIM: &str = "containerd-shim-runc-v2";

impl Plane {
    /// Ends and removes everything of this plane. With nothing there it does nothing.
    pub(super) async fn clean(&self) -> Result<()> {
        if !self.state.exists() {
            return Ok(());
        }
        // The kubelet would start again what is ended below it.
        self.stop_parts(&[parts::KUBELET]).await;
        self.kill_containers().await;
        self.stop_parts(parts::ALL).await;
        self.kill_strays().await;
        self.stop_guard().await;
        self.unmount().await?;
        let active = fs::read_to_string(ACTIVE).unwrap_or_default();
        let active = Path::new(active.trim()) == self.state;
        // There is one network per machine; when another plane has taken it over, it is that one's.
        if active {
            self.remove_network().await;
        }
        self.remove_log_links();
        self.remove_shim_sockets();
        remove(&self.state).with_context(|| format!("removing {}", self.state.display()))?;
        if active {
            remove(Path::new(ACTIVE))?;
        }
        Ok(())
    }

    async fn stop_parts(&self, names: &[&str]) {
        let of_names = |(name, record): (String, Record)| names.contains(&name.as_str()).then_some(record);
        let records: Vec<_> = process::recorded(&self.state)
            .into_iter()
            .filter_map(of_names)
            .collect();
        process::stop(&records, GRACE).await;
    }

    /// Shims outlive containerd by design; they and their containers are killed together.
    async fn kill_containers(&self) {
        let socket = self.state.join("cri").display().to_string();
        let ours = |words: &[String]| {
            words.first().is_some_and(|word| word.ends_with(SHIM))
                && words.iter().any(|word| word.starts_with(&socket))
        };
        let shims: Vec<_> = process::all()
            .into_iter()
            .filter(|(_, words)| ours(words))
            .map(|(record, _)| record)
            .collect();
        let family = process::with_descendants(&shims);
        for record in &family {
            record.signal(Signal::KILL);
        }
        process::stop(&family, Duration::ZERO).await;
    }

    /// Parts that were started in the instant before a kill and never recorded.
    async fn kill_strays(&self) {
        let inside = format!("{}/", self.state.display());
        let ours = |words: &[String]| {
            let Some((program, arguments)) = words.split_first() else {
                return false;
            };
            let program = program.rsplit('/').next().unwrap_or_default();
            parts::ALL.contains(&program) && arguments.iter().any(|word| word.contains(&inside))
        };
        let strays: Vec<_> = process::all()
            .into_iter()
            .filter(|(_, words)| ours(words))
            .map(|(record, _)| record)
            .collect();
        process::stop(&strays, GRACE).await;
    }

    async fn stop_guard(&self) {
        let own = Record::own();
        let guard: Vec<_> = process::recorded(&self.state)
            .into_iter()
            .filter(|(name, record)| name == "guard" && Some(*record) != own)
            .map(|(_, record)| record)
            .collect();
        process::stop(&guard, GRACE).await;
    }

    /// Volumes, root file systems and network namespaces, deepest first.
    async fn unmount(&self) -> Result<()> {
        let inside = format!("{}/", self.state.display());
        let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
        let mut points: Vec<String> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .map(|point| point.replace("\\040", " "))
            .filter(|point| point.starts_with(&inside))
            .collect();
        points.sort_unstable_by(|a, b| b.cmp(a));
        for chunk in points.chunks(50) {
            let mut umount = command("umount", ["-l", "--"]);
            umount.args(chunk);
            run(umount).await?;
        }
        Ok(())
    }

    /// What is not there cannot be removed, and need not be.
    async fn remove_network(&self) {
        // A pod's end of the cable keeps the machine's end alive for as long as the kernel keeps the pod's namespace.
        let cables = Path::new("/sys/class/net").join(POD_BRIDGE).join("brif");
        for cable in fs::read_dir(cables).into_iter().flatten().flatten() {
            let mut delete = command("ip", ["link", "del"]);
            delete.arg(cable.file_name());
            succeeds(delete).await;
        }
        for bridge in [NODE_BRIDGE, POD_BRIDGE] {
            if Path::new("/sys/class/net").join(bridge).exists() {
                succeeds(command("ip", ["link", "del", bridge])).await;
            }
        }
        if find("nft").is_some() {
            for (family, table) in [("ip", NFT_TABLE), ("ip", "kube-proxy"), ("ip6", "kube-proxy")] {
                succeeds(command("nft", ["delete", "table", family, table])).await;
            }
        }
        if let Ok(before) = fs::read_to_string(self.state.join("ip_forward")) {
            let _ = fs::write("/proc/sys/net/ipv4/ip_forward", before.trim());
        }
        // The network library keeps a copy of every result at a fixed place.
        for entry in fs::read_dir("/var/lib/cni/results")
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.file_name().to_string_lossy().starts_with("weir-") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// The kubelet links every container's log at a fixed place.
    fn remove_log_links(&self) {
        for entry in fs::read_dir("/var/log/containers")
            .into_iter()
            .flatten()
            .flatten()
        {
            if fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(&self.state)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// A killed shim leaves its socket at a fixed place.
    fn remove_shim_sockets(&self) {
        let tasks = self.state.join("cri/state/io.containerd.runtime.v2.task/k8s.io");
        for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
            let address = fs::read_to_string(task.path().join("address")).unwrap_or_default();
            if let Some(socket) = address.trim().strip_prefix("unix://") {
                let _ = fs::remove_file(socket);
            }
        }
    }
}
