//! `/v1/completions`.

use std::sync::Arc;

use http::HeaderMap;
use serde_json::{Value, json};

use super::{
    ask::{Ask, Fields, common},
    chat::{chunk_head, close_chunk, end_stream, final_tail, push, whole_usage},
    error::ApiError,
    generate::{Api, Meta, Said, Tally, finish_reason},
    prompt::text_tokens,
    speech::Piece,
    stream::Format,
};
use crate::engine::tokens::Token;

/// OpenAI's old API.
pub(crate) struct Completions;

/// `max_tokens` of the old API.
const DEFAULT_MAX_TOKENS: u64 = 16;

/// Reads a request.
pub(crate) fn parse(body: &Value, headers: &HeaderMap) -> Result<Ask, ApiError> {
    let fields = Fields::of(body)?;
    let prompts = prompts(fields.required("prompt")?)?;
    let mut ask = common(&fields, headers, prompts)?;
    ask.max_tokens = fields.count("max_tokens")?;
    Ok(ask)
}

/// A text, several texts, token numbers, or several lists of them.
fn prompts(prompt: &Value) -> Result<Vec<Vec<Token>>, ApiError> {
    let wrong = || ApiError::validation("string_type", "prompt", "Input should be a valid string");
    let Value::Array(items) = prompt else {
        return Ok(vec![text_tokens(prompt.as_str().ok_or_else(wrong)?)]);
    };
    if !items.is_empty() && items.iter().all(Value::is_number) {
        return Ok(vec![numbers(items).ok_or_else(wrong)?]);
    }
    items
        .iter()
        .map(|item| match item {
            Value::String(text) => Ok(text_tokens(text)),
            Value::Array(tokens) => numbers(tokens).ok_or_else(wrong),
            _ => Err(wrong()),
        })
        .collect()
}

/// Token numbers; `None` when one is not.
pub(crate) fn numbers(items: &[Value]) -> Option<Vec<Token>> {
    items
        .iter()
        .map(|item| item.as_u64().and_then(|number| Token::try_from(number).ok()))
        .collect()
}

impl Api for Completions {
    fn id_prefix(&self) -> &'static str {
        "cmpl-"
    }

    fn default_max_tokens(&self) -> Option<u64> {
        Some(DEFAULT_MAX_TOKENS)
    }

    fn format(&self, meta: Arc<Meta>) -> Box<dyn Format> {
        Box::new(CompletionStream {
            head: chunk_head(&meta, "text_completion"),
            meta,
            begun: Vec::new(),
        })
    }

    fn whole(&self, meta: &Meta, tally: &Tally, choices: &[Said]) -> Vec<u8> {
        let choice = |(index, said): (u32, &Said)| {
            json!({
                "index": index,
                "text": said.text,
                "logprobs": null,
                "finish_reason": said.ending.finish_reason(),
                "stop_reason": null,
                "token_ids": said.tokens,
                "prompt_logprobs": null,
                "prompt_token_ids": meta.prompt_tokens_of(index),
                "routed_experts": null,
            })
        };
        let answer = json!({
            "id": meta.id,
            "object": "text_completion",
            "created": meta.created,
            "model": meta.model,
            "choices": (0..).zip(choices).map(choice).collect::<Vec<_>>(),
            "service_tier": null,
            "system_fingerprint": meta.fingerprint,
            "usage": whole_usage(tally),
            "kv_transfer_params": null,
            "ec_transfer_params": null,
            "metrics": null,
        });
        answer.to_string().into_bytes()
    }
}

struct CompletionStream {
    meta: Arc<Meta>,
    head: String,
    /// Choices whose first chunk is out.
    begun: Vec<u32>,
}

impl Format for CompletionStream {
    fn admitted(&mut self, _out: &mut Vec<u8>) {}

    fn piece(&mut self, piece: &Piece, tally: &Tally, out: &mut Vec<u8>) {
        let text = piece.plain();
        let first = !self.begun.contains(&piece.choice);
        let prompt = if first {
            self.meta.prompt_tokens_of(piece.choice)
        } else {
            None
        };
        let ids = self.meta.prompt_token_ids.is_some().then_some(&piece.tokens);
        let choice = json!({
            "index": piece.choice,
            "text": text,
            "logprobs": null,
            "finish_reason": finish_reason(piece),
            "stop_reason": null,
            "prompt_token_ids": prompt,
            "token_ids": ids,
        });
        push(out, format_args!("{}[{choice}]", self.head));
        close_chunk(
            &self.meta,
            tally,
            piece.choice,
            &final_tail(&self.meta, piece),
            out,
        );
        if first {
            self.begun.push(piece.choice);
        }
    }

    fn end(&mut self, tally: &Tally, out: &mut Vec<u8>) {
        end_stream(&self.head, &self.meta, tally, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_come_in_four_forms() {
        let check = |prompt: Value, expected: usize| {
            assert_eq!(prompts(&prompt).unwrap().len(), expected, "{prompt}");
        };
        check(json!("text"), 1);
        check(json!(["a", "b"]), 2);
        check(json!([1, 2, 3]), 1);
        check(json!([[1, 2], [3]]), 2);
        for wrong in [json!(5), json!([-1]), json!([{"a": 1}]), json!([["a"]])] {
            assert!(prompts(&wrong).is_err(), "{wrong}");
        }
    }
}
