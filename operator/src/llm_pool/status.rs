//! What a pool's status says. Pure. It names instants and counts, nothing that grows while nothing happens, so that
//! a quiet pool is never written; cost is the exception, and no reason to write (`apply.rs`).

mod conditions;
mod nodes;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use weir_crds::{
    Decimal, LLMPoolStatus,
    condition::{self, Reason},
    llmpool::{Activity, ColdStart, ColdStartPhases, Cost, Fence, Goodput, IdleStatus},
    millis, names, rounded,
};

use super::{
    apply::Applied,
    observe::Observed,
    validate::{Invalid, Valid},
};
use crate::{
    events::What,
    labels,
    scaling::{
        instant::{between, whole_second},
        memory::doing,
        outlook::Outlook,
    },
};

/// How far the reconcile came.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// The spec cannot be built.
    Invalid(Invalid),
    /// An object could not be written; true when somebody else's object is in the way.
    Failed(String, bool),
    /// Everything is as it should be.
    Applied(Box<(Valid, Applied)>),
}

/// The new status.
#[must_use]
pub fn derive(observed: &Observed, verdict: &Verdict, now: Timestamp) -> LLMPoolStatus {
    let pool = &observed.pool;
    let current = pool.status.clone().unwrap_or_default();
    let conditions = condition::merge(
        &current.conditions,
        &conditions::conditions(observed, verdict),
        now,
    );
    let namespace = pool.namespace().unwrap_or_default();
    let selector = labels::engine_selector(&pool.name_any(), &pool.uid().unwrap_or_default());
    let mut status = LLMPoolStatus {
        conditions,
        observed_generation: pool.metadata.generation,
        selector: Some(labels::selector_text(&selector)),
        endpoint: Some(names::gateway_url(&pool.spec.gateway, &namespace)),
        ..current
    };
    if let Some(outlook) = &observed.outlook {
        scaling(&mut status, observed, outlook, now);
    }
    status
}

/// Everything that the scaler knows.
fn scaling(status: &mut LLMPoolStatus, observed: &Observed, outlook: &Outlook, now: Timestamp) {
    let count = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let decision = &outlook.decision;
    let verdict = &decision.verdict;
    let demand = &outlook.demand;
    status.replicas = i32::try_from(outlook.pods.len()).unwrap_or(i32::MAX);
    status.ready_replicas = count(decision.serving);
    status.desired_replicas = count(outlook.desired);
    status.ready = Some(format!("{}/{}", decision.serving, outlook.desired));
    status.activity = demand.known().then(|| Activity {
        in_flight: demand.in_flight,
        queued: demand.queued,
        held: demand.held,
        open_workflows: demand.open_workflows,
        idle_since: verdict
            .since
            .as_ref()
            .ok()
            .map(|since| Time(whole_second(*since))),
    });
    status.idle = Some(IdleStatus {
        break_even: Some(shown(verdict.break_even)),
        refill: verdict.refill.map(shown),
        threshold: verdict.threshold.map(shown),
        zero_at: verdict.zero_at.map(|at| Time(whole_second(at))),
        reason: Some(decision.sentence.clone()),
    });
    if outlook.starts.samples > 0 {
        status.cold_start = Some(cold_start(outlook));
    }
    // Gateways that have answered nothing since they started leave what the ones before them said.
    if let Some(window) = demand.window {
        let met = demand.slo_met.min(demand.slo_total).saturating_mul(100);
        status.goodput = Some(Goodput {
            window: Some(millis(window)),
            percent: met
                .checked_div(demand.slo_total)
                .and_then(|percent| u8::try_from(percent).ok()),
            requests: Some(demand.slo_total),
            ttft_p95: demand.ttft_p95.map(millis),
        });
    }
    if outlook.epoch > 0 {
        status.fence = Some(Fence { epoch: outlook.epoch });
    }
    status.cost = Some(cost(observed, outlook, now));
}

/// A duration as the status keeps it: as it is written, so that what is read back is no difference.
fn shown(duration: std::time::Duration) -> kube::core::Duration {
    rounded(duration).into()
}

fn cold_start(outlook: &Outlook) -> ColdStart {
    let starts = &outlook.starts;
    ColdStart {
        last: starts.recent.last().copied().map(shown),
        p50: starts.percentile(50).map(shown),
        p95: starts.percentile(95).map(shown),
        samples: starts.samples,
        phases: starts.phases.map(|phases| ColdStartPhases {
            schedule: phases.schedule.map(shown),
            pull: phases.pull.map(shown),
            start: phases.start.map(shown),
            load: phases.load.map(shown),
            ready: phases.ready.map(shown),
        }),
        recent: starts.recent.iter().copied().map(millis).collect(),
    }
}

fn cost(observed: &Observed, outlook: &Outlook, now: Timestamp) -> Cost {
    let mut ledger = outlook.ledger;
    ledger.book(now, doing(&outlook.pods, &outlook.demand));
    let (serving, idle, starting) = ledger.hours();
    let used = serving + idle + starting;
    let pool = &observed.pool;
    let made = pool.metadata.creation_timestamp.as_ref().map_or(now, |at| at.0);
    let always_on = between(made, now).as_secs_f64() / 3_600.0 * f64::from(pool.spec.scaling.max_replicas);
    let hourly = pool.spec.price_per_second().map(|price| price * 3_600.0);
    let hours = |value: f64| Some(Decimal::rounded(value, 6));
    Cost {
        serving_hours: hours(serving),
        idle_hours: hours(idle),
        starting_hours: hours(starting),
        amount: hourly.map(|price| Decimal::rounded(used * price, 4)),
        saved_versus_always_on: Some(Decimal::rounded((always_on - used) * hourly.unwrap_or(1.0), 4)),
    }
}

/// What begins with this status and deserves an event.
#[must_use]
pub fn news(observed: &Observed, verdict: &Verdict) -> Vec<(What, String)> {
    let current = observed
        .pool
        .status
        .as_ref()
        .map(|status| status.conditions.clone())
        .unwrap_or_default();
    let mut news: Vec<(What, String)> = conditions::conditions(observed, verdict)
        .into_iter()
        .filter(|wanted| {
            condition::find(&current, wanted.condition)
                .is_none_or(|before| before.reason != wanted.reason.as_str())
        })
        .filter_map(|wanted| {
            let what = match wanted.reason {
                Reason::Serving => What::Ready,
                Reason::ModelConflict => What::ModelConflict,
                Reason::Invalid | Reason::ObjectConflict => What::Invalid,
                Reason::Unschedulable => What::Unschedulable,
                Reason::ImageUnavailable => What::ImageUnavailable,
                Reason::EngineFailing => What::EngineFailing,
                Reason::PodsRefused => What::PodsRefused,
                Reason::ReferenceMissing => What::ReferenceMissing,
                _ => return None,
            };
            Some((what, wanted.message))
        })
        .collect();
    // One cause may show in several conditions, side by side or apart; it is one event.
    news.sort_by_key(|(what, _)| *what);
    news.dedup_by(|(one, _), (other, _)| one == other);
    news
}
