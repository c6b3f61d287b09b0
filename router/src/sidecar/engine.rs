//! Watches the engine next door: its health ten times a second until it is up and once a second then, its model
//! once per process, its metrics once a second.

pub mod figures;
mod health;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use tokio::time::{Instant, sleep};
use weir_wire::config::EngineKind;

use super::{homes::HomeMemory, now, state::StateHub};
use crate::{
    fetch::{self, FetchError, Get},
    metrics::{EngineProbe, Metrics, ProbeResult},
};
pub use figures::parse_metrics;
pub use health::{Health, Probe, Turn};

/// Between two probes of an engine that is not up.
const STARTING: Duration = Duration::from_millis(100);
/// Between two probes of one that is up, and between two scrapes.
const SERVING: Duration = Duration::from_secs(1);
/// For one probe or scrape: an engine short of CPU answers late.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks that an SGLang engine is made to take at itself, and the wait for each: it gives up after 20 s.
const LOOK: Duration = Duration::from_secs(10);
const LOOK_PATIENCE: Duration = Duration::from_secs(25);
/// Scrapes missed in a row after which the figures are unknown.
const SCRAPES_MISSED: u32 = 3;
/// Longest metrics page, bytes; vLLM's has about 64 KiB.
const MAX_METRICS: usize = 8 << 20;
/// Longest model list, bytes.
const MAX_MODELS: usize = 1 << 20;

/// The engine next door, and those who are told about it.
pub struct EngineWatch {
    /// Which engine.
    pub kind: EngineKind,
    /// Where it listens.
    pub address: SocketAddr,
    /// The model it must serve.
    pub model: String,
    /// When the sidecar started.
    pub origin: Instant,
    /// Told of readiness and figures.
    pub hub: Arc<StateHub>,
    /// Emptied when the engine's process ends.
    pub homes: Arc<HomeMemory>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// The engine answers its health endpoint: its liveness probe.
    pub alive: AtomicBool,
}

/// Why an engine that answers is not ready.
#[derive(Debug, thiserror::Error)]
enum ModelError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the model list was answered with status {0}")]
    Status(StatusCode),
    #[error("the model list is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("the engine serves {0:?}, not the pool's model")]
    Other(Vec<String>),
}

impl EngineWatch {
    /// Watches for ever; dropping the future ends it.
    pub async fn run(&self) {
        tokio::join!(
            self.watch_health(),
            self.watch_figures(),
            self.gather(),
            self.make_it_look()
        );
    }

    async fn watch_health(&self) {
        let mut health = Health::default();
        let mut verified = false;
        let mut complained: Option<Instant> = None;
        loop {
            let probe = self.probe().await;
            match health.probed(probe) {
                Turn::Same => {}
                Turn::Up => tracing::info!("engine answers"),
                Turn::Down => tracing::warn!("engine does not answer"),
                Turn::Gone => {
                    if verified {
                        tracing::warn!("engine process ended");
                    }
                    verified = false;
                    self.homes.forget_all();
                }
            }
            if health.is_alive() && !verified {
                match self.verify_model().await {
                    Ok(()) => verified = true,
                    Err(error) => self.complain(&error, &mut complained),
                }
            }
            self.alive.store(health.is_alive(), Ordering::Relaxed);
            let ready = health.is_alive() && verified;
            self.tell(ready);
            sleep(if health.is_alive() { SERVING } else { STARTING }).await;
        }
    }

    fn tell(&self, ready: bool) {
        let started = ready.then(|| now().saturating_duration_since(self.origin));
        self.hub.set_ready(ready, started);
        self.metrics.sidecar.ready.set(i64::from(ready));
    }

    /// Says at most once a minute why an engine that answers is not ready.
    fn complain(&self, error: &ModelError, complained: &mut Option<Instant>) {
        let now = now();
        if complained.is_none_or(|last| now.duration_since(last) >= Duration::from_secs(60)) {
            tracing::error!(model = %self.model, error = %error, "engine answers but is not ready");
            *complained = Some(now);
        }
    }

