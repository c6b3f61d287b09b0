//! The pools of `deploy/samples`.

use super::*;

#[test]
fn every_sample_can_be_built() {
    let samples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples");
    let mut pools = 0;
    for entry in std::fs::read_dir(samples).unwrap() {
        let file = entry.unwrap().path();
        let text = std::fs::read_to_string(&file).unwrap();
        for object in serde_saphyr::from_multiple::<Value>(&text).unwrap() {
            if object["kind"] != "LLMPool" {
                continue;
            }
            let pool = sample(&object.to_string());
            let (valid, desired) = built(&pool);
            assert_eq!(valid.refusal, None, "{}", file.display());
            let pod = desired.deployment.spec.unwrap().template.spec.unwrap();
            let limits = pod.containers[0].resources.clone().unwrap_or_default().limits;
            let wanted = pool.spec.accelerator.as_ref().and_then(|it| it.resource.as_ref());
            assert!(
                wanted.is_none_or(|resource| limits.is_some_and(|limits| limits.contains_key(resource))),
                "{}: the engine does not get its accelerator",
                file.display()
            );
            pools += 1;
        }
    }
    assert!(pools >= 8, "only {pools} pools");
}
