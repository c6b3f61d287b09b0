//! Connections to one endpoint: a stack of idle HTTP/1 connections, the newest on top, and own framing.
//!
//! A connection is driven by the task that uses it, not by one of its own: what the engine sends is read and passed on
//! in one wake-up, pieces that arrive together leave together, and dropping the answer closes the socket, which is
//! how engines learn that nobody waits any more. An idle connection is looked at when it is taken and when
//! [`Upstream::sweep`] runs.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header, uri::PathAndQuery};
use http_body::Body;
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, Connection, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::Instant};

/// Idle connections kept per endpoint.
const MAX_IDLE: usize = 1_024;
/// Bytes gathered into one piece at most.
const MAX_GATHERED_BYTES: usize = 64 << 10;
/// Read buffer of one upstream connection at most.
const MAX_READ_BUFFER_BYTES: usize = 256 << 10;
/// Headers of an answer at most.
const MAX_ANSWER_HEADERS: usize = 256;

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

/// A connection and the handle to it.
#[derive(Debug)]
struct Wire {
    sender: SendRequest<Full<Bytes>>,
    connection: Connection<TokioIo<TcpStream>, Full<Bytes>>,
    done: bool,
}

impl Wire {
    /// Reads and writes what can be read and written now.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.done {
            self.done = Pin::new(&mut self.connection).poll(cx).is_ready();
        }
    }

    /// Whether it is alive and takes a request now.
    fn is_usable(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        !self.done && self.sender.is_ready()
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, UpstreamError> {
        let mut answer = pin!(self.sender.send_request(request));
        let result = poll_fn(|cx| {
            if !self.done {
                self.done = Pin::new(&mut self.connection).poll(cx).is_ready();
            }
            match answer.as_mut().poll(cx) {
                Poll::Ready(result) => Poll::Ready(Some(result)),
                Poll::Pending if self.done => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
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
        wire.drive(&mut Context::from_waker(Waker::noop()));
        if wire.done || wire.sender.is_closed() {
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
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_READ_BUFFER_BYTES)
            .max_headers(MAX_ANSWER_HEADERS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| UpstreamError::Closed { source: Some(source) })?;
        Ok(Box::new(Wire {
            sender,
            connection,
            done: false,
        }))
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
        response.map(|incoming| {
            let mut body = UpstreamBody {
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
        })
    }
}

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
        let mut gathered = Gathered::default();
        let mut driven = false;
        while !self.ended && gathered.len() < MAX_GATHERED_BYTES {
            match Pin::new(&mut self.incoming).poll_frame(cx) {
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
                        return Poll::Ready(Some(Err(UpstreamError::Cut { source })));
                    }
                    self.failed = Some(source);
                    break;
                }
                Poll::Ready(None) => self.end(),
                Poll::Pending => match &mut self.wire {
                    Some(wire) if !driven => {
                        wire.drive(cx);
                        driven = true;
                    }
                    Some(_) | None => break,
                },
            }
        }
        match gathered.into_bytes() {
            Some(bytes) => Poll::Ready(Some(Ok(bytes))),
            None if self.ended => Poll::Ready(None),
            None => Poll::Pending,
        }
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

#[expect(
    clippy::disallowed_methods,
    reason = "the connection stack is a shell: it ages its own sockets"
)]
fn now() -> Instant {
    Instant::now()
}
