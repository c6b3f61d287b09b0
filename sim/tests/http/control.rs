//! Control endpoints: keys, development mode, sleep, admission, metrics.

use serde_json::{Value, json};
use weir_sim::{Fault, Options, Running};

use crate::client::{ask, begin_chat, drained, get, post, tiny};

const PATH: &str = "/v1/chat/completions";

fn chat(stream: bool) -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "ignore_eos": true, "stream": stream})
}

async fn development() -> Running {
    tiny(Options {
        dev_mode: true,
        sleep_mode: true,
        ..Options::default()
    })
    .await
}

#[tokio::test]
async fn keys_guard_the_api_only() {
    let sim = tiny(Options {
        api_keys: vec!["k1".into(), "k2".into()],
        ..Options::default()
    })
    .await;
    for path in ["/v1/models", "/v1/nothing"] {
        let answer = get(&sim, path).await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (401, r#"{"error":"Unauthorized"}"#)
        );
    }
    for (key, status) in [("Bearer k2", 200), ("Bearer k3", 401), ("k1", 401)] {
        assert_eq!(
            ask(&sim, "GET", "/v1/models", &[("authorization", key)], "")
                .await
                .status,
            status
        );
    }
    for path in ["/health", "/metrics", "/version", "/sim/totals"] {
        assert_eq!(get(&sim, path).await.status, 200, "{path}");
    }
    // The hole in it: whoever reaches the port may generate.
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1});
    assert_eq!(
        post(&sim, "/invocations", &chat).await.json()["object"],
        "chat.completion"
    );
    let text = json!({"prompt": "hi"});
    assert_eq!(
        post(&sim, "/invocations", &text).await.json()["object"],
        "text_completion"
    );
    let forbidden = ask(
        &sim,
        "POST",
        "/inference/v1/generate",
        &[("authorization", "Bearer k1")],
        "{}",
    )
    .await;
    assert_eq!(
        (forbidden.status, forbidden.json()["error"]["type"].as_str()),
        (403, Some("PermissionDeniedError"))
    );
}

