//! Watches an answer on its way to the client: notes the first byte, token usage and errors, forwards whole events,
//! and never lets a stream end in silence.
//!
//! * Bytes are passed on unchanged and at once; of an event stream, an incomplete last event waits for its end (up to
//!   64 KiB), so that an event cut by a dying engine is replaced by an `error` event instead of being half-delivered.
//! * An event stream that ends without its closing mark, or stays silent for too long, gets an `error` event and a
//!   regular end. A plain body cannot carry one: its connection is cut, which the client's HTTP library reports.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use tokio::time::{Instant, Sleep};

use super::{
    inflight::{End, InFlight},
    respond::{ErrorShape, Refusal, ReplyBody},
    upstream::UpstreamBody,
    usage::{Scanner, Seen},
};

/// Longest incomplete event that is held back.
const MAX_HELD_BACK_BYTES: usize = 64 << 10;

/// A plain body that could not be completed; makes the server cut the client's connection.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The engine's connection broke.
    #[error("the engine's answer was cut short")]
    Cut,
    /// The engine fell silent.
    #[error("the engine stopped answering in the middle of its answer")]
    IdleTimeout,
}

/// What to expect of an answer.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// Status of the answer's head.
    pub status: u16,
    /// It is an event stream.
    pub events: bool,
    /// Shape of an `error` event.
    pub shape: ErrorShape,
    /// Longest silence between two pieces.
    pub idle: Duration,
}

/// An answer on its way.
pub struct Observed {
    expected: Expected,
    body: UpstreamBody,
    lease: InFlight,
    scanner: Scanner,
    /// Bytes read while the answer's head was held back.
    first: Option<Bytes>,
    /// The incomplete event at the end of what was read.
    held_back: BytesMut,
    /// The last bytes sent do not end an event.
    inside_event: bool,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    done: bool,
}

impl Observed {
    /// Watches `body`, of which `first` is already here; `lease` is told the first byte and the end.
    ///
    /// Whoever wants to be able to send a request elsewhere waits for the first bytes itself (engines send the head at
    /// once and the first byte with the first token), and only then hands the lease over.
    #[must_use]
    pub fn new(expected: Expected, body: UpstreamBody, first: Option<Bytes>, mut lease: InFlight) -> Self {
        let mut scanner = Scanner::new(expected.events);
        if let Some(bytes) = &first {
            // Of an answer that is here in full, first byte and end are one.
            if !body.is_end() {
                lease.first_byte();
            }
            scanner.feed(bytes);
        }
        Self {
            expected,
            body,
            lease,
            scanner,
            first,
            held_back: BytesMut::new(),
            inside_event: false,
            last: now(),
            timer: None,
            done: false,
        }
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        self.scanner.seen()
    }

    /// Gives the answer up before its first byte was passed on.
    pub fn abandon(mut self, end: End) {
        self.lease.finish(end, self.scanner.seen());
    }

    /// The body to answer with. An answer that is here in full ends its lease now.
    #[must_use]
    pub fn into_reply_body(mut self) -> ReplyBody {
        if self.body.is_end() && !self.expected.events {
            self.scanner.end();
            self.lease
                .finish(End::Answered(self.expected.status), self.scanner.seen());
            return ReplyBody::Full(self.first.take().unwrap_or_default());
        }
        ReplyBody::Observed(Box::new(self))
    }

    /// The next bytes for the client.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        loop {
            if self.done {
                return Poll::Ready(None);
            }
            let bytes = match self.first.take() {
                Some(bytes) => bytes,
                None => match self.body.poll_data(cx) {
                    Poll::Ready(Some(Ok(bytes))) => {
                        self.last = now();
                        self.lease.first_byte();
                        self.scanner.feed(&bytes);
                        bytes
                    }
                    Poll::Ready(Some(Err(error))) => {
                        tracing::debug!(%error, "answer cut");
                        return Poll::Ready(Some(self.break_off(End::Cut)));
                    }
                    Poll::Ready(None) => return Poll::Ready(self.end()),
                    Poll::Pending => {
                        std::task::ready!(self.poll_idle(cx));
                        return Poll::Ready(Some(self.break_off(End::IdleTimeout)));
                    }
                },
            };
            let bytes = self.whole_events(bytes);
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(bytes)));
            }
        }
    }

    /// Ready once nothing came for the idle limit. The timer is moved only when it fires, not with every piece.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.last + self.expected.idle;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            std::task::ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }

    /// Of an event stream, everything up to the end of the last complete event.
    fn whole_events(&mut self, mut bytes: Bytes) -> Bytes {
        if !self.expected.events {
            return bytes;
        }
        if self.held_back.is_empty() {
            let end = end_of_last_event(&bytes);
            if end < bytes.len() {
                self.held_back.extend_from_slice(&bytes[end..]);
                bytes.truncate(end);
            }
        } else {
            self.held_back.extend_from_slice(&bytes);
            let end = end_of_last_event(&self.held_back);
            bytes = self.held_back.split_to(end).freeze();
        }
        self.inside_event =
            self.held_back.len() > MAX_HELD_BACK_BYTES || (bytes.is_empty() && self.inside_event);
        if self.held_back.len() > MAX_HELD_BACK_BYTES {
            let mut all = BytesMut::from(bytes);
            all.unsplit(self.held_back.split());
            return all.freeze();
        }
        bytes
    }

    fn end(&mut self) -> Option<Result<Bytes, StreamError>> {
        self.scanner.end();
        let seen = *self.scanner.seen();
        if self.expected.events && self.expected.status == 200 && !seen.complete && !seen.error {
            return Some(self.break_off(End::Cut));
        }
        self.done = true;
        let end = if seen.error {
            End::ErrorEvent
        } else {
            End::Answered(self.expected.status)
        };
        self.lease.finish(end, &seen);
        (!self.held_back.is_empty()).then(|| Ok(self.held_back.split().freeze()))
    }

    fn break_off(&mut self, end: End) -> Result<Bytes, StreamError> {
        self.done = true;
        self.lease.finish(end, self.scanner.seen());
        let (refusal, error) = match end {
            End::IdleTimeout => (Refusal::IdleTimeout, StreamError::IdleTimeout),
            _ => (Refusal::Cut, StreamError::Cut),
        };
        if !self.expected.events {
            return Err(error);
        }
        let event = refusal.event(self.expected.shape);
        if !self.inside_event {
            return Ok(event);
        }
        let mut closed = BytesMut::from(&b"\n\n"[..]);
        closed.extend_from_slice(&event);
        Ok(closed.freeze())
    }
}

/// Index after the last blank line, 0 without one.
fn end_of_last_event(bytes: &[u8]) -> usize {
    if bytes.ends_with(b"\n\n") {
        return bytes.len();
    }
    let plain = memmem::rfind(bytes, b"\n\n").map_or(0, |at| at + 2);
    let crlf = memmem::rfind(bytes, b"\n\r\n").map_or(0, |at| at + 3);
    plain.max(crlf)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the body is driven by the socket: it times its own silence"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_end_at_blank_lines() {
        let check = |text: &str, expected: usize| {
            assert_eq!(end_of_last_event(text.as_bytes()), expected, "{text:?}")
        };
        check("", 0);
        check("data: a", 0);
        check("data: a\n", 0);
        check("data: a\n\n", 9);
        check("data: a\n\ndata: b", 9);
        check("data: a\r\n\r\ndata: b\r\n", 11);
    }
}
