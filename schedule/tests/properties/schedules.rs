//! Legality of every effect, and no place lost, over random schedules.

use proptest::prelude::*;

use crate::{
    dice::{Dice, SeedNote},
    witness::{Witness, settings},
};

/// Random schedules of arrivals, cancels, timeouts, dispatches, ends, and endpoints that come and go.
const SCHEDULES: u64 = 100_000;

fn play(from: u64, to: u64) -> (u64, u64) {
    let mut totals = (0, 0);
    for seed in from..to {
        let _note = SeedNote(seed);
        let mut dice = Dice(seed);
        let mut witness = Witness::new(settings());
        for _ in 0..8 + dice.roll() % 12 {
            witness.step(dice.roll());
        }
        witness.close();
        totals.0 += witness.arrived;
        totals.1 += witness.effects.len() as u64;
    }
    totals
}

#[test]
fn no_place_leaks_in_the_first_half_of_a_hundred_thousand_schedules() {
    let (arrived, effects) = play(0, SCHEDULES / 2);
    assert!(
        arrived > 100_000 && effects > arrived,
        "the schedules do something: {arrived} {effects}"
    );
}

#[test]
fn no_place_leaks_in_the_second_half_of_a_hundred_thousand_schedules() {
    play(SCHEDULES / 2, SCHEDULES);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_effect_is_legal_in_long_schedules(steps in prop::collection::vec(any::<u64>(), 0..400)) {
        let mut witness = Witness::new(settings());
        for step in steps {
            witness.step(step);
            witness.audit();
        }
        witness.close();
    }
}
