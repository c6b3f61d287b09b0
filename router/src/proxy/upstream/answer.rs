//! The head of an answer, read strictly: status, headers, and how its body is framed (RFC 9112 §6.3).

use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header, response};

use super::chunked::Chunked;

/// Headers of an answer at most.
const MAX_HEADERS: usize = 256;
/// Bytes of an answer's head at most.
pub(super) const MAX_HEAD_BYTES: usize = 64 << 10;

/// What an endpoint sent is not HTTP as Weir accepts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub(super) &'static str);

/// How the body's end is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes are to come.
    Length(u64),
    /// Chunks.
    Chunked(Chunked),
    /// The connection's end is the body's.
    Close,
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    /// Status and headers, as sent.
    pub parts: response::Parts,
    /// How the body's end is known.
    pub framing: Framing,
    /// The connection may carry another request afterwards.
    pub keeps: bool,
}

/// Takes a head off the front of `buffer`; `None` while it is incomplete. Interim answers (1xx) are passed over.
///
/// # Errors
/// [`Malformed`].
pub fn take_head(buffer: &mut BytesMut) -> Result<Option<Head>, Malformed> {
    loop {
        let Some(head) = take_any(buffer)? else {
            return Ok(None);
        };
        match head.parts.status.as_u16() {
            101 => return Err(Malformed("it switches protocols, which nobody asked for")),
            100..=199 => {}
            _ => return Ok(Some(head)),
        }
    }
}

fn take_any(buffer: &mut BytesMut) -> Result<Option<Head>, Malformed> {
    let mut room = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut raw = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut raw, buffer, &mut room)
        .map_err(|_| Malformed("its head is malformed or has too many headers"))?;
    let httparse::Status::Complete(length) = parsed else {
        return if buffer.len() > MAX_HEAD_BYTES {
            Err(Malformed("its head is too long"))
        } else {
            Ok(None)
        };
    };
    let status = raw.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(Malformed("its status is not one"))?;
    let is_old = raw.version != Some(1);
    let headers = owned(raw.headers)?;
    buffer.advance(length);
    Head::new(status, headers, is_old).map(Some)
}

/// The headers, all values in one allocation of their own.
fn owned(raw: &[httparse::Header<'_>]) -> Result<HeaderMap, Malformed> {
    let mut text = Vec::with_capacity(raw.iter().map(|header| header.value.len()).sum());
    for header in raw {
        text.extend_from_slice(header.value);
    }
    let mut text = Bytes::from(text);
    // Room for what Weir adds of its own.
    let mut headers = HeaderMap::with_capacity(raw.len() + 8);
    for header in raw {
        let name = HeaderName::from_bytes(header.name.as_bytes());
        let value = HeaderValue::from_maybe_shared(text.split_to(header.value.len()));
        match (name, value) {
            (Ok(name), Ok(value)) => headers.append(name, value),
            _ => return Err(Malformed("a header is malformed")),
        };
    }
    Ok(headers)
}

impl Head {
    fn new(status: StatusCode, mut headers: HeaderMap, is_old: bool) -> Result<Self, Malformed> {
        let named = |wanted: &str| {
            headers
                .get_all(header::CONNECTION)
                .iter()
                .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
                .any(|token| token.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
        };
        let mut keeps = if is_old {
            named("keep-alive")
        } else {
            !named("close")
        };
        let framing = if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            Framing::Length(0)
        } else if is_chunked(&headers, is_old)? {
            // Given both, the length is a lie (RFC 9112 §6.3); nobody after us may believe it.
            keeps &= headers.remove(header::CONTENT_LENGTH).is_none();
            Framing::Chunked(Chunked::START)
        } else {
            match length(&headers)? {
                Some(length) => Framing::Length(length),
                None => Framing::Close,
            }
        };
        keeps &= framing != Framing::Close;
        let mut parts = Response::new(()).into_parts().0;
        parts.status = status;
        parts.headers = headers;
        Ok(Self {
            parts,
            framing,
            keeps,
        })
    }
}

fn is_chunked(headers: &HeaderMap, is_old: bool) -> Result<bool, Malformed> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(coding), None) if !is_old && coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(true),
        _ => Err(Malformed("its transfer encoding is not plain `chunked`")),
    }
}

fn length(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else {
        return Ok(None);
    };
    let is_number = !first.is_empty() && first.as_bytes().iter().all(u8::is_ascii_digit);
    let number = first.to_str().ok().and_then(|text| text.parse().ok());
    match number {
        Some(number) if is_number && lengths.all(|other| other == first) => Ok(Some(number)),
        _ => Err(Malformed("its content length is not one number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(text: &str) -> (Result<Option<Head>, Malformed>, String) {
        let mut buffer = BytesMut::from(text.as_bytes());
        let head = take_head(&mut buffer);
        (head, String::from_utf8(buffer.to_vec()).unwrap())
    }

    #[test]
    fn framing_and_reuse_follow_from_the_head() {
        let check = |text: &str, framing: Framing, keeps: bool| {
            let (head, rest) = take(&format!("{text}\r\n\r\nrest"));
            let head = head.unwrap().unwrap();
            assert_eq!((head.framing, head.keeps), (framing, keeps), "{text:?}");
            assert_eq!(rest, "rest", "{text:?}");
        };
        let chunked = Framing::Chunked(Chunked::START);
        check("HTTP/1.1 200 OK\r\ncontent-length: 3", Framing::Length(3), true);
        check(
            "HTTP/1.1 200\r\nContent-Length: 3\r\nContent-Length: 3",
            Framing::Length(3),
            true,
        );
        check(
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: x, Close",
            Framing::Length(3),
            false,
        );
        check("HTTP/1.0 200 OK\r\ncontent-length: 3", Framing::Length(3), false);
        check(
            "HTTP/1.0 200 OK\r\ncontent-length: 3\r\nconnection: keep-alive",
            Framing::Length(3),
            true,
        );
        check("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked", chunked, true);
        check(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3",
            chunked,
            false,
        );
        check("HTTP/1.1 200 OK", Framing::Close, false);
        check(
            "HTTP/1.1 204 No Content\r\ncontent-length: 3",
            Framing::Length(0),
            true,
        );
        check(
            "HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0",
            Framing::Length(0),
            true,
        );
    }

    #[test]
    fn a_length_beside_chunks_is_not_passed_on() {
        let (head, _) = take("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n");
        assert!(
            !head
                .unwrap()
                .unwrap()
                .parts
                .headers
                .contains_key(header::CONTENT_LENGTH)
        );
    }

    #[test]
    fn an_incomplete_head_stays_and_a_bad_one_is_refused() {
        let (head, rest) = take("HTTP/1.1 200 OK\r\nserver: x\r\n");
        assert!(head.unwrap().is_none());
        assert_eq!(rest, "HTTP/1.1 200 OK\r\nserver: x\r\n");
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        let long = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(MAX_HEAD_BYTES));
        for text in [
            "SSH-2.0-OpenSSH_9\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 3, 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
            &many,
            &long,
        ] {
            assert!(take(text).0.is_err(), "{:?}", &text[..40.min(text.len())]);
        }
    }
}
