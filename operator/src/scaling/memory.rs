//! What one pool's scaler remembers between two looks. What must survive a restart is in the pool's status, the rest
//! is learned again. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;

use super::{
    cost::{Doing, Ledger},
    demand::Demand,
    instant::{after, before, between},
    pods::EnginePod,
    replicas::Trend,
    starts::{KEPT, Starts, measure},
};

/// A pod belongs to an order when it was made this long before (the API server keeps whole seconds) or after it.
const ORDER_SLACK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// One pod as it was watched.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Watched {
    ordered: Timestamp,
    /// When it could serve first; for a pod that could at first sight, when the kubelet called it ready.
    served: Option<Timestamp>,
    /// Its start was seen from the beginning, so it was measured.
    measured: bool,
}

/// Memory of one pool.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    /// Shortage and surplus.
    pub trend: Trend,
    /// Cold starts.
    pub starts: Starts,
    /// Hours.
    pub ledger: Ledger,
    /// The pool cannot have been idle since before this.
    pub not_before: Option<Timestamp>,
    /// Last idle instant shown: kept while the new one differs by less than the clocks' noise.
    pub idle_since: Option<Timestamp>,
    /// When replicas were last raised.
    pub ordered_at: Option<Timestamp>,
    /// Until when a failed fence is not tried again.
    pub no_fence_until: Option<Timestamp>,
    /// Pods whose deletion was hurried.
    pub hurried: BTreeSet<String>,
    /// Pods restarted because their start took too long, since the last one that served.
    pub timeouts: u32,
    /// Prompt tokens that an endpoint reads a second, as a gateway said last: one that has just started knows nothing.
    pub prefill: Option<f64>,
    /// Requests a second that came after the first one while the pool started, newest last.
    arrivals: Vec<f64>,
    held_peak: u32,
    watched: BTreeMap<String, Watched>,
}

/// Two instants closer than this are one: gateways tell ages, and the way takes time.
const NOISE: Duration = Duration::from_secs(2);

impl Memory {
    /// Can serve: the kubelet or a gateway says so.
    #[must_use]
    pub fn serves(pod: &EnginePod, demand: &Demand) -> bool {
        !pod.terminating
            && (pod.ready
                || demand
                    .endpoints
                    .get(&pod.uid)
                    .is_some_and(|endpoint| endpoint.eligible))
    }

    /// Takes in what is seen now: starts that end, load, hours.
    pub fn observe(&mut self, pods: &[EnginePod], demand: &Demand, now: Timestamp) {
        self.prefill = demand.prefill.or(self.prefill);
        if demand.load() > 0 {
            self.not_before = self.not_before.max(Some(now));
        }
        if demand.eligible() == 0 {
            self.held_peak = self.held_peak.max(demand.held);
        }
        for pod in pods {
            self.watch(pod, demand, now);
        }
        let alive: BTreeSet<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
        self.watched.retain(|uid, _| alive.contains(uid.as_str()));
        self.hurried.retain(|uid| alive.contains(uid.as_str()));
        if pods.iter().any(|pod| Self::serves(pod, demand)) {
            self.timeouts = 0;
            self.held_peak = 0;
        }
        self.ledger.book(now, doing(pods, demand));
    }

    fn watch(&mut self, pod: &EnginePod, demand: &Demand, now: Timestamp) {
        let serves = Self::serves(pod, demand);
        let ordered = self
            .ordered_at
            .filter(|ordered| {
                before(*ordered, ORDER_SLACK.0) <= pod.created
                    && pod.created <= after(*ordered, ORDER_SLACK.1)
            })
            .unwrap_or(pod.created);
        let watched = self.watched.entry(pod.uid.clone()).or_insert_with(|| Watched {
            ordered,
            served: serves.then(|| pod.ready_changed.unwrap_or(now)),
            measured: false,
        });
        if serves && watched.served.is_none() {
            watched.served = Some(now);
            watched.measured = true;
            let start = measure(pod, watched.ordered, now);
            self.starts.add(start);
            if self.held_peak > 0 {
                let followed = f64::from(self.held_peak - 1) / start.total.as_secs_f64().max(0.1);
                self.learn_arrivals(Some(followed));
            }
        } else if let (true, true, Some(served), Some(ready), Some(phases)) = (
            watched.measured,
            pod.ready,
            watched.served,
            pod.ready_changed,
            self.starts.phases.as_mut(),
        ) {
            // The kubelet's word comes after the gateway's.
            phases.ready = phases.ready.or(Some(between(served, ready)));
        }
    }

    /// When the first of the pods that serve now could.
    #[must_use]
    pub fn first_ready(&self, pods: &[EnginePod], demand: &Demand) -> Option<Timestamp> {
        pods.iter()
            .filter(|pod| Self::serves(pod, demand))
            .filter_map(|pod| {
                self.watched
                    .get(&pod.uid)
                    .and_then(|watched| watched.served)
                    .or(pod.ready_changed)
            })
            .min()
    }

    /// Takes one more observation of the requests a second that came while the pool started.
    pub fn learn_arrivals(&mut self, followed: Option<f64>) {
        self.arrivals.extend(followed);
        if self.arrivals.len() > KEPT {
            self.arrivals.remove(0);
        }
    }

    /// Requests a second that follow the first one after a gap: the mean over the starts that were seen.
    #[must_use]
    pub fn arrivals(&self) -> f64 {
        let count = u32::try_from(self.arrivals.len()).unwrap_or(u32::MAX);
        if count == 0 {
            0.0
        } else {
            self.arrivals.iter().sum::<f64>() / f64::from(count)
        }
    }

    /// Takes the noise out of an idle instant.
    pub fn steady(&mut self, since: Option<Timestamp>) -> Option<Timestamp> {
        self.idle_since = match (self.idle_since, since) {
            (Some(shown), Some(since)) if between(shown, since).max(between(since, shown)) < NOISE => {
                Some(shown)
            }
            (_, since) => since,
        };
        self.idle_since
    }
}

/// What the pods do now. A pod that ends is still paid for: it serves, or is idle.
#[must_use]
pub fn doing(pods: &[EnginePod], demand: &Demand) -> Doing {
    let mut doing = Doing::default();
    for pod in pods {
        let endpoint = demand.endpoints.get(&pod.uid);
        let serves = Memory::serves(pod, demand) || pod.terminating;
        let count = match endpoint {
            _ if !serves => &mut doing.starting,
            Some(endpoint) if endpoint.in_flight > 0 => &mut doing.serving,
            _ => &mut doing.idle,
        };
        *count += 1;
    }
    doing
}
