//! What crosses the gateway, and what does not: bytes both ways, streams, retries, cut answers.

mod stage;

use stage::*;

const EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn stream(events: &[&str]) -> Vec<Step> {
    let mut steps = vec![send(SSE_HEAD)];
    steps.extend(events.iter().map(|event| send(chunk(event))));
    steps.push(send("0\r\n\r\n"));
    steps
}

#[tokio::test]
async fn bodies_cross_unchanged_but_for_workflow_metadata() {
    let answer = "{ \"choices\" : [] ,\"x\":1.50 , \"usage\":null }";
    let mut engine = Engine::start(move |_| json(answer)).await;
    let stage = Stage::with(&[&engine], 4, "").await;
    let body = "{ \"model\" : \"n\", \"unknown\": [1.0,  {\"a\":\"\\u00e9\"}],\n \"workflow_metadata\":{\"workflow_id\":\"w 1\"}, \"max_tokens\":5 }";
    let got = stage
        .ask("/v1/completions?beta=1", "x-request-id: mine\r\n", body)
        .await;
    let asked = engine.asked().await;
    assert_eq!(got.body, answer);
    assert_eq!(
        String::from_utf8(asked.body.clone()).unwrap(),
        "{ \"model\" : \"n\", \"unknown\": [1.0,  {\"a\":\"\\u00e9\"}], \"max_tokens\":5 }"
    );
    assert!(
        asked.head.starts_with("POST /v1/completions?beta=1 HTTP/1.1\r\n"),
        "{}",
        asked.head
    );
    assert_eq!(asked.header("host"), Some(engine.address.to_string().as_str()));
    assert!(asked.header("x-request-id").unwrap().starts_with("mine-"));
    assert_eq!(got.header("x-request-id"), Some("mine"));
    assert_eq!(got.header("x-weir-workflow-id"), Some("w 1"));
    assert_eq!(got.header("x-weir-endpoint"), Some("e0"));
    assert_eq!(got.header("x-weir-home"), Some("new"));
    assert_eq!(got.header("x-weir-held"), None);
    let again = stage.ask("/v1/completions", "", body).await;
    assert_eq!(again.header("x-weir-home"), Some("kept"));
    assert_ne!(
        engine.asked().await.header("x-request-id"),
        asked.header("x-request-id")
    );
}

#[tokio::test]
async fn headers_of_one_connection_stay_on_it() {
    let mut engine = Engine::start(|_| {
        vec![send(
            "HTTP/1.1 200 OK\r\nconnection: keep-alive, x-inner\r\nx-inner: 1\r\nkeep-alive: timeout=5\r\nx-kept: 2\r\nx-weir-home: forged\r\ncontent-length: 2\r\n\r\n{}",
        )]
    })
    .await;
    let stage = Stage::with(&[&engine], 4, "").await;
    let mut client = Client::connect(stage.address).await;
    client
        .write(&format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nconnection: close, x-secret\r\nx-secret: 1\r\nte: trailers\r\nupgrade: h2c\r\nhttp2-settings: x\r\nproxy-authorization: p\r\nx-weir-workflow-key: forged\r\nauthorization: Bearer k\r\ncontent-length: {}\r\n\r\n{CHAT}",
            CHAT.len()
        ))
        .await;
    let answer = client.finish().await;
    let asked = engine.asked().await.head.to_lowercase();
    for name in [
        "x-secret",
        "te:",
        "upgrade",
        "http2-settings",
        "proxy-",
        "x-weir-",
        "connection: close",
    ] {
        assert!(!asked.contains(name), "{name} in {asked}");
    }
    assert!(asked.contains("authorization: bearer k"));
    assert_eq!(answer.status, 200);
    assert_eq!(
        (answer.header("x-inner"), answer.header("keep-alive")),
        (None, None)
    );
    assert_eq!(
        (answer.header("x-kept"), answer.header("x-weir-home")),
        (Some("2"), Some("new"))
    );
}

