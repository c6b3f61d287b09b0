//! The operator killed in the middle of wakes and of scale-downs: its successor carries on, and no request is lost.
//!
//! One kill meets many pools, each at another moment of its way.

use std::{future::pending, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::future::{join_all, try_join_all};
use kube::Client;
use tokio::{task::JoinSet, time::Instant};
use weir_e2e::{
    TestNamespace,
    client::{Answer, Caller, Chat},
    cluster,
    cluster::progress::{Progress, now},
    install, operator,
    pool::{PATIENCE, Pool, Simulated},
    with_temp_namespace,
};

/// When, before the kill, each pool's request is sent.
const BEFORE_MS: [u64; 6] = [0, 30, 100, 400, 1_200, 2_500];
/// When, before the kill, each pool's idle time runs out; below zero: after it.
const IDLE_OUT_MS: [i64; 6] = [-300, 0, 40, 150, 600, 1_500];
const IDLE_MS: i64 = 3_000;
/// Longest answer: the lease must run out, and the pod start.
const ANSWER: Duration = Duration::from_secs(90);

async fn racers(space: &TestNamespace, prefix: &str, count: usize) -> Result<Vec<Pool>> {
    let mut pools = Vec::new();
    for number in 0..count {
        let recipe = Simulated {
            name: &format!("{prefix}-{number}"),
            args: &["--startup=500ms"],
            more: "  idle: {policy: Fixed, after: 3s}\n  drain: {timeout: 30s}",
            ..Simulated::default()
        };
        pools.push(recipe.apply(space).await?);
    }
    Ok(pools)
}

async fn ask(pool: &Pool, caller: &Caller, text: &str) -> Result<Answer> {
    let answer = tokio::time::timeout(ANSWER, caller.chat(&Chat::new(&pool.model, text))).await;
    let answer = answer.with_context(|| format!("pool {}: lost", pool.name))?;
    answer
        .and_then(|answer| answer.whole())
        .with_context(|| format!("pool {}", pool.name))
}

/// Asks the steady pool ten times a second; ends with the first failure only.
async fn traffic(pool: Pool, caller: Caller) -> Result<()> {
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    loop {
        pace.tick().await;
        let chat = Chat::new(&pool.model, "Hm?");
        let answer = tokio::time::timeout(Duration::from_secs(10), caller.chat(&chat)).await;
        answer.context("the steady pool does not answer")??.whole()?;
    }
}

/// Runs `test` while the steady pool is asked all the time.
async fn with_traffic(space: &TestNamespace, test: impl AsyncFnOnce(&Caller) -> Result<()>) -> Result<()> {
    let (pool, caller) = Simulated::steady("steady").settled(space, 1).await?;
    let mut steady = JoinSet::new();
    steady.spawn(traffic(pool, caller.clone()));
    tokio::select! {
        result = test(&caller) => result,
        ended = steady.join_next() => match ended {
            Some(failed) => failed?,
            None => pending().await,
        },
    }
}

async fn after(start: Instant, offset_ms: i64) {
    let offset = u64::try_from(offset_ms.max(0)).unwrap_or(0);
    tokio::time::sleep_until(start + Duration::from_millis(offset)).await;
}

async fn killed_in_wakes(space: &TestNamespace, client: &Client, caller: &Caller) -> Result<()> {
    let pools = racers(space, "wake", BEFORE_MS.len()).await?;
    for pool in &pools {
        pool.caller().await?;
        pool.at_zero(PATIENCE).await?;
    }
    let leader = operator::leader(client).await?;
    let start = now();
    let last = BEFORE_MS.iter().max().copied().unwrap_or(0);
    let asks = pools.iter().zip(BEFORE_MS).map(async |(pool, before)| {
        after(start, i64::try_from(last - before)?).await;
        ask(pool, caller, "Wake up.").await
    });
    let kill = async {
        after(start, i64::try_from(last)?).await;
        operator::kill(client, &leader).await
    };
    let (answers, killed) = futures::join!(join_all(asks), kill);
    killed?;
    for answer in answers {
        let answer = answer?;
        ensure!(answer.was_held(), "{:?}", answer.headers);
        Progress::new().say(format_args!("answered after {:?}", answer.ended_after));
    }
    // The successor finishes what was begun: every pool comes to zero by itself.
    for pool in &pools {
        pool.at_zero(PATIENCE).await?;
    }
    operator::available(client, 2).await
}

async fn killed_in_scale_downs(space: &TestNamespace, client: &Client, caller: &Caller) -> Result<()> {
    let pools = racers(space, "zero", IDLE_OUT_MS.len()).await?;
    let up = pools.iter().map(async |pool| {
        pool.caller().await?;
        ask(pool, caller, "Wake up.").await
    });
    try_join_all(up).await?;
    let leader = operator::leader(client).await?;
    // Last requests, so that each pool's time runs out at its own moment around the kill.
    let start = now();
    let lead = IDLE_OUT_MS.iter().max().copied().unwrap_or(0);
    let lasts = pools.iter().zip(IDLE_OUT_MS).map(async |(pool, out)| {
        after(start, lead - out).await;
        ask(pool, caller, "One more.").await
    });
    try_join_all(lasts).await?;
    after(start, lead + IDLE_MS).await;
    operator::kill(client, &leader).await?;
    // Whatever was fenced or half way down, a request is answered now.
    let now_asks = pools
        .iter()
        .step_by(2)
        .map(async |pool| ask(pool, caller, "Now?").await);
    for answer in try_join_all(now_asks).await? {
        Progress::new().say(format_args!("answered after {:?}", answer.ended_after));
    }
    for pool in &pools {
        pool.at_zero(PATIENCE).await?;
    }
    operator::available(client, 2).await
}

/// Nobody runs the operator: what serves goes on, what is at zero is held until an operator is back.
async fn without_any(space: &TestNamespace, client: &Client, caller: &Caller) -> Result<()> {
    let pools = racers(space, "held", 1).await?;
    let pool = pools.first().context("a pool")?;
    pool.caller().await?;
    pool.at_zero(PATIENCE).await?;
    operator::scale(client, 0).await?;
    let asked = ask(pool, caller, "Anyone?");
    let (answer, back) = futures::join!(asked, operator::scale(client, 2));
    back?;
    ensure!(answer?.was_held(), "not held");
    pool.at_zero(PATIENCE).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_operator_loses_nothing() -> Result<()> {
    install().await?;
    let (_, client) = cluster().await?;
    operator::available(&client, 2).await?;
    with_temp_namespace(async |space| {
        let result = with_traffic(&space, async |caller| {
            killed_in_wakes(&space, &client, caller)
                .await
                .context("killed in wakes")?;
            killed_in_scale_downs(&space, &client, caller)
                .await
                .context("killed in scale-downs")?;
            without_any(&space, &client, caller)
                .await
                .context("without any operator")
        })
        .await;
        // The next test binary needs it.
        operator::scale(&client, 2).await?;
        result
    })
    .await
}
