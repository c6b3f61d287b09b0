//! `/v1/chat/completions`.

use std::{io::Write, sync::Arc};

use http::HeaderMap;
use serde_json::{Value, json};

use super::{
    ask::{Ask, Fields, common, forced_tool},
    error::ApiError,
    generate::{Api, Meta, Said, Tally, finish_reason},
    prompt::chat_tokens,
    speech::{Part, Piece},
    stream::Format,
};

/// OpenAI's chat API.
pub(crate) struct Chat;

/// Reads a request.
pub(crate) fn parse(body: &Value, headers: &HeaderMap) -> Result<Ask, ApiError> {
    let fields = Fields::of(body)?;
    fields.required("messages")?;
    let messages = fields.list("messages")?;
    if let Some(index) = messages.iter().position(|message| !message["role"].is_string()) {
        return Err(ApiError::validation(
            "missing",
            &format!("messages.{index}.role"),
            "Field required",
        ));
    }
    let tools = fields.list("tools")?;
    let mut ask = common(&fields, headers, vec![chat_tokens(messages, tools)])?;
    ask.max_tokens = match fields.count("max_completion_tokens")? {
        Some(count) => Some(count),
        None => fields.count("max_tokens")?,
    };
    ask.call_tool = ask
        .call_tool
        .or_else(|| forced_tool(fields.get("tool_choice"), tools));
    Ok(ask)
}

impl Api for Chat {
    fn id_prefix(&self) -> &'static str {
        "chatcmpl-"
    }

    fn default_max_tokens(&self) -> Option<u64> {
        None
    }

    fn format(&self, meta: Arc<Meta>) -> Box<dyn Format> {
        Box::new(ChatStream {
            head: chunk_head(&meta, "chat.completion.chunk"),
            meta,
            begun: Vec::new(),
        })
    }

    fn whole(&self, meta: &Meta, tally: &Tally, choices: &[Said]) -> Vec<u8> {
        let choices: Vec<Value> = (0..)
            .zip(choices)
            .map(|(index, said)| choice(index, said))
            .collect();
        let answer = json!({
            "id": meta.id,
            "object": "chat.completion",
            "created": meta.created,
            "model": meta.model,
            "choices": choices,
            "service_tier": null,
            "system_fingerprint": meta.fingerprint,
            "usage": whole_usage(tally),
            "prompt_logprobs": null,
            "prompt_token_ids": meta.prompt_tokens_of(0),
            "prompt_text": null,
            "kv_transfer_params": null,
            "ec_transfer_params": null,
            "metrics": null,
        });
        answer.to_string().into_bytes()
    }
}

