//! `bench_wake`: how long a wake takes inside Weir, and what the operator costs when nothing happens.
//!
//! * held → patch: from sending the first request to a pool at zero, to the API server receiving the operator's write of
//!   `replicas: 1` (audit log; both clocks are this machine's).
//! * ready → dispatch: from the gateway seeing the endpoint eligible to the first request sent there (its own figure, on
//!   the control stream).

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use weir_crds::names;
use weir_e2e::{
    Seen, TestNamespace, await_condition,
    client::{Caller, Chat},
    cluster::{
        audit::{Filter, Mark},
        progress::{Progress, now},
    },
    install, operator,
    pool::{PATIENCE, Pool, Simulated, gateway_pods, pod_caller},
    processes, with_temp_namespace,
};
use weir_wire::{control, ports};

/// Measures wakes and the quiet operator on the local Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "bench_wake", version)]
struct Args {
    /// Number of wakes.
    #[arg(long, default_value_t = 30)]
    wakes: u32,
    /// Seconds of quiet over which the operator is watched.
    #[arg(long, default_value_t = 60)]
    quiet: u64,
    /// Where the figures go.
    #[arg(long, default_value = "target/bench/wake.json")]
    out: PathBuf,
}

/// Milliseconds, one per wake.
#[derive(Debug, Default)]
struct Wakes {
    held_to_patch: Vec<f64>,
    ready_to_dispatch: Vec<f64>,
    whole: Vec<f64>,
}

/// A pool at zero, and the ways to its gateway.
struct Bench {
    pool: Pool,
    caller: Caller,
    admin: Caller,
    token: String,
}

impl Bench {
    async fn set_up(space: &TestNamespace) -> Result<Self> {
        let recipe = Simulated {
            name: "bench",
            args: &["--startup=0s", "--profile=tiny-cpu"],
            more: "  idle: {policy: Fixed, after: 500ms}\n  drain: {timeout: 10s}",
            ..Simulated::default()
        };
        let pool = recipe.apply(space).await?;
        let caller = pool.caller().await?;
        let gateway = gateway_pods(space)
            .await?
            .into_iter()
            .next()
            .context("a gateway pod")?;
        let admin = pod_caller(space, &gateway, ports::ADMIN).await?;
        let secret = space
            .api::<Secret>()
            .get(&names::control_secret(names::DEFAULT_GATEWAY))
            .await?;
        let token = secret
            .data
            .and_then(|mut data| data.remove(names::CONTROL_TOKEN_KEY));
        let token = String::from_utf8(token.context("no control token")?.0)?;
        Ok(Self {
            pool,
            caller,
            admin,
            token,
        })
    }

    async fn wake(&self, figures: &mut Wakes) -> Result<()> {
        self.pool.at_zero(PATIENCE).await?;
        await_condition("the last pod to be gone", PATIENCE, async || {
            let pods = self.pool.all_pods().await?.len();
            Ok(if pods == 0 {
                Seen::Done(())
            } else {
                Seen::NotYet(format!("{pods} pods"))
            })
        })
        .await?;
        let mark = self.pool.space.cluster.audit()?.mark()?;
        let sent = Timestamp::now();
        let answer = self
            .caller
            .chat(&Chat::new(&self.pool.model, "Wake up."))
            .await?
            .whole()?;
        ensure!(answer.was_held(), "{:?}", answer.headers);
        let patched = self.patched(mark).await?;
        figures
            .held_to_patch
            .push((patched - sent).total(jiff::Unit::Millisecond)?);
        figures.whole.push(answer.ended_after.as_secs_f64() * 1_000.0);
        let to_dispatch = self.ready_to_dispatch(answer.endpoint()).await?;
        figures.ready_to_dispatch.push(to_dispatch);
        Ok(())
    }

    /// When the API server had the operator's first write of one replica.
    async fn patched(&self, mark: Mark) -> Result<Timestamp> {
        let audit = self.pool.space.cluster.audit()?;
        let filter = Filter::writes()
            .by(operator::NAME)
            .of("deployments")
            .within(&self.pool.space.name);
        let one = Value::from(1);
        await_condition("the write of one replica", PATIENCE, async || {
            let events = audit.since(mark, &filter)?;
            let found = events.iter().find(|event| {
                let body = event.request_object.as_ref();
                body.and_then(|body| body.pointer("/spec/replicas")) == Some(&one)
            });
            Ok(match found {
                Some(event) => Seen::Done(event.request_received_timestamp),
                None => Seen::NotYet(format!("{} other writes", events.len())),
            })
        })
        .await
    }

