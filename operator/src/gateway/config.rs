//! The gateway's configuration from the pools and policies that concern it, and the operator's defaults. Pure.

use std::time::Duration;

use kube::ResourceExt;
use weir_crds::{
    LLMPool, WorkflowPolicy,
    llmpool::EngineType,
    workflowpolicy::{AffinityMode, IdentitySource, PriorityClass, WorkflowPolicySpec},
};
use weir_wire::config::{self as wire, ConfigError, GatewayConfig, MAX_POLICIES, PoolConfig};

use crate::{llm_pool::validate, workflow_policy::validate as policy};

/// Name of the policy that holds for pools which no WorkflowPolicy names. No WorkflowPolicy can be called so.
pub const DEFAULT_POLICY: &str = "(default)";
/// Least age at which a home is forgotten although it is in use now and then, where no policy says otherwise.
const MAX_AGE: Duration = Duration::from_secs(86_400);

/// What holds for workflows where no WorkflowPolicy says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkflowDefaults {
    /// Workflows get a home.
    pub enabled: bool,
    /// A home without a turn for so long is forgotten.
    pub idle_ttl: Duration,
    /// Most workflows with a home, for each pool.
    pub max_workflows: u32,
}

impl Default for WorkflowDefaults {
    fn default() -> Self {
        Self {
            enabled: true,
            idle_ttl: Duration::from_secs(3_600),
            max_workflows: 1_000,
        }
    }
}

impl WorkflowDefaults {
    const fn mode(&self) -> wire::AffinityMode {
        if self.enabled {
            wire::AffinityMode::Preferred
        } else {
            wire::AffinityMode::None
        }
    }

    /// The policy of pools which no WorkflowPolicy names.
    fn policy(&self, pools: Vec<String>) -> wire::PolicyConfig {
        wire::PolicyConfig {
            name: DEFAULT_POLICY.to_owned(),
            pools,
            identity: Vec::new(),
            affinity: wire::AffinityConfig {
                mode: self.mode(),
                max_wait: None,
                idle_ttl: self.idle_ttl.into(),
                max_age: self.idle_ttl.max(MAX_AGE).into(),
            },
            priority: wire::PriorityConfig::default(),
            slo: wire::SloConfig::default(),
            max_workflows: self.max_workflows,
            tool_pause: TOOL_PAUSE.into(),
            tool_pause_blocks_zero: true,
        }
    }
}

/// A tool pause whose length is `auto`.
const TOOL_PAUSE: Duration = Duration::from_secs(60);

/// Renders and validates. Refused pools are left out; policies come in the order in which they are tried.
///
/// # Errors
/// [`ConfigError`] for what the schema of the kinds lets in and the gateway does not.
pub fn render(
    gateway: &str,
    pools: &[LLMPool],
    policies: &[WorkflowPolicy],
    defaults: &WorkflowDefaults,
) -> Result<GatewayConfig, ConfigError> {
    let of_gateway = || pools.iter().filter(|pool| pool.spec.gateway == gateway);
    let refusals = validate::refusals(of_gateway());
    let mut served: Vec<&LLMPool> = of_gateway()
        .filter(|pool| matches!(refusals.get(&pool.uid().unwrap_or_default()), Some(None)))
        .filter(|pool| validate::validate(pool, &[]).is_ok())
        .collect();
    served.sort_by_key(|pool| pool.name_any());
    let mut rendered = Vec::new();
    for found in policy::in_order(policies) {
        let names: Vec<String> = served
            .iter()
            .filter(|pool| policy::selects(found, pool))
            .map(|pool| pool.name_any())
            .collect();
        if !names.is_empty() && policy::problem(found).is_none() && rendered.len() < MAX_POLICIES - 1 {
            rendered.push(policy_config(found.name_any(), names, &found.spec, defaults));
        }
    }
    let named = |pool: &String| rendered.iter().any(|policy| policy.pools.contains(pool));
    let mut others: Vec<String> = served.iter().map(|pool| pool.name_any()).collect();
    others.retain(|pool| !named(pool));
    if !others.is_empty() {
        rendered.push(defaults.policy(others));
    }
    let config = GatewayConfig {
        limits: wire::Limits::default(),
        timeouts: wire::Timeouts::default(),
        pools: served.iter().map(|pool| pool_config(pool)).collect(),
        policies: rendered,
    };
    config.validate()?;
    Ok(config)
}

