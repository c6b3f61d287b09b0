//! A generation request after parsing: what all APIs have in common.

use http::HeaderMap;
use serde_json::{Map, Value};

use super::error::ApiError;
use crate::engine::tokens::{Token, hash_bytes};

/// Most choices per prompt and most prompts per request, as vLLM has them.
const MAX_CHOICES: u64 = 16_384;
const MAX_PROMPTS: usize = 1024;
const MAX_SALT: usize = 128;
const MAX_STOPS: usize = 4;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ask {
    pub(crate) model: Option<String>,
    pub(crate) prompts: Vec<Vec<Token>>,
    pub(crate) choices: u32,
    /// `None` = the API's default.
    pub(crate) max_tokens: Option<u64>,
    pub(crate) min_tokens: u64,
    pub(crate) ignore_eos: bool,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) continuous_usage: bool,
    pub(crate) return_token_ids: bool,
    pub(crate) stream_interval: Option<u32>,
    pub(crate) priority: i64,
    /// Cache namespace; 0 = the shared one.
    pub(crate) salt: u64,
    /// Client's `seed`, mixed into the output.
    pub(crate) seed: u64,
    pub(crate) request_id: Option<String>,
    /// Tool the answer shall call.
    pub(crate) call_tool: Option<String>,
}

/// Reads fields of a JSON body, naming the field in errors as the validator does.
pub(crate) struct Fields<'a>(pub(crate) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The body as an object.
    pub(crate) fn of(body: &'a Value) -> Result<Self, ApiError> {
        let object = body.as_object();
        object.map(Self).ok_or_else(|| {
            ApiError::validation(
                "model_attributes_type",
                "",
                "Input should be a valid dictionary or object",
            )
        })
    }

    /// A field; null counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn required(&self, name: &str) -> Result<&'a Value, ApiError> {
        self.get(name)
            .ok_or_else(|| ApiError::validation("missing", name, "Field required"))
    }

    pub(crate) fn list(&self, name: &str) -> Result<&'a [Value], ApiError> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(_) => Err(ApiError::validation(
                "list_type",
                name,
                "Input should be a valid list",
            )),
        }
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.get(name)
            .map(|value| {
                let wrong = || ApiError::validation("string_type", name, "Input should be a valid string");
                value.as_str().ok_or_else(wrong)
            })
            .transpose()
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        self.get(name).map_or(Ok(false), |value| {
            let wrong = || ApiError::validation("bool_parsing", name, "Input should be a valid boolean");
            value.as_bool().ok_or_else(wrong)
        })
    }

    pub(crate) fn integer(&self, name: &str) -> Result<Option<i64>, ApiError> {
        self.get(name)
            .map(|value| {
                let wrong = || ApiError::validation("int_type", name, "Input should be a valid integer");
                value.as_i64().ok_or_else(wrong)
            })
            .transpose()
    }

    fn number(&self, name: &str) -> Result<Option<f64>, ApiError> {
        self.get(name)
            .map(|value| {
                let wrong = || ApiError::validation("float_type", name, "Input should be a valid number");
                value.as_f64().ok_or_else(wrong)
            })
            .transpose()
    }

    /// A count that must be at least 1.
    pub(crate) fn count(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.integer(name)? else {
            return Ok(None);
        };
        let bad = || ApiError::bad_request(format!("{name} must be at least 1, got {value}."), Some(name));
        u64::try_from(value)
            .ok()
            .filter(|count| *count > 0)
            .map(Some)
            .ok_or_else(bad)
    }
}

/// Reads the fields all APIs share; `prompts` comes from the API's own part.
pub(crate) fn common(
    fields: &Fields<'_>,
    headers: &HeaderMap,
    prompts: Vec<Vec<Token>>,
) -> Result<Ask, ApiError> {
    check_sampling(fields)?;
    if prompts.len() > MAX_PROMPTS {
        let message = format!("at most {MAX_PROMPTS} prompts are allowed, got {}", prompts.len());
        return Err(ApiError::bad_request(message, Some("prompt")));
    }
    let choices = fields.count("n")?.unwrap_or(1);
    if choices > MAX_CHOICES {
        return Err(ApiError::bad_request(
            format!("n must be at most {MAX_CHOICES}, got {choices}."),
            Some("n"),
        ));
    }
    let stream = fields.flag("stream")?;
    let (include_usage, continuous_usage) = stream_options(fields, stream)?;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let body_priority = fields.integer("priority")?.unwrap_or(0);
    let request_id = header("x-request-id").map(str::to_owned);
    Ok(Ask {
        model: fields.text("model")?.map(str::to_owned),
        prompts,
        choices: choices as u32,
        max_tokens: None,
        min_tokens: fields.integer("min_tokens")?.unwrap_or(0).max(0).unsigned_abs(),
        ignore_eos: fields.flag("ignore_eos")?,
        stream,
        include_usage,
        continuous_usage,
        return_token_ids: fields.flag("return_token_ids")?,
        stream_interval: fields
            .count("stream_interval")?
            .map(|value| u32::try_from(value).unwrap_or(u32::MAX)),
        priority: header("x-vllm-priority")
            .and_then(|value| value.trim().parse().ok())
            .unwrap_or(body_priority),
        salt: salt(fields)?,
        seed: fields.integer("seed")?.unwrap_or(0).cast_unsigned(),
        request_id: request_id.or(fields.text("request_id")?.map(str::to_owned)),
        call_tool: header("x-sim-tool-call")
            .or(fields.text("x-sim-tool-call")?)
            .map(str::to_owned),
    })
}

