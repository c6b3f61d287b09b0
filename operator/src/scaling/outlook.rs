//! What a pool's scaler found at its last look, for status. Kept apart from the scaler, so that a reconcile reads it
//! without asking anyone.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    cost::Ledger,
    decide::{Decision, Mode},
    demand::Demand,
    idle::Policy,
    pods::{EnginePod, Trouble},
    starts::Starts,
};
use crate::key::Key;

/// The result of one look at one pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Outlook {
    /// UID of the pool it is about.
    pub uid: String,
    /// Whether the pool may run.
    pub mode: Mode,
    /// When it may stop.
    pub policy: Policy,
    /// Replicas asked for.
    pub desired: u32,
    /// What was decided.
    pub decision: Decision,
    /// What the gateways say.
    pub demand: Demand,
    /// Engine pods.
    pub pods: Vec<EnginePod>,
    /// A rollout is under way.
    pub rolling: bool,
    /// Cold starts.
    pub starts: Starts,
    /// Pod-hours.
    pub ledger: Ledger,
    /// Starts that took too long since a pod last served.
    pub timeouts: u32,
    /// Who else wrote replicas, while that is recent.
    pub foreign: Option<String>,
    /// Why the API server makes no engine pods, in its words.
    pub refused: Option<String>,
    /// Epoch of the last order.
    pub epoch: u64,
    /// Why the last action failed.
    pub failure: Option<String>,
    /// Replicas of the gateway and the configuration each runs with.
    pub configurations: Vec<(String, Option<String>)>,
}

impl Outlook {
    /// The part that status shows at once (of the threshold what a user changes, not what moves with every answer); the rest is activity, shown a few seconds later.
    fn urgent(&self) -> impl PartialEq + use<> {
        let troubles: Vec<Option<Trouble>> = self.pods.iter().map(|pod| pod.trouble.clone()).collect();
        (
            (
                self.uid.clone(),
                self.mode,
                self.desired,
                self.decision.serving,
                self.decision.starting,
            ),
            (
                self.pods.len(),
                self.rolling,
                troubles,
                self.demand.silent.clone(),
                self.demand.replicas,
            ),
            (
                self.demand.held > 0 && self.decision.serving == 0,
                self.starts.samples,
                self.timeouts,
            ),
            (
                self.foreign.clone(),
                self.refused.clone(),
                self.failure.clone(),
                self.configurations.clone(),
                (self.policy, self.decision.verdict.threshold.is_some()),
            ),
        )
    }

    /// The rest of what status shows: no ledger, which grows while nothing happens.
    fn shown(&self) -> impl PartialEq + use<> {
        (
            self.decision.sentence.clone(),
            self.decision.verdict.zero_at,
            (
                self.demand.in_flight,
                self.demand.queued,
                self.demand.held,
                self.demand.open_workflows,
            ),
            self.decision.verdict.threshold,
            (
                self.demand.window,
                self.demand.slo_met,
                self.demand.slo_total,
                self.demand.ttft_p95,
                self.epoch,
                self.starts.phases,
            ),
        )
    }
}

/// How soon status should follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing that status shows changed.
    Nothing,
    /// Numbers did.
    Activity,
    /// The pool's state did.
    Urgent,
}

/// The last outlook of every pool.
#[derive(Debug, Default)]
pub struct Outlooks(Mutex<BTreeMap<Key, Arc<Outlook>>>);

impl Outlooks {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Outlook>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last outlook of a pool, if it is about that UID.
    #[must_use]
    pub fn get(&self, pool: &Key, uid: &str) -> Option<Arc<Outlook>> {
        self.lock()
            .get(pool)
            .filter(|outlook| outlook.uid == uid)
            .cloned()
    }

    /// Keeps an outlook and tells what changed.
    pub fn set(&self, pool: &Key, outlook: Outlook) -> Change {
        let outlook = Arc::new(outlook);
        let before = self.lock().insert(pool.clone(), Arc::clone(&outlook));
        match before {
            Some(before) if before.urgent() == outlook.urgent() => {
                if before.shown() == outlook.shown() {
                    Change::Nothing
                } else {
                    Change::Activity
                }
            }
            Some(_) | None => Change::Urgent,
        }
    }

    /// Forgets a pool that is gone.
    pub fn forget(&self, pool: &Key) {
        self.lock().remove(pool);
    }
}
