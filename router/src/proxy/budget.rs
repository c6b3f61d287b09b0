//! Bytes of request bodies in memory: one count for the whole process, so that no number of clients can fill it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// The process-wide count. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    used: Arc<AtomicU64>,
}

impl Budget {
    /// Bytes held now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// An empty holding, to grow.
    #[must_use]
    pub fn hold(&self) -> Held {
        Held {
            used: Arc::clone(&self.used),
            bytes: 0,
        }
    }
}

/// Bytes held by one request; given back on drop.
#[derive(Debug)]
pub struct Held {
    used: Arc<AtomicU64>,
    bytes: u64,
}

impl Held {
    /// Takes `bytes` more, unless the whole would then exceed `limit`; false changes nothing.
    #[must_use]
    pub fn grow(&mut self, bytes: u64, limit: u64) -> bool {
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|total| *total <= limit)
            });
        if taken.is_ok() {
            self.bytes += bytes;
        }
        taken.is_ok()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_given_back_and_never_exceed_the_limit() {
        let budget = Budget::default();
        let mut first = budget.hold();
        let mut second = budget.hold();
        assert!(first.grow(60, 100));
        assert!(!second.grow(41, 100));
        assert!(second.grow(40, 100));
        assert_eq!(budget.used(), 100);
        drop(first);
        assert_eq!(budget.used(), 40);
        drop(second);
        assert_eq!(budget.used(), 0);
    }
}
