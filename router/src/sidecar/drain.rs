//! What is going on in this pod, and waiting until it is nothing: the preStop hook and the sidecar's own end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout_at},
};

use super::now;

/// A pod counts as quiet after this long without a request: longer than a gateway takes to see the pod's deletion.
const QUIET: Duration = Duration::from_secs(1);

/// Requests between accept and the end of their answer, and when one last began or ended.
pub struct Activity {
    origin: Instant,
    in_flight: AtomicU32,
    /// Milliseconds after `origin`, plus 1; 0 before the first request.
    last: AtomicU64,
    ended: Notify,
}

/// One request's presence, held until the end of its answer.
pub struct Presence {
    activity: Arc<Activity>,
}

impl Activity {
    /// Nothing yet; `origin` is the sidecar's start.
    pub fn new(origin: Instant) -> Arc<Self> {
        Arc::new(Self {
            origin,
            in_flight: AtomicU32::new(0),
            last: AtomicU64::new(0),
            ended: Notify::new(),
        })
    }

    /// A request begins.
    pub fn enter(self: &Arc<Self>) -> Presence {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        self.touch();
        Presence {
            activity: Arc::clone(self),
        }
    }

    /// Requests present now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// When a request last began or ended.
    pub fn last(&self) -> Option<Instant> {
        let after = self.last.load(Ordering::SeqCst).checked_sub(1)?;
        Some(self.origin + Duration::from_millis(after))
    }

    fn touch(&self) {
        let after = now().saturating_duration_since(self.origin).as_millis();
        self.last
            .fetch_max(u64::try_from(after).unwrap_or(u64::MAX - 1) + 1, Ordering::SeqCst);
    }

    /// Returns once no request is present.
    pub async fn empty(&self) {
        loop {
            let ended = self.ended.notified();
            if self.in_flight() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Returns once no request is present and none has begun or ended for a second, counted from the call at the
    /// earliest: the gateways need that long to stop sending. `false`: that did not happen within `limit`.
    pub async fn quiet(&self, limit: Duration) -> bool {
        let called = now();
        let settled = async {
            loop {
                self.empty().await;
                let quiet_at = self.last().map_or(called, |last| last.max(called)) + QUIET;
                sleep_until(quiet_at).await;
                // The record of the last event is cut to whole milliseconds, so it may be up to one early.
                if self.in_flight() == 0
                    && self
                        .last()
                        .is_none_or(|last| last.max(called) + QUIET <= quiet_at)
                {
                    return;
                }
            }
        };
        timeout_at(called + limit, settled).await.is_ok()
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.activity.touch();
        if self.activity.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.activity.ended.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::time::advance;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(600);

    async fn elapsed(began: Instant) -> Duration {
        now().duration_since(began)
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_pod_is_quiet_after_a_second() {
        let began = now();
        assert!(Activity::new(began).quiet(LIMIT).await);
        assert_eq!(elapsed(began).await, QUIET);
    }

    #[tokio::test(start_paused = true)]
    async fn the_hook_waits_for_the_last_answer_and_a_second_more() {
        let began = now();
        let activity = Activity::new(began);
        let long = activity.enter();
        let mut hook = Box::pin(activity.quiet(LIMIT));
        assert!(hook.as_mut().now_or_never().is_none());
        advance(Duration::from_secs(30)).await;
        assert!(hook.as_mut().now_or_never().is_none(), "a request is present");
        drop(long);
        assert!(hook.as_mut().now_or_never().is_none(), "no quiet second yet");
        advance(Duration::from_millis(900)).await;
        // A late request starts the second again.
        drop(activity.enter());
        assert!(hook.as_mut().now_or_never().is_none());
        advance(Duration::from_millis(900)).await;
        assert!(hook.as_mut().now_or_never().is_none());
        assert!(hook.await);
        assert_eq!(elapsed(began).await, Duration::from_millis(31_900));
    }

    #[tokio::test(start_paused = true)]
    async fn the_hook_ends_at_its_limit() {
        let began = now();
        let activity = Activity::new(began);
        let _stuck = activity.enter();
        assert!(!activity.quiet(Duration::from_secs(20)).await);
        assert_eq!(elapsed(began).await, Duration::from_secs(20));
    }

    #[test]
    fn presence_counts_on_every_path() {
        let activity = Activity::new(now());
        let (one, two) = (activity.enter(), activity.enter());
        assert_eq!((activity.in_flight(), activity.last().is_some()), (2, true));
        drop((one, two));
        assert_eq!(activity.in_flight(), 0);
    }
}
