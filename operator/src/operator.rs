//! What every reconciler and scaler works with: the way to the API server, the caches, the board, and the queues
//! through which they ask for each other's work.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use kube::{
    Resource, ResourceExt,
    core::{DeserializeGuard, error_boundary::InvalidObject},
};
use tokio::sync::Notify;
use weir_crds::{LLMPool, WorkflowPolicy, names};

use crate::{
    caches::Caches,
    calls::Calls,
    control::{Tokens, board::Board},
    events::Events,
    gateway::config::WorkflowDefaults,
    key::Key,
    metrics::Metrics,
    queue::Queue,
    scaling::outlook::Outlooks,
};

/// The queues, and who else is told.
#[derive(Debug, Default)]
pub struct Work {
    /// Pools to reconcile.
    pub pools: Arc<Queue<Key>>,
    /// Policies to reconcile.
    pub policies: Arc<Queue<Key>>,
    /// Gateways to reconcile.
    pub gateways: Arc<Queue<Key>>,
    /// A gateway pod came, went or changed.
    pub gateway_pods: Arc<Notify>,
    /// A pool came or went.
    pub fleet: Arc<Notify>,
    shapes: Mutex<BTreeMap<(String, Key), String>>,
}

impl Work {
    /// An owned object changed: its pool or gateway is looked at. Status changes of Deployments are worth a look too.
    pub fn owned(&self, object: &impl Resource) {
        if let Some((is_engine, key)) = owner_of(object) {
            if is_engine {
                self.pools.add(key)
            } else {
                self.gateways.add(key)
            }
        }
    }

    /// A pool changed.
    pub fn pool_changed(&self, pool: &DeserializeGuard<LLMPool>, caches: &Caches) {
        let key = Key::of(pool);
        let exists = caches.pools.get(&key).is_some();
        if self.reshaped(pool, exists) {
            self.fleet.notify_one();
            // The last pool of a gateway takes along what is remembered of it, even where no object is left.
            if let Ok(pool) = &pool.0 {
                self.gateways.add(key.sibling(&pool.spec.gateway));
            }
            self.namespace_changed(&key.namespace, caches);
        }
        self.pools.add(key);
    }

    /// A policy changed.
    pub fn policy_changed(&self, policy: &impl Resource<DynamicType = ()>, caches: &Caches) {
        let key = Key::of(policy);
        let exists = caches.policies.get(&key).is_some();
        if self.reshaped(policy, exists) {
            self.namespace_changed(&key.namespace, caches);
        }
        self.policies.add(key);
    }

    /// Whether what others depend on (spec, labels, existence) changed since the last call; false for a status.
    fn reshaped<K: Resource<DynamicType = ()>>(&self, object: &K, exists: bool) -> bool {
        let meta = object.meta();
        let key = (K::kind(&()).into_owned(), Key::of(object));
        let mut shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        if !exists {
            shapes.remove(&key);
            return true;
        }
        let shape = format!(
            "{:?} {:?} {:?} {:?}",
            meta.uid, meta.generation, meta.labels, meta.deletion_timestamp
        );
        shapes.insert(key, shape.clone()) != Some(shape)
    }

    /// Looks at everything of a namespace: pools share model names and gateways, policies share pools.
    fn namespace_changed(&self, namespace: &str, caches: &Caches) {
        for pool in caches.pools.list(namespace) {
            self.pools.add(Key::of(pool.as_ref()));
            if let Ok(pool) = &pool.0 {
                self.gateways.add(Key::new(namespace, &pool.spec.gateway));
            }
        }
        for policy in caches.policies.list(namespace) {
            self.policies.add(Key::of(policy.as_ref()));
        }
        // A gateway that no pool names any more is known by its objects only.
        for config in caches.config_maps.list(namespace) {
            self.owned(config.as_ref());
        }
    }
}

/// The pool (true) or gateway (false) that an object of ours belongs to.
#[must_use]
pub fn owner_of(object: &impl Resource) -> Option<(bool, Key)> {
    let labels = object.meta().labels.as_ref()?;
    let namespace = object.namespace()?;
    let is_engine = match labels.get(names::label::COMPONENT)?.as_str() {
        names::component::ENGINE => true,
        names::component::GATEWAY => false,
        _ => return None,
    };
    let label = if is_engine {
        names::label::POOL
    } else {
        names::label::GATEWAY
    };
    Some((is_engine, Key::new(&namespace, labels.get(label)?)))
}

/// Everything a reconcile works with.
#[derive(Debug, Clone)]
pub struct Operator {
    /// The way to the API server.
    pub calls: Calls,
    /// What is known of the cluster.
    pub caches: Caches,
    /// What gateways say.
    pub board: Arc<Board>,
    /// Control tokens.
    pub tokens: Arc<Tokens>,
    /// What scalers found.
    pub outlooks: Arc<Outlooks>,
    /// Queues.
    pub work: Arc<Work>,
    /// Kubernetes events.
    pub events: Events,
    /// Metrics.
    pub metrics: Metrics,
    /// Image of gateways and sidecars.
    pub router_image: Arc<str>,
    /// What holds for workflows where no policy says otherwise.
    pub workflows: WorkflowDefaults,
    /// Unreadable objects that were reported, by kind and key, with their UID and generation.
    pub reported: Arc<Mutex<BTreeMap<(String, Key), Version>>>,
}

/// UID and generation of an object: one version of its spec.
pub type Version = (Option<String>, Option<i64>);

impl Operator {
    /// Whether this version of an unreadable object has not been reported yet; from now on it has.
    #[must_use]
    pub fn first_report(&self, kind: &str, key: &Key, invalid: &InvalidObject) -> bool {
        let version = (invalid.metadata.uid.clone(), invalid.metadata.generation);
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        reported.insert((kind.to_owned(), key.clone()), version.clone()) != Some(version)
    }

    /// Reports it again next time.
    pub fn forget_report(&self, kind: &str, key: &Key) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        reported.remove(&(kind.to_owned(), key.clone()));
    }

    /// All readable pools of a namespace that are not being deleted.
    #[must_use]
    pub fn pools_of(&self, namespace: &str) -> Vec<LLMPool> {
        let list = self.caches.pools.list(namespace);
        list.iter()
            .filter_map(|pool| pool.0.as_ref().ok())
            .filter(|pool| pool.metadata.deletion_timestamp.is_none())
            .cloned()
            .collect()
    }

    /// All readable policies of a namespace that are not being deleted.
    #[must_use]
    pub fn policies_of(&self, namespace: &str) -> Vec<WorkflowPolicy> {
        let list = self.caches.policies.list(namespace);
        list.iter()
            .filter_map(|policy| policy.0.as_ref().ok())
            .filter(|policy| policy.metadata.deletion_timestamp.is_none())
            .cloned()
            .collect()
    }
}
