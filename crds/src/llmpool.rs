//! `LLMPool`: one model served by engines that Weir starts when requests come and stops when none are expected.
//! Rules that need more than one field stand beside the group they are about, in [`LLMPoolSpec`].

#![expect(
    unreachable_pub,
    reason = "KubeSchema puts a public copy of the struct into a function"
)]

mod engine;
mod rules;
mod scaling;
mod status;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use engine::{
    Accelerator, Cache, Engine, EngineType, ImagePullPolicy, Model, ModelSource, PodMetadata, Resources,
    Scheduling, SecretKey,
};
pub use scaling::{Drain, Hold, Idle, IdlePolicy, Rollout, Scaling, Standby, StandbyMode, Startup};
pub use status::{Activity, ColdStart, ColdStartPhases, Cost, Fence, Goodput, IdleStatus, LLMPoolStatus};

use crate::{names, reserved, schema};

/// What a pool serves and how it is run.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "LLMPool",
    plural = "llmpools",
    namespaced,
    status = "LLMPoolStatus",
    derive = "PartialEq",
    shortname = "pool",
    shortname = "llmp",
    category = "weir",
    doc = "One model, served by engines (vLLM or SGLang) that Weir starts when requests come and stops when none are expected.",
    scale(
        spec_replicas_path = ".spec.scaling.minReplicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model.name", description = "Name that requests ask for"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.ready", description = "Ready endpoints of those that run"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.desiredReplicas", description = "Endpoints that should run"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Reason of the Ready condition"),
    printcolumn(name = "Idle", type_ = "date", json_path = ".status.activity.idleSince", description = "For how long nothing has been asked"),
    printcolumn(name = "Break-even", type_ = "string", json_path = ".status.idle.breakEven", description = "Idleness that costs as much as a stop and a start"),
    printcolumn(name = "Cold-start", type_ = "string", json_path = ".status.coldStart.p50", description = "Median of the last starts"),
    printcolumn(name = "Goodput", type_ = "integer", json_path = ".status.goodput.percent", description = "Requests that met their objectives, percent"),
    printcolumn(name = "Queued", type_ = "integer", json_path = ".status.activity.queued", description = "Requests that wait for a ready endpoint", priority = 1),
    printcolumn(name = "Workflows", type_ = "integer", json_path = ".status.activity.openWorkflows", description = "Workflows that have a home", priority = 1),
    printcolumn(name = "Cost", type_ = "string", json_path = ".status.cost.amount", description = "Cost so far", priority = 1),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.endpoint", description = "OpenAI base URL", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name of a pool has at most 52 characters, lower-case letters, digits and hyphens, because the names of its Deployment and pods begin with it"),
)]
#[x_kube(validation = Rule::new(rules::ACCELERATOR_ONCE)
    .message("resources name the accelerator's resource: its number is accelerator.count"))]
#[x_kube(validation = Rule::new(rules::SGLANG_NAMES)
    .message("SGLang takes what follows a colon in a model's name for an adapter: name and aliases have no colon"))]
