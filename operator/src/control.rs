//! Client of the control protocol: one event stream to every gateway pod, and orders the other way. A stream that
//! stays silent for three heartbeats is cut; until the next one says otherwise its pools are unknown.

pub mod board;
pub mod exchange;
pub mod stream;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::{
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use weir_crds::names;
use weir_wire::{control::OrderAnswer, control::OrderRequest, control::orders_path, ports};

use self::board::{Board, Replica};
use crate::{key::Key, metrics::Metrics, operator::Operator};

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

/// Keeps one stream per gateway pod, until one panics.
pub async fn keep_streams(operator: Operator) {
    let mut tasks = JoinSet::new();
    let mut running: BTreeMap<(Key, Replica), AbortHandle> = BTreeMap::new();
    loop {
        let pods = operator.caches.pods.all();
        let wanted: BTreeSet<(Key, Replica)> = pods.iter().filter_map(|pod| replica_of(pod)).collect();
        operator.board.expect(&wanted);
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
                tasks.spawn(
                    Follower {
                        operator: operator.clone(),
                        gateway,
                        replica,
                    }
                    .follow(),
                )
            });
        }
        tokio::select! {
            () = operator.work.gateway_pods.notified() => {}
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "a control stream panicked");
                    return;
                }
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a stream lasted is measured on this process's monotonic clock"
)]
fn now() -> Instant {
    Instant::now()
}

/// The pause after a stream that lasted so long, given the pause before it: a stream that breaks again and again as
/// soon as it is open, whatever it said, is opened less and less often.
fn pause_after(before: Duration, lasted: Duration) -> Duration {
    if before.is_zero() || lasted > MAX_RECONNECT {
        FIRST_RECONNECT
    } else {
        (before * 2).min(MAX_RECONNECT)
    }
}

/// Follows one gateway pod for as long as it exists.
struct Follower {
    operator: Operator,
    gateway: Key,
    replica: Replica,
}

impl Follower {
    async fn follow(self) {
        let Self {
            operator:
                Operator {
                    board,
                    tokens,
                    metrics,
                    work,
                    ..
                },
            gateway,
            replica,
        } = &self;
        let mut pause = Duration::ZERO;
        loop {
            let began = now();
            if let Some(token) = tokens.get(gateway) {
                let live = Live {
                    board,
                    metrics,
                    gateway,
                    replica,
                    said: false,
                };
                let (said, error) = live.read(&token).await;
                tracing::info!(gateway = %gateway, pod = replica.pod, %error, "a control stream ended");
                if said {
                    metrics.control_breaks.inc();
                }
                if error.is_refusal() {
                    // The Secret may have been changed: reconciling the gateway reads it again.
                    work.gateways.add(gateway.clone());
                }
            }
            pause = pause_after(pause, began.elapsed());
            tokio::time::sleep(pause).await;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_breaks_at_once_is_opened_less_and_less_often() {
        let mut pause = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pause = pause_after(pause, Duration::from_millis(20));
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        assert_eq!(pause_after(pause, Duration::from_secs(60)), FIRST_RECONNECT);
    }
}