#[tokio::test]
async fn a_stream_crosses_unchanged_event_by_event() {
    let engine = Engine::start(|_| {
        let mut steps = vec![send(SSE_HEAD), Step::Wait, send(chunk(EVENT)), Step::Wait];
        // One event in three chunks, two events in one.
        steps.extend([
            send(chunk("data: {\"a\"")),
            send(chunk(":1}\n")),
            Step::Wait,
            send(chunk("\n")),
        ]);
        steps.extend([
            Step::Wait,
            send(chunk(&format!(": comment\n\n{EVENT}{DONE}"))),
            send("0\r\n\r\n"),
        ]);
        steps
    })
    .await;
    let stage = Stage::with(&[&engine], 4, "").await;
    let mut client = stage.begin("/v1/chat/completions", "", STREAM).await;
    stage.state(|state| state.in_flight == 1).await;
    engine.go_on();
    let first = client.read_until("\"content\":\"a\"").await;
    assert!(first.contains("content-type: text/event-stream; charset=utf-8"));
    for _ in 0..3 {
        engine.go_on();
    }
    let answer = client.finish().await;
    assert_eq!(
        answer.body,
        format!("{EVENT}data: {{\"a\":1}}\n\n: comment\n\n{EVENT}{DONE}")
    );
    assert!(answer.complete);
    let state = stage.state(|state| state.totals.completed == 1).await;
    assert!(state.is_idle());
}

#[tokio::test]
async fn usage_is_read_on_the_way() {
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":8}}}\n\n";
    let engine = Engine::start(move |number| {
        if number == 0 {
            stream(&[EVENT, usage, DONE])
        } else {
            json("{\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":1,\"prompt_tokens_details\":null}}")
        }
    })
    .await;
    let stage = Stage::with(&[&engine], 4, "").await;
    stage.ask("/v1/chat/completions", "", STREAM).await;
    stage.chat().await;
    let state = stage.state(|state| state.totals.completed == 2).await;
    // Only the stream had a first token to wait for.
    let recent = state.recent.unwrap();
    assert!(recent.ttft_p95_ms.is_some_and(|it| it < 20_000), "{recent:?}");
    assert_eq!(state.endpoints[0].concurrency, Some(4));
    let totals = state.totals;
    assert_eq!(
        (
            totals.prompt_tokens,
            totals.cached_tokens,
            totals.completion_tokens
        ),
        (16, 8, 4)
    );
}

/// How a stream that stops in the middle ends for the client.
async fn broken(steps: Vec<Step>, path: &str, timeouts: &str) -> (Answer, Stage) {
    let engine = Engine::start(move |_| steps.clone()).await;
    let stage = Stage::with(&[&engine], 4, timeouts).await;
    let answer = stage.ask(path, "", STREAM).await;
    (answer, stage)
}

#[tokio::test]
async fn a_stream_that_is_cut_ends_in_an_error_event() {
    let steps = vec![
        send(SSE_HEAD),
        send(chunk(EVENT)),
        send(chunk("data: {\"half")),
        Step::Close,
    ];
    let (answer, stage) = broken(steps, "/v1/chat/completions", "").await;
    let rest = answer.body.strip_prefix(EVENT).unwrap();
    assert!(
        rest.starts_with("event: error\ndata: {\"error\":{\"message\":"),
        "{rest}"
    );
    assert!(
        rest.contains("\"code\":\"engine_cut\"") && !rest.contains("half"),
        "{rest}"
    );
    assert!(answer.complete);
    assert_eq!(stage.state(|state| state.totals.failed == 1).await.in_flight, 0);
}

#[tokio::test]
async fn a_stream_without_its_closing_mark_ends_in_an_error_event() {
    let (answer, _stage) = broken(stream(&[EVENT]), "/v1/messages", "").await;
    let rest = answer.body.strip_prefix(EVENT).unwrap();
    assert!(
        rest.starts_with("event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\""),
        "{rest}"
    );
}

