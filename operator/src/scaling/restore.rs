//! A scaler's memory from a pool's status: what was learned outlives the operator. Pure.

use jiff::Timestamp;
use kube::ResourceExt;
use weir_crds::{Decimal, LLMPool, names};

use super::{
    cost::Ledger,
    decide::View,
    idle::{self, StopCost},
    memory::{Memory, doing},
    starts::{Phases, Starts},
};

/// The memory that a new scaler begins with.
pub(super) fn memory(pool: &LLMPool, view: &View, now: Timestamp) -> Memory {
    let Some(status) = &pool.status else {
        return Memory::default();
    };
    let cold = status.cold_start.clone().unwrap_or_default();
    let phases = cold.phases.map(|phases| Phases {
        schedule: phases.schedule.map(Into::into),
        pull: phases.pull.map(Into::into),
        start: phases.start.map(Into::into),
        load: phases.load.map(Into::into),
        ready: phases.ready.map(Into::into),
    });
    let idle_since = status
        .activity
        .as_ref()
        .and_then(|activity| activity.idle_since.as_ref().map(|since| since.0));
    let cost = status.cost.clone().unwrap_or_default();
    let hours = |hours: Option<Decimal>| hours.map_or(0.0, |hours| hours.value());
    // Status is written whenever a pod or its state changes, so since the last write pods did what they do now.
    let since = last_status_write(pool).map(|at| (at.min(now), doing(&view.pods, &view.demand)));
    let mut memory = Memory::default();
    memory.starts = Starts {
        recent: cold.recent.into_iter().map(Into::into).collect(),
        samples: cold.samples,
        phases,
    };
    memory.ledger = Ledger::resume(
        hours(cost.serving_hours),
        hours(cost.idle_hours),
        hours(cost.starting_hours),
        since,
    );
    let break_even = status.idle.as_ref().and_then(|idle| idle.break_even);
    let (start, start_squared) = memory.starts.moments(pool.spec.idle.cold_start_prior.into());
    let cost = StopCost {
        start,
        start_squared,
        waiting_weight: pool.spec.idle.waiting_weight.value(),
        arrivals: 0.0,
    };
    memory.learn_arrivals(break_even.and_then(|even| idle::arrivals_behind(cost, even.into())));
    memory.not_before = idle_since;
    memory.idle_since = idle_since;
    memory
}

/// When the operator last wrote the pool's status.
fn last_status_write(pool: &LLMPool) -> Option<Timestamp> {
    pool.managed_fields()
        .iter()
        .filter(|entry| {
            entry.manager.as_deref() == Some(names::FIELD_MANAGER)
                && entry.subresource.as_deref() == Some("status")
        })
        .filter_map(|entry| entry.time.as_ref().map(|at| at.0))
        .max()
}
