//! What a pool's status says. Pure. It names instants and counts, nothing that grows while nothing happens, so that
//! a quiet pool is never written; cost is the exception, and no reason to write (`apply.rs`).

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use weir_crds::{
    Decimal, LLMPoolStatus,
    condition::{self, ConditionType, Reason, State, Wanted},
    go_format,
    llmpool::{Activity, ColdStart, ColdStartPhases, Cost, Fence, Goodput, IdleStatus},
    millis, names,
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
        decide::Mode,
        idle::Blocker,
        instant::{between, whole_second},
        memory::doing,
        outlook::Outlook,
        pods::Trouble,
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

type Said = (State, Reason, String);

/// The new status.
#[must_use]
pub fn derive(observed: &Observed, verdict: &Verdict, now: Timestamp) -> LLMPoolStatus {
    let pool = &observed.pool;
    let current = pool.status.clone().unwrap_or_default();
    let conditions = condition::merge(&current.conditions, &conditions(observed, verdict), now);
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
        break_even: Some(millis(verdict.break_even)),
        threshold: verdict.threshold.map(millis),
        zero_at: verdict.zero_at.map(|at| Time(whole_second(at))),
        reason: Some(decision.sentence.clone()),
    });
    if outlook.starts.samples > 0 {
        status.cold_start = Some(cold_start(outlook));
    }
    let met = demand.slo_met.min(demand.slo_total).saturating_mul(100);
    if let Some(percent) = met.checked_div(demand.slo_total) {
        status.goodput = Some(Goodput {
            window: None,
            percent: u8::try_from(percent).ok(),
            requests: Some(demand.slo_total),
            ttft_p95: None,
        });
    }
    if outlook.epoch > 0 {
        status.fence = Some(Fence { epoch: outlook.epoch });
    }
    status.cost = Some(cost(observed, outlook, now));
}

