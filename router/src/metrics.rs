//! Everything the binary counts, in one struct that is passed in. `docs/metrics.md` is written from the same
//! definitions. Labels come from closed sets, save `pool`, which is bounded and folds to `other`.

mod family;
mod labels;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};
use weir_wire::{config::MAX_POOLS, control::PoolState, sidecar::EngineFigures};

use family::Builder;
pub use labels::{
    ConfigResult, EngineProbe, Home, OrderResult, Outcome, PollResult, Port, ProbeResult, Role,
    SidecarRefusal, TokenKind, UpstreamFailure, Watched,
};

/// The pool label of every pool past the bound.
const OTHER: &str = "other";

/// Buckets of waits and first bytes, seconds: from a quick hit to a long cold start.
const WAIT_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
    1800.0,
];

/// All metric families of the binary.
pub struct Metrics {
    registry: Registry,
    families: Vec<family::Family>,
    pools: Mutex<BTreeMap<String, Arc<PoolMetrics>>>,
    pool_families: Arc<PoolFamilies>,
    /// Connections open now, by port.
    pub connections: IntGaugeVec,
    /// Connections closed at once because a bound was reached, by port.
    pub connections_refused: IntCounterVec,
    /// Requests to the admin port without the right token.
    pub unauthorized: IntCounter,
    /// Configurations read, by result.
    pub config_loads: IntCounterVec,
    /// 1 while the newest configuration seen is the one in force.
    pub config_current: IntGauge,
    /// Failed watches of the Kubernetes API, by what was watched.
    pub watch_errors: IntCounterVec,
    /// Pods followed as endpoints.
    pub pods_followed: IntGauge,
    /// Answers and failures of sidecars asked for their state.
    pub sidecar_polls: IntCounterVec,
    /// Control streams open now.
    pub control_streams: IntGauge,
    /// Orders received, by result.
    pub orders: IntCounterVec,
    /// What a sidecar counts.
    pub sidecar: SidecarMetrics,
}

/// What a sidecar counts about its engine.
pub struct SidecarMetrics {
    /// Requests between accept and the end of their answer.
    pub in_flight: IntGauge,
    /// Requests waiting for a place.
    pub waiting: IntGauge,
    /// Places.
    pub concurrency: IntGauge,
    /// Requests proxied to the engine.
    pub requests: IntCounter,
    /// Requests refused here, by reason.
    pub refused: IntCounterVec,
    /// 1 while the engine is ready.
    pub ready: IntGauge,
    /// Probes of the engine, by result.
    pub probes: IntCounterVec,
    /// Workflows remembered.
    pub homes: IntGauge,
    engine_running: IntGauge,
    engine_waiting: IntGauge,
    engine_known: IntGauge,
    engine_kv_permille: IntGauge,
    engine_kv_capacity: IntGauge,
    engine_tokens: IntGaugeVec,
}

/// Families with a `pool` label.
struct PoolFamilies {
    requests: IntCounterVec,
    wait: HistogramVec,
    ttft: HistogramVec,
    duration: HistogramVec,
    waiting: IntGaugeVec,
    in_flight: IntGaugeVec,
    waiting_bytes: IntGaugeVec,
    workflows: IntGaugeVec,
    endpoints: IntGaugeVec,
    fenced: IntGaugeVec,
    homes: IntCounterVec,
    tokens: IntCounterVec,
    upstream_failures: IntCounterVec,
    retries: IntCounterVec,
    ejections: IntCounterVec,
}

/// One pool's metrics, looked up once and kept by whoever serves the pool.
pub struct PoolMetrics {
    label: String,
    families: Arc<PoolFamilies>,
    /// From arrival to dispatch, seconds.
    pub wait: Histogram,
    /// From arrival to the first body byte of the answer, seconds.
    pub ttft: Histogram,
    /// From arrival to the end of the answer, seconds.
    pub duration: Histogram,
    /// Requests sent to a second endpoint after the first failed them.
    pub retries: IntCounter,
    /// Endpoints taken out of rotation after a failed connection.
    pub ejections: IntCounter,
}

