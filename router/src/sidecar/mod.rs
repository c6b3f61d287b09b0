//! The sidecar.

pub mod cap;
pub mod drain;
pub mod engine;
pub mod homes;
pub mod state;

/// Whole milliseconds of a span.
fn millis(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
