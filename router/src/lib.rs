//! Weir's router in both roles: the gateway in front of a pool and the sidecar beside one engine. The two share the
//! whole proxy path ([`proxy`]); what differs is who decides where a request goes.

// gateway
pub mod proxy;
