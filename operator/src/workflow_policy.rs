//! One reconcile of one WorkflowPolicy. It owns no objects: it reaches the gateways through their configuration
//! (`gateway/config.rs`), and only its status is written here.

pub mod status;
pub mod validate;

use jiff::Timestamp;
use kube::{Api, Resource, ResourceExt, api::Patch};
use serde_json::json;
use weir_crds::{WorkflowPolicy, condition::ConditionType};

use crate::{
    calls::{TIMEOUT, manager},
    key::Key,
    llm_pool::observe::report,
    operator::Operator,
    queue::Outcome,
};

/// Brings the status of one policy to what holds.
pub async fn reconcile(operator: Operator, key: Key) -> Outcome {
    // (client) the policy, its neighbours, and what their gateways run with
    let Some(found) = operator.caches.policies.get(&key) else {
        operator.forget_report(&WorkflowPolicy::kind(&()), &key);
        return Outcome::Done;
    };
    let policy = match &found.0 {
        Ok(policy) => {
            operator.forget_report(&WorkflowPolicy::kind(&()), &key);
            policy
        }
        Err(invalid) => {
            return report::<WorkflowPolicy>(&operator, &key, invalid, ConditionType::Accepted).await;
        }
    };
    if policy.metadata.deletion_timestamp.is_some() {
        return Outcome::Done;
    }
    let pools = operator.pools_of(&key.namespace);
    let policies = operator.policies_of(&key.namespace);

    // (pure) which pools it holds for
    let standing = validate::standing(policy, &policies, &pools);
    let reach: Vec<status::Reach> = standing
        .holds
        .iter()
        .map(|pool| status::reach(&operator, &key, pool, &pools, &policies))
        .collect();

    // (pure) what the status should say, then (client) written if anything but time differs
    let wanted = status::derive(policy, &standing, &reach, Timestamp::now());
    if policy.status.as_ref() == Some(&wanted) {
        return Outcome::Done;
    }
    let api: Api<WorkflowPolicy> = Api::namespaced(operator.calls.client(), &key.namespace);
    let body = json!({
        "apiVersion": WorkflowPolicy::api_version(&()), "kind": WorkflowPolicy::kind(&()),
        "metadata": {"name": key.name, "uid": policy.uid()},
        "status": wanted,
    });
    let patch = Patch::Apply(body);
    let written = operator
        .calls
        .write(
            "write_policy_status",
            TIMEOUT,
            api.patch_status(&key.name, &manager(), &patch),
        )
        .await;
    let outcome = match written {
        Ok(_) => Outcome::Done,
        // The policy was deleted, or made anew.
        Err(error) if error.is_stale() => Outcome::Done,
        Err(error) => {
            tracing::warn!(policy = %key, %error, "the status could not be written");
            Outcome::Failed
        }
    };
    let label = if outcome == Outcome::Done { "ok" } else { "failed" };
    operator
        .metrics
        .reconciles
        .with_label_values(&["WorkflowPolicy", label])
        .inc();
    outcome
}
