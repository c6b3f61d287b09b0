//! A connection's alarm for heads that are late. hyper asks for a new one with every request; setting and clearing a
//! timer each time would cost more than reading the head. So one timer per connection is left running, and moved only
//! when it fires before the deadline that holds by then.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::rt::{Sleep, Timer};

/// The timer of one connection; its clones share it. Only one of its sleeps is awaited at a time.
#[derive(Clone, Default)]
pub(super) struct LazyTimer(Arc<Mutex<Option<Pin<Box<tokio::time::Sleep>>>>>);

struct LazySleep {
    timer: LazyTimer,
    deadline: tokio::time::Instant,
}

impl Timer for LazyTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(LazySleep {
            timer: self.clone(),
            deadline: deadline.into(),
        })
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the traffic port is a shell: it times its clients"
    )]
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

impl Sleep for LazySleep {}

impl Future for LazySleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline;
        let mut shared = self.timer.0.lock().unwrap_or_else(PoisonError::into_inner);
        let timer = shared.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_sleep_ends_at_its_own_deadline() {
        let timer = LazyTimer::default();
        let begun = timer.now();
        for (sleep, expected_s) in [(10, 10), (3, 13), (20, 33)] {
            timer.sleep(Duration::from_secs(sleep)).await;
            assert_eq!(timer.now() - begun, Duration::from_secs(expected_s));
        }
        // Given up early, as when the head has come: the timer goes on, and wakes nobody too early.
        let given_up = timeout(Duration::from_secs(1), timer.sleep(Duration::from_secs(5))).await;
        assert!(given_up.is_err());
        timer.sleep(Duration::from_secs(30)).await;
        assert_eq!(timer.now() - begun, Duration::from_secs(64));
        timer.sleep(Duration::ZERO).await;
        assert_eq!(timer.now() - begun, Duration::from_secs(64));
    }
}
