//! Everything one pool's reconcile reads, from caches and board. No list, no poll.

use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1::Deployment, core::v1::ObjectReference, networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Resource, ResourceExt,
    core::{ApiResource, DynamicObject, error_boundary::InvalidObject},
};
use serde_json::json;
use weir_crds::{
    LLMPool,
    condition::{ConditionType, Reason, State},
    names,
};

use crate::{
    calls::{TIMEOUT, manager},
    events::What,
    gateway::config,
    key::Key,
    operator::Operator,
    queue::Outcome,
    scaling::outlook::Outlook,
};

/// What there is.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The pool.
    pub pool: LLMPool,
    /// All pools of its namespace, itself included.
    pub siblings: Vec<LLMPool>,
    /// Its engine Deployment.
    pub deployment: Option<Arc<Deployment>>,
    /// Its disruption budget.
    pub budget: Option<Arc<PodDisruptionBudget>>,
    /// Its NetworkPolicy.
    pub network_policy: Option<Arc<NetworkPolicy>>,
    /// Its scaler's last look.
    pub outlook: Option<Arc<Outlook>>,
    /// Hash of the configuration that its gateway should run with.
    pub config_hash: Option<String>,
    /// How many policies hold for it.
    pub policies: usize,
}

/// What a key stands for.
#[derive(Debug)]
pub enum Found {
    /// A pool.
    Pool(Box<Observed>),
    /// An object that cannot be read as a pool.
    Unreadable(Box<InvalidObject>),
    /// Nothing, or a pool that is being deleted: garbage collection does the rest.
    Gone,
}

/// Reads everything.
#[must_use]
pub fn observe(operator: &Operator, key: &Key) -> Found {
    let Some(found) = operator.caches.pools.get(key) else {
        return Found::Gone;
    };
    let pool = match &found.0 {
        Ok(pool) => pool.clone(),
        Err(invalid) => return Found::Unreadable(Box::new(invalid.clone())),
    };
    if pool.metadata.deletion_timestamp.is_some() {
        return Found::Gone;
    }
    let siblings = operator.pools_of(&key.namespace);
    let policies = operator.policies_of(&key.namespace);
    let engine = key.sibling(&names::engine(&key.name));
    let rendered = config::render(&pool.spec.gateway, &siblings, &policies, &operator.workflows);
    Found::Pool(Box::new(Observed {
        deployment: operator.caches.deployments.get(&engine),
        budget: operator.caches.budgets.get(&engine),
        network_policy: operator.caches.network_policies.get(&engine),
        outlook: operator.outlooks.get(key, &pool.uid().unwrap_or_default()),
        config_hash: rendered.as_ref().ok().and_then(|config| config.hash().ok()),
        policies: rendered.map_or(0, |config| {
            config
                .policies
                .iter()
                .filter(|policy| policy.name != config::DEFAULT_POLICY && policy.pools.contains(&key.name))
                .count()
        }),
        pool,
        siblings,
    }))
}

/// Says on an unreadable object what is wrong with it, once per version of its spec.
pub async fn report_unreadable(operator: &Operator, key: &Key, invalid: &InvalidObject) -> Outcome {
    report::<LLMPool>(operator, key, invalid, ConditionType::Ready).await
}

/// The same for any of our kinds: an event, and one condition in its status.
pub async fn report<K: Resource<DynamicType = ()>>(
    operator: &Operator,
    key: &Key,
    invalid: &InvalidObject,
    condition: ConditionType,
) -> Outcome {
    let kind = K::kind(&()).into_owned();
    operator.metrics.unreadable.with_label_values(&[&kind]).inc();
    if !operator.first_report(&kind, key, invalid) {
        return Outcome::Done;
    }
    let note = format!("this object cannot be read as {kind}: {}", invalid.error);
    tracing::warn!(%kind, object = %key, error = invalid.error, "an object cannot be read");
    let about = ObjectReference {
        api_version: Some(names::API_VERSION.to_owned()),
        kind: Some(kind.clone()),
        name: Some(key.name.clone()),
        namespace: Some(key.namespace.clone()),
        uid: invalid.metadata.uid.clone(),
        ..ObjectReference::default()
    };
    operator.events.publish(&about, What::Invalid, &note).await;
    let api: Api<DynamicObject> = Api::namespaced_with(
        operator.calls.client(),
        &key.namespace,
        &ApiResource::erase::<K>(&()),
    );
    let status = json!({
        "apiVersion": names::API_VERSION, "kind": kind,
        "metadata": {"name": key.name},
        "status": {"conditions": [{
            "type": condition.as_str(),
            "status": State::False.as_str(),
            "reason": Reason::Invalid.as_str(),
            "message": note,
            "observedGeneration": invalid.metadata.generation,
            "lastTransitionTime": crate::scaling::instant::whole_second(jiff::Timestamp::now()).to_string(),
        }]},
    });
    let patch = kube::api::Patch::Apply(status);
    let manager = manager();
    let written = api.patch_status(&key.name, &manager, &patch);
    match operator.calls.write("report_unreadable", TIMEOUT, written).await {
        Ok(_) => Outcome::Done,
        // It was deleted meanwhile.
        Err(error) if error.is_stale() => Outcome::Done,
        Err(error) => {
            tracing::warn!(object = %key, %error, "the condition of an unreadable object could not be written");
            operator.forget_report(&kind, key);
            Outcome::Failed
        }
    }
}
