//! One pool's scaler against an API server in memory and gateways that answer orders over a socket.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::core::DeserializeGuard;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use weir_crds::LLMPool;
use weir_operator::{
    control::board::Replica, llm_pool, operator::Operator, queue::Outcome, scaling::keep_scalers,
};
use weir_wire::control::{EndpointState, Event, PoolState};

use crate::{
    fixture::{NAMESPACE, deployment_path, key, operator, put_pool},
    mock::Mock,
};

/// A gateway replica that says it is idle, or not, and writes down what it is told.
struct Gateway {
    address: SocketAddr,
    orders: Arc<Mutex<Vec<Value>>>,
    _tasks: JoinSet<()>,
}

impl Gateway {
    async fn start(idle: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let orders: Arc<Mutex<Vec<Value>>> = Arc::default();
        let seen = Arc::clone(&orders);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let seen = Arc::clone(&seen);
                let service = service_fn(move |request: Request<Incoming>| {
                    let seen = Arc::clone(&seen);
                    async move {
                        assert_eq!(request.headers()["authorization"], "Bearer secret");
                        assert_eq!(request.uri().path(), "/control/v1/pools/coder/orders");
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        seen.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                        let state = PoolState {
                            in_flight: u32::from(!idle),
                            ..PoolState::default()
                        };
                        let answer = json!({"done": idle, "state": state}).to_string();
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer))))
                    }
                });
                connections.spawn(async move {
                    drop(
                        http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await,
                    );
                });
            }
        });
        Self {
            address,
            orders,
            _tasks: tasks,
        }
    }

    fn orders(&self) -> Vec<String> {
        let orders = self.orders.lock().unwrap();
        orders
            .iter()
            .map(|order| order["order"]["type"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn engine_pod(name: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("uid-{name}"),
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"weir.dev/pool-uid": "uid-coder"}},
        "status": {"phase": "Running", "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"},
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:09Z"},
        ]},
    }))
    .unwrap()
}

/// A pool with so many ready engines, and the operator that looks after it.
async fn world(mock: &Arc<Mock>, spec: &Value, engines: &[&str]) -> Operator {
    put_pool(mock, "coder", "coder-8b", spec);
    let first = operator(mock, Vec::new());
    assert_eq!(
        Box::pin(llm_pool::reconcile(first, key("coder"))).await,
        Outcome::Done
    );
    let path = deployment_path("coder-engine");
    let mut deployment = mock.get(&path).unwrap();
    deployment["spec"]["replicas"] = json!(engines.len());
    deployment["status"] =
        json!({"observedGeneration": 1, "replicas": engines.len(), "updatedReplicas": engines.len()});
    mock.put(&path, deployment);
    mock.writes();
    let operator = operator(mock, engines.iter().map(|name| engine_pod(name)).collect());
    operator.tokens.set(&key("weir"), "secret");
    operator
}

fn connect(operator: &Operator, gateways: &[&Gateway], state: &PoolState) {
    let name = |index: usize| format!("g{index}");
    let replicas: BTreeSet<_> = gateways
        .iter()
        .enumerate()
        .map(|(index, gateway)| {
            let replica = Replica {
                uid: name(index),
                pod: name(index),
                address: gateway.address,
                started: None,
            };
            (key("weir"), replica)
        })
        .collect();
    operator.board.expect(&replicas);
    for index in 0..gateways.len() {
        let state = PoolState {
            pool: "coder".to_owned(),
            uid: "uid-coder".to_owned(),
            ..state.clone()
        };
        operator.board.hear(
            &key("weir"),
            &name(index),
            Event::Pool(Box::new(state)),
            jiff::Timestamp::now(),
        );
    }
}

fn replicas_patched((_, path, _): &(String, String, Value)) -> bool {
    path.ends_with("/coder-engine/scale")
}

#[tokio::test]
async fn a_held_request_raises_replicas_from_zero() {
    let mock = Arc::new(Mock::default());
    let operator = world(&mock, &json!({"scaling": {"maxReplicas": 3}}), &[]).await;
    let gateway = Gateway::start(true).await;
    connect(
        &operator,
        &[&gateway],
        &PoolState {
            held: 9,
            ..PoolState::default()
        },
    );
    tokio::select! {
        () = keep_scalers(operator.clone()) => panic!("scalers run for ever"),
        body = mock.until("wake", replicas_patched) => {
            assert_eq!(body["kind"], "Scale");
            assert_eq!(body["spec"], json!({"replicas": 3}), "9 requests at 4 a pod");
        }
    }
    assert_eq!(gateway.orders(), Vec::<String>::new(), "a wake asks nobody");
}

#[tokio::test]
async fn an_idle_pool_is_fenced_everywhere_and_stopped() {
    let mock = Arc::new(Mock::default());
    let idle = json!({"idle": {"policy": "Fixed", "after": "1s"}});
    let operator = world(&mock, &idle, &["coder-engine-a"]).await;
    let gateways = [Gateway::start(true).await, Gateway::start(true).await];
    let state = PoolState {
        last_activity_age_ms: Some(60_000),
        ..PoolState::default()
    };
    connect(&operator, &[&gateways[0], &gateways[1]], &state);
    tokio::select! {
        () = keep_scalers(operator.clone()) => panic!("scalers run for ever"),
        body = mock.until("stop", replicas_patched) => assert_eq!(body["spec"], json!({"replicas": 0})),
    }
    assert_eq!(
        (gateways[0].orders(), gateways[1].orders()),
        (vec!["fence".to_owned()], vec!["fence".to_owned()])
    );
}

