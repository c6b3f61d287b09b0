//! Which workflows have their KV cache in this pod: those it served last, so far as memory is bounded.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use tokio::time::Instant;
use weir_wire::{
    WorkflowKey,
    sidecar::{Home, Homes, MAX_HOMES},
};

/// Workflows by key, the least recently used forgotten first.
pub struct HomeMemory {
    inner: Mutex<Memory>,
    most: usize,
}

#[derive(Default)]
struct Memory {
    entries: HashMap<WorkflowKey, Entry>,
    /// Keys by the turn of their last use.
    order: BTreeMap<u64, WorkflowKey>,
    turn: u64,
}

struct Entry {
    tokens: Option<u64>,
    last: Instant,
    turn: u64,
}

impl HomeMemory {
    /// Room for [`MAX_HOMES`].
    pub fn new() -> Self {
        Self::bounded(MAX_HOMES)
    }

    fn bounded(most: usize) -> Self {
        Self {
            inner: Mutex::default(),
            most,
        }
    }

    /// A request of the workflow ended here. `tokens`: prompt plus completion, as the engine counted them; without
    /// them the last known count stays.
    pub fn record(&self, key: WorkflowKey, tokens: Option<u64>, now: Instant) {
        let mut guard = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = &mut *guard;
        memory.turn += 1;
        let turn = memory.turn;
        let entry = memory.entries.entry(key).or_insert(Entry {
            tokens: None,
            last: now,
            turn,
        });
        memory.order.remove(&entry.turn);
        *entry = Entry {
            tokens: tokens.or(entry.tokens),
            last: now,
            turn,
        };
        memory.order.insert(turn, key);
        while memory.entries.len() > self.most {
            let Some((_, oldest)) = memory.order.pop_first() else {
                break;
            };
            memory.entries.remove(&oldest);
        }
    }

    /// The engine process is a new one: its cache is empty.
    pub fn forget_all(&self) {
        let mut memory = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        memory.entries.clear();
        memory.order.clear();
    }

    /// Number of workflows.
    pub fn len(&self) -> usize {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entries
            .len()
    }

    /// No workflow.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, most recently used first.
    pub fn list(&self, now: Instant) -> Homes {
        let memory = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let known = memory
            .order
            .values()
            .rev()
            .filter_map(|key| Some((key, memory.entries.get(key)?)));
        let homes = known
            .map(|(key, entry)| Home {
                key: *key,
                tokens: entry.tokens,
                last_use_age_ms: super::millis(now.saturating_duration_since(entry.last)),
            })
            .collect();
        Homes { homes }
    }
}

impl Default for HomeMemory {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sidecar::now;

    fn key(number: u8) -> WorkflowKey {
        WorkflowKey::from_bytes([number; 16])
    }

    fn check(memory: &HomeMemory, now: Instant, expected: &[(u8, Option<u64>, u64)]) {
        let got: Vec<_> = memory
            .list(now)
            .homes
            .into_iter()
            .map(|home| (home.key, home.tokens, home.last_use_age_ms))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(number, tokens, age)| (key(*number), *tokens, *age))
            .collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn the_least_recently_used_is_forgotten_and_tokens_stay_known() {
        let start = now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let memory = HomeMemory::bounded(3);
        memory.record(key(1), Some(100), at(0));
        memory.record(key(2), None, at(1));
        memory.record(key(3), Some(300), at(2));
        memory.record(key(1), None, at(3));
        check(
            &memory,
            at(4),
            &[(1, Some(100), 1000), (3, Some(300), 2000), (2, None, 3000)],
        );
        memory.record(key(4), Some(4), at(5));
        check(
            &memory,
            at(5),
            &[(4, Some(4), 0), (1, Some(100), 2000), (3, Some(300), 3000)],
        );
        memory.record(key(1), Some(150), at(6));
        memory.record(key(5), Some(5), at(7));
        check(
            &memory,
            at(7),
            &[(5, Some(5), 0), (1, Some(150), 1000), (4, Some(4), 2000)],
        );
        memory.forget_all();
        check(&memory, at(8), &[]);
        assert!(memory.is_empty());
    }
}
