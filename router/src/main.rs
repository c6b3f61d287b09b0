//! `weir-router gateway|sidecar`.

use std::process::ExitCode;

use clap::Parser as _;
use weir_router::{args::Args, run};

/// Gives memory back after a burst; the system's allocator keeps it. Settings: `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match run::run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            run::complain(&error);
            ExitCode::FAILURE
        }
    }
}
