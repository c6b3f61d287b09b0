//! The life of one pool between zero and many. Each pool has a scaler of its own: one task that looks, decides
//! (`decide.rs`, pure) and acts, woken by the control stream itself, so that nothing stands between a held request
//! and the replica patch. Scalers are the only writers of replicas.

mod actions;
pub mod cost;
pub mod decide;
pub mod demand;
pub mod engines;
pub mod fence;
pub mod idle;
pub mod instant;
pub mod memory;
pub mod outlook;
pub mod pods;
pub mod refill;
pub mod replicas;
mod restore;
pub mod starts;
pub mod victim;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use tokio::{sync::Notify, task::JoinSet};
use weir_crds::{LLMPool, names};

use self::{
    decide::{Action, Decision, Settings, View, decide},
    demand::Demand,
    engines::{owned_by, refused_pods, rolling, writers},
    instant::{after, between},
    memory::Memory,
    outlook::{Change, Outlook},
    pods::EnginePod,
};
use crate::{control::board::ReplicaView, events::What, key::Key, llm_pool::validate, operator::Operator};

/// Activity reaches status this long after it changed; state changes at once.
pub const STATUS_PAUSE: Duration = Duration::from_secs(5);
/// A patch is believed for this long before the watch confirms it.
const CONFIRM: Duration = Duration::from_secs(5);
/// After an action the scaler looks again even if nothing tells it to.
const LOOK_AFTER_ACTION: Duration = Duration::from_millis(500);
/// First pause after a failed action; doubled up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause after a failed action.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// How long `ScalingOwned` shows that somebody else wrote replicas.
const FOREIGN_SHOWN: Duration = Duration::from_secs(600);

/// Keeps one scaler per pool, until one panics.
pub async fn keep_scalers(operator: Operator) {
    let mut tasks: JoinSet<Key> = JoinSet::new();
    let mut running: BTreeMap<Key, String> = BTreeMap::new();
    loop {
        for pool in operator.caches.pools.all() {
            let Ok(pool) = &pool.0 else { continue };
            let key = Key::of(pool);
            if pool.metadata.deletion_timestamp.is_some() || running.contains_key(&key) {
                continue;
            }
            let Some(uid) = pool.uid() else { continue };
            running.insert(key.clone(), uid.clone());
            let scaler = Scaler::new(operator.clone(), key, uid);
            tasks.spawn(scaler.run());
        }
        tokio::select! {
            () = operator.work.fleet.notified() => {}
            Some(ended) = tasks.join_next() => match ended {
                Ok(key) => drop(running.remove(&key)),
                Err(error) => {
                    tracing::error!(%error, "a scaler panicked");
                    return;
                }
            },
        }
    }
}

/// One pool's scaler.
struct Scaler {
    operator: Operator,
    key: Key,
    uid: String,
    wake: Arc<Notify>,
    memory: Memory,
    /// Replicas written last, and until when the watch may still say otherwise.
    written: Option<(u32, Timestamp)>,
    foreign: Option<(String, Timestamp)>,
    /// Replicas to write back, because somebody else changed them.
    write_back: Option<u32>,
    epoch: AtomicU64,
    failures: u32,
    failure: Option<String>,
    /// Events on their way: nothing waits for them.
    news: JoinSet<()>,
}

/// What one look found.
struct Look {
    pool: LLMPool,
    gateway: Key,
    replicas: Vec<ReplicaView>,
    refused: Option<String>,
    view: View,
}

impl Scaler {
    fn new(operator: Operator, key: Key, uid: String) -> Self {
        let wake = operator.board.listen(&key);
        Self {
            operator,
            key,
            uid,
            wake,
            memory: Memory::default(),
            written: None,
            foreign: None,
            write_back: None,
            epoch: AtomicU64::new(0),
            failures: 0,
            failure: None,
            news: JoinSet::new(),
        }
    }

    /// Runs until the pool is gone; returns its key.
    async fn run(mut self) -> Key {
        if let Some(look) = self.look(Timestamp::now()) {
            self.memory = restore::memory(&look.pool, &look.view, Timestamp::now());
            let fence = look.pool.status.as_ref().and_then(|status| status.fence.as_ref());
            self.epoch
                .store(fence.map_or(0, |fence| fence.epoch), Ordering::Relaxed);
        }
        loop {
            let now = Timestamp::now();
            let Some(look) = self.look(now) else { break };
            let decision = decide(&look.view, &mut self.memory, now);
            let acted = decision.action != Action::None;
            let result = match self.write_back.take() {
                Some(replicas) => self.write_back(&look, replicas, now).await,
                None => self.act(&look, &decision, now).await,
            };
            let failed = match result {
                Ok(()) => None,
                // The Deployment is gone, perhaps with its namespace: the next look will show.
                Err(error) if error.is_stale() => {
                    tracing::debug!(pool = %self.key, %error, "what was to be scaled is gone");
                    Some(error.to_string())
                }
                Err(error) => {
                    tracing::warn!(pool = %self.key, %error, "a scaling action failed; it is tried again");
                    Some(error.to_string())
                }
            };
            self.failures = if failed.is_some() {
                self.failures.saturating_add(1)
            } else {
                0
            };
            self.failure = failed;
            let look_again = decision.look_again;
            self.publish(&look, decision, now);
            if self.failures > 0 {
                let pause = FIRST_PAUSE
                    .saturating_mul(1 << self.failures.min(6))
                    .min(MAX_PAUSE);
                tokio::time::sleep(pause).await;
                continue;
            }
            let look_again = if acted {
                Some(look_again.map_or(after(now, LOOK_AFTER_ACTION), |at| {
                    at.min(after(now, LOOK_AFTER_ACTION))
                }))
            } else {
                look_again
            };
            self.wait(look_again).await;
        }
        self.operator.outlooks.forget(&self.key);
        self.operator.board.forget(&self.key);
        self.operator
            .metrics
            .forget_pool(&self.key.namespace, &self.key.name);
        self.operator.work.fleet.notify_one();
        self.key
    }

