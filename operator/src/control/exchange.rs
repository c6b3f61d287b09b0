//! The few HTTP requests of the control protocol: one connection each, with a bearer token and bounds on everything.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::TcpStream, task::JoinSet};

/// Most bytes of one answer to an order, and of one line of the event stream.
pub const MAX_ANSWER: usize = 4 << 20;
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection, or no answer, in time.
    #[error("no answer in {0:?}")]
    Timeout(Duration),
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[source] hyper::Error),
    /// Another status than 200.
    #[error("answered {0}")]
    Status(StatusCode),
    /// A body that is too long or breaks off.
    #[error("the answer's body: {0}")]
    Body(String),
    /// Not what the protocol says.
    #[error("not an answer of the control protocol: {0}")]
    Form(#[source] serde_json::Error),
    /// A request that cannot be made, such as a token with line breaks.
    #[error("the request cannot be made: {0}")]
    Request(#[source] http::Error),
}

/// An answer and the task that keeps its connection alive: dropping it closes the connection.
#[derive(Debug)]
pub struct Answer {
    /// Status, headers and body.
    pub response: Response<Incoming>,
    _connection: JoinSet<()>,
}

/// Sends one request on a connection of its own; any status but 200 is an error.
///
/// # Errors
/// [`HttpError`].
pub async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer, HttpError> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| HttpError::Timeout(CONNECT_TIMEOUT))?
        .map_err(HttpError::Connect)?;
    stream.set_nodelay(true).map_err(HttpError::Connect)?;
    let (mut sender, connection) = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(HttpError::Broken)?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a control connection ended");
        }
    });
    let response = sender.send_request(request).await.map_err(HttpError::Broken)?;
    if response.status() == StatusCode::OK {
        Ok(Answer {
            response,
            _connection: driver,
        })
    } else {
        Err(HttpError::Status(response.status()))
    }
}

/// A request with the bearer token.
///
/// # Errors
/// [`HttpError::Request`].
pub fn request(
    method: Method,
    address: SocketAddr,
    path: &str,
    token: &str,
    body: Vec<u8>,
) -> Result<Request<Full<Bytes>>, HttpError> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, address.to_string())
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body.into()))
        .map_err(HttpError::Request)
}

/// Posts JSON and reads the JSON answer.
///
/// # Errors
/// [`HttpError`].
pub async fn post_json<T: DeserializeOwned>(
    address: SocketAddr,
    token: &str,
    path: &str,
    body: &impl Serialize,
) -> Result<T, HttpError> {
    let body = serde_json::to_vec(body).map_err(HttpError::Form)?;
    let answer = send(address, request(Method::POST, address, path, token, body)?).await?;
    let Answer {
        response,
        _connection,
    } = answer;
    let bytes = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(|error| HttpError::Body(error.to_string()))?
        .to_bytes();
    serde_json::from_slice(&bytes).map_err(HttpError::Form)
}
