//! What all gateway replicas together say about one pool. Pure.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

use super::instant::{after, before};
use crate::control::board::ReplicaView;

/// One endpoint over all gateway replicas.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Endpoint {
    /// Some replica sends requests to it.
    pub eligible: bool,
    /// Some replica was told to send it none.
    pub draining: bool,
    /// Requests in flight there.
    pub in_flight: u32,
    /// Workflows whose home it is; every replica knows its own.
    pub workflows: u32,
    /// Tokens of KV cache those workflows left there.
    pub kv_tokens: u64,
    /// Requests that it works on at once; `None` until a gateway says so.
    pub concurrency: Option<u32>,
    /// Tokens that its KV cache holds.
    pub kv_capacity_tokens: Option<u64>,
    /// The engine's own running and waiting counts.
    pub engine_busy: Option<u32>,
    /// KV use of running requests, 0 to 1.
    pub kv_usage: Option<f64>,
}

/// Sum over the replicas that answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Demand {
    /// Gateway pods that exist.
    pub replicas: usize,
    /// Names of those that say nothing: their load is unknown.
    pub silent: Vec<String>,
    /// Requests at engines.
    pub in_flight: u32,
    /// Requests waiting although an endpoint is ready.
    pub queued: u32,
    /// Requests waiting because none is.
    pub held: u32,
    /// Workflows with a home.
    pub open_workflows: u32,
    /// Workflows in a tool pause that are expected back.
    pub paused: u32,
    /// When the last of those pauses ends.
    pub pauses_end: Option<Timestamp>,
    /// When a request last came or ended, as far as the replicas that run now can know: a replica that has seen
    /// none counts from its own start.
    pub last_activity: Option<Timestamp>,
    /// Some replica holds arrivals because of a fence.
    pub fenced: bool,
    /// Highest epoch that a replica has obeyed.
    pub epoch: u64,
    /// Endpoints by pod UID.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// Time up to the last answer that the following three are about; `None` before the first answer.
    pub window: Option<Duration>,
    /// Completed requests that met their objectives in it.
    pub slo_met: u64,
    /// Requests that had objectives and ended in it.
    pub slo_total: u64,
    /// 95th percentile of first bytes in it; of several replicas the longest, which is never less than that of all.
    pub ttft_p95: Option<Duration>,
    /// Uncached prompt tokens that an endpoint reads a second; of several replicas the least.
    pub prefill: Option<f64>,
}

impl Demand {
    /// Adds up what the replicas last said.
    #[must_use]
    pub fn of(views: &[ReplicaView]) -> Self {
        let mut sum = Self {
            replicas: views.len(),
            ..Self::default()
        };
        for view in views {
            match &view.seen {
                None => sum.silent.push(view.replica.pod.clone()),
                Some(seen) => {
                    sum.add(&seen.state, seen.at);
                    if seen.state.last_activity_age_ms.is_none() {
                        sum.last_activity = sum.last_activity.max(view.replica.started);
                    }
                }
            }
        }
        sum
    }

    fn add(&mut self, state: &weir_wire::control::PoolState, at: Timestamp) {
        self.in_flight = self.in_flight.saturating_add(state.in_flight);
        self.queued = self.queued.saturating_add(state.queued);
        self.held = self.held.saturating_add(state.held);
        self.open_workflows = self.open_workflows.saturating_add(state.open_workflows);
        self.paused = self.paused.saturating_add(state.paused_workflows);
        self.fenced |= state.fenced;
        self.epoch = self.epoch.max(state.epoch);
        if let Some(recent) = &state.recent {
            self.window = self.window.max(Some(Duration::from_millis(recent.window_ms)));
            self.slo_met = self.slo_met.saturating_add(recent.slo_met);
            self.slo_total = self.slo_total.saturating_add(recent.slo_total);
            self.ttft_p95 = self.ttft_p95.max(recent.ttft_p95_ms.map(Duration::from_millis));
        }
        self.prefill = match (self.prefill, state.prefill_tokens_per_s) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        if let Some(age) = state.last_activity_age_ms {
            self.last_activity = self
                .last_activity
                .max(Some(before(at, Duration::from_millis(age))));
        }
        if let Some(left) = state.pause_ends_in_ms {
            self.pauses_end = self.pauses_end.max(Some(after(at, Duration::from_millis(left))));
        }
        for endpoint in &state.endpoints {
            let sum = self.endpoints.entry(endpoint.uid.clone()).or_default();
            sum.eligible |= endpoint.eligible;
            sum.draining |= endpoint.draining;
            sum.in_flight = sum.in_flight.saturating_add(endpoint.in_flight);
            sum.workflows = sum.workflows.saturating_add(endpoint.workflows);
            sum.kv_tokens = sum.kv_tokens.saturating_add(endpoint.kv_tokens);
            sum.concurrency = sum.concurrency.max(endpoint.concurrency);
            sum.kv_capacity_tokens = sum.kv_capacity_tokens.max(endpoint.kv_capacity_tokens);
            sum.engine_busy = sum.engine_busy.max(endpoint.engine_busy);
            sum.kv_usage = match (sum.kv_usage, endpoint.kv_usage) {
                (Some(one), Some(other)) => Some(one.max(other)),
                (one, other) => one.or(other),
            };
        }
    }

