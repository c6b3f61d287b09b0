//! The pod's own bound on what the engine runs at once. A gateway keeps to it by itself; the queue here only takes
//! up what several gateways, or one that hands over to its successor, send at the same moment.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use weir_wire::sidecar::AUTO_CONCURRENCY;

/// Places in the engine, and a short queue in order of arrival.
pub struct Cap {
    places: Arc<Semaphore>,
    concurrency: u32,
    waiting: AtomicU32,
    max_waiting: u32,
}

/// A place in the engine, free again when dropped.
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// All places and the queue are taken; another pod may have room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all places and the queue are taken")]
pub struct Saturated;

/// One request's stay in the queue.
struct Stay<'a>(&'a AtomicU32);

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Cap {
    /// As many places as `concurrency` (at least 1), and half as many in the queue (at least 8).
    pub fn new(concurrency: u32) -> Arc<Self> {
        let concurrency = concurrency.max(1);
        Arc::new(Self {
            places: Arc::new(Semaphore::new(concurrency as usize)),
            concurrency,
            waiting: AtomicU32::new(0),
            max_waiting: (concurrency / 2).max(8),
        })
    }

    /// Number of places.
    pub fn concurrency(&self) -> u32 {
        self.concurrency
    }

    /// Requests in the queue.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Waits for a place in order of arrival. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`Saturated`] at once when the queue is full.
    pub async fn enter(&self) -> Result<Place, Saturated> {
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(Place { _permit: permit });
        }
        let joined = self
            .waiting
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |waiting| {
                (waiting < self.max_waiting).then_some(waiting + 1)
            });
        joined.map_err(|_| Saturated)?;
        let _stay = Stay(&self.waiting);
        // The semaphore is never closed, so this cannot fail.
        let permit = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .map_err(|_| Saturated)?;
        Ok(Place { _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn places_are_given_in_order_of_arrival_and_the_queue_is_bounded() {
        let cap = Cap::new(2);
        let first = cap.enter().now_or_never().unwrap().unwrap();
        let _second = cap.enter().now_or_never().unwrap().unwrap();
        let mut queue: Vec<_> = (0..8).map(|_| Box::pin(cap.enter())).collect();
        for waiting in &mut queue {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        assert_eq!(cap.waiting(), 8);
        assert!(matches!(cap.enter().now_or_never(), Some(Err(Saturated))));
        drop(first);
        assert!(
            queue[1].as_mut().now_or_never().is_none(),
            "the second in the queue must not pass the first"
        );
        let place = queue[0].as_mut().now_or_never().unwrap().unwrap();
        assert_eq!(cap.waiting(), 7);
        // One that leaves the queue gives up its turn.
        drop(queue.remove(1));
        drop(place);
        assert!(queue[1].as_mut().now_or_never().unwrap().is_ok());
        assert_eq!(cap.waiting(), 5);
    }

    #[test]
    fn a_newcomer_does_not_pass_the_queue() {
        let cap = Cap::new(1);
        let held = cap.enter().now_or_never().unwrap().unwrap();
        let mut early = Box::pin(cap.enter());
        assert!(early.as_mut().now_or_never().is_none());
        drop(held);
        let mut late = Box::pin(cap.enter());
        assert!(late.as_mut().now_or_never().is_none());
        assert!(early.as_mut().now_or_never().unwrap().is_ok());
    }

    #[test]
    fn there_is_always_a_place() {
        assert_eq!(Cap::new(0).concurrency(), 1);
    }
}
