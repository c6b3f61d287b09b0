//! The life of a pool, step by step; each step is what a user would do or see.

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use tokio::time::Instant;
use weir_crds::{LLMPoolStatus, names};
use weir_e2e::{
    Reach, Seen, await_condition,
    cluster::progress::{Detail, Progress, now},
    manifest, reach,
};

use crate::{
    Args, gateway,
    play::{self, Summary},
    report::{Idle, Kubectl, Report, Wake},
    request::{self, Answer},
    stage::{NAMESPACE, Stage},
    view::{Observer, View},
};

const POOL: &str = "coder";
const MODEL: &str = "coder-8b";
const POOL_YAML: &str = include_str!("pool.yaml");
const POLICY_YAML: &str = include_str!("policy.yaml");
const COLUMNS: &[&str] = &["get", "llmpools", "-o", "wide"];
const MINUTE: Duration = Duration::from_secs(60);
/// `scaling.maxReplicas` of the pool: what always-on capacity would be.
const MAX_REPLICAS: u32 = 3;

/// Everything from an empty machine to the report.
pub(crate) async fn live(args: &Args, stage: &mut Stage) -> Result<()> {
    let began = now();
    stage.take_cluster().await?;
    stage.install().await?;
    let prepared = now();
    stage.make_namespace().await?;
    let observer = Observer::start(stage.client()?, NAMESPACE, POOL);
    let mut shown = Vec::new();
    let applied = now();
    apply(stage).await?;
    at_zero(stage, &observer).await?;
    show(stage, "applied, at zero", &mut shown).await?;
    let gateway = reach(
        stage.cluster()?,
        stage.client()?,
        NAMESPACE,
        names::DEFAULT_GATEWAY,
        80,
    )
    .await?;
    let (first, wake) = wake(stage, &observer, &gateway, &mut shown).await?;
    let summary = serve(args, stage, &observer, &gateway, &mut shown).await?;
    let last_end = now();
    let idle = idle(stage, &observer, last_end, &mut shown).await?;
    let ended = now();
    let view = observer.view();
    let version = stage.client()?.apiserver_version().await?.git_version;
    let report = Report::new(&first, &summary)
        .with_wake(wake)
        .with_idle(idle)
        .with_replica_hours(view.replica_time(ended), (ended - applied) * MAX_REPLICAS)
        .with_cluster(version, stage.cluster()?.kind())
        .with_course(shown, prepared - began, ended - prepared, most_ready(&view));
    report.print()?;
    let path = Stage::directory()?.join("report.json");
    std::fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    stage.progress.say(format_args!("wrote {}", path.display()));
    report.check()
}

async fn show(stage: &Stage, when: &'static str, shown: &mut Vec<Kubectl>) -> Result<()> {
    stage.progress.say(format_args!("stage: {when}"));
    let text = stage.kubectl(COLUMNS).await?;
    shown.push(Kubectl { stage: when, text });
    Ok(())
}

async fn apply(stage: &Stage) -> Result<()> {
    let mut out = io::stdout();
    for (file, yaml) in [("pool.yaml", POOL_YAML), ("policy.yaml", POLICY_YAML)] {
        writeln!(out, "\n    $ kubectl apply -n {NAMESPACE} -f {file}")?;
        for line in yaml.lines() {
            writeln!(out, "    {line}")?;
        }
        manifest::apply(stage.client()?, NAMESPACE, yaml).await?;
    }
    Ok(writeln!(out)?)
}

/// The pool is known and at zero, and its gateway serves.
async fn at_zero(stage: &Stage, observer: &Observer) -> Result<()> {
    let zero = |view: &View| (view.replicas() == Some(0) && view.reason() == "AtZero").then_some(());
    observer
        .until(
            &stage.progress,
            "waiting for the pool to be at zero",
            MINUTE * 2,
            zero,
        )
        .await?;
    let deployments: Api<Deployment> = Api::namespaced(stage.client()?.clone(), NAMESPACE);
    let name = names::gateway(names::DEFAULT_GATEWAY);
    let serves = await_condition("the gateway to serve", MINUTE, async || {
        let status = deployments.get(&name).await?.status.unwrap_or_default();
        let available = status.available_replicas.unwrap_or(0);
        Ok(if available > 0 {
            Seen::Done(())
        } else {
            Seen::NotYet("no replica available".to_owned())
        })
    });
    stage.progress.step("waiting for the gateway", serves).await
}

