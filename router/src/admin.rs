//! The admin port: probes and metrics for everyone, the rest for holders of the control token. Every connection,
//! header, body and long answer is bounded, and long answers leave room for probes.

mod token;

use std::{convert::Infallible, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt as _, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::{Metrics, Port},
    stall::StallGuard,
};
pub use token::{TokenError, TokenFile};

/// Connections open at once.
const MAX_CONNECTIONS: usize = 512;
/// Of those, connections in a long poll or a stream.
const MAX_LONG: usize = 256;
/// From a connection's first byte, or the end of the answer before, to the end of the headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// To the end of a request body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest request body, bytes.
const MAX_BODY: usize = 64 << 10;
/// Without progress of a write, the peer is taken for gone: three heartbeats of the control stream.
const WRITE_STALL: Duration = Duration::from_secs(15);
/// For answers under way when the server stops.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// An answer's body, whole or streamed.
pub type AdminBody = UnsyncBoxBody<Bytes, Infallible>;

/// Who may call a route, and for how long it keeps its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No such route.
    Unknown,
    /// Anyone.
    Open,
    /// Holders of the token.
    Token,
    /// Holders of the token, for a long poll or a stream.
    TokenLong,
}

/// A request that may be answered.
pub struct Call {
    /// Method, path, query and headers.
    pub head: Parts,
    /// The whole body.
    pub body: Bytes,
}

impl Call {
    /// The first value of a query parameter, as written.
    pub fn query(&self, name: &str) -> Option<&str> {
        let pairs = self.head.uri.query()?.split('&');
        pairs
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }
}

/// What a role adds to the admin port.
pub trait Routes: Send + Sync + 'static {
    /// Ready for traffic, or what is missing.
    fn readiness(&self) -> Result<(), &'static str>;
    /// Brings gauges up to date before metrics are shown.
    fn refresh(&self);
    /// Who may call a route.
    fn access(&self, method: &Method, path: &str) -> Access;
    /// Answers a call that [`Self::access`] knows and the guard let pass.
    fn answer(&self, call: Call) -> impl Future<Output = Response<AdminBody>> + Send;
}

/// The admin port of one role.
pub struct Admin<R> {
    routes: R,
    metrics: Arc<Metrics>,
    /// `None`: every guarded route is closed.
    token: Option<TokenFile>,
    long: Arc<Semaphore>,
}

impl<R: Routes> Admin<R> {
    /// An admin port that serves `routes`; without a token the guarded ones are answered 401.
    pub fn new(routes: R, metrics: Arc<Metrics>, token: Option<TokenFile>) -> Arc<Self> {
        Arc::new(Self {
            routes,
            metrics,
            token,
            long: Arc::new(Semaphore::new(MAX_LONG)),
        })
    }

    async fn call(&self, request: Request<Incoming>) -> Response<AdminBody> {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        if head.method == Method::GET || head.method == Method::HEAD {
            match path {
                "/livez" => return text(StatusCode::OK, "ok\n"),
                "/readyz" => {
                    return match self.routes.readiness() {
                        Ok(()) => text(StatusCode::OK, "ok\n"),
                        Err(missing) => text(StatusCode::SERVICE_UNAVAILABLE, missing),
                    };
                }
                "/metrics" => return self.metrics_page(),
                _ => {}
            }
        }
        let access = self.routes.access(&head.method, path);
        let guarded = matches!(access, Access::Token | Access::TokenLong);
        if guarded
            && !self
                .token
                .as_ref()
                .is_some_and(|token| token.allows(&head.headers))
        {
            self.metrics.unauthorized.inc();
            let mut refusal = text(StatusCode::UNAUTHORIZED, "a bearer token is needed\n");
            refusal
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return refusal;
        }
        let permit = match access {
            Access::Unknown => return text(StatusCode::NOT_FOUND, "no such route\n"),
            Access::Open | Access::Token => None,
            Access::TokenLong => match Arc::clone(&self.long).try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => return text(StatusCode::SERVICE_UNAVAILABLE, "too many long requests\n"),
            },
        };
        let body = match timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) => {
                return text(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "the body is broken or over 64 KiB\n",
                );
            }
            Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
        };
        hold(self.routes.answer(Call { head, body }).await, permit)
    }

    fn metrics_page(&self) -> Response<AdminBody> {
        self.routes.refresh();
        let mut page = text(StatusCode::OK, self.metrics.render());
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        page.headers_mut().insert(header::CONTENT_TYPE, kind);
        page
    }
}

/// Serves until `stop`, then gives answers under way a second and returns.
pub async fn serve<R: Routes>(listener: TcpListener, admin: Arc<Admin<R>>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    let open = admin
        .metrics
        .connections
        .with_label_values(&[Port::Admin.as_str()]);
    let refused = admin
        .metrics
        .connections_refused
        .with_label_values(&[Port::Admin.as_str()]);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(error = %error, "an admin connection's task failed");
                }
                open.set(connections.len() as i64);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(_) if connections.len() >= MAX_CONNECTIONS => refused.inc(),
            Ok((stream, peer)) if stream.set_nodelay(true).is_ok() => {
                connections.spawn(connection(stream, peer, Arc::clone(&admin), stop.clone()));
                open.set(connections.len() as i64);
            }
            // The peer is gone already.
            Ok(_) => {}
            Err(error) => accept_failed(&error).await,
        }
    }
    while connections.join_next().await.is_some() {}
}

/// Out of descriptors or memory: accepting again at once would only spin.
async fn accept_failed(error: &io::Error) {
    tracing::warn!(error = %error, "admin port cannot accept");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn connection<R: Routes>(
    stream: TcpStream,
    peer: SocketAddr,
    admin: Arc<Admin<R>>,
    stop: CancellationToken,
) {
    let service = service_fn(move |request| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(admin.call(request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(64 << 10);
    let io = TokioIo::new(StallGuard::new(stream, WRITE_STALL));
    let mut serving = std::pin::pin!(builder.serve_connection(io, service));
    let ended = tokio::select! {
        ended = serving.as_mut() => Some(ended),
        () = stop.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            serving.as_mut().graceful_shutdown();
            timeout(STOP_GRACE, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, error = %error, "admin connection ended");
    }
}

/// A whole answer of plain text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<AdminBody> {
    whole(status, "text/plain; charset=utf-8", body)
}

/// A whole answer of JSON; 500 when the value cannot be written, which wire types do not cause.
pub fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<AdminBody> {
    match serde_json::to_vec(value) {
        Ok(body) => whole(status, "application/json", body),
        Err(_) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the answer cannot be written\n",
        ),
    }
}

fn whole(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<AdminBody> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Ties a permit to the end of an answer.
fn hold(response: Response<AdminBody>, permit: Option<OwnedSemaphorePermit>) -> Response<AdminBody> {
    let Some(permit) = permit else { return response };
    response.map(|body| {
        body.map_frame(move |frame| {
            let _held = &permit;
            frame
        })
        .boxed_unsync()
    })
}

#[cfg(test)]
mod tests;
