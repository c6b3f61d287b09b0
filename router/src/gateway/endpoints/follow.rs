//! The task that follows one pod: polls its sidecar for news and tells the pool.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::StatusCode;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use weir_schedule::{EndpointId, Event};
use weir_wire::sidecar::{EngineFigures, EngineState, STATE};

use super::{
    Discovery,
    follower::{Follower, Silence, Tell},
    observe::Target,
};
use crate::{
    admin::TokenFile,
    fetch::{FetchError, Get, get},
    gateway::{
        homes,
        scheduler::{EngineLoad, PoolHandle},
    },
    metrics::{Metrics, PollResult},
};

/// How long a sidecar may keep a poll without news; also how soon a pod that fell silent is noticed.
const POLL: Duration = Duration::from_secs(10);
/// On top of it, for the answer to arrive.
const POLL_SLACK: Duration = Duration::from_secs(3);
/// Longest state, bytes.
const MAX_STATE: usize = 64 << 10;
/// Between two polls, so that a sidecar that always has news cannot keep a core busy.
const GAP: Duration = Duration::from_millis(20);
/// First and longest pause after a failed poll.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The pool's view of a pod, closed once: after that nothing the follower still has in hand reaches the pool.
struct Line {
    pool: PoolHandle,
    id: EndpointId,
    open: Mutex<bool>,
}

impl Line {
    fn tell(&self, event: Event) {
        if *self.open.lock().unwrap_or_else(PoisonError::into_inner) {
            self.pool.notify(event);
        }
    }