fn pool_config(pool: &LLMPool) -> PoolConfig {
    let spec = &pool.spec;
    PoolConfig {
        name: pool.name_any(),
        uid: pool.uid().unwrap_or_default(),
        model: spec.model.name.clone(),
        aliases: spec.model.aliases.clone(),
        engine: match spec.engine.r#type {
            EngineType::Vllm => wire::EngineKind::Vllm,
            EngineType::SGLang => wire::EngineKind::SGLang,
        },
        max_concurrency: spec.engine.max_concurrency,
        hold: wire::HoldConfig {
            max_requests: spec.hold.max_requests,
            max_bytes: spec.hold.max_bytes.bytes(),
            timeout: spec.hold.timeout.unwrap_or(spec.startup.deadline).into(),
        },
        suspended: spec.suspend,
        wakes: true,
        endpoints: Vec::new(),
    }
}

fn policy_config(
    name: String,
    pools: Vec<String>,
    spec: &WorkflowPolicySpec,
    defaults: &WorkflowDefaults,
) -> wire::PolicyConfig {
    let max_age: Duration = spec.affinity.max_age.into();
    wire::PolicyConfig {
        name,
        pools,
        identity: spec.identity.sources.iter().filter_map(identity_source).collect(),
        affinity: wire::AffinityConfig {
            mode: match spec.affinity.mode {
                None => defaults.mode(),
                Some(AffinityMode::Preferred) => wire::AffinityMode::Preferred,
                Some(AffinityMode::Required) => wire::AffinityMode::Required,
                Some(AffinityMode::None) => wire::AffinityMode::None,
            },
            max_wait: spec.affinity.max_wait.fixed().map(Into::into),
            idle_ttl: spec
                .affinity
                .idle_ttl
                .map_or_else(|| defaults.idle_ttl.min(max_age), Into::into)
                .into(),
            max_age: max_age.into(),
        },
        priority: wire::PriorityConfig {
            class: class(spec.priority.class),
            ceiling: spec.priority.ceiling.map(class),
            weight: spec.priority.weight,
            max_wait: spec.priority.max_wait.map(Into::into),
        },
        slo: wire::SloConfig {
            ttft: spec.slo.ttft.map(Into::into),
            completion: spec.slo.completion.map(Into::into),
        },
        max_workflows: spec.limits.max_workflows.unwrap_or(defaults.max_workflows),
        tool_pause: spec
            .tool_pause
            .lease
            .fixed()
            .map_or_else(|| TOOL_PAUSE.into(), Into::into),
        tool_pause_blocks_zero: spec.tool_pause.blocks_scale_to_zero,
    }
}

/// `None` for a source that names nothing, which the schema does not let in.
fn identity_source(source: &IdentitySource) -> Option<wire::IdentitySource> {
    let IdentitySource {
        header,
        body,
        known_clients,
        conversation_root,
    } = source;
    if let Some(header) = header {
        Some(wire::IdentitySource::Header(header.to_ascii_lowercase()))
    } else if let Some(path) = body {
        Some(wire::IdentitySource::Body(path.clone()))
    } else if *known_clients == Some(true) {
        Some(wire::IdentitySource::KnownClients)
    } else {
        (*conversation_root == Some(true)).then_some(wire::IdentitySource::ConversationRoot)
    }
}

