//! What an operator says of kinds that are missing or older than it.

use std::sync::Arc;

use kube::CustomResourceExt;
use serde_json::{Value, json};
use weir_crds::{LLMPool, WorkflowPolicy};
use weir_operator::kinds;

use crate::mock::Mock;

fn schema(crd: &impl serde::Serialize) -> Value {
    let crd = serde_json::to_value(crd).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

#[tokio::test]
async fn missing_kinds_are_named_with_what_to_do() {
    let mock = Arc::new(Mock::default());
    let watched = ["agents".to_owned()];
    let missing = kinds::missing(&mock.client(), &watched).await;
    assert_eq!(missing.len(), 2, "{missing:?}");
    assert!(
        missing[0].contains("llmpools.weir.dev is not installed"),
        "{}",
        missing[0]
    );
    assert!(missing[0].contains("crds/yaml"), "{}", missing[0]);
    for plural in ["llmpools", "workflowpolicies"] {
        // An operator of one namespace asks there, and nowhere else.
        let path = format!("/apis/weir.dev/v1alpha1/namespaces/agents/{plural}");
        mock.put(&path, json!({"kind": "List", "apiVersion": "v1", "items": []}));
    }
    assert_eq!(
        kinds::missing(&mock.client(), &watched).await,
        Vec::<String>::new()
    );
    assert_eq!(kinds::missing(&mock.client(), &[]).await.len(), 2);
}

#[tokio::test]
async fn fields_that_older_kinds_lack_are_named() {
    let mock = Arc::new(Mock::default());
    let path = "/openapi/v3/apis/weir.dev/v1alpha1";
    let mut schemas = json!({
        "dev.weir.v1alpha1.LLMPool": schema(&LLMPool::crd()),
        "dev.weir.v1alpha1.WorkflowPolicy": schema(&WorkflowPolicy::crd()),
    });
    mock.put(path, json!({"components": {"schemas": schemas}, "metadata": {}}));
    assert_eq!(
        kinds::lacking(&mock.client()).await.unwrap(),
        Vec::<String>::new()
    );
    let spec = &mut schemas["dev.weir.v1alpha1.LLMPool"]["properties"]["spec"]["properties"];
    spec["hold"]["properties"]
        .as_object_mut()
        .unwrap()
        .remove("timeout");
    mock.put(path, json!({"components": {"schemas": schemas}, "metadata": {}}));
    assert_eq!(
        kinds::lacking(&mock.client()).await.unwrap(),
        ["LLMPool.spec.hold.timeout"]
    );
    assert!(kinds::lacking(&Arc::new(Mock::default()).client()).await.is_err());
}
