//! The lease of one dispatched request: whatever happens, its observer is told once, and only once, how it ended.

use super::usage::Seen;

/// How a dispatched request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The engine answered in full, with this status.
    Answered(u16),
    /// The engine answered 200 and then an error event inside the stream.
    ErrorEvent,
    /// The answer ended before it was complete.
    Cut,
    /// No byte for too long in the middle of the answer.
    IdleTimeout,
    /// No first byte in time.
    FirstTokenTimeout,
    /// No connection could be made.
    ConnectFailed,
    /// The connection or the engine failed before the first byte.
    Failed,
    /// The client left first.
    ClientGone,
}

/// Whoever keeps the books of dispatched requests: the gateway's scheduler, the sidecar's cap.
pub trait Observer: Send + 'static {
    /// The first body byte arrived.
    fn first_byte(&mut self);
    /// The request ended; called exactly once.
    fn finished(&mut self, end: End, seen: &Seen);
}

/// Tells its observer the end once; dropping it means that the client left.
pub struct InFlight {
    observer: Option<Box<dyn Observer>>,
    begun: bool,
}

impl InFlight {
    /// A lease whose end `observer` is told.
    #[must_use]
    pub fn new(observer: Box<dyn Observer>) -> Self {
        Self {
            observer: Some(observer),
            begun: false,
        }
    }

    /// Tells the first byte, the first time it is called.
    pub fn first_byte(&mut self) {
        if !std::mem::replace(&mut self.begun, true)
            && let Some(observer) = &mut self.observer
        {
            observer.first_byte();
        }
    }

    /// Tells the end, the first time it is called.
    pub fn finish(&mut self, end: End, seen: &Seen) {
        if let Some(mut observer) = self.observer.take() {
            observer.finished(end, seen);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.finish(End::ClientGone, &Seen::default());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    struct Book(Arc<Mutex<Vec<String>>>);

    impl Observer for Book {
        fn first_byte(&mut self) {
            self.0.lock().unwrap().push("first".into());
        }

        fn finished(&mut self, end: End, _: &Seen) {
            self.0.lock().unwrap().push(format!("{end:?}"));
        }
    }

    #[test]
    fn the_end_is_told_once_on_every_path() {
        let book = Arc::new(Mutex::new(Vec::new()));
        let mut lease = InFlight::new(Box::new(Book(Arc::clone(&book))));
        lease.first_byte();
        lease.first_byte();
        lease.finish(End::Cut, &Seen::default());
        lease.finish(End::Answered(200), &Seen::default());
        drop(lease);
        drop(InFlight::new(Box::new(Book(Arc::clone(&book)))));
        assert_eq!(*book.lock().unwrap(), ["first", "Cut", "ClientGone"]);
    }
}
