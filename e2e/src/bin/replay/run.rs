//! Wires the parts together, and writes the summary.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::args::Config;
use crate::clock;
use crate::play::Player;
use crate::report::{Report, Totals};
use crate::roster::Roster;

/// Events that may wait to be written; players wait when it is full.
const EVENT_QUEUE: usize = 1024;

/// How the replay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All sessions were played, or `--duration` was over.
    Complete,
    /// By a signal.
    Interrupted,
}

/// The summary file.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    trace: TraceSummary,
    url: String,
    model: String,
    seed: u64,
    /// So that other programs can place `sent_at`.
    pub(crate) started_unix_ms: u64,
    pub(crate) duration_s: f64,
    pub(crate) interrupted: bool,
    #[serde(flatten)]
    pub(crate) totals: Totals,
}

#[derive(Debug, Serialize)]
struct TraceSummary {
    name: String,
    source: String,
    /// Sessions that were started.
    sessions: u64,
    /// Sessions the trace has.
    available: Option<usize>,
    time_scale: f64,
    prompt_scale: f64,
    output_scale: f64,
}

/// Plays to the end.
///
/// # Errors
/// When the trace cannot be read, nothing can be played, or a file cannot be written.
pub(crate) fn run(config: Config) -> anyhow::Result<End> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut watchers = JoinSet::new();
        let interrupted = CancellationToken::new();
        watchers.spawn(watch_signals(stop.clone(), interrupted.clone()));
        let path = config.summary.clone();
        let mut summary = replay(config, stop).await?;
        summary.interrupted = interrupted.is_cancelled();
        write_summary(&path, &summary)?;
        Ok(if summary.interrupted {
            End::Interrupted
        } else {
            End::Complete
        })
    })
}

/// Plays until the roster is at its end or `stop` is cancelled.
///
/// # Errors
/// As [`run`].
pub(crate) async fn replay(config: Config, stop: CancellationToken) -> anyhow::Result<Summary> {
    let roster = Roster::new(&config)?;
    let style = config.style;
    let trace = TraceSummary {
        name: roster.name().to_owned(),
        source: roster.source(),
        sessions: 0,
        available: roster.available(),
        time_scale: style.time_scale,
        prompt_scale: style.prompt_scale,
        output_scale: style.output_scale,
    };
    let records = File::create(&config.records)
        .with_context(|| format!("cannot write records to {}", config.records.display()))?;
    let (started, started_unix_ms, model) = (clock::now(), clock::unix_ms(), style.model.clone());
    let (events, heard) = mpsc::channel(EVENT_QUEUE);
    let report = Report {
        records: BufWriter::new(records),
        sessions: roster.len(),
        started,
    };
    let mut timer = JoinSet::new();
    if let Some(duration) = config.duration {
        timer.spawn(stop_after(duration, stop.clone()));
    }
    let player = Arc::new(Player {
        target: config.target,
        style,
        roster,
        events,
        stop,
        started,
    });
    let (tally, ()) = tokio::join!(report.listen(heard), player.play(config.arrivals, config.seed));
    let totals = tally.context("cannot write the records")?.totals();
    Ok(Summary {
        trace: TraceSummary {
            sessions: totals.sessions.started,
            ..trace
        },
        url: config.url,
        model,
        seed: config.seed,
        started_unix_ms,
        duration_s: clock::ms_between(started, clock::now()) / 1e3,
        interrupted: false,
        totals,
    })
}

async fn stop_after(duration: Duration, stop: CancellationToken) {
    tokio::time::sleep(duration).await;
    stop.cancel();
}

/// Ctrl-C and SIGTERM stop the replay.
async fn watch_signals(stop: CancellationToken, interrupted: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed?,
        _ = terminate.recv() => {}
    }
    interrupted.cancel();
    stop.cancel();
    Ok(())
}

fn write_summary(path: &Path, summary: &Summary) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(summary)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("cannot write the summary to {}", path.display()))
}

#[cfg(test)]
mod tests;
