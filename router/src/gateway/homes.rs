//! Asks a pod which workflows it remembers, so that bindings survive a restart of the gateway without a database.

use std::{net::SocketAddr, time::Duration};

use http::{HeaderValue, StatusCode};
use weir_schedule::Workflow;
use weir_wire::sidecar::{HOMES, Homes, MAX_HOMES};

use crate::fetch::{FetchError, Get, get};

/// Longest list, bytes: [`MAX_HOMES`] entries have about 6 MB.
const MAX_BYTES: usize = 16 << 20;
/// For the whole list; routing to the pod waits for it at most this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// Workflow, tokens its last turn left there, age of its last use.
pub(super) type Remembered = Vec<(Workflow, Option<u64>, Duration)>;

/// Why a pod's homes are unknown.
#[derive(Debug, thiserror::Error)]
pub(super) enum HomesError {
    /// No answer.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Another answer.
    #[error("answered with status {0}")]
    Status(StatusCode),
    /// Not a list of homes.
    #[error("the list is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// The workflows that the sidecar at `address` (its admin port) remembers.
pub(super) async fn ask(address: SocketAddr, bearer: Option<HeaderValue>) -> Result<Remembered, HomesError> {
    let what = Get {
        address,
        target: HOMES,
        bearer,
        max_bytes: MAX_BYTES,
        within: PATIENCE,
    };
    let (status, body) = get(what).await?;
    if status != StatusCode::OK {
        return Err(HomesError::Status(status));
    }
    read(&body)
}

fn read(body: &[u8]) -> Result<Remembered, HomesError> {
    let list: Homes = serde_json::from_slice(body)?;
    let homes = list.homes.into_iter().take(MAX_HOMES).map(|home| {
        (
            Workflow(*home.key.as_bytes()),
            home.tokens,
            Duration::from_millis(home.last_use_age_ms),
        )
    });
    Ok(homes.collect())
}

#[cfg(test)]
mod tests {
    use weir_wire::{WorkflowKey, sidecar::Home};

    use super::*;

    #[test]
    fn a_sidecars_list_is_read_back() {
        let key = WorkflowKey::derive("t", "p", "w");
        let list = Homes {
            homes: vec![Home {
                key,
                tokens: Some(7),
                last_use_age_ms: 1500,
            }],
        };
        let homes = read(&serde_json::to_vec(&list).unwrap()).unwrap();
        assert_eq!(
            homes,
            [(Workflow(*key.as_bytes()), Some(7), Duration::from_millis(1500))]
        );
        assert!(matches!(read(b"{}"), Err(HomesError::Malformed(_))));
    }
}
