//! What goes into the machine and what comes out.

use std::time::Duration;

/// Monotonic time since an origin the shell chooses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub Duration);

impl Time {
    /// The instant `span` later; saturates.
    #[must_use]
    pub const fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }

    /// From `earlier` to here; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// A request, named by the shell; never used twice in the life of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// An endpoint, named by the shell; a new pod is a new id, never used twice in the life of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u32);

/// A workflow's key: a hash the shell derives from tenant, pool and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workflow(pub [u8; 16]);

/// Priority classes, most urgent first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A person waits for the answer; overdue after 15 s.
    Interactive,
    /// An agent waits for the answer; overdue after 300 s.
    #[default]
    Standard,
    /// Nobody waits for the answer; overdue after 600 s.
    Batch,
}

impl Class {
    /// Waited this long, a request that brings no bound of its own is overdue.
    #[must_use]
    pub const fn bound(self) -> Duration {
        Duration::from_secs(match self {
            Self::Interactive => 15,
            Self::Standard => 300,
            Self::Batch => 600,
        })
    }
}

/// How strongly a workflow's turns go to its home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affinity {
    /// Home, unless it has had no room for `max_wait` while another endpoint has.
    Preferred {
        /// Longest wait for the home.
        max_wait: Duration,
    },
    /// Home for as long as it exists.
    Required,
    /// No home is looked up or kept.
    None,
}

/// Per-pool settings; a new value may arrive at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Most requests waiting (queued and held together).
    pub max_waiting: u32,
    /// Most body bytes waiting.
    pub max_waiting_bytes: u64,
    /// Longest hold while no endpoint is eligible.
    pub hold_timeout: Duration,
    /// Something can start an endpoint: with none eligible, hold. Else shed [`ShedReason::NoCapacity`].
    pub wakes: bool,
    /// Nothing is admitted.
    pub suspended: bool,
    /// Most bindings kept; the least recently used idle one is forgotten first.
    pub max_workflows: u32,
    /// After an endpoint becomes eligible with requests held, at most this many dispatches to it until its first
    /// answer's first byte, then its full concurrency; keeps a cold engine from being flooded.
    pub first_batch: u32,
}

/// A request as the scheduler needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its name.
    pub id: RequestId,
    /// Its workflow, when it has one.
    pub workflow: Option<Workflow>,
    /// Its class, already clamped.
    pub class: Class,
    /// Weight inside the class, 1 to 64.
    pub weight: u32,
    /// Overdue after this wait; `None`: the class's bound.
    pub max_wait: Option<Duration>,
    /// How its workflow's home is used.
    pub affinity: Affinity,
    /// A binding unused for this long is forgotten.
    pub idle_ttl: Duration,
    /// A binding this old is forgotten when it is next idle.
    pub max_age: Duration,
    /// How long the workflow is expected back after a turn that ends in a tool call; zero never.
    pub tool_pause: Duration,
    /// A tool pause of this workflow keeps the pool from being idle.
    pub tool_pause_blocks_zero: bool,
    /// Estimated prompt tokens; `None` when unknown.
    pub prompt_tokens: Option<u64>,
    /// Body bytes, counted against [`Settings::max_waiting_bytes`] while it waits.
    pub bytes: u64,
    /// For the one retry: the endpoint that failed it, not to be chosen again.
    pub not_on: Option<EndpointId>,
}

/// How a dispatched request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered in full.
    Completed {
        /// Prompt plus completion tokens: what the workflow now occupies at its home; `None` without usage.
        footprint_tokens: Option<u64>,
        /// The answer asks for a tool call, so the workflow is expected back.
        tool_call: bool,
    },
    /// The client left.
    Cancelled,
    /// The endpoint could not be connected to; it is ejected at once.
    ConnectFailed,
    /// The endpoint failed the request in another way; the shell decides whether to submit it again.
    Failed,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A request wants an endpoint. Ends in exactly one of `Dispatch`, `Shed`, or `Cancel`.
    Arrived(Request),
    /// The client of a waiting request left. Unknown ids are ignored.
    Cancel(RequestId),
    /// The first body byte of a dispatched request's answer arrived.
    FirstByte(RequestId),
    /// A dispatched request ended; its place is free again. Unknown ids are ignored.
    Finished(RequestId, Outcome),
    /// An endpoint exists and is ready, with room for this many requests at once. Repeated: a new concurrency.
    EndpointReady {
        /// Its name.
        endpoint: EndpointId,
        /// Requests it may have in flight, at least 1.
        concurrency: u32,
    },
    /// An endpoint exists but is not ready; its bindings stay, nothing is dispatched to it.
    EndpointNotReady(EndpointId),
    /// An endpoint takes no new work (`true`), or does again.
    EndpointDraining(EndpointId, bool),
    /// An endpoint is gone; its bindings are forgotten. Requests in flight there still end with `Finished`.
    EndpointGone(EndpointId),
    /// Workflows an endpoint remembers, told when a gateway starts or an endpoint appears. A binding in use wins.
    Remembered {
        /// Where.
        endpoint: EndpointId,
        /// Workflow, footprint in tokens, age of its last use.
        homes: Vec<(Workflow, Option<u64>, Duration)>,
    },
    /// Hold new arrivals until the given time, if the pool is idle; the effect says whether it was.
    Fence {
        /// When the fence lapses.
        until: Time,
    },
    /// Let arrivals through again.
    Unfence,
    /// New settings.
    Settings(Settings),
    /// A deadline passed ([`crate::Pool::next_deadline`]).
    Tick,
}

