//! Which handler answers what.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use super::{
    App,
    body::{AnswerBody, Cut},
    chat, completions, control, detail,
    error::{ApiError, Shape},
    failure,
    generate::{Api, Call, answer},
    messages, metrics, responses, sglang, simulation, with_type,
};
use crate::{flavour::Flavour, options::Options};

const GET: &[Method] = &[Method::GET];
const POST: &[Method] = &[Method::POST];
const ANY: &[Method] = &[Method::GET, Method::POST];

/// A route, apart from its method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Chat,
    Completions,
    Responses,
    StoredResponse,
    Messages,
    CountTokens,
    /// Chat or completion, by the body; not behind the API key.
    Invocations,
    /// Rendering and token-level generation: refused unless a server is started for them.
    ScaleOut,
    Models,
    Tokenise,
    Detokenise,
    Health,
    Load,
    Version,
    KvEventSources,
    Metrics,
    Dev(control::Dev),
    Sglang(sglang::Door),
    Simulation(simulation::Door),
}

/// Finds the route of a path: its name in metrics, and the methods it takes.
fn find(path: &str, options: &Options) -> Option<(Route, &'static str, &'static [Method])> {
    match options.flavour {
        Flavour::Vllm => of_vllm(path, options.dev_mode),
        Flavour::Sglang(switches) => {
            let own = sglang::door(path, switches);
            own.map(|(door, name, methods)| (Route::Sglang(door), name, methods))
                .or_else(|| of_sglang(path))
        }
    }
}

/// What SGLang shares with vLLM.
fn of_sglang(path: &str) -> Option<(Route, &'static str, &'static [Method])> {
    match path {
        "/v1/tokenize" => Some((Route::Tokenise, "/v1/tokenize", POST)),
        "/v1/detokenize" => Some((Route::Detokenise, "/v1/detokenize", POST)),
        "/load" | "/version" | "/kv_event_sources" | "/metrics" | "/invocations" => None,
        path => of_vllm(path, false).filter(|(route, ..)| *route != Route::ScaleOut),
    }
}

fn of_vllm(path: &str, dev_mode: bool) -> Option<(Route, &'static str, &'static [Method])> {
    Some(match path {
        "/v1/chat/completions" => (Route::Chat, "/v1/chat/completions", POST),
        "/v1/completions" => (Route::Completions, "/v1/completions", POST),
        "/v1/responses" => (Route::Responses, "/v1/responses", POST),
        "/v1/messages" => (Route::Messages, "/v1/messages", POST),
        "/v1/messages/count_tokens" => (Route::CountTokens, "/v1/messages/count_tokens", POST),
        "/invocations" => (Route::Invocations, "/invocations", POST),
        "/inference/v1/generate" => (Route::ScaleOut, "/inference/v1/generate", POST),
        "/inference/v1/abort_requests" => (Route::ScaleOut, "/inference/v1/abort_requests", POST),
        "/v1/chat/completions/render" => (Route::ScaleOut, "/v1/chat/completions/render", POST),
        "/v1/completions/render" => (Route::ScaleOut, "/v1/completions/render", POST),
        "/v1/messages/render" => (Route::ScaleOut, "/v1/messages/render", POST),
        "/v1/responses/render" => (Route::ScaleOut, "/v1/responses/render", POST),
        "/v1/chat/completions/derender" => (Route::ScaleOut, "/v1/chat/completions/derender", POST),
        "/v1/completions/derender" => (Route::ScaleOut, "/v1/completions/derender", POST),
        "/v1/models" => (Route::Models, "/v1/models", GET),
        "/tokenize" => (Route::Tokenise, "/tokenize", POST),
        "/detokenize" => (Route::Detokenise, "/detokenize", POST),
        "/health" => (Route::Health, "/health", GET),
        "/ping" => (Route::Health, "/ping", ANY),
        "/load" => (Route::Load, "/load", GET),
        "/version" => (Route::Version, "/version", GET),
        "/kv_event_sources" => (Route::KvEventSources, "/kv_event_sources", GET),
        "/metrics" => (Route::Metrics, "/metrics", GET),
        _ => {
            if let Some((door, name, methods)) = simulation::door(path) {
                return Some((Route::Simulation(door), name, methods));
            }
            if let Some((dev, name, methods)) = control::dev(path).filter(|_| dev_mode) {
                return Some((Route::Dev(dev), name, methods));
            }
            let id = path.strip_prefix("/v1/responses/")?;
            let (id, methods) = id.strip_suffix("/cancel").map_or((id, GET), |id| (id, POST));
            if id.is_empty() || id.contains('/') {
                return None;
            }
            (Route::StoredResponse, "/v1/responses/{response_id}", methods)
        }
    })
}

