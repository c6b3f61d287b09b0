//! Faults a test can order: `POST /sim/fault` or [`crate::Running::fault`].

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError, atomic::AtomicBool, atomic::Ordering::Relaxed},
};

use serde::{Deserialize, Serialize};

/// What shall go wrong. Faults with `times` hit the next so many generation requests, in the order of their orders.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// Undo: go on after `Hang`, `Slow`, `Refuse`, `Unhealthy`, `Scaling`; forget faults that have not hit yet.
    Clear {},
    /// No step ends any more; `/health` stays 200 (a hung GPU).
    Hang {},
    /// The engine process dies: error events, 500s, `/health` 503, then the server exits with code 0.
    Crash {
        /// From death to exit, milliseconds.
        #[serde(default = "second")]
        exit_after_ms: u64,
    },
    /// Steps take `factor` times as long.
    Slow {
        /// At least 0.
        factor: f64,
    },
    /// The listener is closed: connections are refused, present ones go on. Cleared in-process or over a connection
    /// that is still open.
    Refuse {},
    /// `/health` answers 503; all else works.
    Unhealthy {},
    /// Every path answers 503, probes and metrics too: an elastic engine that changes its size.
    Scaling {},
    /// Answer with this status and an error body instead of generating.
    Status {
        /// 400 to 599.
        status: u16,
        /// How many requests.
        #[serde(default = "once")]
        times: u32,
    },
    /// Close the connection without a byte.
    Reset {
        /// How many requests.
        #[serde(default = "once")]
        times: u32,
    },
    /// Keep even the response head back for so long.
    Delay {
        /// Milliseconds.
        ms: u64,
        /// How many requests.
        #[serde(default = "once")]
        times: u32,
    },
    /// Cut the connection after so many chunks of a stream; a plain answer is not sent at all.
    CutStreamAfter {
        /// Chunks sent before.
        chunks: u32,
        /// How many requests.
        #[serde(default = "once")]
        times: u32,
    },
    /// End a stream with an error event after so many chunks; a plain answer becomes 500.
    ErrorEventAfter {
        /// Chunks sent before.
        chunks: u32,
        /// How many requests.
        #[serde(default = "once")]
        times: u32,
    },
    /// A stream falls silent after so many chunks, without end; a plain answer never comes.
    StallAfter {
        /// Chunks sent before.
        chunks: u32,
        /// How many requests.
        #[serde(default = "once")]
        times: u32,
    },
}

const fn once() -> u32 {
    1
}

const fn second() -> u64 {
    1000
}

/// A fault that hits one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mishap {
    Status(u16),
    Reset,
    Delay(u64),
    Cut(u32),
    Error(u32),
    Stall(u32),
}

/// Faults ordered for coming requests.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    queue: Mutex<VecDeque<(Mishap, u32)>>,
    unhealthy: AtomicBool,
    hung: AtomicBool,
    scaling: AtomicBool,
}

impl Faults {
    /// Notes a fault that concerns requests or `/health`; others mean nothing here.
    pub(crate) fn order(&self, fault: Fault) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let (mishap, times) = match fault {
            Fault::Status { status, times } => (Mishap::Status(status), times),
            Fault::Reset { times } => (Mishap::Reset, times),
            Fault::Delay { ms, times } => (Mishap::Delay(ms), times),
            Fault::CutStreamAfter { chunks, times } => (Mishap::Cut(chunks), times),
            Fault::ErrorEventAfter { chunks, times } => (Mishap::Error(chunks), times),
            Fault::StallAfter { chunks, times } => (Mishap::Stall(chunks), times),
            Fault::Clear {} => {
                queue.clear();
                self.unhealthy.store(false, Relaxed);
                self.hung.store(false, Relaxed);
                self.scaling.store(false, Relaxed);
                return;
            }
            Fault::Unhealthy {} => {
                self.unhealthy.store(true, Relaxed);
                return;
            }
            Fault::Scaling {} => {
                self.scaling.store(true, Relaxed);
                return;
            }
            Fault::Hang {} => {
                self.hung.store(true, Relaxed);
                return;
            }
            Fault::Crash { .. } | Fault::Slow { .. } | Fault::Refuse {} => return,
        };
        if times > 0 {
            queue.push_back((mishap, times));
        }
    }

    /// What befalls the next request.
    pub(crate) fn next(&self) -> Option<Mishap> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let (mishap, times) = queue.front_mut()?;
        let mishap = *mishap;
        *times -= 1;
        if *times == 0 {
            queue.pop_front();
        }
        Some(mishap)
    }

    /// No step ends any more.
    pub(crate) fn hung(&self) -> bool {
        self.hung.load(Relaxed)
    }

    /// Nothing is answered but 503.
    pub(crate) fn scaling(&self) -> bool {
        self.scaling.load(Relaxed)
    }

    pub(crate) fn unhealthy(&self) -> bool {
        self.unhealthy.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Fault, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn faults_are_read_as_documented() {
        assert_eq!(parse(r#"{"kind":"hang"}"#).unwrap(), Fault::Hang {});
        assert_eq!(
            parse(r#"{"kind":"crash"}"#).unwrap(),
            Fault::Crash { exit_after_ms: 1000 }
        );
        let cut = parse(r#"{"kind":"cut_stream_after","chunks":3}"#).unwrap();
        assert_eq!(cut, Fault::CutStreamAfter { chunks: 3, times: 1 });
        assert!(parse(r#"{"kind":"cut_stream_after"}"#).is_err());
        assert!(parse(r#"{"kind":"hang","chunks":3}"#).is_err());
        assert!(parse(r#"{"kind":"fire"}"#).is_err());
    }

    #[test]
    fn faults_hit_in_the_order_of_their_orders() {
        let faults = Faults::default();
        faults.order(Fault::Reset { times: 2 });
        faults.order(Fault::Status {
            status: 503,
            times: 1,
        });
        faults.order(Fault::Delay { ms: 1, times: 0 });
        let hits: Vec<_> = std::iter::from_fn(|| faults.next()).collect();
        assert_eq!(hits, [Mishap::Reset, Mishap::Reset, Mishap::Status(503)]);
        faults.order(Fault::Reset { times: 2 });
        faults.order(Fault::Unhealthy {});
        assert!(faults.unhealthy());
        faults.order(Fault::Clear {});
        assert!(faults.next().is_none() && !faults.unhealthy());
    }
}
