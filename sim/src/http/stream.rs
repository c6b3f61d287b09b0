//! The event stream of one request: waits for the engine, formats what it hears, and carries ordered faults.

use std::{
    collections::BTreeMap,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::mpsc,
    time::{Sleep, sleep},
};

use super::{
    admit::Lease,
    body::Cut,
    error::ApiError,
    generate::Tally,
    speech::{Piece, Speaker},
};
use crate::{
    driver::{Event, Failure},
    engine::{script::Finish, tokens::Token},
    fault::Mishap,
};

/// What must have left the socket before an ordered cut: hyper does not flush when a body fails.
const CUT_DELAY: Duration = Duration::from_millis(20);

/// Writes one API's events. A chunk is what ends in an empty line.
pub(crate) trait Format: Send {
    /// Events that come as soon as the engine took the request.
    fn admitted(&mut self, out: &mut Vec<u8>);
    /// Events for what a choice said; `tally` counts it already.
    fn piece(&mut self, piece: &Piece, tally: &Tally, out: &mut Vec<u8>);
    /// Events after the last choice ended.
    fn end(&mut self, tally: &Tally, out: &mut Vec<u8>);
    /// Events of a failure.
    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        out.extend_from_slice(error.event().as_bytes());
    }
}

/// Tokens of a choice that wait for a chunk.
#[derive(Default)]
struct Unsent {
    tokens: Vec<Token>,
    finish: Option<Finish>,
}

struct Choice {
    speaker: Speaker,
    unsent: Unsent,
    begun: bool,
}

/// How the stream goes on.
enum Phase {
    Open,
    /// All is said; only the buffer is left.
    Ended,
    /// Silent for ever, by order.
    Stalled,
    /// To be cut after a moment, by order.
    Cutting(Pin<Box<Sleep>>),
}

/// One stream.
pub(crate) struct EventStream {
    events: mpsc::UnboundedReceiver<Event>,
    lease: Option<Lease>,
    format: Box<dyn Format>,
    choices: BTreeMap<u32, Choice>,
    open: usize,
    tally: Tally,
    interval: usize,
    keep_alive: Option<(Duration, Pin<Box<Sleep>>)>,
    /// What shall befall it, and chunks still to go before.
    mishap: Option<(Mishap, u32)>,
    buffer: Vec<u8>,
    /// What [`Self::begin`] waited for.
    begun: Option<Bytes>,
    phase: Phase,
}

/// Parts of a stream.
pub(crate) struct Opening {
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    pub(crate) lease: Lease,
    pub(crate) format: Box<dyn Format>,
    pub(crate) speakers: Vec<Speaker>,
    pub(crate) tally: Tally,
    pub(crate) interval: usize,
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) mishap: Option<Mishap>,
}

impl EventStream {
    /// A stream of a request that was just admitted.
    pub(crate) fn open(opening: Opening) -> Self {
        let Opening {
            events,
            lease,
            mut format,
            speakers,
            tally,
            interval,
            keep_alive,
            mishap,
        } = opening;
        let mut buffer = Vec::new();
        format.admitted(&mut buffer);
        let mishap = mishap.and_then(|mishap| match mishap {
            Mishap::Cut(chunks) | Mishap::Error(chunks) | Mishap::Stall(chunks) => Some((mishap, chunks)),
            Mishap::Status(_) | Mishap::Reset | Mishap::Delay(_) => None,
        });
        let choice = |speaker| Choice {
            speaker,
            unsent: Unsent::default(),
            begun: false,
        };
        Self {
            events,
            lease: Some(lease),
            format,
            open: speakers.len(),
            choices: (0..).zip(speakers.into_iter().map(choice)).collect(),
            tally,
            interval,
            keep_alive: keep_alive.map(|interval| (interval, Box::pin(sleep(interval)))),
            mishap,
            buffer,
            begun: None,
            phase: Phase::Open,
        }
    }

    /// Waits for the first bytes, which then are the first to go out: SGLang's head comes with them.
    pub(crate) async fn begin(&mut self) -> Result<(), Cut> {
        self.begun = std::future::poll_fn(|cx| self.poll_next(cx)).await.transpose()?;
        Ok(())
    }

