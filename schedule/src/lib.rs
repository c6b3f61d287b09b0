//! The scheduler of one pool as a pure state machine: `on(event, now) -> effects`. No socket, clock, lock or random
//! source inside; the same sequence of events and times gives the same effects. One task of the gateway drives it:
//!
//! 1. After every event it carries out the effects in order, and sleeps until [`Pool::next_deadline`] at most, then
//!    sends [`Event::Tick`].
//! 2. Every [`Event::Arrived`] is answered by exactly one [`Effect::Dispatch`] or [`Effect::Shed`], unless
//!    [`Event::Cancel`] comes first; every dispatch is ended by one [`Event::Finished`].
//! 3. For a pod that may remember workflows, [`Event::Remembered`] goes before its first [`Event::EndpointReady`].
//!
//! `queue` holds the order of the waiting, `place` the choice of an endpoint, `binding` the homes, `lease` tool pauses,
//! `endpoint` readiness and ejection, `pace` the advice on when to try again; `pool` is the machine.

mod binding;
mod endpoint;
mod lease;
mod pace;
mod place;
mod pool;
mod queue;
mod types;

pub use pool::Pool;
pub use types::*;
