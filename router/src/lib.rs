//! Weir's router in both roles: the gateway in front of pools and the sidecar in front of one engine. The two share the
//! whole proxy path ([`proxy`]); what differs is who decides where a request goes.

pub mod admin;
pub mod args;
pub mod fetch;
pub mod gateway;
pub mod metrics;
pub mod proxy;
pub mod run;
pub mod sidecar;
mod stall;
pub mod telemetry;
