//! Undoes the chunked framing of an answer's body (RFC 9112 §7.1).

use bytes::{Buf as _, BytesMut};

use super::answer::Malformed;

/// Longest chunk extension, and longest trailer section, that is passed over.
const MAX_ASIDE_BYTES: u32 = 16 << 10;
/// Most hexadecimal digits of a chunk's size.
const MAX_SIZE_DIGITS: u32 = 15;

/// Where in the framing the next byte is. Bytes may come in pieces of any length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunked(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the size of a chunk.
    Size { size: u64, digits: u32 },
    /// After the size, before the end of its line.
    Extension { size: u64, seen: u32 },
    /// Before the line feed after a size.
    SizeEnd { size: u64 },
    /// In a chunk, of which so many bytes are to come.
    Data(u64),
    /// Before the carriage return after a chunk.
    DataEnd,
    /// Before the line feed after a chunk.
    DataEndFeed,
    /// In the trailers: bytes seen, and bytes of the current line.
    Trailer { seen: u32, line: u32 },
    /// Before the line feed that ends the body.
    LastFeed,
    /// After the body.
    Done,
}

impl Chunked {
    /// Before the first chunk.
    pub const START: Self = Self(State::Size { size: 0, digits: 0 });

    /// The body is complete.
    pub fn is_done(self) -> bool {
        self.0 == State::Done
    }

    /// Takes what there is out of `from` and appends the body's bytes to `to`, until `from` is empty or the body
    /// complete.
    ///
    /// # Errors
    /// What came is not chunked framing.
    pub fn decode(&mut self, from: &mut BytesMut, to: &mut Vec<u8>) -> Result<(), Malformed> {
        while !self.is_done() && !from.is_empty() {
            if let State::Data(left) = self.0 {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(from.len());
                to.extend_from_slice(&from[..here]);
                from.advance(here);
                let left = left - here as u64;
                self.0 = if left == 0 {
                    State::DataEnd
                } else {
                    State::Data(left)
                };
            } else {
                let byte = from.get_u8();
                self.0 = self.0.after(byte)?;
            }
        }
        Ok(())
    }
}

impl State {
    /// The state after one byte that is not a chunk's.
    fn after(self, byte: u8) -> Result<Self, Malformed> {
        let next = match (self, byte) {
            (Self::Size { size, digits }, _) if byte.is_ascii_hexdigit() && digits < MAX_SIZE_DIGITS => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                Self::Size {
                    size: size * 16 + u64::from(digit),
                    digits: digits + 1,
                }
            }
            (Self::Size { size, digits: 1.. }, b'\r') => Self::SizeEnd { size },
            (Self::Size { size, digits: 1.. }, b';' | b' ' | b'\t') => Self::Extension { size, seen: 0 },
            (Self::Extension { size, .. }, b'\r') => Self::SizeEnd { size },
            (Self::Extension { size, seen }, _) if byte != b'\n' && seen < MAX_ASIDE_BYTES => {
                Self::Extension { size, seen: seen + 1 }
            }
            (Self::SizeEnd { size: 0 }, b'\n') => Self::Trailer { seen: 0, line: 0 },
            (Self::SizeEnd { size }, b'\n') => Self::Data(size),
            (Self::DataEnd, b'\r') => Self::DataEndFeed,
            (Self::DataEndFeed, b'\n') => Self::Size { size: 0, digits: 0 },
            (Self::Trailer { line: 0, .. }, b'\r') => Self::LastFeed,
            (Self::Trailer { seen, .. }, b'\n') if seen > 0 => Self::Trailer { seen, line: 0 },
            (Self::Trailer { seen, line }, _) if byte != b'\n' && seen < MAX_ASIDE_BYTES => Self::Trailer {
                seen: seen + 1,
                line: line + 1,
            },
            (Self::LastFeed, b'\n') => Self::Done,
            _ => return Err(Malformed("a chunk of its body is framed wrongly")),
        };
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, bool, usize), Malformed> {
        let (mut chunked, mut body, mut buffer) = (Chunked::START, Vec::new(), BytesMut::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            chunked.decode(&mut buffer, &mut body)?;
        }
        Ok((body, chunked.is_done(), buffer.len()))
    }

    #[test]
    fn bodies_are_unframed() {
        let check = |text: &str, body: &str, done: bool, left: usize| {
            let expected = (body.as_bytes().to_vec(), done, left);
            assert_eq!(decode(&[text.as_bytes()]), Ok(expected), "{text:?}");
        };
        check("3\r\nabc\r\n0\r\n\r\n", "abc", true, 0);
        check("A;name=\"v\"\r\n0123456789\r\n0\r\n\r\n", "0123456789", true, 0);
        check("1 \r\na\r\n00\r\nX-T: 1\r\nY: 2\r\n\r\n", "a", true, 0);
        check("1\r\na\r\n0\r\n\r\nHTTP/1.1 200 OK", "a", true, 15);
        check("5\r\nabc", "abc", false, 0);
        check("", "", false, 0);
    }

    #[test]
    fn bad_framing_is_found() {
        for text in [
            "\r\n",
            "g\r\n",
            "1\na",
            "1\r\nab",
            "1\r\na\n",
            ";x\r\n",
            "-1\r\n",
            "1234567890abcdef\r\n",
            "1;a\nb",
            "0\r\n\n",
            "0\r\n\rx",
        ] {
            assert!(decode(&[text.as_bytes()]).is_err(), "{text:?}");
        }
        let endless = |start: &str| format!("{start}{}", "x".repeat(20 << 10));
        assert!(decode(&[endless("1;").as_bytes()]).is_err());
        assert!(decode(&[endless("0\r\n").as_bytes()]).is_err());
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_pieces_end(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in prop::collection::vec(0_usize..300, 0..8),
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                text.extend_from_slice(chunk);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\n");
            let mut ends: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            ends.push(text.len());
            ends.sort_unstable();
            let mut start = 0;
            let pieces: Vec<&[u8]> = ends.iter().map(|end| {
                let piece = &text[start..*end];
                start = *end;
                piece
            }).collect();
            prop_assert_eq!(decode(&pieces), Ok((chunks.concat(), true, 0)));
        }
    }
}
