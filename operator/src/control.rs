//! Client of the control protocol: one event stream to every gateway pod, and orders the other way. A stream that
//! stays silent for three heartbeats is cut; until the next one says otherwise its pools are unknown.

pub mod board;
pub mod exchange;
pub mod stream;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet},
};
use weir_crds::names;
use weir_wire::{control::OrderAnswer, control::OrderRequest, control::orders_path, ports};

use self::board::{Board, Replica};
use crate::{key::Key, metrics::Metrics};

/// Longest wait for the answer to an order.
pub const ORDER_TIMEOUT: Duration = Duration::from_secs(2);
/// First pause before a broken stream is opened again; doubled up to [`MAX_RECONNECT`].
const FIRST_RECONNECT: Duration = Duration::from_millis(100);
/// Longest pause before a broken stream is opened again.
const MAX_RECONNECT: Duration = Duration::from_secs(5);

/// The control tokens of all gateways, as their Secrets have them.
#[derive(Debug, Default)]
pub struct Tokens(Mutex<BTreeMap<Key, String>>);

impl Tokens {
    /// The token of a gateway, once its Secret was read.
    #[must_use]
    pub fn get(&self, gateway: &Key) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(gateway)
            .cloned()
    }

    /// Keeps the token of a gateway; true when it is new.
    pub fn set(&self, gateway: &Key, token: &str) -> bool {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.insert(gateway.clone(), token.to_owned()).as_deref() != Some(token)
    }

    /// Forgets a gateway that is gone.
    pub fn forget(&self, gateway: &Key) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(gateway);
    }
}

/// A gateway pod that may have requests: it has an address and its container runs.
#[must_use]
pub fn replica_of(pod: &Pod) -> Option<(Key, Replica)> {
    let gateway = pod.labels().get(names::label::GATEWAY)?;
    if pod.labels().get(names::label::COMPONENT)? != names::component::GATEWAY {
        return None;
    }
    let status = pod.status.as_ref()?;
    let address = status.pod_ip.as_ref()?.parse().ok()?;
    let container = status
        .container_statuses
        .iter()
        .flatten()
        .find(|found| found.name == names::container::GATEWAY)?;
    let running = container.state.as_ref()?.running.as_ref()?;
    let replica = Replica {
        pod: pod.name_any(),
        uid: pod.uid()?,
        address: SocketAddr::new(address, ports::ADMIN),
        started: running.started_at.as_ref().map(|at| at.0),
    };
    Some((Key::new(&pod.namespace().unwrap_or_default(), gateway), replica))
}

/// Keeps one stream per gateway pod, for ever. `pods` lists the pods now, `changed` says when to look again.
pub async fn keep_streams(
    board: Arc<Board>,
    tokens: Arc<Tokens>,
    metrics: Metrics,
    pods: impl Fn() -> Vec<Arc<Pod>>,
    changed: Arc<Notify>,
) {
    let mut tasks = JoinSet::new();
    let mut running: BTreeMap<(Key, Replica), AbortHandle> = BTreeMap::new();
    loop {
        let wanted: BTreeSet<(Key, Replica)> = pods().iter().filter_map(|pod| replica_of(pod)).collect();
        board.expect(&wanted);
        running.retain(|entry, task| {
            let keep = wanted.contains(entry);
            if !keep {
                task.abort();
            }
            keep
        });
        for entry in wanted {
            running.entry(entry.clone()).or_insert_with(|| {
                let (gateway, replica) = entry;
                tasks.spawn(follow(
                    Arc::clone(&board),
                    Arc::clone(&tokens),
                    metrics.clone(),
                    gateway,
                    replica,
                ))
            });
        }
        tokio::select! {
            () = changed.notified() => {}
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "a control stream panicked");
                    return;
                }
            }
        }
    }
}

async fn follow(board: Arc<Board>, tokens: Arc<Tokens>, metrics: Metrics, gateway: Key, replica: Replica) {
    let mut pause = FIRST_RECONNECT;
    loop {
        if let Some(token) = tokens.get(&gateway) {
            let live = Live {
                board: &board,
                metrics: &metrics,
                gateway: &gateway,
                replica: &replica,
                said: false,
            };
            let (said, error) = live.read(&token).await;
            tracing::info!(gateway = %gateway, pod = replica.pod, %error, "a control stream ended");
            if said {
                metrics.control_breaks.inc();
                pause = FIRST_RECONNECT;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_RECONNECT);
    }
}

/// One open stream; when it goes, so does what it told.
struct Live<'a> {
    board: &'a Board,
    metrics: &'a Metrics,
    gateway: &'a Key,
    replica: &'a Replica,
    said: bool,
}

impl Live<'_> {
    /// Reads until the stream breaks; whether it ever said anything, and why it broke.
    async fn read(mut self, token: &str) -> (bool, stream::StreamError) {
        let error = stream::read(self.replica.address, token, |event| {
            if !self.said {
                self.said = true;
                self.metrics.control_streams.inc();
                tracing::info!(gateway = %self.gateway, pod = self.replica.pod, "a control stream began");
            }
            self.board
                .hear(self.gateway, &self.replica.uid, event, jiff::Timestamp::now());
        })
        .await;
        (self.said, error)
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        if self.said {
            self.metrics.control_streams.dec();
        }
        self.board.lose(self.gateway, &self.replica.uid);
    }
}

/// Sends one order to one replica.
///
/// # Errors
/// [`exchange::HttpError`] when the replica did not answer in [`ORDER_TIMEOUT`] or refused.
pub async fn order(
    replica: &Replica,
    token: &str,
    pool: &str,
    request: &OrderRequest,
) -> Result<OrderAnswer, exchange::HttpError> {
    let path = orders_path(pool);
    let sent = exchange::post_json(replica.address, token, &path, request);
    tokio::time::timeout(ORDER_TIMEOUT, sent)
        .await
        .map_err(|_| exchange::HttpError::Timeout(ORDER_TIMEOUT))?
}
