//! Totals of a pool: what the operator's goodput and the summary of a run are made of.

use std::time::Duration;

use weir_schedule::{Decision, HomeUse, ShedReason, Time};
use weir_wire::control::Totals;

use super::recent::{PrefillRate, Recent};
use crate::{
    metrics::{Outcome, PoolMetrics, Promise, TokenKind},
    proxy::usage::Usage,
};

/// How a request (or one attempt at it) ended, for the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// An attempt that is not the request's last.
    Attempt,
    /// Answered in full.
    Completed {
        /// Tokens, when the engine gave them.
        usage: Option<Usage>,
        /// Whether it met its objectives; `None` without any.
        slo_met: Option<bool>,
        /// Of a stream, when its first body byte came.
        first_byte: Option<FirstByte>,
    },
    /// Ended in an error that was not the client's.
    Failed {
        /// `X-Weir-Reason`, or its like for a stream that had begun.
        reason: &'static str,
        /// It had objectives, which it missed.
        had_objectives: bool,
    },
    /// The client left first.
    Cancelled,
}

/// When the first body byte of a stream came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstByte {
    /// After the request's arrival.
    pub since_arrival: Duration,
    /// After its dispatch to the endpoint that answered.
    pub since_dispatch: Duration,
}

/// Totals, and the metrics that show the same.
pub(super) struct Ledger {
    pub(super) totals: Totals,
    pub(super) recent: Recent,
    pub(super) prefill: PrefillRate,
    metrics: std::sync::Arc<PoolMetrics>,
}

impl Ledger {
    pub(super) fn new(metrics: std::sync::Arc<PoolMetrics>) -> Self {
        Self {
            totals: Totals::default(),
            recent: Recent::default(),
            prefill: PrefillRate::default(),
            metrics,
        }
    }

    pub(super) fn arrived(&mut self) {
        self.totals.arrived += 1;
    }

    pub(super) fn dispatched(&mut self, decision: &Decision) {
        let totals = &mut self.totals;
        if decision.held {
            totals.held += 1;
            totals.held_ms += super::driver::millis(decision.waited);
        }
        match decision.home {
            HomeUse::Kept => {
                totals.returning_turns += 1;
                totals.home_kept += 1;
            }
            HomeUse::Moved => totals.returning_turns += 1,
            HomeUse::New | HomeUse::None => {}
        }
        self.metrics.home(decision.home.into());
        self.metrics.wait.observe(decision.waited.as_secs_f64());
    }

    pub(super) fn shed(&mut self, reason: ShedReason) {
        self.totals.shed += 1;
        let reason = match reason {
            ShedReason::QueueFull => "queue_full",
            ShedReason::NoCapacity | ShedReason::Suspended => "no_capacity",
            ShedReason::ColdStartTimeout => "cold_start_timeout",
        };
        self.metrics.request(Outcome::Shed, reason);
    }

    pub(super) fn ejected(&self) {
        self.metrics.ejections.inc();
    }

    pub(super) fn record(&mut self, record: Record, now: Time) {
        let totals = &mut self.totals;
        match record {
            Record::Attempt => {}
            Record::Completed {
                usage,
                slo_met,
                first_byte,
            } => {
                totals.completed += 1;
                self.metrics.completed();
                self.promise(slo_met);
                self.recent
                    .add(slo_met, first_byte.map(|first| first.since_arrival), now);
                if let Some(usage) = usage {
                    if let (Some(first), Some(cached)) = (first_byte, usage.cached_tokens) {
                        let uncached = usage.prompt_tokens.saturating_sub(cached);
                        self.prefill.add(uncached, first.since_dispatch);
                    }
                    let totals = &mut self.totals;
                    let cached = usage.cached_tokens.unwrap_or(0);
                    totals.prompt_tokens = totals.prompt_tokens.saturating_add(usage.prompt_tokens);
                    totals.cached_tokens = totals.cached_tokens.saturating_add(cached);
                    totals.completion_tokens =
                        totals.completion_tokens.saturating_add(usage.completion_tokens);
                    self.metrics.tokens(TokenKind::Prompt, usage.prompt_tokens);
                    self.metrics.tokens(TokenKind::Cached, cached);
                    self.metrics
                        .tokens(TokenKind::Completion, usage.completion_tokens);
                }
            }
            Record::Failed {
                reason,
                had_objectives,
            } => {
                totals.failed += 1;
                let missed = had_objectives.then_some(false);
                self.promise(missed);
                self.recent.add(missed, None, now);
                self.metrics.request(Outcome::Failed, reason);
            }
            Record::Cancelled => {
                totals.cancelled += 1;
                self.metrics.request(Outcome::Cancelled, "client_gone");
            }
        }
    }

    /// Counts a request that had objectives.
    fn promise(&mut self, met: Option<bool>) {
        if let Some(met) = met {
            self.totals.slo_total += 1;
            self.totals.slo_met += u64::from(met);
            self.metrics
                .promise(if met { Promise::Met } else { Promise::Missed });
        }
    }
}