#[serde(rename_all = "camelCase")]
#[schemars(transform = schema::tidy)]
pub struct LLMPoolSpec {
    /// The model and the names that requests ask for.
    #[x_kube(validation = Rule::new("!has(self.revision) || self.source.startsWith('hf://')")
        .message("revision needs a source that begins with hf://"))]
    #[x_kube(validation = Rule::new("!has(self.tokenSecretRef) || self.source.startsWith('hf://')")
        .message("tokenSecretRef needs a source that begins with hf://"))]
    #[x_kube(validation = Rule::new("!has(self.aliases) || !(self.name in self.aliases)")
        .message("aliases repeat the name"))]
    pub model: Model,
    /// The program that serves it.
    #[x_kube(validation = Rule::new("!has(self.args) || self.args.size() == 0 || \
        self.args[0].startsWith('-')")
        .message("args are flags: the first begins with a hyphen (the model comes from spec.model)"))]
    #[x_kube(validation = Rule::new(rules::args_without(&reserved::MODEL_FLAGS))
        .message("args name the model, its names or its revision: use spec.model"))]
    #[x_kube(validation = Rule::new(rules::args_without(&reserved::ADDRESS_FLAGS))
        .message("args change how the engine is reached (address, TLS, API keys): only its sidecar reaches it, \
            on 127.0.0.1"))]
    #[x_kube(validation = Rule::new(rules::args_without(&reserved::LIFECYCLE_FLAGS))
        .message("args name a flag that the operator sets (shutdown, sleep mode, metrics, usage details, priorities): use \
            spec.drain and spec.standby, or leave it"))]
    #[x_kube(validation = Rule::new(rules::env())
        .message("env names a variable that the operator sets (caches, tokens, timeouts, development \
            mode) or one that begins with WEIR_"))]
    pub engine: Engine,
    /// Accelerators and price of one engine pod. Absent: a CPU engine without a price.
    #[x_kube(validation = Rule::new("has(self.resource) || self.count == 1")
        .message("count needs resource"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// Requests and limits of the engine container, accelerators apart. Absent: none.
    #[x_kube(validation = Rule::new(rules::WITHIN_LIMITS)
        .message("a request is greater than the limit of the same name"))]
    #[serde(default)]
    pub resources: Resources,
    /// Where engine pods may run. Absent: anywhere.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// Volume for weights and compile caches. Absent: storage of the pod, without a limit and lost with it, so that
    /// every start downloads the weights again.
    #[x_kube(validation = Rule::new("has(self.claimName) != has(self.sizeLimit)")
        .message("exactly one of claimName and sizeLimit"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// Labels and annotations added to engine pods. Absent: none.
    #[x_kube(validation = Rule::new(rules::pod_metadata("labels"))
        .message("labels of weir.dev, app.kubernetes.io and controller.kubernetes.io belong to the \
            operator, and every key must be a qualified name"))]
    #[x_kube(validation = Rule::new(rules::pod_metadata("annotations"))
        .message("annotations of weir.dev, app.kubernetes.io and controller.kubernetes.io belong to the \
            operator, and every key must be a qualified name"))]
    #[serde(default)]
    pub pod_metadata: PodMetadata,
    /// How many engine pods may run.
    #[x_kube(validation = Rule::new("self.minReplicas <= self.maxReplicas")
        .message("minReplicas is greater than maxReplicas"))]
    #[serde(default)]
    pub scaling: Scaling,
    /// When the pool stops its last engine pods.
    #[x_kube(validation = Rule::new("(self.policy == 'Fixed') == has(self.after)")
        .message("after is required with policy Fixed and refused with any other"))]
    #[x_kube(validation = Rule::new("(!has(self.minAfter) && !has(self.maxAfter)) || self.policy in \
        ['BreakEven', 'Learned']")
        .message("minAfter and maxAfter bound a computed threshold: they need policy BreakEven or Learned"))]
    #[x_kube(validation = Rule::new("!has(self.minAfter) || !has(self.maxAfter) || duration(self.minAfter) \
        <= duration(self.maxAfter)")
        .message("minAfter is longer than maxAfter"))]
    #[x_kube(validation = Rule::new("self.policy != 'Learned'")
        .message("policy Learned is not available in this version"))]
    #[x_kube(validation = Rule::new("self.gpuIdlePercent == 5")
        .message("gpuIdlePercent other than 5 is not available in this version"))]
    #[serde(default)]
    pub idle: Idle,
    /// A warm level between serving and zero.
    #[x_kube(validation = Rule::new("self.mode == 'None'")
        .message("mode Sleep is not available in this version"))]
    #[serde(default)]
    pub standby: Standby,
    /// Bounds on requests that wait.
    #[x_kube(validation = Rule::new("quantity(self.maxBytes).compareTo(quantity('64Gi')) <= 0")
        .message("maxBytes is greater than 64Gi"))]
    #[serde(default)]
    pub hold: Hold,
    /// How an engine pod ends.
    #[serde(default)]
    pub drain: Drain,
    /// How an engine pod starts.
    #[serde(default)]
    pub startup: Startup,
    /// How a changed template reaches the engine pods.
    #[x_kube(validation = Rule::new("self.maxSurge > 0 || self.maxUnavailable > 0")
        .message("maxSurge and maxUnavailable are both 0: nothing could ever be replaced"))]
    #[serde(default)]
    pub rollout: Rollout,
    /// Name of the gateway, which is also its Service: pools of one namespace that name the same gateway share one
    /// URL, and the model name of a request picks the pool. Default `weir`.
    #[serde(default = "default_gateway")]
    #[schemars(length(min = 1, max = 52), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub gateway: String,
    /// Stop all engine pods after their requests are answered, and answer new requests with 503 `no_capacity`.
    /// Default false.
    #[serde(default)]
    pub suspend: bool,
}

fn default_gateway() -> String {
    names::DEFAULT_GATEWAY.to_owned()
}

impl LLMPoolSpec {
    /// A pool with every default, for tests and tools.
    #[must_use]
    pub fn new(model: Model, engine: Engine) -> Self {
        Self {
            model,
            engine,
            accelerator: None,
            resources: Resources::default(),
            scheduling: Scheduling::default(),
            cache: None,
            pod_metadata: PodMetadata::default(),
            scaling: Scaling::default(),
            idle: Idle::default(),
            standby: Standby::default(),
            hold: Hold::default(),
            drain: Drain::default(),
            startup: Startup::default(),
            rollout: Rollout::default(),
            gateway: default_gateway(),
            suspend: false,
        }
    }

    /// Port of the engine on 127.0.0.1 inside its pod.
    #[must_use]
    pub const fn engine_port(&self) -> u16 {
        self.engine.r#type.port()
    }

    /// Price of one engine pod per second; `None` without a price.
    #[must_use]
    pub fn price_per_second(&self) -> Option<f64> {
        let price = self.accelerator.as_ref()?.hourly_price.as_ref()?;
        Some(price.value() / 3_600.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(extra: &str) -> LLMPoolSpec {
        let text = format!("model: {{name: m, source: image}}\nengine: {{image: i}}\n{extra}");
        serde_saphyr::from_str(&text).unwrap()
    }

    #[test]
    fn price_is_of_one_pod_and_optional() {
        assert_eq!(spec("").price_per_second(), None);
        assert_eq!(
            spec("accelerator: {resource: nvidia.com/gpu}").price_per_second(),
            None
        );
        let price =
            spec("accelerator: {resource: nvidia.com/gpu, count: 4, hourlyPrice: '3.60'}").price_per_second();
        assert!(
            price.is_some_and(|price| (price - 0.001).abs() < 1e-12),
            "{price:?}"
        );
    }

    #[test]
    fn the_engine_port_follows_its_type() {
        let mut spec = spec("");
        assert_eq!(spec.engine_port(), 8_000);
        spec.engine.r#type = EngineType::SGLang;
        assert_eq!(spec.engine_port(), 30_000);
    }

    #[test]
    fn quantities_are_read_as_numbers_or_text() {
        let spec = spec("resources: {requests: {cpu: 4, memory: 1Gi}}");
        let read: Vec<&str> = spec
            .resources
            .requests
            .values()
            .map(|quantity| quantity.0.as_str())
            .collect();
        assert_eq!(read, ["4", "1Gi"]);
    }
}
