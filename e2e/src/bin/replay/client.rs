//! One HTTP exchange, and what was seen of it.
//!
//! Every request has a connection of its own: a kept-alive one may be closed by the server just when it is
//! used again, and then a lost request could not be told from a client that was unlucky.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use weir_wire::headers;

use crate::body::ChatBody;
use crate::clock;
use crate::record::Fault;
use crate::sse::{self, Chunk, Event, Parser, Usage};

const MAX_ANSWER_BYTES: usize = 16 << 20;
const MAX_HEADER_CHARS: usize = 128;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where requests go.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// `host:port` to connect to.
    pub(crate) address: String,
    pub(crate) host: HeaderValue,
    /// Path of chat completions.
    pub(crate) path: Uri,
    /// Headers the user wants on every request.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

/// What was seen of an exchange so far; what is `None` has not happened.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) status: Option<StatusCode>,
    pub(crate) head_at: Option<Instant>,
    pub(crate) first_byte_at: Option<Instant>,
    pub(crate) first_token_at: Option<Instant>,
    pub(crate) reason: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) home: Option<String>,
    pub(crate) queued_ms: Option<f64>,
    pub(crate) held: bool,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) usage: Usage,
    pub(crate) finish_reason: Option<String>,
}

impl Target {
    /// Sends a chat completion and reads the answer to its end, noting everything in `seen`.
    ///
    /// # Errors
    /// The first thing that makes the answer not a complete one. Dropping the future closes the connection.
    pub(crate) async fn exchange(
        &self,
        body: ChatBody,
        headers: HeaderMap,
        seen: &mut Seen,
    ) -> Result<(), Fault> {
        let timed_out = |_| Fault::Connect(std::io::ErrorKind::TimedOut.into());
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.address));
        let stream = connecting.await.map_err(timed_out)?.map_err(Fault::Connect)?;
        // Only latency is lost without it.
        stream.set_nodelay(true).ok();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(Fault::NoAnswer)?;
        // Ends with this function, and closes the connection.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let response = sender
            .send_request(self.request(body, headers))
            .await
            .map_err(Fault::NoAnswer)?;
        note_head(&response, seen);
        let status = response.status();
        if status != StatusCode::OK {
            let text = read_whole(response.into_body(), seen).await.unwrap_or_default();
            let message = sse::chunk(&text).and_then(|chunk| chunk.error);
            return Err(Fault::Status(
                message.unwrap_or_else(|| String::from_utf8_lossy(&text).into_owned()),
            ));
        }
        let kind = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        if kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
            read_stream(response.into_body(), seen).await
        } else {
            let text = read_whole(response.into_body(), seen).await?;
            let chunk = sse::chunk(&text).ok_or(Fault::BadAnswer)?;
            if !chunk.has_choice && chunk.error.is_none() {
                return Err(Fault::BadAnswer);
            }
            note_chunk(chunk, seen)?;
            finished(seen)
        }
    }

    fn request(&self, body: ChatBody, headers: HeaderMap) -> Request<ChatBody> {
        let mut request = Request::new(body);
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = headers;
        let all = request.headers_mut();
        all.insert(HOST, self.host.clone());
        all.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in &self.headers {
            all.append(name, value.clone());
        }
        request
    }
}

fn note_head(response: &Response<Incoming>, seen: &mut Seen) {
    let text = |name| {
        let value = response.headers().get(name)?.to_str().ok()?;
        Some(value.chars().take(MAX_HEADER_CHARS).collect::<String>())
    };
    seen.head_at = Some(clock::now());
    seen.status = Some(response.status());
    seen.reason = text(headers::REASON);
    seen.endpoint = text(headers::ENDPOINT);
    seen.home = text(headers::HOME);
    seen.queued_ms = text(headers::QUEUED_MS).and_then(|value| value.parse().ok());
    seen.held = text(headers::HELD).is_some_and(|value| value == "1");
    seen.retry_after = text(RETRY_AFTER.as_str())
        .and_then(|value| value.parse().ok())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
}

/// The data of the next frame; trailers are skipped.
async fn next_data(body: &mut Incoming, seen: &mut Seen) -> Result<Option<Bytes>, Fault> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(Fault::Cut)?.into_data()
            && !data.is_empty()
        {
            seen.first_byte_at.get_or_insert_with(clock::now);
            return Ok(Some(data));
        }
    }
    Ok(None)
}

async fn read_whole(mut body: Incoming, seen: &mut Seen) -> Result<Vec<u8>, Fault> {
    let mut whole = Vec::new();
    while let Some(data) = next_data(&mut body, seen).await? {
        if whole.len() + data.len() > MAX_ANSWER_BYTES {
            return Err(Fault::TooLarge);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole)
}

async fn read_stream(mut body: Incoming, seen: &mut Seen) -> Result<(), Fault> {
    let mut parser = Parser::default();
    let mut done = false;
    while let Some(data) = next_data(&mut body, seen).await? {
        for event in parser.push(&data)? {
            match event {
                Event::Done => done = true,
                Event::Chunk(chunk) => {
                    if chunk.has_choice {
                        seen.first_token_at.get_or_insert_with(clock::now);
                    }
                    note_chunk(chunk, seen)?;
                }
            }
        }
    }
    if done { finished(seen) } else { Err(Fault::NoDone) }
}

fn note_chunk(chunk: Chunk, seen: &mut Seen) -> Result<(), Fault> {
    if let Some(usage) = chunk.usage {
        seen.usage = usage;
    }
    if chunk.finish_reason.is_some() {
        seen.finish_reason = chunk.finish_reason;
    }
    chunk
        .error
        .map_or(Ok(()), |message| Err(Fault::ErrorEvent(message)))
}

/// An answer that reached its end is still none if the engine gave up.
fn finished(seen: &Seen) -> Result<(), Fault> {
    match seen.finish_reason.as_deref() {
        Some(reason @ ("abort" | "error")) => Err(Fault::Finish(reason.to_owned())),
        Some(_) | None => Ok(()),
    }
}
