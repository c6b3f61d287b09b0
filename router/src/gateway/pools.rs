//! The configuration in force: which pools there are, which model names pick them, which policy holds. A new
//! configuration is put in place as a whole; requests under way keep the one they began with.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weir_schedule::{Event, Settings};
use weir_wire::config::{ConfigError, GatewayConfig, PoolConfig};

use super::{
    fixed, models,
    policy::Policy,
    scheduler::{PoolHandle, PoolStart},
};
use crate::{
    metrics::Metrics,
    proxy::{respond::Refusal, server::Bounds},
};

/// Dispatches to an endpoint that has just become ready, until its first answer begins.
const FIRST_BATCH: u32 = 8;

/// All pools of a gateway.
pub struct Pools {
    view: ArcSwap<View>,
    version: watch::Sender<u64>,
    orphaned: watch::Sender<bool>,
    bounds: watch::Sender<Bounds>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    broken: CancellationToken,
    applying: Mutex<()>,
}

/// One configuration, ready for use.
pub struct View {
    /// As it was read.
    pub config: Arc<GatewayConfig>,
    hash: String,
    /// In the order of the configuration.
    pub pools: Vec<Arc<Entry>>,
    by_name: HashMap<String, usize>,
    by_model: HashMap<String, usize>,
    /// The answer to `GET /v1/models`.
    pub models: bytes::Bytes,
}

/// One pool of a configuration.
#[derive(Clone)]
pub struct Entry {
    /// Reaches its scheduler.
    pub handle: PoolHandle,
    /// As configured.
    pub config: Arc<PoolConfig>,
    /// What holds for its requests.
    pub policy: Arc<Policy>,
}

impl View {
    fn empty() -> Self {
        let config = GatewayConfig {
            limits: Default::default(),
            timeouts: Default::default(),
            pools: Vec::new(),
            policies: Vec::new(),
        };
        Self::new(config, String::new(), Vec::new())
    }

    fn new(config: GatewayConfig, hash: String, pools: Vec<Arc<Entry>>) -> Self {
        let mut by_name = HashMap::new();
        let mut by_model = HashMap::new();
        for (index, entry) in pools.iter().enumerate() {
            by_name.insert(entry.config.name.clone(), index);
            for name in std::iter::once(&entry.config.model).chain(&entry.config.aliases) {
                by_model.insert(name.clone(), index);
            }
        }
        let models = models::list(pools.iter().map(|entry| entry.config.as_ref()));
        Self {
            config: Arc::new(config),
            hash,
            pools,
            by_name,
            by_model,
            models,
        }
    }

    /// The pool of that name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&Arc<Entry>> {
        self.pools.get(*self.by_name.get(name)?)
    }

    /// The pool that serves a model name or alias.
    #[must_use]
    pub fn by_model(&self, model: &str) -> Option<&Arc<Entry>> {
        self.pools.get(*self.by_model.get(model)?)
    }

    /// The pool a request is for: the one its path names, else the one that serves its model.
    ///
    /// # Errors
    /// `UnknownPool`, `UnknownModel`, `Invalid` without either.
    pub fn pick(&self, pool: Option<&str>, model: Option<&str>) -> Result<&Arc<Entry>, Refusal> {
        match (pool, model) {
            (Some(pool), _) => self
                .by_name(pool)
                .ok_or_else(|| Refusal::UnknownPool { pool: bounded(pool) }),
            (None, Some(model)) => self.by_model(model).ok_or_else(|| Refusal::UnknownModel {
                model: model.to_owned(),
            }),
            (None, None) => Err(Refusal::invalid(
                "model",
                "`model` is missing; it picks the pool (or call /pools/NAME/v1/…)",
            )),
        }
    }
}

/// A pool's name from a path, cut to what a name can be.
fn bounded(pool: &str) -> String {
    pool.chars().take(63).collect()
}

