//! What a sidecar counts about its engine.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use weir_wire::sidecar::EngineFigures;

use super::{Role, TokenKind, family::Builder, gauge};

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

impl SidecarMetrics {
    pub(super) fn new(builder: &mut Builder) -> Result<Self, prometheus::Error> {
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
