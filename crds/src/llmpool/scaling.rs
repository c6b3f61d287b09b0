//! How many engines run, when they stop, and how they start and end.

use kube::core::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, Decimal, schema, schema::seconds};

/// How many engine pods may run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Scaling {
    /// Engine pods that run even when nothing is asked; 0 lets the pool go to zero. `kubectl scale` and the scale
    /// subresource write this field. Default 0.
    #[schemars(range(min = 0, max = 256))]
    pub min_replicas: u32,
    /// Most engine pods at once. Default 1.
    #[schemars(range(min = 1, max = 256))]
    pub max_replicas: u32,
    /// Share of the KV cache that live workflows may fill before another engine is started. Default 0.8.
    #[schemars(range(min = 0.1, max = 1.0))]
    pub kv_utilization: f64,
    /// Wait in the queue that justifies another engine, if the wait outlasts a start. Default 1s.
    #[schemars(schema_with = "schema::positive_duration")]
    pub queue_wait: Duration,
    /// How long one engine less must have been enough before one is removed. Default 60s.
    #[schemars(schema_with = "schema::duration")]
    pub scale_down_delay: Duration,
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            min_replicas: 0,
            max_replicas: 1,
            kv_utilization: 0.8,
            queue_wait: seconds::<1>(),
            scale_down_delay: seconds::<60>(),
        }
    }
}

/// When the pool stops its last engine pods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Idle {
    /// How the threshold of idleness is found. `BreakEven`: as long as a stop and a start would cost, never worse
    /// than twice the best possible. `Learned`: from past gaps. `Fixed`: `after`. `Never`: the pool does not stop.
    /// Default `BreakEven`.
    pub policy: IdlePolicy,
    /// The threshold of policy `Fixed`; required there and refused elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub after: Option<Duration>,
    /// Least threshold of a computed policy. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub min_after: Option<Duration>,
    /// Greatest threshold of a computed policy. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive_duration")]
    pub max_after: Option<Duration>,
    /// What one second of one request's waiting costs, in seconds of one running engine pod. Higher values keep an
    /// idle pool longer. Default `"1"`.
    pub waiting_weight: Decimal,
    /// Expected start time until the pool has measured its own. Default 120s.
    #[schemars(schema_with = "schema::positive_duration")]
    pub cold_start_prior: Duration,
    /// GPU use, in percent, above which a pool that the router sees idle is not stopped: someone goes round the
    /// router. Default 5.
    #[schemars(range(min = 0, max = 100))]
    pub gpu_idle_percent: u8,
}

impl Default for Idle {
    fn default() -> Self {
        Self {
            policy: IdlePolicy::default(),
            after: None,
            min_after: None,
            max_after: None,
            waiting_weight: Decimal::rounded(1.0, 0),
            cold_start_prior: seconds::<120>(),
            gpu_idle_percent: 5,
        }
    }
}

/// How the threshold of idleness is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum IdlePolicy {
    /// As long as a stop and a start would cost.
    #[default]
    BreakEven,
    /// From past gaps.
    Learned,
    /// A fixed time.
    Fixed,
    /// The pool does not stop.
    Never,
}

/// A warm level between serving and zero.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Standby {
    /// `None`: an idle engine is stopped. `Sleep`: it first gives up its accelerator memory and keeps its process.
    /// Default `None`.
    pub mode: StandbyMode,
}

/// The warm level.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum StandbyMode {
    /// No warm level.
    #[default]
    None,
    /// The engine's sleep mode.
    Sleep,
}

/// Bounds on requests that wait in the gateway, queued or held while no endpoint is ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Hold {
    /// Requests that may wait at once; more are answered 429 `queue_full`. Default 5000.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_requests: u32,
    /// Bytes of their bodies; more are answered 429 `queue_full`. Default 1Gi.
    pub max_bytes: ByteSize,
    /// Longest hold while no endpoint is ready; then 503 `cold_start_timeout`. Absent: as long as
    /// `startup.deadline`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive_duration")]
    pub timeout: Option<Duration>,
}

impl Default for Hold {
    fn default() -> Self {
        Self {
            max_requests: 5_000,
            max_bytes: ByteSize::gibibyte(),
            timeout: None,
        }
    }
}

/// How an engine pod ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Drain {
    /// How long an engine pod that ends may go on with its requests; after it they are cut. Default 10m.
    #[schemars(schema_with = "schema::positive_duration")]
    pub timeout: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            timeout: seconds::<600>(),
        }
    }
}

/// How an engine pod starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Startup {
    /// Longest start, from the engine container's start to ready; then it is restarted. Default 30m.
    #[schemars(schema_with = "schema::positive_duration")]
    pub deadline: Duration,
}

impl Default for Startup {
    fn default() -> Self {
        Self {
            deadline: seconds::<1800>(),
        }
    }
}

/// How a changed template reaches the engine pods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rollout {
    /// Engine pods that may run beyond the desired number during a change; each needs its own accelerators.
    /// Default 0.
    #[schemars(range(min = 0, max = 256))]
    pub max_surge: u32,
    /// Engine pods that may be missing during a change. Default 1.
    #[schemars(range(min = 0, max = 256))]
    pub max_unavailable: u32,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            max_surge: 0,
            max_unavailable: 1,
        }
    }
}
