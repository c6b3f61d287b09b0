//! Hears of every request, writes its line, counts, and says from time to time how far it is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::clock;
use crate::play::Event;
use crate::record::{Outcome, Record};

const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// Different reasons and kinds of home that are told apart; they come from outside.
const MAX_LABELS: usize = 64;

/// Counts over a whole replay.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    sessions: Sessions,
    requests: Requests,
    tokens: Tokens,
    errors: BTreeMap<String, u64>,
    reasons: BTreeMap<String, u64>,
    homes: BTreeMap<String, u64>,
    /// When each workflow's first answer with a home ended.
    housed: HashMap<String, f64>,
    homes_lost: u64,
    endpoints: BTreeMap<String, u64>,
    workflows: HashSet<String>,
    agents: HashSet<(String, String)>,
    ttft_ms: Vec<f64>,
    total_ms: Vec<f64>,
    queued_ms: Vec<f64>,
    held_first_byte_ms: Vec<f64>,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(crate) struct Sessions {
    pub(crate) started: u64,
    pub(crate) ended: u64,
}

/// `sent` is the sum of the four outcomes when the replay has ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Requests {
    pub(crate) sent: u64,
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    pub(crate) lost: u64,
    pub(crate) cancelled: u64,
    pub(crate) held: u64,
    pub(crate) retries: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Tokens {
    /// As engines report them.
    pub(crate) prompt: u64,
    pub(crate) cached: u64,
    pub(crate) completion: u64,
    /// As planned from the trace, of the same requests.
    pub(crate) planned: u64,
    pub(crate) reusable: u64,
}

/// Nearest-rank quantiles in milliseconds.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    pub(crate) samples: usize,
}

#[derive(Debug, Serialize)]
pub(crate) struct Workflows {
    pub(crate) count: usize,
    pub(crate) agents: usize,
    pub(crate) turns: u64,
    /// Of the returning turns (kept, moved and lost), those served at home; `None` when there was none.
    pub(crate) home_kept_percent: Option<f64>,
    /// Turns that were given a new home although their workflow had one before: it was gone, or forgotten.
    pub(crate) home_lost: u64,
    /// Answers by `x-weir-home`.
    pub(crate) homes: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Held {
    pub(crate) count: u64,
    /// From sending to the first byte of the answer.
    pub(crate) first_byte_ms: Option<Quantiles>,
}

/// The counted part of the summary file.
#[derive(Debug, Serialize)]
pub(crate) struct Totals {
    pub(crate) requests: Requests,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) reasons: BTreeMap<String, u64>,
    pub(crate) endpoints: BTreeMap<String, u64>,
    pub(crate) workflows: Workflows,
    pub(crate) sessions: Sessions,
    pub(crate) tokens: Tokens,
    pub(crate) ttft_ms: Option<Quantiles>,
    pub(crate) total_ms: Option<Quantiles>,
    pub(crate) queued_ms: Option<Quantiles>,
    pub(crate) held: Held,
}

impl Tally {
    pub(crate) fn add(&mut self, event: &Event) {
        match event {
            Event::SessionStarted => self.sessions.started += 1,
            Event::SessionEnded => self.sessions.ended += 1,
            Event::Sent => self.requests.sent += 1,
            Event::Ended(record) => self.add_record(record),
        }
    }

    fn add_record(&mut self, record: &Record) {
        *match record.outcome {
            Outcome::Ok => &mut self.requests.ok,
            Outcome::Failed => &mut self.requests.failed,
            Outcome::Lost => &mut self.requests.lost,
            Outcome::Cancelled => &mut self.requests.cancelled,
        } += 1;
        self.requests.retries += u64::from(record.retries);
        self.workflows.insert(record.workflow.clone());
        self.agents
            .insert((record.workflow.clone(), record.agent.clone()));
        count(&mut self.errors, record.error);
        count(&mut self.reasons, record.reason.as_deref());
        count(&mut self.homes, record.home.as_deref());
        self.note_home(record);
        count(&mut self.endpoints, record.endpoint.as_deref());
        self.queued_ms.extend(record.queued_ms);
        if record.held {
            self.requests.held += 1;
            self.held_first_byte_ms.extend(record.first_byte_ms);
        }
        if record.outcome != Outcome::Ok {
            return;
        }
        self.ttft_ms.extend(record.ttft_ms);
        self.total_ms.push(record.total_ms);
        let usage = record.usage();
        self.tokens.prompt += usage.prompt_tokens.unwrap_or(0);
        self.tokens.cached += usage.cached_tokens.unwrap_or(0);
        self.tokens.completion += usage.completion_tokens.unwrap_or(0);
        self.tokens.planned += record.planned_tokens;
        self.tokens.reusable += record.reusable_tokens.unwrap_or(0);
    }

    /// A gateway that has forgotten a home calls the next one `new`: only who saw the earlier turns can tell.
    fn note_home(&mut self, record: &Record) {
        let Some(home) = record.home.as_deref().filter(|home| *home != "none") else {
            return;
        };
        let ended_at = record.sent_at + record.total_ms;
        match self.housed.get_mut(&record.workflow) {
            Some(since) => {
                // Sub-agents may have been under way together with the first turn.
                self.homes_lost += u64::from(home == "new" && record.sent_at >= *since);
                *since = since.min(ended_at);
            }
            None => {
                self.housed.insert(record.workflow.clone(), ended_at);
            }
        }
    }