fn cold_start(outlook: &Outlook) -> ColdStart {
    let starts = &outlook.starts;
    ColdStart {
        last: starts.recent.last().copied().map(millis),
        p50: starts.percentile(50).map(millis),
        p95: starts.percentile(95).map(millis),
        samples: starts.samples,
        phases: starts.phases.map(|phases| ColdStartPhases {
            schedule: phases.schedule.map(millis),
            pull: phases.pull.map(millis),
            start: phases.start.map(millis),
            load: phases.load.map(millis),
            ready: phases.ready.map(millis),
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

/// All conditions of a pool, in a fixed order.
fn conditions(observed: &Observed, verdict: &Verdict) -> Vec<Wanted> {
    let outlook = observed.outlook.as_deref();
    let said: [(ConditionType, Said); 6] = [
        (ConditionType::Ready, ready(observed, verdict)),
        (ConditionType::Progressing, progressing(outlook)),
        (ConditionType::CapacityAvailable, capacity(outlook)),
        (ConditionType::ScalingOwned, scaling_owned(outlook)),
        (ConditionType::MetricsAvailable, metrics(outlook)),
        (ConditionType::PolicyProgrammed, programmed(observed)),
    ];
    said.into_iter()
        .map(|(condition, (state, reason, message))| Wanted {
            condition,
            state,
            reason,
            message,
            observed_generation: observed.pool.metadata.generation,
        })
        .collect()
}

fn ready(observed: &Observed, verdict: &Verdict) -> Said {
    match verdict {
        Verdict::Invalid(invalid) => return (State::False, Reason::Invalid, invalid.to_string()),
        Verdict::Failed(text, true) => return (State::False, Reason::ObjectConflict, text.clone()),
        Verdict::Failed(text, false) => return (State::False, Reason::ApplyFailed, text.clone()),
        Verdict::Applied(applied) => {
            if let Some(refusal) = &applied.0.refusal {
                return (
                    State::False,
                    Reason::ModelConflict,
                    refusal.message(&observed.pool.spec.gateway),
                );
            }
        }
    }
    let Some(outlook) = &observed.outlook else {
        return (
            State::Unknown,
            Reason::Starting,
            "the operator has not looked at the pool yet".to_owned(),
        );
    };
    ready_of(observed, outlook)
}

fn ready_of(observed: &Observed, outlook: &Outlook) -> Said {
    let gateway = &observed.pool.spec.gateway;
    if outlook.mode == Mode::Suspended {
        let text = if outlook.pods.is_empty() {
            ""
        } else {
            "; engine pods are ending"
        };
        return (
            State::False,
            Reason::Suspended,
            format!("spec.suspend is set{text}"),
        );
    }
    if outlook.demand.replicas == 0 {
        let text = format!(
            "no pod of gateway {gateway} runs: see Deployment {}",
            names::gateway(gateway)
        );
        return (State::False, Reason::GatewayNotReady, text);
    }
    if outlook.decision.serving > 0 && outlook.desired > 0 {
        let text = format!(
            "{} of {} engine pods answer",
            outlook.decision.serving, outlook.desired
        );
        return (State::True, Reason::Serving, text);
    }
    if outlook.desired == 0 {
        return if outlook.pods.is_empty() {
            (
                State::True,
                Reason::AtZero,
                "no engine pod runs; the next request starts one".to_owned(),
            )
        } else {
            (
                State::False,
                Reason::Draining,
                "engine pods are ending; the next request starts a new one".to_owned(),
            )
        };
    }
    let trouble = outlook.pods.iter().find_map(|pod| pod.trouble.as_ref());
    match trouble {
        Some(Trouble::Image(text)) => (State::False, Reason::ImageUnavailable, text.clone()),
        Some(Trouble::Crashing(text)) => (State::False, Reason::EngineFailing, text.clone()),
        Some(Trouble::Unschedulable(_)) | None if outlook.timeouts > 0 => {
            let limit = go_format(observed.pool.spec.startup.deadline.into());
            let text = format!(
                "{} starts took longer than startup.deadline ({limit}); starting anew",
                outlook.timeouts
            );
            (State::False, Reason::StartTimeout, text)
        }
        Some(Trouble::Unschedulable(_)) | None if outlook.demand.held > 0 => (
            State::False,
            Reason::Waking,
            "engine pods are starting because requests wait".to_owned(),
        ),
        Some(Trouble::Unschedulable(_)) | None => (
            State::False,
            Reason::Starting,
            "engine pods are starting".to_owned(),
        ),
    }
}

fn progressing(outlook: Option<&Outlook>) -> Said {
    let Some(outlook) = outlook else {
        return (State::Unknown, Reason::Starting, String::new());
    };
    let (desired, serving) = (outlook.desired, outlook.decision.serving);
    let running = u32::try_from(outlook.pods.len()).unwrap_or(u32::MAX);
    if let Some(failure) = &outlook.failure {
        (State::True, Reason::ApplyFailed, failure.clone())
    } else if serving < desired {
        (
            State::True,
            Reason::ScalingUp,
            format!("{serving} of {desired} engine pods answer"),
        )
    } else if running > desired {
        (
            State::True,
            Reason::ScalingDown,
            format!("{running} engine pods exist, {desired} should"),
        )
    } else if outlook.rolling && desired > 0 {
        (
            State::True,
            Reason::RollingOut,
            "engine pods are being replaced".to_owned(),
        )
    } else {
        (State::False, Reason::Stable, String::new())
    }
}

fn capacity(outlook: Option<&Outlook>) -> Said {
    let unschedulable = outlook.and_then(|outlook| {
        outlook.pods.iter().find_map(|pod| match &pod.trouble {
            Some(Trouble::Unschedulable(text)) => Some(format!("{}: {text}", pod.name)),
            Some(Trouble::Image(_) | Trouble::Crashing(_)) | None => None,
        })
    });
    match unschedulable {
        Some(text) => (State::False, Reason::Unschedulable, text),
        None => (State::True, Reason::Scheduled, String::new()),
    }
}

fn scaling_owned(outlook: Option<&Outlook>) -> Said {
    match outlook.and_then(|outlook| outlook.foreign.as_deref()) {
        Some(who) => {
            let text = format!("{who} changed the replicas of the engine Deployment; they were written back");
            (State::False, Reason::ReplicasChanged, text)
        }
        None => (State::True, Reason::OperatorOnly, String::new()),
    }
}

fn metrics(outlook: Option<&Outlook>) -> Said {
    let Some(outlook) = outlook else {
        return (State::Unknown, Reason::SourceSilent, String::new());
    };
    if outlook.demand.replicas == 0 {
        return (
            State::False,
            Reason::SourceSilent,
            "no gateway pod runs".to_owned(),
        );
    }
    if !outlook.demand.silent.is_empty() {
        let text = format!("no word from {}", outlook.demand.silent.join(", "));
        return (State::False, Reason::SourceSilent, text);
    }
    if let Err(Blocker::Bypassed { pod, requests }) = &outlook.decision.verdict.since {
        let text =
            format!("the engine of pod {pod} works on {requests} requests that the router did not send");
        return (State::False, Reason::TrafficBypassesRouter, text);
    }
    (State::True, Reason::AllReporting, String::new())
}

fn programmed(observed: &Observed) -> Said {
    let Some(wanted) = &observed.config_hash else {
        return (
            State::False,
            Reason::ApplyFailed,
            "the gateway's configuration cannot be rendered".to_owned(),
        );
    };
    let configurations = observed
        .outlook
        .as_ref()
        .map(|outlook| outlook.configurations.as_slice());
    let behind: Vec<&str> = configurations
        .unwrap_or_default()
        .iter()
        .filter(|(_, hash)| hash.as_ref() != Some(wanted))
        .map(|(pod, _)| pod.as_str())
        .collect();
    if configurations.is_none_or(<[_]>::is_empty) {
        (State::False, Reason::Pending, "no gateway pod runs".to_owned())
    } else if behind.is_empty() {
        let text = match observed.policies {
            0 => "no policy matches; defaults hold".to_owned(),
            1 => "1 policy holds".to_owned(),
            count => format!("{count} policies hold"),
        };
        (State::True, Reason::InForce, text)
    } else {
        (
            State::False,
            Reason::Pending,
            format!("not in force yet in {}", behind.join(", ")),
        )
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
    conditions(observed, verdict)
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
                _ => return None,
            };
            Some((what, wanted.message))
        })
        .collect()
}
