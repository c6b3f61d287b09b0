//! One HTTP/1 connection to an endpoint, driven by the task that uses it.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use futures::task::AtomicWaker;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, Connection, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::UpstreamError;

/// Read buffer of one upstream connection at most.
const MAX_READ_BUFFER_BYTES: usize = 256 << 10;
/// Times a task drives a connection before it lets others run. A runtime that wants the task to yield says so by
/// waking it, again and again.
pub(super) const MAX_TURNS: usize = 4;
/// Headers of an answer at most.
const MAX_ANSWER_HEADERS: usize = 256;

/// A connection and the handle to it.
#[derive(Debug)]
pub(super) struct Wire {
    sender: SendRequest<Full<Bytes>>,
    connection: Connection<TokioIo<TcpStream>, Full<Bytes>>,
    done: bool,
    relay: Arc<Relay>,
    /// Wakes the relay.
    waker: Waker,
}

impl Wire {
    /// Speaks HTTP/1 on a fresh connection.
    pub(super) async fn begin(stream: TcpStream) -> Result<Self, UpstreamError> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_READ_BUFFER_BYTES)
            .max_headers(MAX_ANSWER_HEADERS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| UpstreamError::Closed { source: Some(source) })?;
        let relay = Arc::<Relay>::default();
        Ok(Self {
            sender,
            connection,
            done: false,
            waker: Waker::from(Arc::clone(&relay)),
            relay,
        })
    }

    /// No task waits for it any more. True: it can be used again, now or as soon as it has been driven.
    pub(super) fn rest(&mut self) -> bool {
        self.drive();
        self.relay.task.take();
        !self.done && !self.sender.is_closed()
    }

    /// A task begins to drive it; see [`Relay`].
    pub(super) fn begin_turn(&self, cx: &Context<'_>) {
        self.relay.begin(cx);
    }

    /// The task is about to wait. True: it must drive once more instead.
    pub(super) fn end_turn(&self) -> bool {
        self.relay.end()
    }

    /// Wakes whoever drives it.
    pub(super) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Reads and writes what can be read and written now.
    pub(super) fn drive(&mut self) {
        if !self.done {
            self.relay.again.store(false, Ordering::SeqCst);
            let mut cx = Context::from_waker(&self.waker);
            self.done = Pin::new(&mut self.connection).poll(&mut cx).is_ready();
        }
    }

    /// Whether it is alive and takes a request now.
    pub(super) fn is_usable(&mut self) -> bool {
        self.drive();
        !self.done && self.sender.is_ready()
    }

    pub(super) async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let mut answer = pin!(self.sender.send_request(request));
        let result = poll_fn(|cx| {
            for _ in 0..MAX_TURNS {
                self.relay.begin(cx);
                self.drive();
                let polled = answer.as_mut().poll(&mut Context::from_waker(&self.waker));
                let again = self.relay.end();
                match polled {
                    Poll::Ready(result) => return Poll::Ready(Some(result)),
                    Poll::Pending if self.done => return Poll::Ready(None),
                    Poll::Pending if again => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        match result {
            Some(Ok(response)) => Ok(response),
            Some(Err(source)) if source.is_parse() => Err(UpstreamError::Protocol { source }),
            Some(Err(source)) => Err(UpstreamError::Closed { source: Some(source) }),
            None => Err(UpstreamError::Closed { source: None }),
        }
    }
}

/// Passes wake-ups of a connection on to the task that drives it, except those that the task causes itself while it
/// drives: handing a piece over wakes the connection for the next one, which the same turn asks for anyway, and a
/// wake-up of the own task would cost it a whole idle turn per piece.
#[derive(Debug, Default)]
struct Relay {
    task: AtomicWaker,
    driving: AtomicBool,
    /// A wake-up came since the connection was last driven.
    again: AtomicBool,
}

impl Relay {
    /// The task begins to drive: wake-ups are noted, not passed on.
    fn begin(&self, cx: &Context<'_>) {
        self.task.register(cx.waker());
        self.driving.store(true, Ordering::SeqCst);
    }

    /// The task is about to wait. True: a wake-up was noted, so it must drive once more instead.
    fn end(&self) -> bool {
        // In one total order with `wake_by_ref`, so that a wake-up from another thread is either noted here or sees
        // that the task no longer drives.
        self.driving.store(false, Ordering::SeqCst);
        self.again.swap(false, Ordering::SeqCst)
    }
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.again.store(true, Ordering::SeqCst);
        if !self.driving.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}
