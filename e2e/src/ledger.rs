//! What a simulated engine in a pod did: its ledger, and faults ordered from it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::Value;
use weir_wire::{headers, ports};

use crate::{
    client::Caller,
    condition::{Seen, await_condition},
    namespace::TestNamespace,
    pool::PATIENCE,
    reach::forward,
};

/// A way to the engine inside a pod, past its sidecar.
#[derive(Debug)]
pub struct Engine {
    caller: Caller,
}

/// What the engine did since it started.
#[derive(Debug, Clone, Deserialize)]
pub struct Ledger {
    /// Sums.
    pub totals: Totals,
    /// Request by request, in the order in which the engine had them.
    pub entries: Vec<Entry>,
}

/// Sums over all requests.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Totals {
    /// Requests the engine took.
    pub started: u64,
    /// Of these, answered in full.
    pub finished: u64,
    /// Of these, left by their client.
    pub aborted: u64,
    /// Requests not taken.
    pub rejected: u64,
}

/// One request that reached the engine. Times are milliseconds since 1970.
#[derive(Debug, Clone, Deserialize)]
pub struct Entry {
    /// Headers that name it.
    pub headers: BTreeMap<String, String>,
    /// Tokens produced.
    pub output_tokens: u64,
    /// When the engine had it.
    pub received_ms: u64,
    /// When it ended; `None` while it runs.
    pub ended_ms: Option<u64>,
    /// `finished`, `aborted`, …
    pub outcome: String,
}

impl Engine {
    /// Opens the way. The gateway sends requests before the kubelet has told the API server that the pod runs, and
    /// only then is it forwarded to.
    ///
    /// # Errors
    /// The pod does not run within [`PATIENCE`], or cannot be reached.
    pub async fn of(space: &TestNamespace, pod: &str) -> Result<Self> {
        let pods = space.api::<Pod>();
        await_condition(&format!("pod {pod} to run"), PATIENCE, async || {
            let status = pods.get(pod).await?.status;
            let phase = status.and_then(|status| status.phase).unwrap_or_default();
            Ok(if phase == "Running" {
                Seen::Done(())
            } else {
                Seen::NotYet(phase)
            })
        })
        .await?;
        let reach = forward(&space.cluster, &space.name, &format!("pod/{pod}"), ports::VLLM).await?;
        Ok(Self {
            caller: Caller::through(reach),
        })
    }

    /// The engine's ledger.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn ledger(&self) -> Result<Ledger> {
        let answer = self.caller.get("/sim/ledger?limit=100000").await?;
        serde_json::from_slice(&answer.body).context("reading the ledger")
    }

    /// Orders a fault, as `/sim/fault` of the simulator takes it.
    ///
    /// # Errors
    /// The engine refuses it.
    pub async fn fault(&self, fault: &Value) -> Result<()> {
        let answer = self.caller.post("/sim/fault", fault.to_string()).await?;
        ensure!(
            answer.status.is_success(),
            "{}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        Ok(())
    }
}

impl Ledger {
    /// Most requests that were in the engine at once.
    #[must_use]
    pub fn most_at_once(&self) -> usize {
        let mut steps: Vec<(u64, i64)> = Vec::new();
        for entry in &self.entries {
            steps.push((entry.received_ms, 1));
            // In one millisecond an end comes before a beginning.
            steps.extend(entry.ended_ms.map(|at| (at, -1)));
        }
        steps.sort_unstable();
        let mut present = 0_i64;
        let mut most = 0_i64;
        for (_, step) in steps {
            present += step;
            most = most.max(present);
        }
        usize::try_from(most).unwrap_or(0)
    }
}

impl Entry {
    /// The id the client gave the request, without the suffix of the attempt.
    #[must_use]
    pub fn id(&self) -> &str {
        let id = self.headers.get(headers::REQUEST_ID).map_or("", String::as_str);
        id.rsplit_once('-').map_or(id, |(id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, received_ms: u64, ended_ms: Option<u64>) -> Entry {
        Entry {
            headers: BTreeMap::from([("x-request-id".to_owned(), id.to_owned())]),
            output_tokens: 1,
            received_ms,
            ended_ms,
            outcome: "finished".to_owned(),
        }
    }

    #[test]
    fn overlap_is_counted_and_attempts_are_cut_off() {
        let totals = Totals {
            started: 3,
            finished: 3,
            aborted: 0,
            rejected: 0,
        };
        let entries = vec![
            entry("r-1-0", 0, Some(10)),
            entry("r-2-1", 5, None),
            entry("r-3-2", 10, Some(12)),
        ];
        let ledger = Ledger { totals, entries };
        assert_eq!(ledger.most_at_once(), 2);
        assert_eq!(ledger.entries[1].id(), "r-2");
    }
}