impl Pools {
    /// A gateway without pools. `broken` is cancelled when a pool's task ends without having been told to.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, broken: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            view: ArcSwap::from_pointee(View::empty()),
            version: watch::Sender::new(0),
            bounds: watch::Sender::default(),
            orphaned: watch::Sender::new(false),
            metrics,
            tasks: TaskTracker::new(),
            broken,
            applying: Mutex::new(()),
        })
    }

    /// The configuration in force.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Puts a validated configuration in force; false when it equals the one in force. Pools keep their queue, their
    /// endpoints and what is in flight as long as name and UID stay; the waiting requests of a pool that is gone are
    /// refused. Limits and timeouts of connections hold for those made from then on.
    ///
    /// # Errors
    /// [`ConfigError`] when it is not valid; nothing changes then.
    pub fn apply(&self, config: GatewayConfig) -> Result<bool, ConfigError> {
        config.validate()?;
        let hash = config.hash()?;
        let _one_at_a_time = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.view.load_full();
        if old.hash == hash {
            return Ok(false);
        }
        let connect = Duration::from(config.timeouts.connect);
        let pools: Vec<Arc<Entry>> = config
            .pools
            .iter()
            .map(|pool| Arc::new(self.entry(&old, pool, Policy::for_pool(&config, &pool.name), connect)))
            .collect();
        let new = View::new(config, hash, pools);
        for entry in &old.pools {
            let kept = new
                .by_name(&entry.config.name)
                .is_some_and(|kept| kept.handle.uid() == entry.handle.uid());
            if !kept {
                entry.handle.close();
            }
        }
        let bounds = Bounds {
            limits: new.config.limits.clone(),
            timeouts: new.config.timeouts.clone(),
        };
        self.view.store(Arc::new(new));
        self.bounds.send_if_modified(|current| {
            let differs = *current != bounds;
            *current = bounds;
            differs
        });
        self.version.send_modify(|version| *version += 1);
        Ok(true)
    }

    fn entry(&self, old: &View, pool: &PoolConfig, policy: Policy, connect: Duration) -> Entry {
        let settings = settings(pool, &policy);
        let kept = old
            .by_name(&pool.name)
            .filter(|entry| entry.handle.uid() == pool.uid);
        let handle = match kept {
            Some(entry) => {
                if self::settings(&entry.config, &entry.policy) != settings {
                    entry.handle.notify(Event::Settings(settings));
                }
                entry.handle.set_connect(connect);
                entry.handle.clone()
            }
            None => self.start(pool, settings, connect),
        };
        fixed::reconcile(&handle, pool);
        Entry {
            handle,
            config: Arc::new(pool.clone()),
            policy: Arc::new(policy),
        }
    }

    fn start(&self, pool: &PoolConfig, settings: Settings, connect: Duration) -> PoolHandle {
        let (handle, task) = PoolHandle::start(PoolStart {
            name: pool.name.clone(),
            uid: pool.uid.clone(),
            settings,
            connect,
            metrics: self.metrics.pool(&pool.name),
        });
        let alarm = self.broken.clone().drop_guard();
        self.tasks.spawn(async move {
            task.await;
            // Reached at the regular end only; a panic drops the guard armed.
            alarm.disarm();
        });
        handle
    }

    /// The pool of that name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<PoolHandle> {
        self.view().by_name(name).map(|entry| entry.handle.clone())
    }

    /// The pool that serves a model name or alias.
    #[must_use]
    pub fn by_model(&self, model: &str) -> Option<PoolHandle> {
        self.view().by_model(model).map(|entry| entry.handle.clone())
    }

    /// All pools.
    #[must_use]
    pub fn list(&self) -> Vec<PoolHandle> {
        self.view()
            .pools
            .iter()
            .map(|entry| entry.handle.clone())
            .collect()
    }

    /// Rises whenever a new configuration is in force.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Whether the configuration was deleted, pools and all. The last one stays in force all the same: a deletion by
    /// mistake must not stop what is served.
    #[must_use]
    pub fn orphaned(&self) -> watch::Receiver<bool> {
        self.orphaned.subscribe()
    }

    /// The configuration was deleted, or is there (again).
    pub fn set_orphaned(&self, orphaned: bool) {
        self.orphaned
            .send_if_modified(|known| std::mem::replace(known, orphaned) != orphaned);
    }

    /// What bounds the traffic port; the defaults before the first configuration.
    #[must_use]
    pub fn bounds(&self) -> watch::Receiver<Bounds> {
        self.bounds.subscribe()
    }

    /// Refuses everything that waits and everything that still comes; for the end of the process.
    pub fn close(&self) {
        self.view().pools.iter().for_each(|entry| entry.handle.close());
    }

    /// The hash of the configuration in force; empty before the first.
    #[must_use]
    pub fn config_hash(&self) -> String {
        self.view().hash.clone()
    }
}

fn settings(pool: &PoolConfig, policy: &Policy) -> Settings {
    Settings {
        max_waiting: pool.hold.max_requests,
        max_waiting_bytes: pool.hold.max_bytes,
        hold_timeout: pool.hold.timeout.into(),
        wakes: pool.wakes,
        suspended: pool.suspended,
        max_workflows: policy.max_workflows(),
        first_batch: FIRST_BATCH,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Role;

    fn pools() -> Arc<Pools> {
        Pools::new(Metrics::new(Role::Gateway).unwrap(), CancellationToken::new())
    }

    fn config(yaml: &str) -> GatewayConfig {
        GatewayConfig::parse(yaml).unwrap()
    }

    #[tokio::test]
    async fn pools_are_picked_by_path_then_model() {
        let pools = pools();
        pools
            .apply(config(
                "pools: [{name: a, model: m, aliases: [n]}, {name: b, model: o}]",
            ))
            .unwrap();
        let view = pools.view();
        let pick = |pool, model| view.pick(pool, model).map(|entry| entry.handle.name().to_owned());
        assert_eq!(pick(None, Some("n")), Ok("a".into()));
        assert_eq!(pick(Some("b"), Some("n")), Ok("b".into()));
        assert_eq!(pick(Some("b"), None), Ok("b".into()));
        assert_eq!(
            pick(None, Some("x")),
            Err(Refusal::UnknownModel { model: "x".into() })
        );
        assert_eq!(
            pick(Some("x"), None),
            Err(Refusal::UnknownPool { pool: "x".into() })
        );
        assert!(
            matches!(pick(None, None), Err(Refusal::Invalid { param: Some(param), .. }) if param == "model")
        );
    }

    #[tokio::test]
    async fn a_pool_lives_on_while_its_name_and_uid_stay() {
        let pools = pools();
        let changes = pools.changes();
        assert!(
            pools
                .apply(config("pools: [{name: a, uid: '1', model: m}]"))
                .unwrap()
        );
        assert!(
            !pools
                .apply(config("pools: [{name: a, uid: '1', model: m}]"))
                .unwrap()
        );
        let first = pools.by_name("a").unwrap();
        let id = first.set_endpoint(super::super::scheduler::EndpointInfo {
            name: "e".into(),
            uid: "e".into(),
            address: "127.0.0.1:1".into(),
            sidecar: true,
        });
        assert!(
            pools
                .apply(config("pools: [{name: a, uid: '1', model: other}]"))
                .unwrap()
        );
        assert_eq!(pools.by_model("other").unwrap().endpoints()[0].0, id);
        assert!(
            pools
                .apply(config("pools: [{name: a, uid: '2', model: other}]"))
                .unwrap()
        );
        assert!(pools.by_name("a").unwrap().endpoints().is_empty());
        assert_eq!(*changes.borrow(), 3);
    }
}
