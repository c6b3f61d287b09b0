//! The chat template: tools first, then the messages, then the model's turn. A conversation that goes on begins with
//! the very tokens of its previous turn, answer included.

use serde_json::Value;

use crate::engine::tokens::{Control, Token, hash_bytes, mix, push_text};

/// Tokens that a picture or another part that is not text counts for.
const MEDIA_TOKENS: u64 = 256;

/// A prompt under construction.
pub(crate) struct Prompt(Vec<Token>);

impl Prompt {
    /// A chat prompt that offers `tools`.
    pub(crate) fn chat(tools: &[Value]) -> Self {
        let mut prompt = Self(vec![Control::Begin.token()]);
        if !tools.is_empty() {
            prompt.control(Control::Tools);
            for tool in tools {
                push_text(&mut prompt.0, &tool.to_string());
            }
            prompt.control(Control::End);
        }
        prompt
    }

    /// Adds a message in OpenAI's chat form.
    pub(crate) fn message(&mut self, message: &Value) {
        self.begin(message["role"].as_str().unwrap_or("user"));
        self.content(&message["content"]);
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            let function = &call["function"];
            self.call(
                function["name"].as_str().unwrap_or_default(),
                function["arguments"].as_str().unwrap_or_default(),
            );
        }
        self.control(Control::End);
    }

    /// Begins a message of `role`.
    pub(crate) fn begin(&mut self, role: &str) {
        self.control(match role {
            "system" | "developer" => Control::System,
            "user" => Control::User,
            "assistant" => Control::Assistant,
            "tool" | "function" => Control::Tool,
            _ => Control::Other,
        });
    }

    /// Ends a message.
    pub(crate) fn end(&mut self) {
        self.control(Control::End);
    }

    /// Adds a string, or a list of parts.
    pub(crate) fn content(&mut self, content: &Value) {
        match content {
            Value::String(text) => push_text(&mut self.0, text),
            Value::Array(parts) => parts.iter().for_each(|part| self.part(part)),
            _ => {}
        }
    }

    /// Adds one part of a message: text in any API's spelling, a tool call or result, else media.
    pub(crate) fn part(&mut self, part: &Value) {
        if let Some(text) = part.as_str().or_else(|| part["text"].as_str()) {
            push_text(&mut self.0, text);
            return;
        }
        match part["type"].as_str() {
            Some("tool_use") => self.call(
                part["name"].as_str().unwrap_or_default(),
                &part["input"].to_string(),
            ),
            Some("tool_result") => {
                self.control(Control::Tool);
                self.content(&part["content"]);
            }
            Some("thinking" | "redacted_thinking" | "reasoning") => {}
            _ => {
                let key = hash_bytes(part.to_string().as_bytes());
                self.control(Control::Media);
                // Text chunks are valid UTF-8 or padded; any number below 0x80 in the first byte will do.
                self.0
                    .extend((0..MEDIA_TOKENS).map(|index| (mix(key ^ index) as Token) & !0x80));
            }
        }
    }

    /// Adds a call of a tool by the model.
    pub(crate) fn call(&mut self, name: &str, arguments: &str) {
        self.control(Control::Call);
        push_text(&mut self.0, &format!("{name}\n{arguments}"));
    }

    /// Leaves the model to speak.
    pub(crate) fn finish(mut self) -> Vec<Token> {
        self.control(Control::Assistant);
        self.0
    }

    fn control(&mut self, control: Control) {
        self.0.push(control.token());
    }
}

/// Tokens of a chat request.
pub(crate) fn chat_tokens(messages: &[Value], tools: &[Value]) -> Vec<Token> {
    let mut prompt = Prompt::chat(tools);
    messages.iter().for_each(|message| prompt.message(message));
    prompt.finish()
}

/// Tokens of plain text.
pub(crate) fn text_tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    push_text(&mut tokens, text);
    tokens
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::script::{Limits, Script};
    use crate::engine::tokens::detokenise;

    fn spoken(script: &Script) -> Vec<Token> {
        (0..script.len()).map(|index| script.token(index)).collect()
    }

    fn check_echo(script: &Script, echo: &dyn Fn(&str) -> Value) {
        let question = json!({"role": "user", "content": "What is a weir?"});
        let first = chat_tokens(std::slice::from_ref(&question), &[]);
        let answer = spoken(script);
        let again = chat_tokens(
            &[
                question,
                echo(&detokenise(&answer)),
                json!({"role": "user", "content": "And?"}),
            ],
            &[],
        );
        let expected: Vec<Token> = first.into_iter().chain(answer).collect();
        assert_eq!(again[..expected.len()], expected);
    }

    #[test]
    fn the_next_turn_begins_with_this_turn_and_its_answer() {
        let limits = Limits {
            max: 1000,
            min: 0,
            ignore_eos: false,
        };
        check_echo(
            &Script::words(5, limits),
            &|text| json!({"role": "assistant", "content": text}),
        );
        check_echo(&Script::tool_call(5, "look", limits), &|text| {
            let (name, arguments) = text.split_once('\n').unwrap();
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}]})
        });
    }

    #[test]
    fn tools_come_first_and_parts_count() {
        let tools = [json!({"type": "function", "function": {"name": "f"}})];
        let with = chat_tokens(
            &[json!({"role": "user", "content": [{"type": "text", "text": "abcd"}]})],
            &tools,
        );
        assert_eq!(with[..2], [Control::Begin.token(), Control::Tools.token()]);
        let without = chat_tokens(&[json!({"role": "user", "content": "abcd"})], &[]);
        assert_eq!(with[with.len() - 4..], without[1..]);
        let picture = json!({"type": "image_url", "image_url": {"url": "data:…"}});
        let seen = chat_tokens(&[json!({"role": "user", "content": [picture]})], &[]);
        assert_eq!(seen.len(), 5 + MEDIA_TOKENS as usize);
    }
}
