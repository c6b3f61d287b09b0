//! Error answers in vLLM's shapes (`engine-interface.md` §1.4) and in SGLang's.

use http::StatusCode;
use serde_json::json;

use crate::{driver::Failure, engine::Rejection};

/// An error a generation or control endpoint answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
}

/// Which family's error shape a client expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    OpenAi,
    Anthropic,
    /// SGLang's: the members of OpenAI's `error` at the top.
    Flat,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: String, param: Option<&str>) -> Self {
        Self {
            status,
            kind,
            message,
            param: param.map(str::to_owned),
        }
    }

    /// A value that makes no sense.
    pub(crate) fn bad_request(message: String, param: Option<&str>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequestError", message, param)
    }

    /// A field that has the wrong type or is missing, in the validator's words.
    pub(crate) fn validation(kind: &str, field: &str, text: &str) -> Self {
        let location = if field.is_empty() {
            "body".to_owned()
        } else {
            format!("body.{field}")
        };
        let message =
            format!("1 validation error:\n  {{'type': '{kind}', 'loc': '{location}', 'msg': '{text}'}}");
        Self::new(StatusCode::BAD_REQUEST, "Bad Request", message, Some(&location))
    }

    pub(crate) fn not_found(message: String, param: Option<&str>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFoundError", message, param)
    }

    pub(crate) fn internal(message: &str) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalServerError",
            message.to_owned(),
            None,
        )
    }

    /// SGLang's scheduler gave the request back.
    pub(crate) fn unavailable(message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "503", message.to_owned(), None)
    }

    /// An ordered error; the type is the status' phrase, as for a bare HTTP exception.
    pub(crate) fn ordered(status: StatusCode) -> Self {
        let kind = status.canonical_reason().unwrap_or("Error");
        Self::new(status, kind, "Ordered by /sim/fault.".to_owned(), None)
    }

    /// What a request hears that the engine did not or will not finish.
    pub(crate) fn from_failure(failure: Failure) -> Self {
        let busy = |message: &str| {
            Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "Service Unavailable",
                message.to_owned(),
                None,
            )
        };
        match failure {
            Failure::Rejected(Rejection::Requests) => busy(
                "The engine is currently busy and cannot accept new requests. Please try again later or on a \
                 different instance.",
            ),
            Failure::Rejected(Rejection::Tokens) => busy(
                "The engine has too many queued tokens and cannot accept new requests. Please try again later or on \
                 a different instance.",
            ),
            Failure::Rejected(Rejection::TooLong) => Self::bad_request(
                "The request does not fit into the KV cache.".to_owned(),
                Some("input_tokens"),
            ),
            Failure::Draining => Self::internal("cannot schedule new futures after shutdown"),
            Failure::Dead => {
                Self::internal("EngineCore encountered an issue. See stack trace (above) for the root cause.")
            }
        }
    }

    /// Body of a plain answer.
    pub(crate) fn body(&self, shape: Shape) -> Vec<u8> {
        let value = match shape {
            Shape::OpenAi => json!({"error": {
                "message": self.message, "type": self.kind, "param": self.param, "code": self.status.as_u16(),
            }}),
            Shape::Anthropic => {
                json!({"type": "error", "error": {"type": self.kind, "message": self.message}})
            }
            Shape::Flat => json!({
                "object": "error", "message": self.message, "type": self.kind, "param": self.param,
                "code": self.status.as_u16(),
            }),
        };
        value.to_string().into_bytes()
    }

    /// The event that ends a stream; its JSON has spaces, unlike every other event.
    pub(crate) fn event(&self) -> String {
        self.event_with("", self.kind)
    }

    /// SGLang's: the flat error inside `error`, its type the name of the status.
    pub(crate) fn flat_event(&self) -> String {
        let name = self.status.canonical_reason().unwrap_or("ERROR");
        self.event_with("\"object\": \"error\", ", &name.to_uppercase().replace(' ', "_"))
    }

    fn event_with(&self, before: &str, kind: &str) -> String {
        let quoted = |text: &str| json!(text).to_string();
        let param = self.param.as_deref().map_or_else(|| "null".to_owned(), quoted);
        format!(
            "data: {{\"error\": {{{before}\"message\": {}, \"type\": {}, \"param\": {param}, \"code\": {}}}}}\n\n\
             data: [DONE]\n\n",
            quoted(&self.message),
            quoted(kind),
            self.status.as_u16()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(error: &ApiError, shape: Shape) -> String {
        String::from_utf8(error.body(shape)).unwrap()
    }

    #[test]
    fn shapes_are_as_captured() {
        let unknown = ApiError::not_found("The model `zzz` does not exist.".to_owned(), Some("model"));
        assert_eq!(
            body(&unknown, Shape::OpenAi),
            r#"{"error":{"message":"The model `zzz` does not exist.","type":"NotFoundError","param":"model","code":404}}"#
        );
        assert_eq!(
            body(&unknown, Shape::Anthropic),
            r#"{"type":"error","error":{"type":"NotFoundError","message":"The model `zzz` does not exist."}}"#
        );
        assert_eq!(
            body(&unknown, Shape::Flat),
            r#"{"object":"error","message":"The model `zzz` does not exist.","type":"NotFoundError","param":"model","code":404}"#
        );
        let missing = ApiError::validation("missing", "messages", "Field required");
        assert_eq!(missing.param.as_deref(), Some("body.messages"));
        assert!(
            missing
                .message
                .starts_with("1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', ")
        );
    }

    #[test]
    fn the_error_event_has_spaces_and_is_followed_by_done() {
        assert_eq!(
            ApiError::internal("x").event(),
            "data: {\"error\": {\"message\": \"x\", \"type\": \"InternalServerError\", \"param\": null, \
             \"code\": 500}}\n\ndata: [DONE]\n\n"
        );
        assert_eq!(
            ApiError::unavailable("x").flat_event(),
            "data: {\"error\": {\"object\": \"error\", \"message\": \"x\", \"type\": \"SERVICE_UNAVAILABLE\", \
             \"param\": null, \"code\": 503}}\n\ndata: [DONE]\n\n"
        );
    }

    #[test]
    fn failures_have_their_status() {
        let status = |failure| ApiError::from_failure(failure).status.as_u16();
        assert_eq!(status(Failure::Rejected(Rejection::Requests)), 503);
        assert_eq!(status(Failure::Rejected(Rejection::Tokens)), 503);
        assert_eq!(status(Failure::Draining), 500);
        assert_eq!(status(Failure::Dead), 500);
    }
}
