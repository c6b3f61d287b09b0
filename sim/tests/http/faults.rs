//! Faults on order, by HTTP and in-process.

use serde_json::{Value, json};
use weir_sim::{Fault, Options, Outcome};

use crate::client::{Connection, begin_chat, drained, get, post, request, tiny};

fn chat(stream: bool) -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "ignore_eos": true, "stream": stream})
}

const PATH: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_stream_is_cut_after_exactly_so_many_chunks() {
    let sim = tiny(Options::default()).await;
    for chunks in [0, 1, 5] {
        let ordered = post(
            &sim,
            "/sim/fault",
            &json!({"kind": "cut_stream_after", "chunks": chunks}),
        )
        .await;
        assert_eq!(ordered.status, 200, "{}", ordered.body);
        let answer = post(&sim, PATH, &chat(true)).await;
        assert_eq!(
            (answer.status, answer.events().len()),
            (200, chunks),
            "{}",
            answer.body
        );
        assert!(
            answer.body.ends_with("<cut>") && !answer.body.contains("[DONE]"),
            "{}",
            answer.body
        );
    }
    let answer = post(&sim, PATH, &chat(true)).await;
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "the fault hits once");
}

#[tokio::test]
async fn an_error_event_ends_a_stream_with_done() {
    let sim = tiny(Options::default()).await;
    sim.fault(Fault::ErrorEventAfter { chunks: 2, times: 2 });
    let answer = post(&sim, PATH, &chat(true)).await;
    let events = answer.events();
    assert_eq!((events.len(), events[3]), (4, "[DONE]"));
    assert!(
        events[2].starts_with(r#"{"error": {"message": ""#),
        "{}",
        events[2]
    );
    assert_eq!(post(&sim, PATH, &chat(false)).await.status, 500);
    drained(&sim).await;
    assert_eq!(sim.totals().started, 2);
}

#[tokio::test]
async fn requests_are_refused_reset_or_stalled_on_order() {
    let sim = tiny(Options::default()).await;
    sim.fault(Fault::Status {
        status: 503,
        times: 1,
    });
    sim.fault(Fault::Reset { times: 1 });
    sim.fault(Fault::StallAfter { chunks: 1, times: 1 });
    let answer = post(&sim, PATH, &chat(true)).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_u64()),
        (503, Some(503))
    );
    let mut reset = Connection::open(sim.address).await;
    reset
        .send(&request("POST", PATH, &[], &chat(false).to_string()))
        .await;
    assert_eq!(reset.end().await, "");
    let mut stalled = Connection::open(sim.address).await;
    stalled
        .send(&request("POST", PATH, &[], &chat(true).to_string()))
        .await;
    stalled.until("\"role\":\"assistant\"").await;
    assert!(stalled.silent_for(std::time::Duration::from_millis(100)).await);
    assert_eq!(post(&sim, PATH, &chat(false)).await.status, 200);
}

#[tokio::test]
async fn a_hung_engine_is_healthy_and_silent() {
    let sim = tiny(Options::default()).await;
    sim.fault(Fault::Hang {});
    let mut stream = begin_chat(&sim, &chat(true)).await;
    stream.until("\r\n\r\n").await;
    assert_eq!(get(&sim, "/health").await.status, 200);
    assert!(
        stream.silent_for(std::time::Duration::from_millis(100)).await,
        "head only"
    );
    sim.fault(Fault::Clear {});
    stream.until("[DONE]").await;
}

#[tokio::test]
async fn a_dead_engine_says_so_and_the_server_exits() {
    let mut sim = tiny(Options::default()).await;
    sim.fault(Fault::Hang {});
    let mut stream = begin_chat(&sim, &chat(true)).await;
    stream.until("\r\n\r\n").await;
    let mut plain = begin_chat(&sim, &chat(false)).await;
    sim.fault(Fault::Crash { exit_after_ms: 500 });
    stream
        .until("data: {\"error\": {\"message\": \"EngineCore encountered an issue.")
        .await;
    stream.until("data: [DONE]").await;
    plain.until("HTTP/1.1 500").await;
    assert_eq!(get(&sim, "/health").await.status, 503);
    let refused = post(&sim, PATH, &chat(true)).await;
    assert_eq!(
        (refused.status, refused.json()["error"]["type"].as_str()),
        (500, Some("InternalServerError"))
    );
    assert_eq!(sim.exited().await.unwrap(), weir_sim::Exit::Done);
    assert_eq!((sim.totals().failed, sim.totals().rejected), (2, 1));
}

