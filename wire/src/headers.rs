//! Header names that Weir reads or writes, in the lower case in which HTTP/1 libraries compare them.

/// Client → gateway and gateway → client: the workflow a request belongs to.
pub const WORKFLOW_ID: &str = "x-weir-workflow-id";
/// Client → gateway: the agent inside the workflow.
pub const AGENT_ID: &str = "x-weir-agent-id";
/// Client → gateway: the request that caused this one.
pub const PARENT_REQUEST_ID: &str = "x-weir-parent-request-id";
/// Client → gateway: asked-for priority class, clamped to the caller's ceiling.
pub const PRIORITY: &str = "x-weir-priority";
/// Gateway → client: machine-readable reason of an error answer, from a closed set.
pub const REASON: &str = "x-weir-reason";
/// Gateway → client: the endpoint that served the request (pod name, or the static endpoint's name).
pub const ENDPOINT: &str = "x-weir-endpoint";
/// Gateway → client: `kept`, `moved`, `new` or `none`; how the workflow's home was used.
pub const HOME: &str = "x-weir-home";
/// Gateway → client: milliseconds the request waited in the gateway before it was dispatched.
pub const QUEUED_MS: &str = "x-weir-queued-ms";
/// Gateway → client: present with value `1` when the request was held because no endpoint was ready.
pub const HELD: &str = "x-weir-held";
/// Gateway → sidecar: the [`crate::WorkflowKey`] in hex; stripped before the engine.
pub const WORKFLOW_KEY: &str = "x-weir-workflow-key";
/// Both directions: request id; every attempt gets its own suffix.
pub const REQUEST_ID: &str = "x-request-id";
