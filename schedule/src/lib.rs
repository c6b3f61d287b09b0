//! The scheduler of one pool as a pure state machine: `on(event, now) -> effects`. No socket, clock, lock or random
//! source inside; the same sequence of events and times gives the same effects. One task of the gateway drives it.

mod types;

pub use types::*;
