//! `WorkflowPolicy`: how the workflows of some pools are recognised, kept together, ordered and bounded. Rules that
//! need more than one field stand beside the group they are about, in [`WorkflowPolicySpec`].

#![expect(
    clippy::duplicated_attributes,
    reason = "every printer column has a type of its own"
)]
#![expect(
    unreachable_pub,
    reason = "KubeSchema puts a public copy of the struct into a function"
)]

mod groups;
mod status;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use groups::{
    Affinity, AffinityMode, ContextSharing, Fairness, Identity, IdentitySource, Limits, Match, Messages,
    Priority, PriorityClass, Slo, Spread, ToolPause,
};
pub use status::{PolicyGoodput, WorkflowPolicyStatus};

use crate::schema;

/// How the workflows of some pools are treated.
#[derive(CustomResource, KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "WorkflowPolicy",
    plural = "workflowpolicies",
    namespaced,
    status = "WorkflowPolicyStatus",
    derive = "PartialEq",
    shortname = "wfp",
    category = "weir",
    doc = "How the workflows of some pools are recognised, kept together, ordered and bounded.",
    printcolumn(
        name = "Class",
        type_ = "string",
        json_path = ".spec.priority.class",
        description = "Priority class of requests that ask for none"
    ),
    printcolumn(
        name = "Affinity",
        type_ = "string",
        json_path = ".spec.affinity.mode",
        description = "Whether turns go to their workflow's home"
    ),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status",
        description = "The policy is usable"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status",
        description = "The gateways run with it"
    ),
    printcolumn(
        name = "Workflows",
        type_ = "integer",
        json_path = ".status.activeWorkflows",
        description = "Workflows that have a home under this policy"
    ),
    printcolumn(
        name = "Goodput",
        type_ = "integer",
        json_path = ".status.goodput.percent",
        description = "Requests that met their objectives, percent"
    ),
    printcolumn(
        name = "Pools",
        type_ = "string",
        json_path = ".status.matchedPools",
        description = "Pools it holds for",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("(has(self.pools) && self.pools.size() > 0) != has(self.poolSelector)")
    .message("exactly one of pools and poolSelector"))]
#[serde(rename_all = "camelCase")]
#[schemars(transform = schema::tidy)]
pub struct WorkflowPolicySpec {
    /// Names of the pools that the policy holds for, at most 64, in the same namespace. Either this or
    /// `poolSelector`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 52), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub pools: Vec<String>,
    /// Labels of the pools that the policy holds for; `{}` selects all pools of the namespace. Either this or
    /// `pools`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::embedded::<LabelSelector>")]
    pub pool_selector: Option<LabelSelector>,
    /// Which requests it holds for. Absent: all requests to its pools.
    #[x_kube(validation = Rule::new("!has(self.tenants) || self.tenants.size() == 0")
        .message("tenants are not available in this version: a policy holds for whole pools"))]
    #[x_kube(validation = Rule::new("!has(self.headers) || self.headers.size() == 0")
        .message("headers are not available in this version: a policy holds for whole pools"))]
    #[x_kube(validation = Rule::new("!has(self.workflowClasses) || self.workflowClasses.size() == 0")
        .message("workflowClasses are not available in this version: a policy holds for whole pools"))]
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<Match>,
    /// Where the workflow id of a request is looked for.
    #[serde(default)]
    pub identity: Identity,
    /// How strongly turns of a workflow go to the endpoint that holds its KV cache, its home.
    #[x_kube(validation = Rule::new("!has(self.mode) || self.mode == 'Preferred' || self.maxWait == 'auto'")
        .message("maxWait is the patience of mode Preferred: leave it with any other"))]
    #[x_kube(validation = Rule::new("!has(self.idleTTL) || duration(self.idleTTL) <= duration(self.maxAge)")
        .message("idleTTL is longer than maxAge"))]
    #[x_kube(validation = Rule::new("self.spread == 'Overflow'")
        .message("spread other than Overflow is not available in this version"))]
    #[serde(default)]
    pub affinity: Affinity,
    /// Which agents of a workflow share a home. `Auto`: all, until it is full. `Broadcast`: the shared prefix is
    /// warmed on several endpoints. `Selective`: only agents linked by a parent request. `None`: each has its own.
    /// Default `Auto`.
    #[x_kube(validation = Rule::new("self == 'Auto'")
        .message("contextSharing other than Auto is not available in this version"))]
    #[serde(default)]
    pub context_sharing: ContextSharing,
    /// Order among waiting requests.
    #[x_kube(validation = Rule::new("!has(self.ceiling) || self.ceiling == 'Interactive' || self.ceiling == \
        self.class || self.class == 'Batch'")
        .message("ceiling is below class"))]
    #[serde(default)]
    pub priority: Priority,
    /// Share of a tenant against other tenants.
    #[x_kube(validation = Rule::new("self.weight == 1")
        .message("weight other than 1 is not available in this version"))]
    #[serde(default)]
    pub fairness: Fairness,
    /// What requests are promised; absent parts promise nothing. Requests are counted in goodput by it.
    #[x_kube(validation = Rule::new("!has(self.ttft) || !has(self.completion) || duration(self.ttft) <= \
        duration(self.completion)")
        .message("ttft is longer than completion"))]
    #[x_kube(validation = Rule::new("!has(self.tpot)")
        .message("tpot is not available in this version"))]
    #[serde(default)]
    pub slo: Slo,
    /// What the workflows under the policy may use.
    #[x_kube(validation = Rule::new("!has(self.maxConcurrentRequests)")
        .message("maxConcurrentRequests is not available in this version"))]
    #[x_kube(validation = Rule::new("!has(self.maxQueuedRequests)")
        .message("maxQueuedRequests is not available in this version"))]
    #[x_kube(validation = Rule::new("!has(self.maxOutputTokens)")
        .message("maxOutputTokens is not available in this version"))]
    #[x_kube(validation = Rule::new("!has(self.workflowTokenBudget)")
        .message("workflowTokenBudget is not available in this version"))]
    #[x_kube(validation = Rule::new("!has(self.workflowTimeBudget)")
        .message("workflowTimeBudget is not available in this version"))]
    #[serde(default)]
    pub limits: Limits,
    /// What happens while a workflow runs its tools between two turns.
    #[serde(default)]
    pub tool_pause: ToolPause,
    /// Queues of messages between agents.
    #[x_kube(validation = Rule::new("!self.enabled")
        .message("enabled: message queues are not available in this version"))]
    #[serde(default)]
    pub messages: Messages,
}