    async fn wait(&self, look_again: Option<Timestamp>) {
        let unconfirmed = self.written.map(|(_, until)| until);
        let shown = self
            .foreign
            .as_ref()
            .map(|(_, since)| after(*since, FOREIGN_SHOWN));
        let now = Timestamp::now();
        let next = [look_again, unconfirmed, shown]
            .into_iter()
            .flatten()
            .filter(|at| *at > now)
            .min();
        match next {
            Some(at) => {
                // A timer never fires early, and a millisecond more keeps rounding from making it look so.
                let pause = between(now, at) + Duration::from_millis(1);
                drop(tokio::time::timeout(pause, self.wake.notified()).await);
            }
            None => self.wake.notified().await,
        }
    }

    /// Reads everything from caches and board; `None` when the pool is gone or was made anew.
    fn look(&mut self, now: Timestamp) -> Option<Look> {
        let found = self.operator.caches.pools.get(&self.key)?;
        let pool = found
            .0
            .as_ref()
            .ok()
            .filter(|pool| pool.uid().as_deref() == Some(&self.uid))?
            .clone();
        if pool.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let siblings = self.operator.caches.pools.list(&self.key.namespace);
        let siblings = siblings.iter().filter_map(|found| found.0.as_ref().ok());
        let refused = validate::refusal(&pool, siblings).is_some();
        let gateway = self.key.sibling(&pool.spec.gateway);
        let replicas = self.operator.board.view(&gateway, &self.key.name, &self.uid);
        let deployment = self
            .operator
            .caches
            .deployments
            .get(&self.key.sibling(&names::engine(&self.key.name)));
        let deployment = deployment.filter(|found| owned_by(found.as_ref(), &self.uid));
        let pods = self
            .operator
            .caches
            .pods
            .list(&self.key.namespace)
            .iter()
            .filter(|pod| pod.labels().get(names::label::POOL_UID) == Some(&self.uid))
            .filter_map(|pod| EnginePod::read(pod))
            .collect();
        let view = View {
            settings: Settings::of(&pool.spec, refused),
            replicas: deployment.as_ref().map(|found| self.replicas(found, now)),
            rolling: deployment.as_ref().is_some_and(|found| rolling(found)),
            pods,
            demand: Demand::of(&replicas),
        };
        Some(Look {
            pool,
            gateway,
            replicas,
            refused: deployment.as_deref().and_then(refused_pods),
            view,
        })
    }

    /// Replicas asked for: what was written last, until the watch has caught up. Somebody else's number is noted.
    fn replicas(&mut self, deployment: &Deployment, now: Timestamp) -> u32 {
        let found = deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(1);
        let found = u32::try_from(found).unwrap_or(0);
        match self.written {
            Some((written, until)) if written != found && now < until => written,
            Some((written, _)) => {
                if written != found {
                    self.foreign = Some((writers(deployment), now));
                    self.write_back = Some(written);
                }
                self.written = Some((written, now));
                written
            }
            None => {
                self.written = Some((found, now));
                found
            }
        }
    }

    fn publish(&mut self, look: &Look, decision: Decision, now: Timestamp) {
        if self
            .foreign
            .as_ref()
            .is_some_and(|(_, since)| between(*since, now) >= FOREIGN_SHOWN)
        {
            self.foreign = None;
        }
        let desired = self.written.map_or(0, |(written, _)| written);
        let labels = [self.key.namespace.as_str(), self.key.name.as_str()];
        self.operator
            .metrics
            .desired_replicas
            .with_label_values(&labels)
            .set(desired.into());
        self.operator
            .metrics
            .ready_replicas
            .with_label_values(&labels)
            .set(decision.serving.into());
        let outlook = Outlook {
            uid: self.uid.clone(),
            mode: look.view.settings.mode,
            policy: look.view.settings.policy,
            desired,
            decision,
            demand: look.view.demand.clone(),
            pods: look.view.pods.clone(),
            rolling: look.view.rolling,
            starts: self.memory.starts.clone(),
            ledger: self.memory.ledger,
            timeouts: self.memory.timeouts,
            foreign: self.foreign.as_ref().map(|(who, _)| who.clone()),
            refused: look.refused.clone(),
            epoch: self.epoch.load(Ordering::Relaxed),
            failure: self.failure.clone(),
            configurations: look
                .replicas
                .iter()
                .map(|view| (view.replica.pod.clone(), view.config_hash.clone()))
                .collect(),
        };
        let change = self.operator.outlooks.set(&self.key, outlook);
        match change {
            Change::Nothing => return,
            Change::Activity => self.operator.work.pools.add_after(self.key.clone(), STATUS_PAUSE),
            Change::Urgent => self.operator.work.pools.add(self.key.clone()),
        }
        for policy in self.operator.caches.policies.list(&self.key.namespace) {
            self.operator
                .work
                .policies
                .add_after(Key::of(policy.as_ref()), STATUS_PAUSE);
        }
    }

    fn event(&mut self, pool: &LLMPool, what: What, note: String) {
        while self.news.try_join_next().is_some() {}
        let (events, about) = (
            self.operator.events.clone(),
            kube::Resource::object_ref(pool, &()),
        );
        self.news
            .spawn(async move { events.publish(&about, what, &note).await });
    }
}