#[tokio::test]
async fn a_closed_listener_refuses_and_comes_back_on_the_same_port() {
    let sim = tiny(Options::default()).await;
    let mut kept = Connection::open(sim.address).await;
    assert_eq!(
        kept.ask("POST", "/sim/fault", r#"{"kind":"refuse"}"#)
            .await
            .status,
        200
    );
    while tokio::net::TcpStream::connect(sim.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        kept.ask("POST", "/sim/fault", r#"{"kind":"clear"}"#).await.status,
        200
    );
    while tokio::net::TcpStream::connect(sim.address).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(get(&sim, "/health").await.status, 200);
}

#[tokio::test]
async fn health_fails_and_steps_slow_down_on_order() {
    let sim = tiny(Options::default()).await;
    sim.fault(Fault::Unhealthy {});
    assert_eq!(get(&sim, "/health").await.status, 503);
    sim.fault(Fault::Clear {});
    assert_eq!(get(&sim, "/health").await.status, 200);
    sim.fault(Fault::Slow { factor: 500.0 });
    post(
        &sim,
        PATH,
        &json!({"messages": [], "max_tokens": 2, "ignore_eos": true}),
    )
    .await;
    let entry = sim.ledger().entries.pop().unwrap();
    let took = entry.ended_ms.unwrap() - entry.first_token_ms.unwrap();
    assert!(took >= 100, "one step of 0.2 ms took {took} ms");
}

#[tokio::test]
async fn while_scaling_every_path_says_so() {
    let sim = tiny(Options::default()).await;
    sim.fault(Fault::Scaling {});
    for path in ["/health", "/metrics", "/v1/models", "/nowhere"] {
        let answer = get(&sim, path).await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (
                503,
                r#"{"error":"The model is currently scaling. Please try again later."}"#
            ),
            "{path}"
        );
    }
    sim.fault(Fault::Clear {});
    assert_eq!(get(&sim, "/health").await.status, 200);
}

#[tokio::test]
async fn wrong_orders_are_refused() {
    let sim = tiny(Options::default()).await;
    for order in [
        json!({"kind": "fire"}),
        json!({"kind": "status", "status": 200}),
        json!({"kind": "slow", "factor": -1}),
        json!([]),
    ] {
        assert_eq!(post(&sim, "/sim/fault", &order).await.status, 400, "{order}");
    }
}

#[tokio::test]
async fn the_ledger_tells_what_the_engine_saw() {
    let sim = tiny(Options::default()).await;
    let headers = [
        ("x-weir-workflow-id", "w1"),
        ("x-request-id", "r1"),
        ("x-other", "no"),
    ];
    crate::client::ask(&sim, "POST", PATH, &headers, &chat(true).to_string()).await;
    sim.fault(Fault::Hang {});
    let running = begin_chat(&sim, &chat(false)).await;
    let ledger = get(&sim, "/sim/ledger").await.json();
    let first = &ledger["entries"][0];
    assert_eq!(first["request_id"], "chatcmpl-r1");
    assert_eq!(
        first["headers"],
        json!({"x-request-id": "r1", "x-weir-workflow-id": "w1"})
    );
    assert_eq!(
        (&first["output_tokens"], &first["outcome"]),
        (&json!(20), &json!("finished"))
    );
    assert_eq!(ledger["entries"][1]["outcome"], "running");
    assert_eq!(ledger["totals"]["started"], 2);
    assert_eq!(
        get(&sim, "/sim/ledger?from=1").await.json()["entries"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    drop(running);
    drained(&sim).await;
    assert_eq!(sim.ledger().entries[1].outcome, Outcome::Aborted);
    assert_eq!(post(&sim, "/sim/reset", &json!({})).await.status, 200);
    assert!(sim.ledger().entries.is_empty());
    assert_eq!(
        post(&sim, PATH, &chat(false)).await.status,
        200,
        "the hang is cleared too"
    );
}
