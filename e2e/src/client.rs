//! A small OpenAI client that notes what happened, so that a lost answer can be told from a failed one.
//!
//! Every request has a connection of its own: a kept-alive one may be closed by the server just when it is used again.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinSet, time::Instant};
use weir_wire::headers;

use crate::{cluster::progress::now, reach::Reach};

/// Sends requests to one address.
#[derive(Debug, Clone)]
pub struct Caller {
    address: String,
    /// Keeps the way open.
    way: Option<Arc<Reach>>,
}

/// A chat completion to be asked for.
#[derive(Debug, Clone)]
pub struct Chat {
    /// The body.
    pub body: Value,
    headers: Vec<(&'static str, String)>,
}

/// An answer whose head has come.
#[derive(Debug)]
pub struct Opened {
    /// Status of the head.
    pub status: StatusCode,
    /// Headers of the head.
    pub headers: HeaderMap,
    sent: Instant,
    head: Instant,
    first_byte: Option<Instant>,
    received: BytesMut,
    body: Incoming,
    // Ends with this value, and closes the connection.
    _driver: JoinSet<Result<(), hyper::Error>>,
}

/// An answer that has ended.
#[derive(Debug)]
pub struct Answer {
    /// Status of the head.
    pub status: StatusCode,
    /// Headers of the head.
    pub headers: HeaderMap,
    /// All bytes of the body.
    pub body: Bytes,
    /// How the connection broke inside the body; `None` when the body came to its regular end.
    pub cut: Option<String>,
    /// When the request was sent.
    pub sent: Instant,
    /// From sending to the head.
    pub head_after: Duration,
    /// From sending to the first byte of the body.
    pub first_byte_after: Option<Duration>,
    /// From sending to the end.
    pub ended_after: Duration,
}

impl Chat {
    /// One user message, answered with at most eight tokens.
    #[must_use]
    pub fn new(model: &str, text: &str) -> Self {
        let body = json!({
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 8,
        });
        Self {
            body,
            headers: Vec::new(),
        }
    }

    /// Exactly so many tokens of answer.
    #[must_use]
    pub fn tokens(mut self, count: u32) -> Self {
        self.body["max_tokens"] = count.into();
        self.body["ignore_eos"] = true.into();
        self
    }

    /// An event stream, with usage at its end.
    #[must_use]
    pub fn stream(mut self) -> Self {
        self.body["stream"] = true.into();
        self.body["stream_options"] = json!({"include_usage": true});
        self
    }

    /// A turn of this workflow.
    #[must_use]
    pub fn workflow(self, id: &str) -> Self {
        self.header(headers::WORKFLOW_ID, id)
    }

    /// With this request id.
    #[must_use]
    pub fn id(self, id: &str) -> Self {
        self.header(headers::REQUEST_ID, id)
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// With this conversation instead of one message.
    #[must_use]
    pub fn messages(mut self, messages: &[Value]) -> Self {
        self.body["messages"] = messages.into();
        self
    }
}

impl Caller {
    /// `url` is `http://HOST:PORT`.
    #[must_use]
    pub fn new(url: &str) -> Self {
        let address = url.trim_start_matches("http://").trim_end_matches('/');
        Self {
            address: address.to_owned(),
            way: None,
        }
    }

    /// Sends requests through `reach`, which stays open as long as the caller.
    #[must_use]
    pub fn through(reach: Reach) -> Self {
        let mut caller = Self::new(&reach.url);
        caller.way = Some(Arc::new(reach));
        caller
    }

    /// `HOST:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Asks for a chat completion and returns when its head has come.
    ///
    /// # Errors
    /// There was no HTTP answer.
    pub async fn open(&self, chat: &Chat) -> Result<Opened> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri("/v1/chat/completions");
        for (name, value) in &chat.headers {
            request = request.header(*name, value);
        }
        self.request(request, chat.body.to_string()).await
    }

    /// Asks for a chat completion and reads the answer to its end.
    ///
    /// # Errors
    /// There was no HTTP answer.
    pub async fn chat(&self, chat: &Chat) -> Result<Answer> {
        Ok(self.open(chat).await?.finish().await)
    }

