//! What a gateway needs before it takes traffic.

use std::sync::atomic::{AtomicBool, Ordering};

/// Set step by step, never taken back: a gateway that once knew its pods serves on with what it knows.
#[derive(Debug, Default)]
pub struct Readiness {
    configured: AtomicBool,
    listed: AtomicBool,
    asked: AtomicBool,
}

impl Readiness {
    /// A configuration is in force.
    pub fn configured(&self) {
        self.configured.store(true, Ordering::SeqCst);
    }

    /// The endpoints are fixed: there is nothing to list or to ask.
    pub fn endpoints_fixed(&self) {
        self.pods_listed();
        self.pods_asked();
    }

    pub(super) fn pods_listed(&self) {
        self.listed.store(true, Ordering::SeqCst);
    }

    pub(super) fn pods_asked(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_configured(&self) -> bool {
        self.configured.load(Ordering::SeqCst)
    }

    /// Ready, or the first thing that is missing.
    ///
    /// # Errors
    /// A sentence for a person who reads the probe's answer.
    pub fn check(&self) -> Result<(), &'static str> {
        if !self.is_configured() {
            Err("no configuration is in force yet\n")
        } else if !self.listed.load(Ordering::SeqCst) {
            Err("the engine pods are not listed yet\n")
        } else if !self.asked.load(Ordering::SeqCst) {
            Err("the engine pods have not told their state yet\n")
        } else {
            Ok(())
        }
    }
}
