//! Newline-delimited JSON, cut from a byte stream: the form of the control stream.

use bytes::{Buf, BytesMut};

use crate::control::Event;

/// Why a stream of lines cannot be trusted any more.
#[derive(Debug, thiserror::Error)]
pub enum LinesError {
    /// A line is longer than its bound, which holds before its end is seen.
    #[error("a line is longer than {0} bytes")]
    TooLong(usize),
    /// A line is not an event.
    #[error("not an event: {0}")]
    Form(#[from] serde_json::Error),
}

/// Cuts a byte stream into events.
#[derive(Debug)]
pub struct Lines {
    buffer: BytesMut,
    searched: usize,
    max_bytes: usize,
}

impl Lines {
    /// Lines of at most `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            searched: 0,
            max_bytes,
        }
    }

    /// Adds bytes and takes all complete lines as events. Empty lines are skipped.
    ///
    /// # Errors
    /// A line is too long or no event; the stream cannot be trusted after either.
    pub fn push(&mut self, bytes: &[u8], mut event: impl FnMut(Event)) -> Result<(), LinesError> {
        self.buffer.extend_from_slice(bytes);
        while let Some(end) = self.buffer[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let line = self.buffer.split_to(self.searched + end);
            self.buffer.advance(1);
            self.searched = 0;
            if line.len() > self.max_bytes {
                return Err(LinesError::TooLong(self.max_bytes));
            }
            if !line.iter().all(u8::is_ascii_whitespace) {
                event(serde_json::from_slice(&line)?);
            }
        }
        self.searched = self.buffer.len();
        if self.searched > self.max_bytes {
            Err(LinesError::TooLong(self.max_bytes))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 100;

    fn events(chunks: &[&[u8]]) -> Result<Vec<Event>, LinesError> {
        let mut lines = Lines::new(MAX);
        let mut events = Vec::new();
        for chunk in chunks {
            lines.push(chunk, |event| events.push(event))?;
        }
        Ok(events)
    }

    #[test]
    fn lines_are_found_however_they_are_cut() {
        let text =
            b"{\"type\":\"heartbeat\"}\n\n{\"type\":\"poolRemoved\",\"pool\":\"a\"}\n{\"type\":\"heart";
        let expected = vec![Event::Heartbeat, Event::PoolRemoved { pool: "a".to_owned() }];
        for size in 1..text.len() {
            let chunks: Vec<&[u8]> = text.chunks(size).collect();
            assert_eq!(events(&chunks).unwrap(), expected, "chunks of {size}");
        }
    }

    #[test]
    fn what_is_no_event_ends_the_stream() {
        assert!(matches!(
            events(&[b"{\"type\":\"other\"}\n"]),
            Err(LinesError::Form(_))
        ));
    }

    #[test]
    fn long_lines_end_the_stream_with_and_without_their_end() {
        let long = [b'x'; MAX + 1];
        assert!(matches!(events(&[&long]), Err(LinesError::TooLong(MAX))));
        let ended = [&long[..], b"\n"].concat();
        assert!(matches!(events(&[&ended]), Err(LinesError::TooLong(MAX))));
    }
}
