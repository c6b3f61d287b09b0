//! `/v1/completions` in SGLang's shape: `usage` in every chunk, null or not.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{metadata, running, usage};
use crate::http::{
    chat::push,
    error::{ApiError, Shape},
    generate::{Api, Meta, Said, Tally, finish_reason},
    speech::Piece,
    stream::Format,
};

/// `max_tokens` of the old API.
const DEFAULT_MAX_TOKENS: u64 = 16;

/// OpenAI's old API as SGLang serves it.
pub(in crate::http) struct Completions;

impl Api for Completions {
    fn id_prefix(&self) -> &'static str {
        ""
    }

    fn default_max_tokens(&self) -> Option<u64> {
        Some(DEFAULT_MAX_TOKENS)
    }

    fn shape(&self) -> Shape {
        Shape::Flat
    }

    fn format(&self, meta: Arc<Meta>) -> Box<dyn Format> {
        Box::new(CompletionStream { meta })
    }

    fn whole(&self, meta: &Meta, tally: &Tally, choices: &[Said]) -> Vec<u8> {
        let choice =
            |(index, said): (u32, &Said)| choice(index, &said.text, Some(said.ending.finish_reason()));
        let answer = json!({
            "id": meta.id,
            "object": "text_completion",
            "created": meta.created,
            "model": meta.model,
            "choices": (0..).zip(choices).map(choice).collect::<Vec<_>>(),
            "usage": usage(tally, tally.output),
            "metadata": metadata(),
        });
        answer.to_string().into_bytes()
    }
}

fn choice(index: u32, text: &str, finish: Option<&str>) -> Value {
    json!({"index": index, "text": text, "logprobs": null, "finish_reason": finish, "matched_stop": null})
}

struct CompletionStream {
    meta: Arc<Meta>,
}

impl CompletionStream {
    fn chunk(&self, choices: &[Value], usage: &Value, out: &mut Vec<u8>) {
        let chunk = json!({
            "id": self.meta.id,
            "object": "text_completion",
            "created": self.meta.created,
            "model": self.meta.model,
            "choices": choices,
            "usage": usage,
        });
        push(out, format_args!("data: {chunk}\n\n"));
    }
}

impl Format for CompletionStream {
    fn admitted(&mut self, _out: &mut Vec<u8>) {}

    fn piece(&mut self, piece: &Piece, tally: &Tally, out: &mut Vec<u8>) {
        let text = piece.plain();
        let usage = running(&self.meta, tally, piece.choice).unwrap_or(Value::Null);
        self.chunk(&[choice(piece.choice, &text, finish_reason(piece))], &usage, out);
    }

    fn end(&mut self, tally: &Tally, out: &mut Vec<u8>) {
        if self.meta.include_usage {
            let mut usage = usage(tally, tally.output);
            if let Some(usage) = usage.as_object_mut() {
                usage.retain(|_, value| !value.is_null());
            }
            self.chunk(&[], &usage, out);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        out.extend_from_slice(error.flat_event().as_bytes());
    }
}
