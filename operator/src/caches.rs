//! The objects the operator knows: one watch per kind and namespace, limited by label to its own objects, without
//! the parts nobody reads. All reconcilers and scalers read here; nobody lists.

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{DeserializeGuard, NamespaceResourceScope},
    runtime::{
        reflector::{self, ObjectRef, Store},
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use weir_crds::{LLMPool, WorkflowPolicy, names};

use crate::{admin::Health, key::Key, metrics::Metrics, rights};

/// Pause after a watch failed, doubled by each further failure in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(800);
/// Longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A kind that can be watched: namespaced, and known at compile time.
pub trait Watched:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// The objects of one kind.
#[derive(Debug, Clone)]
pub struct Cache<K: Resource<DynamicType = ()> + Clone + 'static>(Vec<Store<K>>);

impl<K: Resource<DynamicType = ()> + Clone + 'static> Cache<K> {
    /// The objects given, for ever: what a test needs.
    #[must_use]
    pub fn fixed(objects: Vec<K>) -> Self {
        let (store, mut writer) = reflector::store();
        for object in objects {
            writer.apply_watcher_event(&Event::Apply(object));
        }
        Self(vec![store])
    }

    /// The object of that name.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        let reference = ObjectRef::new(&key.name).within(&key.namespace);
        self.0.iter().find_map(|store| store.get(&reference))
    }

    /// All objects of a namespace, by name.
    #[must_use]
    pub fn list(&self, namespace: &str) -> Vec<Arc<K>> {
        self.select(|object| object.namespace().as_deref() == Some(namespace))
    }

    /// All objects, by namespace and name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<K>> {
        self.select(|_| true)
    }

    fn select(&self, which: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let mut found: Vec<Arc<K>> = self
            .0
            .iter()
            .flat_map(Store::state)
            .filter(|object| which(object))
            .collect();
        found.sort_by_cached_key(|object| (object.namespace(), object.name_any()));
        found
    }

    /// Waits until every store has had its first listing.
    pub async fn ready(&self) {
        for store in &self.0 {
            // An error says that the watch has ended: the process ends with it.
            drop(store.wait_until_ready().await);
        }
    }
}

/// Everything the operator watches.
#[derive(Debug, Clone)]
pub struct Caches {
    /// Pools, readable or not.
    pub pools: Cache<DeserializeGuard<LLMPool>>,
    /// Policies, readable or not.
    pub policies: Cache<DeserializeGuard<WorkflowPolicy>>,
    /// Engine and gateway Deployments.
    pub deployments: Cache<Deployment>,
    /// Engine and gateway pods, without their spec.
    pub pods: Cache<Pod>,
    /// Gateways' Services.
    pub services: Cache<Service>,
    /// Gateways' ServiceAccounts.
    pub service_accounts: Cache<ServiceAccount>,
    /// Gateways' Roles.
    pub roles: Cache<Role>,
    /// Gateways' RoleBindings.
    pub role_bindings: Cache<RoleBinding>,
    /// Gateways' ConfigMaps.
    pub config_maps: Cache<ConfigMap>,
    /// Disruption budgets of engines and gateways.
    pub budgets: Cache<PodDisruptionBudget>,
    /// NetworkPolicies of engines and gateways.
    pub network_policies: Cache<NetworkPolicy>,
}

impl Caches {
    /// Waits until everything was listed once.
    pub async fn ready(&self) {
        let Self {
            pools,
            policies,
            deployments,
            pods,
            services,
            service_accounts,
            roles,
            role_bindings,
            config_maps,
            budgets,
            network_policies,
        } = self;
        pools.ready().await;
        policies.ready().await;
        deployments.ready().await;
        pods.ready().await;
        services.ready().await;
        service_accounts.ready().await;
        roles.ready().await;
        role_bindings.ready().await;
        config_maps.ready().await;
        budgets.ready().await;
        network_policies.ready().await;
    }
}

/// Makes caches and the tasks that fill them.
pub struct Watches {
    client: Client,
    namespaces: Vec<String>,
    metrics: Metrics,
    health: Health,
    /// The tasks: each runs for ever.
    pub tasks: Vec<BoxFuture<'static, ()>>,
}

impl Debug for Watches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watches")
            .field("namespaces", &self.namespaces)
            .finish_non_exhaustive()
    }
}

