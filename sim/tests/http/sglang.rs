//! SGLang's manners (§3.6, §9): shapes, probes, priorities, shutdown.

use std::time::Duration;

use serde_json::{Value, json};
use weir_sim::{Exit, Fault, Flavour, Options, Outcome, Running, Sglang, spawn};

use crate::client::{Connection, ask, begin_chat, drained, get, post, request};

fn switches() -> Sglang {
    Sglang {
        metrics: true,
        low_values_first: true,
        ..Sglang::default()
    }
}

fn options() -> Options {
    Options {
        flavour: Flavour::Sglang(switches()),
        served_names: vec!["tiny".to_owned()],
        prompt_tokens_details: true,
        block_size: 1,
        ..Options::default()
    }
}

async fn tiny() -> Running {
    spawn(options()).await.unwrap()
}

fn chat(content: &str) -> Value {
    json!({"model": "any", "messages": [{"role": "user", "content": content}], "max_tokens": 2, "ignore_eos": true})
}

fn with(mut body: Value, fields: &Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn a_stream_has_the_captured_shape() {
    let sim = tiny().await;
    let body = with(
        chat("hello"),
        &json!({"stream": true, "stream_options": {"include_usage": true}, "rid": "r1"}),
    );
    let answer = post(&sim, "/v1/chat/completions", &body).await;
    assert_eq!(answer.status, 200);
    let events = answer.events();
    let head = r#"{"id":"r1","object":"chat.completion.chunk","created":"#;
    assert!(
        events.iter().rev().skip(1).all(|event| event.starts_with(head)),
        "{events:#?}"
    );
    let tails: Vec<&str> = events
        .iter()
        .map(|event| event.split_once("\"model\":").map_or(*event, |it| it.1))
        .collect();
    assert_eq!(
        tails[0],
        "\"any\",\"choices\":[{\"index\":0,\"delta\":{\"reasoning_content\":null,\"role\":\"assistant\",\"content\":\"\"},\
         \"logprobs\":null,\"finish_reason\":null,\"matched_stop\":null}]}",
        "the model that was asked for, whatever it was"
    );
    assert!(
        tails[1].contains("\"delta\":{\"reasoning_content\":null,\"content\":\""),
        "{}",
        tails[1]
    );
    assert_eq!(
        tails[tails.len() - 3],
        "\"any\",\"choices\":[{\"index\":0,\"delta\":{\"reasoning_content\":null},\"logprobs\":null,\
         \"finish_reason\":\"length\",\"matched_stop\":null}]}"
    );
    let usage = tails[tails.len() - 2];
    assert!(
        usage.starts_with("\"any\",\"choices\":[],\"usage\":{\"prompt_tokens\":"),
        "{usage}"
    );
    assert!(
        usage.ends_with(
            "\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":0},\"reasoning_tokens\":0,\
             \"completion_tokens_details\":null}}"
        ),
        "{usage}"
    );
    assert_eq!(tails[tails.len() - 1], "[DONE]");
}

#[tokio::test]
async fn the_head_of_a_stream_comes_with_its_first_token() {
    let sim = tiny().await;
    sim.fault(Fault::Hang {});
    let mut stream = begin_chat(&sim, &with(chat("x"), &json!({"stream": true}))).await;
    assert!(stream.silent_for(Duration::from_millis(100)).await);
    sim.fault(Fault::Clear {});
    stream.until("data: [DONE]").await;
    assert!(String::from_utf8_lossy(&stream.received).starts_with("HTTP/1.1 200"));
    // A client that leaves before leaves nothing behind.
    sim.fault(Fault::Hang {});
    let stream = begin_chat(&sim, &with(chat("y"), &json!({"stream": true}))).await;
    drop(stream);
    drained(&sim).await;
    assert_eq!(sim.ledger().entries[1].outcome, Outcome::Aborted);
}

