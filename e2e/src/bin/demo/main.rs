//! `demo`: the whole life of a pool on a real Kubernetes, with real agent sessions, told on the terminal and written to
//! `target/demo/report.json`.

use std::process::ExitCode;

use clap::Parser;
use weir_e2e::{cluster::progress::Progress, interrupted};

mod gateway;
mod life;
mod play;
mod report;
mod request;
mod stage;
mod view;

/// Shows the life of a pool: apply, zero, wake, serve, scale, idle, zero.
#[derive(Debug, Clone, Parser)]
#[command(name = "demo", version)]
struct Args {
    /// Leave cluster and pool running, and print how to go on by hand.
    #[arg(long)]
    keep: bool,
    /// Agent sessions to play.
    #[arg(long, default_value_t = 24)]
    sessions: u32,
    /// Sessions at once.
    #[arg(long, default_value_t = 12)]
    concurrency: u32,
    /// Most turns of one agent.
    #[arg(long, default_value_t = 12)]
    max_turns: u32,
    /// Factor on the agents' pauses.
    #[arg(long, default_value_t = 0.02)]
    time_scale: f64,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let progress = Progress::new();
    let mut stage = stage::Stage::new(progress.clone());
    let mut keep = args.keep;
    let outcome = tokio::select! {
        outcome = life::live(&args, &mut stage) => Ok(outcome),
        signal = interrupted() => Err(signal),
    };
    let succeeded = matches!(outcome, Ok(Ok(())));
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            progress.say(format_args!("error: {error:#}"));
            stage.explain().await;
        }
        Err(signal) => {
            progress.say(format_args!("{signal}: ending everything that was started"));
            keep = false;
        }
    }
    match stage.strike(keep).await {
        Ok(()) if succeeded => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            progress.say(format_args!("cleaning up: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
