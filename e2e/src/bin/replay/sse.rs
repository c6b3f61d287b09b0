//! Server-sent events of a chat completion, and what they say about it.

use bytes::Bytes;
use serde::Deserialize;

/// Longest accepted line; a token's event has a few hundred bytes.
const MAX_LINE_BYTES: usize = 4 << 20;

/// Token counts as the engine reports them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: Option<u64>,
    pub(crate) cached_tokens: Option<u64>,
    pub(crate) completion_tokens: Option<u64>,
}

/// What the data of one event, or a whole JSON answer, says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// It has a choice, so a token (or the role that comes with the first one).
    pub(crate) has_choice: bool,
    pub(crate) finish_reason: Option<String>,
    pub(crate) usage: Option<Usage>,
    /// The message of an `error` member.
    pub(crate) error: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Chunk(Chunk),
    Done,
}

/// Why a stream is not one of chat completion events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SseError {
    #[error("an event is longer than 4 MiB")]
    TooLong,
    #[error("the data of an event is not JSON")]
    NotJson,
}

/// Cuts a stream of bytes into events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
}

impl Parser {
    /// The events that these bytes complete.
    ///
    /// # Errors
    /// When a line is too long or data is no JSON; the parser is of no use afterwards.
    pub(crate) fn push(&mut self, bytes: &Bytes) -> Result<Vec<Event>, SseError> {
        let mut events = Vec::new();
        let mut rest = bytes.as_ref();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            events.extend(event(&self.line)?);
            self.line.clear();
        }
        self.line.extend_from_slice(rest);
        if self.line.len() > MAX_LINE_BYTES {
            Err(SseError::TooLong)
        } else {
            Ok(events)
        }
    }
}

/// The event of one line: engines write each event's data on one line. Comments and other fields say nothing here.
fn event(line: &[u8]) -> Result<Option<Event>, SseError> {
    let Some(data) = line.strip_prefix(b"data:") else {
        return Ok(None);
    };
    match data.trim_ascii() {
        b"[DONE]" => Ok(Some(Event::Done)),
        b"" => Ok(None),
        data => chunk(data)
            .map(|chunk| Some(Event::Chunk(chunk)))
            .ok_or(SseError::NotJson),
    }
}

/// Reads a chunk, a whole answer or an error body; `None` if it is no JSON object of such a kind.
pub(crate) fn chunk(json: &[u8]) -> Option<Chunk> {
    #[derive(Deserialize)]
    struct Wire {
        choices: Option<Vec<Choice>>,
        usage: Option<WireUsage>,
        error: Option<serde_json::Value>,
        /// SGLang's flat errors.
        object: Option<String>,
        message: Option<serde_json::Value>,
    }
    #[derive(Deserialize)]
    struct Choice {
        finish_reason: Option<String>,
    }
    #[derive(Deserialize)]
    struct WireUsage {
        prompt_tokens: Option<u64>,
        completion_tokens: Option<u64>,
        prompt_tokens_details: Option<Details>,
    }
    #[derive(Deserialize)]
    struct Details {
        cached_tokens: Option<u64>,
    }
    let wire: Wire = serde_json::from_slice(json).ok()?;
    let choices = wire.choices.unwrap_or_default();
    let flat = wire.message.filter(|_| wire.object.as_deref() == Some("error"));
    let mut finish_reasons = choices.iter().filter_map(|choice| choice.finish_reason.clone());
    Some(Chunk {
        has_choice: !choices.is_empty(),
        finish_reason: finish_reasons.next(),
        usage: wire.usage.map(|usage| Usage {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage
                .prompt_tokens_details
                .and_then(|details| details.cached_tokens),
            completion_tokens: usage.completion_tokens,
        }),
        error: wire
            .error
            .filter(|error| !error.is_null())
            .or(flat)
            .map(|error| message(&error)),
    })
}

/// The text of an `error` member, which is an object with a message, or the text itself.
fn message(error: &serde_json::Value) -> String {
    let text = error.get("message").unwrap_or(error);
    text.as_str().map_or_else(|| text.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        ": keep-alive\n\n",
        "data: {\"id\":\"chatcmpl-1\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":\"length\"}]}\r\n\r\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n",
        "data: [DONE]\n\n",
    );

    fn events(pieces: &[&str]) -> Vec<Event> {
        let mut parser = Parser::default();
        pieces
            .iter()
            .flat_map(|piece| parser.push(&Bytes::from((*piece).to_owned())).unwrap())
            .collect()
    }

    #[test]
    fn a_stream_says_the_same_however_it_is_cut() {
        let whole = events(&[STREAM]);
        assert_eq!(whole.len(), 4);
        assert!(
            matches!(&whole[1], Event::Chunk(chunk) if chunk.finish_reason.as_deref() == Some("length") && chunk.has_choice)
        );
        let usage = Usage {
            prompt_tokens: Some(11),
            cached_tokens: Some(4),
            completion_tokens: Some(3),
        };
        assert!(matches!(&whole[2], Event::Chunk(chunk) if chunk.usage == Some(usage) && !chunk.has_choice));
        assert_eq!(whole[3], Event::Done);
        for at in 0..STREAM.len() {
            assert_eq!(events(&[&STREAM[..at], &STREAM[at..]]), whole, "cut at {at}");
        }
    }

    #[test]
    fn errors_of_every_shape_are_seen() {
        for (json, message) in [
            (
                r#"{"error": {"message": "engine died", "type": "InternalServerError", "code": 500}}"#,
                "engine died",
            ),
            (r#"{"error":"Unauthorized"}"#, "Unauthorized"),
            (r#"{"object":"error","message":"flat","code":400}"#, "flat"),
        ] {
            assert_eq!(chunk(json.as_bytes()).unwrap().error.as_deref(), Some(message));
        }
        assert_eq!(chunk(br#"{"error":null,"choices":[]}"#).unwrap().error, None);
        assert_eq!(chunk(b"nonsense"), None);
    }

    #[test]
    fn data_that_is_no_json_or_endless_is_refused() {
        assert_eq!(
            Parser::default().push(&Bytes::from_static(b"data: {oops\n")),
            Err(SseError::NotJson)
        );
        let endless = Bytes::from(vec![b'x'; MAX_LINE_BYTES + 1]);
        assert_eq!(Parser::default().push(&endless), Err(SseError::TooLong));
    }
}
