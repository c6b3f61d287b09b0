//! What the operator may ask of the API server, and what to do where it may not. The chart grants the same
//! (`charts/weir/templates/_helpers.tpl`, with the reasons); a test compares the two.

use kube::core::Status;

/// API group, resource (with its subresource), verbs, in every namespace that is watched.
pub const RIGHTS: [(&str, &str, &[&str]); 17] = [
    ("weir.dev", "llmpools", READ),
    ("weir.dev", "workflowpolicies", READ),
    ("weir.dev", "llmpools/status", &["patch"]),
    ("weir.dev", "workflowpolicies/status", &["patch"]),
    ("apps", "deployments", OWN),
    ("apps", "deployments/scale", &["get", "patch"]),
    ("", "services", OWN),
    ("", "serviceaccounts", OWN),
    ("", "configmaps", OWN),
    ("policy", "poddisruptionbudgets", OWN),
    ("networking.k8s.io", "networkpolicies", OWN),
    ("rbac.authorization.k8s.io", "roles", OWN),
    ("rbac.authorization.k8s.io", "rolebindings", OWN),
    ("", "pods", &["get", "list", "watch", "patch", "delete"]),
    ("", "secrets", &["get", "create", "patch"]),
    ("events.k8s.io", "events", &["create", "patch"]),
    ("coordination.k8s.io", "leases", &["get", "create", "update"]),
];

/// The kind whose rights are needed in the operator's own namespace alone, and for one name.
pub const LEASES: &str = "leases";

const READ: &[&str] = &["get", "list", "watch"];
const OWN: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];

/// Where rights come from.
pub const GRANT: &str = "the operator's Role or ClusterRole lacks it, or is not bound to its ServiceAccount: upgrade the chart \
                     with rbac.create=true, or apply deploy/install.yaml of this version";

/// What to do about an answer of the API server; `None` where that depends.
#[must_use]
pub fn cure(answer: &Status) -> Option<&'static str> {
    // Quotas and admission say 403 too, and no right helps there.
    let of_rights = answer.message.contains(" cannot ") || answer.message.contains("not currently held");
    match answer.code {
        401 => Some(
            "the API server does not accept the operator's token: delete the pod, so that it gets another",
        ),
        403 if of_rights => Some(GRANT),
        _ => None,
    }
}

/// What the API server said, without the status in debug form, and what to do about it.
#[must_use]
pub fn explained(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => match cure(status) {
            Some(cure) => format!("{}: {cure}", status.message),
            None => status.message.clone(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;

    fn status(code: u16, message: &str) -> Status {
        serde_json::from_value(json!({"code": code, "message": message, "reason": "x", "status": "Failure"}))
            .unwrap()
    }

    #[test]
    fn a_missing_right_is_told_from_a_quota() {
        let said = "pods is forbidden: User \"system:serviceaccount:w:weir-operator\" cannot list resource \"pods\" in API \
                    group \"\" at the cluster scope";
        assert!(cure(&status(403, said)).is_some_and(|cure| cure.contains("rbac.create=true")));
        assert!(cure(&status(401, "Unauthorized")).is_some_and(|cure| cure.contains("token")));
        let said =
            "deployments.apps \"a\" is forbidden: exceeded quota: q, requested: count/deployments.apps=1";
        assert_eq!(cure(&status(403, said)), None);
        assert_eq!(cure(&status(409, "x")), None);
        let text = explained(&kube::Error::Api(Box::new(status(403, "u cannot patch x"))));
        assert!(
            text.starts_with("u cannot patch x: the operator's Role"),
            "{text}"
        );
    }

    #[test]
    fn the_chart_grants_these_rights_and_no_others() {
        let golden = include_str!("../../charts/weir/tests/golden/default.yaml");
        let mut granted = BTreeSet::new();
        for object in serde_saphyr::from_multiple::<Value>(golden).unwrap() {
            let kind = object["kind"].as_str().unwrap_or_default();
            let of_operator = object["metadata"]["name"] == "weir-operator";
            if !(of_operator && ["Role", "ClusterRole"].contains(&kind)) {
                continue;
            }
            for rule in object["rules"].as_array().unwrap() {
                let strings = |field: &str| -> Vec<String> {
                    let list = rule[field].as_array().into_iter().flatten();
                    list.map(|it| it.as_str().unwrap().to_owned()).collect()
                };
                for group in strings("apiGroups") {
                    for resource in strings("resources") {
                        for verb in strings("verbs") {
                            granted.insert((group.clone(), resource.clone(), verb));
                        }
                    }
                }
            }
        }
        let needed: BTreeSet<_> = RIGHTS
            .iter()
            .flat_map(|(group, resource, verbs)| {
                verbs
                    .iter()
                    .map(|verb| ((*group).to_owned(), (*resource).to_owned(), (*verb).to_owned()))
            })
            .collect();
        assert_eq!(granted, needed);
    }
}
