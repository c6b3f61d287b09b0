//! The growing message list of one agent.
//!
//! A turn's prompt keeps a part of the last one and goes on from there. Messages are cut at token positions that
//! stay where they are: system (tools and instructions), user, and for each later turn the last answer (assistant)
//! and what was added to it (user). So a later prompt begins with the bytes of an earlier one.

use std::sync::Arc;

use crate::random::mix;
use crate::text::{Layout, Runs, Text, WORD_BYTES};
use crate::trace::{Agent, Prompt, Run, Turn};

/// A prompt that keeps all but so many blocks of its predecessor still has the predecessor's messages: clients
/// touch the end of their last message (a reminder, a cache mark) and then go on.
const TOUCHED_BLOCKS: u64 = 2;
/// Of so many characters of a full-text prompt, a scaled one keeps the first ones.
const SAMPLE_CHARS: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A message that ends at a position of the prompt and begins where the one before ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    role: Role,
    end: u64,
}

/// The message list of one request.
#[derive(Debug)]
pub(crate) struct Messages {
    pub(crate) messages: Vec<Message>,
    /// Expected tokens of the prompt without the chat template, after scaling.
    pub(crate) tokens: u64,
    /// Of these, tokens that stand in the same agent's previous prompt; unknown for prompts shared between sessions.
    pub(crate) reusable_tokens: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    /// The words `from..to` of a generated text.
    Words {
        text: Arc<Text>,
        from: u64,
        to: u64,
    },
    Plain(String),
}

/// The conversation of one agent so far.
#[derive(Debug)]
pub(crate) struct Conversation {
    seed: u64,
    head_tokens: u64,
    layout: Layout,
    shared_blocks: bool,
    spans: Vec<Span>,
    runs: Runs,
    turns: u64,
    /// Length of the last prompt in positions, and tokens of its answer.
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    total: u64,
    tokens: u64,
    output_tokens: u64,
    text: Option<(String, String)>,
}

impl Conversation {
    /// `scale` is words per token of the trace; texts of equal `seed` and ids are equal.
    pub(crate) fn new(agent: &Agent, scale: f64, seed: u64, shared_blocks: bool) -> Self {
        Self {
            seed,
            head_tokens: agent.head_tokens,
            layout: Layout {
                block_tokens: agent.block_tokens,
                scale,
            },
            shared_blocks,
            spans: Vec::new(),
            runs: Runs::default(),
            turns: 0,
            last: None,
        }
    }

    /// The prompt of the agent's next turn.
    pub(crate) fn advance(&mut self, turn: &Turn) -> Messages {
        self.turns += 1;
        match &turn.prompt {
            Prompt::Blocks { keep, runs, tail } => self.advance_blocks(turn, *keep, runs, *tail),
            Prompt::Text { input, output } => self.advance_text(turn, input, output),
        }
    }

    fn advance_blocks(&mut self, turn: &Turn, keep: u64, runs: &[Run], tail: Option<u64>) -> Messages {
        let blocks_before = self.runs.len();
        self.runs.truncate(keep);
        runs.iter().for_each(|run| self.runs.push(*run));
        let total = self.layout.words(turn.prompt_tokens).max(1);
        let reusable = self.layout.start(keep).min(total);
        match &self.last {
            Some(last) if keep + TOUCHED_BLOCKS >= blocks_before && keep > 0 && last.total < total => {
                let answer_end = self.layout.words(last.tokens + last.output_tokens).min(total);
                extend(&mut self.spans, last.total, answer_end);
            }
            Some(_) if keep > 0 => cut(&mut self.spans, reusable),
            _ => {
                let head = self.layout.words(self.head_tokens).min(total);
                self.spans.clear();
                self.spans.extend((head > 0).then_some(Span {
                    role: Role::System,
                    end: head,
                }));
            }
        }
        end_with_user(&mut self.spans, total);
        self.last = Some(Last {
            total,
            tokens: turn.prompt_tokens,
            output_tokens: turn.output_tokens,
            text: None,
        });
        let text = Arc::new(Text {
            seed: self.seed,
            layout: self.layout,
            runs: Arc::new(self.runs.clone()),
            tail: tail.unwrap_or_else(|| mix(u64::MAX - self.turns) ^ self.seed),
        });
        let content = |from, to| Content::Words {
            text: Arc::clone(&text),
            from,
            to,
        };
        Messages {
            messages: messages(&self.spans, content),
            tokens: total,
            reusable_tokens: (!self.shared_blocks).then_some(reusable),
        }
    }

