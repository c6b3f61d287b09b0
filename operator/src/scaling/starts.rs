//! Cold starts: their parts, and what the past ones say about the next. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::{instant::between, pods::EnginePod};

/// Starts remembered.
pub const KEPT: usize = 16;

/// Parts of one start. A part that could not be told apart is `None` and lies in the next one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// From the order until the pod has a node.
    pub schedule: Option<Duration>,
    /// Until the sidecar runs: volumes, sandbox and the router's image.
    pub pull: Option<Duration>,
    /// Until the engine's process runs: the engine's image.
    pub start: Option<Duration>,
    /// Until the engine answers its sidecar: the model is loaded.
    pub load: Option<Duration>,
    /// From there until the kubelet calls the pod ready.
    pub ready: Option<Duration>,
}

/// One finished start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// From the order to the first moment that requests could be sent.
    pub total: Duration,
    /// Its parts.
    pub phases: Phases,
}

/// The start of a pod that was ordered at `ordered` and seen able to serve at `served`. The kubelet's times have
/// whole seconds, so parts are true to a second, the total to the moment of the two calls.
#[must_use]
pub fn measure(pod: &EnginePod, ordered: Timestamp, served: Timestamp) -> Start {
    let mut last = ordered;
    let mut part = |at: Option<Timestamp>| {
        at.map(|at| {
            let at = at.clamp(last, served.max(last));
            let part = between(last, at);
            last = at;
            part
        })
    };
    let phases = Phases {
        schedule: part(pod.scheduled),
        pull: part(pod.sidecar_started),
        start: part(pod.engine_started),
        load: part(Some(served)),
        ready: pod
            .ready
            .then_some(pod.ready_changed)
            .flatten()
            .map(|ready| between(served, ready)),
    };
    Start {
        total: between(ordered, served),
        phases,
    }
}

/// The last starts of a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Starts {
    /// Totals, newest last, at most [`KEPT`].
    pub recent: Vec<Duration>,
    /// Starts measured since the pool was made.
    pub samples: u32,
    /// Parts of the last one.
    pub phases: Option<Phases>,
}

impl Starts {
    /// Takes one more.
    pub fn add(&mut self, start: Start) {
        self.recent.push(start.total);
        if self.recent.len() > KEPT {
            self.recent.remove(0);
        }
        self.samples = self.samples.saturating_add(1);
        self.phases = Some(start.phases);
    }

    /// Mean and mean square in seconds; of the prior until one was measured.
    #[must_use]
    pub fn moments(&self, prior: Duration) -> (f64, f64) {
        let prior = [prior];
        let list = if self.recent.is_empty() {
            &prior[..]
        } else {
            &self.recent
        };
        let count = f64::from(u32::try_from(list.len()).unwrap_or(u32::MAX));
        let sum: f64 = list.iter().map(Duration::as_secs_f64).sum();
        let squares: f64 = list.iter().map(|start| start.as_secs_f64().powi(2)).sum();
        (sum / count, squares / count)
    }

    /// The `percent`-th percentile by nearest rank; `None` without a start.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.recent.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    fn pod() -> EnginePod {
        EnginePod {
            name: "p".to_owned(),
            uid: "u".to_owned(),
            created: at(0),
            scheduled: Some(at(1_000)),
            sidecar_started: Some(at(3_000)),
            engine_started: Some(at(4_000)),
            engine_up: true,
            restarts: 0,
            ready: true,
            ready_changed: Some(at(13_000)),
            terminating: false,
            trouble: None,
            deletion_cost: None,
        }
    }

    fn seconds(list: &[u64]) -> Vec<Duration> {
        list.iter().map(|seconds| Duration::from_secs(*seconds)).collect()
    }

    #[test]
    fn parts_add_up_to_the_total() {
        let start = measure(&pod(), at(200), at(12_400));
        assert_eq!(start.total, Duration::from_millis(12_200));
        let phases = start.phases;
        let parts = [phases.schedule, phases.pull, phases.start, phases.load].map(Option::unwrap);
        assert_eq!(parts.map(|part| part.as_millis()), [800, 2_000, 1_000, 8_400]);
        assert_eq!(parts.iter().sum::<Duration>(), start.total);
        assert_eq!(phases.ready, Some(Duration::from_millis(600)));
    }

    #[test]
    fn a_missing_part_lies_in_the_next_and_rounding_is_never_negative() {
        let pod = EnginePod {
            scheduled: Some(at(0)),
            sidecar_started: None,
            ..pod()
        };
        let phases = measure(&pod, at(200), at(5_000)).phases;
        assert_eq!((phases.schedule, phases.pull), (Some(Duration::ZERO), None));
        assert_eq!(phases.start, Some(Duration::from_millis(3_800)));
    }

    #[test]
    fn moments_are_of_the_prior_until_measured() {
        let mut starts = Starts::default();
        assert_eq!(starts.moments(Duration::from_secs(120)), (120.0, 14_400.0));
        starts.recent = seconds(&[2, 4]);
        // (2 + 4) / 2 = 3; (4 + 16) / 2 = 10
        assert_eq!(starts.moments(Duration::from_secs(120)), (3.0, 10.0));
    }

    #[test]
    fn percentiles_are_nearest_rank_and_memory_is_bounded() {
        let mut starts = Starts {
            recent: seconds(&[4, 1, 3, 2]),
            ..Starts::default()
        };
        assert_eq!(starts.percentile(50), Some(Duration::from_secs(2)));
        assert_eq!(starts.percentile(95), Some(Duration::from_secs(4)));
        assert_eq!(Starts::default().percentile(50), None);
        for second in 0..40 {
            starts.add(Start {
                total: Duration::from_secs(second),
                phases: Phases::default(),
            });
        }
        assert_eq!((starts.recent.len(), starts.samples), (KEPT, 40));
        assert_eq!(starts.recent.last(), Some(&Duration::from_secs(39)));
    }
}