    /// Gets `path`.
    ///
    /// # Errors
    /// There was no HTTP answer.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        let request = Request::builder().uri(path);
        Ok(self.request(request, String::new()).await?.finish().await)
    }

    /// Posts `body` to `path`.
    ///
    /// # Errors
    /// There was no HTTP answer.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Result<Answer> {
        let request = Request::builder().method(Method::POST).uri(path);
        Ok(self.request(request, body).await?.finish().await)
    }

    /// Sends any request and returns when the answer's head has come.
    ///
    /// # Errors
    /// There was no HTTP answer.
    pub async fn request(&self, request: http::request::Builder, body: impl Into<Bytes>) -> Result<Opened> {
        let body: Bytes = body.into();
        let mut request = request.header(header::HOST, &self.address);
        if !body.is_empty()
            && request
                .headers_ref()
                .is_some_and(|map| !map.contains_key(header::CONTENT_TYPE))
        {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).context("making a request")?;
        let sent = now();
        let stream = TcpStream::connect(&self.address)
            .await
            .with_context(|| format!("connecting to {}", self.address))?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(4 << 20)
            .handshake(TokioIo::new(stream))
            .await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let (head, body) = sender
            .send_request(request)
            .await
            .context("no answer")?
            .into_parts();
        Ok(Opened {
            status: head.status,
            headers: head.headers,
            sent,
            head: now(),
            first_byte: None,
            received: BytesMut::new(),
            body,
            _driver: driver,
        })
    }
}

impl Opened {
    /// A header as text; empty when absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        text(&self.headers, name)
    }

    /// What has come of the body.
    #[must_use]
    pub fn received(&self) -> &[u8] {
        &self.received
    }

    /// Waits for more of the body.
    ///
    /// # Errors
    /// The body ended or broke; what had come is in the message.
    pub async fn more(&mut self) -> Result<()> {
        match self.frame().await {
            Ok(true) => Ok(()),
            Ok(false) => bail!("the body ended: {}", String::from_utf8_lossy(&self.received)),
            Err(error) => bail!(
                "the body broke: {error}: {}",
                String::from_utf8_lossy(&self.received)
            ),
        }
    }

    /// Reads to the end.
    pub async fn finish(mut self) -> Answer {
        let cut = loop {
            match self.frame().await {
                Ok(true) => {}
                Ok(false) => break None,
                Err(error) => break Some(error.to_string()),
            }
        };
        Answer {
            status: self.status,
            headers: self.headers,
            body: self.received.freeze(),
            cut,
            sent: self.sent,
            head_after: self.head - self.sent,
            first_byte_after: self.first_byte.map(|at| at - self.sent),
            ended_after: now() - self.sent,
        }
    }

    async fn frame(&mut self) -> Result<bool, hyper::Error> {
        let Some(frame) = self.body.frame().await else {
            return Ok(false);
        };
        if let Some(data) = frame?.data_ref() {
            self.first_byte.get_or_insert_with(now);
            self.received.extend_from_slice(data);
        }
        Ok(true)
    }
}

