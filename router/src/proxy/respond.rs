//! The only place where a failure becomes an HTTP answer: status, `X-Weir-Reason`, `Retry-After`, and a body in the
//! shape the client's API uses.

use std::{
    borrow::Cow,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use serde_json::json;
use weir_wire::headers;

use super::stream::{Observed, StreamError};

/// What a handler answers.
pub type Reply = Response<ReplyBody>;

/// Body of an answer: known in full, or still coming from upstream.
pub enum ReplyBody {
    /// All bytes are here.
    Full(Bytes),
    /// An upstream body, watched on its way.
    Observed(Box<Observed>),
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        match self.get_mut() {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Observed(body) => body
                .poll_data(cx)
                .map(|data| data.map(|data| data.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_empty(),
            Self::Observed(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Observed(_) => SizeHint::default(),
        }
    }
}

/// The shape of error bodies, by the API that was called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ErrorShape {
    /// `{"error": {message, type, param, code}}`.
    #[default]
    OpenAi,
    /// `{"type": "error", "error": {type, message}}`.
    Anthropic,
    /// As [`ErrorShape::OpenAi`] in answers, and `{"type": "error", code, message, param, error}` inside a stream.
    Responses,
}

/// Who caused a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The client.
    Client,
    /// This router, or the state of its pool.
    Router,
    /// The engine, or the way to it.
    Engine,
}

/// Every reason for which this router answers a request itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request cannot be understood, or asks for something out of bounds.
    #[error("{message}")]
    Invalid {
        /// The field or header at fault; `None` for the body as a whole.
        param: Option<Cow<'static, str>>,
        /// What is wrong and what would be right.
        message: Cow<'static, str>,
    },
    /// No such path.
    #[error("no such path; this server speaks the OpenAI API under /v1 and /pools/NAME/v1")]
    UnknownPath,
    /// The path exists, but not with this method.
    #[error("this path takes {allow} only")]
    MethodNotAllowed {
        /// The method it takes.
        allow: Method,
    },
    /// No pool serves this model.
    #[error("the model `{model}` does not exist; GET /v1/models lists those that do")]
    UnknownModel {
        /// As the client named it.
        model: String,
    },
    /// The path names no pool of this gateway.
    #[error("there is no pool `{pool}` here")]
    UnknownPool {
        /// As the client named it.
        pool: String,
    },
    /// The body did not arrive in time.
    #[error("the request body did not arrive in time")]
    BodyTimeout,
    /// The body is longer than the limit.
    #[error("the request body is longer than {limit} bytes")]
    BodyTooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The memory for request bodies is in use.
    #[error("the server holds as many request bytes as it may; try again later")]
    BufferFull,
    /// The pool's queue is full.
    #[error("the queue of this model is full; try again later")]
    QueueFull {
        /// When trying again may help.
        retry_after: Option<Duration>,
    },
    /// Too many requests at once for one endpoint (the sidecar's own bound).
    #[error("this engine already has as many requests as it may; try again later")]
    Saturated,
    /// Nothing serves the model and nothing can be started.
    #[error("no engine serves this model now")]
    NoCapacity {
        /// When trying again may help.
        retry_after: Option<Duration>,
    },
    /// The pool is suspended: nothing is started until its owner says so.
    #[error("the pool of this model is suspended; its owner can resume it")]
    Suspended,
    /// An engine was being started and did not become ready in time.
    #[error("no engine for this model became ready in time")]
    ColdStartTimeout {
        /// When trying again may help.
        retry_after: Option<Duration>,
    },
    /// This process is about to stop.
    #[error("this server is about to stop; try again")]
    Draining,
    /// The engine does not take connections. Only a sidecar says so, and only to its gateway, which sends the request
    /// elsewhere or holds it: nothing of it has reached the engine.
    #[error("the engine does not take connections now")]
    EngineDown,
    /// The engine failed before the first byte of its answer.
    #[error("the engine failed before it answered")]
    EngineFailed,
    /// The engine gave no first byte in time.
    #[error("the engine gave no first token in time")]
    FirstTokenTimeout,
    /// The engine stopped in the middle of its answer.
    #[error("the engine stopped answering in the middle of its answer")]
    IdleTimeout,
    /// The engine's connection was cut in the middle of its answer.
    #[error("the engine's answer was cut short")]
    Cut,
    /// The client left; nobody reads this answer, but it is counted.
    #[error("the client left")]
    ClientGone,
}

