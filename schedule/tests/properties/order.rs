//! Class order and ageing bound, against an independent model of the queue: a list that is searched from end to end.

use std::time::Duration;

use proptest::prelude::*;
use weir_schedule::{
    Affinity, Class, Effect, EndpointId, Event, Outcome, Pool, Request, RequestId, Settings, Time, Workflow,
};

use crate::witness::{request, settings};

/// One waiting request of the model; times in milliseconds.
struct Item {
    id: u64,
    arrived: u64,
    bound: u64,
    class: u64,
    weight: u64,
    returning: bool,
}

/// Takes out the one that must be next.
fn next(queue: &mut Vec<Item>, now: u64) -> Option<u64> {
    let before = |a: &Item, b: &Item| {
        let due = |item: &Item| item.arrived + item.bound;
        let urgency = |item: &Item| item.weight * (60_000 + now - item.arrived);
        match (due(a) <= now, due(b) <= now) {
            (true, true) => (due(a), a.id) < (due(b), b.id),
            (true, false) => true,
            (false, true) => false,
            (false, false) if a.returning != b.returning => a.returning,
            (false, false) if a.class != b.class => a.class < b.class,
            (false, false) if urgency(a) != urgency(b) => urgency(a) > urgency(b),
            (false, false) => a.id < b.id,
        }
    };
    let mut best = 0;
    for index in 1..queue.len() {
        if before(&queue[index], &queue[best]) {
            best = index;
        }
    }
    (!queue.is_empty()).then(|| queue.remove(best).id)
}

/// The model's request as the pool takes it. Returning turns belong to workflow 0, which lives at the one endpoint.
fn as_request(item: &Item) -> Request {
    Request {
        workflow: item.returning.then_some(Workflow([0; 16])),
        affinity: Affinity::Preferred {
            max_wait: Duration::from_secs(1_000_000),
        },
        class: [Class::Interactive, Class::Standard, Class::Batch][item.class as usize],
        weight: item.weight as u32,
        max_wait: Some(Duration::from_millis(item.bound)),
        idle_ttl: Duration::MAX,
        max_age: Duration::MAX,
        ..request(item.id)
    }
}

/// One random act: time passes, then a request arrives, or the running one ends.
type Act = (u64, Option<(u64, u64, u64, bool)>);

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let passed = prop_oneof![Just(0), 1_u64..2_000, 10_000_u64..90_000];
    let bound = prop_oneof![Just(15_000_u64), Just(300_000), 1_000_u64..400_000];
    let weight = prop_oneof![Just(1_u64), 1_u64..=64];
    let arrival = (0_u64..3, weight, bound, any::<bool>());
    prop::collection::vec((passed, prop::option::weighted(0.6, arrival)), 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_is_that_of_the_model(acts in acts()) {
        let mut pool = Pool::new(Settings { max_waiting: 1_000, max_waiting_bytes: 1 << 30, ..settings() });
        let mut effects = Vec::new();
        let mut now = 0;
        let mut model = Vec::new();
        let time = |now| Time(Duration::from_millis(now));
        pool.on(Event::EndpointReady { endpoint: EndpointId(0), concurrency: 1 }, time(0), &mut effects);
        let first = Item { id: 0, arrived: 0, bound: 1, class: 0, weight: 1, returning: true };
        pool.on(Event::Arrived(as_request(&first)), time(0), &mut effects);
        let mut running = Some(0);
        for (index, (passed, arrival)) in acts.into_iter().enumerate() {
            now += passed;
            effects.clear();
            if let Some((class, weight, bound, returning)) = arrival {
                let item = Item { id: index as u64 + 1, arrived: now, bound, class, weight, returning };
                pool.on(Event::Arrived(as_request(&item)), time(now), &mut effects);
                model.push(item);
            } else if let Some(id) = running.take() {
                let outcome = Outcome::Completed { footprint_tokens: None, tool_call: false };
                pool.on(Event::Finished(RequestId(id), outcome), time(now), &mut effects);
            }
            let expected = if running.is_none() { next(&mut model, now) } else { None };
            let got = match effects.as_slice() {
                [] => None,
                [Effect::Dispatch(RequestId(id), _)] => Some(*id),
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(got, expected);
            running = running.or(got);
        }
    }
}
