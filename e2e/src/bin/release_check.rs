//! `release_check DIRECTORY`: says what is wrong with the release that `make release` wrote there.

use std::{
    env,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use weir_e2e::release;

fn main() -> Result<ExitCode> {
    let directory: PathBuf = env::args_os()
        .nth(1)
        .context("usage: release_check DIRECTORY")?
        .into();
    let report = release::check(&directory)?;
    for line in &report.found {
        writeln!(io::stdout(), "{line}")?;
    }
    for fault in &report.faults {
        writeln!(io::stderr(), "{fault}")?;
    }
    Ok(if report.faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
