//! One look at one pool: what is seen, remembered and wanted becomes at most one action, and everything that status
//! says about scaling. Pure.

#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use weir_crds::{LLMPoolSpec, llmpool::IdlePolicy};

use super::{
    demand::Demand,
    idle::{self, Clock, Policy, StopCost, Verdict},
    instant::after,
    memory::Memory,
    pods::{EnginePod, Trouble},
    refill::refill,
    replicas::{self, Bounds, Now},
    victim::{self, Victim},
};

/// Whether a pool may run at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It may.
    Run,
    /// `spec.suspend`.
    Suspended,
    /// Another pool of its gateway serves a model of that name.
    Refused,
}

/// The parts of a spec that scaling needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Replica bounds; `expected_start` is filled in from memory.
    pub bounds: Bounds,
    /// Idle policy.
    pub policy: Policy,
    /// `idle.waitingWeight`.
    pub waiting_weight: f64,
    /// `idle.coldStartPrior`.
    pub prior: Duration,
    /// `startup.deadline`.
    pub deadline: Duration,
    /// Whether it may run.
    pub mode: Mode,
}

impl Settings {
    /// Reads a spec. `refused` is true for the younger of two pools with one model name.
    #[must_use]
    pub fn of(spec: &LLMPoolSpec, refused: bool) -> Self {
        let LLMPoolSpec {
            engine,
            scaling,
            idle,
            startup,
            suspend,
            ..
        } = spec;
        let policy = match idle.policy {
            IdlePolicy::Never => Policy::Never,
            IdlePolicy::Fixed => Policy::Fixed(idle.after.map_or(Duration::MAX, Into::into)),
            // The schema does not let `Learned` in yet; an object written past it stops at the break-even.
            IdlePolicy::BreakEven | IdlePolicy::Learned => Policy::BreakEven {
                min_after: idle.min_after.map(Into::into),
                max_after: idle.max_after.map(Into::into),
            },
        };
        Self {
            bounds: Bounds {
                min: scaling.min_replicas,
                max: scaling.max_replicas,
                concurrency: engine.max_concurrency,
                kv_utilization: scaling.kv_utilization,
                queue_wait: scaling.queue_wait.into(),
                scale_down_delay: scaling.scale_down_delay.into(),
                expected_start: Duration::ZERO,
            },
            policy,
            waiting_weight: idle.waiting_weight.value(),
            prior: idle.cold_start_prior.into(),
            deadline: startup.deadline.into(),
            mode: match (*suspend, refused) {
                (_, true) => Mode::Refused,
                (true, false) => Mode::Suspended,
                (false, false) => Mode::Run,
            },
        }
    }
}

/// What is seen now.
#[derive(Debug, Clone)]
pub struct View {
    /// The pool's settings.
    pub settings: Settings,
    /// Replicas that the Deployment asks for; `None` while there is no Deployment.
    pub replicas: Option<u32>,
    /// The Deployment replaces pods by a new template, or has not looked at its spec yet.
    pub rolling: bool,
    /// Engine pods.
    pub pods: Vec<EnginePod>,
    /// What the gateways say.
    pub demand: Demand,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Ask for more pods.
    Raise(u32),
    /// Remove one pod; `None`: whichever, since none exists yet.
    Lower(u32, Option<Victim>),
    /// Fence, then ask for none.
    Zero,
    /// Ask for none without a fence: the gateway takes no requests anyway.
    Stop,
    /// Delete a pod whose start takes too long, so that it is started anew.
    Restart {
        /// Pod name.
        name: String,
        /// Pod UID.
        uid: String,
    },
    /// Shorten the end of a pod whose engine never started: it ignores the first signal.
    Hurry {
        /// Pod name.
        name: String,
        /// Pod UID.
        uid: String,
    },
    /// A fence is in force although the pool is not going to zero.
    Unfence,
}

/// The outcome of one look.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// When to look again if nothing happens.
    pub look_again: Option<Timestamp>,
    /// The idle verdict, its instant steadied.
    pub verdict: Verdict,
    /// Why the verdict is as it is.
    pub sentence: String,
    /// Pods that can serve.
    pub serving: u32,
    /// Pods that cannot yet.
    pub starting: u32,
}

