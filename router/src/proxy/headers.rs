//! Which headers cross the router. Each side is framed by itself: what describes one connection stays on it.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Headers of one connection (RFC 9110 §7.6.1), never forwarded in either direction.
const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Further names without a constant: `Keep-Alive`, `Proxy-*` and the HTTP/2 upgrade settings.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name)
        || matches!(name.as_str(), "keep-alive" | "http2-settings")
        || name.as_str().starts_with("proxy-")
}

/// Request headers that the router sets itself or that would keep it from reading the answer.
///
/// `Accept-Encoding` goes because an encoded answer could not be observed; `Expect` because the body is already here.
fn is_set_by_us(name: &HeaderName) -> bool {
    *name == header::HOST
        || *name == header::CONTENT_LENGTH
        || *name == header::EXPECT
        || *name == header::ACCEPT_ENCODING
        || name.as_str() == weir_wire::headers::REQUEST_ID
        || name.as_str().starts_with("x-weir-")
        || is_engine_priority(name)
}

/// Headers by which engines let a client choose its place in their own queue: vLLM's and SGLang's. Order is decided in
/// the pool's queue, where what a client may ask for has a ceiling.
fn is_engine_priority(name: &HeaderName) -> bool {
    matches!(name.as_str(), "x-vllm-priority" | "x-override-priority")
}

/// A client asks for a place in the engine's own queue.
#[must_use]
pub fn ask_engine_priority(headers: &HeaderMap) -> bool {
    headers.keys().any(is_engine_priority)
}

/// Names that a `Connection` header declares to be of this connection only.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|name| !name.eq_ignore_ascii_case(b"close") && !name.eq_ignore_ascii_case(b"keep-alive"))
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .collect()
}

/// The request headers to send upstream. `X-Weir-*` and `X-Request-Id` are the caller's to add.
pub fn for_upstream(from: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    let named = named_by_connection(from);
    from.iter().filter(move |(name, _)| {
        !is_hop_by_hop(name) && !is_set_by_us(name) && !named.iter().any(|other| other == name)
    })
}

/// Leaves of an answer's headers what the client is to see; `Content-Length` stays, because the body is passed on
/// unchanged.
pub fn for_client(headers: &mut HeaderMap) {
    for name in named_by_connection(headers) {
        headers.remove(name);
    }
    let strange: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_hop_by_hop(name) || name.as_str().starts_with("x-weir-"))
        .cloned()
        .collect();
    for name in strange {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn connection_headers_and_those_they_name_stay_behind() {
        let received = map(&[
            ("connection", "close, X-Secret , te"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "x"),
            ("expect", "100-continue"),
            ("host", "a"),
            ("content-length", "3"),
            ("accept-encoding", "gzip"),
            ("x-request-id", "r"),
            ("x-weir-workflow-key", "forged"),
            ("x-vllm-priority", "-1"),
            ("x-override-priority", "99"),
            ("authorization", "Bearer t"),
            ("x-unknown", "kept"),
        ]);
        let sent: Vec<_> = for_upstream(&received).map(|(name, _)| name.as_str()).collect();
        assert_eq!(sent, ["authorization", "x-unknown"]);
    }

    #[test]
    fn answers_keep_their_length_and_repeated_headers() {
        let mut sent = map(&[
            ("content-length", "3"),
            ("set-cookie", "a"),
            ("set-cookie", "b"),
            ("connection", "keep-alive"),
            ("x-weir-endpoint", "forged"),
        ]);
        for_client(&mut sent);
        assert_eq!(sent.get_all("set-cookie").iter().count(), 2);
        assert_eq!(sent[header::CONTENT_LENGTH], "3");
        assert_eq!(sent.len(), 3);
    }
}
