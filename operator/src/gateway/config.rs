//! The gateway's configuration from the pools and policies that concern it. Pure.

use kube::ResourceExt;
use weir_crds::{
    LLMPool, WorkflowPolicy,
    llmpool::EngineType,
    workflowpolicy::{AffinityMode, IdentitySource, PriorityClass, WorkflowPolicySpec},
};
use weir_wire::config::{self as wire, ConfigError, GatewayConfig, MAX_POLICIES, PoolConfig};

use crate::{llm_pool::validate, workflow_policy::validate as policy};

/// A tool pause whose length is `auto`.
const TOOL_PAUSE: std::time::Duration = std::time::Duration::from_secs(60);

/// Renders and validates. Refused pools are left out; policies come in the order in which they are tried.
///
/// # Errors
/// [`ConfigError`] for what the schema of the kinds lets in and the gateway does not.
pub fn render(
    gateway: &str,
    pools: &[LLMPool],
    policies: &[WorkflowPolicy],
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
        if !names.is_empty() && policy::problem(found).is_none() && rendered.len() < MAX_POLICIES {
            rendered.push(policy_config(found.name_any(), names, &found.spec));
        }
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

fn policy_config(name: String, pools: Vec<String>, spec: &WorkflowPolicySpec) -> wire::PolicyConfig {
    wire::PolicyConfig {
        name,
        pools,
        identity: spec.identity.sources.iter().filter_map(identity_source).collect(),
        affinity: wire::AffinityConfig {
            mode: match spec.affinity.mode {
                AffinityMode::Preferred => wire::AffinityMode::Preferred,
                AffinityMode::Required => wire::AffinityMode::Required,
                AffinityMode::None => wire::AffinityMode::None,
            },
            max_wait: spec.affinity.max_wait.fixed().map(Into::into),
            idle_ttl: spec.affinity.idle_ttl.into(),
            max_age: spec.affinity.max_age.into(),
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
        max_workflows: spec.limits.max_workflows,
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
