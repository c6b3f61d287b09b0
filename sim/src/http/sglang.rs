//! SGLang's manners (`engine-interface.md` §3.6): its own endpoints, its reading of a request, and the shapes of its
//! answers.

mod chat;
mod completions;
mod metrics;

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::sleep;

pub(super) use self::{chat::Chat, completions::Completions};
use super::{
    App,
    ask::{Ask, Fields},
    body::AnswerBody,
    empty,
    error::ApiError,
    generate::Tally,
    json_value, with_type,
};
use crate::{
    driver::{Command, PauseMode, Rest, View},
    engine::Policy,
    flavour::Sglang,
};

/// The version this simulator speaks like.
pub(crate) const VERSION: &str = "0.5.23";
/// `/health` looks this often whether the engine has said anything.
const HEALTH_POLL: Duration = Duration::from_secs(1);
/// `SGLANG_HEALTH_CHECK_TIMEOUT`.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(20);

/// An endpoint that vLLM does not have, or has under another name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Ready,
    Health,
    Ping,
    Models,
    Model,
    Loads,
    ServerInfo,
    ModelInfo,
    Metrics,
    FlushCache,
    AbortRequest,
    Pause,
    Continue,
    Release,
    Resume,
}

/// Finds an endpoint.
pub(super) fn door(path: &str, switches: Sglang) -> Option<(Door, &'static str, &'static [Method])> {
    const GET: &[Method] = &[Method::GET];
    const POST: &[Method] = &[Method::POST];
    const ANY: &[Method] = &[Method::GET, Method::POST];
    Some(match path {
        "/ready" => (Door::Ready, "/ready", GET),
        "/health" => (Door::Health, "/health", GET),
        "/health_generate" => (Door::Health, "/health_generate", GET),
        "/ping" => (Door::Ping, "/ping", GET),
        "/v1/models" => (Door::Models, "/v1/models", GET),
        "/v1/loads" => (Door::Loads, "/v1/loads", GET),
        "/server_info" => (Door::ServerInfo, "/server_info", GET),
        "/get_server_info" => (Door::ServerInfo, "/get_server_info", GET),
        "/model_info" => (Door::ModelInfo, "/model_info", GET),
        "/get_model_info" => (Door::ModelInfo, "/get_model_info", GET),
        "/metrics" if switches.metrics => (Door::Metrics, "/metrics", GET),
        "/flush_cache" => (Door::FlushCache, "/flush_cache", ANY),
        "/abort_request" => (Door::AbortRequest, "/abort_request", POST),
        "/pause_generation" => (Door::Pause, "/pause_generation", POST),
        "/continue_generation" => (Door::Continue, "/continue_generation", POST),
        "/release_memory_occupation" => (Door::Release, "/release_memory_occupation", ANY),
        "/resume_memory_occupation" => (Door::Resume, "/resume_memory_occupation", ANY),
        _ if path.starts_with("/v1/models/") => (Door::Model, "/v1/models/{model}", GET),
        _ => return None,
    })
}

/// Whether a path needs the API key: all but what probes and scrapers ask.
pub(super) fn guarded(path: &str) -> bool {
    !["/health", "/ready", "/metrics", "/sim/"]
        .iter()
        .any(|prefix| path.starts_with(prefix))
}

/// Answers an endpoint.
pub(super) async fn enter(app: &App, door: Door, path: &str, body: &Bytes) -> Response<AnswerBody> {
    match door {
        Door::Ready | Door::Ping => flag(app.is_ready()),
        Door::Health => health(app).await,
        Door::Models => json_value(&json!({"object": "list", "data": [model_card(app)]})),
        Door::Model => model(app, path.trim_start_matches("/v1/models/")),
        Door::Metrics => metrics::page(app).await,
        Door::Loads => with_view(app, |view| loads(app, view)).await,
        Door::ServerInfo => json_value(&json!({
            "version": VERSION,
            "served_model_name": app.options.canonical_name(),
            "max_total_num_tokens": total_tokens(app),
            "max_req_input_len": app.settings.max_model_len,
            "status": "ready",
        })),
        Door::ModelInfo => json_value(&json!({
            "model_path": app.options.model,
            "tokenizer_path": app.options.model,
            "is_generation": true,
            "weight_version": "default",
        })),
        Door::FlushCache => {
            let done = app.engine.ask(Command::ResetCache).await.unwrap_or(false);
            let status = if done {
                StatusCode::OK
            } else {
                StatusCode::BAD_REQUEST
            };
            with_type(status, "text/plain; charset=utf-8", "Cache flushed.\n")
        }
        Door::AbortRequest => abort(app, body).await,
        Door::Pause => rest(app, 0, body).await,
        Door::Release => rest(app, 2, body).await,
        Door::Continue | Door::Resume => {
            app.engine.ask(Command::Resume).await;
            json_value(&json!({"status": "ok"}))
        }
    }
}

fn flag(good: bool) -> Response<AnswerBody> {
    empty(if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    })
}

/// Generates a token, in effect: 200 as soon as the engine says something, looked at every second; 503 when it stays
/// silent, and then `/ready` says so too until the next success.
async fn health(app: &App) -> Response<AnswerBody> {
    if app.is_draining() || app.is_starting() {
        return flag(false);
    }
    for _ in 0..HEALTH_TIMEOUT.as_secs() / HEALTH_POLL.as_secs() {
        sleep(HEALTH_POLL).await;
        if app.is_healthy() && !app.is_hung() {
            app.silent.store(false, Relaxed);
            return flag(true);
        }
    }
    app.silent.store(true, Relaxed);
    flag(false)
}