/// How a workflow's home was used by a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HomeUse {
    /// The request has no workflow or no affinity.
    None,
    /// First turn: a home was chosen.
    New,
    /// The turn goes home.
    Kept,
    /// The turn goes elsewhere, and that is the home now.
    Moved,
}

/// Why a dispatch went where it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Where.
    pub endpoint: EndpointId,
    /// How the home was used.
    pub home: HomeUse,
    /// From arrival to dispatch.
    pub waited: Duration,
    /// Waited at least once with no endpoint eligible, or behind a fence.
    pub held: bool,
    /// The wait was longer than its bound.
    pub overdue: bool,
}

/// Why a request was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShedReason {
    /// A bound on waiting requests or bytes was reached.
    QueueFull,
    /// No endpoint exists and nothing can start one.
    NoCapacity,
    /// The pool is suspended: [`Settings::suspended`].
    Suspended,
    /// Held longer than [`Settings::hold_timeout`].
    ColdStartTimeout,
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send the request there; a place is already reserved and freed by `Finished`.
    Dispatch(RequestId, Decision),
    /// Refuse the request.
    Shed {
        /// Which.
        request: RequestId,
        /// Why.
        reason: ShedReason,
        /// When trying again may help; `None` when unknown.
        retry_after: Option<Duration>,
    },
    /// Demand exists and nothing is eligible: tell the operator at once.
    Wake,
    /// The answer to [`Event::Fence`].
    Fenced(bool),
    /// An endpoint was taken out of rotation until then (passive ejection).
    Ejected(EndpointId, Time),
}

/// The pool at one instant, for people and for the operator's idle arithmetic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Dispatched and not finished, those on endpoints that are gone included.
    pub in_flight: u32,
    /// Waiting while an endpoint is ready and not draining (all of them ejected: still queued).
    pub queued: u32,
    /// Waiting while no endpoint is ready and not draining, or behind a fence.
    pub held: u32,
    /// Body bytes of queued and held requests.
    pub waiting_bytes: u64,
    /// Since the oldest held request arrived; `None` when none is held.
    pub oldest_held: Option<Duration>,
    /// Workflows with a home that have not expired.
    pub open_workflows: u32,
    /// Workflows in a tool pause that keeps the pool from being idle.
    pub paused_workflows: u32,
    /// When the last of those pauses lapses; `None` without any.
    pub pause_ends: Option<Time>,
    /// A fence is in force.
    pub fenced: bool,
    /// When a request last arrived or a dispatched one ended; `None` before the first.
    pub last_activity: Option<Time>,
    /// Every endpoint that is not gone, by id.
    pub endpoints: Vec<EndpointSnapshot>,
}

impl Snapshot {
    /// Nothing in flight, queued, held or expected back: what a fence asks.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.queued == 0 && self.held == 0 && self.paused_workflows == 0
    }
}

/// One endpoint at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSnapshot {
    /// Its name.
    pub id: EndpointId,
    /// Ready, not draining and not ejected: requests may be sent to it when it has room.
    pub eligible: bool,
    /// Takes no new work.
    pub draining: bool,
    /// Its last word was that it is ready.
    pub ready: bool,
    /// Requests this machine has in flight there.
    pub in_flight: u32,
    /// Workflows whose home it is.
    pub workflows: u32,
    /// Sum of the known footprints of those workflows, tokens.
    pub kv_tokens: u64,
    /// Requests it may have in flight; 0 before it was ready for the first time.
    pub concurrency: u32,
    /// From being ready and not draining for the first time to the first dispatch there; `None` until then.
    pub ready_to_first_dispatch: Option<Duration>,
}
