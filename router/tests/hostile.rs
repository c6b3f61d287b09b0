//! Clients that are wrong, slow or malicious: each gets a clear answer in the API's error shape, and leaves nothing
//! behind.

mod stage;

use std::fmt::Write as _;

use stage::*;

async fn raw(stage: &Stage, text: &str) -> Answer {
    let mut client = Client::connect(stage.address).await;
    client.write(text).await;
    client.finish().await
}

#[tokio::test]
async fn bad_bodies_are_refused_by_field() {
    let engine = Engine::start(|_| json("{}")).await;
    let stage = Stage::with(&[&engine], 4, "limits: {maxBodyBytes: 2097152}").await;
    let deep = format!(
        "{{\"model\":\"m\",\"a\":{}{}}}",
        "[".repeat(500_000),
        "]".repeat(500_000)
    );
    let id = "i".repeat(1 << 20);
    for (body, field) in [
        ("", None),
        ("{\"model\":", None),
        ("[]", None),
        (deep.as_str(), None),
        ("{}", Some("model")),
        ("{\"model\":7}", Some("model")),
        ("{\"model\":\"\"}", Some("model")),
        ("{\"model\":\"m\",\"model\":\"m\"}", Some("model")),
        ("{\"model\":\"m\",\"stream\":1}", Some("stream")),
        ("{\"model\":\"m\"}", Some("messages")),
        ("{\"model\":\"m\",\"messages\":null}", Some("messages")),
        ("{\"model\":\"m\",\"messages\":\"hi\"}", Some("messages")),
        ("{\"model\":\"m\",\"temperature\":\"hot\"}", Some("temperature")),
        ("{\"model\":\"m\",\"seed\":1.5}", Some("seed")),
        ("{\"model\":\"m\",\"stop\":1}", Some("stop")),
        ("{\"model\":\"m\",\"tools\":{}}", Some("tools")),
        ("{\"model\":\"m\",\"prompt\":{}}", Some("prompt")),
        ("{\"model\":\"m\",\"n\":1000000}", Some("n")),
        ("{\"model\":\"m\",\"max_tokens\":-1}", Some("max_tokens")),
        ("{\"model\":\"m\",\"max_tokens\":99999999999}", Some("max_tokens")),
        (
            "{\"model\":\"m\",\"workflow_metadata\":[]}",
            Some("workflow_metadata"),
        ),
        (
            &format!("{{\"model\":\"m\",\"workflow_metadata\":{{\"workflow_id\":\"{id}\"}}}}"),
            Some("workflow_metadata.workflow_id"),
        ),
    ] {
        let answer = stage.ask("/v1/chat/completions", "", body).await;
        let expected = (400, "invalid".to_owned(), field.map(str::to_owned));
        assert_eq!(answer.refusal(), expected, "{}", &body[..body.len().min(80)]);
    }
    let unknown = stage.ask("/v1/chat/completions", "", "{\"model\":\"zzz\"}").await;
    assert_eq!(
        unknown.refusal(),
        (404, "unknown_model".into(), Some("model".into()))
    );
    let long = " ".repeat(3 << 20);
    assert_eq!(
        stage.ask("/v1/chat/completions", "", &long).await.refusal(),
        (413, "body_too_large".into(), None)
    );
    assert_eq!(engine.connections(), 0);
    assert_eq!(stage.chat().await.status, 200);
}

#[tokio::test]
async fn chunked_bodies_are_bounded_too() {
    let engine = Engine::start(|_| json("{}")).await;
    let stage = Stage::with(&[&engine], 4, "limits: {maxBodyBytes: 100}").await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let body = format!("{}{}0\r\n\r\n", chunk(&CHAT[..10]), chunk(&CHAT[10..]));
    assert_eq!(raw(&stage, &format!("{head}{body}")).await.status, 200);
    let body = format!("{}{}0\r\n\r\n", chunk(CHAT), chunk(CHAT));
    let answer = raw(&stage, &format!("{head}{body}")).await;
    assert_eq!(answer.refusal(), (413, "body_too_large".into(), None));
    let answer = raw(&stage, &format!("{head}zz\r\n")).await;
    assert_eq!(answer.refusal(), (400, "invalid".into(), None));
}

#[tokio::test]
async fn bodies_together_are_bounded() {
    let engine = Engine::start(|_| json("{}")).await;
    let stage = Stage::with(
        &[&engine],
        4,
        "limits: {maxBodyBytes: 100, maxBufferedBytes: 150}",
    )
    .await;
    let mut slow = Client::connect(stage.address).await;
    slow.write("POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 100\r\n\r\n").await;
    slow.read_until("100 Continue").await;
    slow.write(&" ".repeat(99)).await;
    // Until those bytes are counted, another request may pass.
    let mut refused = stage.chat().await;
    while refused.status == 200 {
        refused = stage.chat().await;
    }
    assert_eq!(refused.refusal(), (429, "buffer_full".into(), None));
    drop(slow);
    while stage.chat().await.status != 200 {}
}

