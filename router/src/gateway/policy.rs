//! Which policy holds for a pool's requests, and what a request may ask for under it.

use std::time::Duration;

use weir_schedule::{Affinity, Class, Request, RequestId, Workflow};
use weir_wire::config::{AffinityMode, GatewayConfig, IdentitySource, PolicyConfig, PriorityClass};

use crate::proxy::respond::Refusal;

/// Least patience of a turn for its home when the policy sets none.
const LEAST_PATIENCE: Duration = Duration::from_millis(500);
/// Prompt tokens that an engine reads per second, assumed until it is measured; for the patience above.
const ASSUMED_PREFILL_TOKENS_PER_S: u64 = 10_000;

/// A pool's policy, ready to be applied to requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    config: PolicyConfig,
}

/// What a request asks of the scheduler.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wishes<'a> {
    /// Value of `X-Weir-Priority`.
    pub class: Option<&'a str>,
    /// `workflow_metadata.workflow_priority`.
    pub priority: Option<f64>,
}

/// Size and workflow of a request.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Its workflow.
    pub workflow: Option<Workflow>,
    /// Estimated prompt tokens.
    pub prompt_tokens: u64,
    /// Body bytes.
    pub bytes: u64,
}

impl Policy {
    /// The first policy of the configuration that names the pool, else the built-in one.
    #[must_use]
    pub fn for_pool(config: &GatewayConfig, pool: &str) -> Self {
        let named = config
            .policies
            .iter()
            .find(|policy| policy.pools.iter().any(|name| name == pool));
        Self {
            config: named.cloned().unwrap_or_else(|| built_in(pool)),
        }
    }

    /// Where workflow ids are looked for; empty: the built-in order.
    #[must_use]
    pub fn identity(&self) -> &[IdentitySource] {
        &self.config.identity
    }

    /// Most workflows with a home.
    #[must_use]
    pub fn max_workflows(&self) -> u32 {
        self.config.max_workflows
    }

    /// Whether an answered request met the objectives; `None` when there are none. `ttft` is `None` for an answer in
    /// one piece, which has no first token to wait for.
    #[must_use]
    pub fn is_met(&self, ttft: Option<Duration>, completion: Duration) -> Option<bool> {
        let slo = &self.config.slo;
        if slo.ttft.is_none() && slo.completion.is_none() {
            return None;
        }
        let within = |span: Duration, limit: Option<weir_wire::Duration>| {
            limit.is_none_or(|limit| span <= Duration::from(limit))
        };
        Some(ttft.is_none_or(|ttft| within(ttft, slo.ttft)) && within(completion, slo.completion))
    }

    /// There are objectives to meet or miss.
    #[must_use]
    pub fn has_objectives(&self) -> bool {
        self.config.slo.ttft.is_some() || self.config.slo.completion.is_some()
    }

    /// The request as the scheduler sees it, wishes clamped to what the policy allows. The scheduler names it.
    ///
    /// # Errors
    /// `Invalid` for a class that does not exist.
    pub fn request(&self, wishes: Wishes<'_>, load: Load) -> Result<Request, Refusal> {
        let config = &self.config;
        Ok(Request {
            id: RequestId(0),
            workflow: load.workflow,
            class: self.class(wishes.class)?,
            weight: self.weight(wishes.priority),
            max_wait: config.priority.max_wait.map(Duration::from),
            affinity: self.affinity(load.prompt_tokens),
            idle_ttl: config.affinity.idle_ttl.into(),
            max_age: config.affinity.max_age.into(),
            tool_pause: config.tool_pause.into(),
            tool_pause_blocks_zero: config.tool_pause_blocks_zero,
            prompt_tokens: Some(load.prompt_tokens),
            bytes: load.bytes,
            not_on: None,
        })
    }

    fn class(&self, asked: Option<&str>) -> Result<Class, Refusal> {
        let priority = &self.config.priority;
        let ceiling = priority.ceiling.unwrap_or(priority.class);
        let class = match asked {
            None => priority.class,
            Some(text) => named_class(text)?.max(ceiling),
        };
        Ok(match class {
            PriorityClass::Interactive => Class::Interactive,
            PriorityClass::Standard => Class::Standard,
            PriorityClass::Batch => Class::Batch,
        })
    }

    /// The policy's weight is a ceiling: a client may only lower it.
    fn weight(&self, asked: Option<f64>) -> u32 {
        let most = self.config.priority.weight.clamp(1, 64);
        let share = asked.unwrap_or(1.0).clamp(0.0, 1.0);
        ((f64::from(most) * share).round() as u32).clamp(1, most)
    }

