//! What the engine did, request by request: tests compare it with what clients saw.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

/// Most entries kept; older ones remain in the totals only.
const CAPACITY: usize = 100_000;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Still in the engine.
    Running,
    /// All choices said all they had to say, to their own end or to `max_tokens`.
    Finished,
    /// The client left first.
    Aborted,
    /// Ended by an order (sleep, pause, `/abort_requests`) with finish reason `abort`.
    Cancelled,
    /// The engine died.
    Failed,
    /// Not admitted: limits, drain, death. Never started.
    Rejected,
}

/// One request that reached the engine. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Number in the ledger, from 0, without gaps until the next reset.
    pub sequence: u64,
    /// The id in the answer (`chatcmpl-…`).
    pub request_id: String,
    /// Path of the endpoint.
    pub path: &'static str,
    /// Model as the client named it; empty = none.
    pub model: String,
    /// Whether the answer streams.
    pub stream: bool,
    /// Headers that name a request, workflow, agent or session.
    pub headers: BTreeMap<String, String>,
    /// Prompt tokens, over all prompts.
    pub prompt_tokens: u64,
    /// Of these, found in the prefix cache; absent until the first choice ran.
    pub cached_tokens: Option<u64>,
    /// Tokens produced until the end, over all choices.
    pub output_tokens: u64,
    /// When the front end had the whole request.
    pub received_ms: u64,
    /// When the first token existed.
    pub first_token_ms: Option<u64>,
    /// When the last choice ended.
    pub ended_ms: Option<u64>,
    /// How.
    pub outcome: Outcome,
}

/// Sums over all entries since the last reset, forgotten ones included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Requests the engine took.
    pub started: u64,
    /// Of these, [`Outcome::Finished`].
    pub finished: u64,
    /// Of these, [`Outcome::Aborted`].
    pub aborted: u64,
    /// Of these, [`Outcome::Cancelled`].
    pub cancelled: u64,
    /// Of these, [`Outcome::Failed`].
    pub failed: u64,
    /// Requests not taken; not among `started`.
    pub rejected: u64,
    /// Prompt tokens of ended requests.
    pub prompt_tokens: u64,
    /// Cached prompt tokens of ended requests.
    pub cached_tokens: u64,
    /// Output tokens of ended requests.
    pub output_tokens: u64,
}

/// A copy of the ledger, oldest entry first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// Sums.
    pub totals: Totals,
    /// Present entries.
    pub entries: Vec<Entry>,
}

#[derive(Debug, Default)]
struct Book {
    totals: Totals,
    entries: VecDeque<Entry>,
    first: u64,
}

/// The shared book. Writers hold the lock for one entry at a time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Book>>);

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a new entry and returns its number.
    pub(crate) fn open(&self, mut entry: Entry) -> u64 {
        let mut book = self.book();
        let sequence = book.first + book.entries.len() as u64;
        entry.sequence = sequence;
        match entry.outcome {
            Outcome::Rejected => book.totals.rejected += 1,
            _ => book.totals.started += 1,
        }
        if book.entries.len() == CAPACITY {
            book.entries.pop_front();
            book.first += 1;
        }
        book.entries.push_back(entry);
        sequence
    }

    /// Notes the first token.
    pub(crate) fn first_token(&self, sequence: u64, cached_tokens: u64, at_ms: u64) {
        if let Some(entry) = self.book().entry(sequence) {
            entry.cached_tokens = Some(cached_tokens);
            entry.first_token_ms = Some(at_ms);
        }
    }

    /// Notes the end of a request.
    pub(crate) fn close(&self, sequence: u64, end: &End) {
        let mut book = self.book();
        let totals = &mut book.totals;
        match end.outcome {
            Outcome::Finished => totals.finished += 1,
            Outcome::Aborted => totals.aborted += 1,
            Outcome::Cancelled => totals.cancelled += 1,
            Outcome::Failed => totals.failed += 1,
            Outcome::Running | Outcome::Rejected => {}
        }
        totals.prompt_tokens += end.prompt_tokens;
        totals.cached_tokens += end.cached_tokens;
        totals.output_tokens += end.output_tokens;
        if let Some(entry) = book.entry(sequence) {
            entry.outcome = end.outcome;
            entry.output_tokens = end.output_tokens;
            entry.ended_ms = Some(end.at_ms);
        }
    }

    /// The newest `limit` entries from number `from` on.
    pub(crate) fn snapshot(&self, from: u64, limit: usize) -> Snapshot {
        let book = self.book();
        let skip = usize::try_from(from.saturating_sub(book.first)).unwrap_or(usize::MAX);
        let skip = skip.max(book.entries.len().saturating_sub(limit));
        Snapshot {
            totals: book.totals,
            entries: book.entries.iter().skip(skip).cloned().collect(),
        }
    }

    /// Sums alone.
    pub(crate) fn totals(&self) -> Totals {
        self.book().totals
    }

    /// Forgets everything; requests in flight are not entered again.
    pub(crate) fn reset(&self) {
        let mut book = self.book();
        book.first += book.entries.len() as u64;
        book.entries.clear();
        book.totals = Totals::default();
    }
}

