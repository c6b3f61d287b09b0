//! What the operator knows about a pool. Fields that are not known are absent, never 0.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Decimal, duration::serialize_human, schema};

/// State of a pool, written by the operator alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = schema::tidy)]
pub struct LLMPoolStatus {
    /// Ready, Progressing, CapacityAvailable, ScalingOwned, MetricsAvailable, PolicyProgrammed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Engine pods that exist.
    #[schemars(range(min = 0, max = 100_000))]
    pub replicas: i32,
    /// Engine pods that answer.
    #[schemars(range(min = 0, max = 100_000))]
    pub ready_replicas: i32,
    /// Engine pods that should run.
    #[schemars(range(min = 0, max = 100_000))]
    pub desired_replicas: i32,
    /// `readyReplicas/desiredReplicas`, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub ready: Option<String>,
    /// Label selector of the engine pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
    /// OpenAI base URL inside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub endpoint: Option<String>,
    /// What the pool is doing. Absent: not known now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
    /// Measured starts. Absent: none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold_start: Option<ColdStart>,
    /// When the pool will stop, and why then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<IdleStatus>,
    /// Requests that met their objectives. Absent: none has had objectives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goodput: Option<Goodput>,
    /// What the pool has cost since it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// The operator's last order to the gateways, so that a new operator goes on above it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
}

/// What a pool is doing, over all gateway replicas.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Activity {
    /// Requests at engines.
    pub in_flight: u32,
    /// Requests that wait although an endpoint is ready.
    pub queued: u32,
    /// Requests that wait because no endpoint is ready.
    pub held: u32,
    /// Workflows that have a home.
    pub open_workflows: u32,
    /// Since when nothing has been in flight, queued, held or expected back. Absent: the pool is not idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<Time>,
}

/// Measured starts, from the operator's order to the first endpoint ready.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ColdStart {
    /// The last one.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_human")]
    #[schemars(schema_with = "schema::status_duration")]
    pub last: Option<Duration>,
    /// Median of `recent`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_human")]
    #[schemars(schema_with = "schema::status_duration")]
    pub p50: Option<Duration>,
    /// 95th percentile of `recent`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_human")]
    #[schemars(schema_with = "schema::status_duration")]
    pub p95: Option<Duration>,
    /// Starts measured since the pool was made.
    pub samples: u32,
    /// Parts of the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phases: Option<ColdStartPhases>,
    /// The last 16, newest last, so that what was learned outlives the operator.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::recent_durations")]
    pub recent: Vec<Duration>,
}

/// Parts of a start. A part that could not be told apart is absent and lies in the next one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ColdStartPhases {
    /// From the order until the pod has a node.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_human")]
    #[schemars(schema_with = "schema::status_duration")]
    pub schedule: Option<Duration>,
    /// Until the images are on the node.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_human")]
    #[schemars(schema_with = "schema::status_duration")]
    pub pull: Option<Duration>,
    /// Until the engine's process runs.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_human")]
    #[schemars(schema_with = "schema::status_duration")]
    pub start: Option<Duration>,
    /// Until the engine has loaded the model and answers its sidecar.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_human")]
    #[schemars(schema_with = "schema::status_duration")]
    pub load: Option<Duration>,
    /// Until the pod is ready.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_human")]
    #[schemars(schema_with = "schema::status_duration")]
    pub ready: Option<Duration>,
}

/// When the pool will stop, and why then.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IdleStatus {
    /// Idleness that costs as much as a stop and a start: the start, the waiting it causes, and `refill`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_human")]
    #[schemars(schema_with = "schema::status_duration")]
    pub break_even: Option<Duration>,
    /// Of the break-even, the time to compute again what the KV cache holds of workflows that may come back. Absent:
    /// unknown, and left out of the break-even.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_human")]
    #[schemars(schema_with = "schema::status_duration")]
    pub refill: Option<Duration>,
    /// Idleness after which the pool stops. Absent: it does not.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_human")]
    #[schemars(schema_with = "schema::status_duration")]
    pub threshold: Option<Duration>,
    /// When it stops if nothing comes. Absent: it is not idle, or does not stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_at: Option<Time>,
    /// A sentence with the numbers behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
}

/// Requests that met their objectives, among those that had any.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Goodput {
    /// The time that the numbers are about, up to the last answer: they stand still while nothing is answered.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_human")]
    #[schemars(schema_with = "schema::status_duration")]
    pub window: Option<Duration>,
    /// Share that met all of their objectives. Absent: none had any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u8>,
    /// Requests in the window that had objectives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// 95th percentile of the time from arrival to the first body byte of streamed answers, whether or not they had
    /// objectives; two digits are meant.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "serialize_human",
        rename = "ttftP95"
    )]
    #[schemars(schema_with = "schema::status_duration")]
    pub ttft_p95: Option<Duration>,
}

/// What the pool has cost since it was made. Hours are of one engine pod each.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Cost {
    /// Hours that engine pods had something to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving_hours: Option<Decimal>,
    /// Hours that engine pods waited for something to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_hours: Option<Decimal>,
    /// Hours that engine pods were starting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub starting_hours: Option<Decimal>,
    /// All hours times the hourly price. Absent: the pool has no price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount: Option<Decimal>,
    /// What `maxReplicas` engine pods running all the time would have cost more; in hours without a price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saved_versus_always_on: Option<Decimal>,
}

/// The operator's last order to the gateways.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Fence {
    /// Its epoch: lease transitions in the upper 32 bits, a counter in the lower.
    pub epoch: u64,
}
