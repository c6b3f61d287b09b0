//! The contracts between Weir's parts, and nothing else: the gateway's configuration file, the control protocol
//! between operator and gateway, the sidecar's state protocol, ports, paths and header names.
//!
//! Every type here is read strictly (`deny_unknown_fields` on files a person writes) and every list that comes from
//! outside is bounded by its reader. Durations in files are Go-style strings (`90s`); on the wire they are whole
//! milliseconds, and instants are sent as ages, because two machines share no clock.

pub mod config;
pub mod control;
mod duration;
pub mod headers;
pub mod lines;
pub mod ports;
pub mod sidecar;
mod workflow_key;

pub use duration::{Duration, ParseDurationError};
pub use workflow_key::{ParseWorkflowKeyError, WorkflowKey};