    /// Every gateway replica says what it is doing, and there is one. Without this nothing counts as idle.
    #[must_use]
    pub fn known(&self) -> bool {
        self.replicas > 0 && self.silent.is_empty()
    }

    /// Requests that wait.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.queued.saturating_add(self.held)
    }

    /// Requests that wait or run.
    #[must_use]
    pub fn load(&self) -> u32 {
        self.waiting().saturating_add(self.in_flight)
    }

    /// Endpoints that take requests.
    #[must_use]
    pub fn eligible(&self) -> u32 {
        u32::try_from(
            self.endpoints
                .values()
                .filter(|endpoint| endpoint.eligible)
                .count(),
        )
        .unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::board::{Replica, Seen};
    use std::sync::Arc;
    use weir_wire::control::{EndpointState, PoolState, Recent};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn view(name: &str, state: Option<PoolState>) -> ReplicaView {
        let replica = Replica {
            uid: name.to_owned(),
            pod: name.to_owned(),
            address: "10.0.0.1:9090".parse().unwrap(),
            started: Some(at(40)),
        };
        ReplicaView {
            replica,
            config_hash: None,
            seen: state.map(|state| Seen {
                state: Arc::new(state),
                at: at(100),
            }),
        }
    }

    #[test]
    fn counts_are_added_ages_become_instants_and_silence_is_named() {
        let endpoint = EndpointState {
            uid: "p".to_owned(),
            eligible: true,
            in_flight: 2,
            kv_tokens: 100,
            kv_usage: Some(0.4),
            engine_busy: Some(5),
            concurrency: Some(64),
            kv_capacity_tokens: Some(9_000),
            ..EndpointState::default()
        };
        let one = PoolState {
            in_flight: 2,
            held: 1,
            last_activity_age_ms: Some(30_000),
            recent: Some(Recent {
                window_ms: 300_000,
                slo_met: 3,
                slo_total: 4,
                ttft_p95_ms: Some(900),
            }),
            prefill_tokens_per_s: Some(9_000.0),
            endpoints: vec![endpoint.clone()],
            ..PoolState::default()
        };
        let two = PoolState {
            in_flight: 2,
            queued: 3,
            endpoints: vec![endpoint],
            fenced: true,
            recent: Some(Recent {
                window_ms: 300_000,
                slo_met: 1,
                slo_total: 1,
                ttft_p95_ms: Some(1_200),
            }),
            prefill_tokens_per_s: Some(8_000.0),
            ..PoolState::default()
        };
        let sum = Demand::of(&[view("a", Some(one)), view("b", Some(two)), view("c", None)]);
        assert_eq!((sum.in_flight, sum.queued, sum.held, sum.load()), (4, 3, 1, 8));
        assert_eq!(
            sum.last_activity,
            Some(at(70)),
            "a's last request is later than b's start"
        );
        assert_eq!(
            (sum.replicas, sum.silent.clone(), sum.known()),
            (3, vec!["c".to_owned()], false)
        );
        let merged = &sum.endpoints["p"];
        assert_eq!(
            (
                merged.in_flight,
                merged.kv_tokens,
                merged.engine_busy,
                merged.kv_usage
            ),
            (4, 200, Some(5), Some(0.4))
        );
        assert_eq!(
            (merged.concurrency, merged.kv_capacity_tokens),
            (Some(64), Some(9_000))
        );
        assert_eq!(
            (sum.window, sum.slo_met, sum.slo_total),
            (Some(Duration::from_secs(300)), 4, 5)
        );
        assert_eq!(sum.ttft_p95, Some(Duration::from_millis(1_200)));
        assert_eq!(sum.prefill, Some(8_000.0));
        assert!(sum.fenced);
        assert_eq!(sum.eligible(), 1);
    }

    #[test]
    fn a_replica_without_requests_counts_from_its_start() {
        let sum = Demand::of(&[view("a", Some(PoolState::default()))]);
        assert_eq!((sum.last_activity, sum.known()), (Some(at(40)), true));
        assert!(!Demand::of(&[]).known());
    }
}
