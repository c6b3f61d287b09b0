//! The path of a request that gateway and sidecar share: accept ([`server`]), read and parse once ([`request`]), send
//! on ([`upstream`]), observe what comes back ([`stream`]), release on every path ([`inflight`]), and turn every
//! failure into an answer in one place ([`respond`]).

pub mod budget;
pub mod headers;
pub mod inflight;
pub mod json;
pub mod request;
pub mod respond;
pub mod server;
pub mod stream;
pub mod upstream;
pub mod usage;