fn check_sampling(fields: &Fields<'_>) -> Result<(), ApiError> {
    if let Some(value) = fields.number("temperature")?
        && value < 0.0
    {
        let message = format!("temperature must be non-negative, got {value:?}.");
        return Err(ApiError::bad_request(message, Some("temperature")));
    }
    if let Some(value) = fields.number("top_p")?
        && !(value > 0.0 && value <= 1.0)
    {
        return Err(ApiError::bad_request(
            format!("top_p must be in (0, 1], got {value:?}."),
            Some("top_p"),
        ));
    }
    if let Some(Value::Array(stops)) = fields.get("stop")
        && stops.len() > MAX_STOPS
    {
        return Err(ApiError::bad_request(
            format!(
                "at most {MAX_STOPS} stop strings are allowed, got {}.",
                stops.len()
            ),
            Some("stop"),
        ));
    }
    Ok(())
}

fn stream_options(fields: &Fields<'_>, stream: bool) -> Result<(bool, bool), ApiError> {
    let Some(options) = fields.get("stream_options") else {
        return Ok((false, false));
    };
    let Some(options) = options.as_object().map(Fields) else {
        return Err(ApiError::validation(
            "model_attributes_type",
            "stream_options",
            "Input should be a valid object",
        ));
    };
    if !stream {
        let text = "Stream options can only be defined when `stream=True`.";
        return Err(ApiError::validation("value_error", "stream_options", text));
    }
    Ok((
        options.flag("include_usage")?,
        options.flag("continuous_usage_stats")?,
    ))
}

fn salt(fields: &Fields<'_>) -> Result<u64, ApiError> {
    let Some(salt) = fields.text("cache_salt")? else {
        return Ok(0);
    };
    if salt.is_empty() || salt.len() > MAX_SALT || salt.contains(['@', '/', '\\', '\0']) {
        let message =
            format!("cache_salt must be 1 to {MAX_SALT} characters without '@', '/', '\\' and NUL.");
        return Err(ApiError::bad_request(message, Some("cache_salt")));
    }
    Ok(hash_bytes(salt.as_bytes()) | 1)
}

/// The tool that `tool_choice` forces: named, or the first offered when one is required. Both OpenAI's and
/// Anthropic's spelling.
pub(crate) fn forced_tool(tool_choice: Option<&Value>, tools: &[Value]) -> Option<String> {
    let name = |tool: &Value| {
        let name = tool["function"]["name"]
            .as_str()
            .or_else(|| tool["name"].as_str());
        name.map(str::to_owned)
    };
    let choice = tool_choice?;
    match choice.as_str().or_else(|| choice["type"].as_str())? {
        "required" | "any" => tools.first().and_then(name),
        "function" | "tool" => name(choice),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: &Value, headers: &[(&'static str, &'static str)]) -> Result<Ask, ApiError> {
        let headers = headers
            .iter()
            .map(|(name, value)| {
                (
                    http::HeaderName::from_static(name),
                    http::HeaderValue::from_static(value),
                )
            })
            .collect();
        common(&Fields::of(body)?, &headers, vec![vec![1]])
    }

    #[test]
    fn headers_win_over_the_body() {
        let body = json!({"priority": 3, "request_id": "b", "x-sim-tool-call": "f"});
        let ask = parse(&body, &[]).unwrap();
        assert_eq!((ask.priority, ask.request_id.as_deref()), (3, Some("b")));
        assert_eq!(ask.call_tool.as_deref(), Some("f"));
        let ask = parse(&body, &[("x-vllm-priority", "-7"), ("x-request-id", "h")]).unwrap();
        assert_eq!((ask.priority, ask.request_id.as_deref()), (-7, Some("h")));
    }

    #[test]
    fn bad_values_name_their_field() {
        for (body, status, param) in [
            (json!([1]), 400, "body"),
            (json!({"stream": "maybe"}), 400, "body.stream"),
            (json!({"model": 5}), 400, "body.model"),
            (json!({"temperature": -1}), 400, "temperature"),
            (json!({"top_p": 1.5}), 400, "top_p"),
            (json!({"stop": ["a", "b", "c", "d", "e"]}), 400, "stop"),
            (json!({"n": 0}), 400, "n"),
            (json!({"n": 20000}), 400, "n"),
            (json!({"cache_salt": "a/b"}), 400, "cache_salt"),
            (
                json!({"stream_options": {"include_usage": true}}),
                400,
                "body.stream_options",
            ),
        ] {
            let error = parse(&body, &[]).unwrap_err();
            assert_eq!(
                (error.status.as_u16(), error.param.as_deref()),
                (status, Some(param)),
                "{body}"
            );
        }
    }

    #[test]
    fn tools_are_forced_in_every_spelling() {
        let tools = [
            json!({"type": "function", "function": {"name": "a"}}),
            json!({"name": "b"}),
        ];
        let check = |choice: Value, expected: Option<&str>| {
            assert_eq!(
                forced_tool(Some(&choice), &tools).as_deref(),
                expected,
                "{choice}"
            );
        };
        check(json!("auto"), None);
        check(json!("required"), Some("a"));
        check(json!({"type": "any"}), Some("a"));
        check(json!({"type": "function", "function": {"name": "z"}}), Some("z"));
        check(json!({"type": "tool", "name": "b"}), Some("b"));
        assert_eq!(forced_tool(None, &tools), None);
    }
}
