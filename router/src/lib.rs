//! The gateway in front of pools, and the sidecar in front of one engine.

pub mod admin;
pub mod fetch;
pub mod metrics;
pub mod sidecar;
