//! Reads a request body within its limits.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::time::timeout;
use weir_wire::config::Limits;

use crate::proxy::{
    budget::{Budget, Held},
    respond::Refusal,
};

/// Room made for a body before its first byte, at most; a length is only a promise.
const MAX_FIRST_ROOM_BYTES: u64 = 64 << 10;
/// Of a body that is refused for its length, this many times the limit is still read and dropped, so that a client
/// that writes before it reads sees the answer instead of a reset connection.
const DISCARD_FACTOR: u64 = 4;

/// A body in memory, and its share of the process's budget.
#[derive(Debug)]
pub struct Received {
    /// The body as it came.
    pub bytes: Bytes,
    /// Gives the bytes back to the budget when dropped.
    pub held: Held,
}

/// Reads the whole of `body`.
///
/// # Errors
/// `BodyTooLarge`, `BufferFull`, `BodyTimeout` (`pause` between two reads), `Invalid` for a broken or encoded body.
pub async fn read_body<B>(
    headers: &HeaderMap,
    mut body: B,
    limits: &Limits,
    pause: Duration,
    budget: &Budget,
) -> Result<Received, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    if headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|encoding| encoding != "identity")
    {
        return Err(Refusal::invalid(
            "content-encoding",
            "encoded request bodies are not supported",
        ));
    }
    let limit = limits.max_body_bytes;
    let promised = body.size_hint().lower();
    if promised > limit {
        if promised <= limit.saturating_mul(DISCARD_FACTOR) && !headers.contains_key(header::EXPECT) {
            discard(body, pause).await;
        }
        return Err(Refusal::BodyTooLarge { limit });
    }
    let mut held = budget.hold();
    let mut bytes: Vec<u8> = Vec::with_capacity(promised.min(MAX_FIRST_ROOM_BYTES) as usize);
    loop {
        let frame = match timeout(pause, body.frame()).await {
            Err(_) => return Err(Refusal::BodyTimeout),
            Ok(None) => break,
            Ok(Some(Err(_))) => {
                return Err(Refusal::malformed(
                    "the request body broke off or is framed wrongly",
                ));
            }
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if (bytes.len() + data.len()) as u64 > limit {
            return Err(Refusal::BodyTooLarge { limit });
        }
        if !held.grow(data.len() as u64, limits.max_buffered_bytes) {
            return Err(Refusal::BufferFull);
        }
        bytes.extend_from_slice(&data);
    }
    if bytes.capacity() - bytes.len() > bytes.len() / 4 {
        bytes.shrink_to_fit();
    }
    Ok(Received {
        bytes: Bytes::from(bytes),
        held,
    })
}

async fn discard<B: Body + Unpin>(mut body: B, pause: Duration) {
    while let Ok(Some(Ok(_))) = timeout(pause, body.frame()).await {}
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http_body_util::{Channel, Full};

    use super::*;

    fn limits(body: u64, buffered: u64) -> Limits {
        Limits {
            max_body_bytes: body,
            max_buffered_bytes: buffered,
            ..Limits::default()
        }
    }

    async fn read(text: &'static str, limits: &Limits, budget: &Budget) -> Result<Received, Refusal> {
        let body = Full::new(Bytes::from_static(text.as_bytes()));
        read_body(&HeaderMap::new(), body, limits, Duration::from_secs(5), budget).await
    }

    #[tokio::test]
    async fn bodies_are_bounded_alone_and_together() {
        let budget = Budget::default();
        let limits = limits(4, 6);
        let first = read("1234", &limits, &budget).await.unwrap();
        assert_eq!(first.bytes, "1234");
        assert_eq!(
            read("12345", &limits, &budget).await.unwrap_err(),
            Refusal::BodyTooLarge { limit: 4 }
        );
        assert_eq!(
            read("123", &limits, &budget).await.unwrap_err(),
            Refusal::BufferFull
        );
        assert_eq!(budget.used(), 4);
        drop(first);
        assert!(read("123", &limits, &budget).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_arriving_times_out() {
        let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(1);
        sender.send_data(Bytes::from_static(b"{")).await.unwrap();
        let read = read_body(
            &HeaderMap::new(),
            body,
            &Limits::default(),
            Duration::from_secs(5),
            &Budget::default(),
        )
        .await;
        assert_eq!(read.unwrap_err(), Refusal::BodyTimeout);
        drop(sender);
    }

    #[tokio::test]
    async fn encoded_bodies_are_named_as_such() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let body = Full::new(Bytes::from_static(b"x"));
        let refused = read_body(
            &headers,
            body,
            &Limits::default(),
            Duration::from_secs(5),
            &Budget::default(),
        )
        .await;
        assert!(
            matches!(refused.unwrap_err(), Refusal::Invalid { param: Some(param), .. } if param == "content-encoding")
        );
    }
}
