//! Totals of a pool: what the operator's goodput and the summary of a run are made of.

use weir_schedule::{Decision, HomeUse, ShedReason};
use weir_wire::control::Totals;

use crate::{
    metrics::{Outcome, PoolMetrics, TokenKind},
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

/// Totals, and the metrics that show the same.
pub(super) struct Ledger {
    pub(super) totals: Totals,
    metrics: std::sync::Arc<PoolMetrics>,
}

impl Ledger {
    pub(super) fn new(metrics: std::sync::Arc<PoolMetrics>) -> Self {
        Self {
            totals: Totals::default(),
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
            ShedReason::NoCapacity => "no_capacity",
            ShedReason::ColdStartTimeout => "cold_start_timeout",
        };
        self.metrics.request(Outcome::Shed, reason);
    }

    pub(super) fn ejected(&self) {
        self.metrics.ejections.inc();
    }

    pub(super) fn record(&mut self, record: Record) {
        let totals = &mut self.totals;
        match record {
            Record::Attempt => {}
            Record::Completed { usage, slo_met } => {
                totals.completed += 1;
                self.metrics.completed();
                if let Some(met) = slo_met {
                    totals.slo_total += 1;
                    totals.slo_met += u64::from(met);
                }
                if let Some(usage) = usage {
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
                totals.slo_total += u64::from(had_objectives);
                self.metrics.request(Outcome::Failed, reason);
            }
            Record::Cancelled => {
                totals.cancelled += 1;
                self.metrics.request(Outcome::Cancelled, "client_gone");
            }
        }
    }
}
