//! Connections to one endpoint: a stack of idle HTTP/1 connections, the newest on top, and own framing.
//!
//! A connection is driven by the task that uses it, not by one of its own: what the engine sends is read and passed on
//! in one wake-up, pieces that arrive together leave together, and dropping the answer closes the socket, which is
//! how engines learn that nobody waits any more. An idle connection is looked at when it is taken and when
//! [`Upstream::sweep`] runs.

mod body;
mod wire;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header, uri::PathAndQuery};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::{net::TcpStream, time::Instant};

pub use self::body::UpstreamBody;
use self::wire::Wire;

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
    /// The connection ended before the answer's head.
    #[error("the connection was closed before an answer came")]
    Closed {
        /// The cause, when there is more than an end of file.
        #[source]
        source: Option<hyper::Error>,
    },
    /// What came is not HTTP.
    #[error("the answer is not valid HTTP")]
    Protocol {
        /// The cause.
        #[source]
        source: hyper::Error,
    },
    /// The connection ended inside the answer's body.
    #[error("the answer was cut short")]
    Cut {
        /// The cause.
        #[source]
        source: hyper::Error,
    },
}

impl UpstreamError {
    /// No connection came about, so the endpoint as a whole is at fault.
    #[must_use]
    pub fn is_connect(&self) -> bool {
        matches!(self, Self::Connect { .. })
    }
}

/// A request for an endpoint. `Host` and framing are set when it is sent.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Method.
    pub method: Method,
    /// Path and query as the client sent them, without `/pools/NAME`.
    pub target: PathAndQuery,
    /// Headers, filtered by [`super::headers::for_upstream`].
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
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
    /// Boxed: it is about a kilobyte, and moves with every request.
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
            match wire.exchange(self.request(outgoing)).await {
                Ok(response) => return Ok(self.attach(response, wire)),
                Err(UpstreamError::Closed { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        let mut wire = self.connect().await?;
        let response = wire.exchange(self.request(outgoing)).await?;
        Ok(self.attach(response, wire))
    }

    /// Closes connections that have been idle for too long, or that the endpoint closed.
    pub fn sweep(&self) {
        let now = now();
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain_mut(|idle| {
                now.duration_since(idle.since) < self.settings.idle_age && idle.wire.is_usable()
            });
    }

    /// Idle connections kept now.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn take_idle(&self) -> Option<Box<Wire>> {
        let now = now();
        loop {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if now.duration_since(idle.since) < self.settings.idle_age && idle.wire.is_usable() {
                return Some(idle.wire);
            }
        }
    }

    fn put_idle(&self, mut wire: Box<Wire>) {
        if !wire.rest() {
            return;
        }
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
        Wire::begin(stream).await.map(Box::new)
    }

    fn connect_error(&self, source: io::Error) -> UpstreamError {
        let address = match &self.address {
            Address::Socket(address) => address.to_string(),
            Address::Name(name) => name.clone(),
        };
        UpstreamError::Connect { address, source }
    }

    fn request(&self, outgoing: &Outgoing) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(outgoing.body.clone()));
        *request.method_mut() = outgoing.method.clone();
        *request.uri_mut() = http::Uri::from(outgoing.target.clone());
        *request.headers_mut() = outgoing.headers.clone();
        request.headers_mut().insert(header::HOST, self.host.clone());
        request
    }

    fn attach(self: &Arc<Self>, response: Response<Incoming>, wire: Box<Wire>) -> Response<UpstreamBody> {
        let upstream = Arc::clone(self);
        response.map(|incoming| UpstreamBody::new(incoming, wire, upstream))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the connection stack is a shell: it ages its own sockets"
)]
fn now() -> Instant {
    Instant::now()
}
