//! Going to zero without losing an arrival: every gateway replica must be fenced and idle at the same time, and the
//! replica patch must be answered while the first of those fences still holds. Pure; times are spans since the
//! orders were sent, on the operator's own clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Life of a fence. A gateway counts it from the order's arrival, the operator from before it was sent: the
/// operator's view always ends first.
pub const LEASE: Duration = Duration::from_secs(10);
/// Time kept free at the lease's end.
pub const MARGIN: Duration = Duration::from_secs(1);
/// Least time that a replica patch is given; with less left it is not sent.
pub const LEAST_PATCH: Duration = Duration::from_millis(500);

/// What a replica said to the fence order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Idle, and holding arrivals from now on.
    Fenced,
    /// Not idle.
    Busy,
    /// No answer, or a refusal.
    Unreachable,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Wait for the other answers.
    Wait,
    /// Every replica is fenced.
    AllFenced,
    /// Some replica is not: let arrivals through again everywhere.
    GiveUp(Answer),
}

/// One attempt to fence a pool.
#[derive(Debug, Clone)]
pub struct Fence {
    waiting: BTreeSet<String>,
    fenced: BTreeSet<String>,
    failed: BTreeMap<String, Answer>,
}

impl Fence {
    /// Orders go to these replicas (pod UIDs).
    #[must_use]
    pub fn new(replicas: BTreeSet<String>) -> Self {
        Self {
            waiting: replicas,
            fenced: BTreeSet::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Takes one replica's answer. A replica answers once; answers of others do not count.
    pub fn answer(&mut self, replica: &str, answer: Answer) -> Step {
        if self.waiting.remove(replica) {
            match answer {
                Answer::Fenced => drop(self.fenced.insert(replica.to_owned())),
                Answer::Busy | Answer::Unreachable => drop(self.failed.insert(replica.to_owned(), answer)),
            }
        }
        self.step()
    }

    /// What to do now.
    #[must_use]
    pub fn step(&self) -> Step {
        if let Some(answer) = self.failed.values().next() {
            Step::GiveUp(*answer)
        } else if self.waiting.is_empty() && !self.fenced.is_empty() {
            Step::AllFenced
        } else {
            Step::Wait
        }
    }

    /// Whether replicas may become 0 now, and how long that patch may take. `None` unless every replica that exists
    /// now is fenced, none of them has an arrival, and enough of the lease is left.
    #[must_use]
    pub fn commit(&self, now: &BTreeSet<String>, waiting: u32, since_sent: Duration) -> Option<Duration> {
        let covered = self.step() == Step::AllFenced && now.is_subset(&self.fenced) && !now.is_empty();
        let left = LEASE.saturating_sub(MARGIN).saturating_sub(since_sent);
        (covered && waiting == 0 && left >= LEAST_PATCH).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn all_must_be_fenced() {
        let mut fence = Fence::new(set(&["a", "b"]));
        assert_eq!(fence.answer("a", Answer::Fenced), Step::Wait);
        assert_eq!(fence.commit(&set(&["a", "b"]), 0, Duration::ZERO), None);
        assert_eq!(fence.answer("b", Answer::Fenced), Step::AllFenced);
        assert_eq!(
            fence.commit(&set(&["a", "b"]), 0, Duration::from_secs(2)),
            Some(Duration::from_secs(7))
        );
    }

    #[test]
    fn one_busy_or_unreachable_replica_ends_it() {
        for answer in [Answer::Busy, Answer::Unreachable] {
            let mut fence = Fence::new(set(&["a", "b"]));
            assert_eq!(fence.answer("a", answer), Step::GiveUp(answer));
            assert_eq!(fence.answer("b", Answer::Fenced), Step::GiveUp(answer));
            assert_eq!(
                fence.answer("a", Answer::Fenced),
                Step::GiveUp(answer),
                "an answer is not taken back"
            );
            assert_eq!(fence.commit(&set(&["a", "b"]), 0, Duration::ZERO), None);
        }
    }

    #[test]
    fn a_new_replica_an_arrival_or_an_old_lease_forbids_the_patch() {
        let mut fence = Fence::new(set(&["a"]));
        fence.answer("a", Answer::Fenced);
        assert_eq!(fence.commit(&set(&["a", "new"]), 0, Duration::ZERO), None);
        assert_eq!(fence.commit(&set(&["a"]), 1, Duration::ZERO), None);
        assert_eq!(fence.commit(&set(&["a"]), 0, Duration::from_millis(8_600)), None);
        assert_eq!(fence.commit(&set(&[]), 0, Duration::ZERO), None);
        assert!(fence.commit(&set(&["a"]), 0, Duration::ZERO).is_some());
    }

    #[test]
    fn nobody_to_ask_is_never_fenced() {
        assert_eq!(Fence::new(set(&[])).step(), Step::Wait);
    }

    fn answers() -> impl Strategy<Value = Vec<(u8, Answer)>> {
        let answer = prop_oneof![
            Just(Answer::Fenced),
            Just(Answer::Busy),
            Just(Answer::Unreachable)
        ];
        prop::collection::vec((0_u8..6, answer), 0..20)
    }

    proptest! {
        /// Whatever order answers come in: the patch is allowed only if the first answer of every asked and every
        /// present replica was "fenced", and its time ends inside the lease.
        #[test]
        fn commit_only_when_everyone_is_fenced(
            asked in prop::collection::btree_set(0_u8..6, 0..6),
            present in prop::collection::btree_set(0_u8..6, 0..6),
            answers in answers(), waiting in 0_u32..2, millis in 0_u64..12_000,
        ) {
            let names = |set: &BTreeSet<u8>| set.iter().map(u8::to_string).collect::<BTreeSet<_>>();
            let mut fence = Fence::new(names(&asked));
            for (replica, answer) in &answers {
                fence.answer(&replica.to_string(), *answer);
            }
            let first = |replica: &u8| answers.iter().find(|(who, _)| who == replica).map(|(_, answer)| *answer);
            let all_fenced = asked.iter().all(|replica| first(replica) == Some(Answer::Fenced));
            let sent = Duration::from_millis(millis);
            if let Some(left) = fence.commit(&names(&present), waiting, sent) {
                prop_assert!(all_fenced && waiting == 0 && !present.is_empty() && present.is_subset(&asked));
                prop_assert!(sent + left < LEASE);
            } else {
                let late = LEASE - MARGIN < sent + LEAST_PATCH;
                let covered = all_fenced && !present.is_empty() && present.is_subset(&asked);
                prop_assert!(!covered || waiting > 0 || late);
            }
        }
    }
}
