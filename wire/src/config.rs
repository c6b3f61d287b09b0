//! The gateway's configuration: one YAML document, rendered by the operator into a ConfigMap (key [`FILE_KEY`]) or
//! written by a person for a standalone gateway. Parsed strictly, then [`GatewayConfig::validate`]d; nothing
//! binds or changes before both succeed.

use std::time;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Duration;

mod validate;

/// Key of the document in the ConfigMap.
pub const FILE_KEY: &str = "gateway.yaml";
/// Most pools of one gateway.
pub const MAX_POOLS: usize = 256;
/// Most policies of one gateway.
pub const MAX_POLICIES: usize = 256;
/// Most static endpoints of one pool.
pub const MAX_ENDPOINTS: usize = 256;

/// The whole configuration of one gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayConfig {
    /// Limits of the traffic port.
    #[serde(default)]
    pub limits: Limits,
    /// Phase timeouts of a request.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// The pools, each with one model name and its aliases.
    pub pools: Vec<PoolConfig>,
    /// Workflow policies, most specific first; the first that matches a request holds.
    #[serde(default)]
    pub policies: Vec<PolicyConfig>,
}

/// Limits of the traffic port. Everything a client can make grow has one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Connections open at once; more are refused by closing them.
    pub max_connections: u32,
    /// Bytes of a request body; more is answered 413.
    pub max_body_bytes: u64,
    /// Nesting depth of a JSON body; more is answered 400.
    pub max_json_depth: u32,
    /// Header count of a request; more is answered 431.
    pub max_headers: u32,
    /// Bytes of all headers together; more is answered 431.
    pub max_header_bytes: u32,
    /// Bytes of all request bodies in memory at once (waiting or being read); more is answered 429.
    pub max_buffered_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            max_body_bytes: 32 << 20,
            max_json_depth: 128,
            max_headers: 128,
            max_header_bytes: 64 << 10,
            max_buffered_bytes: 2 << 30,
        }
    }
}

/// Phase timeouts of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Timeouts {
    /// From a connection's first byte (or the end of the answer before) to the end of the headers.
    pub header_read: Duration,
    /// Between two reads of a request body.
    pub body_read: Duration,
    /// To connect to an endpoint.
    pub connect: Duration,
    /// From dispatch to the first body byte of the answer; 504 `first_token_timeout` after it.
    pub first_token: Duration,
    /// Between two body chunks of an answer; an error event (or a cut, where none can be sent) after it.
    pub idle: Duration,
    /// How long a stopping gateway waits for requests in flight.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header_read: time::Duration::from_secs(15).into(),
            body_read: time::Duration::from_secs(30).into(),
            connect: time::Duration::from_secs(2).into(),
            first_token: time::Duration::from_secs(600).into(),
            idle: time::Duration::from_secs(120).into(),
            drain: time::Duration::from_secs(600).into(),
        }
    }
}

/// One pool as the gateway needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolConfig {
    /// The LLMPool's name; unique in the gateway.
    pub name: String,
    /// The LLMPool's UID; pods of another UID are not endpoints. Empty for a standalone gateway.
    #[serde(default)]
    pub uid: String,
    /// The model name that picks this pool.
    pub model: String,
    /// Further names that pick it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Which engine speaks behind the endpoints.
    #[serde(default)]
    pub engine: EngineKind,
    /// Requests one endpoint may have in flight; absent: what its sidecar says, and 256 for a static endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrency: Option<u32>,
    /// Bounds on waiting requests (queued and held together).
    #[serde(default)]
    pub hold: HoldConfig,
    /// Nothing is admitted: every request is answered 503 `no_capacity`.
    #[serde(default)]
    pub suspended: bool,
    /// A person or the operator can start an endpoint: with none ready, requests are held. False for a static list,
    /// where requests fail with 503 `no_capacity` when no endpoint answers.
    #[serde(default)]
    pub wakes: bool,
    /// The fixed endpoints of a standalone gateway; empty under Kubernetes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<StaticEndpoint>,
}

/// The engine behind a pool's endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineKind {
    /// vLLM.
    #[default]
    #[serde(rename = "VLLM")]
    Vllm,
    /// SGLang.
    SGLang,
}

/// Bounds on waiting requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HoldConfig {
    /// Requests waiting at once; more are answered 429 `queue_full`.
    pub max_requests: u32,
    /// Body bytes waiting at once; more are answered 429 `queue_full`.
    pub max_bytes: u64,
    /// Longest hold while no endpoint is ready; 503 `cold_start_timeout` after it.
    pub timeout: Duration,
}

impl Default for HoldConfig {
    fn default() -> Self {
        Self {
            max_requests: 5_000,
            max_bytes: 1 << 30,
            timeout: time::Duration::from_secs(1_800).into(),
        }
    }
}

/// A fixed endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StaticEndpoint {
    /// Unique in the pool; shown in headers and metrics.
    pub name: String,
    /// `host:port` of the engine's (or a sidecar's) HTTP port.
    pub address: String,
}

