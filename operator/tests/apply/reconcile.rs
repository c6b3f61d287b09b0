//! Reconciles: nothing changed means nothing written, drift is repaired by one write, one bad object or one silent
//! API server does not stop the rest.

use std::sync::Arc;

use serde_json::json;
use weir_operator::{calls::Calls, gateway, lease::Leadership, llm_pool, queue::Outcome, workflow_policy};

use crate::{
    fixture::{NAMESPACE, deployment_path, key, now, operator, pool_path, put_pool},
    logs::Logs,
    mock::Mock,
};

const POLICY: &str = "/apis/weir.dev/v1alpha1/namespaces/agents/workflowpolicies/all";

async fn reconcile_all(mock: &Arc<Mock>) -> Outcome {
    let operator = operator(mock, Vec::new());
    let outcomes = [
        Box::pin(llm_pool::reconcile(operator.clone(), key("coder"))).await,
        Box::pin(gateway::reconcile(operator.clone(), key("weir"))).await,
        Box::pin(workflow_policy::reconcile(operator, key("all"))).await,
    ];
    outcomes
        .into_iter()
        .find(|outcome| *outcome != Outcome::Done)
        .unwrap_or(Outcome::Done)
}

fn world() -> Arc<Mock> {
    let mock = Arc::new(Mock::default());
    put_pool(&mock, "coder", "coder-8b", &json!({}));
    mock.put(
        POLICY,
        json!({"apiVersion": "weir.dev/v1alpha1", "kind": "WorkflowPolicy",
            "metadata": {"name": "all", "namespace": NAMESPACE, "uid": "uid-all", "generation": 1},
            "spec": {"poolSelector": {}}}),
    );
    mock
}

