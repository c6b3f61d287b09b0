//! The operator against an API server in memory, and gateways of its own making.

mod fixture;
mod lease;
mod mock;
mod reconcile;
mod scaling;