/// Whether a path needs the API key.
fn guarded(path: &str) -> bool {
    ["/v1", "/v2", "/inference", "/cohere"]
        .iter()
        .any(|prefix| path.starts_with(prefix))
}

/// Answers one request.
pub(super) async fn respond(app: &Arc<App>, request: Request<Incoming>) -> Result<Response<AnswerBody>, Cut> {
    let (parts, body) = request.into_parts();
    if app.faults.scaling() && !parts.uri.path().starts_with("/sim/") {
        // A middleware before all else.
        let body = r#"{"error":"The model is currently scaling. Please try again later."}"#;
        return Ok(with_type(
            StatusCode::SERVICE_UNAVAILABLE,
            "application/json",
            body,
        ));
    }
    let Some((route, name, methods)) = find(parts.uri.path(), &app.options) else {
        let response = if unauthorised(app, &parts) {
            refuse()
        } else {
            detail(StatusCode::NOT_FOUND)
        };
        app.count("none", &parts.method, response.status());
        return Ok(response);
    };
    let mut response = if unauthorised(app, &parts) {
        refuse()
    } else if !methods.contains(&parts.method) {
        let mut response = detail(StatusCode::METHOD_NOT_ALLOWED);
        let allow = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        if let Ok(allow) = HeaderValue::from_str(&allow) {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        response
    } else {
        // The client broke off inside its body: nobody will read an answer.
        let bytes = body.collect().await.map_err(|_| Cut)?.to_bytes();
        dispatch(app, route, &parts, bytes).await?
    };
    app.count(name, &parts.method, response.status());
    response
        .headers_mut()
        .insert(header::SERVER, HeaderValue::from_static("uvicorn"));
    if app.options.request_id_headers
        && let Some(id) = parts.headers.get("x-request-id")
    {
        response.headers_mut().insert("x-request-id", id.clone());
    }
    Ok(response)
}

fn unauthorised(app: &App, parts: &Parts) -> bool {
    let keys = &app.options.api_keys;
    let path = parts.uri.path();
    let guarded = match app.options.flavour {
        Flavour::Vllm => guarded(path),
        Flavour::Sglang(_) => sglang::guarded(path),
    };
    if keys.is_empty() || !guarded || parts.method == Method::OPTIONS {
        return false;
    }
    let given = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer "));
    !given.is_some_and(|given| keys.iter().any(|key| key == given))
}

fn refuse() -> Response<AnswerBody> {
    with_type(
        StatusCode::UNAUTHORIZED,
        "application/json",
        r#"{"error":"Unauthorized"}"#,
    )
}

async fn dispatch(
    app: &Arc<App>,
    route: Route,
    parts: &Parts,
    bytes: Bytes,
) -> Result<Response<AnswerBody>, Cut> {
    let headers = &parts.headers;
    let sglang = app.options.sglang().is_some();
    Ok(match route {
        Route::Chat if sglang => return generate(app, &sglang::Chat, parts, &bytes, chat::parse).await,
        Route::Completions if sglang => {
            return generate(app, &sglang::Completions, parts, &bytes, completions::parse).await;
        }
        Route::Chat => return generate(app, &chat::Chat, parts, &bytes, chat::parse).await,
        Route::Completions => {
            return generate(app, &completions::Completions, parts, &bytes, completions::parse).await;
        }
        Route::Invocations => {
            let messages = json_body(headers, &bytes).is_ok_and(|body| body.get("messages").is_some());
            return if messages {
                generate(app, &chat::Chat, parts, &bytes, chat::parse).await
            } else {
                generate(app, &completions::Completions, parts, &bytes, completions::parse).await
            };
        }
        Route::ScaleOut => failure(
            &ApiError {
                status: StatusCode::FORBIDDEN,
                kind: "PermissionDeniedError",
                message: "This endpoint needs --enable-scale-out.".to_owned(),
                param: None,
            },
            Shape::OpenAi,
        ),
        Route::Responses => {
            return generate(app, &responses::Responses, parts, &bytes, responses::parse).await;
        }
        Route::Messages => {
            let parse = |body: &Value, headers: &HeaderMap| messages::parse(body, headers, false);
            return generate(app, &messages::Messages, parts, &bytes, parse).await;
        }
        Route::StoredResponse => {
            let path = parts
                .uri
                .path()
                .trim_start_matches("/v1/responses/")
                .trim_end_matches("/cancel");
            failure(&responses::not_found(path), Shape::OpenAi)
        }
        Route::CountTokens => {
            let parsed = json_body(headers, &bytes).and_then(|body| messages::parse(&body, headers, true));
            control::count_tokens(app, parsed)
        }
        Route::Tokenise => or_failure(
            app,
            json_body(headers, &bytes).and_then(|body| control::tokenise(app, &body)),
        ),
        Route::Detokenise => or_failure(
            app,
            json_body(headers, &bytes).and_then(|body| control::detokenise(app, &body)),
        ),
        Route::Models => control::models(app),
        Route::Health => control::health(app),
        Route::Load => control::load(app),
        Route::Version => control::version(),
        Route::KvEventSources => super::json_response("{}"),
        Route::Metrics => metrics::page(app).await,
        Route::Dev(dev) => control::obey(app, dev, parts.uri.query().unwrap_or_default(), &bytes).await,
        Route::Sglang(door) => sglang::enter(app, door, parts.uri.path(), &bytes).await,
        Route::Simulation(door) => {
            simulation::enter(app, door, parts.uri.query().unwrap_or_default(), &bytes)
        }
    })
}

async fn generate(
    app: &Arc<App>,
    api: &(dyn Api + Sync),
    parts: &Parts,
    bytes: &Bytes,
    parse: impl Fn(&Value, &HeaderMap) -> Result<super::ask::Ask, ApiError>,
) -> Result<Response<AnswerBody>, Cut> {
    let parsed = json_body(&parts.headers, bytes).and_then(|body| {
        let mut ask = parse(&body, &parts.headers)?;
        sglang::adapt(app, &mut ask, &body, &parts.headers)?;
        Ok(ask)
    });
    let path = find(parts.uri.path(), &app.options).map_or("", |(_, name, _)| name);
    answer(
        Call {
            app,
            api,
            path,
            headers: &parts.headers,
        },
        parsed,
    )
    .await
}

fn or_failure(app: &App, answer: Result<Response<AnswerBody>, ApiError>) -> Response<AnswerBody> {
    let shape = match app.options.flavour {
        Flavour::Vllm => Shape::OpenAi,
        Flavour::Sglang(_) => Shape::Flat,
    };
    answer.unwrap_or_else(|error| failure(&error, shape))
}

/// Reads a JSON body; the content type must say that it is one.
fn json_body(headers: &HeaderMap, bytes: &Bytes) -> Result<Value, ApiError> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed";
        return Err(ApiError {
            status: StatusCode::BAD_REQUEST,
            kind: "Bad Request",
            message: message.to_owned(),
            param: None,
        });
    }
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::validation("json_invalid", "", &format!("JSON decode error: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_found_with_their_methods() {
        let options = |dev_mode| Options {
            dev_mode,
            ..Options::default()
        };
        let check = |path: &str, expected: Option<Route>| {
            assert_eq!(
                find(path, &options(false)).map(|(route, ..)| route),
                expected,
                "{path}"
            );
        };
        check("/v1/chat/completions", Some(Route::Chat));
        check("/v1/chat/completions/", None);
        check("/v1/embeddings", None);
        check("/v1/models/tiny", None);
        check("/v1/responses/abc", Some(Route::StoredResponse));
        check("/v1/responses/a/b", None);
        check("/sleep", None);
        check("/ready", None);
        check("/invocations", Some(Route::Invocations));
        check("/v1/responses/render", Some(Route::ScaleOut));
        assert!(matches!(
            find("/sleep", &options(true)),
            Some((Route::Dev(_), "/sleep", _))
        ));
        assert!(matches!(
            find("/sim/ledger", &options(false)),
            Some((Route::Simulation(_), ..))
        ));
        assert_eq!(find("/ping", &options(false)).unwrap().2, ANY);
    }

    #[test]
    fn sglang_has_its_own_endpoints_and_none_of_vllms() {
        let check = |path: &str, metrics: bool, expected: bool| {
            let options = Options {
                dev_mode: true,
                flavour: Flavour::Sglang(crate::Sglang {
                    metrics,
                    ..crate::Sglang::default()
                }),
                ..Options::default()
            };
            assert_eq!(find(path, &options).is_some(), expected, "{path}");
        };
        for path in [
            "/ready",
            "/health",
            "/v1/loads",
            "/v1/models/m",
            "/v1/chat/completions",
            "/sim/ledger",
        ] {
            check(path, false, true);
        }
        for path in [
            "/sleep",
            "/version",
            "/load",
            "/kv_event_sources",
            "/get_load",
            "/metrics",
        ] {
            check(path, false, false);
        }
        check("/metrics", true, true);
        assert!(sglang::guarded("/server_info") && sglang::guarded("/v1/models"));
        assert!(!sglang::guarded("/health_generate") && !sglang::guarded("/metrics"));
    }

    #[test]
    fn only_api_paths_are_guarded() {
        for path in ["/v1/models", "/v2/x", "/inference/v1/generate", "/v1"] {
            assert!(guarded(path), "{path}");
        }
        for path in ["/health", "/metrics", "/tokenize", "/invocations", "/sim/ledger"] {
            assert!(!guarded(path), "{path}");
        }
    }
}
