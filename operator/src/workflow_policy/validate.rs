//! Which pools a policy holds for. Pure.

use kube::{
    ResourceExt,
    core::{Selector, SelectorExt},
};
use weir_crds::{LLMPool, WorkflowPolicy};

/// How a policy stands among its neighbours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// What is wrong with it.
    pub problem: Option<String>,
    /// Pools it names or selects.
    pub matched: Vec<String>,
    /// Those among them for which it comes first.
    pub holds: Vec<String>,
    /// Those for which another policy comes first, with its name.
    pub overlapped: Vec<(String, String)>,
    /// Pools it names that do not exist.
    pub missing: Vec<String>,
}

/// Policies in the order in which they are tried: the most specific, then the oldest, then by name.
#[must_use]
pub fn in_order(policies: &[WorkflowPolicy]) -> Vec<&WorkflowPolicy> {
    let mut ordered: Vec<&WorkflowPolicy> = policies.iter().collect();
    ordered.sort_by_cached_key(|policy| {
        (
            std::cmp::Reverse(specificity(policy)),
            policy.metadata.creation_timestamp.as_ref().map(|at| at.0),
            policy.name_any(),
        )
    });
    ordered
}

/// More parts of `match` are more specific; names of pools are more specific than a selector.
fn specificity(policy: &WorkflowPolicy) -> (usize, bool) {
    let parts = policy.spec.matches.as_ref().map_or(0, |matches| {
        usize::from(!matches.tenants.is_empty())
            + usize::from(!matches.headers.is_empty())
            + usize::from(!matches.workflow_classes.is_empty())
    });
    (parts, !policy.spec.pools.is_empty())
}

/// Whether a policy names or selects a pool.
#[must_use]
pub fn selects(policy: &WorkflowPolicy, pool: &LLMPool) -> bool {
    if policy.spec.pools.contains(&pool.name_any()) {
        return true;
    }
    let Some(selector) = &policy.spec.pool_selector else {
        return false;
    };
    Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(pool.labels()))
}

/// What is wrong with a policy by itself.
#[must_use]
pub fn problem(policy: &WorkflowPolicy) -> Option<String> {
    let selector = policy.spec.pool_selector.clone()?;
    Selector::try_from(selector)
        .err()
        .map(|error| format!("spec.poolSelector: {error}"))
}

/// Compares a policy with all policies and pools of its namespace.
#[must_use]
pub fn standing(policy: &WorkflowPolicy, policies: &[WorkflowPolicy], pools: &[LLMPool]) -> Standing {
    let ordered = in_order(policies);
    let mut standing = Standing {
        problem: problem(policy),
        missing: policy
            .spec
            .pools
            .iter()
            .filter(|name| !pools.iter().any(|pool| pool.name_any() == **name))
            .cloned()
            .collect(),
        ..Standing::default()
    };
    for pool in pools.iter().filter(|pool| selects(policy, pool)) {
        let name = pool.name_any();
        standing.matched.push(name.clone());
        let first = ordered
            .iter()
            .find(|other| problem(other).is_none() && selects(other, pool));
        match first {
            Some(first) if first.name_any() != policy.name_any() => {
                standing.overlapped.push((name, first.name_any()));
            }
            Some(_) | None => standing.holds.push(name),
        }
    }
    standing.matched.sort();
    standing
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(name: &str, second: u32, spec: &Value) -> WorkflowPolicy {
        serde_json::from_value(json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "WorkflowPolicy",
            "metadata": {"name": name, "namespace": "n", "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": spec,
        }))
        .unwrap()
    }

    fn pool(name: &str, labels: &Value) -> LLMPool {
        serde_json::from_value(json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "LLMPool",
            "metadata": {"name": name, "namespace": "n", "uid": name, "labels": labels},
            "spec": {"model": {"name": name, "source": "image"}, "engine": {"image": "e"}},
        }))
        .unwrap()
    }

    #[test]
    fn names_come_before_selectors_and_older_before_younger() {
        let policies = [
            policy("all", 1, &json!({"poolSelector": {}})),
            policy("young", 9, &json!({"pools": ["a"]})),
            policy("old", 5, &json!({"pools": ["a", "gone"]})),
        ];
        let pools = [pool("a", &json!({"team": "x"})), pool("b", &json!({}))];
        let names: Vec<String> = in_order(&policies)
            .iter()
            .map(|policy| policy.name_any())
            .collect();
        assert_eq!(names, ["old", "young", "all"]);
        let all = standing(&policies[0], &policies, &pools);
        assert_eq!(
            (all.matched, all.holds),
            (vec!["a".to_owned(), "b".to_owned()], vec!["b".to_owned()])
        );
        assert_eq!(all.overlapped, [("a".to_owned(), "old".to_owned())]);
        let old = standing(&policies[2], &policies, &pools);
        assert_eq!(
            (old.holds, old.missing),
            (vec!["a".to_owned()], vec!["gone".to_owned()])
        );
    }

    #[test]
    fn selectors_select_by_label() {
        let select = |selector: Value| policy("p", 1, &json!({"poolSelector": selector}));
        let pool = pool("a", &json!({"team": "x"}));
        assert!(selects(&select(json!({"matchLabels": {"team": "x"}})), &pool));
        assert!(!selects(&select(json!({"matchLabels": {"team": "y"}})), &pool));
        let expression = json!({"matchExpressions": [{"key": "team", "operator": "Exists"}]});
        assert!(selects(&select(expression), &pool));
        let wrong = select(json!({"matchExpressions": [{"key": "team", "operator": "Like"}]}));
        assert!(problem(&wrong).is_some_and(|text| text.contains("poolSelector")));
        assert!(!selects(&wrong, &pool));
    }
}