#[tokio::test]
async fn a_silent_stream_ends_in_an_error_event_and_leaves_the_engine() {
    let mut steps = vec![send(SSE_HEAD), send(chunk(EVENT))];
    steps.push(Step::Wait);
    let engine = Engine::start(move |_| steps.clone()).await;
    let stage = Stage::with(&[&engine], 4, "timeouts: {idle: 300ms}").await;
    let answer = stage.ask("/v1/responses", "", STREAM).await;
    assert!(
        answer.body.contains("\"code\":\"idle_timeout\""),
        "{}",
        answer.body
    );
    engine.gone(1).await;
}

#[tokio::test]
async fn a_plain_answer_that_is_cut_breaks_the_connection() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"a\":";
    let engine = Engine::start(move |_| vec![send(head), Step::Wait, Step::Close]).await;
    let stage = Stage::with(&[&engine], 4, "").await;
    let mut client = stage.begin("/v1/chat/completions", "", CHAT).await;
    client.read_until("{\"a\":").await;
    engine.go_on();
    let answer = client.finish().await;
    assert_eq!(answer.status, 200);
    assert!(!answer.complete, "{answer:?}");
    stage.state(|state| state.totals.failed == 1).await;
}

#[tokio::test]
async fn an_error_event_of_the_engine_is_passed_on_and_counted() {
    let error = "data: {\"error\": {\"message\": \"x\", \"code\": 500}}\n\n";
    let (answer, stage) = broken(stream(&[EVENT, error, DONE]), "/v1/chat/completions", "").await;
    assert_eq!(answer.body, format!("{EVENT}{error}{DONE}"));
    assert_eq!(
        stage
            .state(|state| state.totals.failed == 1)
            .await
            .totals
            .completed,
        0
    );
}

#[tokio::test]
async fn no_first_byte_in_time_is_504_and_leaves_the_engine() {
    let engine = Engine::start(|_| vec![send(SSE_HEAD), Step::Wait]).await;
    let stage = Stage::with(&[&engine], 4, "timeouts: {firstToken: 300ms}").await;
    let answer = stage.ask("/v1/chat/completions", "", STREAM).await;
    assert_eq!(answer.refusal(), (504, "first_token_timeout".into(), None));
    engine.gone(1).await;
    assert!(stage.state(|state| state.totals.failed == 1).await.is_idle());
}

#[tokio::test]
async fn a_failure_before_the_first_byte_is_tried_once_elsewhere() {
    for (name, failing) in [
        ("503", status("503 Service Unavailable", "{\"error\":\"busy\"}")),
        ("500", status("500 Internal Server Error", "{}")),
        ("closed before the head", vec![Step::Close]),
        ("closed after the head", vec![send(SSE_HEAD), Step::Close]),
        (
            "error event first",
            stream(&["data: {\"error\": {\"code\": 500}}\n\n", DONE]),
        ),
    ] {
        let bad = failing.clone();
        let first = Engine::start(move |_| bad.clone()).await;
        let mut second = Engine::start(|_| stream(&[EVENT, DONE])).await;
        let stage = Stage::with(&[&first], 1, "").await;
        stage.add("good", second.address, 1);
        stage.state(|state| state.endpoints.len() == 2).await;
        for _ in 0..4 {
            let answer = stage.ask("/v1/chat/completions", "", STREAM).await;
            assert_eq!(
                (answer.status, answer.body.as_str()),
                (200, format!("{EVENT}{DONE}").as_str()),
                "{name}"
            );
            assert_eq!(answer.header("x-weir-endpoint"), Some("good"), "{name}");
            second.asked().await;
        }
        let totals = stage.state(|state| state.totals.completed == 4).await.totals;
        assert_eq!((totals.arrived, totals.failed), (4, 0), "{name}");
    }
}

