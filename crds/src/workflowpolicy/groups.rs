//! The groups of a policy's spec.

#![expect(
    unreachable_pub,
    reason = "KubeSchema puts a public copy of the struct into a function"
)]

use std::collections::BTreeMap;

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, DurationOrAuto, schema, schema::seconds};

/// Which requests a policy holds for; all parts that are given must match. The most specific policy wins, then the
/// oldest, then the first by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Match {
    /// Tenants, at most 64. Absent: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "set"))]
    pub tenants: Vec<String>,
    /// Headers and their exact values, at most 32. Absent: any.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::string_map")]
    pub headers: BTreeMap<String, String>,
    /// Workflow classes, at most 16. Absent: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub workflow_classes: Vec<String>,
}

/// Where the workflow id of a request is looked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Identity {
    /// Places in order, at most 16; the first that has an id wins. Absent: Weir's own header and body fields, then
    /// known clients, then the conversation's root. The answer's header `X-Weir-Workflow-Id` shows what was found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub sources: Vec<IdentitySource>,
}

/// One place a workflow id may be read from; exactly one of the four.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("[has(self.header), has(self.body), has(self.knownClients), has(self.conversationRoot)].filter(given, given).size() == 1")
        .message("exactly one of header, body, knownClients and conversationRoot"),
    validation = Rule::new("(!has(self.knownClients) || self.knownClients) && (!has(self.conversationRoot) || self.conversationRoot)")
        .message("knownClients and conversationRoot are true or absent"),
)]
#[serde(rename_all = "camelCase")]
pub struct IdentitySource {
    /// Name of a request header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub header: Option<String>,
    /// Dotted path into the JSON body, such as `metadata.session`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[^.\s]+(\.[^.\s]+)*$"))]
    pub body: Option<String>,
    /// `true`: the headers and fields that known agent clients send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_clients: Option<bool>,
    /// `true`: a hash of model, tools, system prompt and first user message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_root: Option<bool>,
}

/// How strongly turns of a workflow go to its home.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    /// `Preferred`: home, unless it is too loaded or gone. `Required`: home as long as it exists. `None`: every
    /// turn is placed anew. Absent: `Preferred`, or `None` where the operator runs with `--workflow-support=false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<AffinityMode>,
    /// Longest that a turn waits for its home while another endpoint has room. `auto`: half a second or a tenth of
    /// its expected prefill, whichever is longer. Default `auto`.
    pub max_wait: DurationOrAuto,
    /// A home that is not used for so long is forgotten. Absent: the operator's `--workflow-ttl` (1h), at most `maxAge`.
    #[serde(rename = "idleTTL", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive_duration")]
    pub idle_ttl: Option<Duration>,
    /// A home that is so old is forgotten when its workflow is next idle. Default 24h.
    #[schemars(schema_with = "schema::positive_duration")]
    pub max_age: Duration,
    /// When a workflow gets a second home. `Overflow`: when the first is full. `None`: never. `Always`: every agent
    /// has its own. Default `Overflow`.
    pub spread: Spread,
}

impl Default for Affinity {
    fn default() -> Self {
        Self {
            mode: None,
            max_wait: DurationOrAuto::Auto,
            idle_ttl: None,
            max_age: seconds::<86_400>(),
            spread: Spread::default(),
        }
    }
}

/// Whether turns go home.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum AffinityMode {
    /// Home, unless it is too loaded or gone.
    #[default]
    Preferred,
    /// Home as long as it exists.
    Required,
    /// Every turn is placed anew.
    None,
}

/// When a workflow gets a second home.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Spread {
    /// When the first is full.
    #[default]
    Overflow,
    /// Never.
    None,
    /// Every agent has its own.
    Always,
}

/// Which agents of a workflow share a home.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ContextSharing {
    /// All, until the home is full.
    #[default]
    Auto,
    /// The shared prefix is warmed on several endpoints.
    Broadcast,
    /// Only agents linked by a parent request.
    Selective,
    /// Each has its own.
    None,
}

