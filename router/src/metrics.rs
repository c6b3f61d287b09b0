//! Everything the binary counts, in one struct that is passed in. `docs/metrics.md` is written from the same
//! definitions. Labels come from closed sets, save `pool`, which is bounded and folds to `other`.

mod family;
mod labels;
mod pool;
mod sidecar;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};
use weir_wire::config::MAX_POOLS;

use family::Builder;
pub use family::Family;
pub use labels::{
    ConfigResult, EngineProbe, Home, OrderResult, Outcome, PollResult, Port, ProbeResult, Promise, Role,
    SidecarRefusal, TokenKind, UpstreamFailure, Watched,
};
use pool::PoolFamilies;
pub use pool::PoolMetrics;
pub use sidecar::SidecarMetrics;

/// The pool label of every pool past the bound.
const OTHER: &str = "other";

/// All metric families of the binary.
pub struct Metrics {
    registry: Registry,
    families: Vec<Family>,
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

    /// Every family of either role, for `docs/metrics.md`.
    pub fn families(&self) -> &[Family] {
        &self.families
    }
}

/// A gauge's value; what does not fit is the largest that does.
fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use weir_wire::control::PoolState;

    use super::*;

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