#[tokio::test]
async fn an_endpoint_that_refuses_connections_is_left_out() {
    let engine = Engine::start(|_| json("{}")).await;
    let stage = Stage::with(&[], 0, "").await;
    stage.add("dead", nowhere().await, 8);
    stage.add("good", engine.address, 8);
    for _ in 0..6 {
        assert_eq!(stage.chat().await.header("x-weir-endpoint"), Some("good"));
    }
    let state = stage.state(|state| state.totals.completed == 6).await;
    assert!(!state.endpoints.iter().any(|it| it.name == "dead" && it.eligible));
}

#[tokio::test]
async fn what_nobody_else_can_do_better_is_passed_on_as_it_is() {
    let body = "{\"error\":{\"message\":\"busy\",\"code\":503}}";
    let engine = Engine::start(move |_| status("503 Service Unavailable", body)).await;
    let stage = Stage::with(&[&engine], 4, "").await;
    let answer = stage.chat().await;
    assert_eq!((answer.status, answer.body.as_str()), (503, body));
    assert_eq!(
        stage.state(|state| state.totals.failed == 1).await.totals.arrived,
        1
    );
    let other = Engine::start(move |_| status("400 Bad Request", "{\"error\":{}}")).await;
    let stage = Stage::with(&[&other, &engine], 4, "").await;
    assert!(matches!(stage.chat().await.status, 400 | 503));
    assert!(other.connections() + engine.connections() >= 2);
}

#[tokio::test]
async fn an_engine_that_breaks_off_alone_is_502() {
    let engine = Engine::start(|_| vec![Step::Close]).await;
    let stage = Stage::with(&[&engine], 4, "").await;
    assert_eq!(stage.chat().await.refusal(), (502, "engine_failed".into(), None));
    assert_eq!(stage.state(|state| state.totals.failed == 1).await.in_flight, 0);
}

#[tokio::test]
async fn a_kept_connection_that_died_is_replaced() {
    let mut engine = Engine::start(|number| {
        let mut steps = json("{}");
        // Says nothing of it, and closes after the answer, as uvicorn does after five seconds.
        if number % 2 == 0 {
            steps.push(Step::Close);
        }
        steps
    })
    .await;
    let stage = Stage::with(&[&engine], 4, "").await;
    for _ in 0..6 {
        assert_eq!(stage.chat().await.status, 200);
        engine.asked().await;
    }
    assert_eq!(engine.connections(), 4);
}

#[tokio::test]
async fn connections_to_engines_are_reused() {
    let mut engine = Engine::start(|_| stream(&[EVENT, DONE])).await;
    let stage = Stage::with(&[&engine], 4, "").await;
    for _ in 0..5 {
        assert!(stage.ask("/v1/chat/completions", "", STREAM).await.complete);
        engine.asked().await;
        stage.state(|state| state.in_flight == 0).await;
    }
    assert_eq!(engine.connections(), 1);
}

#[tokio::test]
async fn a_priority_for_the_engines_own_queue_does_not_reach_it() {
    let mut engine = Engine::start(|_| json("{}")).await;
    let stage = Stage::with(&[&engine], 4, "").await;
    let body = "{\"model\":\"m\", \"priority\": -1000,  \"x\":[1.0]}";
    let headers = "x-vllm-priority: -5\r\nX-Override-Priority: 9\r\nx-other: kept\r\n";
    assert_eq!(stage.ask("/v1/completions", headers, body).await.status, 200);
    let asked = engine.asked().await;
    assert_eq!(asked.body, b"{\"model\":\"m\",  \"x\":[1.0]}");
    assert_eq!(asked.header("x-other"), Some("kept"));
    assert!(!asked.head.to_lowercase().contains("priority"), "{}", asked.head);
    let plain = "{ \"model\":\"m\",\"metadata\":{\"priority\":1} }";
    stage.ask("/v1/completions", "", plain).await;
    assert_eq!(engine.asked().await.body, plain.as_bytes());
    assert_eq!(stage.pool().metrics().priorities_removed.get(), 1);
}
