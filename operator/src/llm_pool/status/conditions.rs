//! The conditions of a pool. Pure.

use kube::ResourceExt;
use weir_crds::{
    LLMPoolSpec,
    condition::{ConditionType, Reason, State, Wanted},
    human, names,
};

use super::{Verdict, nodes};
use crate::{
    llm_pool::observe::Observed,
    references::{Kind, Missing, named},
    scaling::{decide::Mode, idle::Blocker, memory::Memory, outlook::Outlook, pods::Trouble},
};

type Said = (State, Reason, String);

/// All conditions of a pool, in a fixed order.
pub(super) fn conditions(observed: &Observed, verdict: &Verdict) -> Vec<Wanted> {
    let outlook = observed.outlook.as_deref();
    let said: [(ConditionType, Said); 6] = [
        (ConditionType::Ready, ready(observed, verdict)),
        (ConditionType::Progressing, progressing(observed, outlook)),
        (ConditionType::CapacityAvailable, capacity(observed, outlook)),
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
            (State::True, Reason::AtZero, at_zero(&observed.pool.spec))
        } else {
            (
                State::False,
                Reason::Draining,
                "engine pods are ending; the next request starts a new one".to_owned(),
            )
        };
    }
    if let Some(missing) = missing(outlook) {
        return reference_missing(State::False, observed, missing);
    }
    if let Some(refused) = &outlook.refused {
        return (State::False, Reason::PodsRefused, refused.clone());
    }
    let trouble = outlook.pods.iter().find_map(|pod| pod.trouble.as_ref());
    match trouble {
        Some(Trouble::Image(text)) => (State::False, Reason::ImageUnavailable, text.clone()),
        Some(Trouble::Crashing(text)) => (State::False, Reason::EngineFailing, text.clone()),
        Some(Trouble::Unschedulable(_) | Trouble::Missing(_)) | None if outlook.timeouts > 0 => {
            let limit = human(observed.pool.spec.startup.deadline.into());
            let text = format!(
                "{} starts took longer than startup.deadline ({limit}); starting anew",
                outlook.timeouts
            );
            (State::False, Reason::StartTimeout, text)
        }
        Some(Trouble::Unschedulable(_) | Trouble::Missing(_)) | None if outlook.demand.held > 0 => (
            State::False,
            Reason::Waking,
            "engine pods are starting because requests wait".to_owned(),
        ),
        Some(Trouble::Unschedulable(_) | Trouble::Missing(_)) | None => (
            State::False,
            Reason::Starting,
            "engine pods are starting".to_owned(),
        ),
    }
}

/// Nobody looks for what the spec names while no pod runs: the sentence says which objects that are.
fn at_zero(spec: &LLMPoolSpec) -> String {
    let mut needed: Vec<String> = named(spec).iter().map(ToString::to_string).collect();
    needed.dedup();
    let text = "no engine pod runs; the next request starts one";
    if needed.is_empty() {
        text.to_owned()
    } else {
        format!(
            "{text}. It needs {}: looked for when it starts",
            needed.join(", ")
        )
    }
}

/// The first object that an engine pod waits for. A pod that serves waits for nothing, whatever the kubelet, which
/// speaks a second later than the sidecar, still says.
fn missing(outlook: &Outlook) -> Option<&Missing> {
    let mut staying = outlook
        .pods
        .iter()
        .filter(|pod| !pod.terminating && !Memory::serves(pod, &outlook.demand));
    staying.find_map(|pod| match &pod.trouble {
        Some(Trouble::Missing(missing)) => Some(missing),
        Some(Trouble::Unschedulable(_) | Trouble::Image(_) | Trouble::Crashing(_)) | None => None,
    })
}

fn reference_missing(state: State, observed: &Observed, missing: &Missing) -> Said {
    let namespace = observed.pool.namespace().unwrap_or_default();
    let text = missing.sentence(&observed.pool.spec, &namespace);
    (state, Reason::ReferenceMissing, text)
}

fn progressing(observed: &Observed, outlook: Option<&Outlook>) -> Said {
    let Some(outlook) = outlook else {
        return (
            State::Unknown,
            Reason::Starting,
            "the operator has not looked at the pool yet".to_owned(),
        );
    };
    let (desired, serving) = (outlook.desired, outlook.decision.serving);
    let running = u32::try_from(outlook.pods.len()).unwrap_or(u32::MAX);
    if let Some(failure) = &outlook.failure {
        (State::True, Reason::ApplyFailed, failure.clone())
    } else if let Some(missing) = missing(outlook) {
        reference_missing(State::True, observed, missing)
    } else if let Some(refused) = outlook.refused.as_ref().filter(|_| desired > 0) {
        (State::True, Reason::PodsRefused, refused.clone())
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
        let text = match desired {
            0 => "no engine pod runs, and none should".to_owned(),
            count => format!("{count} of {count} engine pods answer"),
        };
        (State::False, Reason::Stable, text)
    }
}

fn capacity(observed: &Observed, outlook: Option<&Outlook>) -> Said {
    // Without its volume a pod gets no node.
    if let Some(missing) = outlook.and_then(missing)
        && missing.kind == Kind::PersistentVolumeClaim
    {
        return reference_missing(State::False, observed, missing);
    }
    let unschedulable = outlook.and_then(|outlook| {
        outlook.pods.iter().find_map(|pod| match &pod.trouble {
            Some(Trouble::Unschedulable(text)) => Some(format!("{}: {text}", pod.name)),
            Some(Trouble::Image(_) | Trouble::Missing(_) | Trouble::Crashing(_)) | None => None,
        })
    });
    match unschedulable {
        Some(text) => {
            let cure = nodes::cure(&text, &observed.pool.spec);
            let text = if cure.is_empty() {
                text
            } else {
                format!("{text} To do: {cure}")
            };
            (State::False, Reason::Unschedulable, text)
        }
        None => (
            State::True,
            Reason::Scheduled,
            "no engine pod waits for a node".to_owned(),
        ),
    }
}

fn scaling_owned(outlook: Option<&Outlook>) -> Said {
    match outlook.and_then(|outlook| outlook.foreign.as_deref()) {
        Some(who) => {
            let text = format!("{who} changed the replicas of the engine Deployment; they were written back");
            (State::False, Reason::ReplicasChanged, text)
        }
        None => (
            State::True,
            Reason::OperatorOnly,
            "nobody else writes the replicas of the engine Deployment".to_owned(),
        ),
    }
}

fn metrics(outlook: Option<&Outlook>) -> Said {
    let Some(outlook) = outlook else {
        return (
            State::Unknown,
            Reason::SourceSilent,
            "the operator has not looked at the pool yet".to_owned(),
        );
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
    (
        State::True,
        Reason::AllReporting,
        "every gateway and sidecar reports".to_owned(),
    )
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
