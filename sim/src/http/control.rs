//! Health, models, tokeniser, and the development-mode endpoints.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::{
    App, VERSION,
    ask::{Ask, Fields},
    body::AnswerBody,
    completions::numbers,
    empty,
    error::{ApiError, Shape},
    failure, json_value,
    prompt::{chat_tokens, text_tokens},
};
use crate::{
    driver::{Command, PauseMode, Rest},
    engine::tokens::detokenise as text_of,
};

/// Speed of copying weights between host and device, GiB/s: one PCIe 4 link.
const COPY_GIB_PER_S: f64 = 20.0;

/// Endpoints that exist with `VLLM_SERVER_DEV_MODE=1` only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dev {
    Sleep,
    WakeUp,
    IsSleeping,
    Pause,
    Resume,
    IsPaused,
    ResetPrefixCache,
    AbortRequests,
    ServerInfo,
}

/// Finds a development endpoint.
pub(super) fn dev(path: &str) -> Option<(Dev, &'static str, &'static [Method])> {
    const GET: &[Method] = &[Method::GET];
    const POST: &[Method] = &[Method::POST];
    Some(match path {
        "/sleep" => (Dev::Sleep, "/sleep", POST),
        "/wake_up" => (Dev::WakeUp, "/wake_up", POST),
        "/is_sleeping" => (Dev::IsSleeping, "/is_sleeping", GET),
        "/pause" => (Dev::Pause, "/pause", POST),
        "/resume" => (Dev::Resume, "/resume", POST),
        "/is_paused" => (Dev::IsPaused, "/is_paused", GET),
        "/reset_prefix_cache" => (Dev::ResetPrefixCache, "/reset_prefix_cache", POST),
        "/abort_requests" => (Dev::AbortRequests, "/abort_requests", POST),
        "/server_info" => (Dev::ServerInfo, "/server_info", GET),
        _ => return None,
    })
}

pub(super) fn health(app: &App) -> Response<AnswerBody> {
    empty(if app.is_healthy() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    })
}

pub(super) fn load(app: &App) -> Response<AnswerBody> {
    let load = if app.options.load_tracking {
        app.in_flight.load(Relaxed)
    } else {
        0
    };
    json_value(&json!({"server_load": load}))
}

pub(super) fn version() -> Response<AnswerBody> {
    json_value(&json!({"version": VERSION}))
}

pub(super) fn models(app: &App) -> Response<AnswerBody> {
    let clock = app.engine.clock();
    let created = clock.unix_ms(clock.now()) / 1000;
    let models: Vec<Value> = (0_u64..)
        .zip(app.options.names())
        .map(|(index, name)| {
            json!({
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": "vllm",
                "root": app.options.model,
                "parent": null,
                "max_model_len": app.settings.max_model_len,
                "permission": [{
                    "id": format!("modelperm-{:016x}", app.id_seed.wrapping_add(index)),
                    "object": "model_permission",
                    "created": created,
                    "allow_create_engine": false,
                    "allow_sampling": true,
                    "allow_logprobs": true,
                    "allow_search_indices": false,
                    "allow_view": true,
                    "allow_fine_tuning": false,
                    "organization": "*",
                    "group": null,
                    "is_blocking": false,
                }],
            })
        })
        .collect();
    json_value(&json!({"object": "list", "data": models}))
}

pub(super) fn tokenise(app: &App, body: &Value) -> Result<Response<AnswerBody>, ApiError> {
    let fields = Fields::of(body)?;
    app.check_model(fields.text("model")?)?;
    let tokens = if fields.get("messages").is_some() {
        chat_tokens(fields.list("messages")?, fields.list("tools")?)
    } else {
        fields.required("prompt")?;
        text_tokens(fields.text("prompt")?.unwrap_or_default())
    };
    let strings = fields
        .flag("return_token_strs")?
        .then(|| tokens.iter().map(|token| text_of(&[*token])).collect::<Vec<_>>());
    Ok(json_value(&json!({
        "count": tokens.len(),
        "max_model_len": app.settings.max_model_len,
        "tokens": tokens,
        "token_strs": strings,
    })))
}

pub(super) fn detokenise(app: &App, body: &Value) -> Result<Response<AnswerBody>, ApiError> {
    let fields = Fields::of(body)?;
    app.check_model(fields.text("model")?)?;
    fields.required("tokens")?;
    let wrong = || ApiError::validation("int_type", "tokens", "Input should be a valid integer");
    let tokens = numbers(fields.list("tokens")?).ok_or_else(wrong)?;
    Ok(json_value(&json!({"prompt": text_of(&tokens)})))
}

pub(super) fn count_tokens(app: &App, parsed: Result<Ask, ApiError>) -> Response<AnswerBody> {
    let counted = parsed.and_then(|ask| {
        app.check_model(ask.model.as_deref())?;
        Ok(ask.prompts.iter().map(Vec::len).sum::<usize>())
    });
    match counted {
        Ok(count) => json_value(&json!({"input_tokens": count})),
        Err(error) => failure(&error, Shape::Anthropic),
    }
}

