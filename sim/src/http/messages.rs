//! `/v1/messages`: Anthropic's API on vLLM.

use std::sync::Arc;

use http::HeaderMap;
use serde_json::{Value, json};

use super::{
    ask::{Ask, Fields, common, forced_tool},
    chat::push,
    error::{ApiError, Shape},
    generate::{Api, Meta, Said, Tally},
    prompt::Prompt,
    speech::{Ending, Part, Piece},
    stream::Format,
};

/// Anthropic's messages API.
pub(crate) struct Messages;

/// Reads a request; `/count_tokens` needs no `max_tokens`.
pub(crate) fn parse(body: &Value, headers: &HeaderMap, counting: bool) -> Result<Ask, ApiError> {
    let fields = Fields::of(body)?;
    fields.required("model")?;
    fields.required("messages")?;
    if !counting {
        fields.required("max_tokens")?;
    }
    let tools = fields.list("tools")?;
    let mut prompt = Prompt::chat(tools);
    if let Some(system) = fields.get("system") {
        prompt.begin("system");
        prompt.content(system);
        prompt.end();
    }
    for message in fields.list("messages")? {
        prompt.begin(message["role"].as_str().unwrap_or("user"));
        prompt.content(&message["content"]);
        prompt.end();
    }
    let mut ask = common(&fields, headers, vec![prompt.finish()])?;
    ask.max_tokens = fields.count("max_tokens")?;
    ask.choices = 1;
    ask.call_tool = ask
        .call_tool
        .or_else(|| forced_tool(fields.get("tool_choice"), tools));
    Ok(ask)
}

fn stop_reason(ending: Ending) -> &'static str {
    match ending {
        Ending::Stop | Ending::Abort => "end_turn",
        Ending::Length => "max_tokens",
        Ending::ToolCalls => "tool_use",
    }
}

fn usage(tally: &Tally, output: u64) -> Value {
    let mut usage = json!({"input_tokens": tally.prompt, "output_tokens": output});
    if tally.details {
        usage["cache_creation_input_tokens"] = json!(tally.created);
        usage["cache_read_input_tokens"] = json!(tally.cached);
    }
    usage
}

impl Api for Messages {
    fn id_prefix(&self) -> &'static str {
        "chatcmpl-"
    }

    fn default_max_tokens(&self) -> Option<u64> {
        None
    }

    fn shape(&self) -> Shape {
        Shape::Anthropic
    }

    fn format(&self, meta: Arc<Meta>) -> Box<dyn Format> {
        Box::new(MessageStream {
            meta,
            started: false,
            block: None,
            blocks: 0,
            ending: Ending::Stop,
        })
    }

    fn whole(&self, meta: &Meta, tally: &Tally, choices: &[Said]) -> Vec<u8> {
        let mut content = Vec::new();
        let mut ending = Ending::Stop;
        for said in choices {
            ending = said.ending;
            if !said.text.is_empty() {
                content.push(json!({"type": "text", "text": said.text}));
            }
            if let Some((id, name, arguments)) = &said.call {
                let input: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
                content.push(json!({"type": "tool_use", "id": id, "name": name, "input": input}));
            }
        }
        let answer = json!({
            "id": meta.id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": meta.model,
            "stop_reason": stop_reason(ending),
            "stop_sequence": null,
            "usage": usage(tally, tally.output),
        });
        answer.to_string().into_bytes()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Block {
    Text,
    Tool,
}

struct MessageStream {
    meta: Arc<Meta>,
    started: bool,
    block: Option<Block>,
    blocks: u32,
    ending: Ending,
}

fn event(name: &str, data: &Value, out: &mut Vec<u8>) {
    push(out, format_args!("event: {name}\ndata: {data}\n\n"));
}

impl MessageStream {
    fn start(&mut self, tally: &Tally, out: &mut Vec<u8>) {
        if self.started {
            return;
        }
        self.started = true;
        let message = json!({
            "id": self.meta.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.meta.model,
            "stop_reason": null,
            "stop_sequence": null,
            "usage": usage(tally, 0),
        });
        event(
            "message_start",
            &json!({"type": "message_start", "message": message}),
            out,
        );
    }

    fn open(&mut self, block: Block, content: &Value, out: &mut Vec<u8>) {
        self.close(out);
        self.block = Some(block);
        let data = json!({"type": "content_block_start", "content_block": content, "index": self.blocks});
        event("content_block_start", &data, out);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.block.take().is_some() {
            let data = json!({"type": "content_block_stop", "index": self.blocks});
            event("content_block_stop", &data, out);
            self.blocks += 1;
        }
    }

    fn delta(&self, delta: &Value, out: &mut Vec<u8>) {
        let data = json!({"type": "content_block_delta", "delta": delta, "index": self.blocks});
        event("content_block_delta", &data, out);
    }
}

impl Format for MessageStream {
    fn admitted(&mut self, _out: &mut Vec<u8>) {}

    fn piece(&mut self, piece: &Piece, tally: &Tally, out: &mut Vec<u8>) {
        self.start(tally, out);
        for part in &piece.parts {
            match part {
                Part::Text(text) => {
                    if self.block != Some(Block::Text) {
                        self.open(Block::Text, &json!({"type": "text", "text": ""}), out);
                    }
                    self.delta(&json!({"type": "text_delta", "text": text}), out);
                }
                Part::Call { id, name } => {
                    let content = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                    self.open(Block::Tool, &content, out);
                }
                Part::Arguments(text) => {
                    self.delta(&json!({"type": "input_json_delta", "partial_json": text}), out);
                }
            }
        }
        self.ending = piece.finish.unwrap_or(self.ending);
    }

    fn end(&mut self, tally: &Tally, out: &mut Vec<u8>) {
        self.close(out);
        let data = json!({
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason(self.ending)},
            "usage": usage(tally, tally.output),
        });
        event("message_delta", &data, out);
        event("message_stop", &json!({"type": "message_stop"}), out);
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        let data = json!({"type": "error", "error": {"type": error.kind, "message": error.message}});
        event("error", &data, out);
    }
}
