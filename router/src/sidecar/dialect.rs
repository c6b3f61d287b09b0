//! SGLang's errors in OpenAI's shape. It puts the members of `error` at the top of a plain answer, and when its scheduler
//! gives a request back, it says so in the first event of a stream that began with 200.

use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};

/// Longest error that is translated, bytes; a longer one goes out as it came.
pub(super) const MAX_ERROR: usize = 64 << 10;

/// Whether an answer that begins like this may be an error that needs [`translate`].
pub(super) fn concerns(status: StatusCode, events: bool, first: &[u8]) -> bool {
    if events {
        event_data(first).is_some_and(|data| data.starts_with(b"{\"error\""))
    } else {
        status.is_client_error() || status.is_server_error()
    }
}

/// One of SGLang's errors, as far as it is told on.
#[derive(Deserialize)]
struct Flat {
    object: String,
    message: String,
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    param: Option<String>,
    #[serde(default)]
    code: Option<u16>,
}

#[derive(Deserialize)]
struct Event {
    error: Flat,
}

/// An error as OpenAI's API tells it.
#[derive(Serialize)]
struct Nested<'a> {
    error: Members<'a>,
}

#[derive(Serialize)]
struct Members<'a> {
    message: &'a str,
    r#type: Option<&'a str>,
    param: Option<&'a str>,
    code: Option<u16>,
}

/// The status and the body that OpenAI's API would answer; `None` for what has its shape already, and for what is none
/// of SGLang's errors.
pub(super) fn translate(status: StatusCode, events: bool, whole: &[u8]) -> Option<(StatusCode, Bytes)> {
    let (error, status) = if events {
        let Event { error } = serde_json::from_slice(event_data(whole)?).ok()?;
        let told = StatusCode::from_u16(error.code?).ok()?;
        (
            error,
            (told.is_client_error() || told.is_server_error()).then_some(told)?,
        )
    } else {
        (serde_json::from_slice::<Flat>(whole).ok()?, status)
    };
    if error.object != "error" {
        return None;
    }
    let nested = Nested {
        error: Members {
            message: &error.message,
            r#type: error.r#type.as_deref(),
            param: error.param.as_deref(),
            code: error.code,
        },
    };
    Some((status, serde_json::to_vec(&nested).ok()?.into()))
}

/// The data of the first event.
fn event_data(text: &[u8]) -> Option<&[u8]> {
    let line = text.split(|byte| *byte == b'\n').next()?;
    line.strip_prefix(b"data:").map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u16, events: bool, text: &str, expected: Option<(u16, &str)>) {
        let status = StatusCode::from_u16(status).unwrap();
        let found = concerns(status, events, text.as_bytes())
            .then(|| translate(status, events, text.as_bytes()))
            .flatten();
        let found = found.map(|(status, body)| (status.as_u16(), String::from_utf8(body.to_vec()).unwrap()));
        let expected = expected.map(|(status, body)| (status, body.to_owned()));
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn flat_errors_are_nested_and_all_else_is_left() {
        check(
            400,
            false,
            r#"{"object":"error","message":"no","type":"BadRequestError","param":null,"code":400}"#,
            Some((
                400,
                r#"{"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}"#,
            )),
        );
        for left in [
            r#"{"error":{"message":"The model 'x' does not exist","code":"model_not_found"}}"#,
            r#"{"error":"Unauthorized"}"#,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"x"}}"#,
            r#"{"detail":"Not Found"}"#,
            r#"{"object":"error"}"#,
            r#"{"object":"error","message":5}"#,
            "[]",
            "",
            "Internal Server Error",
        ] {
            check(503, false, left, None);
        }
        let answer = r#"{"object":"error","message":"no","code":400}"#;
        check(200, false, answer, None);
    }

    #[test]
    fn a_stream_that_begins_with_an_error_has_its_status() {
        let refused = "data: {\"error\": {\"object\": \"error\", \"message\": \"The request queue is full.\", \
                       \"type\": \"SERVICE_UNAVAILABLE\", \"param\": null, \"code\": 503}}\n\ndata: [DONE]\n\n";
        check(
            200,
            true,
            refused,
            Some((
                503,
                r#"{"error":{"message":"The request queue is full.","type":"SERVICE_UNAVAILABLE","param":null,"code":503}}"#,
            )),
        );
        for left in [
            "data: {\"id\":\"r\",\"choices\":[]}\n\n",
            "data: {\"error\": {\"object\": \"error\", \"message\": \"x\", \"code\": 200}}\n\n",
            "data: {\"error\": {\"message\": \"x\", \"code\": 500}}\n\n",
            "data: {\"error\": null}\n\n",
            ": comment\n\n",
            "data: {\"error\"",
            "",
        ] {
            check(200, true, left, None);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_answer_is_too_strange(text in r#"(data: |\{"error": ?|"object":"error"|[{}:",\n]|\PC)*"#, events: bool) {
            let _ = translate(StatusCode::OK, events, text.as_bytes());
        }
    }
}
