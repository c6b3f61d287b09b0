//! Pools that cannot be used say why, and the others go on.

use anyhow::{Context, Result, ensure};
use k8s_openapi::{api::core::v1::Event, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::api::ListParams;
use weir_e2e::{
    Seen, TestNamespace, await_condition,
    client::{Caller, Chat},
    install,
    pool::{PATIENCE, Pool, Simulated},
    with_temp_namespace,
};

async fn healthy(space: &TestNamespace) -> Result<(Pool, Caller)> {
    let recipe = Simulated {
        name: "older",
        args: &["--startup=0s"],
        more: "  idle: {policy: Never}\n  scaling: {minReplicas: 1}",
        ..Simulated::default()
    };
    let pool = recipe.apply(space).await?;
    let caller = pool.caller().await?;
    pool.serving(1, PATIENCE).await?;
    Ok((pool, caller))
}

/// Waits for an event about the pool with this reason, and returns its message.
async fn event(space: &TestNamespace, pool: &str, reason: &str) -> Result<String> {
    let about = format!("involvedObject.kind=LLMPool,involvedObject.name={pool}");
    await_condition(
        &format!("an event {reason} of pool {pool}"),
        PATIENCE,
        async || {
            let list = space
                .api::<Event>()
                .list(&ListParams::default().fields(&about))
                .await?;
            let found = list.iter().find(|event| event.reason.as_deref() == Some(reason));
            Ok(match found {
                Some(event) => Seen::Done(event.message.clone().unwrap_or_default()),
                None => Seen::NotYet(format!("{} other events", list.items.len())),
            })
        },
    )
    .await
}

/// Ages of objects are counted in whole seconds.
async fn a_second_after(created: &Time) -> Result<()> {
    await_condition("another second", PATIENCE, async || {
        Ok(if Timestamp::now().as_second() > created.0.as_second() + 1 {
            Seen::Done(())
        } else {
            Seen::NotYet("the same".to_owned())
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_of_two_pools_of_one_model_keeps_serving() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let (older, caller) = healthy(&space).await?;
        let before = caller.chat(&Chat::new(&older.model, "Hello.")).await?.whole()?;
        let created = older.get().await?.metadata.creation_timestamp.context("an age")?;
        a_second_after(&created).await?;
        // First by name, so that only its age makes it the second.
        let yaml = Simulated {
            name: "a-newer",
            args: &["--startup=0s"],
            ..Simulated::default()
        };
        let yaml = yaml.yaml().replace("a-newer-model", &older.model);
        space.apply(&yaml).await?;
        let newer = Pool {
            name: "a-newer".to_owned(),
            ..older.clone()
        };
        let status = newer.reason("ModelConflict", PATIENCE).await?;
        let ready = status
            .conditions
            .iter()
            .find(|one| one.type_ == "Ready")
            .context("Ready")?;
        ensure!(ready.status == "False", "{ready:?}");
        ensure!(
            ready.message.contains("older") && ready.message.contains(&older.model),
            "the message names pool and model: {}",
            ready.message
        );
        let said = event(&space, "a-newer", "ModelConflict").await?;
        ensure!(said.contains(&older.model), "{said}");
        ensure!(newer.pods().await?.is_empty(), "the newer pool runs engines");
        for _ in 0..20 {
            let answer = caller.chat(&Chat::new(&older.model, "Hello.")).await?.whole()?;
            ensure!(answer.endpoint() == before.endpoint(), "{:?}", answer.headers);
        }
        older.serving(1, PATIENCE).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_names_what_is_missing_says_so_and_others_work() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let broken = Simulated {
            name: "broken",
            args: &["--startup=0s"],
            more: "  cache: {claimName: no-such-claim}",
            ..Simulated::default()
        };
        let broken = broken.apply(&space).await?;
        let status = broken.reason("ReferenceMissing", PATIENCE).await?;
        let ready = status
            .conditions
            .iter()
            .find(|one| one.type_ == "Ready")
            .context("Ready")?;
        ensure!(
            ready.status == "False" && ready.message.contains("no-such-claim"),
            "{ready:?}"
        );
        let said = event(&space, "broken", "ReferenceMissing").await?;
        ensure!(said.contains("no-such-claim"), "{said}");
        // Beside it, another one comes up, serves, and changes.
        let (pool, caller) = healthy(&space).await?;
        caller.chat(&Chat::new(&pool.model, "Hello.")).await?.whole()?;
        pool.change(&serde_json::json!({"model": {"aliases": ["other-name"]}}))
            .await?;
        await_condition("the alias to be served", PATIENCE, async || {
            let answer = caller.chat(&Chat::new("other-name", "Hello.")).await?;
            Ok(if answer.status.is_success() {
                Seen::Done(())
            } else {
                Seen::NotYet(answer.status.to_string())
            })
        })
        .await
    })
    .await
}