impl Watches {
    /// Watches in these namespaces; in all when there is none.
    #[must_use]
    pub fn new(client: Client, namespaces: Vec<String>, metrics: Metrics, health: Health) -> Self {
        Self {
            client,
            namespaces,
            metrics,
            health,
            tasks: Vec::new(),
        }
    }

    /// Watches one of our own kinds; all objects are ours.
    pub fn kind<K: Watched>(
        &mut self,
        kind: &'static str,
        touched: impl Fn(&K) + Clone + Send + 'static,
    ) -> Cache<K> {
        self.watch(kind, &watcher::Config::default(), |_| (), touched)
    }

    /// Watches the objects of a kind that the operator manages, after `slim` took away what nobody reads.
    pub fn owned<K: Watched>(
        &mut self,
        kind: &'static str,
        slim: impl Fn(&mut K) + Clone + Send + 'static,
        touched: impl Fn(&K) + Clone + Send + 'static,
    ) -> Cache<K> {
        let ours = format!("{}={}", names::label::APP_MANAGED_BY, names::FIELD_MANAGER);
        self.watch(kind, &watcher::Config::default().labels(&ours), slim, touched)
    }

    fn watch<K: Watched>(
        &mut self,
        kind: &'static str,
        config: &watcher::Config,
        slim: impl Fn(&mut K) + Clone + Send + 'static,
        touched: impl Fn(&K) + Clone + Send + 'static,
    ) -> Cache<K> {
        let scopes: Vec<Api<K>> = if self.namespaces.is_empty() {
            vec![Api::all(self.client.clone())]
        } else {
            self.namespaces
                .iter()
                .map(|name| Api::namespaced(self.client.clone(), name))
                .collect()
        };
        let mut stores = Vec::new();
        for api in scopes {
            let (store, mut writer) = reflector::store();
            let before = store.clone();
            stores.push(store);
            let (slim, touched) = (slim.clone(), touched.clone());
            let errors = self.metrics.watch_errors.with_label_values(&[kind]);
            let health = self.health.clone();
            let name = api.resource_url().to_owned();
            let mut is_refused = false;
            // Not `default_backoff`: it begins anew with the event that announces a listing, before the API server
            // was asked, so that a refused listing would be asked for every second.
            let events = watcher(api, config.clone());
            let mut pause = FIRST_PAUSE;
            self.tasks.push(Box::pin(async move {
                let mut events = std::pin::pin!(events);
                while let Some(event) = events.next().await {
                    let event = match event {
                        Ok(event) => event.modify(|object| slim(object)),
                        Err(error) => {
                            errors.inc();
                            let (error, refused) = explained(&error);
                            tracing::warn!(kind, error, "a watch failed; it is tried again");
                            is_refused = refused;
                            health.refused(&name, refused.then_some(error));
                            tokio::time::sleep(pause).await;
                            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                            continue;
                        }
                    };
                    // The first event of a listing comes before the API server was asked.
                    if !matches!(event, Event::Init) {
                        pause = FIRST_PAUSE;
                        if std::mem::take(&mut is_refused) {
                            health.refused(&name, None);
                        }
                    }
                    // A listing replaces the whole store: what is missing from it has gone unseen.
                    let vanishing = if matches!(event, Event::InitDone) {
                        before.state()
                    } else {
                        Vec::new()
                    };
                    writer.apply_watcher_event(&event);
                    match &event {
                        Event::Apply(object) | Event::Delete(object) => touched(object),
                        Event::InitDone => {
                            vanishing.iter().for_each(|object| touched(object));
                            before.state().iter().for_each(|object| touched(object));
                        }
                        Event::Init | Event::InitApply(_) => {}
                    }
                }
            }));
        }
        Cache(stores)
    }
}

/// What a watch says, and whether the API server refuses it: that does not pass by itself.
fn explained(error: &watcher::Error) -> (String, bool) {
    let (watcher::Error::InitialListFailed(cause)
    | watcher::Error::WatchStartFailed(cause)
    | watcher::Error::WatchFailed(cause)) = error
    else {
        return (error.to_string(), false);
    };
    let refused = matches!(cause, kube::Error::Api(status) if matches!(status.code, 401 | 403));
    (rights::explained(cause), refused)
}

/// Takes the managed fields away.
pub fn without_managed_fields<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Takes away what is not read of a pod: its spec and managed fields.
pub fn status_only(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    pod.spec = None;
}