#[tokio::test]
async fn plain_answers_and_cache_reports() {
    let sim = tiny().await;
    let text = "one two three four five six seven eight".repeat(4);
    let first = post(&sim, "/v1/chat/completions", &chat(&text)).await.json();
    assert_eq!(first["choices"][0]["message"]["reasoning_content"], Value::Null);
    assert_eq!(first["metadata"]["weight_version"], "default");
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let again = post(&sim, "/v1/chat/completions", &chat(&text)).await.json();
    let prompt = again["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(
        again["usage"]["prompt_tokens_details"]["cached_tokens"],
        prompt - 1,
        "pages of one token: all but the last"
    );
    let completion = json!({"model": "tiny", "prompt": "p", "max_tokens": 2, "stream": true});
    let events = post(&sim, "/v1/completions", &completion).await;
    assert!(
        events.events()[0].ends_with("\"matched_stop\":null}],\"usage\":null}"),
        "{}",
        events.body
    );

    let silent = spawn(Options {
        prompt_tokens_details: false,
        ..options()
    })
    .await
    .unwrap();
    let answer = post(&silent, "/v1/chat/completions", &chat("x")).await.json();
    assert_eq!(answer["usage"]["prompt_tokens_details"], Value::Null);
}

#[tokio::test]
async fn errors_are_flat() {
    let sim = tiny().await;
    let answer = post(&sim, "/v1/chat/completions", &json!({"model": "tiny"})).await;
    assert_eq!(answer.status, 400);
    let error = answer.json();
    assert_eq!((&error["object"], &error["code"]), (&json!("error"), &json!(400)));
    assert!(error["message"].is_string() && error["type"].is_string() && error.get("error").is_none());
    let adapter = post(
        &sim,
        "/v1/chat/completions",
        &with(chat("x"), &json!({"model": "tiny:lora"})),
    )
    .await;
    assert_eq!(adapter.status, 400);
    assert_eq!(
        get(&sim, "/v1/models/other").await.json()["error"]["code"],
        "model_not_found"
    );
    assert_eq!(get(&sim, "/v1/models/tiny").await.json()["owned_by"], "sglang");
    assert_eq!(get(&sim, "/sleep").await.json(), json!({"detail": "Not Found"}));
}

#[tokio::test]
async fn a_full_queue_refuses_plain_requests_with_503_and_streams_with_an_event() {
    let sim = spawn(Options {
        max_num_seqs: Some(1),
        max_num_queued_reqs: Some(1),
        ..options()
    })
    .await
    .unwrap();
    sim.fault(Fault::Hang {});
    let _running = begin_chat(&sim, &chat("x")).await;
    let plain = post(&sim, "/v1/chat/completions", &chat("y")).await;
    assert_eq!(plain.status, 503);
    assert_eq!(plain.json()["message"], "The request queue is full.");
    let stream = post(
        &sim,
        "/v1/chat/completions",
        &with(chat("y"), &json!({"stream": true})),
    )
    .await;
    assert_eq!(stream.status, 200);
    assert_eq!(
        stream.body,
        "data: {\"error\": {\"object\": \"error\", \"message\": \"The request queue is full.\", \
         \"type\": \"SERVICE_UNAVAILABLE\", \"param\": null, \"code\": 503}}\n\ndata: [DONE]\n\n"
    );
}

#[tokio::test]
async fn the_order_of_priorities_is_a_switch() {
    for (low_values_first, expected) in [(true, ["5", "9"]), (false, ["9", "5"])] {
        let sim = spawn(Options {
            flavour: Flavour::Sglang(Sglang {
                low_values_first,
                ..switches()
            }),
            policy: weir_sim::engine::Policy::Priority,
            max_num_seqs: Some(1),
            // Steps of 10 ms: no two first tokens within a millisecond.
            time_scale: 50.0,
            ..options()
        })
        .await
        .unwrap();
        sim.fault(Fault::Hang {});
        let mut streams =
            vec![begin_chat(&sim, &with(chat("first"), &json!({"priority": 7, "rid": "7"}))).await];
        for priority in [9, 5] {
            let body = with(
                chat("next"),
                &json!({"priority": priority, "rid": priority.to_string()}),
            );
            streams.push(begin_chat(&sim, &body).await);
        }
        sim.fault(Fault::Clear {});
        drained(&sim).await;
        let mut entries = sim.ledger().entries;
        entries.retain(|entry| entry.request_id != "7");
        entries.sort_by_key(|entry| entry.first_token_ms);
        let order: Vec<&str> = entries.iter().map(|entry| entry.request_id.as_str()).collect();
        assert_eq!(order, expected, "low first: {low_values_first}");
    }
}

