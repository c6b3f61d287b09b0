//! Long streams outlive the removal of their pod: when the pool shrinks, when its template changes, when it is
//! suspended.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weir_e2e::{
    TestNamespace,
    client::{Answer, Caller, Chat, Opened},
    install,
    pool::{PATIENCE, Pool, Simulated},
    with_temp_namespace,
};
use weir_wire::headers;

/// At about 20 ms a token, 20 seconds.
const TOKENS: u32 = 1_000;

async fn pool_of(space: &TestNamespace, replicas: u32) -> Result<(Pool, Caller)> {
    let recipe = Simulated {
        name: "long",
        args: &["--startup=0s", "--profile=8b-h100", "--time-scale=3", "--seed=1"],
        max_concurrency: Some(8),
        more: &format!(
            "  scaling: {{minReplicas: {replicas}, maxReplicas: 2, scaleDownDelay: 0s}}
  idle: {{policy: Never}}
  drain: {{timeout: 2m}}"
        ),
    };
    recipe.settled(space, i32::try_from(replicas)?).await
}

/// A stream that has begun.
async fn begin(pool: &Pool, caller: &Caller, workflow: &str) -> Result<Opened> {
    let chat = Chat::new(&pool.model, "Tell me everything.")
        .workflow(workflow)
        .tokens(TOKENS)
        .stream();
    let mut stream = caller.open(&chat).await?;
    stream.more().await?;
    Ok(stream)
}

async fn begin_on_each(pool: &Pool, caller: &Caller, count: usize) -> Result<Vec<Opened>> {
    let mut streams: Vec<Opened> = Vec::new();
    for number in 0..20 {
        let stream = begin(pool, caller, &format!("w-{number}")).await?;
        let endpoint = stream.header(headers::ENDPOINT).to_owned();
        if !streams
            .iter()
            .any(|other| other.header(headers::ENDPOINT) == endpoint)
        {
            streams.push(stream);
        }
        if streams.len() == count {
            return Ok(streams);
        }
    }
    anyhow::bail!("20 workflows went to {} of {count} endpoints", streams.len());
}

fn check(answer: Answer) -> Result<()> {
    let answer = answer.whole()?;
    let tokens = answer.completion_tokens();
    ensure!(tokens == u64::from(TOKENS), "{tokens} of {TOKENS} tokens");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_outlive_a_smaller_pool() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let (pool, caller) = pool_of(&space, 2).await?;
        // One on each pod, so that the victim has one whichever it is.
        let streams = begin_on_each(&pool, &caller, 2).await?;
        pool.change(&json!({"scaling": {"minReplicas": 1, "maxReplicas": 1}}))
            .await?;
        let began = tokio::time::timeout(Duration::from_secs(60), async {
            for stream in streams {
                check(stream.finish().await)?;
            }
            anyhow::Ok(())
        });
        began.await.context("the streams")??;
        pool.serving(1, PATIENCE).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_outlive_a_rollout() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let (pool, caller) = pool_of(&space, 1).await?;
        let stream = begin(&pool, &caller, "rollout").await?;
        let old = stream.header(headers::ENDPOINT).to_owned();
        pool.change(&json!({"podMetadata": {"annotations": {"example.com/round": "2"}}}))
            .await?;
        pool.leaving(&old, PATIENCE).await?;
        // Meanwhile others are served, by the new pod.
        let other = caller
            .chat(&Chat::new(&pool.model, "And me?").workflow("other"))
            .await?;
        let other = other.whole()?;
        ensure!(other.endpoint() != old, "a pod that ends got new work");
        check(stream.finish().await)?;
        pool.serving(1, PATIENCE).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_outlive_a_suspended_pool() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let (pool, caller) = pool_of(&space, 1).await?;
        let stream = begin(&pool, &caller, "suspend").await?;
        let old = stream.header(headers::ENDPOINT).to_owned();
        pool.change(&json!({"suspend": true, "scaling": {"minReplicas": 0}}))
            .await?;
        pool.leaving(&old, PATIENCE).await?;
        check(stream.finish().await)?;
        let refused = caller.chat(&Chat::new(&pool.model, "Anyone?")).await?;
        ensure!(refused.status == 503, "{}", refused.status);
        ensure!(
            refused.header(headers::REASON) == "no_capacity",
            "{:?}",
            refused.headers
        );
        pool.reason("Suspended", PATIENCE).await?;
        Ok(())
    })
    .await
}
