//! A start that takes longer than the idle limit: the starting pod is not idle, and the request is answered.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_e2e::{
    client::Chat,
    cluster::audit::Filter,
    install,
    pool::{PATIENCE, Simulated, name_of},
    with_temp_namespace,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_starts_slower_than_the_idle_limit_is_not_killed() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let recipe = Simulated {
            name: "slow",
            args: &["--startup=15s"],
            more: "  idle: {policy: Fixed, after: 2s}",
            ..Simulated::default()
        };
        let (pool, caller) = recipe.settled(&space, 0).await?;
        let audit = space.cluster.audit()?;
        let mark = audit.mark()?;
        let chat = Chat::new(&pool.model, "Take your time.");
        let answer = tokio::time::timeout(PATIENCE, caller.chat(&chat)).await;
        let answer = answer.context("lost")??.whole()?;
        ensure!(answer.was_held(), "{:?}", answer.headers);
        ensure!(
            answer.ended_after > Duration::from_secs(15),
            "{:?}",
            answer.ended_after
        );

        let pods = pool.all_pods().await?;
        ensure!(
            pods.len() == 1 && name_of(&pods[0]) == answer.endpoint(),
            "{} pods",
            pods.len()
        );
        let containers = pods[0]
            .status
            .as_ref()
            .and_then(|status| status.container_statuses.clone());
        let restarts: i32 = containers
            .unwrap_or_default()
            .iter()
            .map(|one| one.restart_count)
            .sum();
        ensure!(restarts == 0, "{restarts} restarts");
        let filter = Filter::writes()
            .of("deployments")
            .within(&space.name)
            .by("weir-operator");
        let written = audit.since(mark, &filter)?;
        let replicas: Vec<&Value> = written
            .iter()
            .filter_map(|event| event.request_object.as_ref()?.pointer("/spec/replicas"))
            .collect();
        ensure!(
            replicas.iter().all(|value| **value == 1),
            "replicas written: {replicas:?}"
        );
        pool.at_zero(PATIENCE).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_gives_up_does_not_kill_the_start_it_began() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let recipe = Simulated {
            name: "given-up",
            args: &["--startup=8s"],
            more: "  idle: {policy: Fixed, after: 2s}",
            ..Simulated::default()
        };
        let (pool, caller) = recipe.settled(&space, 0).await?;
        let chat = Chat::new(&pool.model, "Never mind.");
        let impatient = async {
            pool.until("to start", PATIENCE, |status| status.replicas == 1)
                .await
        };
        tokio::select! {
            answer = caller.chat(&chat) => anyhow::bail!("answered: {answer:?}"),
            started = impatient => started?,
        };
        let first = pool.pods().await?.first().map(name_of).context("a pod")?;
        let answer = caller
            .chat(&Chat::new(&pool.model, "I am back."))
            .await?
            .whole()?;
        ensure!(
            answer.endpoint() == first,
            "{first} was not used: {:?}",
            answer.headers
        );
        Ok(())
    })
    .await
}
