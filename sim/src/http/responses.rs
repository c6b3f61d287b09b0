//! `/v1/responses`. Nothing is stored: a response cannot be fetched, cancelled or continued by its id.

use std::sync::Arc;

use http::HeaderMap;
use serde_json::{Value, json};

use super::{
    ask::{Ask, Fields, common, forced_tool},
    chat::push,
    error::ApiError,
    generate::{Api, Meta, Said, Tally},
    prompt::Prompt,
    speech::{Ending, Part, Piece},
    stream::Format,
};

/// OpenAI's responses API.
pub(crate) struct Responses;

/// Reads a request.
pub(crate) fn parse(body: &Value, headers: &HeaderMap) -> Result<Ask, ApiError> {
    let fields = Fields::of(body)?;
    if let Some(id) = fields.text("previous_response_id")? {
        return Err(not_found(id));
    }
    let input = fields.required("input")?;
    let tools = fields.list("tools")?;
    let mut prompt = Prompt::chat(tools);
    if let Some(instructions) = fields.get("instructions") {
        prompt.begin("system");
        prompt.content(instructions);
        prompt.end();
    }
    match input {
        Value::Array(items) => items.iter().for_each(|item| push_item(&mut prompt, item)),
        _ => {
            fields.text("input")?;
            prompt.begin("user");
            prompt.content(input);
            prompt.end();
        }
    }
    let mut ask = common(&fields, headers, vec![prompt.finish()])?;
    ask.max_tokens = fields.count("max_output_tokens")?;
    ask.choices = 1;
    ask.call_tool = ask
        .call_tool
        .or_else(|| forced_tool(fields.get("tool_choice"), tools));
    Ok(ask)
}

/// Answer to a question about a stored response.
pub(crate) fn not_found(id: &str) -> ApiError {
    ApiError::not_found(format!("Response with id '{id}' not found."), Some("response_id"))
}

fn push_item(prompt: &mut Prompt, item: &Value) {
    match item["type"].as_str() {
        Some("function_call") => {
            prompt.begin("assistant");
            let field = |name: &str| item[name].as_str().unwrap_or_default();
            prompt.call(field("name"), field("arguments"));
        }
        Some("function_call_output") => {
            prompt.begin("tool");
            prompt.content(&item["output"]);
        }
        Some("reasoning") => return,
        _ => {
            prompt.begin(item["role"].as_str().unwrap_or("user"));
            prompt.content(&item["content"]);
        }
    }
    prompt.end();
}

/// The response object in a given state.
fn response(meta: &Meta, status: &str, output: &[Value], tally: Option<&Tally>) -> Value {
    let incomplete = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
    let usage = tally.map(|tally| {
        json!({
            "input_tokens": tally.prompt,
            "input_tokens_details": {"cached_tokens": tally.cached},
            "output_tokens": tally.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tally.prompt + tally.output,
        })
    });
    json!({
        "id": meta.id,
        "created_at": meta.created,
        "incomplete_details": incomplete,
        "instructions": null,
        "metadata": null,
        "model": meta.model,
        "object": "response",
        "output": output,
        "parallel_tool_calls": true,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "background": false,
        "max_output_tokens": meta.max_tokens,
        "previous_response_id": null,
        "service_tier": "auto",
        "status": status,
        "truncation": "disabled",
        "usage": usage,
        "user": null,
    })
}

fn status_of(ending: Ending) -> &'static str {
    match ending {
        Ending::Length => "incomplete",
        Ending::Abort => "cancelled",
        Ending::Stop | Ending::ToolCalls => "completed",
    }
}

fn message_item(meta: &Meta, text: &str, status: &str) -> Value {
    let content = if status == "in_progress" {
        json!([])
    } else {
        json!([text_part(text)])
    };
    json!({"id": item_id(meta), "content": content, "role": "assistant", "status": status, "type": "message"})
}

fn call_item(id: &str, name: &str, arguments: &str, status: &str) -> Value {
    json!({
        "arguments": arguments, "call_id": id, "name": name, "type": "function_call", "id": format!("fc_{id}"),
        "status": status,
    })
}

fn text_part(text: &str) -> Value {
    json!({"annotations": [], "text": text, "type": "output_text", "logprobs": null})
}

fn item_id(meta: &Meta) -> String {
    format!("msg_{}", meta.id.trim_start_matches("resp_"))
}