/// The first request: held while the pool wakes, answered by the pod it woke.
async fn wake(
    stage: &Stage,
    observer: &Observer,
    gateway: &Reach,
    shown: &mut Vec<Kubectl>,
) -> Result<(Answer, Wake)> {
    let progress = &stage.progress;
    progress.say(format_args!(
        "sending the first agent request to {}/v1/chat/completions",
        gateway.url
    ));
    let before = observer.view().wakes().count();
    let ask = async { tokio::time::timeout(MINUTE * 3, request::ask(&gateway.url, MODEL)).await? };
    let course = async {
        let held = |view: &View| view.wakes().nth(before);
        let patched = observer
            .until(
                progress,
                "the request is held; waiting for the wake",
                MINUTE,
                held,
            )
            .await?;
        show(stage, "first request held", shown).await?;
        let ready = |view: &View| view.ready_after(patched);
        let ready = observer
            .until(
                progress,
                "waiting for the engine pod to be Ready",
                MINUTE * 2,
                ready,
            )
            .await?;
        anyhow::Ok((patched, ready))
    };
    let (answer, course) = tokio::join!(ask, course);
    let (patched, ready) = course?;
    let answer = answer.context("the first request")?;
    ensure!(
        answer.status == 200 && answer.whole,
        "the first request was answered badly: {answer:?}"
    );
    ensure!(
        answer.held,
        "the first request was not held although the pool was at zero: {answer:?}"
    );
    let first_byte = answer.first_byte.context("an answer without a byte")?;
    progress.say(format_args!(
        "answered by {} after {:.1} s, of which {:.1} s held",
        answer.endpoint.as_deref().unwrap_or("an unnamed endpoint"),
        (first_byte - answer.sent).as_secs_f64(),
        Duration::from_millis(answer.queued_ms.unwrap_or(0)).as_secs_f64()
    ));
    let measured = |view: &View| view.status().and_then(|status| status.cold_start.clone());
    let cold_start = observer
        .until(progress, "waiting for the wake's phases", MINUTE, measured)
        .await?;
    show(stage, "serving", shown).await?;
    let states = gateway::states(stage.cluster()?, stage.client()?, NAMESPACE, POOL).await?;
    let endpoints = states.iter().flat_map(|state| &state.endpoints);
    let wake = Wake {
        held_to_patch_ms: vec![millis(answer.sent, patched)],
        patch_to_ready_s: vec![(ready - patched).as_secs_f64()],
        ready_to_dispatch_ms: endpoints
            .filter_map(|endpoint| endpoint.ready_to_dispatch_ms)
            .collect(),
        // The gateway asks the sidecar itself and is served before the kubelet calls the pod Ready.
        first_byte_after_pod_ready_ms: vec![signed_millis(ready, first_byte)],
        phases: serde_json::to_value(cold_start.phases)?,
    };
    Ok((answer, wake))
}

/// Agent sessions; meanwhile the pool grows.
async fn serve(
    args: &Args,
    stage: &Stage,
    observer: &Observer,
    gateway: &Reach,
    shown: &mut Vec<Kubectl>,
) -> Result<Summary> {
    let progress = &stage.progress;
    let directory = Stage::directory()?;
    let grow = async {
        // The replay's own lines tell what goes on meanwhile.
        let grown = |view: &View| (view.ready() > 1).then_some(());
        observer
            .until_seen(MINUTE * 10, &Detail::default(), grown)
            .await?;
        show(stage, "scaled up under load", shown).await
    };
    let play = play::play(&gateway.url, MODEL, args, &directory, progress);
    let (mut play, mut grow) = (Box::pin(play), Box::pin(grow));
    let summary = tokio::select! {
        summary = &mut play => summary?,
        grown = &mut grow => {
            grown?;
            play.await?
        }
    };
    drop(grow);
    if most_ready(&observer.view()) < 2 {
        bail!("the pool did not grow under load: it had at most one endpoint");
    }
    Ok(summary)
}

