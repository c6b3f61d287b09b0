//! Probes, scrapes and lists of models are no traffic: a pool that gets nothing else reaches zero and stays there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;
use weir_e2e::{
    Seen, await_condition,
    client::{Caller, Chat},
    cluster::audit::Filter,
    install,
    pool::{PATIENCE, Simulated, gateway_pods, pod_caller},
    with_temp_namespace,
};
use weir_wire::ports;

/// Asks for `paths` in turn, for ever; what does not answer (any more) is asked again.
async fn pester(caller: Caller, paths: &'static [&'static str], answers: Arc<AtomicU64>) {
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    for path in paths.iter().cycle() {
        pace.tick().await;
        if caller.get(path).await.is_ok() {
            answers.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_scrapes_keep_nothing_awake() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let recipe = Simulated {
            name: "quiet",
            args: &["--startup=0s"],
            more: "  idle: {policy: Fixed, after: 3s}",
            ..Simulated::default()
        };
        let pool = recipe.apply(&space).await?;
        let caller = pool.caller().await?;
        caller.chat(&Chat::new(&pool.model, "Wake up.")).await?.whole()?;

        let answers = Arc::new(AtomicU64::new(0));
        let mut pesterers = JoinSet::new();
        pesterers.spawn(pester(
            caller,
            &["/v1/models", "/v1/models/quiet-model"],
            Arc::clone(&answers),
        ));
        let gateway = gateway_pods(&space)
            .await?
            .into_iter()
            .next()
            .context("a gateway pod")?;
        let admin = pod_caller(&space, &gateway, ports::ADMIN).await?;
        pesterers.spawn(pester(
            admin,
            &["/metrics", "/readyz", "/livez"],
            Arc::clone(&answers),
        ));
        let engine = pool.pods().await?.into_iter().next().context("an engine pod")?;
        let sidecar = pod_caller(&space, &engine, ports::ADMIN).await?;
        let probes = &["/readyz", "/engine/livez", "/livez", "/metrics"];
        pesterers.spawn(pester(sidecar, probes, Arc::clone(&answers)));

        pool.at_zero(PATIENCE).await?;
        let audit = space.cluster.audit()?;
        let mark = audit.mark()?;
        let until = answers.load(Ordering::Relaxed) + 100;
        await_condition("100 more answers to probes", PATIENCE, async || {
            let count = answers.load(Ordering::Relaxed);
            Ok(if count >= until {
                Seen::Done(())
            } else {
                Seen::NotYet(count.to_string())
            })
        })
        .await?;
        ensure!(pesterers.try_join_next().is_none(), "a pesterer ended");
        let by_us = Filter::writes()
            .by("weir-operator")
            .within(&space.name)
            .of("deployments");
        let written = audit.since(mark, &by_us)?;
        ensure!(written.is_empty(), "{written:?}");
        pool.at_zero(Duration::from_secs(1)).await?;
        Ok(())
    })
    .await
}
