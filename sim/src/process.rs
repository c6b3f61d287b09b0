//! The program: command line, logs, signals, exit code.

use std::{io, process::ExitCode};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

use crate::{args, options::Options, running, server::Exit};

/// Threads for connections and the engine; more would only compete with what is under test.
const WORKERS: usize = 2;

/// Runs the program with this command line (program name first) and returns its exit code.
pub fn main(arguments: impl IntoIterator<Item = String>) -> ExitCode {
    let (options, ignored) = match args::parse(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            // A closed standard output leaves nobody to tell.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_target(false)
        .with_writer(io::stdout)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .init();
    if !ignored.is_empty() {
        warn!(
            flags = ignored.join(" "),
            "flags without meaning to the simulator are ignored"
        );
    }
    match run(options) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        // Before anything else, so that no signal finds the default action.
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut running = running::spawn(options).await?;
        loop {
            let signalled = tokio::select! {
                exit = running.exited() => return exit.context("the server failed"),
                received = terminate.recv() => received,
                received = interrupt.recv() => received,
            };
            if signalled.is_some() {
                running.terminate();
            }
        }
    })
}
