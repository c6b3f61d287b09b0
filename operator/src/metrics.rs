//! The operator's metrics: one struct, passed in. Labels come from closed sets; objects are never labels, except the
//! pool on gauges that exist once per pool.

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// All series of the operator.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// 1 while this process holds the lease.
    pub leader: IntGauge,
    /// Calls to the API server by step and outcome.
    pub api_calls: IntCounterVec,
    /// Seconds of calls to the API server by step.
    pub api_seconds: HistogramVec,
    /// Reconciles by kind and outcome.
    pub reconciles: IntCounterVec,
    /// Objects that could not be read, by kind.
    pub unreadable: IntCounterVec,
    /// Replica patches by direction.
    pub replica_patches: IntCounterVec,
    /// Seconds from the first sight of a held request to the replica patch's answer.
    pub wake_seconds: Histogram,
    /// Fences by outcome.
    pub fences: IntCounterVec,
    /// Control streams connected now.
    pub control_streams: IntGauge,
    /// Control streams that broke.
    pub control_breaks: IntCounter,
    /// Replicas asked for, by namespace and pool.
    pub desired_replicas: IntGaugeVec,
    /// Ready endpoints, by namespace and pool.
    pub ready_replicas: IntGaugeVec,
    /// Restarts of a watch, by kind.
    pub watch_errors: IntCounterVec,
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    let series = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(series.clone()))?;
    Ok(series)
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    let series = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(series.clone()))?;
    Ok(series)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    let series = IntGauge::new(name, help)?;
    registry.register(Box::new(series.clone()))?;
    Ok(series)
}

const API_BUCKETS: [f64; 9] = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 4.0];

impl Metrics {
    /// Registers every series.
    ///
    /// # Errors
    /// When two series share a name, which a test excludes.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let r = &registry;
        let api_seconds = HistogramVec::new(
            HistogramOpts::new(
                "weir_operator_api_seconds",
                "Seconds of calls to the API server by step.",
            )
            .buckets(API_BUCKETS.to_vec()),
            &["step"],
        )?;
        r.register(Box::new(api_seconds.clone()))?;
        let wake_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "weir_operator_wake_seconds",
                "Seconds from the first sight of a held request to the replica patch's answer.",
            )
            .buckets(API_BUCKETS.to_vec()),
        )?;
        r.register(Box::new(wake_seconds.clone()))?;
        let control_breaks = IntCounter::new(
            "weir_operator_control_breaks_total",
            "Control streams that broke.",
        )?;
        r.register(Box::new(control_breaks.clone()))?;
        Ok(Self {
            leader: gauge(r, "weir_operator_leader", "1 while this process holds the lease.")?,
            api_calls: counters(
                r,
                "weir_operator_api_calls_total",
                "Calls to the API server by step and outcome.",
                &["step", "outcome"],
            )?,
            api_seconds,
            reconciles: counters(
                r,
                "weir_operator_reconciles_total",
                "Reconciles by kind and outcome.",
                &["kind", "outcome"],
            )?,
            unreadable: counters(
                r,
                "weir_operator_unreadable_total",
                "Objects that could not be read, by kind.",
                &["kind"],
            )?,
            replica_patches: counters(
                r,
                "weir_operator_replica_patches_total",
                "Replica patches by direction.",
                &["direction"],
            )?,
            wake_seconds,
            fences: counters(
                r,
                "weir_operator_fences_total",
                "Fences by outcome.",
                &["outcome"],
            )?,
            control_streams: gauge(
                r,
                "weir_operator_control_streams",
                "Control streams connected now.",
            )?,
            control_breaks,
            desired_replicas: gauges(
                r,
                "weir_operator_pool_desired_replicas",
                "Replicas asked for, by namespace and pool.",
                &["namespace", "pool"],
            )?,
            ready_replicas: gauges(
                r,
                "weir_operator_pool_ready_replicas",
                "Ready endpoints, by namespace and pool.",
                &["namespace", "pool"],
            )?,
            watch_errors: counters(
                r,
                "weir_operator_watch_errors_total",
                "Errors of a watch, by kind.",
                &["kind"],
            )?,
            registry,
        })
    }

    /// Forgets the series of a pool that is gone.
    pub fn forget_pool(&self, namespace: &str, pool: &str) {
        for series in [&self.desired_replicas, &self.ready_replicas] {
            // An error says that the pool had no series: nothing to forget.
            drop(series.remove_label_values(&[namespace, pool]));
        }
    }

    /// The text form that Prometheus scrapes.
    ///
    /// # Errors
    /// When the encoder refuses a series.
    pub fn encode(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_registered_once_and_encoded() {
        let metrics = Metrics::new().unwrap();
        metrics.leader.set(1);
        metrics
            .desired_replicas
            .with_label_values(&["ns", "coder"])
            .set(2);
        let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
        assert!(text.contains("weir_operator_leader 1"), "{text}");
        assert!(
            text.contains(r#"weir_operator_pool_desired_replicas{namespace="ns",pool="coder"} 2"#),
            "{text}"
        );
        metrics.forget_pool("ns", "coder");
        assert!(
            !String::from_utf8(metrics.encode().unwrap())
                .unwrap()
                .contains("coder")
        );
    }
}
