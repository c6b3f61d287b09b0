//! An engine that dies in the middle of a stream: its clients get an error event, and the next request is answered.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use serde_json::json;
use weir_e2e::{
    Seen, TestNamespace, await_condition,
    client::{Answer, Caller, Chat, Opened},
    install,
    ledger::Engine,
    pool::{PATIENCE, Pool, Simulated},
    processes, with_temp_namespace,
};
use weir_wire::headers;

const PATIENT: Duration = Duration::from_secs(60);

async fn streaming(space: &TestNamespace) -> Result<(Pool, Caller, Opened)> {
    let recipe = Simulated {
        name: "mortal",
        args: &["--startup=0s", "--profile=8b-h100", "--time-scale=3"],
        more: "  scaling: {minReplicas: 1}\n  idle: {policy: Never}\n  drain: {timeout: 1m}",
        ..Simulated::default()
    };
    let (pool, caller) = recipe.settled(space, 1).await?;
    let chat = Chat::new(&pool.model, "Go on and on.").tokens(2_000).stream();
    let mut stream = caller.open(&chat).await?;
    stream.more().await?;
    Ok((pool, caller, stream))
}

/// The answer ends with an error event and a regular end, never in silence.
fn says_so(answer: &Answer) -> Result<()> {
    let shown = String::from_utf8_lossy(&answer.body);
    ensure!(
        answer.cut.is_none(),
        "cut without a word ({:?}): {shown}",
        answer.cut
    );
    let error = answer
        .error()
        .with_context(|| format!("no error event: {shown}"))?;
    ensure!(error["message"].is_string(), "{error}");
    Ok(())
}

async fn ended(stream: Opened) -> Result<Answer> {
    let answer = tokio::time::timeout(PATIENT, stream.finish()).await;
    answer.context("the stream hangs")
}

/// Waits until the pool's engine container has been started anew.
async fn restarted(pool: &Pool) -> Result<()> {
    await_condition("the engine to be started anew", PATIENCE, async || {
        let pods = pool.pods().await?;
        let statuses = pods
            .iter()
            .filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref());
        let restarts: i32 = statuses.flatten().map(|container| container.restart_count).sum();
        Ok(if restarts > 0 {
            Seen::Done(())
        } else {
            Seen::NotYet("no restart".to_owned())
        })
    })
    .await
}

async fn next_is_answered(pool: &Pool, caller: &Caller) -> Result<Answer> {
    let chat = Chat::new(&pool.model, "Still there?");
    let answer = tokio::time::timeout(PATIENT, caller.chat(&chat)).await;
    answer.context("the next request hangs")??.whole()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_without_grace_ends_its_streams_with_an_error_event() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let (pool, caller, stream) = streaming(&space).await?;
        let victim = stream.header(headers::ENDPOINT).to_owned();
        let now = DeleteParams::default().grace_period(0);
        space.api::<Pod>().delete(&victim, &now).await?;
        says_so(&ended(stream).await?)?;
        let next = next_is_answered(&pool, &caller).await?;
        ensure!(next.endpoint() != victim, "a dead pod answered");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_engine_ends_its_streams_with_an_error_event() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let (pool, caller, stream) = streaming(&space).await?;
        let engine = Engine::of(&space, stream.header(headers::ENDPOINT)).await?;
        engine
            .fault(&json!({"kind": "crash", "exit_after_ms": 200}))
            .await?;
        says_so(&ended(stream).await?)?;
        // While it dies it answers 500, which is its own word and no other endpoint's to mend.
        restarted(&pool).await?;
        next_is_answered(&pool, &caller).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_engine_and_a_killed_sidecar_end_streams_with_an_error_event() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let (pool, caller, stream) = streaming(&space).await?;
        processes::kill(stream.header(headers::ENDPOINT), "engine_sim")?;
        says_so(&ended(stream).await?).context("engine killed")?;
        next_is_answered(&pool, &caller).await.context("engine killed")?;

        pool.serving(1, PATIENCE).await?;
        let chat = Chat::new(&pool.model, "Go on and on.").tokens(2_000).stream();
        let mut stream = caller.open(&chat).await?;
        stream.more().await?;
        processes::kill(stream.header(headers::ENDPOINT), "weir-router")?;
        says_so(&ended(stream).await?).context("sidecar killed")?;
        next_is_answered(&pool, &caller).await.context("sidecar killed")?;
        Ok(())
    })
    .await
}