#[tokio::test]
async fn development_endpoints_are_gated() {
    let sim = tiny(Options {
        sleep_mode: true,
        ..Options::default()
    })
    .await;
    for path in ["/sleep", "/wake_up", "/pause", "/reset_prefix_cache"] {
        let answer = post(&sim, path, &json!({})).await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (404, r#"{"detail":"Not Found"}"#)
        );
    }
    assert_eq!(get(&sim, "/kv_event_sources").await.body, "{}");
    assert_eq!(get(&sim, "/load").await.body, r#"{"server_load":0}"#);
    let sim = tiny(Options {
        dev_mode: true,
        ..Options::default()
    })
    .await;
    assert_eq!(
        post(&sim, "/sleep", &json!({})).await.status,
        500,
        "needs --enable-sleep-mode"
    );
}

#[tokio::test]
async fn sleep_aborts_and_wake_goes_on() {
    let sim = development().await;
    sim.fault(Fault::Hang {});
    let mut stream = begin_chat(&sim, &chat(true)).await;
    assert_eq!(
        post(&sim, "/sleep?level=1", &json!({})).await.body,
        r#"{"status":"sleeping","level":1}"#
    );
    stream.until("\"finish_reason\":\"abort\"").await;
    stream.until("[DONE]").await;
    sim.fault(Fault::Clear {});
    assert_eq!(get(&sim, "/is_sleeping").await.body, r#"{"is_sleeping":true}"#);
    assert_eq!(get(&sim, "/health").await.status, 200);
    let metrics = get(&sim, "/metrics").await.body;
    assert!(metrics.contains(r#"sleep_state="weights_offloaded"} 1.0"#));
    assert!(metrics.contains(r#"finished_reason="abort",model_name="tiny"} 1.0"#));
    let mut waiting = begin_chat(&sim, &chat(true)).await;
    let partly = post(&sim, "/wake_up?tags=weights", &json!({})).await;
    assert_eq!(partly.json()["status"], "sleeping");
    assert_eq!(
        post(&sim, "/wake_up?tags=kv_cache&tags=scheduling", &json!({}))
            .await
            .json()["status"],
        "awake"
    );
    waiting.until("[DONE]").await;
    assert_eq!(get(&sim, "/is_sleeping").await.body, r#"{"is_sleeping":false}"#);
}

#[tokio::test]
async fn pause_keeps_or_waits() {
    let sim = development().await;
    let slow = Fault::Slow { factor: 50.0 };
    sim.fault(slow);
    let mut kept = begin_chat(&sim, &chat(true)).await;
    assert_eq!(
        post(&sim, "/pause?mode=keep", &json!({})).await.body,
        r#"{"status":"paused"}"#
    );
    assert_eq!(get(&sim, "/is_paused").await.body, r#"{"is_paused":true}"#);
    assert_eq!(sim.in_engine(), 1);
    post(&sim, "/resume", &json!({})).await;
    kept.until("[DONE]").await;
    let mut finishing = begin_chat(&sim, &chat(true)).await;
    assert_eq!(post(&sim, "/pause?mode=wait", &json!({})).await.status, 200);
    drained(&sim).await;
    finishing.until("[DONE]").await;
    assert!(String::from_utf8_lossy(&finishing.received).contains("\"finish_reason\":\"length\""));
    post(&sim, "/resume", &json!({})).await;
    assert_eq!(sim.totals().finished, 2);
}

#[tokio::test]
async fn the_cache_is_reset_only_when_unused() {
    let sim = development().await;
    sim.fault(Fault::Slow { factor: 50.0 });
    let mut stream = begin_chat(&sim, &chat(true)).await;
    stream.until("data:").await;
    assert_eq!(
        post(&sim, "/reset_prefix_cache", &json!({})).await.body,
        r#"{"success":false}"#
    );
    let id = sim.ledger().entries[0]
        .request_id
        .trim_start_matches("chatcmpl-")
        .to_owned();
    let aborted = post(&sim, "/abort_requests", &json!({"request_ids": [id]})).await;
    assert_eq!(aborted.body, r#"{"status":"aborted","aborted":1}"#);
    stream.until("\"finish_reason\":\"abort\"").await;
    drained(&sim).await;
    assert_eq!(
        post(&sim, "/reset_prefix_cache", &json!({})).await.body,
        r#"{"success":true}"#
    );
}

#[tokio::test]
async fn admission_limits_answer_503_before_any_stream() {
    let sim = tiny(Options {
        max_num_queued_reqs: Some(1),
        load_tracking: true,
        ..Options::default()
    })
    .await;
    sim.fault(Fault::Hang {});
    let _first = begin_chat(&sim, &chat(true)).await;
    assert_eq!(get(&sim, "/load").await.body, r#"{"server_load":1}"#);
    let answer = post(&sim, PATH, &chat(true)).await;
    assert_eq!(answer.status, 503);
    assert!(!answer.head.contains("retry-after"));
    assert_eq!(
        answer.body,
        r#"{"error":{"message":"The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.","type":"Service Unavailable","param":null,"code":503}}"#
    );
    let metrics = get(&sim, "/metrics").await.body;
    assert!(
        metrics.contains(
            r#"vllm:admission_rejections_total{model_name="tiny",reason="max_num_queued_reqs"} 1.0"#
        )
    );
}

#[tokio::test]
async fn priority_matters_only_when_enabled() {
    use weir_sim::engine::Policy;
    for (policy, expected) in [
        (Policy::Fcfs, ["a", "b", "c"]),
        (Policy::Priority, ["a", "c", "b"]),
    ] {
        let sim = tiny(Options {
            policy,
            max_num_seqs: Some(1),
            ..Options::default()
        })
        .await;
        sim.fault(Fault::Hang {});
        let mut connections = Vec::new();
        for (name, priority) in [("a", 0), ("b", 5), ("c", -5)] {
            let mut body = chat(false);
            body["priority"] = json!(priority);
            body["request_id"] = json!(name);
            connections.push(begin_chat(&sim, &body).await);
        }
        sim.fault(Fault::Clear {});
        drained(&sim).await;
        let mut entries = sim.ledger().entries;
        entries.sort_by_key(|entry| entry.first_token_ms);
        let order: Vec<&str> = entries
            .iter()
            .map(|e| e.request_id.trim_start_matches("chatcmpl-"))
            .collect();
        assert_eq!(order, expected);
    }
}

/// Names and labels of every series, against the lists of §2.2 to §2.4.
#[tokio::test]
async fn metrics_have_the_engines_names() {
    let sim = tiny(Options {
        max_model_len: Some(100),
        ..Options::default()
    })
    .await;
    post(&sim, PATH, &chat(false)).await;
    let answer = get(&sim, "/metrics").await;
    assert!(
        answer
            .head
            .contains("content-type: text/plain; version=1.0.0; charset=utf-8")
    );
    let mut names: Vec<&str> = answer
        .body
        .lines()
        .filter(|line| !line.starts_with('#') && !line.contains("_created"))
        .map(|line| line.rsplit_once(' ').unwrap().0)
        .filter(|series| !series.contains("_bucket{") || series.contains("le=\"+Inf\""))
        .collect();
    names.sort_unstable();
    names.dedup();
    for series in &names {
        let Some((_, labels)) = series.trim_end_matches('}').split_once('{') else {
            continue;
        };
        let keys: Vec<&str> = labels
            .split("\",")
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, _)| key)
            .collect();
        assert!(keys.is_sorted(), "{series}");
    }
    insta::assert_snapshot!("metrics", names.join("\n"));
    let bounds: Vec<&str> = answer
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("vllm:request_prompt_tokens_bucket{engine=\"0\",le=\""))
        .filter_map(|line| line.split_once('"').map(|(bound, _)| bound))
        .collect();
    assert_eq!(
        bounds,
        ["1.0", "2.0", "5.0", "10.0", "20.0", "50.0", "100.0", "+Inf"]
    );
}
