//! One event stream: newline-delimited JSON, read until it breaks, ends or stays silent.

use std::{net::SocketAddr, time::Duration};

use bytes::{Buf, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use weir_wire::control::{EVENTS, Event, HEARTBEAT_MS};

use super::exchange::{self, HttpError, MAX_ANSWER};

/// Silence after which a stream counts as dead: three heartbeats.
pub const SILENCE: Duration = Duration::from_millis(3 * HEARTBEAT_MS);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It never began.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The other side ended it.
    #[error("the gateway closed the stream")]
    Ended,
    /// The connection broke.
    #[error("the stream broke: {0}")]
    Broken(#[source] hyper::Error),
    /// Nothing came for three heartbeats.
    #[error("no heartbeat for {SILENCE:?}")]
    Silent,
    /// A line is longer than [`MAX_ANSWER`].
    #[error("a line is longer than {MAX_ANSWER} bytes")]
    TooLong,
    /// A line is not an event.
    #[error("not an event: {0}")]
    Form(#[source] serde_json::Error),
}

/// Cuts a byte stream into lines.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: BytesMut,
    searched: usize,
}

impl Lines {
    /// Adds bytes and takes all complete lines as events. Empty lines are skipped.
    ///
    /// # Errors
    /// [`StreamError::TooLong`] or [`StreamError::Form`]; the stream cannot be trusted after either.
    pub fn push(&mut self, bytes: &[u8], mut event: impl FnMut(Event)) -> Result<(), StreamError> {
        self.buffer.extend_from_slice(bytes);
        while let Some(end) = self.buffer[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let line = self.buffer.split_to(self.searched + end);
            self.buffer.advance(1);
            self.searched = 0;
            if !line.iter().all(u8::is_ascii_whitespace) {
                event(serde_json::from_slice(&line).map_err(StreamError::Form)?);
            }
        }
        self.searched = self.buffer.len();
        if self.searched > MAX_ANSWER {
            Err(StreamError::TooLong)
        } else {
            Ok(())
        }
    }
}

/// Reads one stream and gives every event to `hear`; returns why it ended.
pub async fn read(address: SocketAddr, token: &str, mut hear: impl FnMut(Event)) -> StreamError {
    let open = async {
        exchange::send(
            address,
            exchange::request(Method::GET, address, EVENTS, token, Vec::new())?,
        )
        .await
    };
    let mut answer = match tokio::time::timeout(SILENCE, open).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return error.into(),
        Err(_) => return StreamError::Silent,
    };
    let mut lines = Lines::default();
    loop {
        match tokio::time::timeout(SILENCE, answer.response.frame()).await {
            Err(_) => return StreamError::Silent,
            Ok(None) => return StreamError::Ended,
            Ok(Some(Err(error))) => return StreamError::Broken(error),
            Ok(Some(Ok(frame))) => {
                if let Some(bytes) = frame.data_ref()
                    && let Err(error) = lines.push(bytes, &mut hear)
                {
                    return error;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(chunks: &[&[u8]]) -> Result<Vec<Event>, StreamError> {
        let mut lines = Lines::default();
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
            Err(StreamError::Form(_))
        ));
        let long = vec![b'x'; MAX_ANSWER + 1];
        assert!(matches!(events(&[&long]), Err(StreamError::TooLong)));
    }
}
