//! Tasks for agents that run beside their parent.

use std::collections::HashMap;

use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::clock;

/// Agents that an agent has started.
#[derive(Default)]
pub(crate) struct Children {
    tasks: JoinSet<(usize, Instant)>,
    started: usize,
    ended: HashMap<usize, Instant>,
}

impl Children {
    pub(crate) fn start(&mut self, agent: impl Future<Output = ()> + Send + 'static) {
        let index = self.started;
        self.started += 1;
        self.tasks.spawn(async move {
            agent.await;
            (index, clock::now())
        });
    }

    /// Waits for some of them; the end of the last, `None` for none.
    pub(crate) async fn ended(&mut self, indices: &[usize]) -> Option<Instant> {
        while !indices.iter().all(|index| self.ended.contains_key(index)) {
            let Some(task) = self.tasks.join_next().await else {
                break;
            };
            self.ended.extend(propagate(task));
        }
        indices
            .iter()
            .filter_map(|index| self.ended.get(index).copied())
            .max()
    }

    pub(crate) async fn all_ended(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            propagate(ended);
        }
    }
}

/// A panic in a task is one of the replay: counts that miss a request must not look complete.
pub(crate) fn propagate<T>(ended: Result<T, JoinError>) -> Option<T> {
    match ended.map_err(JoinError::try_into_panic) {
        Ok(value) => Some(value),
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // Aborted: only when the runtime shuts down.
        Err(Err(_)) => None,
    }
}
