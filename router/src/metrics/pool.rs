//! What a gateway counts of each pool.

use std::sync::Arc;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec};
use weir_wire::control::PoolState;

use super::{Home, Outcome, Promise, Role, TokenKind, UpstreamFailure, family::Builder, gauge};

/// Buckets of waits and first bytes, seconds: from a quick hit to a long cold start.
const WAIT_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
    1800.0,
];

/// Families with a `pool` label.
pub(super) struct PoolFamilies {
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
    priorities_removed: IntCounterVec,
    promises: IntCounterVec,
    prefill: IntGaugeVec,
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
    /// Requests from which a priority meant for the engine's own queue was taken.
    pub priorities_removed: IntCounter,
    /// Endpoints taken out of rotation after a failed connection.
    pub ejections: IntCounter,
    /// Looked up once, because every good request counts them.
    completed: IntCounter,
    homes: [(Home, IntCounter); 4],
    prompt_tokens: IntCounter,
    cached_tokens: IntCounter,
    completion_tokens: IntCounter,
}

impl PoolFamilies {
    pub(super) fn new(builder: &mut Builder) -> Result<Self, prometheus::Error> {
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
            promises: builder.counters(
                "weir_slo_requests_total",
                "Requests that had objectives, by whether they met all of them.",
                &["pool", "result"],
            )?,
            prefill: builder.gauges(
                "weir_prefill_tokens_per_second",
                "Prompt tokens outside of the prefix cache that an endpoint reads a second, learned from answers; 0 \
                 until known.",
                &["pool"],
            )?,
            priorities_removed: builder.counters(
                "weir_engine_priorities_removed_total",
                "Requests from which a priority meant for the engine's own queue was taken (field `priority`, headers \
                 `X-Vllm-Priority` and `X-Override-Priority`).",
                &["pool"],
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
    pub(super) fn new(label: &str, families: Arc<PoolFamilies>) -> Self {
        Self {
            label: label.to_owned(),
            wait: families.wait.with_label_values(&[label]),
            ttft: families.ttft.with_label_values(&[label]),
            duration: families.duration.with_label_values(&[label]),
            retries: families.retries.with_label_values(&[label]),
            priorities_removed: families.priorities_removed.with_label_values(&[label]),
            ejections: families.ejections.with_label_values(&[label]),
            completed: families
                .requests
                .with_label_values(&[label, Outcome::Completed.as_str(), "none"]),
            homes: [Home::None, Home::New, Home::Kept, Home::Moved]
                .map(|home| (home, families.homes.with_label_values(&[label, home.as_str()]))),
            prompt_tokens: families
                .tokens
                .with_label_values(&[label, TokenKind::Prompt.as_str()]),
            cached_tokens: families
                .tokens
                .with_label_values(&[label, TokenKind::Cached.as_str()]),
            completion_tokens: families
                .tokens
                .with_label_values(&[label, TokenKind::Completion.as_str()]),
            families,
        }
    }

    /// Counts a request that was answered in full.
    pub fn completed(&self) {
        self.completed.inc();
    }

    /// Counts a request that ended. `reason` is the text of the closed set that `X-Weir-Reason` carries, `none`
    /// without an error.
    pub fn request(&self, outcome: Outcome, reason: &'static str) {
        self.families
            .requests
            .with_label_values(&[self.label.as_str(), outcome.as_str(), reason])
            .inc();
    }

    /// Counts a request that had objectives.
    pub fn promise(&self, result: Promise) {
        let labels = [self.label.as_str(), result.as_str()];
        self.families.promises.with_label_values(&labels).inc();
    }

    /// Counts a dispatch by how the workflow's home was used.
    pub fn home(&self, home: Home) {
        if let Some((_, counter)) = self.homes.iter().find(|(known, _)| *known == home) {
            counter.inc();
        }
    }

    /// Adds tokens as an engine reported them.
    pub fn tokens(&self, kind: TokenKind, tokens: u64) {
        let counter = match kind {
            TokenKind::Prompt => &self.prompt_tokens,
            TokenKind::Cached => &self.cached_tokens,
            TokenKind::Completion => &self.completion_tokens,
        };
        counter.inc_by(tokens);
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
            .prefill
            .with_label_values(&[pool])
            .set(state.prefill_tokens_per_s.unwrap_or(0.0) as i64);
        families
            .fenced
            .with_label_values(&[pool])
            .set(i64::from(state.fenced));
    }
}
