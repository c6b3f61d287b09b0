//! The life of a pool, step by step; each step is what a user would do or see.

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::{Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use tokio::time::Instant;
use weir_crds::names;
use weir_e2e::{
    Reach, Seen, await_condition,
    cluster::progress::{Detail, now},
    manifest, reach,
};

use crate::{
    Args,
    play::{self, Summary},
    report::{Kubectl, Report},
    stage::{NAMESPACE, Stage},
    view::{Observer, View},
};

mod idle;
mod wake;

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
    let (first, wake) = wake::wake(stage, &observer, &gateway, &mut shown).await?;
    let summary = serve(args, stage, &observer, &gateway, &mut shown).await?;
    let last_end = now();
    let idle = idle::idle(stage, &observer, last_end, &mut shown).await?;
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
        writeln!(
            out,
            "\n    $ kubectl apply --server-side -n {NAMESPACE} -f {file}"
        )?;
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