fn choice(index: u32, said: &Said) -> Value {
    let mut message = json!({
        "role": "assistant",
        "content": said.text,
        "refusal": null,
        "annotations": null,
        "audio": null,
        "function_call": null,
    });
    if let Some((id, name, arguments)) = &said.call {
        message["content"] = Value::Null;
        message["tool_calls"] =
            json!([{"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}]);
    }
    message["reasoning"] = Value::Null;
    json!({
        "index": index,
        "message": message,
        "logprobs": null,
        "finish_reason": said.ending.finish_reason(),
        "stop_reason": null,
        "token_ids": said.tokens,
        "routed_experts": null,
    })
}

/// `usage` of a plain answer: nulls are printed.
pub(crate) fn whole_usage(tally: &Tally) -> Value {
    let details = tally.details.then(|| {
        json!({
            "cached_tokens": tally.cached,
            "created_cache_tokens": tally.created,
            "multimodal_tokens": null,
        })
    });
    json!({
        "prompt_tokens": tally.prompt,
        "total_tokens": tally.prompt + tally.output,
        "completion_tokens": tally.output,
        "prompt_tokens_details": details,
        "completion_tokens_details": null,
    })
}

/// What every chunk of a stream begins with, up to the value of `choices`.
pub(crate) fn chunk_head(meta: &Meta, object: &str) -> String {
    let fields = json!({"id": meta.id, "object": object, "created": meta.created, "model": meta.model});
    let mut head = format!("data: {fields}");
    head.pop();
    head.push_str(",\"choices\":");
    head
}

/// Writes the end of a chunk: the running usage if wanted, then `tail`.
pub(crate) fn close_chunk(meta: &Meta, tally: &Tally, choice: u32, tail: &str, out: &mut Vec<u8>) {
    if meta.continuous_usage {
        let output = tally.output_of(choice);
        let usage = json!({
            "prompt_tokens": tally.prompt, "total_tokens": tally.prompt + output, "completion_tokens": output,
        });
        push(out, format_args!(",\"usage\":{usage}"));
    }
    push(out, format_args!("{tail}}}\n\n"));
}

/// Writes the usage chunk, if wanted, and the end of the stream.
pub(crate) fn end_stream(head: &str, meta: &Meta, tally: &Tally, out: &mut Vec<u8>) {
    if meta.include_usage {
        let mut usage = json!({
            "prompt_tokens": tally.prompt,
            "total_tokens": tally.prompt + tally.output,
            "completion_tokens": tally.output,
        });
        if tally.details {
            usage["prompt_tokens_details"] =
                json!({"cached_tokens": tally.cached, "created_cache_tokens": tally.created});
        }
        let fingerprint = json!(meta.fingerprint);
        push(
            out,
            format_args!("{head}[],\"usage\":{usage},\"system_fingerprint\":{fingerprint}}}\n\n"),
        );
    }
    out.extend_from_slice(b"data: [DONE]\n\n");
}

/// The tail of a chunk that ends a choice: without a usage chunk to come, the fingerprint is here.
pub(crate) fn final_tail(meta: &Meta, piece: &Piece) -> String {
    if piece.finish.is_some() && !meta.include_usage {
        format!(",\"system_fingerprint\":{}", json!(meta.fingerprint))
    } else {
        String::new()
    }
}

/// Appends formatted text; a vector takes everything.
pub(crate) fn push(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    drop(out.write_fmt(text));
}

struct ChatStream {
    meta: Arc<Meta>,
    head: String,
    /// Choices whose role chunk is out.
    begun: Vec<u32>,
}

impl ChatStream {
    fn begin(&mut self, choice: u32, tally: &Tally, out: &mut Vec<u8>) {
        if self.begun.contains(&choice) {
            return;
        }
        self.begun.push(choice);
        push(
            out,
            format_args!(
                "{}[{{\"index\":{choice},\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"logprobs\":null,\
                 \"finish_reason\":null}}]",
                self.head
            ),
        );
        let tokens = json!(self.meta.prompt_tokens_of(choice));
        let tail = format!(",\"prompt_token_ids\":{tokens},\"prompt_text\":null");
        // The role chunk counts no output yet.
        close_chunk(
            &self.meta,
            &Tally::new(tally.prompt, 0, false),
            choice,
            &tail,
            out,
        );
    }
}

impl Format for ChatStream {
    fn admitted(&mut self, _out: &mut Vec<u8>) {}

    fn piece(&mut self, piece: &Piece, tally: &Tally, out: &mut Vec<u8>) {
        self.begin(piece.choice, tally, out);
        if piece.withheld {
            return;
        }
        let silent = if piece.finish == Some(super::speech::Ending::ToolCalls) {
            json!({})
        } else {
            json!({"content": ""})
        };
        let deltas: Vec<Value> = if piece.parts.is_empty() {
            vec![silent]
        } else {
            piece.parts.iter().map(delta).collect()
        };
        let last = deltas.len() - 1;
        let ids = if self.meta.prompt_token_ids.is_some() {
            json!(piece.tokens)
        } else {
            Value::Null
        };
        for (index, delta) in deltas.iter().enumerate() {
            let (finish, tail) = match finish_reason(piece) {
                Some(reason) if index == last => (
                    format!("\"finish_reason\":\"{reason}\",\"stop_reason\":null"),
                    final_tail(&self.meta, piece),
                ),
                _ => ("\"finish_reason\":null".to_owned(), String::new()),
            };
            let ids = if index == last { &ids } else { &Value::Null };
            push(
                out,
                format_args!(
                    "{}[{{\"index\":{},\"delta\":{delta},\"logprobs\":null,{finish},\"token_ids\":{ids}}}]",
                    self.head, piece.choice
                ),
            );
            close_chunk(&self.meta, tally, piece.choice, &tail, out);
        }
    }

    fn end(&mut self, tally: &Tally, out: &mut Vec<u8>) {
        end_stream(&self.head, &self.meta, tally, out);
    }
}

fn delta(part: &Part) -> Value {
    match part {
        Part::Text(text) => json!({"content": text}),
        Part::Call { id, name } => json!({"tool_calls": [
            {"index": 0, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}]}),
        Part::Arguments(text) => json!({"tool_calls": [{"index": 0, "function": {"arguments": text}}]}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_checked() {
        let parse = |body: Value| parse(&body, &HeaderMap::new());
        let user = json!({"role": "user", "content": "hello"});
        let ask = parse(json!({"messages": [user], "max_tokens": 5, "max_completion_tokens": 7})).unwrap();
        assert_eq!(ask.max_tokens, Some(7));
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        let ask = parse(json!({"messages": [user], "tools": tools, "tool_choice": "required"})).unwrap();
        assert_eq!(ask.call_tool.as_deref(), Some("f"));
        for (body, param) in [
            (json!({}), "body.messages"),
            (json!({"messages": "x"}), "body.messages"),
            (json!({"messages": [{"content": "x"}]}), "body.messages.0.role"),
            (json!({"messages": [user], "max_tokens": 0}), "max_tokens"),
        ] {
            assert_eq!(parse(body).unwrap_err().param.as_deref(), Some(param));
        }
    }
}
