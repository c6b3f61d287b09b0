//! One small HTTP GET between Weir's own parts and to a local engine: a fresh connection, a bound on time and bytes.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// What to get.
pub struct Get<'a> {
    /// Where.
    pub address: SocketAddr,
    /// Path and query.
    pub target: &'a str,
    /// The `Authorization` header.
    pub bearer: Option<HeaderValue>,
    /// Longest body, bytes.
    pub max_bytes: usize,
    /// For all of it, connecting included.
    pub within: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nothing listens there.
    #[error("connection refused")]
    Refused,
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// No connection for another reason.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// Not an HTTP request or answer, or cut off.
    #[error("the exchange failed: {0}")]
    Exchange(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Gets status and body.
///
/// # Errors
/// [`FetchError`] when there is no whole answer in time; any status is an answer.
pub async fn get(what: Get<'_>) -> Result<(StatusCode, Bytes), FetchError> {
    let within = what.within;
    match timeout(within, exchange(what)).await {
        Ok(ended) => ended,
        Err(_) => Err(FetchError::Timeout),
    }
}

async fn exchange(what: Get<'_>) -> Result<(StatusCode, Bytes), FetchError> {
    let stream = TcpStream::connect(what.address)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => FetchError::Refused,
            _ => FetchError::Connect(error),
        })?;
    let failed = |error: hyper::Error| FetchError::Exchange(Box::new(error));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let mut request = Request::get(what.target)
        .header(header::HOST, what.address.to_string())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| FetchError::Exchange(Box::new(error)))?;
    if let Some(bearer) = what.bearer {
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
    }
    let answer = async {
        let (head, body) = sender.send_request(request).await.map_err(failed)?.into_parts();
        let body = Limited::new(body, what.max_bytes)
            .collect()
            .await
            .map_err(FetchError::Exchange)?;
        Ok((head.status, body.to_bytes()))
    };
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    // The connection moves the bytes; when it ends first, the answer says whether it was whole.
    tokio::select! {
        ended = answer.as_mut() => return ended,
        _ = connection.as_mut() => {}
    }
    answer.await
}