    fn affinity(&self, prompt_tokens: u64) -> Affinity {
        match self.config.affinity.mode {
            AffinityMode::None => Affinity::None,
            AffinityMode::Required => Affinity::Required,
            AffinityMode::Preferred => {
                let tenth_of_prefill =
                    Duration::from_millis(prompt_tokens.saturating_mul(100) / ASSUMED_PREFILL_TOKENS_PER_S);
                let patience = self.config.affinity.max_wait.map(Duration::from);
                Affinity::Preferred {
                    max_wait: patience.unwrap_or(LEAST_PATIENCE.max(tenth_of_prefill)),
                }
            }
        }
    }
}

fn named_class(text: &str) -> Result<PriorityClass, Refusal> {
    [
        ("interactive", PriorityClass::Interactive),
        ("standard", PriorityClass::Standard),
        ("batch", PriorityClass::Batch),
    ]
    .into_iter()
    .find(|(name, _)| text.eq_ignore_ascii_case(name))
    .map(|(_, class)| class)
    .ok_or_else(|| {
        Refusal::invalid(
            weir_wire::headers::PRIORITY,
            "X-Weir-Priority must be interactive, standard or batch",
        )
    })
}

/// What holds for a pool that no policy names: every default of the policy kind.
fn built_in(pool: &str) -> PolicyConfig {
    PolicyConfig {
        name: "default".to_owned(),
        pools: vec![pool.to_owned()],
        identity: Vec::new(),
        affinity: Default::default(),
        priority: Default::default(),
        slo: Default::default(),
        max_workflows: 1_000,
        tool_pause: Duration::from_secs(60).into(),
        tool_pause_blocks_zero: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(yaml: &str) -> Policy {
        let text = format!("pools: [{{name: a, model: m}}]\npolicies: [{{name: p, pools: [a], {yaml}}}]\n");
        Policy::for_pool(&GatewayConfig::parse(&text).unwrap(), "a")
    }

    fn request(policy: &Policy, class: Option<&str>, priority: Option<f64>) -> Request {
        let load = Load {
            workflow: None,
            prompt_tokens: 100_000,
            bytes: 1,
        };
        policy.request(Wishes { class, priority }, load).unwrap()
    }

    #[test]
    fn wishes_are_clamped_to_the_ceiling() {
        let check = |yaml: &str, asked: Option<&str>, expected: Class| {
            assert_eq!(
                request(&policy(yaml), asked, None).class,
                expected,
                "{yaml} {asked:?}"
            );
        };
        check("", None, Class::Standard);
        check("", Some("interactive"), Class::Standard);
        check("", Some("BATCH"), Class::Batch);
        check(
            "priority: {ceiling: Interactive}",
            Some("interactive"),
            Class::Interactive,
        );
        check("priority: {ceiling: Interactive}", None, Class::Standard);
        check("priority: {class: Batch}", Some("standard"), Class::Batch);
    }

    #[test]
    fn weight_can_only_be_lowered() {
        let heavy = policy("priority: {weight: 8}");
        for (asked, expected) in [
            (None, 8),
            (Some(0.5), 4),
            (Some(100.0), 8),
            (Some(0.0001), 1),
            (Some(f64::NAN), 1),
        ] {
            assert_eq!(request(&heavy, None, asked).weight, expected, "{asked:?}");
        }
    }

    #[test]
    fn unknown_classes_are_refused_by_header() {
        let load = Load {
            workflow: None,
            prompt_tokens: 0,
            bytes: 0,
        };
        let wishes = Wishes {
            class: Some("urgent"),
            priority: None,
        };
        assert!(matches!(
            policy("").request(wishes, load),
            Err(Refusal::Invalid { param: Some(param), .. }) if param == "x-weir-priority"
        ));
    }

    #[test]
    fn patience_for_a_home_grows_with_the_prompt() {
        let check = |yaml: &str, expected: Affinity| {
            assert_eq!(request(&policy(yaml), None, None).affinity, expected, "{yaml}");
        };
        let preferred = |millis| Affinity::Preferred {
            max_wait: Duration::from_millis(millis),
        };
        check("", preferred(1_000));
        check("affinity: {maxWait: 3s}", preferred(3_000));
        check("affinity: {mode: Required}", Affinity::Required);
        check("affinity: {mode: None}", Affinity::None);
    }

    #[test]
    fn objectives_are_met_together() {
        let both = policy("slo: {ttft: 2s, completion: 10s}");
        let met =
            |ttft, completion| both.is_met(Some(Duration::from_secs(ttft)), Duration::from_secs(completion));
        assert_eq!(met(2, 10), Some(true));
        assert_eq!(met(3, 10), Some(false));
        assert_eq!(met(1, 11), Some(false));
        assert_eq!(both.is_met(None, Duration::from_secs(10)), Some(true));
        assert_eq!(policy("").is_met(None, Duration::ZERO), None);
    }
}
