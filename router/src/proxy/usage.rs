//! Reads what an engine says about a request in its answer, without changing a byte: token usage, whether a tool is
//! called, in-band errors, the end of a stream.
//!
//! Every complete line is searched for a few words; only a line that has one is parsed. Inside a JSON string quotes are escaped,
//! so the quoted words below cannot come from generated text.

use std::sync::LazyLock;

use memchr::{memchr, memmem};
use serde::Deserialize;

/// Longest line that is looked at; a longer one is passed over.
const MAX_LINE_BYTES: usize = 1 << 20;
/// Longest plain JSON answer that is looked at as a whole; of a longer one, its last bytes.
const MAX_TAIL_BYTES: usize = 64 << 10;

/// Token counts as the engine reported them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens, cached ones included.
    pub prompt_tokens: u64,
    /// Of those, served from the prefix cache; `None` when the engine does not say.
    pub cached_tokens: Option<u64>,
    /// Output tokens.
    pub completion_tokens: u64,
}

/// What was seen in an answer so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// The last usage report.
    pub usage: Option<Usage>,
    /// The answer asks for a tool call.
    pub tool_call: bool,
    /// The engine reported an error inside the stream.
    pub error: bool,
    /// The stream said that it is complete.
    pub complete: bool,
}

#[derive(Deserialize, Default)]
struct UsageText {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    input_tokens_details: Option<Details>,
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<u64>,
}

#[derive(Deserialize, Default)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

struct Words {
    usage: memmem::Finder<'static>,
    error: memmem::Finder<'static>,
    tool_calls: memmem::Finder<'static>,
    tool_use: memmem::Finder<'static>,
    function_call: memmem::Finder<'static>,
    ends: [memmem::Finder<'static>; 4],
}

static WORDS: LazyLock<Words> = LazyLock::new(|| Words {
    usage: memmem::Finder::new("\"usage\""),
    error: memmem::Finder::new("\"error\""),
    tool_calls: memmem::Finder::new("\"tool_calls\""),
    tool_use: memmem::Finder::new("\"tool_use\""),
    function_call: memmem::Finder::new("\"function_call\""),
    ends: [
        memmem::Finder::new("\"message_stop\""),
        memmem::Finder::new("\"response.completed\""),
        memmem::Finder::new("\"response.incomplete\""),
        memmem::Finder::new("\"response.failed\""),
    ],
});

impl Seen {
    /// Looks at one JSON text: a whole answer, its tail, or the data of one event.
    fn look(&mut self, text: &[u8]) {
        let words = &*WORDS;
        for at in words.usage.find_iter(text) {
            if let Some(usage) = value_after(&text[at + words.usage.needle().len()..]) {
                self.merge(&usage);
            }
        }
        if !self.tool_call {
            self.tool_call = words
                .tool_calls
                .find_iter(text)
                .any(|at| is_reason_value(&text[..at]))
                || words
                    .tool_use
                    .find_iter(text)
                    .any(|at| is_reason_value(&text[..at]))
                || words
                    .function_call
                    .find_iter(text)
                    .any(|at| is_type_value(&text[..at]));
        }
    }

    /// Later reports hold; a report that only counts output (Anthropic's `message_delta`) keeps the prompt's count.
    fn merge(&mut self, text: &UsageText) {
        let before = self.usage.unwrap_or_default();
        let cached = text
            .prompt_tokens_details
            .as_ref()
            .or(text.input_tokens_details.as_ref())
            .and_then(|details| details.cached_tokens)
            .or(text.cache_read_input_tokens);
        // Anthropic's `input_tokens` leaves out what was read from or written to the cache.
        let beside =
            text.cache_read_input_tokens.unwrap_or(0) + text.cache_creation_input_tokens.unwrap_or(0);
        let prompt = text
            .prompt_tokens
            .or_else(|| text.input_tokens.map(|tokens| tokens.saturating_add(beside)));
        let completion = text.completion_tokens.or(text.output_tokens);
        if prompt.is_none() && completion.is_none() {
            return;
        }
        self.usage = Some(Usage {
            prompt_tokens: prompt.unwrap_or(before.prompt_tokens),
            cached_tokens: cached.or(before.cached_tokens),
            completion_tokens: completion.unwrap_or(before.completion_tokens),
        });
    }