    /// The next bytes, as many events as are ready.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        if let Some(bytes) = self.begun.take() {
            return Poll::Ready(Some(Ok(bytes)));
        }
        loop {
            self.suffer();
            if !self.buffer.is_empty() {
                return Poll::Ready(Some(Ok(Bytes::from(std::mem::take(&mut self.buffer)))));
            }
            match &mut self.phase {
                Phase::Open => {}
                Phase::Ended => return Poll::Ready(None),
                Phase::Stalled => return Poll::Pending,
                Phase::Cutting(timer) => {
                    ready!(timer.as_mut().poll(cx));
                    return Poll::Ready(Some(Err(Cut)));
                }
            }
            match self.events.poll_recv(cx) {
                Poll::Ready(event) => self.hear(event),
                Poll::Pending => ready!(self.poll_keep_alive(cx)),
            }
        }
    }

    /// Takes this event and all that are ready behind it, then writes them.
    fn hear(&mut self, first: Option<Event>) {
        let mut next = first;
        loop {
            match next {
                Some(Event::Admitted) => {}
                Some(Event::Output {
                    choice,
                    token,
                    finish,
                    cached_tokens,
                }) => {
                    self.tally.count(choice, token.is_some(), cached_tokens);
                    if let Some(choice) = self.choices.get_mut(&choice) {
                        choice.unsent.tokens.extend(token);
                        choice.unsent.finish = choice.unsent.finish.or(finish);
                    }
                }
                Some(Event::Failed(failure)) => return self.fail(failure),
                None => return self.fail(Failure::Dead),
            }
            match self.events.try_recv() {
                Ok(event) => next = Some(event),
                Err(_) => break,
            }
        }
        self.write();
    }

    fn write(&mut self) {
        for (index, choice) in &mut self.choices {
            let due = choice.unsent.finish.is_some()
                || choice.unsent.tokens.len() >= self.interval
                || (!choice.begun && !choice.unsent.tokens.is_empty());
            if !due {
                continue;
            }
            choice.begun = true;
            let Unsent { tokens, finish } = std::mem::take(&mut choice.unsent);
            let parts = choice.speaker.hear(&tokens);
            let finish = finish.map(|finish| choice.speaker.ending(finish));
            self.open -= usize::from(finish.is_some());
            let withheld = parts.is_empty() && finish.is_none() && choice.speaker.is_naming();
            let piece = Piece {
                choice: *index,
                parts,
                tokens,
                finish,
                withheld,
            };
            self.format.piece(&piece, &self.tally, &mut self.buffer);
        }
        if let Some((interval, timer)) = &mut self.keep_alive {
            *timer = Box::pin(sleep(*interval));
        }
        if self.open == 0 {
            self.format.end(&self.tally, &mut self.buffer);
            self.lease = None;
            self.phase = Phase::Ended;
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.format
            .error(&ApiError::from_failure(failure), &mut self.buffer);
        self.lease = None;
        self.phase = Phase::Ended;
    }

    /// Executes an ordered fault as soon as its number of chunks is in the buffer; what follows is not sent.
    fn suffer(&mut self) {
        let Some((mishap, left)) = self.mishap else { return };
        let mut at = 0;
        let mut seen = 0;
        while seen < left {
            let Some(end) = find_chunk_end(&self.buffer[at..]) else {
                self.mishap = Some((mishap, left - seen));
                return;
            };
            at += end;
            seen += 1;
        }
        self.buffer.truncate(at);
        self.mishap = None;
        self.lease = None;
        self.phase = match mishap {
            Mishap::Error(_) => {
                let error = ApiError::internal("Ordered by /sim/fault.");
                self.format.error(&error, &mut self.buffer);
                Phase::Ended
            }
            Mishap::Stall(_) => Phase::Stalled,
            Mishap::Cut(_) | Mishap::Status(_) | Mishap::Reset | Mishap::Delay(_) => {
                Phase::Cutting(Box::pin(sleep(CUT_DELAY)))
            }
        };
    }

    fn poll_keep_alive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((interval, timer)) = &mut self.keep_alive else {
            return Poll::Pending;
        };
        ready!(timer.as_mut().poll(cx));
        *timer = Box::pin(sleep(*interval));
        self.buffer.extend_from_slice(b": keep-alive\n\n");
        Poll::Ready(())
    }
}

/// Length of the first chunk in `bytes`, its empty line included.
fn find_chunk_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|pair| pair == b"\n\n").map(|at| at + 2)
}