    /// One line for a person who waits.
    fn progress(&self, elapsed: Duration, sessions: usize) -> String {
        let Requests {
            sent,
            ok,
            failed,
            lost,
            cancelled,
            held,
            ..
        } = self.requests;
        let in_flight = sent.saturating_sub(ok + failed + lost + cancelled);
        let running = self.sessions.started - self.sessions.ended;
        let mut line = format!(
            "replay {:>4} s: sessions {}/{sessions} done, {running} running; requests {in_flight} in flight, {ok} ok, {failed} failed, {lost} lost",
            elapsed.as_secs(),
            self.sessions.ended,
        );
        if cancelled > 0 {
            line.push_str(&format!(", {cancelled} cancelled"));
        }
        if held > 0 {
            line.push_str(&format!(", {held} were held"));
        }
        if let Some(percent) = percent(self.tokens.cached, self.tokens.prompt) {
            line.push_str(&format!("; prompt tokens {percent:.0} % cached"));
        }
        if let Some(ttft) = quantiles(&self.ttft_ms) {
            line.push_str(&format!(
                "; first token p50 {:.0} ms, p99 {:.0} ms",
                ttft.p50, ttft.p99
            ));
        }
        line
    }

    pub(crate) fn totals(self) -> Totals {
        let homes = |name: &str| self.homes.get(name).copied().unwrap_or(0);
        let (kept, moved) = (homes("kept"), homes("moved"));
        Totals {
            workflows: Workflows {
                count: self.workflows.len(),
                agents: self.agents.len(),
                turns: self.requests.sent,
                home_kept_percent: percent(kept, kept + moved + self.homes_lost),
                home_lost: self.homes_lost,
                homes: self.homes.clone(),
            },
            held: Held {
                count: self.requests.held,
                first_byte_ms: quantiles(&self.held_first_byte_ms),
            },
            ttft_ms: quantiles(&self.ttft_ms),
            total_ms: quantiles(&self.total_ms),
            queued_ms: quantiles(&self.queued_ms),
            requests: self.requests,
            errors: self.errors,
            reasons: self.reasons,
            endpoints: self.endpoints,
            sessions: self.sessions,
            tokens: self.tokens,
        }
    }
}

fn count(map: &mut BTreeMap<String, u64>, label: Option<&str>) {
    let Some(label) = label else { return };
    let known = map.len() < MAX_LABELS || map.contains_key(label);
    *map.entry(if known { label } else { "other" }.to_owned())
        .or_default() += 1;
}

fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| 100.0 * part as f64 / whole as f64)
}

/// `None` without values.
fn quantiles(values: &[f64]) -> Option<Quantiles> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let max = *sorted.last()?;
    let rank = |share: f64| {
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted[rank.saturating_sub(1).min(sorted.len() - 1)]
    };
    Some(Quantiles {
        p50: rank(0.5),
        p95: rank(0.95),
        p99: rank(0.99),
        max,
        samples: sorted.len(),
    })
}

/// Where lines go while the replay runs.
pub(crate) struct Report<W: Write> {
    pub(crate) records: BufWriter<W>,
    /// Sessions to be played in all.
    pub(crate) sessions: usize,
    pub(crate) started: Instant,
}

impl<W: Write> Report<W> {
    /// Listens until all senders are gone.
    ///
    /// # Errors
    /// When a record cannot be written; the sender then finds the channel closed.
    pub(crate) async fn listen(mut self, mut events: mpsc::Receiver<Event>) -> io::Result<Tally> {
        let mut tally = Tally::default();
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                _ = ticks.tick() => {
                    self.records.flush()?;
                    self.say(&tally, "\r");
                    continue;
                }
            };
            let Some(event) = event else { break };
            tally.add(&event);
            if let Event::Ended(record) = event {
                serde_json::to_writer(&mut self.records, &record)?;
                self.records.write_all(b"\n")?;
            }
        }
        self.records.flush()?;
        self.say(&tally, "\n");
        Ok(tally)
    }

    /// On a terminal the line is written over the last one; elsewhere lines follow each other.
    fn say(&self, tally: &Tally, end: &str) {
        let line = tally.progress(clock::now().duration_since(self.started), self.sessions);
        let mut stderr = io::stderr().lock();
        // A closed standard error is no reason to stop.
        let _ = if stderr.is_terminal() {
            write!(stderr, "\r\x1b[2K{line}{end}")
        } else {
            writeln!(stderr, "{line}")
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_rank() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let expected = Quantiles {
            p50: 100.0,
            p95: 190.0,
            p99: 198.0,
            max: 200.0,
            samples: 200,
        };
        assert_eq!(quantiles(&values), Some(expected));
        assert_eq!(quantiles(&[7.0]).map(|one| (one.p50, one.p99)), Some((7.0, 7.0)));
        assert_eq!(quantiles(&[]), None);
    }

    #[test]
    fn labels_from_outside_are_bounded() {
        let mut map = BTreeMap::new();
        for index in 0..1000 {
            count(&mut map, Some(&format!("label-{index}")));
        }
        assert_eq!(
            (map.len(), map["other"]),
            (MAX_LABELS + 1, 1000 - MAX_LABELS as u64)
        );
    }
}
