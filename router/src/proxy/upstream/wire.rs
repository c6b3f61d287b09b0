//! One HTTP/1.1 connection to an endpoint, driven by the task that uses it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use http::HeaderValue;
use tokio::{io::AsyncWrite as _, net::TcpStream};
use tokio_util::io::poll_read_buf;

use super::{
    Outgoing, UpstreamError,
    answer::{Head, take_head},
};

/// Room made for a read, at first.
const FIRST_READ_BYTES: usize = 8 << 10;
/// A body up to this long is copied behind its head, which costs less than handing two pieces to the system.
const MAX_COPIED_BYTES: usize = 16 << 10;
/// Room made for a read of an endpoint that sends much at once.
const MAX_READ_BYTES: usize = 64 << 10;

/// A connection.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    /// What came and was not looked at yet. Empty between two requests.
    pub(super) received: BytesMut,
    /// Room to make before the next read.
    room: usize,
    /// The head being sent, with a short body behind it.
    head: Vec<u8>,
}

impl Wire {
    /// Speaks HTTP/1.1 on a fresh connection.
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            received: BytesMut::new(),
            room: FIRST_READ_BYTES,
            head: Vec::new(),
        }
    }

    /// Nothing came since the last answer ended, not even the connection's end.
    pub(super) fn is_quiet(&self) -> bool {
        self.received.is_empty()
            && matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Gives back memory that an idle connection does not need.
    pub(super) fn rest(&mut self) {
        if self.room > FIRST_READ_BYTES || self.head.capacity() > MAX_COPIED_BYTES + FIRST_READ_BYTES {
            self.room = FIRST_READ_BYTES;
            self.received = BytesMut::new();
            self.head = Vec::new();
        }
    }

    /// Reads what can be read now. `Ok(0)`: the endpoint has closed.
    pub(super) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.received.reserve(self.room);
        let room = self.received.capacity() - self.received.len();
        let count = ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.received))?;
        if count == room {
            self.room = (self.room * 2).min(MAX_READ_BYTES);
        }
        Poll::Ready(Ok(count))
    }

    /// Sends a request and waits for the head of its answer. An endpoint that answers before it has read the request
    /// (413, say) is heard, and the connection not used again.
    ///
    /// # Errors
    /// `Closed` without any byte of an answer; `Protocol`.
    pub(super) async fn exchange(
        &mut self,
        outgoing: &Outgoing,
        host: &HeaderValue,
    ) -> Result<Head, UpstreamError> {
        self.head.clear();
        outgoing.write_head(&mut self.head, host);
        let mut body = &outgoing.body[..];
        if body.len() <= MAX_COPIED_BYTES {
            self.head.extend_from_slice(body);
            body = &[];
        }
        let mut sent = 0;
        let mut broken = None;
        std::future::poll_fn(|cx| {
            if broken.is_none()
                && let Poll::Ready(Err(error)) = self.poll_send(cx, body, &mut sent)
            {
                // What it said before it stopped listening may still be there.
                broken = Some(error);
            }
            loop {
                if let Some(mut head) =
                    take_head(&mut self.received).map_err(|source| UpstreamError::Protocol { source })?
                {
                    head.keeps &= sent == self.head.len() + body.len();
                    return Poll::Ready(Ok(head));
                }
                let received = ready!(self.poll_receive(cx));
                let source = match received {
                    Ok(0) => broken.take(),
                    Ok(_) => continue,
                    Err(error) => Some(error),
                };
                return Poll::Ready(Err(if self.received.is_empty() {
                    UpstreamError::Closed { source }
                } else {
                    UpstreamError::HeadCut { source }
                }));
            }
        })
        .await
    }

    /// Sends the rest of head and body.
    fn poll_send(&mut self, cx: &mut Context<'_>, body: &[u8], sent: &mut usize) -> Poll<io::Result<()>> {
        while *sent < self.head.len() + body.len() {
            let head = &self.head[(*sent).min(self.head.len())..];
            let body = &body[sent.saturating_sub(self.head.len())..];
            let stream = Pin::new(&mut self.stream);
            let count = if body.is_empty() {
                ready!(stream.poll_write(cx, head))?
            } else {
                ready!(stream.poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(body)]))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *sent += count;
        }
        Poll::Ready(Ok(()))
    }
}
