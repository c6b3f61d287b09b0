//! Which headers cross the router. Each side is framed by itself: what describes one connection stays on it.

use http::{HeaderMap, HeaderName, header};

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
}

/// Names that a `Connection` header declares to be of this connection only.
fn named_by_connection(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty() && name != "close" && name != "keep-alive")
        .collect()
}

fn filtered(from: &HeaderMap, keep: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let named = named_by_connection(from);
    let mut to = HeaderMap::with_capacity(from.len() + 4);
    for (name, value) in from {
        if !is_hop_by_hop(name) && keep(name) && !named.iter().any(|other| other == name.as_str()) {
            to.append(name.clone(), value.clone());
        }
    }
    to
}

/// The request headers to send upstream. `X-Weir-*` and `X-Request-Id` are the caller's to add.
#[must_use]
pub fn for_upstream(from: &HeaderMap) -> HeaderMap {
    filtered(from, |name| !is_set_by_us(name))
}

/// The response headers to send to the client; `Content-Length` stays, because the body is passed on unchanged.
#[must_use]
pub fn for_client(from: &HeaderMap) -> HeaderMap {
    filtered(from, |name| !name.as_str().starts_with("x-weir-"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn connection_headers_and_those_they_name_stay_behind() {
        let sent = for_upstream(&map(&[
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
            ("authorization", "Bearer t"),
            ("x-unknown", "kept"),
        ]));
        assert_eq!(sent, map(&[("authorization", "Bearer t"), ("x-unknown", "kept")]));
    }

    #[test]
    fn answers_keep_their_length_and_repeated_headers() {
        let headers = map(&[
            ("content-length", "3"),
            ("set-cookie", "a"),
            ("set-cookie", "b"),
            ("connection", "keep-alive"),
            ("x-weir-endpoint", "forged"),
        ]);
        let sent = for_client(&headers);
        assert_eq!(sent.get_all("set-cookie").iter().count(), 2);
        assert_eq!(sent[header::CONTENT_LENGTH], "3");
        assert_eq!(sent.len(), 3);
    }
}