fn model_card(app: &App) -> Value {
    let clock = app.engine.clock();
    json!({
        "id": app.options.canonical_name(),
        "object": "model",
        "created": clock.unix_ms(clock.now()) / 1000,
        "owned_by": "sglang",
        "root": app.options.canonical_name(),
        "parent": null,
        "max_model_len": app.settings.max_model_len,
    })
}

fn model(app: &App, name: &str) -> Response<AnswerBody> {
    if name == app.options.canonical_name() {
        return json_value(&model_card(app));
    }
    let error = json!({"error": {
        "message": format!("The model '{name}' does not exist"),
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }});
    with_type(StatusCode::NOT_FOUND, "application/json", error.to_string())
}

async fn with_view(app: &App, answer: impl FnOnce(&View) -> Value) -> Response<AnswerBody> {
    match app.engine.ask(Command::View).await {
        Some(view) => json_value(&answer(&view)),
        None => empty(StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// Tokens of KV cache.
fn total_tokens(app: &App) -> u64 {
    u64::from(app.settings.blocks - 1) * u64::from(app.settings.block_size)
}

fn loads(app: &App, view: &View) -> Value {
    let total = total_tokens(app);
    let clock = app.engine.clock();
    json!({
        "timestamp": clock.unix_ms(clock.now()) as f64 / 1000.0,
        "version": VERSION,
        "loads": [{
            "dp_rank": 0,
            "num_running_reqs": view.load.running,
            "num_waiting_reqs": view.load.waiting,
            "num_used_tokens": (view.load.kv_usage * total as f64) as u64,
            "max_total_num_tokens": total,
            "max_running_requests": app.settings.max_sequences,
            "token_usage": view.load.kv_usage,
            "cache_hit_rate": hit_rate(view),
        }],
    })
}

fn hit_rate(view: &View) -> f64 {
    view.stats.prompt_tokens_cached as f64 / (view.stats.prompt_tokens as f64).max(1.0)
}

fn fields(body: &Bytes) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| json!({}))
}

async fn abort(app: &App, body: &Bytes) -> Response<AnswerBody> {
    let body = fields(body);
    let rid = body["rid"].as_str().filter(|rid| !rid.is_empty());
    if rid.is_some() || body["abort_all"] == true {
        let ids = rid.map(str::to_owned).into_iter().collect();
        app.engine.ask(|reply| Command::Cancel(ids, reply)).await;
    }
    empty(StatusCode::OK)
}

async fn rest(app: &App, level: u8, body: &Bytes) -> Response<AnswerBody> {
    let mode = match fields(body)["mode"].as_str() {
        Some("retract" | "in_place") => PauseMode::Keep,
        _ => PauseMode::Abort,
    };
    let rest = Rest {
        level,
        mode,
        clear_cache: level > 0,
    };
    app.engine.ask(|reply| Command::Rest(rest, reply)).await;
    json_value(&json!({"status": "ok"}))
}

/// Makes a request's fields out as SGLang reads them: its id is `rid`, and priorities run from high to low unless
/// the server was started the other way round. The engine's own order is from low to high.
pub(super) fn adapt(app: &App, ask: &mut Ask, body: &Value, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(switches) = app.options.sglang() else {
        return Ok(());
    };
    let fields = Fields::of(body)?;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    ask.request_id = header("x-override-rid")
        .or(fields.text("rid")?)
        .map(str::to_owned);
    let named = match header("x-override-priority").map(str::parse) {
        Some(Ok(priority)) => Some(priority),
        Some(Err(_)) => {
            return Err(ApiError::bad_request(
                "invalid x-override-priority header".to_owned(),
                None,
            ));
        }
        None => fields.integer("priority")?,
    };
    let scheduled = app.settings.policy == Policy::Priority;
    if named.is_some() && switches.abort_on_priority && !scheduled {
        return Err(ApiError::unavailable(
            "Using priority is disabled for this server. Please send a new request without a priority.",
        ));
    }
    ask.priority = match named.or(switches.default_priority) {
        Some(priority) if switches.low_values_first => priority,
        Some(priority) => priority.saturating_neg(),
        None => i64::MAX,
    };
    Ok(())
}

/// A model name is not checked, but what follows a colon names an adapter, and there are none.
pub(super) fn check_model(app: &App, model: &str) -> Result<(), ApiError> {
    match model.split_once(':') {
        Some((_, adapter)) if model != app.options.canonical_name() => Err(ApiError::bad_request(
            format!("LoRA adapter '{adapter}' was requested, but LoRA is not enabled."),
            None,
        )),
        _ => Ok(()),
    }
}

/// A stream whose request the scheduler gave back: the head is 200 all the same.
pub(super) fn given_back(error: &ApiError) -> Response<AnswerBody> {
    with_type(
        StatusCode::OK,
        "text/event-stream; charset=utf-8",
        error.flat_event(),
    )
}

/// `usage`, with cached tokens when `--enable-cache-report` is on.
fn usage(tally: &Tally, output: u64) -> Value {
    let details = tally.details.then(|| json!({"cached_tokens": tally.cached}));
    json!({
        "prompt_tokens": tally.prompt,
        "total_tokens": tally.prompt + output,
        "completion_tokens": output,
        "prompt_tokens_details": details,
        "reasoning_tokens": 0,
        "completion_tokens_details": null,
    })
}

/// What is alike in the answers of both APIs.
fn metadata() -> Value {
    json!({"weight_version": "default"})
}

/// The running usage of a chunk, when asked for.
fn running(meta: &Arc<super::generate::Meta>, tally: &Tally, choice: u32) -> Option<Value> {
    meta.continuous_usage
        .then(|| usage(tally, tally.output_of(choice)))
}
