//! Starting a plane: files, keys, network, then every part as soon as what it needs answers.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::Api;

use super::{ACTIVE, AUDIT_POLICY, Owner, Plane, add_gpus, connect, files, parts, ready};
use crate::cluster::{
    cache::Lock,
    command::{command, find, run, succeeds},
    images, packages,
    pki::{self, Subject},
    process,
    progress::{Progress, now},
};

/// Longest wait for a part to come up; long, because others may use the processors.
const PATIENCE: Duration = Duration::from_secs(120);

impl Plane {
    /// Starts everything; `held` proves that nobody else starts or ends a plane meanwhile.
    pub(super) async fn start(&self, owner: Owner, progress: &Progress, held: &Lock) -> Result<()> {
        self.clean()
            .await
            .context("removing the remains of an earlier run")?;
        for directory in [
            "pki", "log", "run", "etcd", "cni", "cri", "kubelet", "pods", "owners", "images",
        ] {
            fs::create_dir_all(self.state.join(directory))?;
        }
        fs::write(ACTIVE, self.state.display().to_string())?;
        self.owners().add(owner, held)?;
        self.start_guard()?;
        self.write_files()?;
        let (keys, subjects) = (self.state.join("pki"), subjects());
        let prepare = async { tokio::try_join!(pki::create(&keys, &subjects), self.network()) };
        progress
            .step("making keys and networks", Box::pin(prepare))
            .await?;
        let control_plane = progress.step("starting etcd and the API server", self.control_plane());
        let runtime = progress.step("starting containerd", self.runtime(progress));
        tokio::try_join!(control_plane, runtime)?;
        let node = self.node();
        progress.step("starting the node", node).await?;
        Ok(fs::write(self.state.join("ready"), "")?)
    }

    /// The guard is the `cluster` program; one that is not beside this program guards nothing.
    fn start_guard(&self) -> Result<()> {
        let own = std::env::current_exe()?;
        let beside = own
            .ancestors()
            .skip(1)
            .take(2)
            .map(|directory| directory.join("cluster"));
        let Some(program) = beside.into_iter().find(|path| path.is_file()) else {
            return Ok(());
        };
        let args = ["guard", "--name", &self.name].map(str::to_owned);
        process::start(&self.state, "guard", &program, &args).map(|_| ())
    }

    fn write_files(&self) -> Result<()> {
        let state = &self.state;
        let cni = packages::cni_directory().context("the network plugins are missing")?;
        for subject in subjects() {
            let name = subject.file;
            fs::write(
                state.join(format!("{name}.kubeconfig")),
                files::kubeconfig(state, name),
            )?;
        }
        fs::write(state.join("audit-policy.yaml"), AUDIT_POLICY)?;
        fs::write(state.join("containerd.toml"), files::containerd(state, cni))?;
        fs::write(state.join("cni/10-weir.conflist"), files::network(state))?;
        fs::write(state.join("kubelet.yaml"), files::kubelet(state))?;
        fs::write(state.join("proxy.yaml"), files::proxy(state))?;
        fs::write(state.join("Corefile"), files::corefile(state))?;
        Ok(fs::write(state.join("nftables"), files::nftables())?)
    }

    /// A bridge carries the node's address: the `dummy` device is not in every kernel.
    async fn network(&self) -> Result<()> {
        let bridge = files::NODE_BRIDGE;
        run(command("ip", ["link", "add", bridge, "type", "bridge"])).await?;
        let address = format!("{}/32", files::NODE_IP);
        run(command("ip", ["addr", "replace", &address, "dev", bridge])).await?;
        run(command("ip", ["link", "set", bridge, "up"])).await?;
        let forward = "/proc/sys/net/ipv4/ip_forward";
        fs::copy(forward, self.state.join("ip_forward"))?;
        fs::write(forward, "1").context("switching IPv4 forwarding on")?;
        let mut rules = command("nft", ["-f"]);
        rules.arg(self.state.join("nftables"));
        run(rules).await.map(|_| ())
    }

    async fn runtime(&self, progress: &Progress) -> Result<()> {
        self.spawn(parts::CONTAINERD)?;
        self.wait_for(&[parts::CONTAINERD], async || {
            succeeds(self.ctr(&["version"]))
                .await
                .then_some(())
                .context("no answer on its socket")
        })
        .await?;
        images::load_pause(&self.cache, self, progress).await
    }

