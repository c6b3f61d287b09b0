//! What the sidecar says about its pod, versioned for long polls. A change that routers act on (readiness,
//! concurrency) is a new version at once; everything else is gathered into one version a second.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use weir_wire::sidecar::{EngineFigures, EngineState, MAX_WAIT_MS};

use super::{drain::Activity, millis, now};

/// What the engine's watchers found out; all else is read when it is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Engine {
    ready: bool,
    start: Option<Duration>,
    figures: Option<EngineFigures>,
}

/// What the last version held of the facts that are gathered.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Published {
    in_flight: u32,
    last_activity: Option<Instant>,
    figures: Option<EngineFigures>,
    start: Option<Duration>,
}

/// The pod's state and those who wait for it to change.
pub struct StateHub {
    instance: String,
    concurrency: u32,
    activity: Arc<Activity>,
    engine: Mutex<(Engine, Published)>,
    version: watch::Sender<u64>,
}

impl StateHub {
    /// Not ready, at version 1. `instance` is new at every start of the process.
    pub fn new(instance: String, concurrency: u32, activity: Arc<Activity>) -> Self {
        let (version, _) = watch::channel(1);
        Self {
            instance,
            concurrency,
            activity,
            engine: Mutex::default(),
            version,
        }
    }

    /// The engine is ready or not; `start`: from the sidecar's start to the engine's first healthy answer, kept from
    /// the first time it is known.
    pub fn set_ready(&self, ready: bool, start: Option<Duration>) {
        let changed = {
            let mut guard = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
            let engine = &mut guard.0;
            engine.start = engine.start.or(start);
            std::mem::replace(&mut engine.ready, ready) != ready
        };
        if changed {
            self.publish();
        }
    }

    /// The engine's own figures, or that they are unknown.
    pub fn set_figures(&self, figures: Option<EngineFigures>) {
        self.engine
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .figures = figures;
    }

    /// The engine is ready.
    pub fn is_ready(&self) -> bool {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).0.ready
    }

    /// Requests are present.
    pub fn is_busy(&self) -> bool {
        self.activity.in_flight() > 0
    }

    /// The engine's own figures.
    pub fn figures(&self) -> Option<EngineFigures> {
        self.engine
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .figures
    }

    /// Makes a new version if anything that is gathered changed since the last; to be called once a second.
    pub fn gather(&self) {
        let seen = self.seen();
        if self.engine.lock().unwrap_or_else(PoisonError::into_inner).1 != seen {
            self.publish();
        }
    }

    fn seen(&self) -> Published {
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner).0;
        Published {
            in_flight: self.activity.in_flight(),
            last_activity: self.activity.last(),
            figures: engine.figures,
            start: engine.start,
        }
    }

    fn publish(&self) {
        let seen = self.seen();
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).1 = seen;
        self.version.send_modify(|version| *version += 1);
    }

    /// The state now.
    pub fn state(&self, now: Instant) -> EngineState {
        let version = *self.version.borrow();
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner).0;
        EngineState {
            version,
            instance: self.instance.clone(),
            ready: engine.ready,
            concurrency: self.concurrency,
            in_flight: self.activity.in_flight(),
            last_activity_age_ms: self
                .activity
                .last()
                .map(|last| millis(now.saturating_duration_since(last))),
            start_ms: engine.start.map(millis),
            engine: engine.figures,
        }
    }

    /// The state as soon as its version is newer than `after`, at the latest after `wait` (at most
    /// [`MAX_WAIT_MS`]).
    pub async fn newer(&self, after: u64, wait: Duration) -> EngineState {
        let mut versions = self.version.subscribe();
        let wait = wait.min(Duration::from_millis(MAX_WAIT_MS));
        // Either way the answer is the state as it is then.
        let _ = timeout(wait, versions.wait_for(|version| *version > after)).await;
        self.state(now())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::time::advance;

    use super::*;

    fn hub() -> (StateHub, Arc<Activity>) {
        let activity = Activity::new(now());
        (StateHub::new("i".into(), 4, Arc::clone(&activity)), activity)
    }

    const WAIT: Duration = Duration::from_secs(20);

    #[tokio::test(start_paused = true)]
    async fn readiness_is_told_at_once_and_the_rest_when_it_is_gathered() {
        let (hub, activity) = hub();
        let first = hub
            .newer(0, WAIT)
            .now_or_never()
            .expect("version 1 is newer than 0");
        assert_eq!((first.version, first.ready, first.concurrency), (1, false, 4));

        let mut poll = Box::pin(hub.newer(first.version, WAIT));
        assert!(poll.as_mut().now_or_never().is_none());
        hub.set_ready(true, Some(Duration::from_millis(1500)));
        let ready = poll.as_mut().now_or_never().expect("readiness is told at once");
        assert_eq!(
            (ready.version, ready.ready, ready.start_ms),
            (2, true, Some(1500))
        );
        drop(poll);

        let mut poll = Box::pin(hub.newer(ready.version, WAIT));
        assert!(poll.as_mut().now_or_never().is_none());
        let request = activity.enter();
        let figures = EngineFigures {
            running: 1,
            waiting: 0,
            kv_usage: None,
            kv_capacity_tokens: None,
            prompt_tokens_total: None,
            cached_tokens_total: None,
            generation_tokens_total: None,
        };
        hub.set_figures(Some(figures));
        assert!(
            poll.as_mut().now_or_never().is_none(),
            "gathered, not told at once"
        );
        hub.gather();
        let busy = poll.as_mut().now_or_never().expect("gathered");
        assert_eq!((busy.version, busy.in_flight, busy.engine), (3, 1, Some(figures)));
        hub.gather();
        assert_eq!(hub.state(now()).version, 3, "nothing changed, no new version");
        advance(Duration::from_secs(2)).await;
        drop(request);
        hub.gather();
        let after = hub.newer(3, WAIT).await;
        assert_eq!(
            (after.version, after.in_flight, after.last_activity_age_ms),
            (4, 0, Some(0))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_ends_without_a_change_and_never_later_than_the_bound() {
        let (hub, _) = hub();
        let began = now();
        assert_eq!(hub.newer(1, Duration::from_secs(3)).await.version, 1);
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        hub.newer(u64::MAX, Duration::from_secs(3600)).await;
        assert_eq!(began.elapsed(), Duration::from_millis(3_000 + MAX_WAIT_MS));
    }

    #[test]
    fn a_repeated_readiness_is_no_change_and_the_first_start_stays() {
        let (hub, _) = hub();
        hub.set_ready(true, Some(Duration::from_secs(1)));
        hub.set_ready(true, Some(Duration::from_secs(9)));
        hub.set_ready(false, None);
        let state = hub.state(now());
        assert_eq!(
            (state.version, state.start_ms, state.ready),
            (3, Some(1000), false)
        );
    }
}
