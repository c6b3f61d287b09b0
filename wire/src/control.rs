//! The control protocol between the operator (client) and every gateway replica (server), on the admin port, with
//! a bearer token.
//!
//! * `GET /control/v1/events` streams newline-delimited [`Event`]s: one [`Event::Hello`], then the full
//!   [`PoolState`] of every pool, then states as they change (a wake or a changed hold at once, the rest coalesced
//!   to one a second and pool), and a [`Event::Heartbeat`] every [`HEARTBEAT_MS`]. A reader that misses three
//!   heartbeats treats every pool's state as unknown; unknown is never idle.
//! * `POST /control/v1/pools/{pool}/orders` takes one [`OrderRequest`] and answers [`OrderAnswer`]. Orders are
//!   idempotent; one with an epoch lower than the last seen is refused with 409 and changes nothing.

use serde::{Deserialize, Serialize};

/// Path of the event stream.
pub const EVENTS: &str = "/control/v1/events";
/// Period of heartbeats.
pub const HEARTBEAT_MS: u64 = 5_000;

/// Path of the orders of one pool.
#[must_use]
pub fn orders_path(pool: &str) -> String {
    format!("/control/v1/pools/{pool}/orders")
}

/// One line of the event stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Event {
    /// First line of every stream.
    #[serde(rename_all = "camelCase")]
    Hello {
        /// New at every start of the gateway process.
        instance: String,
        /// The gateway's version.
        version: String,
        /// The hash of the configuration in force ([`crate::config::GatewayConfig::hash`]); sent again, as a new
        /// `Hello`, whenever a new configuration is in force.
        config_hash: String,
    },
    /// A pool as this replica sees it.
    Pool(Box<PoolState>),
    /// The configured pool is gone from the configuration; its last state is void.
    #[serde(rename_all = "camelCase")]
    PoolRemoved {
        /// The pool's name.
        pool: String,
    },
    /// Nothing changed, and the stream lives.
    Heartbeat,
}

/// A pool as one gateway replica sees it. Counts are of this replica; totals are since its start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolState {
    /// The pool's name.
    pub pool: String,
    /// The UID of the LLMPool object the gateway was configured with.
    pub uid: String,
    /// Highest epoch of any order obeyed; 0 before the first.
    pub epoch: u64,
    /// New arrivals are held although endpoints may be ready, because a fence is in force.
    pub fenced: bool,
    /// Requests dispatched to an endpoint and not finished.
    pub in_flight: u32,
    /// Requests waiting while at least one endpoint is ready.
    pub queued: u32,
    /// Requests waiting while no endpoint is ready (or the pool is fenced).
    pub held: u32,
    /// Body bytes of queued and held requests.
    pub waiting_bytes: u64,
    /// Age of the oldest held request in milliseconds.
    pub oldest_held_age_ms: Option<u64>,
    /// Workflows with a home that have not expired.
    pub open_workflows: u32,
    /// Workflows in a tool pause whose lease has not lapsed: expected back, so the pool is not idle.
    pub paused_workflows: u32,
    /// Milliseconds until the last of those leases lapses.
    pub pause_ends_in_ms: Option<u64>,
    /// Milliseconds since a request last arrived or ended; `None` if none has since this replica started.
    pub last_activity_age_ms: Option<u64>,
    /// Totals since this replica started.
    pub totals: Totals,
    /// What the last answers were like; `None` before the first. It moves with answers, never with time alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recent: Option<Recent>,
    /// Prompt tokens outside of the prefix cache that an endpoint reads a second, learned from answers; `None` while
    /// too few told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_tokens_per_s: Option<f64>,
    /// The pool's endpoints as this replica sees them.
    pub endpoints: Vec<EndpointState>,
}

impl PoolState {
    /// Nothing in flight, queued, held or expected back: what a fence asks.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.queued == 0 && self.held == 0 && self.paused_workflows == 0
    }
}

