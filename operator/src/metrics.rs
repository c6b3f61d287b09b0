//! The operator's metrics: one struct, passed in. Labels come from closed sets; objects are never labels, except the
//! pool on gauges that exist once per pool.

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, core::Collector,
};

/// All series of the operator.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    families: Vec<Family>,
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

/// One family as the reference page shows it.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

/// Makes families, registers and remembers them.
#[derive(Default)]
struct Builder {
    registry: Registry,
    families: Vec<Family>,
}

type Text = &'static str;
type Made<T> = prometheus::Result<T>;

impl Builder {
    /// Registers `made` and remembers it as `[name, kind, help]` with its labels.
    fn add<C: Collector + Clone + 'static>(
        &mut self,
        made: C,
        [name, kind, help]: [Text; 3],
        labels: &'static [Text],
    ) -> Made<C> {
        self.registry.register(Box::new(made.clone()))?;
        self.families.push(Family {
            name,
            kind,
            labels,
            help,
        });
        Ok(made)
    }

    fn counters(&mut self, name: Text, labels: &'static [Text], help: Text) -> Made<IntCounterVec> {
        let made = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.add(made, [name, "counter", help], labels)
    }

    fn gauges(&mut self, name: Text, labels: &'static [Text], help: Text) -> Made<IntGaugeVec> {
        let made = IntGaugeVec::new(Opts::new(name, help), labels)?;
        self.add(made, [name, "gauge", help], labels)
    }

    fn counter(&mut self, name: Text, help: Text) -> Made<IntCounter> {
        self.add(IntCounter::new(name, help)?, [name, "counter", help], &[])
    }

    fn gauge(&mut self, name: Text, help: Text) -> Made<IntGauge> {
        self.add(IntGauge::new(name, help)?, [name, "gauge", help], &[])
    }

    /// Seconds of calls to the API server.
    fn calls(&mut self, name: Text, labels: &'static [Text], help: Text) -> Made<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(API_BUCKETS.to_vec());
        self.add(
            HistogramVec::new(options, labels)?,
            [name, "histogram", help],
            labels,
        )
    }
}

const API_BUCKETS: [f64; 9] = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 4.0];

impl Metrics {
    /// Registers every series.
    ///
    /// # Errors
    /// When two series share a name, which a test excludes.
    pub fn new() -> prometheus::Result<Self> {
        let mut b = Builder::default();
        Ok(Self {
            leader: b.gauge("weir_operator_leader", "1 while this process holds the lease.")?,
            api_calls: b.counters(
                "weir_operator_api_calls_total",
                &["step", "outcome"],
                "Calls to the API server by step and outcome.",
            )?,
            api_seconds: b.calls(
                "weir_operator_api_seconds",
                &["step"],
                "Seconds of calls to the API server by step.",
            )?,
            reconciles: b.counters(
                "weir_operator_reconciles_total",
                &["kind", "outcome"],
                "Reconciles by kind and outcome.",
            )?,
            unreadable: b.counters(
                "weir_operator_unreadable_total",
                &["kind"],
                "Looks at objects that cannot be read, by kind.",
            )?,
            replica_patches: b.counters(
                "weir_operator_replica_patches_total",
                &["direction"],
                "Replica patches: `up`, `down` by one, or to `zero`.",
            )?,
            wake_seconds: b
                .calls(
                    "weir_operator_wake_seconds",
                    &[],
                    "Seconds from the first sight of a held request to the replica patch's answer.",
                )?
                .with_label_values::<&str>(&[]),
            fences: b.counters(
                "weir_operator_fences_total",
                &["outcome"],
                "Fences: the pool went to `zero`, a gateway was `busy` or `unreachable`, or it was `overtaken` by an \
                 arrival.",
            )?,
            control_streams: b.gauge(
                "weir_operator_control_streams",
                "Control streams to gateway pods connected now.",
            )?,
            control_breaks: b.counter(
                "weir_operator_control_breaks_total",
                "Control streams that broke.",
            )?,
            desired_replicas: b.gauges(
                "weir_operator_pool_desired_replicas",
                &["namespace", "pool"],
                "Engine pods asked for, by pool.",
            )?,
            ready_replicas: b.gauges(
                "weir_operator_pool_ready_replicas",
                &["namespace", "pool"],
                "Engine pods that answer, by pool.",
            )?,
            watch_errors: b.counters(
                "weir_operator_watch_errors_total",
                &["kind"],
                "Errors of a watch, by kind; each is tried again with backoff.",
            )?,
            families: b.families,
            registry: b.registry,
        })
    }

    /// Every family, for `docs/metrics.md`.
    #[must_use]
    pub fn families(&self) -> &[Family] {
        &self.families
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