#[tokio::test]
async fn probes_while_warming_up_serving_and_draining() {
    let mut sim = spawn(Options {
        startup: Duration::from_secs(4),
        time_scale: 0.02,
        ..options()
    })
    .await
    .unwrap();
    sim.ready().await;
    assert_eq!(
        get(&sim, "/ready").await.status,
        503,
        "it listens before it is warm"
    );
    assert_eq!(get(&sim, "/health").await.status, 503);
    while get(&sim, "/ready").await.status != 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let fast = tokio::time::timeout(Duration::from_millis(900), get(&sim, "/health")).await;
    assert!(fast.is_err(), "never faster than a second");
    assert_eq!(get(&sim, "/health").await.status, 200);

    // Draining says so to probes, takes requests all the same, and waits for them.
    sim.fault(Fault::Hang {});
    let mut stream = begin_chat(&sim, &with(chat("x"), &json!({"stream": true}))).await;
    sim.terminate();
    while get(&sim, "/ready").await.status != 503 {
        tokio::task::yield_now().await;
    }
    assert_eq!(get(&sim, "/health").await.status, 503);
    let mut late = begin_chat(&sim, &with(chat("y"), &json!({"stream": true}))).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(500), sim.exited())
            .await
            .is_err(),
        "several looks, and it still waits"
    );
    sim.fault(Fault::Clear {});
    stream.until("data: [DONE]").await;
    late.until("data: [DONE]").await;
    assert_eq!(sim.exited().await.unwrap(), Exit::Done);
}

#[tokio::test]
async fn an_api_key_guards_all_but_probes() {
    let sim = spawn(Options {
        api_keys: vec!["k".to_owned()],
        ..options()
    })
    .await
    .unwrap();
    for (path, status) in [
        ("/ready", 200),
        ("/metrics", 200),
        ("/v1/models", 401),
        ("/server_info", 401),
    ] {
        assert_eq!(get(&sim, path).await.status, status, "{path}");
    }
    let answer = ask(&sim, "GET", "/server_info", &[("authorization", "Bearer k")], "").await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn load_is_told_in_metrics_and_loads() {
    let sim = tiny().await;
    sim.fault(Fault::Hang {});
    let mut connection = Connection::open(sim.address).await;
    connection
        .send(&request(
            "POST",
            "/v1/chat/completions",
            &[],
            &chat("hello").to_string(),
        ))
        .await;
    sim.wait_for_requests(|count| *count == 1).await;
    let labels = "engine_type=\"unified\",model_name=\"tiny\",moe_ep_rank=\"0\",pp_rank=\"0\",tp_rank=\"0\"";
    while !get(&sim, "/metrics")
        .await
        .body
        .contains(&format!("sglang:num_running_reqs{{{labels}}} 1.0\n"))
    {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        get(&sim, "/v1/loads").await.json()["loads"][0]["num_running_reqs"],
        1
    );
    sim.fault(Fault::Clear {});
    drained(&sim).await;
    let page = get(&sim, "/metrics").await.body;
    assert!(
        page.contains("sglang:generation_tokens_total{engine_type=\"unified\",is_streaming=\"true\",model_name=\"tiny\"} 2.0\n"),
        "{page}"
    );
    assert!(
        !page.contains("sglang:cached_tokens_total{"),
        "no value, no series"
    );
    assert!(!page.contains("vllm:") && !page.contains("_created"));
}
