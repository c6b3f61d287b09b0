//! Plays agent sessions against an OpenAI endpoint; see `replay --help`.

mod args;
mod body;
mod children;
mod client;
mod clock;
mod conversation;
mod play;
mod random;
mod record;
mod report;
mod roster;
mod run;
mod sse;
mod text;
mod trace;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let run = args::Args::parse()
        .check()
        .map_err(anyhow::Error::from)
        .and_then(run::run);
    match run {
        Ok(run::End::Complete) => ExitCode::SUCCESS,
        Ok(run::End::Interrupted) => ExitCode::from(130),
        Err(error) => {
            // Without a standard error there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "replay: {error:#}");
            ExitCode::FAILURE
        }
    }
}
