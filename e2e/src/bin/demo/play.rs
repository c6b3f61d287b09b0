//! Real agent sessions, played by the `replay` program beside this one.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use weir_e2e::cluster::{
    command::{command, run_with},
    progress::{Detail, Progress},
};

use crate::Args;

/// The demo's trace, below the directory of traces.
const TRACE: &str = "weka-claude-code/sessions.jsonl.xz";

/// The part of the replay's summary that the report takes over.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Summary {
    pub(crate) trace: Value,
    pub(crate) duration_s: f64,
    pub(crate) requests: Requests,
    pub(crate) workflows: Workflows,
    pub(crate) tokens: Tokens,
    #[serde(default)]
    pub(crate) ttft_ms: Value,
    #[serde(default)]
    pub(crate) errors: Value,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Requests {
    pub(crate) sent: u64,
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    pub(crate) lost: u64,
    pub(crate) held: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Workflows {
    pub(crate) count: u64,
    pub(crate) turns: u64,
    pub(crate) home_kept_percent: Option<f64>,
    pub(crate) home_lost: u64,
    /// Answers by `x-weir-home`.
    pub(crate) homes: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Tokens {
    pub(crate) prompt: u64,
    pub(crate) cached: u64,
}

/// The trace file where it is, `builtin` where it is not: `$WEIR_TRACES`, or `shared/traces` beside the work tree.
pub(crate) fn trace() -> String {
    let beside = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/traces")).to_path_buf();
    let directory = env::var_os("WEIR_TRACES").map_or(beside, PathBuf::from);
    let file = directory.join(TRACE);
    if file.is_file() {
        file.display().to_string()
    } else {
        "builtin".to_owned()
    }
}

/// Plays sessions against the gateway at `url`; its own progress lines become ours.
pub(crate) async fn play(
    url: &str,
    model: &str,
    args: &Args,
    directory: &Path,
    progress: &Progress,
) -> Result<Summary> {
    let replay = env::current_exe()?.with_file_name("replay");
    if !replay.is_file() {
        bail!("{} is missing: `make demo` compiles it", replay.display());
    }
    let trace = trace();
    let summary = directory.join("replay.json");
    let mut command = command(
        &replay.display().to_string(),
        ["--url", url, "--model", model, "--trace", &trace],
    );
    command
        .args([
            "--sessions",
            &args.sessions.to_string(),
            "--concurrency",
            &args.concurrency.to_string(),
        ])
        .args([
            "--time-scale",
            &args.time_scale.to_string(),
            "--seed",
            &args.seed.to_string(),
        ])
        .args([
            "--max-turns",
            &args.max_turns.to_string(),
            "--max-pause",
            "60",
            "--prompt-scale",
            "0.05",
            "--output-scale",
            "0.2",
        ])
        .arg("--records")
        .arg(directory.join("requests.jsonl"))
        .arg("--summary")
        .arg(&summary);
    let detail = Detail::default();
    let run = async { run_with(command, &detail).await.map(|_| ()) };
    let what = format!(
        "playing {} agent sessions, {} at once, from {trace}",
        args.sessions, args.concurrency
    );
    progress.step_with(&what, &detail, run).await?;
    let text = fs::read_to_string(&summary).with_context(|| format!("reading {}", summary.display()))?;
    serde_json::from_str(&text).context("the replay's summary")
}
