//! The first agent request, sent by hand so that its times are known to the millisecond.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::Instant};
use weir_e2e::cluster::progress::now;
use weir_wire::headers as weir;

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) sent: Instant,
    pub(crate) first_byte: Option<Instant>,
    /// The stream ended as it should.
    pub(crate) whole: bool,
    pub(crate) held: bool,
    pub(crate) queued_ms: Option<u64>,
    pub(crate) endpoint: Option<String>,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
}

/// Sends one streamed chat request to the gateway at `url` and reads the answer to its end.
pub(crate) async fn ask(url: &str, model: &str) -> Result<Answer> {
    let authority = url
        .strip_prefix("http://")
        .context("a gateway has an http:// URL")?;
    let stream = TcpStream::connect(authority)
        .await
        .with_context(|| format!("connecting to {authority}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let body = serde_json::json!({
        "model": model,
        "messages": [{"role": "user", "content": "List the files that the failing test touches."}],
        "max_tokens": 48,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let request = Request::post("/v1/chat/completions")
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(weir::WORKFLOW_ID, "demo-first")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let sent = now();
    let exchange = async {
        let response = sender.send_request(request).await.context("no answer")?;
        let (head, mut body) = response.into_parts();
        let mut first_byte = None;
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.context("the answer breaks off")?.into_data() else {
                continue;
            };
            first_byte.get_or_insert_with(now);
            text.extend_from_slice(&data);
            if text.len() > 1 << 20 {
                bail!("the answer is longer than 1 MiB");
            }
        }
        Ok(read(
            head.status.as_u16(),
            &head.headers,
            &text,
            (sent, first_byte),
        ))
    };
    tokio::select! {
        answer = exchange => answer,
        Err(error) = connection => Err(error).context("the connection to the gateway"),
    }
}

fn read(
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    (sent, first_byte): (Instant, Option<Instant>),
) -> Answer {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let body = String::from_utf8_lossy(body);
    let events = body
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .map(str::trim);
    let usage = events
        .clone()
        .filter_map(|event| serde_json::from_str::<serde_json::Value>(event).ok())
        .find_map(|event| event.get("usage").filter(|usage| usage.is_object()).cloned())
        .unwrap_or_default();
    let count = |path: &str| {
        usage
            .pointer(path)
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0)
    };
    Answer {
        status,
        sent,
        first_byte,
        whole: events.clone().any(|event| event == "[DONE]") && !body.contains("event: error"),
        held: text(weir::HELD).as_deref() == Some("1"),
        queued_ms: text(weir::QUEUED_MS).and_then(|value| value.parse().ok()),
        endpoint: text(weir::ENDPOINT),
        prompt_tokens: count("/prompt_tokens"),
        cached_tokens: count("/prompt_tokens_details/cached_tokens"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_usage_and_end_are_read() {
        let mut headers = HeaderMap::new();
        headers.insert(weir::HELD, "1".parse().expect("a value"));
        headers.insert(weir::QUEUED_MS, "2100".parse().expect("a value"));
        let body = "data: {\"choices\":[],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":20,\
                    \"prompt_tokens_details\":{\"cached_tokens\":16}}}\n\ndata: [DONE]\n\n";
        let times = || (now(), None);
        let answer = read(200, &headers, body.as_bytes(), times());
        assert!(answer.held && answer.whole);
        assert_eq!(
            (answer.prompt_tokens, answer.cached_tokens, answer.queued_ms),
            (20, 16, Some(2100))
        );
        let cut = read(200, &headers, b"data: {}\n\n", times());
        assert!(!cut.whole);
    }
}
