//! What Weir's cluster tests, demo and benchmarks share: a Kubernetes to run on, the installed operator, a namespace
//! per test, waits on conditions.

use tokio::signal::unix::{SignalKind, signal};

pub mod chart;
pub mod client;
pub mod cluster;
mod condition;
pub mod docs;
pub mod installation;
pub mod ledger;
pub mod manifest;
mod namespace;
pub mod operator;
pub mod pool;
pub mod processes;
mod reach;
pub mod release;
mod session;
mod state_dump;

pub use condition::{Seen, await_condition};
pub use manifest::{accepts, rejects};
pub use namespace::{TestNamespace, look_again, others_ended, with_temp_namespace};
pub use reach::{Reach, forward, reach, reach_pod};
pub use session::{cluster, install, toolbox};
pub use state_dump::dump as state;

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
