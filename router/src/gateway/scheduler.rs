//! One pool: a task that drives the pure scheduler, and the handle through which everything else reaches it.
//!
//! The channel to the task is unbounded on purpose, so that the data path never waits for it: it holds at most one
//! submission, one cancellation and one end per open connection, and connections are bounded.

mod driver;
mod ledger;
mod recent;

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::HeaderValue;
use tokio::sync::{mpsc, oneshot, watch};
use weir_schedule::{Decision, EndpointId, Event, Outcome, Request, RequestId, Settings, ShedReason};
use weir_wire::control::{Order, OrderAnswer, PoolState};

pub use self::ledger::{FirstByte, Record};
use crate::{
    metrics::PoolMetrics,
    proxy::upstream::{Upstream, UpstreamSettings},
};

/// An idle connection to an engine is given up after this; uvicorn closes at 5 s.
const ENGINE_IDLE_AGE: Duration = Duration::from_secs(4);
/// The same for a sidecar, which keeps connections for longer than a minute.
const SIDECAR_IDLE_AGE: Duration = Duration::from_secs(60);

/// What discovery knows of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointInfo {
    /// Pod name, or the static endpoint's name.
    pub name: String,
    /// Pod UID, or the static endpoint's name.
    pub uid: String,
    /// `host:port` of its traffic port.
    pub address: String,
    /// A Weir sidecar listens there, not the engine itself.
    pub sidecar: bool,
}

/// An endpoint that requests can be sent to.
#[derive(Debug)]
pub struct Endpoint {
    /// Its name in the scheduler.
    pub id: EndpointId,
    /// What discovery knows of it.
    pub info: EndpointInfo,
    /// Its name as a header value.
    pub label: HeaderValue,
    /// Its connections.
    pub upstream: Arc<Upstream>,
}

/// A request may go.
#[derive(Debug)]
pub struct Admission {
    /// Where to.
    pub endpoint: Arc<Endpoint>,
    /// Why there.
    pub decision: Decision,
    /// The place reserved for it; dropping it gives the place back as a cancelled request.
    pub permit: Permit,
}

/// A request may not go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shed {
    /// Why.
    pub reason: ShedReason,
    /// When trying again may help.
    pub retry_after: Option<Duration>,
}

/// An order that was not carried out because of who gave it or to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// A higher epoch has been obeyed.
    #[error("an order of epoch {seen} has been obeyed")]
    Stale {
        /// That epoch.
        seen: u64,
    },
    /// The pool is being removed.
    #[error("the pool is gone")]
    Gone,
}

/// What the task is told.
enum Command {
    Submit {
        request: Request,
        again: bool,
        reply: oneshot::Sender<Result<Admission, Shed>>,
    },
    Event(Event),
    Finished(RequestId, Outcome, Record),
    Tally(Record),
    SetEndpoint(Arc<Endpoint>),
    RemoveEndpoint(EndpointId),
    EngineFigures(EndpointId, Option<EngineLoad>),
    Order(u64, Order, oneshot::Sender<Result<OrderAnswer, OrderError>>),
    Look(oneshot::Sender<PoolState>),
    Close,
}

/// What an engine says about itself that the operator wants to know.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineLoad {
    /// Running and waiting requests.
    pub busy: u32,
    /// KV use of running requests, 0 to 1.
    pub kv_usage: Option<f64>,
    /// KV capacity in tokens.
    pub kv_capacity_tokens: Option<u64>,
}

/// Reaches one pool's task. Cloning is cheap.
#[derive(Clone)]
pub struct PoolHandle(Arc<Inner>);

struct Inner {
    name: String,
    uid: String,
    commands: mpsc::UnboundedSender<Command>,
    states: watch::Receiver<Arc<PoolState>>,
    metrics: Arc<PoolMetrics>,
    requests: AtomicU64,
    endpoints: Mutex<HashMap<String, (EndpointId, EndpointInfo)>>,
    next_endpoint: AtomicU32,
    connect: Mutex<Duration>,
}

/// What a pool's task needs to begin.
pub struct PoolStart {
    /// The pool's name.
    pub name: String,
    /// The LLMPool's UID; empty for a standalone gateway.
    pub uid: String,
    /// First settings.
    pub settings: Settings,
    /// To connect to an endpoint.
    pub connect: Duration,
    /// The pool's metrics.
    pub metrics: Arc<PoolMetrics>,
}