#[tokio::test]
async fn everything_is_written_once_and_nothing_when_nothing_changed() {
    let mock = world();
    assert_eq!(reconcile_all(&mock).await, Outcome::Done);
    let mut written: Vec<String> = mock
        .writes()
        .into_iter()
        .map(|(_, path, _)| path.rsplit('/').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    written.sort();
    let expected = [
        "coder-engine deployments",
        "coder-engine networkpolicies",
        "coder-engine poddisruptionbudgets",
        "status all",
        "status coder",
        "weir services",
        "weir-control secrets",
        "weir-gateway configmaps",
        "weir-gateway deployments",
        "weir-gateway networkpolicies",
        "weir-gateway poddisruptionbudgets",
        "weir-gateway rolebindings",
        "weir-gateway roles",
        "weir-gateway serviceaccounts",
    ];
    assert_eq!(written, expected);
    let engines = mock.get(&deployment_path("coder-engine")).unwrap();
    assert_eq!(engines["spec"]["replicas"], 0, "a new pool starts nothing");
    assert_eq!(reconcile_all(&mock).await, Outcome::Done);
    assert_eq!(mock.writes(), [], "a quiet cluster sees no write");
}

#[tokio::test]
async fn drift_is_repaired_by_one_apply_that_keeps_replicas() {
    let mock = world();
    reconcile_all(&mock).await;
    let path = deployment_path("coder-engine");
    let mut engines = mock.get(&path).unwrap();
    engines["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil:1");
    engines["spec"]["replicas"] = json!(2);
    let changed = mock.put(&path, engines);
    mock.writes();
    assert_eq!(reconcile_all(&mock).await, Outcome::Done);
    let writes = mock.writes();
    assert_eq!(writes.len(), 1, "{writes:?}");
    let (method, written, body) = &writes[0];
    assert_eq!((method.as_str(), written), ("PATCH", &path));
    assert_eq!(body["spec"]["replicas"], 2, "the scaler's number stays");
    assert_eq!(
        body["metadata"]["resourceVersion"],
        changed["metadata"]["resourceVersion"]
    );
    assert_eq!(
        mock.get(&path).unwrap()["spec"]["template"]["spec"]["containers"][0]["image"],
        "engine:1"
    );
}

#[tokio::test]
async fn a_replica_patch_in_between_wins_over_the_template() {
    let mock = world();
    reconcile_all(&mock).await;
    let path = deployment_path("coder-engine");
    put_pool(
        &mock,
        "coder",
        "coder-8b",
        &json!({"engine": {"image": "engine:2"}}),
    );
    let operator = operator(&mock, Vec::new());
    // The scaler raises replicas after the caches were read.
    let mut engines = mock.get(&path).unwrap();
    engines["spec"]["replicas"] = json!(1);
    mock.put(&path, engines);
    assert_eq!(
        Box::pin(llm_pool::reconcile(operator, key("coder"))).await,
        Outcome::Failed
    );
    assert_eq!(mock.get(&path).unwrap()["spec"]["replicas"], 1);
    assert_eq!(reconcile_all(&mock).await, Outcome::Done);
    let engines = mock.get(&path).unwrap();
    assert_eq!(engines["spec"]["replicas"], 1);
    assert_eq!(
        engines["spec"]["template"]["spec"]["containers"][0]["image"],
        "engine:2"
    );
}

#[tokio::test]
async fn an_unreadable_object_is_told_once_and_does_not_stop_the_others() {
    let mock = world();
    let poison = json!({"apiVersion": "weir.dev/v1alpha1", "kind": "LLMPool",
        "metadata": {"name": "bad", "namespace": NAMESPACE, "uid": "uid-bad", "generation": 3},
        "spec": {"model": 7}});
    mock.put(&pool_path("bad"), poison);
    let operator = operator(&mock, Vec::new());
    for _ in 0..3 {
        assert_eq!(
            Box::pin(llm_pool::reconcile(operator.clone(), key("bad"))).await,
            Outcome::Done
        );
    }
    assert_eq!(mock.events(), ["Invalid"]);
    let mut later = operator.clone();
    later.caches.pools = weir_operator::caches::Cache::fixed(Vec::new());
    assert_eq!(
        Box::pin(llm_pool::reconcile(later, key("bad"))).await,
        Outcome::Done
    );
    assert!(
        operator.reported.lock().unwrap().is_empty(),
        "what is gone is forgotten"
    );
    let condition = &mock.get(&pool_path("bad")).unwrap()["status"]["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["reason"]),
        (&json!("Ready"), &json!("Invalid"))
    );
    assert!(
        condition["message"]
            .as_str()
            .unwrap()
            .contains("cannot be read as LLMPool"),
        "{condition}"
    );
    assert_eq!(reconcile_all(&mock).await, Outcome::Done);
    assert!(mock.get(&deployment_path("coder-engine")).is_some());
}

#[tokio::test]
async fn the_younger_of_two_pools_with_one_model_is_told_and_not_served() {
    let mock = world();
    put_pool(&mock, "later", "coder-8b", &json!({}));
    let operator = operator(&mock, Vec::new());
    assert_eq!(
        Box::pin(llm_pool::reconcile(operator, key("later"))).await,
        Outcome::Done
    );
    let ready = &mock.get(&pool_path("later")).unwrap()["status"]["conditions"][0];
    assert_eq!(
        (&ready["status"], &ready["reason"]),
        (&json!("False"), &json!("ModelConflict"))
    );
    assert_eq!(mock.events(), ["ModelConflict"]);
    reconcile_all(&mock).await;
    let config = mock
        .get("/api/v1/namespaces/agents/configmaps/weir-gateway")
        .unwrap();
    let config = config["data"]["gateway.yaml"].as_str().unwrap();
    assert!(
        config.contains("name: coder") && !config.contains("name: later"),
        "{config}"
    );
}

#[tokio::test]
async fn somebody_elses_object_is_left_alone() {
    let mock = world();
    let path = deployment_path("coder-engine");
    mock.put(
        &path,
        json!({"metadata": {"name": "coder-engine", "namespace": NAMESPACE}, "spec": {"replicas": 7}}),
    );
    // The caches hold objects with our label only.
    let mut operator = operator(&mock, Vec::new());
    operator.caches.deployments = weir_operator::caches::Cache::fixed(Vec::new());
    assert_eq!(
        Box::pin(llm_pool::reconcile(operator, key("coder"))).await,
        Outcome::Failed
    );
    assert_eq!(mock.get(&path).unwrap()["spec"], json!({"replicas": 7}));
    let ready = &mock.get(&pool_path("coder")).unwrap()["status"]["conditions"][0];
    assert_eq!(ready["reason"], "ObjectConflict");
}

#[tokio::test]
async fn a_namespace_that_ends_is_left_alone_quietly() {
    let mock = world();
    reconcile_all(&mock).await;
    mock.writes();
    // The namespace controller takes kind after kind; the pool is still there when its objects go.
    mock.end_namespace();
    mock.take(&deployment_path("coder-engine"));
    mock.take("/api/v1/namespaces/agents/services/weir");
    let logs = Logs::listen();
    assert_eq!(
        reconcile_all(&mock).await,
        Outcome::Done,
        "nothing is tried again"
    );
    let writes: Vec<String> = mock.writes().into_iter().map(|(_, path, _)| path).collect();
    let tried = [
        deployment_path("coder-engine"),
        "/api/v1/namespaces/agents/services/weir".to_owned(),
    ];
    assert_eq!(writes, tried, "one attempt each, which is how it is noticed");
    assert_eq!(mock.events(), Vec::<String>::new());
    assert_eq!(logs.text(), "");
}

#[tokio::test]
async fn a_refusal_for_another_reason_is_told_and_tried_again() {
    let mock = world();
    mock.refuse_once("/deployments/coder-engine", 403);
    let logs = Logs::listen();
    assert_eq!(reconcile_all(&mock).await, Outcome::Failed);
    assert_eq!(mock.events(), ["ApplyFailed"]);
    assert!(logs.text().contains("a reconcile failed"), "{}", logs.text());
}

#[tokio::test(start_paused = true)]
async fn an_api_call_that_hangs_times_out_and_the_rest_goes_on() {
    let mock = world();
    mock.hang("/deployments/coder-engine");
    let operator = operator(&mock, Vec::new());
    let began = now();
    assert_eq!(
        Box::pin(llm_pool::reconcile(operator.clone(), key("coder"))).await,
        Outcome::Failed
    );
    assert!(
        began.elapsed() <= weir_operator::calls::TIMEOUT * 2,
        "{:?}",
        began.elapsed()
    );
    let ready = &mock.get(&pool_path("coder")).unwrap()["status"]["conditions"][0];
    assert_eq!(ready["reason"], "ApplyFailed");
    assert_eq!(
        Box::pin(gateway::reconcile(operator, key("weir"))).await,
        Outcome::Done
    );
}

#[tokio::test]
async fn without_the_lease_nothing_is_written() {
    let mock = world();
    let mut operator = operator(&mock, Vec::new());
    let lost = Leadership::new(1, None);
    lost.end();
    operator.calls = Calls::new(mock.client(), lost, operator.metrics.clone());
    assert_eq!(
        Box::pin(llm_pool::reconcile(operator.clone(), key("coder"))).await,
        Outcome::Failed
    );
    assert_eq!(
        Box::pin(gateway::reconcile(operator, key("weir"))).await,
        Outcome::Failed
    );
    assert_eq!(mock.writes(), []);
}

#[tokio::test]
async fn a_gateway_that_no_pool_names_is_removed() {
    let mock = world();
    reconcile_all(&mock).await;
    put_pool(&mock, "coder", "coder-8b", &json!({"gateway": "other"}));
    mock.writes();
    let operator = operator(&mock, Vec::new());
    assert_eq!(
        Box::pin(gateway::reconcile(operator, key("weir"))).await,
        Outcome::Done
    );
    assert!(mock.get(&deployment_path("weir-gateway")).is_none());
    assert!(
        mock.get("/api/v1/namespaces/agents/configmaps/weir-gateway")
            .is_none()
    );
    assert!(
        mock.get(&deployment_path("coder-engine")).is_some(),
        "the pool keeps its engines"
    );
}

#[tokio::test]
async fn the_token_of_a_gateway_is_forgotten_with_its_last_pool() {
    let mock = world();
    // A namespace was deleted: its objects went first, then the pool.
    let mut pools = operator(&mock, Vec::new()).caches.pools.list(NAMESPACE);
    let pool = pools.pop().unwrap();
    mock.take(&pool_path("coder"));
    let operator = operator(&mock, Vec::new());
    operator.tokens.set(&key("weir"), "secret");
    operator.work.pool_changed(&pool, &operator.caches);
    let worker = operator.clone();
    let work = Arc::clone(&operator.work.gateways).work(1, move |key| {
        let worker = worker.clone();
        async move { Box::pin(gateway::reconcile(worker, key)).await }
    });
    let forgotten = async {
        while operator.tokens.get(&key("weir")).is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = work => panic!("queues work for ever"),
        result = tokio::time::timeout(std::time::Duration::from_secs(10), forgotten) => result.unwrap(),
    }
}

#[tokio::test]
async fn a_gateway_stays_while_a_pool_that_may_name_it_cannot_be_read() {
    let mock = world();
    reconcile_all(&mock).await;
    let mut poison = mock.get(&pool_path("coder")).unwrap();
    poison["spec"]["model"] = json!(7);
    mock.put(&pool_path("coder"), poison);
    mock.writes();
    let operator = operator(&mock, Vec::new());
    assert_eq!(
        Box::pin(gateway::reconcile(operator, key("weir"))).await,
        Outcome::Done
    );
    assert_eq!(mock.writes(), []);
}
