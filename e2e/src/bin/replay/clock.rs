//! The only place that reads a clock.

use std::time::SystemTime;

use tokio::time::Instant;

#[expect(
    clippy::disallowed_methods,
    reason = "the replay runs in real time; this is its one reading of it"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since the Unix epoch, so that other programs can place the replay's times.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds between two instants, to the microsecond; 0 if they are the wrong way round.
pub(crate) fn ms_between(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_micros() as f64 / 1e3
}