impl Metrics {
    /// The families of one role; those of the other exist, but are not shown.
    ///
    /// # Errors
    /// [`prometheus::Error`] when two families share a name or a name is malformed, which the tests exclude.
    pub fn new(role: Role) -> Result<Arc<Self>, prometheus::Error> {
        let mut builder = Builder::new(role);
        let pool_families = Arc::new(PoolFamilies::new(&mut builder)?);
        let sidecar = SidecarMetrics::new(&mut builder)?;
        builder.only(None);
        let connections = builder.gauges("weir_connections", "Connections open now.", &["port"])?;
        let connections_refused = builder.counters(
            "weir_connections_refused_total",
            "Connections closed at once because a bound was reached.",
            &["port"],
        )?;
        let unauthorized = builder.counter(
            "weir_admin_unauthorized_total",
            "Requests to the admin port without the right token.",
        )?;
        builder.only(Some(Role::Gateway));
        let config_loads = builder.counters(
            "weir_config_loads_total",
            "Configurations read; a refused one leaves the last good one in force.",
            &["result"],
        )?;
        let config_current = builder.gauge(
            "weir_config_current",
            "1 while the newest configuration seen is the one in force, 0 while it was refused.",
        )?;
        let watch_errors = builder.counters(
            "weir_watch_errors_total",
            "Failed lists and watches of the Kubernetes API; each is tried again with backoff.",
            &["resource"],
        )?;
        let pods_followed = builder.gauge("weir_pods_followed", "Pods followed as endpoints.")?;
        let sidecar_polls = builder.counters(
            "weir_sidecar_polls_total",
            "Long polls of sidecars for their state, by how they ended.",
            &["result"],
        )?;
        let control_streams =
            builder.gauge("weir_control_streams", "Control streams to operators open now.")?;
        let orders = builder.counters(
            "weir_orders_total",
            "Orders received from the operator.",
            &["result"],
        )?;
        let (registry, families) = builder.finish();
        Ok(Arc::new(Self {
            registry,
            families,
            pools: Mutex::default(),
            pool_families,
            connections,
            connections_refused,
            unauthorized,
            config_loads,
            config_current,
            watch_errors,
            pods_followed,
            sidecar_polls,
            control_streams,
            orders,
            sidecar,
        }))
    }

    /// The metrics of a pool. Past [`MAX_POOLS`] different names in the life of the process all share the label
    /// `other`.
    pub fn pool(&self, name: &str) -> Arc<PoolMetrics> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let label = if pools.contains_key(name) || pools.len() < MAX_POOLS {
            name
        } else {
            OTHER
        };
        let made = pools
            .entry(label.to_owned())
            .or_insert_with(|| Arc::new(PoolMetrics::new(label, Arc::clone(&self.pool_families))));
        Arc::clone(made)
    }

    /// The Prometheus text form; empty when encoding fails, which text in closed sets does not cause.
    pub fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_default()
    }

    /// `docs/metrics.md`: every family with its type, labels, role and meaning.
    pub fn reference(&self) -> String {
        family::reference(&self.families)
    }
}

impl PoolFamilies {
    fn new(builder: &mut Builder) -> Result<Self, prometheus::Error> {
        builder.only(Some(Role::Gateway));
        Ok(Self {
            requests: builder.counters(
                "weir_requests_total",
                "Requests that ended, by outcome and by the reason of an error (`none` without one).",
                &["pool", "outcome", "reason"],
            )?,
            wait: builder.histograms(
                "weir_wait_seconds",
                "From arrival to dispatch to an endpoint.",
                WAIT_SECONDS,
                &["pool"],
            )?,
            ttft: builder.histograms(
                "weir_ttft_seconds",
                "From arrival to the first body byte of the answer.",
                WAIT_SECONDS,
                &["pool"],
            )?,
            duration: builder.histograms(
                "weir_request_seconds",
                "From arrival to the end of the answer.",
                WAIT_SECONDS,
                &["pool"],
            )?,
            waiting: builder.gauges(
                "weir_waiting_requests",
                "Requests waiting: `queued` while an endpoint is ready, `held` while none is.",
                &["pool", "state"],
            )?,
            in_flight: builder.gauges(
                "weir_in_flight_requests",
                "Requests dispatched to an endpoint and not finished.",
                &["pool"],
            )?,
            waiting_bytes: builder.gauges(
                "weir_waiting_bytes",
                "Body bytes of waiting requests.",
                &["pool"],
            )?,
            workflows: builder.gauges(
                "weir_workflows",
                "Workflows with a home: `open` all of them, `paused` those expected back from a tool.",
                &["pool", "state"],
            )?,
            endpoints: builder.gauges(
                "weir_endpoints",
                "Endpoints: `eligible`, `draining`, or `waiting` (neither).",
                &["pool", "state"],
            )?,
            fenced: builder.gauges("weir_fenced", "1 while a fence holds new arrivals.", &["pool"])?,
            homes: builder.counters(
                "weir_home_use_total",
                "Dispatches by how the workflow's home was used.",
                &["pool", "home"],
            )?,
            tokens: builder.counters(
                "weir_tokens_total",
                "Tokens as engines reported them; `cached` are part of `prompt`.",
                &["pool", "kind"],
            )?,
            upstream_failures: builder.counters(
                "weir_upstream_failures_total",
                "Attempts that an endpoint failed, by how.",
                &["pool", "failure"],
            )?,
            retries: builder.counters(
                "weir_retries_total",
                "Requests sent to a second endpoint after the first failed them.",
                &["pool"],
            )?,
            ejections: builder.counters(
                "weir_ejections_total",
                "Endpoints taken out of rotation after a failed connection.",
                &["pool"],
            )?,
        })
    }
}

