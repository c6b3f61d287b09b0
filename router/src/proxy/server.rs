//! The traffic port: accepts, bounds and drains connections; hyper speaks HTTP/1.1 on each.
//!
//! * A client that closes (or half-closes: engines read that as "gone" too) while its request is being served is
//!   noticed at once, whatever the request is doing: the handler's future is dropped, and with it everything it holds.
//! * Requests with both `Content-Length` and `Transfer-Encoding` are read by the latter, as RFC 9112 §6.3 says, and are
//!   framed anew upstream, so no byte of one request can become another's. `Upgrade` is never honoured.
//! * Heads that are malformed, too large or too slow are refused here, before any handler, in the API's error shape.

mod socket;
mod timer;

use std::{convert::Infallible, io, pin::Pin, time::Duration};

use futures::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use http::{Request, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use weir_wire::config::{Limits, Timeouts};

use self::{socket::ClientSocket, timer::LazyTimer};
use super::respond::Reply;
use crate::metrics::{Metrics, Port};

/// How long to wait when the process has no file descriptor left for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A traffic port and what bounds it.
pub struct Traffic<'a> {
    /// Where connections come in.
    pub listener: TcpListener,
    /// What bounds it. A change holds for connections accepted from then on; open ones keep what they began with.
    pub bounds: watch::Receiver<Bounds>,
    /// Counts connections.
    pub metrics: &'a Metrics,
}

/// Limits and timeouts of a traffic port.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bounds {
    /// Bounds on connections and heads.
    pub limits: Limits,
    /// Phase timeouts.
    pub timeouts: Timeouts,
}

impl Bounds {
    /// How HTTP is spoken on a new connection.
    fn http(&self) -> http1::Builder {
        let mut http = http1::Builder::new();
        http.header_read_timeout(Duration::from(self.timeouts.header_read))
            .max_headers(self.limits.max_headers as usize)
            .max_buf_size(self.limits.max_header_bytes.max(8_192) as usize)
            // One piece of a head and a short body costs the system less than two.
            .writev(false)
            .half_close(false);
        http
    }
}

/// Serves until `shutdown`, then finishes what is in flight for at most the drain timeout in force and cuts the rest.
///
/// # Errors
/// None today; a listener's errors are waited out, because they are those of single connections or of a full process.
pub async fn serve<F, Fut>(traffic: Traffic<'_>, handler: F, shutdown: CancellationToken) -> io::Result<()>
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Reply> + Send + 'static,
{
    let Traffic {
        listener,
        bounds: mut changes,
        metrics,
    } = traffic;
    let port = [Port::Traffic.as_str()];
    let open = metrics.connections.with_label_values(&port);
    let refused = metrics.connections_refused.with_label_values(&port);
    let mut bounds = changes.borrow_and_update().clone();
    let mut http = bounds.http();
    let mut connections = JoinSet::new();
    loop {
        // In this order: a connection is held to the newest bounds, and not counted against those that have ended.
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Ok(()) = changes.changed() => {
                bounds = changes.borrow_and_update().clone();
                http = bounds.http();
                continue;
            }
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                report(ended);
                open.set(connections.len() as i64);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if connections.len() >= bounds.limits.max_connections as usize {
            refused.inc();
            continue;
        }
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        connections.spawn(connection(
            http.clone(),
            ClientSocket::new(stream, bounds.timeouts.idle.into()),
            handler.clone(),
            shutdown.clone(),
        ));
        open.set(connections.len() as i64);
    }
    drop(listener);
    tracing::info!(connections = connections.len(), "draining");
    let drained = tokio::time::timeout(bounds.timeouts.drain.into(), async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    })
    .await;
    if drained.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "drain timeout: cutting what is left"
        );
        connections.shutdown().await;
    }
    Ok(())
}

async fn connection<F, Fut>(
    mut http: http1::Builder,
    socket: ClientSocket<TcpStream>,
    handler: F,
    shutdown: CancellationToken,
) where
    F: Fn(Request<Incoming>) -> Fut + Send + 'static,
    Fut: Future<Output = Reply> + Send + 'static,
{
    let service = service_fn(move |request| handler(request).map(Ok::<_, Infallible>));
    http.timer(LazyTimer::default());
    let mut served = http.serve_connection(TokioIo::new(socket), service);
    // Looked at only when it is woken; a cancellation future by itself takes two locks, shared by all connections,
    // whenever a byte arrives.
    let mut stopping = FuturesUnordered::from_iter([shutdown.cancelled()]);
    let ended = tokio::select! {
        result = &mut served => Some(result),
        _ = stopping.next() => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            Pin::new(&mut served).graceful_shutdown();
            (&mut served).await
        }
    };
    let Err(error) = result else {
        return;
    };
    tracing::trace!(%error, "connection ended");
    if error.is_timeout() {
        let parts = served.into_parts();
        if !parts.read_buf.is_empty() {
            let text = "the request's head did not arrive in time";
            let answer = socket::refusal(StatusCode::REQUEST_TIMEOUT, text);
            // The client has been given its time; whether it still reads is its own matter.
            let _ = parts.io.into_inner().write_all(&answer).await;
        }
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}
