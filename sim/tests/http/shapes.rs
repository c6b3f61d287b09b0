//! Bytes of answers.

use serde_json::{Value, json};
use weir_sim::{Fault, Options, Running};

use crate::client::{Answer, ask, get, post, tiny};

fn chat(extra: &Value) -> Value {
    let mut body = json!({
        "model": "alias",
        "messages": [{"role": "user", "content": "hello there, how are you?"}],
        "max_tokens": 3,
        "ignore_eos": true,
    });
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn details() -> Options {
    Options {
        prompt_tokens_details: true,
        max_model_len: Some(1024),
        ..Options::default()
    }
}

/// §1.5's capture, with our words in place of its.
/// With a request id, which stands in the answers.
async fn named(sim: &Running, path: &str, body: &Value) -> Answer {
    ask(sim, "POST", path, &[("x-request-id", "r1")], &body.to_string()).await
}

#[tokio::test]
async fn a_chat_stream_is_as_captured() {
    // Steps of 20 ms: every token gets its own chunk however slow this machine is.
    let sim = tiny(Options {
        time_scale: 100.0,
        ..details()
    })
    .await;
    let body = chat(&json!({"stream": true, "stream_options": {"include_usage": true}}));
    let answer = named(&sim, "/v1/chat/completions", &body).await;
    assert!(answer.head.starts_with("HTTP/1.1 200 OK\r\n"));
    for line in [
        "content-type: text/event-stream; charset=utf-8",
        "transfer-encoding: chunked",
        "server: uvicorn",
    ] {
        assert!(answer.head.contains(line), "{}", answer.head);
    }
    insta::assert_snapshot!("chat_stream_with_usage", answer.normalised());
    let body = chat(&json!({"stream": true}));
    let answer = named(&sim, "/v1/chat/completions", &body).await;
    insta::assert_snapshot!("chat_stream", answer.normalised());
}

#[tokio::test]
async fn plain_answers_print_their_nulls() {
    let sim = tiny(Options::default()).await;
    let answer = named(&sim, "/v1/chat/completions", &chat(&json!({}))).await;
    insta::assert_snapshot!("chat_plain", answer.normalised());
    let body = json!({"model": "tiny", "prompt": "abcd", "max_tokens": 2, "n": 2});
    let answer = named(&sim, "/v1/completions", &body).await;
    insta::assert_snapshot!("completion_plain", answer.normalised());
    let answer = get(&sim, "/v1/models").await;
    insta::assert_snapshot!("models", answer.normalised());
}

#[tokio::test]
async fn a_completion_stream_has_no_role_chunk() {
    let sim = tiny(Options {
        time_scale: 100.0,
        ..details()
    })
    .await;
    let body =
        json!({"prompt": "abcd", "max_tokens": 2, "stream": true, "stream_options": {"include_usage": true}});
    let answer = named(&sim, "/v1/completions", &body).await;
    insta::assert_snapshot!("completion_stream", answer.normalised());
}

#[tokio::test]
async fn messages_and_responses_have_their_own_events() {
    let sim = tiny(Options {
        time_scale: 100.0,
        ..details()
    })
    .await;
    let body = chat(&json!({"stream": true, "system": "Be brief."}));
    let answer = named(&sim, "/v1/messages", &body).await;
    insta::assert_snapshot!("messages_stream", answer.normalised());
    let answer = named(&sim, "/v1/messages", &chat(&json!({}))).await;
    insta::assert_snapshot!("messages_plain", answer.normalised());
    let body = json!({"model": "tiny", "input": "hi", "stream": true, "max_output_tokens": 2});
    let answer = named(&sim, "/v1/responses", &body).await;
    insta::assert_snapshot!("responses_stream", answer.normalised());
    let body = json!({"model": "tiny", "input": [{"role": "user", "content": "hi"}], "max_output_tokens": 2});
    let answer = named(&sim, "/v1/responses", &body).await;
    insta::assert_snapshot!("responses_plain", answer.normalised());
}

#[tokio::test]
async fn tools_are_called_when_required_or_ordered() {
    let sim = tiny(Options::default()).await;
    let tools = json!([{"type": "function", "function": {"name": "look_up", "parameters": {}}}]);
    let required =
        chat(&json!({"tools": tools, "tool_choice": "required", "max_tokens": 100, "ignore_eos": false}));
    let answer = post(&sim, "/v1/chat/completions", &required).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let function = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(function["name"], "look_up");
    assert!(
        serde_json::from_str::<Value>(function["arguments"].as_str().unwrap()).unwrap()["input"].is_string()
    );

    let body = chat(&json!({"stream": true, "max_tokens": 100})).to_string();
    let answer = ask(
        &sim,
        "POST",
        "/v1/chat/completions",
        &[("x-sim-tool-call", "grep")],
        &body,
    )
    .await;
    let chunks: Vec<Value> = answer
        .events()
        .iter()
        .filter_map(|event| serde_json::from_str(event).ok())
        .collect();
    let calls: Vec<&Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"].get("tool_calls"))
        .map(|calls| &calls[0])
        .collect();
    assert_eq!(calls[0]["function"], json!({"name": "grep", "arguments": ""}));
    assert!(calls[0]["id"].as_str().unwrap().starts_with("chatcmpl-tool-"));
    let arguments: String = calls
        .iter()
        .filter_map(|call| call["function"]["arguments"].as_str())
        .collect();
    assert!(serde_json::from_str::<Value>(&arguments).is_ok(), "{arguments}");
    assert_eq!(
        chunks.last().unwrap()["choices"][0]["finish_reason"],
        "tool_calls"
    );
    let texts = chunks
        .iter()
        .filter(|chunk| chunk["choices"][0]["delta"]["content"].is_string())
        .count();
    assert_eq!(texts, 1, "only the role chunk has content");

    let body = json!({"model": "tiny", "max_tokens": 100, "messages": [{"role": "user", "content": "x"}],
        "tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "any"}});
    let answer = post(&sim, "/v1/messages", &body).await.json();
    assert_eq!(
        (&answer["stop_reason"], &answer["content"][0]["type"]),
        (&json!("tool_use"), &json!("tool_use"))
    );
}

#[tokio::test]
async fn usage_follows_its_flags() {
    let forced = tiny(Options {
        force_include_usage: true,
        ..Options::default()
    })
    .await;
    let answer = post(&forced, "/v1/chat/completions", &chat(&json!({"stream": true}))).await;
    let events = answer.events();
    for (index, event) in events[..events.len() - 1].iter().enumerate() {
        let usage = &serde_json::from_str::<Value>(event).unwrap()["usage"];
        assert_eq!(usage["prompt_tokens"], 11, "{event}");
        assert!(usage.get("prompt_tokens_details").is_none());
        assert_eq!(usage["completion_tokens"] == 0, index == 0, "{event}");
    }
    let plain = tiny(Options::default()).await;
    let answer = post(&plain, "/v1/chat/completions", &chat(&json!({}))).await;
    assert_eq!(answer.json()["usage"]["prompt_tokens_details"], Value::Null);
    let answer = post(&plain, "/v1/chat/completions", &chat(&json!({"stream": true}))).await;
    assert!(!answer.body.contains("usage"));
    let answer = post(
        &plain,
        "/v1/chat/completions",
        &chat(&json!({"stream": true, "return_token_ids": true})),
    )
    .await;
    let first: Value = serde_json::from_str(answer.events()[0]).unwrap();
    assert_eq!(first["prompt_token_ids"].as_array().unwrap().len(), 11);
    let ids: usize = answer.events()[1..]
        .iter()
        .filter_map(|event| serde_json::from_str::<Value>(event).ok())
        .map(|chunk| chunk["choices"][0]["token_ids"].as_array().unwrap().len())
        .sum();
    assert_eq!(ids, 3);
}

#[tokio::test]
async fn errors_have_both_shapes() {
    let sim = tiny(Options {
        max_model_len: Some(1024),
        ..Options::default()
    })
    .await;
    let check = async |path: &str, body: &str, status: u16, expected: &str| {
        let answer = ask(&sim, "POST", path, &[], body).await;
        assert_eq!(
            (answer.status, answer.body.contains(expected)),
            (status, true),
            "{expected}: {}",
            answer.body
        );
    };
    let chat_path = "/v1/chat/completions";
    check(
        chat_path,
        "{",
        400,
        r#""type":"Bad Request","param":"body","code":400"#,
    )
    .await;
    check(
        chat_path,
        "{}",
        400,
        r"1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', ",
    )
    .await;
    check(chat_path, &chat(&json!({"model": "zzz"})).to_string(), 404,
        r#"{"error":{"message":"The model `zzz` does not exist. Valid aliases: tiny, alias.","type":"NotFoundError","param":"model","code":404}}"#).await;
    check(
        "/v1/messages",
        &chat(&json!({"model": "zzz"})).to_string(),
        404,
        r#"{"type":"error","error":{"type":"NotFoundError","message":"The model `zzz` does not exist."#,
    )
    .await;
    check(
        chat_path,
        &chat(&json!({"max_tokens": 1025})).to_string(),
        400,
        r#""param":"max_tokens","code":400"#,
    )
    .await;
    let long = |tokens: usize| json!({"prompt": "abcd".repeat(tokens), "max_tokens": 16}).to_string();
    check(
        "/v1/completions",
        &long(1025),
        400,
        r#""type":"BadRequestError","param":"input_tokens""#,
    )
    .await;
    check(
        "/v1/completions",
        &long(1024),
        400,
        "max_tokens must be at least 1, got 0.",
    )
    .await;
    check("/v1/completions", &long(1020), 200, r#""finish_reason":"length""#).await;
    check("/v1/completions", &long(1020), 200, r#""completion_tokens":4"#).await;
    check("/v1/embeddings", "{}", 404, r#"{"detail":"Not Found"}"#).await;
    check("/health", "", 405, r#"{"detail":"Method Not Allowed"}"#).await;
    let answer = ask(
        &sim,
        "POST",
        chat_path,
        &[("content-type", "text/plain")],
        &chat(&json!({})).to_string(),
    )
    .await;
    assert_eq!(answer.status, 400);
    assert_eq!(
        get(&sim, "/v1/models/tiny").await.body,
        r#"{"detail":"Not Found"}"#
    );
    assert_eq!(get(&sim, "/v1/responses/resp_1").await.status, 404);
    assert!(
        sim.ledger()
            .entries
            .iter()
            .all(|entry| entry.path == "/v1/completions"),
        "errors never reach the engine"
    );
}

#[tokio::test]
async fn a_returning_turn_hits_the_cache() {
    let sim = tiny(details()).await;
    let question =
        json!({"role": "user", "content": "Tell me about weirs, at some length please. ".repeat(10)});
    let body = json!({"messages": [question], "max_tokens": 100, "ignore_eos": true});
    let first = post(&sim, "/v1/chat/completions", &body).await.json();
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(
        first["usage"]["prompt_tokens_details"]["created_cache_tokens"],
        prompt / 16 * 16
    );
    let reply = json!({"role": "assistant", "content": first["choices"][0]["message"]["content"]});
    let body = json!({"messages": [question, reply, {"role": "user", "content": "More?"}], "max_tokens": 5});
    let second = post(&sim, "/v1/chat/completions", &body).await.json();
    // All of the first prompt and of its answer but the last token, which was never computed.
    let expected = (prompt + 99) / 16 * 16;
    assert_eq!(
        second["usage"]["prompt_tokens_details"]["cached_tokens"],
        expected
    );
    let entries = sim.ledger().entries;
    assert_eq!(entries[1].cached_tokens, Some(expected));
}

#[tokio::test]
async fn the_same_seed_says_the_same_and_alias_answers_with_the_first_name() {
    let mut texts = Vec::new();
    for seed in [1, 1, 2] {
        let sim = tiny(Options {
            seed,
            ..Options::default()
        })
        .await;
        let answer = post(&sim, "/v1/chat/completions", &chat(&json!({"max_tokens": 50})))
            .await
            .json();
        assert_eq!(answer["model"], "tiny");
        texts.push(answer["choices"][0]["message"]["content"].clone());
    }
    assert_eq!(texts[0], texts[1]);
    assert_ne!(texts[0], texts[2]);
}

#[tokio::test]
async fn comments_fill_the_silence_when_asked_for() {
    let options = Options {
        sse_keep_alive: Some(std::time::Duration::from_millis(20)),
        ..Options::default()
    };
    let sim = tiny(options).await;
    sim.fault(Fault::Hang {});
    let mut connection = crate::client::begin_chat(&sim, &chat(&json!({"stream": true}))).await;
    connection.until(": keep-alive\n\n").await;
    sim.fault(Fault::Clear {});
    connection.until("[DONE]").await;
    let text = String::from_utf8(connection.received).unwrap();
    assert!(text.find(": keep-alive").unwrap() < text.find("data: ").unwrap());
}

#[tokio::test]
async fn the_tokeniser_is_open_to_ask() {
    let sim = tiny(Options {
        max_model_len: Some(1024),
        ..Options::default()
    })
    .await;
    let answer = post(
        &sim,
        "/tokenize",
        &json!({"model": "tiny", "prompt": "hello world"}),
    )
    .await;
    let tokens = answer.json()["tokens"].clone();
    assert_eq!(
        answer.body,
        format!(r#"{{"count":3,"max_model_len":1024,"tokens":{tokens},"token_strs":null}}"#)
    );
    let back = post(&sim, "/detokenize", &json!({"model": "tiny", "tokens": tokens})).await;
    assert_eq!(back.body, r#"{"prompt":"hello world"}"#);
    let body = json!({"messages": [{"role": "user", "content": "hello there, how are you?"}]});
    assert_eq!(post(&sim, "/tokenize", &body).await.json()["count"], 11);
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "abcd"}]});
    assert_eq!(
        post(&sim, "/v1/messages/count_tokens", &body).await.body,
        r#"{"input_tokens":5}"#
    );
}
