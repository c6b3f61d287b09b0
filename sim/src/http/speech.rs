//! From tokens to what a client reads: text, or the name and arguments of a tool call.

use crate::engine::{
    script::Finish,
    tokens::{Control, Token, push_bytes},
};

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Text(String),
    Call { id: String, name: String },
    Arguments(String),
}

/// What one choice said since the last look.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub(crate) choice: u32,
    pub(crate) parts: Vec<Part>,
    pub(crate) tokens: Vec<Token>,
    pub(crate) finish: Option<Ending>,
    /// All of it is part of a tool's name that is not complete: the parser in the engine shows nothing yet.
    pub(crate) withheld: bool,
}

impl Piece {
    /// All of it as plain text: legacy completions know no tool calls.
    pub(crate) fn plain(&self) -> String {
        let texts = self.parts.iter().map(|part| match part {
            Part::Text(text) | Part::Arguments(text) => text.as_str(),
            Part::Call { name, .. } => name.as_str(),
        });
        texts.collect()
    }
}

/// Why a choice ended, in the client's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Stop,
    Length,
    Abort,
    ToolCalls,
}

impl Ending {
    /// OpenAI's word.
    pub(crate) fn finish_reason(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::ToolCalls => "tool_calls",
        }
    }
}

#[derive(Debug)]
enum Mode {
    Text,
    Name(Vec<u8>),
    Arguments,
}

/// Follows one choice.
#[derive(Debug)]
pub(crate) struct Speaker {
    mode: Mode,
    /// Bytes of a character that is not complete yet.
    rest: Vec<u8>,
    call_id: String,
}

impl Speaker {
    /// `call_id` names the tool call, should there be one.
    pub(crate) fn new(call_id: String) -> Self {
        Self {
            mode: Mode::Text,
            rest: Vec::new(),
            call_id,
        }
    }

    /// Hears tokens.
    pub(crate) fn hear(&mut self, tokens: &[Token]) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut bytes = std::mem::take(&mut self.rest);
        for token in tokens {
            if *token == Control::Call.token() {
                self.mode = Mode::Name(Vec::new());
                continue;
            }
            let Mode::Name(name) = &mut self.mode else {
                push_bytes(&mut bytes, *token);
                continue;
            };
            push_bytes(name, *token);
            if let Some(end) = name.iter().position(|byte| *byte == b'\n') {
                bytes.extend_from_slice(&name[end + 1..]);
                let name = String::from_utf8_lossy(&name[..end]).into_owned();
                parts.push(Part::Call {
                    id: self.call_id.clone(),
                    name,
                });
                self.mode = Mode::Arguments;
            }
        }
        self.rest = bytes.split_off(complete(&bytes));
        if !bytes.is_empty() {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            parts.push(if matches!(self.mode, Mode::Arguments) {
                Part::Arguments(text)
            } else {
                Part::Text(text)
            });
        }
        parts
    }

    /// Whether it hears the name of a tool.
    pub(crate) fn is_naming(&self) -> bool {
        matches!(self.mode, Mode::Name(_))
    }

    /// What an engine's finish means for this choice.
    pub(crate) fn ending(&self, finish: Finish) -> Ending {
        match (finish, &self.mode) {
            (Finish::Stop, Mode::Arguments) => Ending::ToolCalls,
            (Finish::Stop, Mode::Text | Mode::Name(_)) => Ending::Stop,
            (Finish::Length, _) => Ending::Length,
            (Finish::Abort, _) => Ending::Abort,
        }
    }
}

/// Length of the longest prefix that does not end inside a character.
fn complete(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::prompt::text_tokens;

    #[test]
    fn characters_are_not_cut() {
        let mut speaker = Speaker::new(String::new());
        let tokens = text_tokens("abcéé");
        assert_eq!(speaker.hear(&tokens[..1]), [Part::Text("abc".to_owned())]);
        assert_eq!(speaker.hear(&tokens[1..]), [Part::Text("éé".to_owned())]);
    }

    #[test]
    fn a_tool_call_is_heard_at_any_cut() {
        let mut tokens = vec![Control::Call.token()];
        tokens.extend(text_tokens("look\n{\"a\":1}"));
        for cut in 0..tokens.len() {
            let mut speaker = Speaker::new("c1".to_owned());
            let mut parts = speaker.hear(&tokens[..cut]);
            parts.extend(speaker.hear(&tokens[cut..]));
            assert_eq!(
                parts[0],
                Part::Call {
                    id: "c1".to_owned(),
                    name: "look".to_owned()
                }
            );
            let arguments: String = parts[1..]
                .iter()
                .map(|part| match part {
                    Part::Arguments(text) => text.as_str(),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(arguments, "{\"a\":1}");
            assert_eq!(speaker.ending(Finish::Stop), Ending::ToolCalls);
        }
    }
}