/// The last answers of a replica.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recent {
    /// Milliseconds up to the last answer that the numbers are about.
    pub window_ms: u64,
    /// Completed requests that met their policy's objectives.
    pub slo_met: u64,
    /// Completed or failed requests that had objectives.
    pub slo_total: u64,
    /// 95th percentile of the milliseconds from arrival to the first body byte of streams; `None` without a stream.
    pub ttft_p95_ms: Option<u64>,
}

/// Monotone counts since the replica started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Requests that passed parsing and identification.
    pub arrived: u64,
    /// Requests answered in full.
    pub completed: u64,
    /// Requests that ended in an error that was not the client's.
    pub failed: u64,
    /// Requests shed by a bound.
    pub shed: u64,
    /// Requests whose client left first.
    pub cancelled: u64,
    /// Requests that were held at least once.
    pub held: u64,
    /// Sum of the times that requests were held, milliseconds.
    pub held_ms: u64,
    /// Turns of a workflow after its first.
    pub returning_turns: u64,
    /// Of those, turns served by the workflow's home.
    pub home_kept: u64,
    /// Prompt tokens as engines reported them.
    pub prompt_tokens: u64,
    /// Of those, tokens engines served from their prefix cache.
    pub cached_tokens: u64,
    /// Output tokens as engines reported them.
    pub completion_tokens: u64,
    /// Completed requests that met their policy's objectives.
    pub slo_met: u64,
    /// Completed or failed requests that had objectives.
    pub slo_total: u64,
}

/// One endpoint as a gateway replica sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointState {
    /// Pod name, or the static endpoint's name.
    pub name: String,
    /// Pod UID, or the static endpoint's name.
    pub uid: String,
    /// Requests may be sent to it now.
    pub eligible: bool,
    /// Ordered to take no new work.
    pub draining: bool,
    /// Requests this replica has in flight there.
    pub in_flight: u32,
    /// Requests that it works on at once, as its sidecar (or the configuration) says; `None` before it was ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Workflows whose home it is.
    pub workflows: u32,
    /// Tokens of KV cache those workflows left there, as far as known: what removing the pod would lose.
    pub kv_tokens: u64,
    /// The engine's own running and waiting counts; `None` when unknown. More than the router's own count means
    /// that somebody goes round the router.
    pub engine_busy: Option<u32>,
    /// GPU or KV use of running requests, 0 to 1; `None` when unknown.
    pub kv_usage: Option<f64>,
    /// Tokens that the engine's KV cache holds; `None` when unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_capacity_tokens: Option<u64>,
    /// Milliseconds from the endpoint becoming eligible to the first request dispatched there; `None` until then.
    pub ready_to_dispatch_ms: Option<u64>,
}

/// An order to one pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OrderRequest {
    /// Fencing token: lease transitions in the upper 32 bits, a counter in the lower.
    pub epoch: u64,
    /// What to do.
    pub order: Order,
}

/// What the operator may ask of a gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub enum Order {
    /// If idle, hold new arrivals from now on; if not, change nothing. Lapses by itself after `leaseMs`, so that an
    /// operator that dies between fence and scale-down strands nobody.
    #[serde(rename_all = "camelCase")]
    Fence {
        /// Life of the fence in milliseconds, 1 to 60,000.
        lease_ms: u64,
    },
    /// Let arrivals through again.
    Unfence,
    /// Send no new work to this endpoint; lapses after `leaseMs`.
    #[serde(rename_all = "camelCase")]
    Drain {
        /// Pod UID.
        uid: String,
        /// Life of the order in milliseconds, 1 to 3,600,000.
        lease_ms: u64,
    },
    /// Send work to this endpoint again.
    #[serde(rename_all = "camelCase")]
    Undrain {
        /// Pod UID.
        uid: String,
    },
}

/// The gateway's answer to an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderAnswer {
    /// The order was carried out (a fence: the pool was idle and is fenced now).
    pub done: bool,
    /// The pool after the order.
    pub state: PoolState,
}