    async fn probe(&self) -> Probe {
        // SGLang's own /health generates a token and takes a second; its /ready is a flag.
        let target = match self.kind {
            EngineKind::Vllm => "/health",
            EngineKind::SGLang => "/ready",
        };
        let probe = match self.get(target, 4096).await {
            Ok((StatusCode::OK, _)) => Probe::Healthy,
            Err(FetchError::Refused) => Probe::Refused,
            Ok(_) | Err(_) => Probe::Missed,
        };
        let result = match probe {
            Probe::Healthy => ProbeResult::Answered,
            Probe::Refused => ProbeResult::Refused,
            Probe::Missed => ProbeResult::Missed,
        };
        self.count(EngineProbe::Health, result);
        probe
    }

    async fn verify_model(&self) -> Result<(), ModelError> {
        let (status, body) = self.get("/v1/models", MAX_MODELS).await?;
        if status != StatusCode::OK {
            return Err(ModelError::Status(status));
        }
        let served = served_models(&body)?;
        if served.contains(&self.model) {
            Ok(())
        } else {
            Err(ModelError::Other(served))
        }
    }

    async fn watch_figures(&self) {
        let mut missed = 0;
        loop {
            if !self.hub.is_ready() {
                missed = 0;
                self.hub.set_figures(None);
                self.metrics.sidecar.show(None);
                sleep(STARTING).await;
                continue;
            }
            match self.scrape().await {
                Some(figures) => {
                    missed = 0;
                    self.hub.set_figures(Some(figures));
                    self.count(EngineProbe::Metrics, ProbeResult::Answered);
                }
                None => {
                    missed += 1;
                    self.count(EngineProbe::Metrics, ProbeResult::Missed);
                    if missed >= SCRAPES_MISSED {
                        self.hub.set_figures(None);
                    }
                }
            }
            self.metrics.sidecar.show(self.hub.figures().as_ref());
            sleep(SERVING).await;
        }
    }

    async fn scrape(&self) -> Option<weir_wire::sidecar::EngineFigures> {
        let (status, page) = self.get("/metrics", MAX_METRICS).await.ok()?;
        (status == StatusCode::OK)
            .then(|| parse_metrics(&String::from_utf8_lossy(&page)))
            .flatten()
    }

    /// Makes SGLang look at itself. Its `/ready` is a flag that only its `/health` sets: when nothing has come out of
    /// the scheduler for 20 s, that says 503, and `/ready` says so too until the next success. An idle engine is left
    /// alone, because it would have to generate a token for the answer.
    async fn make_it_look(&self) {
        if self.kind != EngineKind::SGLang {
            return;
        }
        loop {
            sleep(LOOK).await;
            if self.hub.is_busy() || !self.alive.load(Ordering::Relaxed) {
                // The answer comes by the flag.
                drop(self.get_within("/health", 4096, LOOK_PATIENCE).await);
            }
        }
    }

    /// Gathers what changed into one version a second.
    async fn gather(&self) {
        loop {
            sleep(SERVING).await;
            self.hub.gather();
        }
    }

    async fn get(&self, target: &str, max_bytes: usize) -> Result<(StatusCode, bytes::Bytes), FetchError> {
        self.get_within(target, max_bytes, PATIENCE).await
    }

    async fn get_within(
        &self,
        target: &str,
        max_bytes: usize,
        within: Duration,
    ) -> Result<(StatusCode, bytes::Bytes), FetchError> {
        fetch::get(Get {
            address: self.address,
            target,
            bearer: None,
            max_bytes,
            within,
        })
        .await
    }

    fn count(&self, probe: EngineProbe, result: ProbeResult) {
        self.metrics
            .sidecar
            .probes
            .with_label_values(&[probe.as_str(), result.as_str()])
            .inc();
    }
}

/// The ids of a model list (`{"data":[{"id":…}]}`).
fn served_models(body: &[u8]) -> Result<Vec<String>, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct List {
        data: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        id: String,
    }
    let list: List = serde_json::from_slice(body)?;
    Ok(list.data.into_iter().map(|entry| entry.id).collect())
}
