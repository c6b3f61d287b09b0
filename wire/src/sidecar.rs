//! The sidecar's admin protocol: what one engine pod says about itself.
//!
//! All of it is on the admin port. `STATE` and `HOMES` need the bearer token; `DRAIN` is the kubelet's preStop hook
//! and changes nothing, it only waits.

use serde::{Deserialize, Serialize};

use crate::WorkflowKey;

/// `GET ?after=VERSION&waitMs=MS`: answers [`EngineState`] at once when its version is newer than `after`, else as
/// soon as it changes, at the latest after `waitMs` (at most [`MAX_WAIT_MS`]).
pub const STATE: &str = "/sidecar/v1/state";
/// `GET`: answers [`Homes`].
pub const HOMES: &str = "/sidecar/v1/homes";
/// `GET`, no token: returns 200 once no request is in flight; the engine container's preStop hook.
pub const DRAIN: &str = "/drain";
/// `GET`, no token: 200 while the engine's process answers its own health endpoint; the engine's liveness probe.
pub const ENGINE_LIVEZ: &str = "/engine/livez";
/// Longest `waitMs` a sidecar honours.
pub const MAX_WAIT_MS: u64 = 25_000;
/// Most workflows a sidecar remembers, least recently used forgotten first.
pub const MAX_HOMES: usize = 65_536;

/// Requests a sidecar lets into the engine at once when nobody says how many: what a medium GPU decodes at once without
/// starving prefill.
pub const AUTO_CONCURRENCY: u32 = 64;

/// What one engine pod is and does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineState {
    /// Rises with every change of a field a router acts on (`ready`, `concurrency`), and at least once a second
    /// while any other field changes.
    pub version: u64,
    /// New at every start of the sidecar process: a smaller `version` under another `instance` is a restart.
    pub instance: String,
    /// The engine answers its health endpoint and serves the pool's model.
    pub ready: bool,
    /// Requests this sidecar lets into the engine at once.
    pub concurrency: u32,
    /// Requests between this sidecar's accept and the end of their answer.
    pub in_flight: u32,
    /// Milliseconds since the last request began or ended here; `None` before the first.
    pub last_activity_age_ms: Option<u64>,
    /// Milliseconds from the sidecar's own start to the engine's first healthy answer; `None` until then.
    pub start_ms: Option<u64>,
    /// The engine's own figures; `None` until its metrics were read, and again after three misses.
    pub engine: Option<EngineFigures>,
}

/// One vocabulary over vLLM's and SGLang's metrics.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineFigures {
    /// Requests in the engine's batch.
    pub running: u32,
    /// Requests in the engine's own queue, preempted ones included.
    pub waiting: u32,
    /// Share of KV blocks referenced by running requests, 0 to 1.
    pub kv_usage: Option<f64>,
    /// KV capacity in tokens.
    pub kv_capacity_tokens: Option<u64>,
    /// Prompt tokens since the engine started, cached ones included.
    pub prompt_tokens_total: Option<u64>,
    /// Prompt tokens served from the engine's prefix cache since it started.
    pub cached_tokens_total: Option<u64>,
    /// Output tokens since the engine started.
    pub generation_tokens_total: Option<u64>,
}

/// The workflows whose KV cache is (probably) still in this pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Homes {
    /// Most recently used first, at most [`MAX_HOMES`].
    pub homes: Vec<Home>,
}

/// One workflow's memory in a pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Home {
    /// The workflow.
    pub key: WorkflowKey,
    /// Prompt plus completion tokens of its last answered request; `None` when the engine gave no usage.
    pub tokens: Option<u64>,
    /// Milliseconds since its last request ended.
    pub last_use_age_ms: u64,
}
