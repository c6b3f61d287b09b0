//! A simulator of vLLM's OpenAI-compatible server, and of SGLang's ([`Flavour`]), for tests and demonstrations without a GPU.
//!
//! It speaks HTTP exactly where a router can notice, and takes its time from a continuous-batching step loop with a
//! prefix cache ([`engine`]). [`spawn`] runs it inside a test; [`main`] is the program. Under `/sim` it offers what
//! a real engine does not: the ledger of everything it did, and faults on order ([`Fault`]).

mod args;
mod driver;
pub mod engine;
mod fault;
mod flavour;
mod http;
mod ledger;
mod options;
mod process;
mod running;
mod server;

pub use crate::{
    fault::Fault,
    flavour::{Flavour, Sglang},
    ledger::{Entry, Outcome, Snapshot, Totals},
    options::{InvalidOptions, Options},
    process::main,
    running::{Running, SpawnError, spawn},
    server::Exit,
};