    /// Looks at one line of an event stream, without its line end.
    fn look_at_line(&mut self, line: &[u8]) {
        let Some(data) = line.strip_prefix(b"data:") else {
            return;
        };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.complete = true;
            return;
        }
        self.look(data);
        let words = &*WORDS;
        if words.error.find(data).is_some() && has_error(data) {
            self.error = true;
        }
        if words.ends.iter().any(|end| end.find(data).is_some()) {
            self.complete = true;
            self.error |= words.ends[3].find(data).is_some();
        }
    }
}

/// Parses the object after a key: `: {…}`. `null` and anything else is none.
fn value_after(text: &[u8]) -> Option<UsageText> {
    let text = text.trim_ascii_start().strip_prefix(b":")?;
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<Option<UsageText>>();
    values.next()?.ok()?
}

/// The text before a word ends in `"finish_reason":` or `"stop_reason":`.
fn is_reason_value(before: &[u8]) -> bool {
    key_before(before).is_some_and(|key| key == b"finish_reason" || key == b"stop_reason")
}

/// The text before a word ends in `"type":`.
fn is_type_value(before: &[u8]) -> bool {
    key_before(before).is_some_and(|key| key == b"type")
}

fn key_before(before: &[u8]) -> Option<&[u8]> {
    let key = before
        .trim_ascii_end()
        .strip_suffix(b":")?
        .trim_ascii_end()
        .strip_suffix(b"\"")?;
    let start = memchr::memrchr(b'"', key)?;
    Some(&key[start + 1..])
}

/// The event has an `error` member that is not null, or is of type `error`.
fn has_error(data: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(default, borrow)]
        error: Option<&'a serde_json::value::RawValue>,
        #[serde(default, rename = "type", borrow)]
        kind: Option<&'a serde_json::value::RawValue>,
    }
    serde_json::from_slice::<Event<'_>>(data).is_ok_and(|event| {
        event.error.is_some_and(|error| error.get() != "null")
            || event.kind.is_some_and(|kind| kind.get() == "\"error\"")
    })
}

/// Follows one answer.
#[derive(Debug)]
pub struct Scanner {
    seen: Seen,
    events: bool,
    /// The line (events) or the tail (plain JSON) that is not complete yet.
    open: Vec<u8>,
    /// The current line is too long to be looked at.
    skipping: bool,
}

impl Scanner {
    /// A scanner for an event stream (`events`) or for one JSON answer.
    #[must_use]
    pub fn new(events: bool) -> Self {
        Self {
            seen: Seen::default(),
            events,
            open: Vec::new(),
            skipping: false,
        }
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Takes the next bytes of the answer.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.events {
            self.feed_events(bytes);
        } else {
            self.feed_json(bytes);
        }
    }

    /// The answer is at its end: looks at what is left.
    pub fn end(&mut self) {
        let rest = std::mem::take(&mut self.open);
        if self.events {
            self.seen.look_at_line(&rest);
        } else {
            self.seen.look(&rest);
        }
    }

    /// The whole of a plain JSON answer, in one piece.
    pub fn whole(&mut self, bytes: &[u8]) {
        self.seen
            .look(&bytes[bytes.len().saturating_sub(MAX_TAIL_BYTES)..]);
    }

    fn feed_events(&mut self, mut bytes: &[u8]) {
        while let Some(at) = memchr(b'\n', bytes) {
            let line = &bytes[..at];
            bytes = &bytes[at + 1..];
            if std::mem::take(&mut self.skipping) {
                self.open.clear();
            } else if self.open.is_empty() {
                self.seen.look_at_line(line);
            } else {
                self.open.extend_from_slice(line);
                let whole = std::mem::take(&mut self.open);
                self.seen.look_at_line(&whole);
                self.open = whole;
                self.open.clear();
            }
        }
        if self.open.len() + bytes.len() > MAX_LINE_BYTES {
            self.open = Vec::new();
            self.skipping = true;
        } else if !self.skipping {
            self.open.extend_from_slice(bytes);
        }
    }

