//! Five hundred requests held through a start: all answered, in their order, without flooding the first pod.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;
use weir_e2e::{
    Seen, await_condition,
    client::Chat,
    install,
    ledger::{Engine, Ledger},
    pool::{PATIENCE, Simulated, name_of},
    with_temp_namespace,
};

const REQUESTS: usize = 500;
const CAP: u32 = 8;

/// What the way from the gateway to the engine may add to a dispatch, on a busy machine.
const TRANSIT_MS: u64 = 100;

/// Requests that the engine had after more than [`CAP`] others that came to the gateway later. A request came when the
/// engine had it, less the time that the gateway says it waited.
fn out_of_order(ledger: &Ledger, waited: &HashMap<String, u64>) -> Result<Vec<String>> {
    let mut came: Vec<u64> = Vec::new();
    let mut wrong = Vec::new();
    for entry in &ledger.entries {
        let waited = waited
            .get(entry.id())
            .with_context(|| format!("{} has no answer", entry.id()))?;
        let this = entry.received_ms.saturating_sub(*waited);
        let overtaken = came.iter().filter(|other| **other > this + TRANSIT_MS).count();
        if overtaken > CAP as usize {
            wrong.push(format!("{} after {overtaken} that came later", entry.id()));
        }
        came.push(this);
    }
    Ok(wrong)
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_requests_are_held_and_answered_in_order() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let recipe = Simulated {
            name: "held",
            args: &["--startup=6s", "--profile=tiny-cpu", "--time-scale=4"],
            max_concurrency: Some(CAP),
            more: "  idle: {policy: Never}\n  scaling: {maxReplicas: 1}",
        };
        let (pool, caller) = recipe.settled(&space, 0).await?;

        let mut answers = JoinSet::new();
        // One after the other, with a pause that lets each arrive before the next.
        let mut pace = tokio::time::interval(Duration::from_millis(4));
        for number in 0..REQUESTS {
            pace.tick().await;
            let (caller, model) = (caller.clone(), pool.model.clone());
            answers.spawn(async move {
                let id = format!("held-{number}");
                let chat = Chat::new(&model, "Wait for me.").id(&id).workflow(&id).tokens(4);
                let answer = tokio::time::timeout(Duration::from_secs(120), caller.chat(&chat)).await;
                let answer = answer.with_context(|| format!("{id} is lost"))?;
                let answer = answer.and_then(|answer| answer.whole());
                anyhow::Ok((id.clone(), answer.context(id)?))
            });
        }
        await_condition("the status to show those held", PATIENCE, async || {
            let status = pool.status().await?;
            let activity = status.activity.unwrap_or_default();
            let seen = (activity.held, status.ready_replicas);
            Ok(if activity.held == 500 || status.ready_replicas > 0 {
                Seen::Done(())
            } else {
                Seen::NotYet(format!("{seen:?}"))
            })
        })
        .await?;
        let mut held = 0;
        let mut waited = HashMap::new();
        while let Some(answer) = answers.join_next().await {
            let (id, answer) = answer??;
            held += usize::from(answer.was_held());
            let queued = answer.queued().context("no waiting time")?;
            waited.insert(id, u64::try_from(queued.as_millis())?);
        }
        ensure!(held == REQUESTS, "{held} of {REQUESTS} were held");

        let pods = pool.pods().await?;
        ensure!(pods.len() == 1, "{} pods", pods.len());
        let ledger = Engine::of(&space, &name_of(&pods[0])).await?.ledger().await?;
        ensure!(
            ledger.totals.finished == 500 && ledger.totals.rejected == 0,
            "{:?}",
            ledger.totals
        );
        let most = ledger.most_at_once();
        ensure!(
            most <= CAP as usize,
            "{most} at once in the engine, {CAP} allowed"
        );
        let wrong = out_of_order(&ledger, &waited)?;
        ensure!(wrong.is_empty(), "out of order: {}", wrong.join(", "));
        Ok(())
    })
    .await
}
