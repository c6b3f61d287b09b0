//! What to do about the scheduler's words. Pure: the operator reads no nodes, and needs no right to.

use weir_crds::LLMPoolSpec;

use crate::references::{Kind, named};

/// Sentences that go after what the scheduler said of an engine pod; empty where nothing is known to help.
pub(super) fn cure(said: &str, spec: &LLMPoolSpec) -> String {
    let mut cures = Vec::new();
    let resource = spec.accelerator.as_ref().and_then(|accelerator| {
        let resource = accelerator.resource.as_deref()?;
        said.contains(&format!("Insufficient {resource}"))
            .then_some((resource, accelerator.count))
    });
    if let Some((resource, count)) = resource {
        cures.push(format!(
            "no node has {count} {resource} left: free some or add a node; where `kubectl describe node` shows none at \
             all, install the device plugin of your accelerators; or change spec.accelerator"
        ));
    }
    if [
        "Insufficient cpu",
        "Insufficient memory",
        "Insufficient ephemeral-storage",
    ]
    .iter()
    .any(|lack| said.contains(lack))
    {
        cures.push("lower spec.resources.requests, or add a node".to_owned());
    }
    if said.contains("untolerated taint") {
        cures.push("add the taint to spec.scheduling.tolerations, if engines may run there".to_owned());
    }
    if said.contains("node affinity/selector") {
        cures.push(
            "see spec.scheduling.nodeSelector and nodeAffinity: `kubectl get nodes --show-labels`".to_owned(),
        );
    }
    if said.contains("unbound immediate PersistentVolumeClaims")
        || said.contains("persistent volumes to bind")
    {
        let mut claims: Vec<String> = named(spec)
            .into_iter()
            .filter(|named| named.kind == Kind::PersistentVolumeClaim)
            .map(|named| named.name)
            .collect();
        claims.dedup();
        cures.push(format!(
            "a claim of {} has no volume: `kubectl describe pvc` says why; a claim that names no storageClassName needs a \
             default StorageClass (`kubectl get storageclass`)",
            claims.join(", ")
        ));
    }
    cures.join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(said: &str, expected: &[&str]) {
        let spec: LLMPoolSpec = serde_json::from_value(json!({
            "model": {"name": "m", "source": "pvc://weights/a"}, "engine": {"image": "e"},
            "accelerator": {"resource": "nvidia.com/gpu", "count": 8}, "cache": {"claimName": "weights"},
        }))
        .unwrap();
        let cure = cure(said, &spec);
        assert_eq!(cure.is_empty(), expected.is_empty(), "{cure}");
        for part in expected {
            assert!(cure.contains(part), "`{cure}` lacks `{part}`");
        }
    }

    #[test]
    fn the_scheduler_is_answered() {
        check(
            "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: }, 2 Insufficient nvidia.com/gpu.",
            &["8 nvidia.com/gpu", "device plugin", "tolerations"],
        );
        check("0/1 nodes are available: 1 Insufficient memory.", &["requests"]);
        check(
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
            &["nodeSelector"],
        );
        check(
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found",
            &["of weights has", "default StorageClass"],
        );
        check("0/1 nodes are available: 1 Insufficient example.com/fpga.", &[]);
        check("", &[]);
    }
}
