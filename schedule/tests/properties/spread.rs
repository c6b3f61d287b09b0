//! New workflows spread evenly.

use std::collections::BTreeMap;

use proptest::prelude::*;
use weir_schedule::{Effect, EndpointId, Event, Pool, Settings, Time, Workflow};

use crate::{
    dice::Dice,
    witness::{request, settings},
};

const WORKFLOWS: u64 = 1_000;

fn wide() -> Settings {
    Settings {
        max_waiting: 2_000,
        max_waiting_bytes: 1 << 30,
        max_workflows: 2_000,
        ..settings()
    }
}

/// Dispatches per endpoint of a thousand new workflows that arrive at once; `fenced`: behind a fence that falls then.
fn spread(endpoints: u32, concurrency: u32, seed: u64, fenced: bool) -> Vec<u32> {
    let mut pool = Pool::new(wide());
    let mut effects = Vec::new();
    let now = Time::default();
    for endpoint in (0..endpoints).map(EndpointId) {
        pool.on(
            Event::EndpointReady {
                endpoint,
                concurrency,
            },
            now,
            &mut effects,
        );
    }
    if fenced {
        pool.on(
            Event::Fence {
                until: now.plus(std::time::Duration::from_secs(9)),
            },
            now,
            &mut effects,
        );
    }
    let mut dice = Dice(seed);
    for id in 0..WORKFLOWS {
        let key = (u128::from(dice.roll()) << 64) | u128::from(dice.roll());
        let workflow = Some(Workflow(key.to_le_bytes()));
        pool.on(
            Event::Arrived(weir_schedule::Request {
                workflow,
                ..request(id)
            }),
            now,
            &mut effects,
        );
    }
    pool.on(Event::Unfence, now, &mut effects);
    let mut counts: BTreeMap<_, u32> = (0..endpoints).map(|id| (EndpointId(id), 0)).collect();
    for effect in effects {
        if let Effect::Dispatch(_, decision) = effect {
            *counts.entry(decision.endpoint).or_default() += 1;
        }
    }
    counts.into_values().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_thousand_simultaneous_workflows_differ_by_at_most_one(
        endpoints in 1_u32..40, spare in 1_u32..300, seed in any::<u64>(), fenced in any::<bool>(),
    ) {
        let concurrency = (WORKFLOWS as u32).div_ceil(endpoints) + spare - 1;
        let counts = spread(endpoints, concurrency, seed, fenced);
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        prop_assert_eq!(u64::from(counts.iter().sum::<u32>()), WORKFLOWS);
        prop_assert!(most - least <= 1, "{:?}", counts);
    }
}
