//! What the gateway costs on one core, beside nginx as a plain proxy, nginx tuned for this, and a direct connection, in
//! one run:
//! `cargo bench -p weir-router --bench proxy` (`make bench-proxy`) → `target/bench/proxy.json` and a table.
//!
//! Core 0 runs the proxy under test, core 1 the stub engine and the client (wrk; both are needed for every row, so that
//! ratios are fair). Affinity, queue and metrics are on. Needs `nginx`, `wrk` and `taskset`.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark reads the clock and prints a table"
)]

mod held;
mod stub;
mod systems;
mod wrk;

use std::{env, fs, path::PathBuf, time::Duration};

use anyhow::Context as _;
use serde::Serialize;

use systems::{Direct, Nginx, System, Tuning, Weir};
use wrk::Load;

/// Rounds of each measurement; the median counts.
const ROUNDS: usize = 3;
/// Length of one measurement.
const LENGTH: Duration = Duration::from_secs(4);
/// Connections of the loaded measurements.
const CONNECTIONS: u32 = 32;

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    system: &'static str,
    json_rps: f64,
    sse_burst_streams_per_s: f64,
    sse_spaced_cpu_us_per_stream: Option<f64>,
    p50_ms: f64,
    p99_ms: f64,
    rss_mb: Option<f64>,
    /// Processor time per request; unlike the rates, it hardly depends on who else uses the machine.
    json_cpu_us: Option<f64>,
    /// Processor time per burst stream.
    sse_burst_cpu_us: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report {
    command: &'static str,
    machine: String,
    connections: u32,
    rows: Vec<Row>,
    /// Against nginx as Debian ships it.
    ratios: Ratios,
    /// Against nginx with connections kept alive and no log.
    ratios_keepalive: Ratios,
    held: held::Held,
}

/// Weir against one nginx, and against a direct connection.
#[derive(Debug, Serialize)]
struct Ratios {
    json_rps: f64,
    sse_burst_streams_per_s: f64,
    sse_spaced_cpu_us_per_stream: f64,
    p50_added_ms: f64,
    /// nginx's processor time per JSON request, as a share of Weir's.
    json_cpu: f64,
    /// The same per burst stream.
    sse_burst_cpu: f64,
}

fn main() -> anyhow::Result<()> {
    // Cargo passes `--bench`; the stub is this same program.
    if let Some(port) = env::args().skip_while(|arg| arg != "stub").nth(1) {
        return stub::run(port.parse()?);
    }
    let scratch = tempdir()?;
    let engine = systems::start_stub(&scratch)?;
    let systems: [Box<dyn System>; 4] = [
        Box::new(Direct::new(&engine)),
        Box::new(Nginx::start(&scratch, &engine, Tuning::Plain)?),
        Box::new(Nginx::start(&scratch, &engine, Tuning::KeepAlive)?),
        Box::new(Weir::start(&scratch, &engine)?),
    ];
    let mut rows: Vec<Vec<Row>> = vec![Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for (system, rows) in systems.iter().zip(&mut rows) {
            progress(&format!("round {} of {ROUNDS}: {}", round + 1, system.name()));
            rows.push(measure(system.as_ref(), &scratch)?);
        }
    }
    drop(systems);
    let rows: Vec<Row> = rows.iter().map(|rows| median_row(rows)).collect();
    progress("10,000 held requests");
    let held = held::measure(&scratch)?;
    let [direct, nginx, keepalive, weir] = &rows[..] else {
        unreachable!("four systems are measured")
    };
    let report = Report {
        command: "cargo bench -p weir-router --bench proxy",
        machine: machine(),
        connections: CONNECTIONS,
        ratios: ratios(direct, nginx, weir),
        ratios_keepalive: ratios(direct, keepalive, weir),
        rows,
        held,
    };
    print(&report);
    let path = target().join("bench/proxy.json");
    fs::create_dir_all(path.parent().context("a path with a parent")?)?;
    fs::write(&path, serde_json::to_vec_pretty(&report)?)?;
    progress(&format!("written to {}", path.display()));
    fs::remove_dir_all(&scratch)?;
    Ok(())
}

