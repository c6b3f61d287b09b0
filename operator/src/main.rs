//! `weir-operator`: reconciles LLMPools and WorkflowPolicies.

use std::process::ExitCode;

use weir_operator::{args::Args, run, telemetry};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let config = Args::read();
    telemetry::start(config.log_format, &config.log);
    match run::block_on(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the operator stops");
            ExitCode::FAILURE
        }
    }
}
