//! Runs wrk and reads what it prints.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, bail};

use crate::systems::pinned;

/// What wrk is to do.
pub(super) struct Load<'a> {
    pub(super) url: String,
    pub(super) connections: u32,
    pub(super) length: Duration,
    pub(super) scratch: &'a Path,
}

/// What wrk measured.
pub(super) struct Measured {
    pub(super) requests: u64,
    pub(super) seconds: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl Measured {
    pub(super) fn per_second(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

/// 64 workflows take turns; the results come out in one line that is easy to read.
const SCRIPT: &str = r#"
local requests = {}
function init(args)
  for i = 1, 64 do
    local body = '{"model":"m","stream":false,"stream_options":null,"messages":[{"role":"system","content":"You are one of 64 agents."},{"role":"user","content":"' .. string.rep("say something useful ", 20) .. '"}],"max_tokens":16}'
    requests[i] = wrk.format("POST", nil, {["content-type"] = "application/json", ["x-weir-workflow-id"] = "workflow-" .. i}, body)
  end
end
local turn = 0
function request()
  turn = turn % 64 + 1
  return requests[turn]
end
function done(summary, latency, requests)
  local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status + summary.errors.timeout
  io.write(string.format("RESULT %d %d %d %d %d\n", summary.requests, summary.duration, errors, latency:percentile(50), latency:percentile(99)))
end
"#;

pub(super) fn run(load: &Load<'_>) -> anyhow::Result<Measured> {
    let script = load.scratch.join("wrk.lua");
    fs::write(&script, SCRIPT)?;
    let output = pinned(1, "wrk")
        .args(["-t", "1", "-c", &load.connections.to_string()])
        .args(["-d", &format!("{}s", load.length.as_secs()), "-s"])
        .arg(&script)
        .arg(&load.url)
        .output()
        .context("wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<u64> = text
        .lines()
        .find_map(|line| line.strip_prefix("RESULT "))
        .with_context(|| format!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr)))?
        .split(' ')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let [requests, micros, errors, p50, p99] = numbers[..] else {
        bail!("wrk printed {numbers:?}");
    };
    if errors > 0 || requests == 0 {
        bail!("{}: {errors} errors in {requests} requests", load.url);
    }
    Ok(Measured {
        requests,
        seconds: micros as f64 / 1e6,
        p50_ms: p50 as f64 / 1e3,
        p99_ms: p99 as f64 / 1e3,
    })
}
