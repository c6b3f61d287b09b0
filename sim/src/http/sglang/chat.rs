//! `/v1/chat/completions` in SGLang's shape: `reasoning_content` in every delta, `matched_stop` in every choice, the
//! finish reason in a chunk of its own.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{metadata, running, usage};
use crate::http::{
    chat::push,
    error::{ApiError, Shape},
    generate::{Api, Meta, Said, Tally, finish_reason},
    speech::{Part, Piece},
    stream::Format,
};

/// OpenAI's chat API as SGLang serves it.
pub(in crate::http) struct Chat;

impl Api for Chat {
    fn id_prefix(&self) -> &'static str {
        ""
    }

    fn default_max_tokens(&self) -> Option<u64> {
        None
    }

    fn shape(&self) -> Shape {
        Shape::Flat
    }

    fn format(&self, meta: Arc<Meta>) -> Box<dyn Format> {
        Box::new(ChatStream {
            meta,
            begun: Vec::new(),
            finished: Vec::new(),
        })
    }

    fn whole(&self, meta: &Meta, tally: &Tally, choices: &[Said]) -> Vec<u8> {
        let choices: Vec<Value> = (0_u32..)
            .zip(choices)
            .map(|(index, said)| choice(index, said))
            .collect();
        let answer = json!({
            "id": meta.id,
            "object": "chat.completion",
            "created": meta.created,
            "model": meta.model,
            "choices": choices,
            "usage": usage(tally, tally.output),
            "metadata": metadata(),
        });
        answer.to_string().into_bytes()
    }
}

fn choice(index: u32, said: &Said) -> Value {
    let mut message = json!({"role": "assistant", "content": said.text, "reasoning_content": null});
    if let Some((id, name, arguments)) = &said.call {
        message["content"] = Value::Null;
        message["tool_calls"] = json!([{
            "id": id, "index": 0, "type": "function", "function": {"name": name, "arguments": arguments},
        }]);
    }
    json!({
        "index": index,
        "message": message,
        "logprobs": null,
        "finish_reason": said.ending.finish_reason(),
        "matched_stop": null,
    })
}

struct ChatStream {
    meta: Arc<Meta>,
    /// Choices whose role chunk is out.
    begun: Vec<u32>,
    /// Choices that ended, with their reasons: told at the end of the stream.
    finished: Vec<(u32, &'static str)>,
}

impl ChatStream {
    fn chunk(&self, choices: &[Value], usage: Option<Value>, out: &mut Vec<u8>) {
        let mut chunk = head(&self.meta);
        chunk.insert("choices".to_owned(), json!(choices));
        if let Some(usage) = usage {
            chunk.insert("usage".to_owned(), usage);
        }
        push(out, format_args!("data: {}\n\n", Value::Object(chunk)));
    }
}

fn part_of(choice: u32, delta: &Value, finish: Option<&str>) -> Value {
    json!({"index": choice, "delta": delta, "logprobs": null, "finish_reason": finish, "matched_stop": null})
}

fn head(meta: &Meta) -> Map<String, Value> {
    let mut head = Map::new();
    head.insert("id".to_owned(), json!(meta.id));
    head.insert("object".to_owned(), json!("chat.completion.chunk"));
    head.insert("created".to_owned(), json!(meta.created));
    head.insert("model".to_owned(), json!(meta.model));
    head
}

fn delta(part: &Part) -> Value {
    match part {
        Part::Text(text) => json!({"reasoning_content": null, "content": text}),
        Part::Call { id, name } => {
            json!({"role": null, "content": null, "reasoning_content": null, "tool_calls": [
            {"id": id, "index": 0, "type": "function", "function": {"name": name, "arguments": ""}}]})
        }
        Part::Arguments(text) => {
            json!({"role": null, "content": null, "reasoning_content": null, "tool_calls": [
                {"id": null, "index": 0, "type": "function", "function": {"name": null, "arguments": text}}]})
        }
    }
}

impl Format for ChatStream {
    fn admitted(&mut self, _out: &mut Vec<u8>) {}

    fn piece(&mut self, piece: &Piece, tally: &Tally, out: &mut Vec<u8>) {
        if !self.begun.contains(&piece.choice) {
            self.begun.push(piece.choice);
            let role = json!({"reasoning_content": null, "role": "assistant", "content": ""});
            self.chunk(&[part_of(piece.choice, &role, None)], None, out);
        }
        for part in &piece.parts {
            let usage = running(&self.meta, tally, piece.choice);
            self.chunk(&[part_of(piece.choice, &delta(part), None)], usage, out);
        }
        if let Some(reason) = finish_reason(piece) {
            self.finished.push((piece.choice, reason));
        }
    }

    fn end(&mut self, tally: &Tally, out: &mut Vec<u8>) {
        let silent = json!({"reasoning_content": null});
        for (choice, reason) in &self.finished {
            self.chunk(&[part_of(*choice, &silent, Some(reason))], None, out);
        }
        if self.meta.include_usage {
            self.chunk(&[], Some(usage(tally, tally.output)), out);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        out.extend_from_slice(error.flat_event().as_bytes());
    }
}
