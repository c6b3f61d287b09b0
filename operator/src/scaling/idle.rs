//! When a pool has been idle long enough to stop. Pure; all costs in seconds of one running engine pod.
//!
//! Keeping an idle engine pod for a second costs one second of it. Stopping and starting again costs the start itself
//! (the pod runs, and serves nothing), the waiting of the requests that come meanwhile, and computing again what the KV
//! cache held. Where both are equal is
//! the break-even; stopping exactly there never costs more than twice what a stop at the best moment would have
//! (the ski-rental bound). The hourly price multiplies both sides and cancels.

#[cfg(test)]
mod tests;

use std::{fmt::Write as _, time::Duration};

use jiff::Timestamp;
use weir_crds::{human, rounding};

use super::{
    demand::Demand,
    instant::{after, whole_second},
};

/// What a stop and a start cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StopCost {
    /// Mean start in seconds, E\[S\].
    pub start: f64,
    /// Mean square of the start in seconds squared, E\[S²\].
    pub start_squared: f64,
    /// What a second of one request's waiting costs, in seconds of one engine pod: `idle.waitingWeight`.
    pub waiting_weight: f64,
    /// Requests a second that follow the first one after a gap, λ.
    pub arrivals: f64,
    /// Seconds to compute again what the KV cache held (`refill.rs`); `None`: unknown, and left out.
    pub refill: Option<f64>,
}

/// `B = E[S] + w·(E[S] + λ·E[S²]/2) + refill`: the start, and the waiting of the first request (a whole start) and of those
/// that come while it lasts (λ·S of them, half a start each on average), and the KV cache.
#[must_use]
pub fn break_even(cost: StopCost) -> Duration {
    let StopCost {
        start,
        start_squared,
        waiting_weight,
        arrivals,
        refill,
    } = cost;
    let seconds = start + waiting_weight * (start + arrivals * start_squared / 2.0) + refill.unwrap_or(0.0);
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// The λ that gave this break-even, the rest of the cost being known: what was learned about arrivals is in the
/// pool's status only there. `None` where it cannot be told, because waiting or the start costs nothing.
#[must_use]
pub fn arrivals_behind(cost: StopCost, break_even: Duration) -> Option<f64> {
    let StopCost {
        start,
        start_squared,
        waiting_weight,
        arrivals: _,
        refill,
    } = cost;
    let each = waiting_weight * start_squared / 2.0;
    let rest = break_even.as_secs_f64() - start - waiting_weight * start - refill.unwrap_or(0.0);
    // A status is rounded: less than half of that step is nothing that was learned.
    let noise = rounding(break_even).as_secs_f64() / 2.0 + 1e-3;
    (each > 0.0 && rest > noise).then_some(rest / each)
}

/// `spec.idle.policy` with what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Stop at the break-even, inside these bounds.
    BreakEven {
        /// Least threshold.
        min_after: Option<Duration>,
        /// Greatest threshold.
        max_after: Option<Duration>,
    },
    /// Stop after this.
    Fixed(Duration),
    /// Do not stop.
    Never,
}

impl Policy {
    /// Idleness after which the pool stops; `None`: never.
    #[must_use]
    pub fn threshold(self, break_even: Duration) -> Option<Duration> {
        match self {
            Self::BreakEven { min_after, max_after } => {
                let least = min_after.unwrap_or(Duration::ZERO);
                let most = max_after.unwrap_or(Duration::MAX).max(least);
                Some(break_even.clamp(least, most))
            }
            Self::Fixed(threshold) => Some(threshold),
            Self::Never => None,
        }
    }
}

/// Why a pool with engine pods does not count as idle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocker {
    /// No gateway pod runs.
    NoGateway,
    /// Gateway pods that say nothing.
    Silent(Vec<String>),
    /// Requests wait or run.
    Busy {
        /// At engines.
        in_flight: u32,
        /// Waiting.
        waiting: u32,
    },
    /// Workflows run their tools and are expected back.
    Paused {
        /// How many.
        workflows: u32,
        /// Until when at the latest.
        until: Option<Timestamp>,
    },
    /// An engine pod starts.
    Starting(String),
    /// An engine works although the router sends it nothing.
    Bypassed {
        /// Its pod.
        pod: String,
        /// Requests it says it has.
        requests: u32,
    },
}

/// What the clock needs.
#[derive(Debug, Clone)]
pub struct Clock<'a> {
    /// What the gateways say.
    pub demand: &'a Demand,
    /// A pod that is still starting inside its deadline.
    pub starting: Option<&'a str>,
    /// When the first of the engine pods that serve became ready.
    pub first_ready: Option<Timestamp>,
    /// A lower bound known from before: when the pool was last seen busy, or `status.activity.idleSince`.
    pub not_before: Option<Timestamp>,
    /// Now.
    pub now: Timestamp,
}