/// The end of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) outcome: Outcome,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) at_ms: u64,
}

impl Book {
    fn entry(&mut self, sequence: u64) -> Option<&mut Entry> {
        let index = sequence.checked_sub(self.first)?;
        self.entries.get_mut(usize::try_from(index).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            sequence: 0,
            request_id: "chatcmpl-1".to_owned(),
            path: "/v1/chat/completions",
            model: "m".to_owned(),
            stream: false,
            headers: BTreeMap::new(),
            prompt_tokens: 10,
            cached_tokens: None,
            output_tokens: 0,
            received_ms: 1,
            first_token_ms: None,
            ended_ms: None,
            outcome: Outcome::Running,
        }
    }

    const END: End = End {
        outcome: Outcome::Finished,
        prompt_tokens: 10,
        cached_tokens: 4,
        output_tokens: 3,
        at_ms: 9,
    };

    #[test]
    fn a_request_is_followed_to_its_end() {
        let ledger = Ledger::default();
        let number = ledger.open(entry());
        ledger.first_token(number, 4, 5);
        ledger.close(number, &END);
        let snapshot = ledger.snapshot(0, 10);
        assert_eq!(snapshot.entries[0].cached_tokens, Some(4));
        assert_eq!(snapshot.entries[0].ended_ms, Some(9));
        assert_eq!(
            (
                snapshot.totals.started,
                snapshot.totals.finished,
                snapshot.totals.cached_tokens
            ),
            (1, 1, 4)
        );
    }

    #[test]
    fn the_ring_is_bounded_and_totals_remember() {
        let ledger = Ledger::default();
        for _ in 0..CAPACITY + 5 {
            let number = ledger.open(entry());
            ledger.close(number, &END);
        }
        let snapshot = ledger.snapshot(0, usize::MAX);
        assert_eq!(snapshot.entries.len(), CAPACITY);
        assert_eq!(snapshot.entries[0].sequence, 5);
        assert_eq!(snapshot.totals.finished, CAPACITY as u64 + 5);
        assert_eq!(ledger.snapshot(CAPACITY as u64 + 4, 10).entries.len(), 1);
        assert_eq!(ledger.snapshot(0, 2).entries.len(), 2);
    }

    #[test]
    fn a_reset_forgets_even_what_is_in_flight() {
        let ledger = Ledger::default();
        let number = ledger.open(entry());
        ledger.reset();
        ledger.first_token(number, 4, 5);
        assert!(ledger.snapshot(0, 10).entries.is_empty());
        assert_eq!(ledger.open(entry()), 1);
        assert_eq!(ledger.totals().started, 1);
    }
}
