//! The simulator over real sockets, against the samples and rules of `engine-interface.md`.

mod client;
mod control;
mod faults;
mod life;
mod manners;
mod shapes;