/// Reason of [`Refusal::EngineDown`].
pub const ENGINE_DOWN: &str = "engine_down";

impl Refusal {
    /// A request that cannot be used because of `param`.
    pub fn invalid(param: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self::Invalid {
            param: Some(param.into()),
            message: message.into(),
        }
    }

    /// A body that cannot be used as a whole.
    pub fn malformed(message: impl Into<Cow<'static, str>>) -> Self {
        Self::Invalid {
            param: None,
            message: message.into(),
        }
    }

    /// Status and `X-Weir-Reason`, which is also the metric label.
    #[must_use]
    pub fn status_and_reason(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Invalid { .. } => (StatusCode::BAD_REQUEST, "invalid"),
            Self::UnknownPath => (StatusCode::NOT_FOUND, "unknown_path"),
            Self::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::UnknownModel { .. } => (StatusCode::NOT_FOUND, "unknown_model"),
            Self::UnknownPool { .. } => (StatusCode::NOT_FOUND, "unknown_pool"),
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::BufferFull => (StatusCode::TOO_MANY_REQUESTS, "buffer_full"),
            Self::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            Self::Saturated => (StatusCode::SERVICE_UNAVAILABLE, "saturated"),
            Self::NoCapacity { .. } | Self::Suspended => (StatusCode::SERVICE_UNAVAILABLE, "no_capacity"),
            Self::ColdStartTimeout { .. } => (StatusCode::SERVICE_UNAVAILABLE, "cold_start_timeout"),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
            Self::EngineDown => (StatusCode::SERVICE_UNAVAILABLE, ENGINE_DOWN),
            Self::EngineFailed => (StatusCode::BAD_GATEWAY, "engine_failed"),
            Self::FirstTokenTimeout => (StatusCode::GATEWAY_TIMEOUT, "first_token_timeout"),
            Self::IdleTimeout => (StatusCode::GATEWAY_TIMEOUT, "idle_timeout"),
            Self::Cut => (StatusCode::BAD_GATEWAY, "engine_cut"),
            Self::ClientGone => (client_closed_request(), "client_gone"),
        }
    }

    /// Who caused it.
    #[must_use]
    pub fn source(&self) -> Source {
        match self {
            Self::Invalid { .. }
            | Self::UnknownPath
            | Self::MethodNotAllowed { .. }
            | Self::UnknownModel { .. }
            | Self::UnknownPool { .. }
            | Self::BodyTimeout
            | Self::BodyTooLarge { .. }
            | Self::ClientGone => Source::Client,
            Self::BufferFull
            | Self::QueueFull { .. }
            | Self::Saturated
            | Self::NoCapacity { .. }
            | Self::Suspended
            | Self::ColdStartTimeout { .. }
            | Self::Draining => Source::Router,
            Self::EngineDown
            | Self::EngineFailed
            | Self::FirstTokenTimeout
            | Self::IdleTimeout
            | Self::Cut => Source::Engine,
        }
    }

    /// `type` of the error body, in the words of the client's API.
    fn kind(&self, shape: ErrorShape) -> &'static str {
        let (status, _) = self.status_and_reason();
        match (status.as_u16(), shape) {
            (404, ErrorShape::Anthropic) => "not_found_error",
            (413, ErrorShape::Anthropic) => "request_too_large",
            (429, ErrorShape::Anthropic) => "rate_limit_error",
            (503, ErrorShape::Anthropic) => "overloaded_error",
            (504, ErrorShape::Anthropic) => "timeout_error",
            (500.., ErrorShape::Anthropic) => "api_error",
            (404, _) => "not_found_error",
            (429, _) => "rate_limit_error",
            (500.., _) => "server_error",
            _ => "invalid_request_error",
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } => param.as_deref(),
            Self::UnknownModel { .. } => Some("model"),
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after } => Some(retry_after.unwrap_or(Duration::from_secs(1))),
            Self::NoCapacity { retry_after } | Self::ColdStartTimeout { retry_after } => *retry_after,
            Self::BufferFull | Self::Saturated | Self::Draining => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// The error body.
    #[must_use]
    pub fn body(&self, shape: ErrorShape) -> Bytes {
        let (status, reason) = self.status_and_reason();
        let kind = self.kind(shape);
        let value = match shape {
            ErrorShape::OpenAi | ErrorShape::Responses => {
                let code = match self {
                    Self::UnknownModel { .. } => "model_not_found",
                    _ if status.is_client_error() && reason == "invalid" => "invalid_request",
                    _ => reason,
                };
                json!({"error": {"message": self.to_string(), "type": kind, "param": self.param(), "code": code}})
            }
            ErrorShape::Anthropic => {
                let message = match self.param() {
                    Some(param) => format!("{param}: {self}"),
                    None => self.to_string(),
                };
                json!({"type": "error", "error": {"type": kind, "message": message}})
            }
        };
        Bytes::from(value.to_string())
    }

    /// The same failure as an event of a stream that has already begun.
    #[must_use]
    pub fn event(&self, shape: ErrorShape) -> Bytes {
        let (_, reason) = self.status_and_reason();
        let body = self.body(shape);
        let data = match shape {
            ErrorShape::OpenAi | ErrorShape::Anthropic => body,
            ErrorShape::Responses => {
                let message = self.to_string();
                let error =
                    json!({"message": message, "type": self.kind(shape), "param": null, "code": reason});
                let value = json!({"type": "error", "code": reason, "message": message, "param": null, "error": error});
                Bytes::from(value.to_string())
            }
        };
        let mut event = Vec::with_capacity(data.len() + 24);
        event.extend_from_slice(b"event: error\ndata: ");
        event.extend_from_slice(&data);
        event.extend_from_slice(b"\n\n");
        Bytes::from(event)
    }

    /// The answer.
    #[must_use]
    pub fn reply(&self, shape: ErrorShape) -> Reply {
        let (status, reason) = self.status_and_reason();
        let mut reply = json_reply(status, self.body(shape));
        let map = reply.headers_mut();
        map.insert(headers::REASON, HeaderValue::from_static(reason));
        if let Some(after) = self.retry_after() {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            map.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if let Self::MethodNotAllowed { allow } = self
            && let Ok(value) = HeaderValue::from_str(allow.as_str())
        {
            map.insert(header::ALLOW, value);
        }
        reply
    }
}

