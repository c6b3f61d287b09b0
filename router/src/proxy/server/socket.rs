//! The client's socket: gives up on a client that stops reading (`stall.rs`), and gives hyper's own refusals of malformed heads
//! the body that clients of this API expect.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::StatusCode;
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stall::StallGuard;

/// Wraps the stream of a client's connection.
pub(super) struct ClientSocket<S> {
    stream: StallGuard<S>,
    /// What is written in place of a bare refusal.
    substitute: Vec<u8>,
}

impl<S: AsyncWrite + Unpin> ClientSocket<S> {
    /// `stall` is the longest time that the client may take no byte while some wait for it.
    pub(super) fn new(stream: S, stall: Duration) -> Self {
        Self {
            stream: StallGuard::new(stream, stall),
            substitute: Vec::new(),
        }
    }

    fn poll_substitute(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.substitute.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.substitute))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.substitute.drain(..count);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientSocket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ClientSocket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_substitute(cx))?;
        if let Some(refusal) = bare_refusal(bytes) {
            this.substitute = refusal;
            // What does not fit now goes out with the flush that hyper asks for before it closes.
            if let Poll::Ready(Err(error)) = this.poll_substitute(cx) {
                return Poll::Ready(Err(error));
            }
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = slices {
            return self.poll_write(cx, only);
        }
        let this = self.get_mut();
        ready!(this.poll_substitute(cx))?;
        Pin::new(&mut this.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_substitute(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_substitute(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

/// The full refusal to send when `bytes` are one that hyper made by itself. It is known by what it lacks: every
/// answer of a handler has a body or an `x-request-id`.
fn bare_refusal(bytes: &[u8]) -> Option<Vec<u8>> {
    let status = bytes.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    if status[0] != b'4' || !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    memmem::find(bytes, b"content-length: 0\r\n")?;
    if memmem::find(bytes, b"x-request-id: ").is_some() {
        return None;
    }
    let (status, message) = match status {
        b"431" => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "the request's headers are too many or too long",
        ),
        b"414" => (StatusCode::URI_TOO_LONG, "the request's path is too long"),
        _ => (
            StatusCode::BAD_REQUEST,
            "the request's head is not valid HTTP/1.1: method, path, version or a header is malformed",
        ),
    };
    Some(refusal(status, message))
}

/// A complete answer in bytes, for when there is no request to hand to a handler. Ends the connection.
pub(super) fn refusal(status: StatusCode, message: &str) -> Vec<u8> {
    let param = if status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE {
        "\"headers\""
    } else {
        "null"
    };
    let body = format!(
        "{{\"error\":{{\"message\":\"{message}\",\"type\":\"invalid_request_error\",\"param\":{param},\"code\":\"invalid_request\"}}}}"
    );
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{}: invalid\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        weir_wire::headers::REASON,
        body.len(),
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn only_refusals_of_hyper_itself_are_replaced() {
        let bare =
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let text = String::from_utf8(bare_refusal(bare).unwrap()).unwrap();
        assert!(text.starts_with("HTTP/1.1 431 "), "{text}");
        assert!(text.contains("\"param\":\"headers\""), "{text}");
        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 400 Bad Request\r\nx-request-id: a\r\ncontent-length: 0\r\n\r\n",
        ] {
            assert_eq!(bare_refusal(other.as_bytes()), None, "{other}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_is_given_up() {
        let (near, _far) = tokio::io::duplex(16);
        let mut socket = ClientSocket::new(near, Duration::from_secs(5));
        let error = socket.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
