//! Connections to one endpoint: a stack of idle HTTP/1 connections, the newest on top, and own framing.
//!
//! A connection is driven by the task that uses it, not by one of its own: what the engine sends is read and passed on
//! in one wake-up, pieces that arrive together leave together, and dropping the answer closes the socket, which is
//! how engines learn that nobody waits any more. An idle connection is looked at when it is taken and when
//! [`Upstream::sweep`] runs. Heads and chunks are read by pure code ([`answer`], [`chunked`]); why not by a client
//! library: `docs/decisions/0005-own-http-client.md`.

pub mod answer;
mod body;
pub mod chunked;
mod wire;

use std::{
    fmt,
    io::{self, Write as _},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response};
use tokio::{net::TcpStream, time::Instant};

pub use self::body::UpstreamBody;
use self::{
    answer::{Head, Malformed},
    wire::Wire,
};

/// Idle connections kept per endpoint.
const MAX_IDLE: usize = 1_024;

/// Why an endpoint gave no (complete) answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// `host:port`.
        address: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The connection ended before any byte of an answer.
    #[error("the connection was closed before an answer came")]
    Closed {
        /// The cause, when there is more than an end of file.
        #[source]
        source: Option<io::Error>,
    },
    /// The connection ended inside the answer's head.
    #[error("the connection was closed inside the answer's head")]
    HeadCut {
        /// The cause, when there is more than an end of file.
        #[source]
        source: Option<io::Error>,
    },
    /// What came is not HTTP.
    #[error("the answer is not valid HTTP")]
    Protocol {
        /// The cause.
        #[source]
        source: Malformed,
    },
    /// The connection ended inside the answer's body.
    #[error("the answer was cut short")]
    Cut {
        /// The cause, when there is more than an end of file.
        #[source]
        source: Option<io::Error>,
    },
}

impl UpstreamError {
    /// No connection came about, so the endpoint as a whole is at fault.
    #[must_use]
    pub fn is_connect(&self) -> bool {
        matches!(self, Self::Connect { .. })
    }
}

/// A request for an endpoint, in the bytes that are sent: they are made once, and wait, be it in a queue for long, as
/// one piece of memory. `Host` and framing are added when it is sent.
#[derive(Clone)]
pub struct Outgoing {
    /// Request line and headers, each with its line end.
    head: Vec<u8>,
    /// Headers that differ from one attempt to the next, likewise.
    of_attempt: Vec<u8>,
    /// The method expects a length, be it 0.
    always_framed: bool,
    body: Bytes,
}

impl Outgoing {
    /// A request for `target` (path and query as the client sent them, without `/pools/NAME`).
    #[must_use]
    pub fn new<'h>(
        method: &Method,
        target: &str,
        headers: impl IntoIterator<Item = (&'h HeaderName, &'h HeaderValue)>,
        body: Bytes,
    ) -> Self {
        let mut head = Vec::with_capacity(512);
        for part in [method.as_str(), " ", target, " HTTP/1.1\r\n"] {
            head.extend_from_slice(part.as_bytes());
        }
        for (name, value) in headers {
            write_header(&mut head, name.as_str(), value);
        }
        Self {
            head,
            of_attempt: Vec::new(),
            always_framed: *method == Method::POST,
            body,
        }
    }

    /// Replaces the headers of the last attempt.
    pub fn set_of_attempt<'h>(&mut self, headers: impl IntoIterator<Item = (&'static str, &'h HeaderValue)>) {
        self.of_attempt.clear();
        for (name, value) in headers {
            write_header(&mut self.of_attempt, name, value);
        }
    }

    /// Everything before the body.
    fn write_head(&self, to: &mut Vec<u8>, host: &HeaderValue) {
        to.extend_from_slice(&self.head);
        to.extend_from_slice(&self.of_attempt);
        write_header(to, "host", host);
        if self.always_framed || !self.body.is_empty() {
            // Writing to a vector does not fail.
            let _ = write!(to, "content-length: {}\r\n", self.body.len());
        }
        to.extend_from_slice(b"\r\n");
    }
}

