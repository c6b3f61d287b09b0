//! The life of a pool whose engine is SGLang: woken from zero, streams, a second turn that finds its cache, a drain
//! when the pool shrinks, zero again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weir_e2e::{
    Seen, TestNamespace, await_condition,
    client::{Caller, Chat},
    install,
    pool::{PATIENCE, Pool, Simulated, name_of},
    with_temp_namespace,
};

/// At about 20 ms a token, 20 seconds.
const LONG: u32 = 1_000;

async fn apply(space: &TestNamespace) -> Result<Pool> {
    let recipe = Simulated {
        name: "sgl",
        args: &[
            "--startup=3s",
            "--profile=8b-h100",
            "--time-scale=3",
            "--seed=1",
            "--page-size=16",
        ],
        max_concurrency: Some(4),
        more: "  scaling: {maxReplicas: 2, scaleDownDelay: 1s}
  idle: {policy: Fixed, after: 10s}
  drain: {timeout: 2m}",
    };
    let yaml = recipe
        .yaml()
        .replace("\n  engine:\n", "\n  engine:\n    type: SGLang\n");
    space
        .apply(&yaml.replace("source: image", "source: image, aliases: [sgl-alias]"))
        .await?;
    Ok(Pool {
        space: space.clone(),
        name: "sgl".to_owned(),
        model: "sgl-model".to_owned(),
    })
}

fn prompt() -> String {
    "Think before you act, and say what you are about to do. ".repeat(40)
}

/// Held, woken once, answered as a stream; the next turn, under the alias, finds the cache of the first.
async fn wake_and_return(pool: &Pool, caller: &Caller) -> Result<()> {
    let turn = |model: &str| Chat::new(model, &prompt()).workflow("w").tokens(16).stream();
    let first = caller.chat(&turn(&pool.model)).await?.whole()?;
    ensure!(first.was_held() && first.home() == "new", "{:?}", first.headers);
    ensure!(
        first.cached_tokens() == 0 && first.completion_tokens() == 16,
        "{:?}",
        first.usage()
    );
    ensure!(first.events().len() > 3, "a stream: {:?}", first.events());
    let status = pool.serving(1, PATIENCE).await?;
    ensure!(
        status.cold_start.is_some_and(|start| start.samples == 1),
        "one start was measured"
    );

    let second = caller.chat(&turn("sgl-alias")).await?.whole()?;
    ensure!(
        second.home() == "kept" && second.endpoint() == first.endpoint(),
        "{:?}",
        second.headers
    );
    ensure!(second.cached_tokens() > 100, "{:?}", second.usage());
    Ok(())
}

/// Errors have OpenAI's shape, although SGLang's are flat.
async fn errors(pool: &Pool, caller: &Caller) -> Result<()> {
    let body =
        json!({"model": pool.model, "messages": [{"role": "user", "content": "x"}], "temperature": -1});
    let answer = caller.post("/v1/chat/completions", body.to_string()).await?;
    let error = answer.json();
    ensure!(
        answer.status == 400 && error["error"]["message"].is_string(),
        "{error}"
    );
    Ok(())
}

/// A long stream holds its pod, which was told to go, until it is told in full.
async fn drain(pool: &Pool, caller: &Caller) -> Result<()> {
    let chat = Chat::new(&pool.model, "Tell me everything.")
        .tokens(LONG)
        .stream();
    let mut stream = caller.open(&chat).await?;
    stream.more().await?;
    let endpoint = stream.header(weir_wire::headers::ENDPOINT).to_owned();
    pool.change(&json!({"suspend": true})).await?;
    pool.leaving(&endpoint, PATIENCE).await?;
    let answer = stream
        .finish()
        .await
        .whole()
        .context("the stream that was in flight")?;
    ensure!(
        answer.completion_tokens() == u64::from(LONG),
        "{:?}",
        answer.usage()
    );
    // The quiet second of the hook, the look that the engine takes every 5 s (here times 3), and the teardown.
    await_condition(
        "the drained pod to be gone",
        Duration::from_secs(40),
        async || {
            let pods = pool.all_pods().await?;
            Ok(match pods.first() {
                Some(pod) => Seen::NotYet(name_of(pod)),
                None => Seen::Done(()),
            })
        },
    )
    .await?;
    pool.change(&json!({"suspend": false})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sglang_pool_lives_as_any_other() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let pool = apply(&space).await?;
        let caller = pool.caller().await?;
        pool.at_zero(PATIENCE).await?;
        wake_and_return(&pool, &caller).await?;
        errors(&pool, &caller).await?;
        drain(&pool, &caller).await?;
        pool.at_zero(PATIENCE).await?;
        let again = caller
            .chat(&Chat::new(&pool.model, "Are you back?"))
            .await?
            .whole()?;
        ensure!(again.was_held(), "{:?}", again.headers);
        pool.at_zero(PATIENCE).await.context("by its idle time")?;
        Ok(())
    })
    .await
}
