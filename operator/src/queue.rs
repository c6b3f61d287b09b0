//! Work by key: what is asked for many times while it waits is done once, what is asked for while it is being done is
//! done again after, one key is never worked on twice at once, and a failing key backs off without holding up others.
//!
//! kube's `Controller` does the same for one kind with its own watches; here three reconcilers share each watch.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, task::JoinSet, time::Instant};

/// First pause after a failure; doubled by each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// Longest pause after a failure.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// What became of one piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing more to do until something changes.
    Done,
    /// Look again after this time.
    Again(Duration),
    /// Look again after a pause that grows with each failure in a row.
    Failed,
}

#[derive(Debug)]
struct State<K> {
    ready: VecDeque<K>,
    queued: BTreeSet<K>,
    running: BTreeSet<K>,
    redo: BTreeSet<K>,
    later: BTreeMap<K, Instant>,
    failures: BTreeMap<K, u32>,
}

/// Keys waiting to be worked on.
#[derive(Debug)]
pub struct Queue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

impl<K: Ord + Clone> Default for Queue<K> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                queued: BTreeSet::new(),
                running: BTreeSet::new(),
                redo: BTreeSet::new(),
                later: BTreeMap::new(),
                failures: BTreeMap::new(),
            }),
            changed: Notify::new(),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the queue is a shell: its pauses are measured here"
)]
fn now() -> Instant {
    Instant::now()
}

fn backoff(failures: u32) -> Duration {
    FIRST_BACKOFF
        .saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX))
        .min(MAX_BACKOFF)
}

impl<K: Ord + Clone> State<K> {
    fn add(&mut self, key: K) {
        self.later.remove(&key);
        if self.running.contains(&key) {
            self.redo.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn add_at(&mut self, key: K, at: Instant) {
        if self.queued.contains(&key) || self.redo.contains(&key) {
            return;
        }
        self.later
            .entry(key)
            .and_modify(|earlier| *earlier = at.min(*earlier))
            .or_insert(at);
    }

    /// Moves what is due; the next key, or when the next one is due.
    fn take(&mut self, now: Instant) -> Result<K, Option<Instant>> {
        let due: Vec<K> = self
            .later
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            self.add(key);
        }
        match self.ready.pop_front() {
            Some(key) => {
                self.queued.remove(&key);
                self.running.insert(key.clone());
                Ok(key)
            }
            None => Err(self.later.values().min().copied()),
        }
    }

    fn finish(&mut self, key: &K, outcome: Outcome, now: Instant) {
        self.running.remove(key);
        let pause = match outcome {
            Outcome::Done => None,
            Outcome::Again(pause) => Some(pause),
            Outcome::Failed => {
                let failures = self.failures.entry(key.clone()).or_insert(0);
                *failures = failures.saturating_add(1);
                Some(backoff(*failures))
            }
        };
        if outcome != Outcome::Failed {
            self.failures.remove(key);
        }
        if self.redo.remove(key) && outcome != Outcome::Failed {
            self.add(key.clone());
        } else if let Some(pause) = pause {
            self.add_at(key.clone(), now + pause);
        }
    }
}

impl<K: Ord + Clone + Send + 'static> Queue<K> {
    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for work on `key` as soon as possible.
    pub fn add(&self, key: K) {
        self.state().add(key);
        self.changed.notify_one();
    }

    /// Asks for work on `key` after `pause`, or earlier when an earlier time was asked for.
    pub fn add_after(&self, key: K, pause: Duration) {
        self.state().add_at(key, now() + pause);
        self.changed.notify_one();
    }

    /// Works for ever, at most `workers` keys at once. A panicking piece of work ends this.
    pub async fn work<F, Fut>(self: Arc<Self>, workers: usize, mut reconcile: F)
    where
        F: FnMut(K) -> Fut,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        let mut running: JoinSet<(K, Outcome)> = JoinSet::new();
        loop {
            let next = if running.len() < workers {
                self.state().take(now())
            } else {
                Err(None)
            };
            let due = match next {
                Ok(key) => {
                    let work = reconcile(key.clone());
                    running.spawn(async move { (key, work.await) });
                    continue;
                }
                Err(due) => due,
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(due.unwrap_or_else(now)), if due.is_some() => {}
                Some(ended) = running.join_next() => match ended {
                    Ok((key, outcome)) => self.state().finish(&key, outcome, now()),
                    Err(error) => {
                        tracing::error!(%error, "a reconcile panicked");
                        return;
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(base: Instant, millis: u64) -> Instant {
        base + Duration::from_millis(millis)
    }

    #[test]
    fn a_key_waits_once_and_is_redone_when_asked_for_meanwhile() {
        let queue = Queue::default();
        let base = now();
        queue.state().add("a");
        queue.state().add("a");
        assert_eq!(queue.state().take(base), Ok("a"));
        assert_eq!(queue.state().take(base), Err(None));
        queue.state().add("a");
        assert_eq!(queue.state().take(base), Err(None), "never twice at once");
        queue.state().finish(&"a", Outcome::Done, base);
        assert_eq!(queue.state().take(base), Ok("a"));
        queue.state().finish(&"a", Outcome::Done, base);
        assert_eq!(queue.state().take(base), Err(None));
    }

    #[test]
    fn failures_back_off_and_success_forgets_them() {
        let queue = Queue::default();
        let base = now();
        for expected in [250, 500, 1_000] {
            queue.state().add("a");
            assert_eq!(queue.state().take(base), Ok("a"));
            queue.state().finish(&"a", Outcome::Failed, base);
            assert_eq!(queue.state().take(base), Err(Some(at(base, expected))));
        }
        assert_eq!(queue.state().take(at(base, 1_000)), Ok("a"));
        queue.state().finish(&"a", Outcome::Done, base);
        assert!(queue.state().failures.is_empty());
        assert_eq!(backoff(40), MAX_BACKOFF);
    }

    #[test]
    fn the_earlier_of_two_times_holds_and_an_ask_in_between_replaces_it() {
        let queue = Queue::default();
        let base = now();
        queue.state().add_at("a", at(base, 900));
        queue.state().add_at("a", at(base, 300));
        queue.state().add_at("a", at(base, 600));
        assert_eq!(queue.state().take(base), Err(Some(at(base, 300))));
        queue.state().add("a");
        assert_eq!(queue.state().take(base), Ok("a"));
        queue
            .state()
            .finish(&"a", Outcome::Again(Duration::from_millis(50)), base);
        assert_eq!(queue.state().take(base), Err(Some(at(base, 50))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_key_does_not_hold_up_others() {
        let queue = Arc::new(Queue::default());
        queue.add("bad");
        queue.add("good");
        let (sent, mut done) = tokio::sync::mpsc::unbounded_channel();
        let work = Arc::clone(&queue).work(1, move |key: &'static str| {
            let sent = sent.clone();
            async move {
                sent.send(key).unwrap();
                if key == "bad" {
                    Outcome::Failed
                } else {
                    Outcome::Done
                }
            }
        });
        let mut seen = Vec::new();
        tokio::select! {
            () = work => panic!("work ends only with a panic"),
            () = async { while seen.len() < 5 { seen.push(done.recv().await.unwrap()); } } => {}
        }
        assert_eq!(seen, ["bad", "good", "bad", "bad", "bad"]);
    }
}