    async fn control_plane(&self) -> Result<()> {
        self.spawn(parts::ETCD)?;
        self.spawn(parts::API_SERVER)?;
        let mut client = None;
        self.wait_for(&[parts::ETCD, parts::API_SERVER], async || {
            let client = match &client {
                Some(client) => client,
                None => client.insert(connect(&self.kubeconfig()).await?),
            };
            ready(client).await
        })
        .await?;
        for part in [
            parts::CONTROLLER_MANAGER,
            parts::SCHEDULER,
            parts::PROXY,
            parts::DNS,
        ] {
            self.spawn(part)?;
        }
        Ok(())
    }

    async fn node(&self) -> Result<()> {
        self.spawn(parts::KUBELET)?;
        let client = connect(&self.kubeconfig()).await?;
        let nodes: Api<Node> = Api::all(client.clone());
        self.wait_for(parts::ALL, async || {
            let node = nodes
                .get_opt(files::NODE)
                .await?
                .context("the node has not registered")?;
            let conditions = node
                .status
                .and_then(|status| status.conditions)
                .unwrap_or_default();
            let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
            match ready {
                Some(condition) if condition.status == "True" => Ok(()),
                Some(condition) => bail!(
                    "the node is not Ready: {}",
                    condition.message.as_deref().unwrap_or("")
                ),
                None => bail!("the node has not said whether it is Ready"),
            }
        })
        .await?;
        add_gpus(&client, files::NODE).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
        self.wait_for(parts::ALL, async || {
            accounts
                .get("default")
                .await
                .context("the default service account is missing")
                .map(|_| ())
        })
        .await
    }

    fn spawn(&self, part: &str) -> Result<()> {
        let program = if part == parts::CONTAINERD {
            find(part).context("containerd is missing")?
        } else {
            self.binaries.path(part)
        };
        process::start(&self.state, part, &program, &parts::arguments(part, &self.state)).map(|_| ())
    }

    /// Calls `look` until it says yes. A part that ends meanwhile ends the wait.
    async fn wait_for(&self, watched: &[&str], look: impl AsyncFnMut() -> Result<()>) -> Result<()> {
        let mut look = look;
        let deadline = now() + PATIENCE;
        loop {
            let attempt = tokio::time::timeout(Duration::from_secs(5), look()).await;
            let error = match attempt {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => anyhow::anyhow!("no answer within 5 s"),
            };
            let dead = self
                .processes()
                .into_iter()
                .find(|(name, _, alive)| watched.contains(&name.as_str()) && !alive);
            if let Some((name, ..)) = dead {
                bail!(
                    "{name} ended by itself; the end of its log:\n{}",
                    self.log_tail(&name)
                );
            }
            if now() > deadline {
                let name = watched.last().copied().unwrap_or_default();
                let tail = self.log_tail(name);
                return Err(error.context(format!(
                    "gave up after {} s; {name} last wrote:\n{tail}",
                    PATIENCE.as_secs()
                )));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn log_tail(&self, name: &str) -> String {
        let text = fs::read_to_string(process::log_path(&self.state, name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let first = lines.len().saturating_sub(12);
        lines
            .iter()
            .skip(first)
            .map(|line| format!("  {line}"))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

fn subjects() -> Vec<Subject> {
    let subject = |file, name, group, addresses: &str| Subject {
        file,
        name,
        group,
        addresses: addresses.to_owned(),
    };
    let local = "DNS:localhost";
    let server = format!(
        "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:{},IP:{}",
        files::API_SERVICE_IP,
        files::NODE_IP
    );
    let node = format!("DNS:{},IP:{}", files::NODE, files::NODE_IP);
    vec![
        subject("apiserver", "kube-apiserver", "system:masters", &server),
        subject("admin", "admin", "system:masters", local),
        subject(
            "controller-manager",
            "system:kube-controller-manager",
            "weir",
            local,
        ),
        subject("scheduler", "system:kube-scheduler", "weir", local),
        subject("kubelet", "system:node:node-1", "system:nodes", &node),
        subject("proxy", "system:kube-proxy", "weir", local),
        subject("coredns", "system:coredns", "system:masters", local),
    ]
}