    fn feed_json(&mut self, bytes: &[u8]) {
        if bytes.len() >= MAX_TAIL_BYTES {
            self.open.clear();
            self.open
                .extend_from_slice(&bytes[bytes.len() - MAX_TAIL_BYTES..]);
            return;
        }
        self.open.extend_from_slice(bytes);
        if self.open.len() > 2 * MAX_TAIL_BYTES {
            self.open.drain(..self.open.len() - MAX_TAIL_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = concat!(
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"say \\\"usage\\\":{} \\\"error\\\"\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"total_tokens\":14,\"completion_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":8}}}\n\n",
        "data: [DONE]\n\n",
    );

    fn scan(text: &str, piece: usize) -> Seen {
        let mut scanner = Scanner::new(true);
        for part in text.as_bytes().chunks(piece) {
            scanner.feed(part);
        }
        scanner.end();
        *scanner.seen()
    }

    fn usage(prompt: u64, cached: Option<u64>, completion: u64) -> Option<Usage> {
        Some(Usage {
            prompt_tokens: prompt,
            cached_tokens: cached,
            completion_tokens: completion,
        })
    }

    #[test]
    fn a_chat_stream_is_read_however_it_is_cut_into_pieces() {
        let expected = Seen {
            usage: usage(11, Some(8), 3),
            tool_call: true,
            error: false,
            complete: true,
        };
        for piece in 1..CHAT.len() {
            assert_eq!(scan(CHAT, piece), expected, "pieces of {piece}");
        }
    }

    #[test]
    fn in_band_errors_are_seen_in_every_shape() {
        let error = |text: &str| scan(text, 7).error;
        assert!(error(
            "data: {\"error\": {\"message\": \"x\", \"code\": 500}}\n\ndata: [DONE]\n\n"
        ));
        assert!(error(
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\"}}\n\n"
        ));
        assert!(error("data: {\"type\":\"response.failed\",\"response\":{}}\n\n"));
        assert!(!error("data: {\"error\":null,\"choices\":[]}\n\n"));
        assert!(!error(
            "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"error\\\": {}\"}}]}\n\n"
        ));
    }

    #[test]
    fn messages_and_responses_streams_are_read() {
        let messages = concat!(
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":5,\"cache_read_input_tokens\":20,\"output_tokens\":0}}}\n\n",
            "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"tool_use\"},\"usage\":{\"output_tokens\":7}}\n\n",
            "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        );
        let seen = scan(messages, 11);
        assert_eq!(seen.usage, usage(25, Some(20), 7));
        assert!(seen.tool_call && seen.complete);
        let responses = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"type\":\"function_call\"}],\"usage\":{\"input_tokens\":30,\"input_tokens_details\":{\"cached_tokens\":16},\"output_tokens\":4}}}\n\n";
        let seen = scan(responses, 13);
        assert_eq!(seen.usage, usage(30, Some(16), 4));
        assert!(seen.tool_call && seen.complete);
    }

    #[test]
    fn a_plain_answer_is_read_from_its_end() {
        let body = format!(
            "{{\"data\":[{}],\"usage\":{{\"prompt_tokens\":9,\"completion_tokens\":0,\"prompt_tokens_details\":null}}}}",
            "0.125,".repeat(60_000)
        );
        for piece in [1_000, 70_000, body.len()] {
            let mut scanner = Scanner::new(false);
            body.as_bytes().chunks(piece).for_each(|part| scanner.feed(part));
            scanner.end();
            assert_eq!(scanner.seen().usage, usage(9, None, 0), "pieces of {piece}");
        }
    }

    #[test]
    fn endless_lines_cost_bounded_memory_and_do_not_hide_what_follows() {
        let mut scanner = Scanner::new(true);
        for _ in 0..64 {
            scanner.feed(&[b'x'; 64 << 10]);
            assert!(scanner.open.capacity() <= 2 * MAX_LINE_BYTES);
        }
        scanner.feed(b"\n\n");
        scanner.feed(CHAT.as_bytes());
        assert!(scanner.seen().complete);
    }
}
