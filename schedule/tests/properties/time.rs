//! Replays, deadlines and fences.

use std::time::Duration;

use proptest::prelude::*;
use weir_schedule::{Effect, EndpointId, Event, Pool, Time};

use crate::{
    dice::Dice,
    witness::{Witness, request, settings},
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_events_have_the_same_effects(steps in prop::collection::vec(any::<u64>(), 0..400)) {
        let mut witness = Witness::new(settings());
        witness.events = Some(Vec::new());
        for step in steps {
            witness.step(step);
        }
        let mut again = Pool::new(settings());
        let mut effects = Vec::new();
        for (event, time) in witness.events.as_ref().unwrap() {
            again.on(event.clone(), *time, &mut effects);
        }
        prop_assert_eq!(again.snapshot(witness.now), witness.pool.snapshot(witness.now));
        prop_assert_eq!(effects, witness.effects);
    }

    /// A second pool that also ticks in between sees nothing at those ticks, and comes to the same effects.
    #[test]
    fn nothing_changes_before_the_next_deadline(
        steps in prop::collection::vec(any::<u64>(), 0..200), seed in any::<u64>(),
    ) {
        let mut witness = Witness::new(settings());
        witness.events = Some(Vec::new());
        for step in steps {
            witness.pass(Duration::from_millis(step % 5_000));
            witness.step(step);
        }
        let mut dice = Dice(seed);
        let mut busy = Pool::new(settings());
        let mut effects = Vec::new();
        let mut last = Time::default();
        for (event, time) in witness.events.as_ref().unwrap() {
            // As far as the first pool was punctual, this one ticks more often.
            if busy.next_deadline().is_none_or(|deadline| deadline > *time) {
                let before = effects.len();
                for _ in 0..3 {
                    let gap = time.since(last).as_nanos() as u64;
                    last = last.plus(Duration::from_nanos(if gap == 0 { 0 } else { dice.roll() % gap }));
                    let shown = busy.snapshot(last);
                    busy.on(Event::Tick, last, &mut effects);
                    prop_assert_eq!(effects.len(), before, "an early tick had effects");
                    prop_assert_eq!(busy.snapshot(last), shown, "an early tick changed the pool");
                }
            }
            busy.on(event.clone(), *time, &mut effects);
            last = *time;
        }
        prop_assert_eq!(effects, witness.effects);
    }

    #[test]
    fn a_fence_strands_nobody(lease in 1_u64..60_000, arrivals in prop::collection::vec(0_u64..60_000, 0..12)) {
        let mut witness = Witness::new(settings());
        witness.send(Event::EndpointReady { endpoint: EndpointId(0), concurrency: 12 });
        let until = Time(Duration::from_millis(lease));
        witness.send(Event::Fence { until });
        prop_assert_eq!(&witness.effects, &[Effect::Fenced(true)]);
        let mut arrivals = arrivals;
        arrivals.sort_unstable();
        for (id, arrival) in arrivals.iter().enumerate() {
            let gap = Duration::from_millis(*arrival).saturating_sub(witness.now.0);
            witness.pass(gap);
            witness.send(Event::Arrived(request(id as u64)));
        }
        witness.pass(Duration::from_millis(60_000));
        prop_assert_eq!(witness.waiting(), 0);
        // With a hold shorter than the fence some are shed, each with an answer; none is left.
        prop_assert_eq!(witness.ended, arrivals.len() as u64);
    }
}
