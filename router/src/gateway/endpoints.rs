//! Finds endpoints by itself: watches the gateway's engine pods, asks each pod's sidecar for its state, and tells the
//! pools. Routing needs neither the operator nor, once pods are known, the API server.
//!
//! A pod is followed by one task from the moment it has an address: a long poll of its sidecar, with the kubelet's
//! Ready condition as fallback. `observe.rs` decides what follows from pods, `follower.rs` what follows from answers.

mod config_map;
mod follow;
mod follower;
mod observe;
mod readiness;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use weir_crds::names;
use weir_schedule::EndpointId;
use weir_wire::ports;

use super::pools::Pools;
use super::scheduler::{EndpointInfo, PoolHandle};
use crate::{
    admin::TokenFile,
    metrics::{Metrics, Watched},
};
use follow::{Follow, Followed};
use observe::{Change, Pods, Target};
pub use readiness::Readiness;

/// Longest wait for the first answers of the pods of the first list.
const FIRST_ANSWERS: Duration = Duration::from_secs(3);

/// How long the API server keeps one watch; a connection that died unnoticed is given up a little later.
const WATCH_SECONDS: u32 = 120;
/// Longest silence of the API server: longer than a watch, so that only a dead connection meets it.
const API_SILENCE: Duration = Duration::from_secs(150);
/// To connect to the API server.
const API_CONNECT: Duration = Duration::from_secs(5);

/// A client for the API server of the environment (in the cluster: the pod's service account), with bounds on all
/// waiting.
///
/// # Errors
/// [`kube::Error`] when the environment names no usable cluster.
pub async fn client() -> kube::Result<Client> {
    let mut config = kube::Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.connect_timeout = Some(API_CONNECT);
    config.read_timeout = Some(API_SILENCE);
    Client::try_from(config)
}

/// A gateway's view of Kubernetes.
pub struct Discovery {
    /// The API server.
    pub client: Client,
    /// The gateway's namespace.
    pub namespace: String,
    /// The gateway's name.
    pub gateway: String,
    /// Told of configurations and endpoints.
    pub pools: Arc<Pools>,
    /// For asking sidecars.
    pub token: TokenFile,
    /// The sidecars' admin port ([`ports::ADMIN`]).
    pub sidecar_port: u16,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What the readiness probe waits for.
    pub readiness: Arc<Readiness>,
}

impl Discovery {
    /// Watches until `stop`; errors of the API server are waited out, with backoff. An earlier end is a defect, and the
    /// process should end with it.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.watch_configuration() => {}
            () = self.watch_pods() => {}
        }
    }

    async fn watch_pods(&self) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let selector = format!(
            "{}={},{}={}",
            names::label::GATEWAY,
            self.gateway,
            names::label::COMPONENT,
            names::component::ENGINE
        );
        let mut events = std::pin::pin!(
            watcher(
                api,
                watcher::Config::default()
                    .labels(&selector)
                    .timeout(WATCH_SECONDS)
            )
            .default_backoff()
        );
        let mut changes = self.pools.changes();
        let mut pods = Pods::default();
        let mut following = Following::new(self);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => {
                        if pods.observe(&event) {
                            following.advance(&pods);
                        }
                    }
                    Some(Err(error)) => self.watch_failed(Watched::Pods, &error),
                    None => return,
                },
                changed = changes.changed() => match changed {
                    Ok(()) => following.advance(&pods),
                    Err(_) => return,
                },
                Some(ended) = following.tasks.join_next(), if !following.tasks.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(error = %error, "a pod's follower failed");
                        return;
                    }
                }
            }
        }
    }

    fn watch_failed(&self, what: Watched, error: &watcher::Error) {
        self.metrics
            .watch_errors
            .with_label_values(&[what.as_str()])
            .inc();
        tracing::warn!(resource = what.as_str(), error = %error, "watch failed, trying again");
    }
}

/// The pods followed, and the tasks that follow them; all end when this is dropped.
struct Following<'a> {
    discovery: &'a Discovery,
    targets: BTreeMap<String, Target>,
    followed: BTreeMap<String, Followed>,
    tasks: JoinSet<()>,
    /// Held by every follower until its first answer; gone once the first of them are awaited.
    first: Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>,
}

impl<'a> Following<'a> {
    fn new(discovery: &'a Discovery) -> Self {
        Self {
            discovery,
            targets: BTreeMap::new(),
            followed: BTreeMap::new(),
            tasks: JoinSet::new(),
            first: Some(mpsc::channel(1)),
        }
    }

    /// Follows what is to be followed, and nothing else.
    fn advance(&mut self, pods: &Pods) {
        let pools: BTreeMap<String, String> = self
            .discovery
            .pools
            .list()
            .into_iter()
            .map(|pool| (pool.name().to_owned(), pool.uid().to_owned()))
            .collect();
        for change in observe::advance(&mut self.targets, pods.wanted(&pools)) {
            self.carry_out(change);
        }
        self.discovery
            .metrics
            .pods_followed
            .set(self.followed.len() as i64);
        let readiness = &self.discovery.readiness;
        if pods.is_complete() {
            readiness.pods_listed();
        }
        if pods.is_complete() && readiness.is_configured() {
            self.await_first_answers();
        }
    }

    fn carry_out(&mut self, change: Change) {
        match change {
            Change::Forget(uid) => {
                if let Some(followed) = self.followed.remove(&uid) {
                    tracing::info!(pod = %followed.name(), "endpoint gone");
                    followed.forget();
                }
            }
            Change::Withdraw(uid) => {
                if let Some(followed) = self.followed.get(&uid) {
                    tracing::info!(pod = %followed.name(), "endpoint is leaving");
                    followed.withdraw();
                }
            }
            Change::Kubelet(uid, ready) => {
                if let Some(followed) = self.followed.get(&uid) {
                    followed.kubelet(ready);
                }
            }
            Change::Follow(target) => self.follow(target),
        }
    }

    fn follow(&mut self, target: Target) {
        let Some(pool) = self.discovery.pools.by_name(&target.pool) else {
            return;
        };
        let id = set_endpoint(&pool, &target);
        tracing::info!(pod = %target.name, pool = %target.pool, address = %target.address, "following pod");
        let (followed, follow) = Follow::new(pool, id, &target, self.discovery);
        let asked = self.first.as_ref().map(|(sender, _)| sender.clone());
        self.followed.insert(target.uid, followed);
        self.tasks.spawn(follow.run(asked));
    }

    /// Once, when configuration and pods are known: readiness waits until each follower has asked its pod.
    fn await_first_answers(&mut self) {
        let Some((sender, mut answers)) = self.first.take() else {
            return;
        };
        drop(sender);
        let readiness = Arc::clone(&self.discovery.readiness);
        self.tasks.spawn(async move {
            if timeout(FIRST_ANSWERS, answers.recv()).await.is_err() {
                tracing::warn!("some pods have not told their state yet; serving without them");
            }
            readiness.pods_asked();
        });
    }
}

fn set_endpoint(pool: &PoolHandle, target: &Target) -> EndpointId {
    pool.set_endpoint(EndpointInfo {
        name: target.name.clone(),
        uid: target.uid.clone(),
        address: SocketAddr::new(target.address, ports::TRAFFIC).to_string(),
        sidecar: true,
    })
}

#[cfg(test)]
mod tests;
