//! What is measured: a direct connection, nginx in two configurations, and the gateway, each proxy as its own process on
//! core 0.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

/// A process that is ended with its owner.
pub(super) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Its children (nginx's worker) end with it on SIGTERM; SIGKILL would leave them.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

impl Process {
    pub(super) fn start(command: &mut Command, ready: &str) -> anyhow::Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let process = Self(child);
        let begun = Instant::now();
        while TcpStream::connect(ready).is_err() {
            if begun.elapsed() > Duration::from_secs(10) {
                bail!("{command:?} does not listen on {ready}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(process)
    }

    /// The process and its children.
    fn family(&self) -> Vec<u32> {
        let id = self.0.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|id| id.parse().ok());
        std::iter::once(id).chain(children).collect()
    }

    /// Time on a processor of all threads of the process and its children, seconds. Exact, unlike the clock ticks of
    /// `/proc/ID/stat`, which miss whoever sleeps between two.
    pub(super) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let mut nanos = 0.0;
        for id in self.family() {
            for task in fs::read_dir(format!("/proc/{id}/task"))? {
                let text = fs::read_to_string(task?.path().join("schedstat"))?;
                let first = text.split_whitespace().next().context("schedstat has a time")?;
                nanos += first.parse::<f64>()?;
            }
        }
        Ok(nanos / 1e9)
    }

    /// Resident memory of the process and its children.
    pub(super) fn rss_mb(&self) -> anyhow::Result<f64> {
        let mut kib = 0.0;
        for id in self.family() {
            let status = fs::read_to_string(format!("/proc/{id}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            kib += line
                .and_then(|line| line.split_whitespace().next())
                .context("/proc/ID/status has VmRSS")?
                .parse::<f64>()?;
        }
        Ok(kib / 1024.0)
    }
}

/// One row of the table.
pub(super) trait System {
    fn name(&self) -> &'static str;
    fn address(&self) -> &str;
    fn cpu_seconds(&self) -> anyhow::Result<Option<f64>>;
    fn rss_mb(&self) -> anyhow::Result<Option<f64>>;
}

/// A port that was free a moment ago.
pub(super) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

pub(super) fn pinned(core: u32, program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string(), program]);
    command
}

/// The stub engine, on core 1.
pub(super) struct Stub {
    _process: Process,
    address: String,
}

pub(super) fn start_stub(scratch: &Path) -> anyhow::Result<Stub> {
    let port = free_port()?;
    let address = format!("127.0.0.1:{port}");
    let this = std::env::current_exe()?;
    let this = this.to_str().context("a path in UTF-8")?;
    let mut command = pinned(1, this);
    command.args(["stub", &port.to_string()]).current_dir(scratch);
    Ok(Stub {
        _process: Process::start(&mut command, &address)?,
        address,
    })
}

/// No proxy at all.
pub(super) struct Direct(String);

impl Direct {
    pub(super) fn new(stub: &Stub) -> Self {
        Self(stub.address.clone())
    }
}

impl System for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn address(&self) -> &str {
        &self.0
    }

    fn cpu_seconds(&self) -> anyhow::Result<Option<f64>> {
        Ok(None)
    }

    fn rss_mb(&self) -> anyhow::Result<Option<f64>> {
        Ok(None)
    }
}

/// Debian's nginx with one worker; streams are not buffered.
pub(super) struct Nginx {
    name: &'static str,
    process: Process,
    address: String,
}

/// How nginx is configured.
#[derive(Clone, Copy)]
pub(super) enum Tuning {
    /// As Debian ships it (log of accesses, compression of HTML, a new connection to the engine per request), with a
    /// `proxy_pass`.
    Plain,
    /// For this measurement: connections to the engine are kept, nothing is logged or compressed.
    KeepAlive,
}

impl Nginx {
    pub(super) fn start(scratch: &Path, stub: &Stub, tuning: Tuning) -> anyhow::Result<Self> {
        let address = format!("127.0.0.1:{}", free_port()?);
        let engine = &stub.address;
        let (name, settings, target) = match tuning {
            Tuning::Plain => (
                "nginx",
                format!(
                    "sendfile on; tcp_nopush on; gzip on; keepalive_requests 100000000; access_log {}/access.log;",
                    scratch.display()
                ),
                engine.as_str(),
            ),
            Tuning::KeepAlive => (
                "nginx-keepalive",
                format!(
                    "access_log off; keepalive_requests 100000000;\n\
                     upstream e {{ server {engine}; keepalive 128; keepalive_requests 100000000; }}"
                ),
                "e",
            ),
        };
        let dir = scratch.join(name);
        fs::create_dir_all(&dir)?;
        let dir = dir.display();
        let config = scratch.join(format!("{name}.conf"));
        fs::write(
            &config,
            format!(
                "daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/nginx.log;\n\
                 events {{ worker_connections 4096; }}\n\
                 http {{ {settings} client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n\
                 server {{ listen {address}; location / {{ proxy_pass http://{target}; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off; }} }} }}\n"
            ),
        )?;
        let mut command = pinned(0, "nginx");
        command.arg("-c").arg(&config).stderr(Stdio::null());
        Ok(Self {
            name,
            process: Process::start(&mut command, &address)?,
            address,
        })
    }
}

impl System for Nginx {
    fn name(&self) -> &'static str {
        self.name
    }

    fn address(&self) -> &str {
        &self.address
    }

    fn cpu_seconds(&self) -> anyhow::Result<Option<f64>> {
        self.process.cpu_seconds().map(Some)
    }

    fn rss_mb(&self) -> anyhow::Result<Option<f64>> {
        self.process.rss_mb().map(Some)
    }
}

/// The gateway, standalone.
pub(super) struct Weir {
    pub(super) process: Process,
    pub(super) address: String,
}

impl Weir {
    fn start_with(scratch: &Path, config: &str) -> anyhow::Result<Self> {
        let address = format!("127.0.0.1:{}", free_port()?);
        let admin = format!("127.0.0.1:{}", free_port()?);
        let file = scratch.join(format!("weir-{}.yaml", address.replace(':', "-")));
        fs::write(&file, config)?;
        let mut command = pinned(0, env!("CARGO_BIN_EXE_weir-router"));
        command
            .args(["gateway", "--log", "warn", "--log-format", "text", "--config"])
            .arg(&file)
            .args(["--listen", &address, "--admin-listen", &admin]);
        Ok(Self {
            process: Process::start(&mut command, &address)?,
            address,
        })
    }

    pub(super) fn start(scratch: &Path, stub: &Stub) -> anyhow::Result<Self> {
        let config = format!(
            "pools:\n- name: p\n  model: m\n  endpoints: [{{name: stub, address: '{}'}}]\npolicies: [{{name: a, pools: [p], slo: {{ttft: 1s}}}}]\n",
            stub.address
        );
        Self::start_with(scratch, &config)
    }

    /// In front of a pool that never has an endpoint, so that everything is held.
    pub(super) fn start_holding(scratch: &Path) -> anyhow::Result<Self> {
        Self::start_with(
            scratch,
            "pools: [{name: p, model: m, wakes: true, hold: {maxRequests: 20000}}]\n",
        )
    }
}

impl System for Weir {
    fn name(&self) -> &'static str {
        "weir"
    }

    fn address(&self) -> &str {
        &self.address
    }

    fn cpu_seconds(&self) -> anyhow::Result<Option<f64>> {
        self.process.cpu_seconds().map(Some)
    }

    fn rss_mb(&self) -> anyhow::Result<Option<f64>> {
        self.process.rss_mb().map(Some)
    }
}
