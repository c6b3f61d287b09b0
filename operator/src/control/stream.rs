//! One event stream: newline-delimited JSON, read until it breaks, ends or stays silent.

use std::{net::SocketAddr, time::Duration};

use http::Method;
use http_body_util::BodyExt;
use weir_wire::{
    control::{EVENTS, Event, HEARTBEAT_MS},
    lines::{Lines, LinesError},
};

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
    /// What came is no line of events.
    #[error(transparent)]
    Lines(#[from] LinesError),
}

impl StreamError {
    /// The token was refused.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Http(HttpError::Status(status)) if matches!(status.as_u16(), 401 | 403))
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
    let mut lines = Lines::new(MAX_ANSWER);
    loop {
        match tokio::time::timeout(SILENCE, answer.response.frame()).await {
            Err(_) => return StreamError::Silent,
            Ok(None) => return StreamError::Ended,
            Ok(Some(Err(error))) => return StreamError::Broken(error),
            Ok(Some(Ok(frame))) => {
                if let Some(bytes) = frame.data_ref()
                    && let Err(error) = lines.push(bytes, &mut hear)
                {
                    return error.into();
                }
            }
        }
    }
}