/// Headers may carry keys and prompts.
impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing")
            .field("head_bytes", &self.head.len())
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// One header line. Neither name nor value can hold a line's end.
fn write_header(to: &mut Vec<u8>, name: &str, value: &HeaderValue) {
    to.extend_from_slice(name.as_bytes());
    to.extend_from_slice(b": ");
    to.extend_from_slice(value.as_bytes());
    to.extend_from_slice(b"\r\n");
}

/// How connections to an endpoint are made and kept.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamSettings {
    /// To connect.
    pub connect: Duration,
    /// An idle connection older than this is not used again; must be shorter than the engine's own limit (5 s for
    /// uvicorn's default).
    pub idle_age: Duration,
}

/// One endpoint's connections.
#[derive(Debug)]
pub struct Upstream {
    address: Address,
    host: HeaderValue,
    settings: UpstreamSettings,
    idle: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
enum Address {
    Socket(SocketAddr),
    Name(String),
}

#[derive(Debug)]
struct Idle {
    /// Boxed: it moves with every request.
    wire: Box<Wire>,
    since: Instant,
}

impl Upstream {
    /// An endpoint at `address` (`host:port`, or an IP with a port); nothing is connected yet.
    #[must_use]
    pub fn new(address: &str, settings: UpstreamSettings) -> Arc<Self> {
        Arc::new(Self {
            address: address
                .parse()
                .map_or_else(|_| Address::Name(address.to_owned()), Address::Socket),
            host: HeaderValue::from_str(address).unwrap_or(HeaderValue::from_static("engine")),
            settings,
            idle: Mutex::new(Vec::new()),
        })
    }

    /// Sends a request and waits for the head of the answer. A connection that was idle and turns out to be dead
    /// before any byte came back is replaced by a new one, once. Dropping the future abandons the request.
    ///
    /// # Errors
    /// [`UpstreamError`], never `Cut`.
    pub async fn send(
        self: &Arc<Self>,
        outgoing: &Outgoing,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        if let Some(mut wire) = self.take_idle() {
            match wire.exchange(outgoing, &self.host).await {
                Ok(head) => return Ok(self.attach(head, wire)),
                Err(UpstreamError::Closed { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        let mut wire = self.connect().await?;
        let head = wire.exchange(outgoing, &self.host).await?;
        Ok(self.attach(head, wire))
    }

    /// Closes connections that have been idle for too long, or that the endpoint closed.
    pub fn sweep(&self) {
        let now = now();
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|idle| now.duration_since(idle.since) < self.settings.idle_age && idle.wire.is_quiet());
    }

    /// Idle connections kept now.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn take_idle(&self) -> Option<Box<Wire>> {
        let now = now();
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if now.duration_since(idle.since) < self.settings.idle_age && idle.wire.is_quiet() {
                return Some(idle.wire);
            }
        }
    }

    fn put_idle(&self, mut wire: Box<Wire>) {
        if !wire.is_quiet() {
            return;
        }
        wire.rest();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(Idle { wire, since: now() });
        }
    }

    async fn connect(&self) -> Result<Box<Wire>, UpstreamError> {
        let connected = tokio::time::timeout(self.settings.connect, async {
            match &self.address {
                Address::Socket(address) => TcpStream::connect(address).await,
                Address::Name(name) => TcpStream::connect(name.as_str()).await,
            }
        })
        .await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => return Err(self.connect_error(source)),
            Err(elapsed) => return Err(self.connect_error(io::Error::new(io::ErrorKind::TimedOut, elapsed))),
        };
        stream
            .set_nodelay(true)
            .map_err(|source| self.connect_error(source))?;
        Ok(Box::new(Wire::new(stream)))
    }

    fn connect_error(&self, source: io::Error) -> UpstreamError {
        let address = match &self.address {
            Address::Socket(address) => address.to_string(),
            Address::Name(name) => name.clone(),
        };
        UpstreamError::Connect { address, source }
    }

    fn attach(self: &Arc<Self>, head: Head, wire: Box<Wire>) -> Response<UpstreamBody> {
        let Head {
            parts,
            framing,
            keeps,
        } = head;
        let body = UpstreamBody::new(framing, keeps, wire, Arc::clone(self));
        Response::from_parts(parts, body)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the connection stack is a shell: it ages its own sockets"
)]
fn now() -> Instant {
    Instant::now()
}
