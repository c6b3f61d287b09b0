//! A scaler's memory from a pool's status: what was learned outlives the operator. Pure.

use std::time::Duration;

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
        refill: status
            .idle
            .as_ref()
            .and_then(|idle| idle.refill)
            .map(|refill| Duration::from(refill).as_secs_f64()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::{
        decide::Settings,
        demand::Demand,
        idle::{StopCost, break_even},
    };

    #[test]
    fn arrivals_are_learned_from_the_break_even_without_its_refill() {
        let mut pool: LLMPool = serde_json::from_value(serde_json::json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "LLMPool", "metadata": {"name": "p"},
            "spec": {
                "model": {"name": "m", "source": "hf://o/m"},
                "engine": {"type": "VLLM", "image": "i"},
                "idle": {"waitingWeight": "2"},
            },
        }))
        .unwrap();
        let cost = |refill| StopCost {
            start: 10.0,
            start_squared: 100.0,
            waiting_weight: 2.0,
            arrivals: 0.3,
            refill,
        };
        let mut restored = |refill: Option<f64>| {
            let even = weir_crds::millis(break_even(cost(refill)));
            let mut status = serde_json::json!({
                "idle": {"breakEven": even}, "coldStart": {"samples": 1, "recent": ["10s"]},
            });
            if let Some(refill) = refill {
                status["idle"]["refill"] =
                    serde_json::to_value(weir_crds::millis(Duration::from_secs_f64(refill))).unwrap();
            }
            pool.status = Some(serde_json::from_value(status).unwrap());
            let view = View {
                settings: Settings::of(&pool.spec, false),
                replicas: Some(0),
                rolling: false,
                pods: Vec::new(),
                demand: Demand::default(),
            };
            memory(&pool, &view, Timestamp::UNIX_EPOCH).arrivals()
        };
        for refill in [None, Some(0.0), Some(45.5)] {
            let found = restored(refill);
            assert!((found - 0.3).abs() < 1e-3, "{refill:?}: {found}");
        }
    }
}