/// Values of a query field, in order.
pub(super) fn query<'a>(query: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    query.split('&').filter_map(move |pair| {
        pair.split_once('=')
            .filter(|(key, _)| *key == name)
            .map(|(_, v)| v)
    })
}

/// Obeys a development endpoint.
pub(super) async fn obey(app: &App, dev: Dev, query: &str, body: &Bytes) -> Response<AnswerBody> {
    let answer = match dev {
        Dev::Sleep => fall_asleep(app, query).await,
        Dev::WakeUp => wake_up(app, query).await,
        Dev::Pause => pause(app, query).await,
        Dev::Resume => {
            app.engine.ask(Command::Resume).await;
            Ok(json!({"status": "resumed"}))
        }
        Dev::IsSleeping => Ok(json!({"is_sleeping": rest(app).await.is_some()})),
        Dev::IsPaused => Ok(json!({"is_paused": rest(app).await.is_some()})),
        Dev::ResetPrefixCache => {
            let done = app.engine.ask(Command::ResetCache).await.unwrap_or(false);
            Ok(json!({"success": done}))
        }
        Dev::AbortRequests => abort_requests(app, body).await,
        Dev::ServerInfo => Ok(json!({"vllm_config": format!("{:?}", app.settings)})),
    };
    match answer {
        Ok(value) => json_value(&value),
        Err(error) => failure(&error, Shape::OpenAi),
    }
}

async fn rest(app: &App) -> Option<u8> {
    app.engine.ask(Command::View).await.and_then(|view| view.rest)
}

fn mode(text: &str) -> Result<PauseMode, ApiError> {
    match query(text, "mode").next().unwrap_or("abort") {
        "abort" => Ok(PauseMode::Abort),
        "wait" => Ok(PauseMode::Wait),
        "keep" => Ok(PauseMode::Keep),
        other => Err(ApiError::bad_request(
            format!("Invalid mode '{other}'."),
            Some("mode"),
        )),
    }
}

async fn fall_asleep(app: &App, text: &str) -> Result<Value, ApiError> {
    check_sleep_mode(app)?;
    let level: u8 = match query(text, "level").next().unwrap_or("1") {
        "0" => 0,
        "1" => 1,
        "2" => 2,
        other => {
            return Err(ApiError::bad_request(
                format!("Invalid level '{other}'."),
                Some("level"),
            ));
        }
    };
    let rest = Rest {
        level,
        mode: mode(text)?,
        clear_cache: level > 0,
    };
    app.engine.ask(|reply| Command::Rest(rest, reply)).await;
    if level == 1 {
        copy_weights(app).await;
    }
    Ok(json!({"status": "sleeping", "level": level}))
}

async fn wake_up(app: &App, text: &str) -> Result<Value, ApiError> {
    check_sleep_mode(app)?;
    let tags: Vec<&str> = query(text, "tags").collect();
    let wants = |tag: &str| tags.is_empty() || tags.contains(&tag);
    let level = rest(app).await.unwrap_or(0);
    if level > 0 && wants("weights") {
        copy_weights(app).await;
    }
    // Scheduling goes on when the last part is back; parts are woken in the order in which clients ask for them.
    if !wants("kv_cache") && !wants("scheduling") {
        return Ok(json!({"status": "sleeping", "level": level}));
    }
    app.engine.ask(Command::Resume).await;
    Ok(json!({"status": "awake", "level": 0}))
}

async fn pause(app: &App, text: &str) -> Result<Value, ApiError> {
    let clear_cache = query(text, "clear_cache")
        .next()
        .is_none_or(|value| value != "false");
    let rest = Rest {
        level: 0,
        mode: mode(text)?,
        clear_cache,
    };
    app.engine.ask(|reply| Command::Rest(rest, reply)).await;
    Ok(json!({"status": "paused"}))
}

async fn abort_requests(app: &App, body: &Bytes) -> Result<Value, ApiError> {
    let body: Value = serde_json::from_slice(body).unwrap_or_else(|_| json!({}));
    let ids = Fields::of(&body)?.list("request_ids")?;
    let ids = ids.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let aborted = app
        .engine
        .ask(|reply| Command::Cancel(ids, reply))
        .await
        .unwrap_or(0);
    Ok(json!({"status": "aborted", "aborted": aborted}))
}

fn check_sleep_mode(app: &App) -> Result<(), ApiError> {
    if app.options.sleep_mode {
        return Ok(());
    }
    Err(ApiError::internal(
        "Sleep mode is not enabled. Please start the server with --enable-sleep-mode.",
    ))
}

async fn copy_weights(app: &App) {
    let seconds = app.settings.profile.weights_gib / COPY_GIB_PER_S * app.settings.time_scale;
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_fields_repeat() {
        let text = "tags=weights&level=1&tags=kv_cache&x";
        assert_eq!(query(text, "tags").collect::<Vec<_>>(), ["weights", "kv_cache"]);
        assert_eq!(query(text, "mode").next(), None);
        assert_eq!(mode("mode=wait").unwrap(), PauseMode::Wait);
        assert!(mode("mode=no").is_err());
    }
}