impl Api for Responses {
    fn id_prefix(&self) -> &'static str {
        "resp_"
    }

    fn default_max_tokens(&self) -> Option<u64> {
        None
    }

    fn format(&self, meta: Arc<Meta>) -> Box<dyn Format> {
        Box::new(ResponseStream {
            meta,
            sequence: 0,
            item: Item::None,
            ending: Ending::Stop,
        })
    }

    fn whole(&self, meta: &Meta, tally: &Tally, choices: &[Said]) -> Vec<u8> {
        let mut output = Vec::new();
        let mut status = "completed";
        for said in choices {
            status = status_of(said.ending);
            match &said.call {
                Some((id, name, arguments)) => output.push(call_item(id, name, arguments, status)),
                None => output.push(message_item(meta, &said.text, status)),
            }
        }
        response(meta, status, &output, Some(tally))
            .to_string()
            .into_bytes()
    }
}

enum Item {
    None,
    Message {
        text: String,
    },
    Call {
        id: String,
        name: String,
        arguments: String,
    },
}

struct ResponseStream {
    meta: Arc<Meta>,
    sequence: u64,
    item: Item,
    ending: Ending,
}

impl ResponseStream {
    /// Writes an event; its number and type come last, as the client library prints them.
    fn event(&mut self, name: &str, mut data: Value, out: &mut Vec<u8>) {
        data["sequence_number"] = json!(self.sequence);
        data["type"] = json!(name);
        self.sequence += 1;
        push(out, format_args!("event: {name}\ndata: {data}\n\n"));
    }

    fn text(&mut self, delta: &str, out: &mut Vec<u8>) {
        let id = item_id(&self.meta);
        if matches!(self.item, Item::None) {
            let item = message_item(&self.meta, "", "in_progress");
            self.event(
                "response.output_item.added",
                json!({"item": item, "output_index": 0}),
                out,
            );
            let part = json!({"content_index": 0, "item_id": id, "output_index": 0, "part": text_part("")});
            self.event("response.content_part.added", part, out);
            self.item = Item::Message { text: String::new() };
        }
        if let Item::Message { text } = &mut self.item {
            text.push_str(delta);
        }
        let data =
            json!({"content_index": 0, "delta": delta, "item_id": id, "logprobs": [], "output_index": 0});
        self.event("response.output_text.delta", data, out);
    }

    fn close_message(&mut self, text: &str, status: &str, out: &mut Vec<u8>) -> Value {
        let id = item_id(&self.meta);
        let data =
            json!({"content_index": 0, "item_id": id, "logprobs": [], "output_index": 0, "text": text});
        self.event("response.output_text.done", data, out);
        let data = json!({"content_index": 0, "item_id": id, "output_index": 0, "part": text_part(text)});
        self.event("response.content_part.done", data, out);
        message_item(&self.meta, text, status)
    }
}

impl Format for ResponseStream {
    fn admitted(&mut self, out: &mut Vec<u8>) {
        for name in ["response.created", "response.in_progress"] {
            let data = json!({"response": response(&self.meta, "in_progress", &[], None)});
            self.event(name, data, out);
        }
    }

    fn piece(&mut self, piece: &Piece, _tally: &Tally, out: &mut Vec<u8>) {
        for part in &piece.parts {
            match part {
                Part::Text(text) => self.text(text, out),
                Part::Call { id, name } => {
                    let item = call_item(id, name, "", "in_progress");
                    self.event(
                        "response.output_item.added",
                        json!({"item": item, "output_index": 0}),
                        out,
                    );
                    self.item = Item::Call {
                        id: id.clone(),
                        name: name.clone(),
                        arguments: String::new(),
                    };
                }
                Part::Arguments(delta) => {
                    let Item::Call { id, arguments, .. } = &mut self.item else {
                        continue;
                    };
                    arguments.push_str(delta);
                    let data = json!({"delta": delta, "item_id": format!("fc_{id}"), "output_index": 0});
                    self.event("response.function_call_arguments.delta", data, out);
                }
            }
        }
        self.ending = piece.finish.unwrap_or(self.ending);
    }

    fn end(&mut self, tally: &Tally, out: &mut Vec<u8>) {
        let status = status_of(self.ending);
        let item = match std::mem::replace(&mut self.item, Item::None) {
            Item::None => None,
            Item::Message { text } => Some(self.close_message(&text, status, out)),
            Item::Call { id, name, arguments } => {
                let data = json!({"arguments": arguments, "item_id": format!("fc_{id}"), "name": name, "output_index": 0});
                self.event("response.function_call_arguments.done", data, out);
                Some(call_item(&id, &name, &arguments, status))
            }
        };
        if let Some(item) = &item {
            self.event(
                "response.output_item.done",
                json!({"item": item, "output_index": 0}),
                out,
            );
        }
        let output: Vec<Value> = item.into_iter().collect();
        let data = json!({"response": response(&self.meta, status, &output, Some(tally))});
        self.event("response.completed", data, out);
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        let data =
            json!({"code": error.status.as_u16().to_string(), "message": error.message, "param": null});
        self.event("error", data, out);
    }
}