/// 499, the custom of proxies for a client that left; only ever seen in logs and metrics.
fn client_closed_request() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST)
}

/// A complete JSON answer.
#[must_use]
pub fn json_reply(status: StatusCode, body: Bytes) -> Reply {
    let mut reply = Response::new(ReplyBody::Full(body));
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn check(refusal: &Refusal, status: u16, reason: &str, body: &str) {
        let reply = refusal.reply(ErrorShape::OpenAi);
        assert_eq!(reply.status().as_u16(), status, "{refusal:?}");
        assert_eq!(reply.headers()[headers::REASON], reason);
        assert_eq!(refusal.body(ErrorShape::OpenAi), body);
    }

    /// One refusal of each kind, in order: the compiler says when one is missing.
    fn after(refusal: &Refusal) -> Option<Refusal> {
        let retry_after = None;
        Some(match refusal {
            Refusal::Invalid { .. } => Refusal::UnknownPath,
            Refusal::UnknownPath => Refusal::MethodNotAllowed { allow: Method::POST },
            Refusal::MethodNotAllowed { .. } => Refusal::UnknownModel { model: "m".into() },
            Refusal::UnknownModel { .. } => Refusal::UnknownPool { pool: "p".into() },
            Refusal::UnknownPool { .. } => Refusal::BodyTimeout,
            Refusal::BodyTimeout => Refusal::BodyTooLarge { limit: 1 },
            Refusal::BodyTooLarge { .. } => Refusal::BufferFull,
            Refusal::BufferFull => Refusal::QueueFull { retry_after },
            Refusal::QueueFull { .. } => Refusal::Saturated,
            Refusal::Saturated => Refusal::NoCapacity { retry_after },
            Refusal::NoCapacity { .. } => Refusal::Suspended,
            Refusal::Suspended => Refusal::ColdStartTimeout { retry_after },
            Refusal::ColdStartTimeout { .. } => Refusal::Draining,
            Refusal::Draining => Refusal::EngineDown,
            Refusal::EngineDown => Refusal::EngineFailed,
            Refusal::EngineFailed => Refusal::FirstTokenTimeout,
            Refusal::FirstTokenTimeout => Refusal::IdleTimeout,
            Refusal::IdleTimeout => Refusal::Cut,
            Refusal::Cut => Refusal::ClientGone,
            Refusal::ClientGone => return None,
        })
    }

    /// docs/errors.md is what programs are written against.
    #[test]
    fn the_page_of_errors_names_every_reason_and_no_other() {
        let page = include_str!("../../../docs/errors.md");
        let all = std::iter::successors(Some(Refusal::malformed("x")), after);
        let told: BTreeSet<(u16, &str)> = all
            .map(|refusal| {
                let (status, reason) = refusal.status_and_reason();
                (status.as_u16(), reason)
            })
            .collect();
        let mut written = BTreeSet::new();
        for row in page.lines().filter(|line| line.starts_with("| ")) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let Ok(status) = cells[1].parse::<u16>() else {
                continue;
            };
            let words = cells[2].split('`').filter(|word| word.len() > 2);
            written.extend(words.map(|word| (status, word)));
        }
        // Refused before any route is known, or seen in metrics and logs only.
        let elsewhere = BTreeSet::from([
            (408, "invalid"),
            (431, "invalid"),
            (499, "client_gone"),
            (502, "engine_cut"),
            (503, ENGINE_DOWN),
            (504, "idle_timeout"),
        ]);
        let differ: Vec<_> = told
            .symmetric_difference(&written)
            .filter(|it| !elsewhere.contains(*it))
            .collect();
        assert!(differ.is_empty(), "{differ:?}");
        for (_, reason) in elsewhere {
            assert!(page.contains(&format!("`{reason}`")), "{reason}");
        }
    }

    #[test]
    fn answers_have_status_reason_and_openai_body() {
        check(
            &Refusal::invalid("n", "must be 1 to 128"),
            400,
            "invalid",
            r#"{"error":{"message":"must be 1 to 128","type":"invalid_request_error","param":"n","code":"invalid_request"}}"#,
        );
        check(
            &Refusal::UnknownModel { model: "a\"b".into() },
            404,
            "unknown_model",
            r#"{"error":{"message":"the model `a\"b` does not exist; GET /v1/models lists those that do","type":"not_found_error","param":"model","code":"model_not_found"}}"#,
        );
        check(
            &Refusal::QueueFull { retry_after: None },
            429,
            "queue_full",
            r#"{"error":{"message":"the queue of this model is full; try again later","type":"rate_limit_error","param":null,"code":"queue_full"}}"#,
        );
    }

    #[test]
    fn waiting_is_advised_in_whole_seconds_rounded_up() {
        let after = |refusal: Refusal| {
            let reply = refusal.reply(ErrorShape::OpenAi);
            reply
                .headers()
                .get(header::RETRY_AFTER)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        let queue_full = |millis| Refusal::QueueFull {
            retry_after: Some(Duration::from_millis(millis)),
        };
        assert_eq!(after(queue_full(1)).as_deref(), Some("1"));
        assert_eq!(after(queue_full(2_001)).as_deref(), Some("3"));
        assert_eq!(after(Refusal::EngineFailed), None);
    }

    #[test]
    fn events_speak_the_api_of_the_stream() {
        let text = |shape| String::from_utf8(Refusal::Cut.event(shape).to_vec()).unwrap();
        assert!(text(ErrorShape::OpenAi).starts_with("event: error\ndata: {\"error\":{\"message\""));
        assert!(text(ErrorShape::Anthropic).contains("\"type\":\"api_error\""));
        assert!(text(ErrorShape::Responses).contains(r#""code":"engine_cut""#));
        assert!(text(ErrorShape::OpenAi).ends_with("\n\n"));
    }
}
