//! What one pod's sidecar and kubelet say, turned into what the pool is told. Pure; `endpoints.rs` asks and tells.

use weir_wire::sidecar::EngineState;

/// Requests at once for a pod whose sidecar never said how many.
const UNKNOWN_CONCURRENCY: u32 = crate::sidecar::cap::AUTO_CONCURRENCY;

/// What the pool is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tell {
    /// Before readiness: which workflows the pod remembers.
    Homes,
    /// The endpoint is ready, for so many requests at once.
    Ready(u32),
    /// The endpoint is not ready.
    NotReady,
}

/// Why the sidecar did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// Its port is closed, and the traffic port, which is the same process's, with it.
    Refused,
    /// Anything else; the kubelet's word counts until it answers again.
    Unclear,
}

/// One pod's follower.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// The sidecar process that answered last, and the version it told.
    heard: Option<(String, u64)>,
    concurrency: Option<u32>,
    told: Option<Tell>,
    /// The kubelet's Ready condition.
    kubelet: bool,
    silence: Option<Silence>,
    homes_of: Option<String>,
}

impl Follower {
    pub(super) fn new(kubelet: bool) -> Self {
        Self {
            kubelet,
            ..Self::default()
        }
    }

    /// The version after which the sidecar is asked for news; 0 when any state is news.
    pub(super) fn after(&self) -> u64 {
        match (&self.heard, self.silence) {
            (Some((_, version)), None) => *version,
            // It may have restarted, and then counts from 1 again.
            _ => 0,
        }
    }

    /// The sidecar answered.
    pub(super) fn answered(&mut self, state: &EngineState) -> Vec<Tell> {
        self.silence = None;
        self.heard = Some((state.instance.clone(), state.version));
        self.concurrency = Some(state.concurrency.max(1));
        if !state.ready {
            return self.tell(Tell::NotReady);
        }
        let mut tells = Vec::new();
        if self.homes_of.as_ref() != Some(&state.instance) {
            self.homes_of = Some(state.instance.clone());
            tells.push(Tell::Homes);
        }
        tells.extend(self.tell(Tell::Ready(state.concurrency.max(1))));
        tells
    }

    /// The sidecar did not answer.
    pub(super) fn silent(&mut self, silence: Silence) -> Vec<Tell> {
        self.silence = Some(silence);
        self.fall_back()
    }

    /// The kubelet's Ready condition changed.
    pub(super) fn kubelet(&mut self, ready: bool) -> Vec<Tell> {
        self.kubelet = ready;
        self.fall_back()
    }

    /// While the sidecar is silent, the kubelet decides.
    fn fall_back(&mut self) -> Vec<Tell> {
        match self.silence {
            None => Vec::new(),
            Some(Silence::Unclear) if self.kubelet => {
                self.tell(Tell::Ready(self.concurrency.unwrap_or(UNKNOWN_CONCURRENCY)))
            }
            Some(Silence::Unclear | Silence::Refused) => self.tell(Tell::NotReady),
        }
    }

    fn tell(&mut self, tell: Tell) -> Vec<Tell> {
        if self.told == Some(tell) || (self.told.is_none() && tell == Tell::NotReady) {
            return Vec::new();
        }
        self.told = Some(tell);
        vec![tell]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(instance: &str, version: u64, ready: bool, concurrency: u32) -> EngineState {
        EngineState {
            version,
            instance: instance.into(),
            ready,
            concurrency,
            in_flight: 0,
            last_activity_age_ms: None,
            start_ms: None,
            engine: None,
        }
    }

    fn check(got: &[Tell], expected: &[Tell]) {
        assert_eq!(got, expected);
    }

    #[test]
    fn readiness_and_concurrency_are_told_once_and_homes_before_them() {
        let mut pod = Follower::new(false);
        assert_eq!(pod.after(), 0);
        check(&pod.answered(&state("i", 1, false, 8)), &[]);
        assert_eq!(pod.after(), 1);
        check(
            &pod.answered(&state("i", 2, true, 8)),
            &[Tell::Homes, Tell::Ready(8)],
        );
        check(&pod.answered(&state("i", 3, true, 8)), &[]);
        check(&pod.answered(&state("i", 4, true, 16)), &[Tell::Ready(16)]);
        check(&pod.answered(&state("i", 5, false, 16)), &[Tell::NotReady]);
        check(&pod.answered(&state("i", 6, true, 0)), &[Tell::Ready(1)]);
        check(&pod.kubelet(false), &[]);
    }

    #[test]
    fn a_restarted_sidecar_is_heard_from_its_first_version_and_asked_for_homes_again() {
        let mut pod = Follower::new(true);
        check(
            &pod.answered(&state("i", 40, true, 8)),
            &[Tell::Homes, Tell::Ready(8)],
        );
        check(&pod.silent(Silence::Refused), &[Tell::NotReady]);
        assert_eq!(pod.after(), 0);
        check(
            &pod.answered(&state("j", 2, true, 8)),
            &[Tell::Homes, Tell::Ready(8)],
        );
        assert_eq!(pod.after(), 2);
    }

    #[test]
    fn while_the_sidecar_is_silent_the_kubelet_decides() {
        let mut pod = Follower::new(true);
        check(&pod.silent(Silence::Unclear), &[Tell::Ready(UNKNOWN_CONCURRENCY)]);
        check(&pod.kubelet(false), &[Tell::NotReady]);
        check(&pod.kubelet(true), &[Tell::Ready(UNKNOWN_CONCURRENCY)]);
        check(
            &pod.answered(&state("i", 1, true, 8)),
            &[Tell::Homes, Tell::Ready(8)],
        );
        check(&pod.silent(Silence::Unclear), &[]);
        check(&pod.silent(Silence::Refused), &[Tell::NotReady]);
        check(&pod.kubelet(false), &[]);
        check(&pod.kubelet(true), &[]);
    }
}