#[tokio::test]
async fn one_busy_gateway_keeps_the_pool_and_every_fence_is_lifted() {
    let mock = Arc::new(Mock::default());
    let idle = json!({"idle": {"policy": "Fixed", "after": "1s"}});
    let operator = world(&mock, &idle, &["coder-engine-a"]).await;
    let gateways = [Gateway::start(true).await, Gateway::start(false).await];
    let state = PoolState {
        last_activity_age_ms: Some(60_000),
        ..PoolState::default()
    };
    connect(&operator, &[&gateways[0], &gateways[1]], &state);
    let lifted = async {
        while gateways
            .iter()
            .any(|gateway| !gateway.orders().contains(&"unfence".to_owned()))
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = keep_scalers(operator.clone()) => panic!("scalers run for ever"),
        result = tokio::time::timeout(std::time::Duration::from_secs(10), lifted) => result.unwrap(),
    }
    assert!(!mock.writes().iter().any(replicas_patched), "replicas stay");
    let epochs: Vec<u64> = gateways[0]
        .orders
        .lock()
        .unwrap()
        .iter()
        .map(|order| order["epoch"].as_u64().unwrap())
        .collect();
    assert!(epochs.is_sorted() && epochs[0] > 1 << 32, "{epochs:?}");
}

#[tokio::test]
async fn the_least_valuable_pod_is_drained_marked_and_removed() {
    let mock = Arc::new(Mock::default());
    let spec = json!({"scaling": {"maxReplicas": 3, "scaleDownDelay": "0s"}});
    let names = ["coder-engine-a", "coder-engine-b"];
    let operator = world(&mock, &spec, &names).await;
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    for name in names {
        mock.put(
            &format!("{pods}/{name}"),
            serde_json::to_value(engine_pod(name)).unwrap(),
        );
    }
    let gateway = Gateway::start(true).await;
    let endpoint = |name: &str, kv_tokens: u64| EndpointState {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        eligible: true,
        kv_tokens,
        ..EndpointState::default()
    };
    let state = PoolState {
        in_flight: 1,
        endpoints: vec![endpoint(names[0], 50), endpoint(names[1], 9_000)],
        ..PoolState::default()
    };
    connect(&operator, &[&gateway], &state);
    tokio::select! {
        () = keep_scalers(operator.clone()) => panic!("scalers run for ever"),
        body = mock.until("scale down", replicas_patched) => assert_eq!(body["spec"], json!({"replicas": 1})),
    }
    let drain = gateway.orders.lock().unwrap()[0].clone();
    assert_eq!(
        (&drain["order"]["type"], &drain["order"]["uid"]),
        (&json!("drain"), &json!("uid-coder-engine-a"))
    );
    let victim = mock.get(&format!("{pods}/{}", names[0])).unwrap();
    assert_eq!(
        victim["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"],
        "-1000"
    );
    assert_eq!(
        mock.get(&format!("{pods}/{}", names[1])).unwrap()["metadata"].get("annotations"),
        None
    );
}

#[tokio::test]
async fn a_pod_that_could_not_be_marked_gets_requests_again() {
    let mock = Arc::new(Mock::default());
    let spec = json!({"scaling": {"maxReplicas": 3, "scaleDownDelay": "0s"}});
    let names = ["coder-engine-a", "coder-engine-b"];
    let operator = world(&mock, &spec, &names).await;
    mock.refuse_once("/pods/coder-engine-a", 500);
    let gateway = Gateway::start(true).await;
    let endpoints = names.map(|name| EndpointState {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        eligible: true,
        kv_tokens: u64::from(name.ends_with('b')),
        ..EndpointState::default()
    });
    let state = PoolState {
        in_flight: 1,
        endpoints: endpoints.into(),
        ..PoolState::default()
    };
    connect(&operator, &[&gateway], &state);
    let told = async {
        while gateway.orders().len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = keep_scalers(operator.clone()) => panic!("scalers run for ever"),
        result = tokio::time::timeout(std::time::Duration::from_secs(10), told) => result.unwrap(),
    }
    assert_eq!(gateway.orders()[..2], ["drain", "undrain"]);
}

#[tokio::test]
async fn a_silent_gateway_is_never_idle() {
    let mock = Arc::new(Mock::default());
    let idle = json!({"idle": {"policy": "Fixed", "after": "0s"}});
    let operator = world(&mock, &idle, &["coder-engine-a"]).await;
    let gateway = Gateway::start(true).await;
    connect(
        &operator,
        &[&gateway],
        &PoolState {
            last_activity_age_ms: Some(60_000),
            ..PoolState::default()
        },
    );
    operator.board.lose(&key("weir"), "g0");
    let known = async {
        loop {
            if let Some(outlook) = operator.outlooks.get(&key("coder"), "uid-coder") {
                return outlook;
            }
            tokio::task::yield_now().await;
        }
    };
    let outlook = tokio::select! {
        () = keep_scalers(operator.clone()) => panic!("scalers run for ever"),
        outlook = known => outlook,
    };
    assert!(
        outlook.decision.sentence.contains("no word from g0"),
        "{}",
        outlook.decision.sentence
    );
    assert_eq!(gateway.orders(), Vec::<String>::new());
    assert!(!mock.writes().iter().any(replicas_patched));
    // The pool is there and readable: only the gateway's silence kept it running.
    assert!(
        operator
            .caches
            .pools
            .get(&key("coder"))
            .is_some_and(|pool: Arc<DeserializeGuard<LLMPool>>| pool.0.is_ok())
    );
}
