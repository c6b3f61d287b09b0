//! The body of an endpoint's answer.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};

use super::{Upstream, UpstreamError, answer::Framing, wire::Wire};

/// The body of an answer, with the connection it comes from. Dropped before its end, it closes the connection, which is
/// how engines learn that nobody waits any more.
#[derive(Debug)]
pub struct UpstreamBody {
    framing: Framing,
    /// The connection goes back to `upstream` at the end.
    keeps: bool,
    wire: Option<Box<Wire>>,
    upstream: Arc<Upstream>,
}

impl UpstreamBody {
    /// The body that comes from `wire`, framed so.
    pub(super) fn new(framing: Framing, keeps: bool, wire: Box<Wire>, upstream: Arc<Upstream>) -> Self {
        let mut body = Self {
            framing,
            keeps,
            wire: Some(wire),
            upstream,
        };
        if body.framing == Framing::Length(0) {
            body.end();
        }
        body
    }

    /// All of the body was taken.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.wire.is_none()
    }

    /// The next bytes: everything that is there, in one piece of at most about 64 KiB. Trailers are dropped.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        loop {
            if let Some(bytes) = self.take().transpose() {
                return Poll::Ready(Some(bytes));
            }
            let Some(wire) = &mut self.wire else {
                return Poll::Ready(None);
            };
            match ready!(wire.poll_receive(cx)) {
                Ok(0) if self.framing == Framing::Close => self.end(),
                Ok(0) => return Poll::Ready(Some(Err(self.cut(None)))),
                Ok(_) => {}
                Err(source) => return Poll::Ready(Some(Err(self.cut(Some(source))))),
            }
        }
    }

    /// The next bytes, as a future.
    pub async fn data(&mut self) -> Option<Result<Bytes, UpstreamError>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// Whatever of the body has been received; `None` when that is nothing.
    fn take(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let Some(wire) = &mut self.wire else {
            return Ok(None);
        };
        let received = &mut wire.received;
        if received.is_empty() {
            return Ok(None);
        }
        let (bytes, ended) = match &mut self.framing {
            Framing::Close => {
                let bytes = Bytes::copy_from_slice(received);
                received.clear();
                (bytes, false)
            }
            Framing::Length(left) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(received.len());
                let bytes = Bytes::copy_from_slice(&received[..here]);
                received.advance(here);
                *left -= here as u64;
                (bytes, *left == 0)
            }
            Framing::Chunked(chunked) => {
                let mut bytes = Vec::with_capacity(received.len());
                if let Err(source) = chunked.decode(received, &mut bytes) {
                    self.wire = None;
                    return Err(UpstreamError::Protocol { source });
                }
                (Bytes::from(bytes), chunked.is_done())
            }
        };
        if ended {
            self.end();
        }
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    fn cut(&mut self, source: Option<io::Error>) -> UpstreamError {
        self.wire = None;
        UpstreamError::Cut { source }
    }

    fn end(&mut self) {
        if let Some(wire) = self.wire.take()
            && self.keeps
        {
            self.upstream.put_idle(wire);
        }
    }
}