/// Order among waiting requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Priority {
    /// Class of requests that ask for none: `Interactive`, `Standard` or `Batch`. Default `Standard`.
    pub class: PriorityClass,
    /// Weight inside the class. Default 1.
    #[schemars(range(min = 1, max = 64))]
    pub weight: u32,
    /// Highest class that a request may ask for. Absent: `class`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<PriorityClass>,
    /// Longest wait before a request counts as overdue and goes first. Absent: that of its class (15s, 300s, 600s).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive_duration")]
    pub max_wait: Option<Duration>,
}

impl Default for Priority {
    fn default() -> Self {
        Self {
            class: PriorityClass::default(),
            weight: 1,
            ceiling: None,
            max_wait: None,
        }
    }
}

/// Priority classes, most urgent first.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum PriorityClass {
    /// A person waits for the answer.
    Interactive,
    /// An agent waits for the answer.
    #[default]
    Standard,
    /// Nobody waits for the answer.
    Batch,
}

/// Share of a tenant against other tenants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Fairness {
    /// Weight of the tenant. Default 1.
    #[schemars(range(min = 1, max = 64))]
    pub weight: u32,
}

impl Default for Fairness {
    fn default() -> Self {
        Self { weight: 1 }
    }
}

/// What requests are promised.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Slo {
    /// From arrival to the first body byte, such as `2s`. Absent: nothing is promised.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive_duration")]
    pub ttft: Option<Duration>,
    /// Mean time from one output token to the next. Absent: nothing is promised.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive_duration")]
    pub tpot: Option<Duration>,
    /// From arrival to the end of the answer. Absent: nothing is promised.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive_duration")]
    pub completion: Option<Duration>,
}

/// What the workflows under a policy may use.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Workflows with a home at once, for each pool; the least recently used idle one is forgotten first.
    /// Absent: the operator's `--max-workflows` (1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_workflows: Option<u32>,
    /// Requests at engines at once. Absent: no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_concurrent_requests: Option<u32>,
    /// Requests waiting at once. Absent: no bound but the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_queued_requests: Option<u32>,
    /// Output tokens of one request. Absent: no bound but the engine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub max_output_tokens: Option<u32>,
    /// Prompt and output tokens of one workflow over its life. Absent: no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub workflow_token_budget: Option<u64>,
    /// Time from a workflow's first request to its last answer. Absent: no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive_duration")]
    pub workflow_time_budget: Option<Duration>,
}

/// What happens while a workflow runs its tools between two turns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ToolPause {
    /// How long a workflow counts as coming back after a turn that ended in a tool call; its KV cache is kept for
    /// it meanwhile. `auto`: 60s. `0s`: not at all. Default `auto`.
    pub lease: DurationOrAuto,
    /// A workflow that counts as coming back keeps its pool from going to zero. Default true.
    pub blocks_scale_to_zero: bool,
}

impl Default for ToolPause {
    fn default() -> Self {
        Self {
            lease: DurationOrAuto::Auto,
            blocks_scale_to_zero: true,
        }
    }
}

/// Queues of messages between agents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Messages {
    /// Whether the gateway keeps message queues. Default false.
    pub enabled: bool,
    /// Messages in one queue. Default 1000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_queue_size: u32,
    /// Bytes of one message. Absent: 256Ki.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_message_bytes: Option<ByteSize>,
    /// Life of a message that nobody takes. Absent: 24h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive_duration")]
    pub ttl: Option<Duration>,
    /// How long a taken message stays hidden before it is given to another. Absent: 60s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive_duration")]
    pub lease_timeout: Option<Duration>,
    /// How often a message is given before it is set aside. Absent: 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000))]
    pub max_deliveries: Option<u32>,
}

impl Default for Messages {
    fn default() -> Self {
        Self {
            enabled: false,
            max_queue_size: 1_000,
            max_message_bytes: None,
            ttl: None,
            lease_timeout: None,
            max_deliveries: None,
        }
    }
}