impl Answer {
    /// A header as text; empty when absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        text(&self.headers, name)
    }

    /// The endpoint that answered.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.header(headers::ENDPOINT)
    }

    /// `kept`, `moved`, `new` or `none`.
    #[must_use]
    pub fn home(&self) -> &str {
        self.header(headers::HOME)
    }

    /// It was held because no endpoint was ready.
    #[must_use]
    pub fn was_held(&self) -> bool {
        self.header(headers::HELD) == "1"
    }

    /// How long it waited in the gateway.
    #[must_use]
    pub fn queued(&self) -> Option<Duration> {
        let text = self.header(headers::QUEUED_MS);
        text.parse().ok().map(Duration::from_millis)
    }

    /// The body as JSON; null when it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The `data` of every complete event, `[DONE]` apart.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        let body = String::from_utf8_lossy(&self.body);
        let data = body.lines().filter_map(|line| line.strip_prefix("data:"));
        data.filter_map(|data| serde_json::from_str(data).ok()).collect()
    }

    /// The stream's closing mark has come.
    #[must_use]
    pub fn is_done(&self) -> bool {
        String::from_utf8_lossy(&self.body)
            .lines()
            .any(|line| line.trim_end() == "data: [DONE]")
    }

    /// The `error` of an error body or of an event.
    #[must_use]
    pub fn error(&self) -> Option<Value> {
        let of = |value: &Value| value.get("error").filter(|error| !error.is_null()).cloned();
        of(&self.json()).or_else(|| self.events().iter().find_map(of))
    }

    /// The usage the engine reported.
    #[must_use]
    pub fn usage(&self) -> Option<Value> {
        let of = |value: &Value| value.get("usage").filter(|usage| !usage.is_null()).cloned();
        of(&self.json()).or_else(|| self.events().iter().rev().find_map(of))
    }

    /// Prompt tokens that the engine served from its cache.
    #[must_use]
    pub fn cached_tokens(&self) -> u64 {
        let usage = self.usage().unwrap_or_default();
        usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap_or(0)
    }

    /// Tokens of the answer.
    #[must_use]
    pub fn completion_tokens(&self) -> u64 {
        let usage = self.usage().unwrap_or_default();
        usage["completion_tokens"].as_u64().unwrap_or(0)
    }

    /// What the assistant said.
    #[must_use]
    pub fn text(&self) -> String {
        let json = self.json();
        if let Some(text) = json.pointer("/choices/0/message/content").and_then(Value::as_str) {
            return text.to_owned();
        }
        let events = self.events();
        let pieces = events
            .iter()
            .filter_map(|event| event.pointer("/choices/0/delta/content"));
        pieces.filter_map(Value::as_str).collect()
    }

    /// Checks that this is a whole answer of an engine, and hands it on.
    ///
    /// # Errors
    /// It is an error, was cut, or lacks its end.
    pub fn whole(self) -> Result<Self> {
        let shown = || String::from_utf8_lossy(&self.body[..self.body.len().min(2_000)]).into_owned();
        ensure!(self.status == StatusCode::OK, "{}: {}", self.status, shown());
        ensure!(self.cut.is_none(), "cut ({:?}): {}", self.cut, shown());
        ensure!(self.error().is_none(), "an error inside: {}", shown());
        let streams = self.header("content-type").starts_with("text/event-stream");
        ensure!(
            !streams || self.is_done(),
            "a stream without its end: {}",
            shown()
        );
        ensure!(
            streams || self.json()["choices"].is_array(),
            "no completion: {}",
            shown()
        );
        Ok(self)
    }
}

fn text<'a>(map: &'a HeaderMap, name: &str) -> &'a str {
    map.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: &str, body: &str) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
        Answer {
            status: StatusCode::OK,
            headers,
            body: body.to_owned().into(),
            cut: None,
            sent: now(),
            head_after: Duration::ZERO,
            first_byte_after: None,
            ended_after: Duration::ZERO,
        }
    }

    #[test]
    fn a_stream_is_whole_with_its_mark_only() {
        let chunk = r#"data: {"choices":[{"delta":{"content":"hi"}}],"usage":null}"#;
        let usage = r#"data: {"choices":[],"usage":{"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":16}}}"#;
        let whole = answer(
            "text/event-stream",
            &format!("{chunk}\n\n{usage}\n\ndata: [DONE]\n\n"),
        )
        .whole()
        .expect("a whole stream");
        assert_eq!(
            (
                whole.text().as_str(),
                whole.completion_tokens(),
                whole.cached_tokens()
            ),
            ("hi", 3, 16)
        );
        assert!(
            answer("text/event-stream", &format!("{chunk}\n\n"))
                .whole()
                .is_err()
        );
        let error = format!("{chunk}\n\ndata: {{\"error\":{{\"message\":\"x\"}}}}\n\ndata: [DONE]\n\n");
        let failed = answer("text/event-stream", &error);
        assert_eq!(failed.error().expect("an error")["message"], "x");
        assert!(failed.whole().is_err());
    }

    #[test]
    fn a_plain_answer_is_whole_with_choices_and_uncut() {
        let body = r#"{"choices":[{"message":{"content":"hi"}}]}"#;
        assert_eq!(answer("application/json", body).text(), "hi");
        assert!(answer("application/json", body).whole().is_ok());
        assert!(answer("application/json", "{}").whole().is_err());
        let mut cut = answer("application/json", body);
        cut.cut = Some("reset".to_owned());
        assert!(cut.whole().is_err());
    }
}