impl PoolHandle {
    /// A handle, and the task to spawn. The task ends when the pool is closed and its last request has ended.
    pub fn start(start: PoolStart) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (state, states) = watch::channel(Arc::new(PoolState {
            pool: start.name.clone(),
            uid: start.uid.clone(),
            ..PoolState::default()
        }));
        let driver = driver::Driver::new(&start, state, commands.downgrade());
        let handle = Self(Arc::new(Inner {
            name: start.name,
            uid: start.uid,
            commands,
            states,
            metrics: start.metrics,
            requests: AtomicU64::new(0),
            endpoints: Mutex::default(),
            next_endpoint: AtomicU32::new(0),
            connect: Mutex::new(start.connect),
        }));
        (handle, driver.run(receiver))
    }

    /// The pool's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The LLMPool's UID; empty for a standalone gateway.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.0.uid
    }

    /// The pool's metrics.
    #[must_use]
    pub fn metrics(&self) -> &Arc<PoolMetrics> {
        &self.0.metrics
    }

    /// Asks for an endpoint; the request's `id` is set here. Dropping the future withdraws the request.
    #[must_use]
    pub fn submit(&self, request: Request) -> Waiting {
        self.ask(request, false)
    }

    /// As [`Self::submit`], for a request that was admitted once and failed by its endpoint.
    #[must_use]
    pub fn resubmit(&self, request: Request) -> Waiting {
        self.ask(request, true)
    }

    fn ask(&self, mut request: Request, again: bool) -> Waiting {
        request.id = RequestId(self.0.requests.fetch_add(1, Ordering::Relaxed));
        let (reply, answer) = oneshot::channel();
        let id = request.id;
        self.send(Command::Submit {
            request,
            again,
            reply,
        });
        Waiting {
            id,
            answer,
            pool: Some(self.clone()),
        }
    }

    /// Tells the scheduler what happened to an endpoint. Never blocks.
    pub fn notify(&self, event: Event) {
        self.send(Command::Event(event));
    }

    /// What the engine behind an endpoint says about itself; `None` when that became unknown.
    pub fn set_engine_load(&self, endpoint: EndpointId, load: Option<EngineLoad>) {
        self.send(Command::EngineFigures(endpoint, load));
    }

    /// Counts the end of a request whose last attempt was already given back.
    pub fn record(&self, record: Record) {
        self.send(Command::Tally(record));
    }

    /// Obeys an order of the operator.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn order(&self, epoch: u64, order: Order) -> Result<OrderAnswer, OrderError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Order(epoch, order, reply));
        answer.await.unwrap_or(Err(OrderError::Gone))
    }

    /// The pool's state, as the operator is to see it: urgent changes at once, the rest once a second.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<Arc<PoolState>> {
        self.0.states.clone()
    }

    /// Makes an endpoint known (not yet ready). The same UID at the same address keeps its id; at another address it is
    /// a new endpoint and the old one is gone.
    pub fn set_endpoint(&self, info: EndpointInfo) -> EndpointId {
        let mut endpoints = self.0.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((id, known)) = endpoints.get(&info.uid) {
            if *known == info {
                return *id;
            }
            self.send(Command::RemoveEndpoint(*id));
        }
        let id = EndpointId(self.0.next_endpoint.fetch_add(1, Ordering::Relaxed));
        self.send(Command::SetEndpoint(Arc::new(self.endpoint(id, &info))));
        endpoints.insert(info.uid.clone(), (id, info));
        id
    }

    fn endpoint(&self, id: EndpointId, info: &EndpointInfo) -> Endpoint {
        let idle_age = if info.sidecar {
            SIDECAR_IDLE_AGE
        } else {
            ENGINE_IDLE_AGE
        };
        let connect = *self.0.connect.lock().unwrap_or_else(PoisonError::into_inner);
        Endpoint {
            id,
            label: HeaderValue::from_str(&info.name).unwrap_or(HeaderValue::from_static("unnamed")),
            upstream: Upstream::new(&info.address, UpstreamSettings { connect, idle_age }),
            info: info.clone(),
        }
    }

    /// How long connecting to an endpoint may take, from the next request on. Requests on their way keep the limit
    /// and the connection that they began with.
    pub fn set_connect(&self, connect: Duration) {
        let endpoints = self.0.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(
            &mut *self.0.connect.lock().unwrap_or_else(PoisonError::into_inner),
            connect,
        );
        if before == connect {
            return;
        }
        for (id, info) in endpoints.values() {
            self.send(Command::SetEndpoint(Arc::new(self.endpoint(*id, info))));
        }
    }

    /// Forgets an endpoint and its bindings; requests in flight there go on.
    pub fn remove_endpoint(&self, id: EndpointId) {
        let mut endpoints = self.0.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.retain(|_, (known, _)| *known != id);
        self.send(Command::RemoveEndpoint(id));
    }

    /// The pool's state at this moment; `None` when its task has ended. What [`Self::states`] holds is as old as the last
    /// change, and so are the ages in it.
    pub async fn state_now(&self) -> Option<PoolState> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Look(reply));
        answer.await.ok()
    }

    /// The endpoints known now.
    #[must_use]
    pub fn endpoints(&self) -> Vec<(EndpointId, EndpointInfo)> {
        let endpoints = self.0.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.values().cloned().collect()
    }

    /// Refuses what waits and what still comes; what is in flight goes on.
    pub fn close(&self) {
        self.send(Command::Close);
    }

    fn send(&self, command: Command) {
        // A task that is gone answers every submission by dropping its reply; nothing else needs it.
        let _ = self.0.commands.send(command);
    }
}

/// A submission that waits for its admission.
pub struct Waiting {
    id: RequestId,
    answer: oneshot::Receiver<Result<Admission, Shed>>,
    pool: Option<PoolHandle>,
}

impl Future for Waiting {
    type Output = Result<Admission, Shed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = std::task::ready!(Pin::new(&mut self.answer).poll(cx));
        self.pool = None;
        Poll::Ready(answer.unwrap_or(Err(Shed {
            reason: ShedReason::NoCapacity,
            retry_after: None,
        })))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.notify(Event::Cancel(self.id));
        }
    }
}

/// A reserved place at an endpoint, given back exactly once.
#[derive(Debug)]
pub struct Permit {
    id: RequestId,
    commands: Option<mpsc::UnboundedSender<Command>>,
}

impl Permit {
    /// Tells the scheduler that the answer began.
    pub fn first_byte(&self) {
        if let Some(commands) = &self.commands {
            let _ = commands.send(Command::Event(Event::FirstByte(self.id)));
        }
    }

    /// Gives the place back.
    pub fn finish(mut self, outcome: Outcome, record: Record) {
        self.give_back(outcome, record);
    }

    fn give_back(&mut self, outcome: Outcome, record: Record) {
        if let Some(commands) = self.commands.take() {
            let _ = commands.send(Command::Finished(self.id, outcome, record));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give_back(Outcome::Cancelled, Record::Cancelled);
    }
}

#[cfg(test)]
pub(super) mod fixtures;
#[cfg(test)]
mod tests;
