//! What Weir's cluster tests, demo and benchmarks share: a Kubernetes to run on, the installed operator, a namespace
//! per test, waits on conditions.

use tokio::signal::unix::{SignalKind, signal};

pub mod cluster;

/// Returns the name of the first of SIGINT, SIGTERM and SIGHUP that arrives.
pub async fn interrupted() -> &'static str {
    let wait = async |kind| match signal(kind) {
        Ok(mut signals) => signals.recv().await,
        // Without the right to listen, the default action stays: the process ends.
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        _ = wait(SignalKind::interrupt()) => "interrupted",
        _ = wait(SignalKind::terminate()) => "asked to end",
        _ = wait(SignalKind::hangup()) => "the terminal is gone",
    }
}
