//! Requests that wait: held while nothing is ready, queued while all are busy, given up by their clients, and let go in
//! order; and the end of the gateway itself.

mod stage;

use stage::*;
use weir_wire::config::GatewayConfig;

const ENDPOINTLESS: &str =
    "pools: [{name: p, uid: u, model: m, wakes: true, hold: {maxRequests: 3, maxBytes: 400}}]\n";

#[tokio::test]
async fn a_held_request_is_answered_once_an_endpoint_is_ready() {
    let engine = Engine::start(|_| json("{\"ok\":1}")).await;
    let stage = Stage::with(&[], 0, "").await;
    let client = stage.begin("/v1/chat/completions", "", CHAT).await;
    let state = stage.state(|state| state.held == 1).await;
    assert!(state.waiting_bytes >= CHAT.len() as u64);
    stage.add("late", engine.address, 4);
    let answer = client.finish().await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "{\"ok\":1}"));
    assert_eq!(answer.header("x-weir-held"), Some("1"));
    assert!(answer.header("x-weir-queued-ms").is_some());
    let state = stage.state(|state| state.totals.completed == 1).await;
    assert_eq!(state.totals.held, 1);
    assert!(state.endpoints[0].ready_to_dispatch_ms.is_some());
}

#[tokio::test]
async fn held_requests_are_bounded_by_count_and_by_bytes() {
    let stage = Stage::open(ENDPOINTLESS).await;
    let mut held = Vec::new();
    for count in 1..=3 {
        held.push(stage.begin("/v1/chat/completions", "", CHAT).await);
        stage.state(|state| state.held == count).await;
    }
    let answer = stage.chat().await;
    assert_eq!(answer.refusal(), (429, "queue_full".into(), None));
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    drop(held);
    stage.state(|state| state.held == 0).await;
    let long = CHAT.replace("hi", &"x".repeat(400));
    let answer = stage.ask("/v1/chat/completions", "", &long).await;
    assert_eq!(answer.refusal(), (429, "queue_full".into(), None));
    let totals = stage.state(|state| state.totals.shed == 2).await.totals;
    assert_eq!((totals.arrived, totals.cancelled), (5, 3));
}