#[tokio::test]
async fn paths_and_methods_that_do_not_exist_are_refused() {
    let stage = Stage::with(&[], 0, "").await;
    for path in [
        "/",
        "/v1",
        "/metrics",
        "/sleep",
        "/v1/load_lora_adapter",
        "//v1/chat/completions",
    ] {
        assert_eq!(
            stage.ask(path, "", CHAT).await.refusal(),
            (404, "unknown_path".into(), None),
            "{path}"
        );
    }
    let get = raw(
        &stage,
        "GET /v1/chat/completions HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(get.refusal(), (405, "method_not_allowed".into(), None));
    assert_eq!(get.header("allow"), Some("POST"));
    let connect = raw(
        &stage,
        "CONNECT engine:8000 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(connect.status, 404);
    let answer = stage.ask("/v1/messages", "", "{}").await;
    assert!(
        answer
            .body
            .starts_with("{\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\""),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn bad_heads_are_refused_in_the_shape_of_the_api() {
    let stage = Stage::with(&[], 0, "limits: {maxHeaders: 20, maxHeaderBytes: 8192}").await;
    let mut many = String::from("GET /v1/models HTTP/1.1\r\n");
    for index in 0..30 {
        write!(many, "x-{index}: 1\r\n").unwrap();
    }
    many.push_str("\r\n");
    let long = format!(
        "GET /v1/models HTTP/1.1\r\nx-weir-workflow-id: {}\r\n\r\n",
        "i".repeat(1 << 20)
    );
    for text in [many.as_str(), &long[..20_000]] {
        assert_eq!(
            raw(&stage, text).await.refusal(),
            (431, "invalid".into(), Some("headers".into()))
        );
    }
    for text in [
        "GET /v1/models HTTP/1.1\r\nbad header: x\r\n\r\n",
        "NONSENSE\r\n\r\n",
        "GET /v1/models HTTP/9.9\r\n\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: -5\r\n\r\nhello",
        "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip\r\n\r\nhello",
        "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked, identity\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        assert_eq!(
            raw(&stage, text).await.refusal(),
            (400, "invalid".into(), None),
            "{text}"
        );
    }
}

#[tokio::test]
async fn ambiguous_framing_cannot_smuggle_a_request() {
    let mut engine = Engine::start(|_| json("{}")).await;
    let stage = Stage::with(&[&engine], 4, "").await;
    let hidden = "POST /tokenize HTTP/1.1\r\nhost: h\r\ncontent-length: 13\r\n\r\n{\"model\":\"m\"}";
    let body = format!("{}0\r\n\r\n", chunk(CHAT));
    let text = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\ntransfer-encoding: chunked\r\n\r\n{body}{hidden}",
        body.len() + hidden.len()
    );
    let mut client = Client::connect(stage.address).await;
    client.write(&text).await;
    client.read_until("{}").await;
    let asked = engine.asked().await;
    // Whatever follows the chunked body is a request of its own or refused, never part of the first.
    assert_eq!(asked.body, CHAT.as_bytes());
    assert_eq!(
        asked.header("content-length"),
        Some(CHAT.len().to_string().as_str())
    );
    assert_eq!(asked.header("transfer-encoding"), None);
}

#[tokio::test]
async fn slow_heads_and_bodies_are_given_up() {
    let stage = Stage::with(&[], 0, "timeouts: {headerRead: 300ms, bodyRead: 300ms}").await;
    let head = raw(
        &stage,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nx-half: ",
    )
    .await;
    assert_eq!(head.refusal(), (408, "invalid".into(), None));
    let body = raw(
        &stage,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 50\r\n\r\n{\"mo",
    )
    .await;
    assert_eq!(body.refusal(), (408, "body_timeout".into(), None));
    // A connection that sends nothing is closed without a word.
    let silent = Client::connect(stage.address).await.finish().await;
    assert_eq!((silent.status, silent.head.as_str()), (0, ""));
}

#[tokio::test]
async fn half_written_requests_leave_nothing_behind() {
    let engine = Engine::start(|_| json("{}")).await;
    let stage = Stage::with(&[&engine], 1, "").await;
    for text in [
        "P",
        "POST /v1/chat",
        "POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 99\r\n\r\n{\"model\":\"m\"",
    ] {
        let mut client = Client::connect(stage.address).await;
        client.write(text).await;
    }
    assert_eq!(stage.chat().await.status, 200);
    let state = stage.state(|state| state.totals.completed == 1).await;
    assert_eq!(state.totals.arrived, 1);
    assert!(state.is_idle());
}

#[tokio::test]
async fn connections_are_bounded() {
    let stage = Stage::with(&[], 0, "limits: {maxConnections: 2}").await;
    let mut first = Client::connect(stage.address).await;
    let mut second = Client::connect(stage.address).await;
    for client in [&mut first, &mut second] {
        client.write("GET /v1/models HTTP/1.1\r\nhost: h\r\n\r\n").await;
        client.read_until("\"object\":\"list\"").await;
    }
    let third = Client::connect(stage.address).await.finish().await;
    assert_eq!(third.status, 0);
    drop(first);
    let mut answered = false;
    while !answered {
        let mut client = Client::connect(stage.address).await;
        client
            .write("GET /v1/models HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
            .await;
        answered = client.finish().await.status == 200;
    }
}

#[tokio::test]
async fn requests_can_follow_each_other_on_one_connection() {
    let mut engine = Engine::start(|_| json("{\"a\":1}")).await;
    let stage = Stage::with(&[&engine], 4, "").await;
    let mut client = Client::connect(stage.address).await;
    let one = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n{CHAT}",
        CHAT.len()
    );
    client
        .write(&format!(
            "{one}{one}GET /v1/models/m HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"
        ))
        .await;
    let text = client.read_until("\"object\":\"model\"").await;
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3);
    assert_eq!(
        (engine.asked().await.body, engine.asked().await.body),
        (CHAT.into(), CHAT.into())
    );
}