fn measure(system: &dyn System, scratch: &std::path::Path) -> anyhow::Result<Row> {
    let run = |path: &str, connections| {
        wrk::run(&Load {
            url: format!("http://{}{path}", system.address()),
            connections,
            length: LENGTH,
            scratch,
        })
    };
    let timed = |path: &str| -> anyhow::Result<(wrk::Measured, Option<f64>)> {
        let before = system.cpu_seconds()?;
        let measured = run(path, CONNECTIONS)?;
        let spent = before
            .zip(system.cpu_seconds()?)
            .map(|(before, after)| after - before);
        let each = spent.map(|seconds| seconds * 1e6 / measured.requests as f64);
        Ok((measured, each))
    };
    let (json, json_cpu_us) = timed("/v1/chat/completions?mode=json")?;
    let (burst, sse_burst_cpu_us) = timed("/v1/chat/completions?mode=burst")?;
    let (_, sse_spaced_cpu_us_per_stream) = timed("/v1/chat/completions?mode=spaced")?;
    let light = run("/v1/chat/completions?mode=json", 1)?;
    Ok(Row {
        system: system.name(),
        json_rps: json.per_second(),
        sse_burst_streams_per_s: burst.per_second(),
        sse_spaced_cpu_us_per_stream,
        json_cpu_us,
        sse_burst_cpu_us,
        p50_ms: light.p50_ms,
        p99_ms: light.p99_ms,
        rss_mb: system.rss_mb()?,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn median_row(rows: &[Row]) -> Row {
    let column = |pick: fn(&Row) -> f64| median(rows.iter().map(pick).collect());
    let maybe = |pick: fn(&Row) -> Option<f64>| {
        let values: Vec<f64> = rows.iter().filter_map(pick).collect();
        (!values.is_empty()).then(|| median(values))
    };
    Row {
        system: rows.first().map_or("", |row| row.system),
        json_rps: column(|row| row.json_rps),
        sse_burst_streams_per_s: column(|row| row.sse_burst_streams_per_s),
        sse_spaced_cpu_us_per_stream: maybe(|row| row.sse_spaced_cpu_us_per_stream),
        p50_ms: column(|row| row.p50_ms),
        p99_ms: column(|row| row.p99_ms),
        rss_mb: maybe(|row| row.rss_mb),
        json_cpu_us: maybe(|row| row.json_cpu_us),
        sse_burst_cpu_us: maybe(|row| row.sse_burst_cpu_us),
    }
}

fn ratios(direct: &Row, nginx: &Row, weir: &Row) -> Ratios {
    let cpu = |row: &Row| row.sse_spaced_cpu_us_per_stream.unwrap_or(f64::NAN);
    let share =
        |pick: fn(&Row) -> Option<f64>| pick(nginx).unwrap_or(f64::NAN) / pick(weir).unwrap_or(f64::NAN);
    Ratios {
        json_rps: weir.json_rps / nginx.json_rps,
        sse_burst_streams_per_s: weir.sse_burst_streams_per_s / nginx.sse_burst_streams_per_s,
        sse_spaced_cpu_us_per_stream: cpu(weir) / cpu(nginx),
        p50_added_ms: weir.p50_ms - direct.p50_ms,
        json_cpu: share(|row| row.json_cpu_us),
        sse_burst_cpu: share(|row| row.sse_burst_cpu_us),
    }
}

fn print(report: &Report) {
    println!(
        "{:15} {:>9} {:>11} {:>13} {:>14} {:>15} {:>8} {:>8} {:>7}",
        "system",
        "json/s",
        "µs CPU/json",
        "bursts/s",
        "µs CPU/burst",
        "µs CPU/spaced",
        "p50 ms",
        "p99 ms",
        "RSS MB"
    );
    let maybe = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1}"));
    for row in &report.rows {
        println!(
            "{:15} {:>9.0} {:>11} {:>13.0} {:>14} {:>15} {:>8.3} {:>8.3} {:>7}",
            row.system,
            row.json_rps,
            maybe(row.json_cpu_us),
            row.sse_burst_streams_per_s,
            maybe(row.sse_burst_cpu_us),
            maybe(row.sse_spaced_cpu_us_per_stream),
            row.p50_ms,
            row.p99_ms,
            maybe(row.rss_mb)
        );
    }
    println!("weir/nginx: {:?}", report.ratios);
    println!("weir/nginx-keepalive: {:?}", report.ratios_keepalive);
    println!("held: {:?}\n{}", report.held, report.machine);
}

fn progress(text: &str) {
    eprintln!("bench-proxy: {text}");
}

/// Cores and processor, for the reader of the figures.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cores} cores, {}",
        model.map_or("unknown processor", |(_, model)| model)
    )
}

fn target() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target")
}

fn tempdir() -> anyhow::Result<PathBuf> {
    let path = env::temp_dir().join(format!("weir-bench-{}", std::process::id()));
    fs::create_dir_all(&path)?;
    Ok(path)
}