/// Decides. Memory takes in what is seen; nothing else changes.
pub fn decide(view: &View, memory: &mut Memory, now: Timestamp) -> Decision {
    let View {
        settings,
        replicas,
        pods,
        demand,
        ..
    } = view;
    memory.observe(pods, demand, now);
    let serving = count(pods, |pod| Memory::serves(pod, demand));
    let waiting_pods = count(pods, |pod| !pod.terminating && !Memory::serves(pod, demand));
    let asked = replicas.unwrap_or(0);
    let starting = waiting_pods.max(asked.saturating_sub(serving));
    let overdue = overdue(view, memory, now);

    let (start, start_squared) = memory.starts.moments(settings.prior);
    let cost = StopCost {
        start,
        start_squared,
        waiting_weight: settings.waiting_weight,
        arrivals: memory.arrivals(),
        refill: refill(demand, memory.prefill),
    };
    let in_start = pods
        .iter()
        .find(|pod| {
            let late = overdue.is_some_and(|late| late.uid == pod.uid);
            !pod.terminating && !Memory::serves(pod, demand) && !late && !hopeless(pod)
        })
        .map(|pod| pod.name.as_str())
        .or((waiting_pods == 0 && starting > 0).then_some("an engine pod"));
    let clock = Clock {
        demand,
        starting: in_start.filter(|_| asked > 0),
        first_ready: memory.first_ready(pods, demand),
        not_before: memory.not_before,
        now,
    };
    let mut verdict = idle::judge(&clock, cost, settings.policy, settings.bounds.min > 0);
    let steady = memory.steady(verdict.since.as_ref().ok().copied());
    if let (Some(steady), Ok(since)) = (steady, verdict.since.as_mut()) {
        *since = steady;
        verdict.zero_at = verdict.threshold.map(|threshold| after(steady, threshold));
    }
    if asked == 0 {
        verdict.zero_at = None;
        memory.timeouts = 0;
    }
    let sentence = idle::sentence(&verdict, cost, settings.policy, memory.starts.samples);
    let expected_start = Duration::try_from_secs_f64(start).unwrap_or(Duration::MAX);
    let mut decision = Decision {
        action: Action::None,
        look_again: None,
        verdict,
        sentence,
        serving,
        starting,
    };
    if replicas.is_some() {
        let (action, look_again) = act(view, memory, &decision, Times { now, expected_start });
        decision.action = action;
        decision.look_again = look_again.filter(|at| *at > now);
    }
    decision
}

fn count(pods: &[EnginePod], which: impl Fn(&EnginePod) -> bool) -> u32 {
    u32::try_from(pods.iter().filter(|pod| which(pod)).count()).unwrap_or(u32::MAX)
}

/// A pod that will not serve by waiting: somebody must change something. It does not keep an idle pool running; a pod
/// that waits for a node does, for the node may be on its way.
fn hopeless(pod: &EnginePod) -> bool {
    match pod.trouble {
        Some(Trouble::Image(_) | Trouble::Crashing(_) | Trouble::Missing(_)) => true,
        Some(Trouble::Unschedulable(_)) | None => false,
    }
}

/// A pod that has been able to start for longer than the deadline and still does not serve.
fn overdue<'a>(view: &'a View, memory: &Memory, now: Timestamp) -> Option<&'a EnginePod> {
    view.pods
        .iter()
        .filter(|pod| {
            !pod.terminating && !Memory::serves(pod, &view.demand) && !memory.hurried.contains(&pod.uid)
        })
        .find(|pod| {
            pod.starting_since()
                .is_some_and(|since| after(since, view.settings.deadline) <= now)
        })
}

#[derive(Clone, Copy)]
struct Times {
    now: Timestamp,
    expected_start: Duration,
}

fn act(view: &View, memory: &mut Memory, so_far: &Decision, times: Times) -> (Action, Option<Timestamp>) {
    let View {
        settings,
        replicas,
        rolling,
        pods,
        demand,
    } = view;
    let Times { now, expected_start } = times;
    let asked = replicas.unwrap_or(0);
    if settings.mode != Mode::Run {
        return if asked > 0 {
            (Action::Stop, None)
        } else {
            (hurry(memory, pods, demand), None)
        };
    }
    let wanted = replicas::wanted(
        &Bounds {
            expected_start,
            ..settings.bounds
        },
        memory.trend,
        Now {
            replicas: asked,
            starting: so_far.starting,
            rolling: *rolling,
            demand,
            at: now,
        },
    );
    memory.trend = wanted.trend;
    if wanted.replicas > asked {
        return (Action::Raise(wanted.replicas), None);
    }
    let mut look_again = earliest([wanted.look_again, demand.pauses_end]);
    if let Some(zero_at) = so_far.verdict.zero_at.filter(|_| asked > 0) {
        let due = zero_at.max(memory.no_fence_until.unwrap_or(zero_at));
        if due <= now {
            return (Action::Zero, None);
        }
        look_again = earliest([look_again, Some(due)]);
    }
    if demand.fenced && asked > 0 {
        return (Action::Unfence, look_again);
    }
    if let Some(late) = overdue(view, memory, now) {
        return (
            Action::Restart {
                name: late.name.clone(),
                uid: late.uid.clone(),
            },
            look_again,
        );
    }
    if wanted.replicas < asked {
        return (Action::Lower(wanted.replicas, victim::choose(pods, demand)), None);
    }
    let deadlines = pods
        .iter()
        .filter(|pod| !pod.terminating)
        .filter_map(|pod| pod.starting_since().map(|since| after(since, settings.deadline)));
    (hurry(memory, pods, demand), deadlines.chain(look_again).min())
}

fn hurry(memory: &Memory, pods: &[EnginePod], demand: &Demand) -> Action {
    let stuck = pods.iter().find(|pod| {
        let in_flight = demand
            .endpoints
            .get(&pod.uid)
            .map_or(0, |endpoint| endpoint.in_flight);
        pod.terminating
            && !pod.engine_up
            && pod.restarts == 0
            && in_flight == 0
            && !memory.hurried.contains(&pod.uid)
    });
    match stuck {
        Some(pod) => Action::Hurry {
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        },
        None => Action::None,
    }
}

fn earliest<const N: usize>(times: [Option<Timestamp>; N]) -> Option<Timestamp> {
    times.into_iter().flatten().min()
}
