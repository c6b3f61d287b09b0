//! What the engine Deployment's object says. Pure.

use k8s_openapi::api::apps::v1::Deployment;
use kube::Resource;
use weir_crds::names;

/// Whether an object belongs to the pool of that UID.
#[must_use]
pub fn owned_by(object: &impl Resource, uid: &str) -> bool {
    object
        .meta()
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.uid == uid)
}

/// The Deployment has not caught up with its template.
#[must_use]
pub fn rolling(deployment: &Deployment) -> bool {
    let Some(status) = &deployment.status else {
        return true;
    };
    let updated = status.updated_replicas.unwrap_or(0);
    status.observed_generation < deployment.metadata.generation || updated < status.replicas.unwrap_or(0)
}

/// Why no pod can be made from the template, in the API server's words: a quota, Pod Security, a missing class.
#[must_use]
pub fn refused_pods(deployment: &Deployment) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.iter().flatten();
    let mut failures = conditions.filter(|found| found.type_ == "ReplicaFailure" && found.status == "True");
    let failure = failures.next()?;
    Some(failure.message.clone().unwrap_or_default())
}

/// Field managers besides our own that wrote replicas.
#[must_use]
pub fn writers(deployment: &Deployment) -> String {
    let mut writers: Vec<&str> = deployment
        .metadata
        .managed_fields
        .iter()
        .flatten()
        .filter(|entry| entry.manager.as_deref() != Some(names::FIELD_MANAGER))
        .filter(|entry| {
            let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
            fields.is_some_and(|fields| fields.pointer("/f:spec/f:replicas").is_some())
        })
        .filter_map(|entry| entry.manager.as_deref())
        .collect();
    writers.sort_unstable();
    writers.dedup();
    if writers.is_empty() {
        "an unknown writer".to_owned()
    } else {
        writers.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(generation: i64, status: &Value, managed: &Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"generation": generation, "managedFields": managed, "ownerReferences": [
                {"apiVersion": "weir.dev/v1alpha1", "kind": "LLMPool", "name": "coder", "uid": "u"},
            ]},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_rollout_lasts_until_every_pod_is_of_the_new_template() {
        let is_rolling = |status: Value| rolling(&deployment(2, &status, &json!([])));
        assert!(is_rolling(
            json!({"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1})
        ));
        assert!(is_rolling(
            json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1})
        ));
        assert!(!is_rolling(
            json!({"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1})
        ));
        assert!(
            !is_rolling(json!({"observedGeneration": 2})),
            "no pods, nothing to replace"
        );
    }

    #[test]
    fn pods_that_cannot_be_made_are_a_failure_in_the_deployments_status() {
        let refused = |status: &str| {
            let condition = json!({"type": "ReplicaFailure", "status": status, "message": "exceeded quota"});
            refused_pods(&deployment(1, &json!({"conditions": [condition]}), &json!([])))
        };
        assert_eq!(refused("True").as_deref(), Some("exceeded quota"));
        assert_eq!(refused("False"), None);
        assert_eq!(refused_pods(&deployment(1, &json!({}), &json!([]))), None);
    }

    #[test]
    fn other_writers_of_replicas_are_named() {
        let entry = |manager: &str, fields: Value| json!({"manager": manager, "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": fields});
        let replicas = json!({"f:spec": {"f:replicas": {}}});
        let managed = json!([
            entry("weir-operator", replicas.clone()),
            entry("kubectl", replicas),
            entry("kube-controller-manager", json!({"f:status": {}})),
        ]);
        assert_eq!(writers(&deployment(1, &json!({}), &managed)), "kubectl");
        assert_eq!(
            writers(&deployment(1, &json!({}), &json!([]))),
            "an unknown writer"
        );
        assert!(owned_by(&deployment(1, &json!({}), &json!([])), "u"));
        assert!(!owned_by(&deployment(1, &json!({}), &json!([])), "other"));
    }
}
