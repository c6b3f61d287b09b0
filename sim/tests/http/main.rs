//! The simulator over real sockets, against the samples and rules of `engine-interface.md`.

#[cfg(test)]
mod client;
#[cfg(test)]
mod control;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod life;
#[cfg(test)]
mod manners;
#[cfg(test)]
mod sglang;
#[cfg(test)]
mod shapes;