/// Whether the pool is idle, and since when.
///
/// # Errors
/// The [`Blocker`].
pub fn idle_since(clock: &Clock<'_>) -> Result<Timestamp, Blocker> {
    let demand = clock.demand;
    if demand.replicas == 0 {
        return Err(Blocker::NoGateway);
    }
    if !demand.silent.is_empty() {
        return Err(Blocker::Silent(demand.silent.clone()));
    }
    if demand.load() > 0 {
        return Err(Blocker::Busy {
            in_flight: demand.in_flight,
            waiting: demand.waiting(),
        });
    }
    if demand.paused > 0 {
        return Err(Blocker::Paused {
            workflows: demand.paused,
            until: demand.pauses_end.map(whole_second),
        });
    }
    if let Some(pod) = clock.starting {
        return Err(Blocker::Starting(pod.to_owned()));
    }
    let bypassed = demand.endpoints.iter().find_map(|(pod, endpoint)| {
        let requests = endpoint
            .engine_busy
            .filter(|requests| *requests > 0 && endpoint.eligible)?;
        Some(Blocker::Bypassed {
            pod: pod.clone(),
            requests,
        })
    });
    if let Some(blocker) = bypassed {
        return Err(blocker);
    }
    let latest = demand.last_activity.max(clock.first_ready).max(clock.not_before);
    Ok(latest.unwrap_or(clock.now).min(clock.now))
}

/// When the pool stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Idleness that costs as much as a stop and a start.
    pub break_even: Duration,
    /// Of that, the refill of the KV cache; `None`: unknown, and left out.
    pub refill: Option<Duration>,
    /// Idleness after which it stops.
    pub threshold: Option<Duration>,
    /// Since when it is idle, or why it is not.
    pub since: Result<Timestamp, Blocker>,
    /// When it stops if nothing comes.
    pub zero_at: Option<Timestamp>,
}

/// Joins clock, cost and policy. `keep` is true when `minReplicas` keeps a pod anyway.
#[must_use]
pub fn judge(clock: &Clock<'_>, cost: StopCost, policy: Policy, keep: bool) -> Verdict {
    let break_even = break_even(cost);
    let threshold = policy.threshold(break_even).filter(|_| !keep);
    let since = idle_since(clock);
    let zero_at = match (&since, threshold) {
        (Ok(since), Some(threshold)) => Some(after(*since, threshold)),
        _ => None,
    };
    Verdict {
        break_even,
        refill: cost
            .refill
            .map(|refill| Duration::try_from_secs_f64(refill).unwrap_or(Duration::MAX)),
        threshold,
        since,
        zero_at,
    }
}

/// The sentence of `status.idle.reason`. It names instants, never ages, so that it changes only when its meaning does.
#[must_use]
pub fn sentence(verdict: &Verdict, cost: StopCost, policy: Policy, samples: u32) -> String {
    let mut text = match policy {
        Policy::Never => "the pool does not stop: idle.policy is Never".to_owned(),
        Policy::Fixed(threshold) => format!(
            "stops after {} of idleness: idle.policy is Fixed",
            human(threshold)
        ),
        Policy::BreakEven { .. } => {
            let source = match samples {
                0 => "expected, none measured yet".to_owned(),
                1 => "measured once".to_owned(),
                count => format!("mean of the last of {count} measured"),
            };
            let start = human(Duration::try_from_secs_f64(cost.start).unwrap_or(Duration::MAX));
            let even = human(verdict.break_even);
            let refill = verdict.refill.map_or_else(|| "unknown".to_owned(), human);
            let mut text = format!(
                "a start takes {start} ({source}), waiting weighs {} and KV refill is {refill}, so stopping pays after \
                 {even} of idleness",
                cost.waiting_weight
            );
            if let Some(threshold) = verdict
                .threshold
                .filter(|threshold| *threshold != verdict.break_even)
            {
                // Writing into a String cannot fail.
                let _ = write!(text, "; bounded to {} by minAfter or maxAfter", human(threshold));
            }
            text
        }
    };
    if verdict.threshold.is_none() && policy != Policy::Never {
        text.push_str("; scaling.minReplicas keeps it running");
    }
    let state = match &verdict.since {
        Ok(since) => match verdict.zero_at {
            Some(zero) => format!(
                "idle since {}, stops at {}",
                whole_second(*since),
                whole_second(zero)
            ),
            None => format!("idle since {}", whole_second(*since)),
        },
        Err(Blocker::NoGateway) => "not known to be idle: no gateway pod runs".to_owned(),
        Err(Blocker::Silent(pods)) => format!("not known to be idle: no word from {}", pods.join(", ")),
        Err(Blocker::Busy { .. }) => "busy now".to_owned(),
        Err(Blocker::Paused {
            until: Some(until), ..
        }) => {
            format!("workflows in a tool pause are expected back until {until}")
        }
        Err(Blocker::Paused { until: None, .. }) => "workflows in a tool pause are expected back".to_owned(),
        Err(Blocker::Starting(pod)) => format!("{pod} is starting"),
        Err(Blocker::Bypassed { pod, requests }) => format!(
            "the engine of pod {pod} works on {requests} requests that did not come through the router: not stopped"
        ),
    };
    // Writing into a String cannot fail.
    let _ = write!(text, "; {state}");
    text
}