#[tokio::test]
async fn waiting_requests_go_in_class_order_then_in_order_of_arrival() {
    let mut engine = Engine::start(|_| {
        let mut steps = vec![Step::Wait];
        steps.extend(json("{}"));
        steps
    })
    .await;
    let stage = Stage::open(
        "pools: [{name: p, uid: u, model: m, wakes: true}]\npolicies: [{name: a, pools: [p], priority: {ceiling: Interactive}, affinity: {mode: None}}]\n",
    )
    .await;
    stage.add("only", engine.address, 1);
    let mut clients = Vec::new();
    for (index, class) in [
        "standard",
        "batch",
        "standard",
        "interactive",
        "batch",
        "standard",
    ]
    .iter()
    .enumerate()
    {
        let headers = format!("x-weir-priority: {class}\r\nx-order: {index}\r\n");
        clients.push(stage.begin("/v1/chat/completions", &headers, CHAT).await);
        stage
            .state(|state| state.totals.arrived == index as u64 + 1)
            .await;
    }
    let mut order = Vec::new();
    for _ in 0..6 {
        order.push(engine.asked().await.header("x-order").unwrap().to_owned());
        engine.go_on();
    }
    assert_eq!(order, ["0", "3", "2", "5", "1", "4"]);
    for client in clients {
        assert_eq!(client.finish().await.status, 200);
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_along_whatever_it_does() {
    let mut engine = Engine::start(|number| match number {
        // Streaming, after the first event.
        0 => vec![send(SSE_HEAD), send(chunk("data: {}\n\n")), Step::Wait],
        // Not streaming, before any byte.
        _ => vec![Step::Wait],
    })
    .await;
    let stage = Stage::with(&[&engine], 1, "").await;

    let mut streaming = stage.begin("/v1/chat/completions", "", STREAM).await;
    streaming.read_until("data: {}").await;
    drop(streaming);
    engine.gone(1).await;
    engine.asked().await;
    stage
        .state(|state| state.totals.cancelled == 1 && state.in_flight == 0)
        .await;

    let plain = stage.begin("/v1/chat/completions", "", CHAT).await;
    engine.asked().await;
    let queued = stage.begin("/v1/chat/completions", "", CHAT).await;
    stage
        .state(|state| state.in_flight == 1 && state.queued == 1)
        .await;
    drop(queued);
    stage
        .state(|state| state.queued == 0 && state.totals.cancelled == 2)
        .await;
    drop(plain);
    engine.gone(2).await;
    let state = stage.state(|state| state.totals.cancelled == 3).await;
    assert!(state.is_idle());
    assert!(engine.is_unasked());

    stage
        .pool()
        .notify(weir_schedule::Event::EndpointNotReady(weir_schedule::EndpointId(
            0,
        )));
    let held = stage.begin("/v1/chat/completions", "", CHAT).await;
    stage.state(|state| state.held == 1).await;
    drop(held);
    assert!(stage.state(|state| state.totals.cancelled == 4).await.is_idle());
}

#[tokio::test]
async fn half_a_close_is_a_client_that_left() {
    use tokio::io::AsyncWriteExt as _;
    let stage = Stage::with(&[], 0, "").await;
    let mut client = stage.begin("/v1/chat/completions", "", CHAT).await;
    stage.state(|state| state.held == 1).await;
    client.stream.shutdown().await.unwrap();
    stage
        .state(|state| state.held == 0 && state.totals.cancelled == 1)
        .await;
}

#[tokio::test]
async fn a_client_that_stops_reading_is_given_up_and_leaves_the_engine() {
    let event = format!("data: {{\"x\":\"{}\"}}\n\n", "y".repeat(60_000));
    let engine = Engine::start(move |_| {
        let mut steps = vec![send(SSE_HEAD)];
        steps.extend((0..400).map(|_| send(chunk(&event))));
        steps
    })
    .await;
    let stage = Stage::with(&[&engine], 1, "timeouts: {idle: 500ms}").await;
    let mut client = stage.begin("/v1/chat/completions", "", STREAM).await;
    client.read_until("data: ").await;
    engine.gone(1).await;
    stage
        .state(|state| state.in_flight == 0 && state.totals.cancelled == 1)
        .await;
}

#[tokio::test]
async fn models_are_listed_at_zero() {
    let stage = Stage::with(&[], 0, "").await;
    let get = |path: &'static str| {
        let address = stage.address;
        async move {
            let mut client = Client::connect(address).await;
            client
                .write(&format!(
                    "GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"
                ))
                .await;
            client.finish().await
        }
    };
    for path in ["/v1/models", "/pools/p/v1/models"] {
        let answer = get(path).await;
        assert_eq!(answer.status, 200);
        assert!(
            answer.body.contains("\"id\":\"m\"") && answer.body.contains("\"id\":\"n\""),
            "{}",
            answer.body
        );
    }
    assert!(get("/v1/models/n").await.body.contains("\"root\":\"m\""));
    assert_eq!(
        get("/v1/models/x").await.refusal(),
        (404, "unknown_model".into(), Some("model".into()))
    );
    assert_eq!(
        get("/pools/q/v1/models").await.refusal(),
        (404, "unknown_pool".into(), None)
    );
}

#[tokio::test]
async fn a_stopping_gateway_finishes_what_is_in_flight_and_takes_nothing_new() {
    let mut engine = Engine::start(|_| {
        vec![
            send(SSE_HEAD),
            send(chunk("data: {}\n\n")),
            Step::Wait,
            send(chunk("data: [DONE]\n\n")),
            send("0\r\n\r\n"),
        ]
    })
    .await;
    let stage = Stage::with(&[&engine], 4, "").await;
    let mut kept = Client::connect(stage.address).await;
    kept.write(&format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n{STREAM}",
        STREAM.len()
    ))
    .await;
    kept.read_until("data: {}").await;
    engine.asked().await;
    stage.stop.cancel();
    let address = stage.address;
    until(|| std::net::TcpStream::connect(address).is_err()).await;
    engine.go_on();
    let answer = kept.finish().await;
    assert!(
        answer.complete && answer.body.ends_with("data: [DONE]\n\n"),
        "{answer:?}"
    );
    stage.close().await;
}

#[tokio::test]
async fn a_drain_has_an_end() {
    let engine = Engine::start(|_| vec![Step::Wait]).await;
    let stage = Stage::with(&[&engine], 4, "timeouts: {drain: 300ms}").await;
    let client = stage.begin("/v1/chat/completions", "", CHAT).await;
    stage.state(|state| state.in_flight == 1).await;
    stage.close().await;
    engine.gone(1).await;
    assert!(!client.finish().await.complete);
}

#[tokio::test]
async fn a_new_configuration_drops_nothing_that_is_under_way() {
    let mut engine = Engine::start(|_| {
        let mut steps = vec![Step::Wait];
        steps.extend(json("{}"));
        steps
    })
    .await;
    let stage = Stage::with(&[&engine], 1, "").await;
    let first = stage.begin("/v1/chat/completions", "", CHAT).await;
    engine.asked().await;
    let second = stage.begin("/v1/chat/completions", "", CHAT).await;
    stage.state(|state| state.queued == 1).await;
    let apply = |yaml: &str| stage.pools.apply(GatewayConfig::parse(yaml).unwrap()).unwrap();
    assert!(apply(
        "pools: [{name: p, uid: u, model: renamed, wakes: true}, {name: q, model: z}]"
    ));
    assert_eq!(
        stage.chat().await.refusal(),
        (404, "unknown_model".into(), Some("model".into()))
    );
    engine.go_on();
    engine.asked().await;
    assert_eq!(first.finish().await.status, 200);
    // The pool goes away: what is in flight is finished, what still waits is told.
    let third = stage.begin("/pools/p/v1/chat/completions", "", CHAT).await;
    stage
        .state(|state| state.totals.arrived == 3 && state.queued == 1)
        .await;
    assert!(apply("pools: [{name: q, model: z}]"));
    assert_eq!(third.finish().await.refusal(), (503, "no_capacity".into(), None));
    engine.go_on();
    assert_eq!(second.finish().await.status, 200);
}