/// One workflow policy as the gateway needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyConfig {
    /// The WorkflowPolicy's name.
    pub name: String,
    /// Names of the pools it holds for.
    pub pools: Vec<String>,
    /// Where a workflow id is looked for, in order; empty: the built-in order of `docs/identity.md`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identity: Vec<IdentitySource>,
    /// Home keeping.
    #[serde(default)]
    pub affinity: AffinityConfig,
    /// Order among waiting requests.
    #[serde(default)]
    pub priority: PriorityConfig,
    /// What a request promises; absent parts promise nothing.
    #[serde(default)]
    pub slo: SloConfig,
    /// Most workflows with a home at once; the least recently used idle one is forgotten first.
    #[serde(default = "default_max_workflows")]
    pub max_workflows: u32,
    /// How long a workflow is expected back after a turn that ended in a tool call; 0 never.
    #[serde(default = "default_tool_pause")]
    pub tool_pause: Duration,
    /// A workflow in a tool pause keeps its pool from going to zero.
    #[serde(default = "default_true")]
    pub tool_pause_blocks_zero: bool,
}

fn default_max_workflows() -> u32 {
    1_000
}

fn default_tool_pause() -> Duration {
    time::Duration::from_secs(60).into()
}

fn default_true() -> bool {
    true
}

/// One place a workflow id may be read from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum IdentitySource {
    /// The value of a header.
    Header(String),
    /// A dotted path into the JSON body, such as `metadata.session`.
    Body(String),
    /// The headers and fields that known agent clients send.
    KnownClients,
    /// A hash of model, tools, system prompt and first user message.
    ConversationRoot,
}

/// Home keeping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AffinityConfig {
    /// Whether turns go home.
    pub mode: AffinityMode,
    /// Longest a turn waits for its home while another endpoint has room; absent: 0.5 s or a tenth of its expected
    /// prefill, whichever is longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_wait: Option<Duration>,
    /// A binding unused for this long is forgotten.
    pub idle_ttl: Duration,
    /// A binding this old is forgotten at its next idle moment.
    pub max_age: Duration,
}

impl Default for AffinityConfig {
    fn default() -> Self {
        Self {
            mode: AffinityMode::Preferred,
            max_wait: None,
            idle_ttl: time::Duration::from_secs(3_600).into(),
            max_age: time::Duration::from_secs(86_400).into(),
        }
    }
}

/// Whether turns go home.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AffinityMode {
    /// Home, unless it is too loaded or gone.
    #[default]
    Preferred,
    /// Home for as long as it exists, whatever the wait.
    Required,
    /// Every turn is placed like a new workflow.
    None,
}

/// Order among waiting requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PriorityConfig {
    /// Class of a request that asks for none.
    pub class: PriorityClass,
    /// Highest class a client may ask for; absent: `class`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<PriorityClass>,
    /// Weight inside the class, 1 to 64.
    pub weight: u32,
    /// Longest wait before the request counts as overdue; absent: the class's (15 s, 300 s, 600 s).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_wait: Option<Duration>,
}

impl Default for PriorityConfig {
    fn default() -> Self {
        Self {
            class: PriorityClass::Standard,
            ceiling: None,
            weight: 1,
            max_wait: None,
        }
    }
}

/// Priority classes, most urgent first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PriorityClass {
    /// A person waits for the answer.
    Interactive,
    /// An agent waits for the answer.
    #[default]
    Standard,
    /// Nobody waits for the answer.
    Batch,
}

/// What a request promises; absent parts promise nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SloConfig {
    /// From arrival to the first body byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft: Option<Duration>,
    /// From arrival to the end of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion: Option<Duration>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the YAML of a [`GatewayConfig`].
    #[error("the configuration is not valid YAML for a gateway: {0}")]
    Parse(String),
    /// Well-formed, but contradicting itself or out of bounds.
    #[error("{field}: {problem}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl GatewayConfig {
    /// Reads and validates a YAML document.
    ///
    /// # Errors
    /// [`ConfigError`] naming the field (or line) and what would be right.
    pub fn parse(yaml: &str) -> Result<Self, ConfigError> {
        let config: Self =
            serde_saphyr::from_str(yaml).map_err(|error| ConfigError::Parse(error.to_string()))?;
        config.validate()?;
        Ok(config)
    }

    /// The YAML form; [`Self::parse`] reads it back.
    ///
    /// # Errors
    /// [`ConfigError::Parse`] when the serialiser refuses, which a validated configuration does not cause.
    pub fn to_yaml(&self) -> Result<String, ConfigError> {
        serde_saphyr::to_string(self).map_err(|error| ConfigError::Parse(error.to_string()))
    }

    /// First 8 bytes of the SHA-256 of the YAML form, in hex: names a configuration in `Hello` and status.
    ///
    /// # Errors
    /// As [`Self::to_yaml`].
    pub fn hash(&self) -> Result<String, ConfigError> {
        let digest = Sha256::digest(self.to_yaml()?.as_bytes());
        Ok(digest[..8].iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

#[cfg(test)]
mod tests;
