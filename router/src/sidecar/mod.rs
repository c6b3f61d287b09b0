//! Everything that is true of one engine pod: how many requests it runs at once, whether its engine is ready, what
//! the engine says about itself, which workflows have their KV cache there, and when nothing is left to do.
//!
//! Traffic takes one way ([`pass`]): admit ([`cap`]), pass on to `127.0.0.1`, observe the answer, remember the
//! workflow ([`homes`]). Beside it one task watches the engine ([`engine`]), and the admin port ([`routes`]) answers
//! long polls ([`state`]), probes and the preStop hook ([`drain`]).

pub mod cap;
mod dialect;
pub mod drain;
pub mod engine;
pub mod homes;
mod pass;
mod routes;
pub mod state;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, SystemTime},
};

use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use weir_wire::config::{EngineKind, Limits, Timeouts};

use crate::{
    admin::{self, Admin, TokenError, TokenFile},
    metrics::Metrics,
    proxy::{
        budget::Budget,
        server::{self, Bounds, Traffic},
        upstream::{Upstream, UpstreamSettings},
    },
};
use cap::{AUTO_CONCURRENCY, Cap};
use drain::Activity;
use engine::EngineWatch;
use homes::HomeMemory;
use pass::Passage;
use routes::SidecarRoutes;
use state::StateHub;

/// To connect to the engine next door.
const CONNECT: Duration = Duration::from_secs(2);
/// Idle connections are given up before uvicorn's default of 5 s closes them.
const IDLE_AGE: Duration = Duration::from_secs(4);

/// A sidecar's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The pool's name, for logs.
    pub pool: String,
    /// The pool's UID, for logs.
    pub pool_uid: String,
    /// Which engine.
    pub engine: EngineKind,
    /// Its port on 127.0.0.1.
    pub engine_port: u16,
    /// The model name that it must serve.
    pub model: String,
    /// Requests let into the engine at once; `None`: [`AUTO_CONCURRENCY`].
    pub concurrency: Option<u32>,
    /// Traffic port.
    pub listen: SocketAddr,
    /// Admin port.
    pub admin_listen: SocketAddr,
    /// The control token; without it, state and homes are told to nobody.
    pub token_file: Option<PathBuf>,
    /// Longest wait of the preStop hook, and of the sidecar's own end.
    pub drain_timeout: Duration,
}

/// Why a sidecar cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// The control token cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A port cannot be opened.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A part that lives as long as the sidecar ended.
    #[error("a background task ended")]
    Task,
    /// The traffic port failed.
    #[error("the traffic port failed: {0}")]
    Serve(#[source] io::Error),
}

/// A sidecar with its ports open.
pub struct Sidecar {
    traffic: TcpListener,
    admin: TcpListener,
    passage: Arc<Passage>,
    routes: Arc<Admin<SidecarRoutes>>,
    engine: Arc<EngineWatch>,
    drain_timeout: Duration,
}

