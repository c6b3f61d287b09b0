//! What a policy's status says. [`reach`] reads caches; the rest is pure.

use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt;
use weir_crds::{
    LLMPool, WorkflowPolicy, WorkflowPolicyStatus,
    condition::{self, ConditionType, Reason, State, Wanted},
    millis,
    workflowpolicy::PolicyGoodput,
};

use super::validate::Standing;
use crate::{gateway::config, key::Key, operator::Operator, scaling::outlook::Outlook};

/// Most pools that the status lists.
const MAX_LISTED: usize = 256;

/// One pool that a policy holds for.
#[derive(Debug, Clone)]
pub struct Reach {
    /// Its name.
    pub pool: String,
    /// Hash of the configuration that its gateway should run with.
    pub wanted: Option<String>,
    /// What its scaler knows.
    pub outlook: Option<Arc<Outlook>>,
}

impl Reach {
    fn in_force(&self) -> bool {
        let Some(outlook) = &self.outlook else {
            return false;
        };
        self.wanted.is_some()
            && !outlook.configurations.is_empty()
            && outlook
                .configurations
                .iter()
                .all(|(_, hash)| *hash == self.wanted)
    }
}

/// Looks one pool up.
#[must_use]
pub fn reach(
    operator: &Operator,
    key: &Key,
    pool: &str,
    pools: &[LLMPool],
    policies: &[WorkflowPolicy],
) -> Reach {
    let found = pools.iter().find(|found| found.name_any() == pool);
    Reach {
        pool: pool.to_owned(),
        wanted: found
            .and_then(|found| config::render(&found.spec.gateway, pools, policies, &operator.workflows).ok())
            .and_then(|config| config.hash().ok()),
        outlook: found.and_then(|found| {
            operator
                .outlooks
                .get(&key.sibling(pool), &found.uid().unwrap_or_default())
        }),
    }
}

/// The new status.
#[must_use]
pub fn derive(
    policy: &WorkflowPolicy,
    standing: &Standing,
    reach: &[Reach],
    now: Timestamp,
) -> WorkflowPolicyStatus {
    let current = policy.status.clone().unwrap_or_default();
    let generation = policy.metadata.generation;
    let wanted = [
        (ConditionType::Accepted, accepted(standing)),
        (ConditionType::Programmed, programmed(standing, reach)),
    ]
    .map(|(condition, (state, reason, message))| Wanted {
        condition,
        state,
        reason,
        message,
        observed_generation: generation,
    });
    // A policy that holds for a pool holds for all of its requests, so the pool's numbers are the policy's.
    let known: Vec<&Outlook> = reach
        .iter()
        .filter_map(|reach| reach.outlook.as_deref())
        .collect();
    let met: u64 = known.iter().map(|outlook| outlook.demand.slo_met).sum();
    let total: u64 = known.iter().map(|outlook| outlook.demand.slo_total).sum();
    let all_known = !known.is_empty() && known.len() == reach.len() && known.iter().all(|o| o.demand.known());
    WorkflowPolicyStatus {
        conditions: condition::merge(&current.conditions, &wanted, now),
        observed_generation: generation,
        matched_pools: standing.matched.iter().take(MAX_LISTED).cloned().collect(),
        active_workflows: all_known.then(|| {
            known.iter().fold(0, |sum: u32, outlook| {
                sum.saturating_add(outlook.demand.open_workflows)
            })
        }),
        goodput: (total > 0).then(|| PolicyGoodput {
            window: known
                .iter()
                .filter_map(|outlook| outlook.demand.window)
                .max()
                .map(millis),
            percent: u8::try_from(met.min(total).saturating_mul(100) / total).ok(),
            requests: Some(total),
        }),
    }
}

fn accepted(standing: &Standing) -> (State, Reason, String) {
    if let Some(problem) = &standing.problem {
        return (State::False, Reason::Invalid, problem.clone());
    }
    if standing.matched.is_empty() {
        let text = if standing.missing.is_empty() {
            "spec.poolSelector selects no pool of this namespace".to_owned()
        } else {
            format!(
                "no pool of this namespace is called {}",
                standing.missing.join(", ")
            )
        };
        return (State::False, Reason::NoPools, text);
    }
    if !standing.overlapped.is_empty() {
        let list: Vec<String> = standing
            .overlapped
            .iter()
            .map(|(pool, by)| format!("{pool} (policy {by})"))
            .collect();
        let text = format!(
            "another policy is more specific, older or first by name for {}",
            list.join(", ")
        );
        return (State::True, Reason::Overlapped, text);
    }
    if !standing.missing.is_empty() {
        let text = format!(
            "no pool of this namespace is called {}",
            standing.missing.join(", ")
        );
        return (State::True, Reason::ReferenceMissing, text);
    }
    (State::True, Reason::Valid, String::new())
}

fn programmed(standing: &Standing, reach: &[Reach]) -> (State, Reason, String) {
    let behind: Vec<&str> = reach
        .iter()
        .filter(|reach| !reach.in_force())
        .map(|reach| reach.pool.as_str())
        .collect();
    if standing.problem.is_some() || standing.holds.is_empty() {
        (
            State::False,
            Reason::NoPools,
            "the policy holds for no pool".to_owned(),
        )
    } else if behind.is_empty() {
        (State::True, Reason::InForce, String::new())
    } else {
        (
            State::False,
            Reason::Pending,
            format!("not in force yet for {}", behind.join(", ")),
        )
    }
}