    fn close(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

/// The discovery's hold on a follower.
pub(super) struct Followed {
    name: String,
    line: Arc<Line>,
    kubelet: watch::Sender<bool>,
    stop: CancellationToken,
}

impl Followed {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn kubelet(&self, ready: bool) {
        self.kubelet.send_replace(ready);
    }

    /// The pod is leaving: nothing new goes there, what runs there goes on.
    pub(super) fn withdraw(&self) {
        self.stop.cancel();
        self.line.close();
        self.line.pool.notify(Event::EndpointDraining(self.line.id, true));
        self.line.pool.notify(Event::EndpointNotReady(self.line.id));
    }

    /// The pod is gone.
    pub(super) fn forget(self) {
        self.stop.cancel();
        self.line.close();
        self.line.pool.remove_endpoint(self.line.id);
    }
}

/// One pod's follower.
pub(super) struct Follow {
    uid: String,
    admin: SocketAddr,
    line: Arc<Line>,
    kubelet: watch::Receiver<bool>,
    stop: CancellationToken,
    token: TokenFile,
    metrics: Arc<Metrics>,
}

impl Follow {
    pub(super) fn new(
        pool: PoolHandle,
        id: EndpointId,
        target: &Target,
        from: &Discovery,
    ) -> (Followed, Self) {
        let line = Arc::new(Line {
            pool,
            id,
            open: Mutex::new(true),
        });
        let (sender, kubelet) = watch::channel(target.ready);
        let stop = CancellationToken::new();
        let followed = Followed {
            name: target.name.clone(),
            line: Arc::clone(&line),
            kubelet: sender,
            stop: stop.clone(),
        };
        let follow = Self {
            uid: target.uid.clone(),
            admin: SocketAddr::new(target.address, from.sidecar_port),
            line,
            kubelet,
            stop,
            token: from.token.clone(),
            metrics: Arc::clone(&from.metrics),
        };
        (followed, follow)
    }

    /// Follows until stopped. `asked` is dropped after the first poll.
    pub(super) async fn run(self, asked: Option<mpsc::Sender<()>>) {
        let stop = self.stop.clone();
        // Dropping the future drops the poll with it.
        let _ = stop.run_until_cancelled(self.polls(asked)).await;
    }

    async fn polls(&self, mut asked: Option<mpsc::Sender<()>>) {
        let mut kubelet = self.kubelet.clone();
        let mut follower = Follower::new(*kubelet.borrow_and_update());
        let mut failures = 0;
        let mut shown = None;
        loop {
            let polled = tokio::select! {
                polled = self.poll(follower.after()) => polled,
                ready = changed(&mut kubelet) => {
                    self.tell(follower.kubelet(ready)).await;
                    continue;
                }
            };
            let pause = match polled {
                Ok(state) => {
                    failures = 0;
                    let figures = state.engine.as_ref().map(load);
                    if shown != figures {
                        self.line.pool.set_engine_load(self.line.id, figures);
                        shown = figures;
                    }
                    self.tell(follower.answered(&state)).await;
                    GAP
                }
                Err(silence) => {
                    failures += 1;
                    if failures == 1 && silence == Silence::Unclear {
                        tracing::warn!(uid = %self.uid, "sidecar does not tell its state, the kubelet decides");
                    }
                    self.tell(follower.silent(silence)).await;
                    pause(&self.uid, failures)
                }
            };
            drop(asked.take());
            sleep(pause).await;
        }
    }

    async fn tell(&self, tells: Vec<Tell>) {
        let endpoint = self.line.id;
        for tell in tells {
            match tell {
                Tell::Homes => self.tell_homes().await,
                Tell::Ready(concurrency) => self.line.tell(Event::EndpointReady {
                    endpoint,
                    concurrency,
                }),
                Tell::NotReady => self.line.tell(Event::EndpointNotReady(endpoint)),
            }
        }
    }

    async fn tell_homes(&self) {
        match homes::ask(self.admin, self.token.bearer()).await {
            Ok(homes) if homes.is_empty() => {}
            Ok(homes) => {
                tracing::info!(uid = %self.uid, workflows = homes.len(), "pod remembers workflows");
                self.line.tell(Event::Remembered {
                    endpoint: self.line.id,
                    homes,
                });
            }
            Err(error) => tracing::warn!(uid = %self.uid, error = %error, "pod's workflows are unknown"),
        }
    }

    async fn poll(&self, after: u64) -> Result<EngineState, Silence> {
        let target = format!("{STATE}?after={after}&waitMs={}", POLL.as_millis());
        let answer = get(Get {
            address: self.admin,
            target: &target,
            bearer: self.token.bearer(),
            max_bytes: MAX_STATE,
            within: POLL + POLL_SLACK,
        });
        let (result, ended) = match answer.await {
            Ok((StatusCode::OK, body)) => match serde_json::from_slice(&body) {
                Ok(state) => (PollResult::Answered, Ok(state)),
                Err(error) => {
                    tracing::debug!(uid = %self.uid, error = %error, "sidecar's state is malformed");
                    (PollResult::Failed, Err(Silence::Unclear))
                }
            },
            Ok((status, _)) => {
                tracing::debug!(uid = %self.uid, status = status.as_u16(), "sidecar refused to tell its state");
                (PollResult::Failed, Err(Silence::Unclear))
            }
            Err(FetchError::Refused) => (PollResult::Refused, Err(Silence::Refused)),
            Err(FetchError::Timeout) => (PollResult::Timeout, Err(Silence::Unclear)),
            Err(FetchError::Connect(_) | FetchError::Exchange(_)) => {
                (PollResult::Failed, Err(Silence::Unclear))
            }
        };
        self.metrics
            .sidecar_polls
            .with_label_values(&[result.as_str()])
            .inc();
        ended
    }
}

/// What the pool shows of an engine's own figures.
fn load(figures: &EngineFigures) -> EngineLoad {
    EngineLoad {
        busy: figures.running.saturating_add(figures.waiting),
        kv_usage: figures.kv_usage,
        kv_capacity_tokens: figures.kv_capacity_tokens,
    }
}

/// The kubelet's next word; never, once the discovery let go of the pod.
async fn changed(kubelet: &mut watch::Receiver<bool>) -> bool {
    match kubelet.changed().await {
        Ok(()) => *kubelet.borrow_and_update(),
        Err(_) => std::future::pending().await,
    }
}

/// Doubles from failure to failure up to the longest pause, less up to a half that differs by pod and failure.
fn pause(uid: &str, failures: u32) -> Duration {
    let (first, longest) = PAUSES;
    let whole = first
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(longest);
    let mut hasher = DefaultHasher::new();
    (uid, failures).hash(&mut hasher);
    let thousandths = (hasher.finish() % 500) as u32;
    whole - whole / 1000 * thousandths
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn pauses_grow_stay_bounded_and_differ_by_pod() {
        for failures in 1..40 {
            let pause = pause("a", failures);
            let whole = PAUSES.0.saturating_mul(1 << (failures - 1).min(16)).min(PAUSES.1);
            assert!(pause <= whole && pause > whole / 2, "{failures}: {pause:?}");
        }
        let distinct: HashSet<Duration> = ["a", "b", "c", "d"].map(|uid| pause(uid, 9)).into();
        assert!(distinct.len() > 1, "{distinct:?}");
    }
}