impl PoolMetrics {
    fn new(label: &str, families: Arc<PoolFamilies>) -> Self {
        Self {
            label: label.to_owned(),
            wait: families.wait.with_label_values(&[label]),
            ttft: families.ttft.with_label_values(&[label]),
            duration: families.duration.with_label_values(&[label]),
            retries: families.retries.with_label_values(&[label]),
            ejections: families.ejections.with_label_values(&[label]),
            families,
        }
    }

    /// Counts a request that ended. `reason` is the text of the closed set that `X-Weir-Reason` carries, `none`
    /// without an error.
    pub fn request(&self, outcome: Outcome, reason: &'static str) {
        self.families
            .requests
            .with_label_values(&[self.label.as_str(), outcome.as_str(), reason])
            .inc();
    }

    /// Counts a dispatch by how the workflow's home was used.
    pub fn home(&self, home: Home) {
        self.families
            .homes
            .with_label_values(&[self.label.as_str(), home.as_str()])
            .inc();
    }

    /// Adds tokens as an engine reported them.
    pub fn tokens(&self, kind: TokenKind, tokens: u64) {
        self.families
            .tokens
            .with_label_values(&[self.label.as_str(), kind.as_str()])
            .inc_by(tokens);
    }

    /// Counts an attempt that an endpoint failed.
    pub fn upstream_failure(&self, failure: UpstreamFailure) {
        let labels = [self.label.as_str(), failure.as_str()];
        self.families.upstream_failures.with_label_values(&labels).inc();
    }

    /// Shows a pool's state as gauges; called when metrics are read.
    pub fn show(&self, state: &PoolState) {
        let pool = self.label.as_str();
        let families = &self.families;
        let eligible = state
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.eligible)
            .count() as i64;
        let draining = state
            .endpoints
            .iter()
            .filter(|it| it.draining && !it.eligible)
            .count() as i64;
        let others = state.endpoints.len() as i64 - eligible - draining;
        for (family, name, value) in [
            (&families.waiting, "queued", i64::from(state.queued)),
            (&families.waiting, "held", i64::from(state.held)),
            (&families.workflows, "open", i64::from(state.open_workflows)),
            (&families.workflows, "paused", i64::from(state.paused_workflows)),
            (&families.endpoints, "eligible", eligible),
            (&families.endpoints, "draining", draining),
            (&families.endpoints, "waiting", others),
        ] {
            family.with_label_values(&[pool, name]).set(value);
        }
        families
            .in_flight
            .with_label_values(&[pool])
            .set(i64::from(state.in_flight));
        families
            .waiting_bytes
            .with_label_values(&[pool])
            .set(gauge(state.waiting_bytes));
        families
            .fenced
            .with_label_values(&[pool])
            .set(i64::from(state.fenced));
    }
}

impl SidecarMetrics {
    fn new(builder: &mut Builder) -> Result<Self, prometheus::Error> {
        builder.only(Some(Role::Sidecar));
        Ok(Self {
            in_flight: builder.gauge(
                "weir_sidecar_in_flight_requests",
                "Requests between accept and the end of their answer, waiting ones included.",
            )?,
            waiting: builder.gauge("weir_sidecar_waiting_requests", "Requests waiting for a place.")?,
            concurrency: builder.gauge(
                "weir_sidecar_concurrency",
                "Requests let into the engine at once.",
            )?,
            requests: builder.counter("weir_sidecar_requests_total", "Requests passed to the engine.")?,
            refused: builder.counters(
                "weir_sidecar_refused_total",
                "Requests the sidecar answered itself, by reason.",
                &["reason"],
            )?,
            ready: builder.gauge(
                "weir_engine_ready",
                "1 while the engine is healthy and serves the model.",
            )?,
            probes: builder.counters(
                "weir_engine_probes_total",
                "Health probes and metric scrapes of the engine, by result.",
                &["probe", "result"],
            )?,
            homes: builder.gauge("weir_sidecar_homes", "Workflows whose last turn was served here.")?,
            engine_known: builder.gauge(
                "weir_engine_figures_known",
                "1 while the engine's metrics could be read lately.",
            )?,
            engine_running: builder
                .gauge("weir_engine_running_requests", "Requests in the engine's batch.")?,
            engine_waiting: builder.gauge(
                "weir_engine_waiting_requests",
                "Requests in the engine's own queue.",
            )?,
            engine_kv_permille: builder.gauge(
                "weir_engine_kv_use_permille",
                "Thousandths of the KV cache referenced by running requests.",
            )?,
            engine_kv_capacity: builder.gauge("weir_engine_kv_capacity_tokens", "KV cache in tokens.")?,
            engine_tokens: builder.gauges(
                "weir_engine_tokens",
                "Tokens since the engine started, as it reports them; `cached` are part of `prompt`.",
                &["kind"],
            )?,
        })
    }

