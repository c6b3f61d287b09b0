//! One connection with uvicorn's manners: HTTP/1.1 only, closed a fixed time after the last answer but never before
//! the first request, a half-close taken for a disconnect.

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    sync::watch,
    time::sleep,
};

use super::{App, route};

/// Most headers in a request; the engine's parser knows no limit.
const MAX_HEADERS: usize = 1024;
/// Most bytes of a request's head.
const MAX_HEAD: usize = 1 << 20;
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Whether a connection rests; every change counts, so that a rest that was broken in between does not end it.
#[derive(Debug, Clone, Copy, Default)]
struct Rest {
    idle: bool,
    changes: u64,
}

/// Marks its connection idle when an answer is out.
pub(crate) struct Busy(watch::Sender<Rest>);

impl Drop for Busy {
    fn drop(&mut self) {
        set_idle(&self.0, true);
    }
}

fn set_idle(rest: &watch::Sender<Rest>, idle: bool) {
    rest.send_modify(|rest| {
        *rest = Rest {
            idle,
            changes: rest.changes + 1,
        }
    });
}

/// Serves a connection until it ends, or, once `leaving` is true, until no request is in flight on it.
pub(crate) async fn serve(app: Arc<App>, stream: TcpStream, mut leaving: watch::Receiver<bool>) {
    // Small events must not wait for acknowledgements; failing that they are late, not wrong.
    drop(stream.set_nodelay(true));
    let mut head = [0; HTTP2_PREFACE.len()];
    let first = tokio::select! {
        first = stream.peek(&mut head) => first,
        _ = leaving.wait_for(|leaving| *leaving) => return,
    };
    if matches!(first, Ok(count) if count >= 3 && HTTP2_PREFACE.starts_with(&head[..count])) {
        return refuse_http2(stream).await;
    }
    let (rest, watch) = watch::channel(Rest::default());
    let io = TokioIo::new(Watched {
        stream,
        rest: rest.clone(),
    });
    let keep_alive = app.options.keep_alive;
    let service = service_fn(move |request| {
        let (app, busy) = (Arc::clone(&app), Busy(rest.clone()));
        async move {
            let response = Box::pin(route::respond(&app, request)).await?;
            Ok::<_, super::body::Cut>(response.map(|body| body.holding(busy)))
        }
    });
    let connection = http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    tokio::select! {
        // An error is a client that broke off or an ordered cut: the connection is over either way.
        _ = connection.as_mut() => return,
        () = idle_too_long(watch, keep_alive) => {}
        _ = leaving.wait_for(|leaving| *leaving) => {}
    }
    connection.as_mut().graceful_shutdown();
    drop(connection.await);
}

/// Returns once the connection has rested for `keep_alive` without a break.
async fn idle_too_long(mut rest: watch::Receiver<Rest>, keep_alive: Duration) {
    loop {
        if rest.wait_for(|rest| rest.idle).await.is_err() {
            // The service is gone, and with it the connection.
            return std::future::pending().await;
        }
        rest.mark_unchanged();
        tokio::select! {
            () = sleep(keep_alive) => return,
            _ = rest.changed() => {}
        }
    }
}

async fn refuse_http2(mut stream: TcpStream) {
    let answer =
        b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n\
                   content-length: 30\r\n\r\nInvalid HTTP request received.";
    // The other side may be gone already.
    drop(stream.write_all(answer).await);
    drop(stream.shutdown().await);
}

/// A socket that ends its connection's rest when bytes come in.
struct Watched {
    stream: TcpStream,
    rest: watch::Sender<Rest>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            set_idle(&self.rest, false);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