fn class(class: PriorityClass) -> wire::PriorityClass {
    match class {
        PriorityClass::Interactive => wire::PriorityClass::Interactive,
        PriorityClass::Standard => wire::PriorityClass::Standard,
        PriorityClass::Batch => wire::PriorityClass::Batch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pool(name: &str, second: u32, spec: &Value) -> LLMPool {
        let mut whole = json!({"model": {"name": name, "source": "image"}, "engine": {"image": "e"}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            whole[key] = value.clone();
        }
        serde_json::from_value(json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "LLMPool",
            "metadata": {"name": name, "namespace": "n", "uid": name,
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": whole,
        }))
        .unwrap()
    }

    fn agents() -> WorkflowPolicy {
        let mut policy: WorkflowPolicy =
            serde_saphyr::from_str(include_str!("../../../deploy/samples/policy-agents.yaml")).unwrap();
        policy.metadata.namespace = Some("n".to_owned());
        policy
    }

    #[test]
    fn a_configuration_is_rendered_and_reads_back() {
        let pools = [
            pool("b", 1, &json!({"startup": {"deadline": "5m"}, "suspend": true})),
            pool(
                "a",
                2,
                &json!({"engine": {"image": "e", "maxConcurrency": 9}, "hold": {"timeout": "20s"}}),
            ),
            pool("elsewhere", 3, &json!({"gateway": "other"})),
        ];
        let config = render("weir", &pools, &[agents()], &WorkflowDefaults::default()).unwrap();
        let yaml = config.to_yaml().unwrap();
        insta::assert_snapshot!("gateway_config", yaml);
        assert_eq!(GatewayConfig::parse(&yaml).unwrap(), config);
    }

    #[test]
    fn order_of_objects_does_not_change_the_configuration() {
        let hash = |pools: &[LLMPool]| {
            let config = render("weir", pools, &[agents()], &WorkflowDefaults::default());
            config.unwrap().hash().unwrap()
        };
        let mut pools = vec![
            pool("a", 1, &json!({})),
            pool("b", 2, &json!({})),
            pool("c", 3, &json!({})),
        ];
        let first = hash(&pools);
        pools.reverse();
        assert_eq!(hash(&pools), first);
    }

    #[test]
    fn what_no_policy_says_comes_from_the_defaults() {
        let pools = [pool("a", 1, &json!({})), pool("b", 2, &json!({}))];
        let off = WorkflowDefaults {
            enabled: false,
            idle_ttl: Duration::from_secs(90),
            max_workflows: 7,
        };
        let affinities = |spec: &Value| {
            let policy = serde_json::from_value(json!({
                "apiVersion": "weir.dev/v1alpha1", "kind": "WorkflowPolicy",
                "metadata": {"name": "p", "namespace": "n"}, "spec": spec,
            }));
            let config = render("weir", &pools, &[policy.unwrap()], &off).unwrap();
            let of = |policy: &wire::PolicyConfig| {
                let idle: Duration = policy.affinity.idle_ttl.into();
                (policy.affinity.mode, idle.as_secs(), policy.max_workflows)
            };
            config.policies.iter().map(of).collect::<Vec<_>>()
        };
        let default = (wire::AffinityMode::None, 90, 7);
        // Pools that no policy names, and what a policy leaves open.
        assert_eq!(affinities(&json!({"pools": ["a"]})), [default, default]);
        let own = json!({"pools": ["a"], "limits": {"maxWorkflows": 3},
            "affinity": {"mode": "Required", "idleTTL": "5m"}});
        assert_eq!(
            affinities(&own),
            [(wire::AffinityMode::Required, 300, 3), default]
        );
        // A home does not stay longer than the policy's greatest age.
        let young = json!({"pools": ["a", "b"], "affinity": {"maxAge": "1m"}});
        assert_eq!(affinities(&young), [(wire::AffinityMode::None, 60, 7)]);
    }

    #[test]
    fn refused_and_broken_pools_are_left_out() {
        let twin = json!({"model": {"name": "a", "source": "image"}});
        let broken = json!({"idle": {"policy": "Fixed"}});
        let pools = [
            pool("a", 1, &json!({})),
            pool("twin", 2, &twin),
            pool("broken", 3, &broken),
        ];
        let config = render("weir", &pools, &[], &WorkflowDefaults::default()).unwrap();
        assert_eq!(
            config
                .pools
                .iter()
                .map(|pool| pool.name.as_str())
                .collect::<Vec<_>>(),
            ["a"]
        );
    }
}