    fn advance_text(&mut self, turn: &Turn, input: &str, output: &str) -> Messages {
        let total = input.len() as u64;
        let mut reusable = 0;
        if let Some(last) = self.last.take()
            && let Some((input_before, output_before)) = &last.text
        {
            let common = common_prefix(input_before, input);
            reusable = common as u64;
            match input.strip_prefix(input_before.as_str()) {
                Some(added) if !added.is_empty() => {
                    let answer_end = last.total + leading_answer(added, output_before) as u64;
                    extend(&mut self.spans, last.total, answer_end);
                }
                _ => cut(&mut self.spans, reusable),
            }
        }
        end_with_user(&mut self.spans, total);
        self.last = Some(Last {
            total,
            tokens: turn.prompt_tokens,
            output_tokens: turn.output_tokens,
            text: Some((input.to_owned(), output.to_owned())),
        });
        let sampled = Sampled::new(input, self.layout.scale);
        let content = |from, to| Content::Plain(sampled.slice(from as usize, to as usize));
        let scaled = |bytes: u64| (bytes as f64 * self.layout.scale / WORD_BYTES as f64).ceil() as u64;
        Messages {
            messages: messages(&self.spans, content),
            tokens: scaled(total),
            reusable_tokens: Some(scaled(reusable)),
        }
    }
}

fn messages(spans: &[Span], content: impl Fn(u64, u64) -> Content) -> Vec<Message> {
    let mut from = 0;
    let message = |span: &Span| {
        let message = Message {
            role: span.role,
            content: content(from, span.end),
        };
        from = span.end;
        message
    };
    spans.iter().map(message).collect()
}

/// Closes the messages at the last prompt's end and appends its answer.
fn extend(spans: &mut Vec<Span>, last_total: u64, answer_end: u64) {
    end_with_user(spans, last_total);
    if answer_end > last_total {
        spans.push(Span {
            role: Role::Assistant,
            end: answer_end,
        });
    }
}

/// Keeps the messages up to a position.
fn cut(spans: &mut Vec<Span>, end: u64) {
    let first_beyond = spans
        .iter()
        .position(|span| span.end >= end)
        .unwrap_or(spans.len());
    spans.truncate(first_beyond + 1);
    if let Some(last) = spans.last_mut() {
        last.end = last.end.min(end);
    }
    spans.retain(|span| span.end > 0);
}

/// Ends the list at `total`, with a message of the user's, as chat templates want it.
fn end_with_user(spans: &mut Vec<Span>, total: u64) {
    cut(spans, total);
    match spans.last_mut() {
        Some(last) if last.role == Role::User => last.end = total,
        Some(last) if last.end == total => {
            last.role = Role::User;
            // Two messages of the user's in a row become one.
            if let [.., before, _] = spans.as_slice()
                && before.role == Role::User
            {
                let at = spans.len() - 2;
                spans.remove(at);
            }
        }
        _ => spans.push(Span {
            role: Role::User,
            end: total,
        }),
    }
}

/// Bytes that two texts have in common at the start, cut at a character.
fn common_prefix(one: &str, other: &str) -> usize {
    let equal = one
        .bytes()
        .zip(other.bytes())
        .take_while(|(one, other)| one == other)
        .count();
    (0..=equal)
        .rev()
        .find(|&at| one.is_char_boundary(at))
        .unwrap_or(0)
}

/// Bytes of the answer at the start of what a turn added, if it stands there and something follows.
fn leading_answer(added: &str, answer: &str) -> usize {
    let space = added.len() - added.trim_start().len();
    let answer = answer.trim();
    let end = space + answer.len();
    if !answer.is_empty() && added.len() > end && added[space..].starts_with(answer) {
        end
    } else {
        0
    }
}

/// A text of which only the first characters of each `SAMPLE_CHARS` are kept, so that prefixes stay prefixes.
struct Sampled<'a> {
    text: &'a str,
    kept: usize,
}

impl<'a> Sampled<'a> {
    fn new(text: &'a str, scale: f64) -> Self {
        Self {
            text,
            kept: ((SAMPLE_CHARS as f64 * scale).round() as usize).clamp(1, SAMPLE_CHARS),
        }
    }

    fn slice(&self, from: usize, to: usize) -> String {
        if self.kept == SAMPLE_CHARS {
            return self.text[from..to].to_owned();
        }
        let before = self.text[..from].chars().count();
        let chars = self.text[from..to].chars().enumerate();
        chars
            .filter(|(at, _)| (before + at) % SAMPLE_CHARS < self.kept)
            .map(|(_, character)| character)
            .collect()
    }
}

#[cfg(test)]
mod tests;