    /// Shows what the engine last said, or that it says nothing.
    pub fn show(&self, figures: Option<&EngineFigures>) {
        self.engine_known.set(i64::from(figures.is_some()));
        let Some(figures) = figures else { return };
        self.engine_running.set(i64::from(figures.running));
        self.engine_waiting.set(i64::from(figures.waiting));
        if let Some(share) = figures.kv_usage {
            self.engine_kv_permille
                .set((share.clamp(0.0, 1.0) * 1000.0).round() as i64);
        }
        if let Some(tokens) = figures.kv_capacity_tokens {
            self.engine_kv_capacity.set(gauge(tokens));
        }
        for (kind, tokens) in [
            (TokenKind::Prompt, figures.prompt_tokens_total),
            (TokenKind::Cached, figures.cached_tokens_total),
            (TokenKind::Completion, figures.generation_tokens_total),
        ] {
            if let Some(tokens) = tokens {
                self.engine_tokens
                    .with_label_values(&[kind.as_str()])
                    .set(gauge(tokens));
            }
        }
    }
}

/// A gauge's value; what does not fit is the largest that does.
fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::PathBuf};

    use super::*;

    /// `UPDATE_DOCS=1 cargo test -p weir-router metrics` writes the page anew.
    #[test]
    fn the_reference_page_is_current() {
        let page = Metrics::new(Role::Gateway).unwrap().reference();
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        if env::var_os("UPDATE_DOCS").is_some() {
            fs::write(&path, &page).unwrap();
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == page,
            "docs/metrics.md is stale: UPDATE_DOCS=1 cargo test -p weir-router metrics"
        );
    }

    #[test]
    fn pool_names_past_the_bound_share_a_label() {
        let metrics = Metrics::new(Role::Gateway).unwrap();
        for index in 0..MAX_POOLS + 5 {
            metrics
                .pool(&format!("pool-{index}"))
                .request(Outcome::Completed, "none");
        }
        metrics.pool("pool-0").request(Outcome::Completed, "none");
        let text = metrics.render();
        assert!(text.contains(r#"weir_requests_total{outcome="completed",pool="other",reason="none"} 5"#));
        assert!(text.contains(r#"weir_requests_total{outcome="completed",pool="pool-0",reason="none"} 2"#));
        assert!(!text.contains("pool-256"));
    }

    #[test]
    fn a_role_shows_its_own_families_only() {
        let (gateway, sidecar) = (
            Metrics::new(Role::Gateway).unwrap().render(),
            Metrics::new(Role::Sidecar).unwrap().render(),
        );
        assert!(gateway.contains("weir_config_current") && !gateway.contains("weir_engine_ready"));
        assert!(sidecar.contains("weir_engine_ready") && !sidecar.contains("weir_config_current"));
    }

    #[test]
    fn a_pools_state_becomes_gauges() {
        let metrics = Metrics::new(Role::Gateway).unwrap();
        let endpoint = |eligible, draining| weir_wire::control::EndpointState {
            eligible,
            draining,
            ..Default::default()
        };
        metrics.pool("p").show(&PoolState {
            in_flight: 3,
            held: 2,
            endpoints: vec![
                endpoint(true, false),
                endpoint(false, true),
                endpoint(false, false),
            ],
            ..PoolState::default()
        });
        let text = metrics.render();
        for line in [
            r#"weir_in_flight_requests{pool="p"} 3"#,
            r#"weir_waiting_requests{pool="p",state="held"} 2"#,
            r#"weir_endpoints{pool="p",state="eligible"} 1"#,
            r#"weir_endpoints{pool="p",state="draining"} 1"#,
            r#"weir_endpoints{pool="p",state="waiting"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