/// No more requests: the countdown to break-even, and zero.
async fn idle(
    stage: &Stage,
    observer: &Observer,
    last_end: Instant,
    shown: &mut Vec<Kubectl>,
) -> Result<Idle> {
    let progress = &stage.progress;
    let counting = |view: &View| {
        view.status()?
            .idle
            .as_ref()
            .filter(|idle| idle.zero_at.is_some())
            .cloned()
    };
    let idle = observer
        .until(
            progress,
            "no more requests; waiting for idleness",
            MINUTE,
            counting,
        )
        .await?;
    show(stage, "idle", shown).await?;
    if let Some(reason) = &idle.reason {
        progress.say(format_args!("why: {reason}"));
    }
    let threshold = idle
        .threshold
        .map_or(0.0, |threshold| Duration::from(threshold).as_secs_f64());
    let limit = Duration::from_secs_f64(threshold) + MINUTE * 2;
    let ordered = |view: &View| {
        view.ordered
            .last()
            .filter(|(at, replicas)| *replicas == 0 && *at >= last_end)
            .copied()
    };
    let countdown = observer.until(progress, "counting down to break-even", limit, ordered);
    let (zero, _) = tokio::select! {
        zero = countdown => zero?,
        never = count_down(progress, observer) => never,
    };
    let gone = |view: &View| (view.living() == 0 && view.reason() == "AtZero").then_some(());
    observer
        .until(
            progress,
            "zero is ordered; waiting for the pods to end",
            MINUTE * 2,
            gone,
        )
        .await?;
    show(stage, "at zero again", shown).await?;
    let seconds = |value: Option<weir_crds::Duration>| value.map(|value| Duration::from(value).as_secs_f64());
    Ok(Idle {
        break_even_s: seconds(idle.break_even),
        threshold_s: seconds(idle.threshold),
        zero_after_s: (zero - last_end).as_secs_f64(),
        reason: idle.reason,
    })
}

/// Says every two seconds how far it is.
async fn count_down<T>(progress: &Progress, observer: &Observer) -> T {
    let mut ticks = tokio::time::interval(Duration::from_secs(2));
    loop {
        ticks.tick().await;
        let view = observer.view();
        if let Some(line) = view
            .status()
            .and_then(|status| countdown_line(status, jiff::Timestamp::now()))
        {
            progress.say(line);
        }
    }
}

fn countdown_line(status: &LLMPoolStatus, now: jiff::Timestamp) -> Option<String> {
    let idle = status.idle.as_ref()?;
    let since = status.activity.as_ref()?.idle_since.as_ref()?;
    let left = idle.zero_at.as_ref()?.0.duration_since(now).as_secs_f64();
    let break_even = idle
        .break_even
        .map_or_else(|| "unknown".to_owned(), |value| value.to_string());
    Some(format!(
        "idle for {:.0} s; break-even {break_even}; {}",
        now.duration_since(since.0).as_secs_f64(),
        if left > 0.0 {
            format!("zero in {left:.0} s")
        } else {
            "zero is due".to_owned()
        }
    ))
}

/// Most endpoints that were Ready at one time.
fn most_ready(view: &View) -> usize {
    let lives = || view.pods.values().filter_map(|pod| Some((pod.ready?, pod.gone)));
    let at = |instant: Instant| {
        lives()
            .filter(|(ready, gone)| *ready <= instant && gone.is_none_or(|gone| gone > instant))
            .count()
    };
    lives().map(|(ready, _)| at(ready)).max().unwrap_or(0)
}

fn millis(from: Instant, to: Instant) -> f64 {
    (to - from).as_secs_f64() * 1e3
}

/// Negative when `to` was first.
fn signed_millis(from: Instant, to: Instant) -> f64 {
    if to >= from {
        millis(from, to)
    } else {
        -millis(to, from)
    }
}
