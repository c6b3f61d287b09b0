//! Requests at the very instant at which a pool goes to zero: none is lost, none fails.
//!
//! Every pool's requests are aimed at the moment of the fence: later after an answer from a running engine, earlier
//! after one that needed a wake, with a seeded scatter, and now and then into the seconds after it, while pods end.
//! `WEIR_ZERO_CYCLES` sets the number of cycles over all pools.

use std::{env, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::time::Instant;
use weir_e2e::{
    client::{Caller, Chat},
    cluster::{audit::Filter, progress::Progress, progress::now},
    install,
    pool::{PATIENCE, Pool, Simulated},
    with_temp_namespace,
};

const POOLS: u32 = 5;
const CYCLES: u32 = 200;
const SEED: u64 = 11;
/// Longest answer, a wake on a busy machine included.
const ANSWER: Duration = Duration::from_secs(60);

/// How the requests at the instants were answered.
#[derive(Debug, Default)]
struct Tally {
    /// By the engine that was still running, at once.
    warm: u32,
    /// By the engine that was still running, after the fence was lifted.
    revived: u32,
    /// By a new engine.
    woken: u32,
    wrong: Vec<String>,
}

async fn race(pool: Pool, caller: Caller, cycles: u32, seed: u64) -> Result<Tally> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    let mut aim: i64 = 1_300;
    let mut endpoint = String::new();
    let mut ended: Option<Instant> = None;
    for cycle in 0..=cycles {
        if let Some(ended) = ended {
            let scatter = match random.random_range(0..4) {
                0 => random.random_range(0..900),
                _ => random.random_range(-60..60),
            };
            let after = u64::try_from((aim + scatter).max(0)).unwrap_or(0);
            tokio::time::sleep_until(ended + Duration::from_millis(after)).await;
        }
        let id = format!("{}-{cycle}", pool.name);
        let chat = Chat::new(&pool.model, "Now?").id(&id).workflow(&id);
        let answer = tokio::time::timeout(ANSWER, caller.chat(&chat)).await;
        let answer = answer
            .map_err(|_| anyhow::anyhow!("lost: no answer within {ANSWER:?}"))
            .and_then(|answer| answer)
            .and_then(|answer| answer.whole());
        match answer {
            // The first one only brings the pool up.
            Ok(answer) if cycle == 0 => answer.endpoint().clone_into(&mut endpoint),
            Ok(answer) => {
                let same = answer.endpoint() == endpoint;
                let count = match (answer.was_held(), same) {
                    (false, true) => &mut tally.warm,
                    (true, true) => &mut tally.revived,
                    (_, false) => &mut tally.woken,
                };
                *count += 1;
                aim += if answer.was_held() || !same { -50 } else { 50 };
                answer.endpoint().clone_into(&mut endpoint);
            }
            Err(error) => tally.wrong.push(format!("{id}: {error:#}")),
        }
        ended = Some(now());
    }
    Ok(tally)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_at_the_instant_of_zero_is_answered() -> Result<()> {
    let cycles = match env::var("WEIR_ZERO_CYCLES") {
        Ok(text) => text.parse().context("WEIR_ZERO_CYCLES")?,
        Err(_) => CYCLES,
    };
    install().await?;
    with_temp_namespace(async |space| {
        let mut races = Vec::new();
        let mark = space.cluster.audit()?.mark()?;
        for number in 0..POOLS {
            let name = format!("race-{number}");
            let recipe = Simulated {
                name: &name,
                args: &["--startup=0s", "--profile=tiny-cpu"],
                more: "  idle: {policy: Fixed, after: 1s}\n  drain: {timeout: 30s}",
                ..Simulated::default()
            };
            let pool = recipe.apply(&space).await?;
            let share = cycles.div_ceil(POOLS);
            races.push(async move {
                let caller = pool.caller().await?;
                pool.at_zero(PATIENCE).await?;
                race(pool, caller, share, SEED + u64::from(number)).await
            });
        }
        let mut sum = Tally::default();
        for tally in try_join_all(races).await? {
            sum.warm += tally.warm;
            sum.revived += tally.revived;
            sum.woken += tally.woken;
            sum.wrong.extend(tally.wrong);
        }
        let filter = Filter::writes().of("deployments").within(&space.name);
        let zeros = space.cluster.audit()?.since(mark, &filter)?;
        let zeros = zeros.iter().filter(|event| {
            let body = event.request_object.as_ref();
            body.and_then(|body| body.pointer("/spec/replicas")) == Some(&Value::from(0))
        });
        let (warm, revived, woken) = (sum.warm, sum.revived, sum.woken);
        Progress::new().say(format_args!(
            "seed {SEED}: {warm} answered by the running engine, {revived} after a lifted fence, {woken} by a new \
             one; replicas were set to 0 {} times",
            zeros.count()
        ));
        ensure!(sum.wrong.is_empty(), "{}", sum.wrong.join("\n"));
        let all = warm + revived + woken;
        ensure!(all >= cycles, "{all} of {cycles} cycles");
        // Else the requests missed the instant.
        ensure!(warm * 10 >= all && (woken + revived) * 10 >= all, "warm {warm}, held {}", woken + revived);
        Ok(())
    })
    .await
}
