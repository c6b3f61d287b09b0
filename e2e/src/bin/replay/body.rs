//! The request body, written while it is sent: a prompt of megabytes takes one buffer of memory.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

use crate::conversation::{Content, Messages};
use crate::text::{Text, WORD_BYTES};

const FRAME_WORDS: u64 = 16 * 1024;

/// What a request asks for besides its prompt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) model: &'a str,
    pub(crate) max_tokens: u64,
    pub(crate) stream: bool,
    pub(crate) ignore_eos: bool,
    pub(crate) tools: Option<ToolChoice>,
}

/// What the model may do with the declared tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    Required,
    None,
}

#[derive(Debug, Clone)]
enum Piece {
    Fixed(Bytes),
    Words { text: Arc<Text>, from: u64, to: u64 },
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Fixed(bytes) => bytes.len() as u64,
            Self::Words { from, to, .. } => (to - from) * WORD_BYTES,
        }
    }
}

/// A chat completion request.
#[derive(Debug, Clone)]
pub(crate) struct ChatBody {
    pieces: VecDeque<Piece>,
    /// Bytes still to be sent; of a new body, its `Content-Length`.
    remaining: u64,
}

impl ChatBody {
    pub(crate) fn new(ask: &Ask<'_>, messages: &Messages) -> Self {
        let mut fixed = format!(
            r#"{{"model":{},"max_tokens":{},"stream":{}"#,
            serde_json::Value::from(ask.model),
            ask.max_tokens,
            ask.stream
        );
        if ask.stream {
            fixed.push_str(r#","stream_options":{"include_usage":true}"#);
        }
        if ask.ignore_eos {
            fixed.push_str(r#","ignore_eos":true"#);
        }
        if let Some(choice) = ask.tools {
            fixed.push_str(TOOLS);
            fixed.push_str(match choice {
                ToolChoice::Required => r#","tool_choice":"required""#,
                ToolChoice::None => r#","tool_choice":"none""#,
            });
        }
        fixed.push_str(r#","messages":["#);
        let mut pieces = VecDeque::with_capacity(2 * messages.messages.len() + 1);
        for (index, message) in messages.messages.iter().enumerate() {
            if index > 0 {
                fixed.push(',');
            }
            fixed.push_str(r#"{"role":""#);
            fixed.push_str(message.role.name());
            fixed.push_str(r#"","content":"#);
            match &message.content {
                Content::Words { text, from, to } => {
                    fixed.push('"');
                    pieces.push_back(Piece::Fixed(std::mem::take(&mut fixed).into()));
                    pieces.push_back(Piece::Words {
                        text: Arc::clone(text),
                        from: *from,
                        to: *to,
                    });
                    fixed.push('"');
                }
                Content::Plain(text) => {
                    fixed.push_str(&serde_json::Value::from(text.as_str()).to_string());
                    pieces.push_back(Piece::Fixed(std::mem::take(&mut fixed).into()));
                }
            }
            fixed.push('}');
        }
        fixed.push_str("]}");
        pieces.push_back(Piece::Fixed(fixed.into()));
        let remaining = pieces.iter().map(Piece::len).sum();
        Self { pieces, remaining }
    }

    fn next_frame(&mut self) -> Option<Bytes> {
        let frame = match self.pieces.pop_front()? {
            Piece::Fixed(bytes) => bytes,
            Piece::Words { text, from, to } => {
                let until = to.min(from + FRAME_WORDS);
                let mut frame = BytesMut::new();
                text.write(from, until, &mut frame);
                if until < to {
                    self.pieces.push_front(Piece::Words {
                        text,
                        from: until,
                        to,
                    });
                }
                frame.freeze()
            }
        };
        self.remaining -= frame.len() as u64;
        Some(frame)
    }
}

/// One tool without arguments worth mentioning: it is there so that answers can end in a call.
const TOOLS: &str = r#","tools":[{"type":"function","function":{"name":"run","description":"Runs a command.","parameters":{"type":"object","properties":{"command":{"type":"string"}},"required":["command"]}}}]"#;

impl Body for ChatBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next_frame().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

#[cfg(test)]
impl ChatBody {
    /// The whole body at once.
    pub(crate) fn collect(mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(frame) = self.next_frame() {
            all.extend_from_slice(&frame);
        }
        all
    }
}