    /// What the gateway measured, from a fresh control stream: its first lines are the present states.
    async fn ready_to_dispatch(&self, endpoint: &str) -> Result<f64> {
        await_condition("the gateway's figure", PATIENCE, async || {
            let request = Request::builder()
                .uri(control::EVENTS)
                .header("authorization", format!("Bearer {}", self.token));
            let mut stream = self.admin.request(request, "").await?;
            ensure!(stream.status.is_success(), "control stream: {}", stream.status);
            loop {
                stream.more().await?;
                for line in String::from_utf8_lossy(stream.received()).lines() {
                    let Ok(control::Event::Pool(state)) = serde_json::from_str(line) else {
                        continue;
                    };
                    if state.pool != self.pool.name {
                        continue;
                    }
                    let seen = state.endpoints.iter().find(|one| one.name == endpoint);
                    if let Some(milliseconds) = seen.and_then(|one| one.ready_to_dispatch_ms) {
                        let milliseconds = u32::try_from(milliseconds)?;
                        return Ok(Seen::Done(f64::from(milliseconds)));
                    }
                    return Ok(Seen::NotYet(format!("{seen:?}")));
                }
            }
        })
        .await
    }
}

/// Resident memory in MB of the operators, and the share of a core that the leader used over `quiet`.
async fn quiet_operator(space: &TestNamespace, quiet: Duration) -> Result<(f64, f64)> {
    let leader = operator::leader(&space.client).await?;
    let records = processes::of_pod(&leader, operator::PROCESS)?;
    let record = records.first().copied().context("a process")?;
    let before = processes::usage(record).context("the operator ended")?;
    let began = now();
    tokio::time::sleep(quiet).await;
    let after = processes::usage(record).context("the operator ended")?;
    let cpu = (after.cpu_seconds - before.cpu_seconds) / (now() - began).as_secs_f64();
    let megabytes = u32::try_from(after.resident_bytes >> 10).map(f64::from)? / 1_024.0;
    Ok((megabytes, cpu * 100.0))
}

/// The value below which `share` of the values lie.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let wanted = (0..sorted.len()).find(|place| (*place + 1) as f64 >= share * sorted.len() as f64);
    wanted
        .and_then(|place| sorted.get(place))
        .copied()
        .unwrap_or(f64::NAN)
}

fn summary(values: &[f64]) -> Value {
    json!({
        "n": values.len(),
        "p50": percentile(values, 0.5),
        "p99": percentile(values, 0.99),
        "max": percentile(values, 1.0),
    })
}

fn table(report: &Value) -> String {
    let mut text = format!(
        "{}\n{:<34}{:>10}{:>10}{:>12}\n",
        report["machine"], "", "p50", "p99", "goal (p99)"
    );
    for (name, key, goal) in [
        ("held -> replica patch, ms", "held_to_patch_ms", "100"),
        ("endpoint ready -> dispatch, ms", "ready_to_dispatch_ms", "100"),
        ("whole wake, ms", "wake_ms", ""),
    ] {
        let of = |part: &str| report[key][part].as_f64().unwrap_or(f64::NAN);
        text.push_str(&format!(
            "{name:<34}{:>10.1}{:>10.1}{goal:>12}\n",
            of("p50"),
            of("p99")
        ));
    }
    let quiet = &report["quiet_operator"];
    for (name, key, goal) in [
        ("quiet operator, memory, MB", "rss_mb", "100"),
        ("quiet operator, % of a core", "cpu_percent", "1"),
    ] {
        let value = quiet[key].as_f64().unwrap_or(f64::NAN);
        text.push_str(&format!("{name:<34}{value:>10.2}{:>10}{goal:>12}\n", ""));
    }
    text
}

/// The processor's name and how many there are.
fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown processor", |rest| {
        rest.trim_start_matches([' ', '\t', ':'])
    });
    format!("{cpus} x {model}")
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    install().await?;
    with_temp_namespace(async |space| {
        let bench = Bench::set_up(&space).await?;
        let mut figures = Wakes::default();
        let progress = Progress::new();
        for number in 1..=args.wakes {
            bench
                .wake(&mut figures)
                .await
                .with_context(|| format!("wake {number}"))?;
            progress.say(format_args!("wake {number} of {}", args.wakes));
        }
        bench.pool.at_zero(PATIENCE).await?;
        progress.say(format_args!("watching the operator for {} s", args.quiet));
        let (rss_mb, cpu_percent) = quiet_operator(&space, Duration::from_secs(args.quiet)).await?;
        let report = json!({
            "machine": machine(),
            "held_to_patch_ms": summary(&figures.held_to_patch),
            "ready_to_dispatch_ms": summary(&figures.ready_to_dispatch),
            "wake_ms": summary(&figures.whole),
            "quiet_operator": {"rss_mb": rss_mb, "cpu_percent": cpu_percent, "seconds": args.quiet},
        });
        if let Some(directory) = args.out.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&args.out, serde_json::to_string_pretty(&report)?)?;
        write!(io::stdout(), "{}", table(&report))?;
        writeln!(io::stdout(), "written to {}", args.out.display())?;
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let values: Vec<f64> = (1..=30).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 15.0);
        assert_eq!(percentile(&values, 0.99), 30.0);
        assert!(percentile(&[], 0.5).is_nan());
    }
}
