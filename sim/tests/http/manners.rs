//! What a proxy meets on the socket: keep-alive, half-close, disconnects, protocol versions (§6.1, §6.2).

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use weir_sim::{Fault, Options, Outcome, Running};

use crate::client::{Connection, ask, begin_chat, drained, request, tiny};

fn body(stream: bool) -> serde_json::Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2000, "ignore_eos": true, "stream": stream})
}

#[tokio::test]
async fn an_idle_connection_is_closed_but_never_a_fresh_one() {
    let keep_alive = Duration::from_millis(300);
    let sim = tiny(Options {
        keep_alive,
        ..Options::default()
    })
    .await;
    let mut fresh = Connection::open(sim.address).await;
    let mut used = Connection::open(sim.address).await;
    assert_eq!(used.ask("GET", "/version", "").await.status, 200);
    assert!(used.silent_for(keep_alive / 2).await, "closed too early");
    assert_eq!(
        used.ask("GET", "/version", "").await.status,
        200,
        "a request renews the time"
    );
    assert!(
        used.silent_for(keep_alive / 2).await,
        "closed too early after the second"
    );
    assert_eq!(used.end().await, "", "closed by plain FIN");
    assert_eq!(
        fresh.ask("GET", "/version", "").await.body,
        r#"{"version":"0.32.0"}"#
    );
}

#[tokio::test]
async fn a_request_in_flight_is_not_idle() {
    let sim = tiny(Options {
        keep_alive: Duration::from_millis(50),
        ..Options::default()
    })
    .await;
    sim.fault(Fault::Hang {});
    let mut connection = begin_chat(&sim, &body(true)).await;
    connection.until("\r\n\r\n").await;
    assert!(connection.silent_for(Duration::from_millis(200)).await);
    sim.fault(Fault::Clear {});
    connection.until("[DONE]").await;
}

async fn check_gone(sim: &Running, connection: &mut Connection, head: bool) {
    let text = connection.end().await;
    assert_eq!(text.contains("HTTP/1.1 200"), head, "{text}");
    assert!(!text.contains("data:") && !text.contains("\r\n0\r\n"), "{text}");
    drained(sim).await;
    let ledger = sim.ledger();
    assert_eq!(ledger.entries.last().unwrap().outcome, Outcome::Aborted);
}

#[tokio::test]
async fn a_half_close_is_a_disconnect() {
    let sim = tiny(Options::default()).await;
    sim.fault(Fault::Hang {});
    for stream in [false, true] {
        let mut connection = begin_chat(&sim, &body(stream)).await;
        if stream {
            connection.until("\r\n\r\n").await;
        }
        connection.stream.shutdown().await.unwrap();
        check_gone(&sim, &mut connection, stream).await;
    }
    assert_eq!(sim.totals().aborted, 2);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot_and_appears_in_no_metric() {
    let sim = tiny(Options {
        max_num_seqs: Some(1),
        time_scale: 50.0,
        ..Options::default()
    })
    .await;
    for stream in [false, true] {
        let gone = begin_chat(&sim, &body(stream)).await;
        drop(gone);
        drained(&sim).await;
    }
    let metrics = ask(&sim, "GET", "/metrics", &[], "").await.body;
    for line in [
        r#"vllm:request_success_total{engine="0",finished_reason="abort",model_name="tiny"} 0.0"#,
        r#"vllm:e2e_request_latency_seconds_count{engine="0",model_name="tiny"} 0.0"#,
        r#"vllm:num_requests_running{engine="0",model_name="tiny"} 0.0"#,
        r#"vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.0"#,
    ] {
        assert!(metrics.contains(line), "{line}");
    }
}

#[tokio::test]
async fn a_request_in_the_queue_is_aborted_too() {
    let sim = tiny(Options {
        max_num_seqs: Some(1),
        ..Options::default()
    })
    .await;
    sim.fault(Fault::Hang {});
    let _running = begin_chat(&sim, &body(true)).await;
    let mut waiting = begin_chat(&sim, &body(true)).await;
    waiting.until("\r\n\r\n").await;
    drop(waiting);
    sim.wait_for_requests(|count| *count == 1).await;
    assert_eq!(sim.totals().aborted, 1);
}

#[tokio::test]
async fn http_2_is_refused() {
    let sim = tiny(Options::default()).await;
    let mut connection = Connection::open(sim.address).await;
    connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let text = connection.end().await;
    assert!(
        text.starts_with("HTTP/1.1 400 Bad Request") && text.ends_with("Invalid HTTP request received."),
        "{text}"
    );
}

#[tokio::test]
async fn large_heads_and_bodies_pass() {
    let sim = tiny(Options::default()).await;
    let long = "x".repeat(100_000);
    let mut headers = vec![("x-long", long.as_str())];
    headers.extend(std::iter::repeat_n(("x-many", "y"), 400));
    assert_eq!(ask(&sim, "GET", "/version", &headers, "").await.status, 200);
    let body = json!({"prompt": "abcd".repeat(1_000_000)}).to_string();
    let answer = ask(&sim, "POST", "/v1/completions", &[], &body).await;
    assert_eq!((answer.status, answer.body.contains("input_tokens")), (400, true));
}

#[tokio::test]
async fn expect_continue_is_honoured() {
    let sim = tiny(Options::default()).await;
    let body = json!({"prompt": "abcd", "max_tokens": 1}).to_string();
    let whole = request("POST", "/v1/completions", &[("expect", "100-continue")], &body);
    let (head, body) = whole.split_at(whole.len() - body.len());
    let mut connection = Connection::open(sim.address).await;
    connection.send(head).await;
    connection.until("HTTP/1.1 100 Continue\r\n\r\n").await;
    connection.send(body).await;
    connection.until("\"finish_reason\":\"length\"").await;
}

#[tokio::test]
async fn ten_thousand_connections_are_held() {
    // File descriptors may be short on the machine: take as many pairs as fit.
    let sim = tiny(Options::default()).await;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let count = limit
        .current
        .map_or(10_000, |files| (files / 2).saturating_sub(200).min(10_000));
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(Connection::open(sim.address).await);
    }
    let mut last = connections.pop().unwrap();
    assert_eq!(last.ask("GET", "/health", "").await.status, 200);
    assert_eq!(connections[0].ask("GET", "/health", "").await.status, 200);
}
