//! The body of an endpoint's answer.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use hyper::body::Incoming;

use super::{
    Upstream, UpstreamError,
    wire::{MAX_TURNS, Wire},
};

/// Bytes gathered into one piece at most.
const MAX_GATHERED_BYTES: usize = 64 << 10;

/// The body of an answer, with the connection it comes from. Dropped before its end, it closes the connection.
#[derive(Debug)]
pub struct UpstreamBody {
    incoming: Incoming,
    wire: Option<Box<Wire>>,
    upstream: Arc<Upstream>,
    ended: bool,
    failed: Option<hyper::Error>,
}

impl UpstreamBody {
    /// The body that comes from `wire`, which goes back to `upstream` at its end.
    pub(super) fn new(incoming: Incoming, wire: Box<Wire>, upstream: Arc<Upstream>) -> Self {
        let mut body = Self {
            ended: incoming.is_end_stream(),
            incoming,
            wire: Some(wire),
            upstream,
            failed: None,
        };
        if body.ended {
            body.give_back();
        }
        body
    }

    /// All of the body was taken.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.ended
    }

    /// The next bytes: everything that is there, in one piece of at most about 64 KiB. Trailers are dropped.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        if let Some(source) = self.failed.take() {
            self.ended = true;
            return Poll::Ready(Some(Err(UpstreamError::Cut { source })));
        }
        for _ in 0..MAX_TURNS {
            if let Some(wire) = &self.wire {
                wire.begin_turn(cx);
            }
            let gathered = self.gather();
            let again = self.wire.as_ref().is_some_and(|wire| wire.end_turn());
            match gathered {
                Err(source) => return Poll::Ready(Some(Err(UpstreamError::Cut { source }))),
                Ok(Some(bytes)) => return Poll::Ready(Some(Ok(bytes))),
                Ok(None) if self.ended => return Poll::Ready(None),
                Ok(None) if again => {}
                Ok(None) => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Everything that is there; `None` when nothing is.
    fn gather(&mut self) -> Result<Option<Bytes>, hyper::Error> {
        let mut gathered = Gathered::default();
        let mut driven = false;
        while !self.ended && gathered.len() < MAX_GATHERED_BYTES {
            let Some(wire) = &mut self.wire else {
                break;
            };
            match Pin::new(&mut self.incoming).poll_frame(&mut Context::from_waker(wire.waker())) {
                Poll::Ready(Some(Ok(frame))) => {
                    driven = false;
                    if let Ok(data) = frame.into_data() {
                        gathered.push(data);
                    }
                    if self.incoming.is_end_stream() {
                        self.end();
                    }
                }
                Poll::Ready(Some(Err(source))) => {
                    self.wire = None;
                    if gathered.len() == 0 {
                        self.ended = true;
                        return Err(source);
                    }
                    self.failed = Some(source);
                    break;
                }
                Poll::Ready(None) => self.end(),
                Poll::Pending if driven => break,
                Poll::Pending => {
                    wire.drive();
                    driven = true;
                }
            }
        }
        Ok(gathered.into_bytes())
    }

    /// The next bytes, as a future.
    pub async fn data(&mut self) -> Option<Result<Bytes, UpstreamError>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    fn end(&mut self) {
        self.ended = true;
        self.give_back();
    }

    fn give_back(&mut self) {
        if let Some(wire) = self.wire.take() {
            self.upstream.put_idle(wire);
        }
    }
}

/// Pieces of a body that arrived together. A single one is passed on without a copy.
#[derive(Default)]
struct Gathered {
    one: Option<Bytes>,
    many: BytesMut,
}

impl Gathered {
    fn len(&self) -> usize {
        self.one.as_ref().map_or(self.many.len(), Bytes::len)
    }

    fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        if let Some(first) = self.one.take() {
            self.many
                .reserve((first.len() + data.len()).next_power_of_two().max(4_096));
            self.many.extend_from_slice(&first);
            self.many.extend_from_slice(&data);
        } else if self.many.is_empty() {
            self.one = Some(data);
        } else {
            self.many.extend_from_slice(&data);
        }
    }

    fn into_bytes(self) -> Option<Bytes> {
        self.one
            .or_else(|| (!self.many.is_empty()).then(|| self.many.freeze()))
    }
}
