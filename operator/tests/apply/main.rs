//! The operator against an API server in memory, and gateways of its own making.

#[cfg(test)]
mod control;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod kinds;
#[cfg(test)]
mod lease;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod mock;
#[cfg(test)]
mod reconcile;
#[cfg(test)]
mod rights;
#[cfg(test)]
mod scaling;