impl Sidecar {
    /// Opens the ports.
    ///
    /// # Errors
    /// [`SidecarError`] when the token or a port cannot be used.
    pub async fn bind(settings: Settings, metrics: Arc<Metrics>) -> Result<Self, SidecarError> {
        let token = settings.token_file.map(TokenFile::open).transpose()?;
        let traffic = listen(settings.listen).await?;
        let admin = listen(settings.admin_listen).await?;
        let origin = now();
        let activity = Activity::new(origin);
        let cap = Cap::new(settings.concurrency.unwrap_or(AUTO_CONCURRENCY));
        let homes = Arc::new(HomeMemory::new());
        let hub = Arc::new(StateHub::new(
            instance(),
            cap.concurrency(),
            Arc::clone(&activity),
        ));
        let engine_address = SocketAddr::from((Ipv4Addr::LOCALHOST, settings.engine_port));
        let engine = Arc::new(EngineWatch {
            kind: settings.engine,
            address: engine_address,
            model: settings.model,
            origin,
            hub: Arc::clone(&hub),
            homes: Arc::clone(&homes),
            metrics: Arc::clone(&metrics),
            alive: AtomicBool::new(false),
        });
        let routes = SidecarRoutes {
            hub: Arc::clone(&hub),
            homes: Arc::clone(&homes),
            activity: Arc::clone(&activity),
            cap: Arc::clone(&cap),
            engine: Arc::clone(&engine),
            metrics: Arc::clone(&metrics),
            drain_timeout: settings.drain_timeout,
        };
        let upstream = UpstreamSettings {
            connect: CONNECT,
            idle_age: IDLE_AGE,
        };
        let passage = Passage {
            engine: settings.engine,
            cap,
            activity,
            homes,
            upstream: Upstream::new(&engine_address.to_string(), upstream),
            metrics: Arc::clone(&metrics),
            limits: limits(),
            body_pause: Timeouts::default().body_read.into(),
            budget: Budget::default(),
        };
        tracing::info!(
            pool = %settings.pool, pool_uid = %settings.pool_uid, engine = %engine_address,
            concurrency = passage.cap.concurrency(), "sidecar started"
        );
        Ok(Self {
            traffic,
            admin,
            passage: Arc::new(passage),
            routes: Admin::new(routes, metrics, token),
            engine,
            drain_timeout: settings.drain_timeout,
        })
    }

    /// Addresses of the traffic port and of the admin port.
    ///
    /// # Errors
    /// When the system does not tell them.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.traffic.local_addr()?, self.admin.local_addr()?))
    }

    /// Serves until `stop`, then finishes what is in flight; probes and state are answered until the very end.
    ///
    /// # Errors
    /// [`SidecarError::Serve`] when the traffic port fails.
    pub async fn run(self, stop: CancellationToken) -> Result<(), SidecarError> {
        let admin_stop = CancellationToken::new();
        let mut beside = JoinSet::new();
        beside.spawn(admin::serve(self.admin, self.routes, admin_stop.clone()));
        let engine = self.engine;
        let watch_stop = admin_stop.clone();
        beside.spawn(async move {
            // Watching has no end of its own.
            let _ = watch_stop.run_until_cancelled(engine.run()).await;
        });
        let (upstream, sweep_stop) = (Arc::clone(&self.passage.upstream), admin_stop.clone());
        beside.spawn(async move {
            let _ = sweep_stop.run_until_cancelled(sweep(&upstream)).await;
        });
        let timeouts = Timeouts {
            drain: self.drain_timeout.into(),
            ..Timeouts::default()
        };
        // Nothing of a sidecar's configuration changes while it runs.
        let (_fixed, bounds) = watch::channel(Bounds {
            limits: self.passage.limits.clone(),
            timeouts,
        });
        let passage = self.passage;
        let metrics = Arc::clone(&passage.metrics);
        let handler = move |request| Arc::clone(&passage).pass(request);
        let traffic = Traffic {
            listener: self.traffic,
            bounds,
            metrics: &metrics,
        };
        let served = tokio::select! {
            served = server::serve(traffic, handler, stop) => {
                served.map_err(SidecarError::Serve)
            }
            Some(ended) = beside.join_next() => {
                tracing::error!(?ended, "a task of the sidecar ended");
                Err(SidecarError::Task)
            }
        };
        admin_stop.cancel();
        while beside.join_next().await.is_some() {}
        served
    }
}

/// Wider than what any gateway lets through, which has the limits that clients meet: nothing is refused here only
/// because it came this far.
fn limits() -> Limits {
    Limits {
        max_body_bytes: 1 << 30,
        max_headers: 512,
        max_header_bytes: 1 << 20,
        ..Limits::default()
    }
}

/// Closes idle connections before the engine does.
async fn sweep(upstream: &Upstream) {
    loop {
        sleep(Duration::from_secs(1)).await;
        upstream.sweep();
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, SidecarError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| SidecarError::Listen { address, source })
}

/// The one clock of the sidecar.
#[expect(clippy::disallowed_methods, reason = "the shell reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// New at every start of a process.
fn instance() -> String {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    format!("{:x}-{:x}", since.as_nanos(), process::id())
}

/// Whole milliseconds of a span.
fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
