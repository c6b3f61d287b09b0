//! Pools that cannot be used say why, and the others go on.

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Event},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::api::ListParams;
use serde_json::json;
use weir_crds::LLMPoolStatus;
use weir_e2e::{
    Seen, TestNamespace, await_condition,
    client::Chat,
    install,
    pool::{PATIENCE, Pool, Simulated},
    with_temp_namespace,
};

/// A Deployment that a user made before the pool, under the name that the pool needs.
const THEIRS: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: taken-engine}
spec:
  replicas: 0
  selector: {matchLabels: {app: theirs}}
  template:
    metadata: {labels: {app: theirs}}
    spec:
      containers: [{name: theirs, image: localhost/theirs:dev}]
";

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
        let (older, caller) = Simulated::steady("older").settled(&space, 1).await?;
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

/// Status, reason and message of a condition.
async fn condition(pool: &Pool, kind: &str, reason: &str) -> Result<(String, String)> {
    let has = |status: &LLMPoolStatus| {
        status
            .conditions
            .iter()
            .any(|one| one.type_ == kind && one.reason == reason)
    };
    let status = pool
        .until(&format!("to have {kind} {reason}"), PATIENCE, has)
        .await?;
    let found = status.conditions.into_iter().find(|one| one.type_ == kind);
    let found = found.context("the condition")?;
    Ok((found.status, found.message))
}

/// Another pool comes up, serves, and takes a change.
async fn others_work(space: &TestNamespace) -> Result<()> {
    let (pool, caller) = Simulated::steady("other").settled(space, 1).await?;
    caller.chat(&Chat::new(&pool.model, "Hello.")).await?.whole()?;
    pool.change(&json!({"model": {"aliases": ["other-name"]}}))
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
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_whose_volume_is_missing_says_so_and_others_work() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let broken = Simulated {
            name: "broken",
            args: &["--startup=0s"],
            more: "  cache: {claimName: no-such-claim}\n  scaling: {minReplicas: 1}",
            ..Simulated::default()
        };
        let broken = broken.apply(&space).await?;
        let (status, message) = condition(&broken, "CapacityAvailable", "ReferenceMissing").await?;
        ensure!(
            status == "False" && message.contains("no-such-claim"),
            "{status}: {message}"
        );
        let said = event(&space, "broken", "ReferenceMissing").await?;
        ensure!(said.contains("no-such-claim"), "{said}");
        others_work(&space).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_of_somebody_else_is_left_alone_and_others_work() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        space.apply(THEIRS).await?;
        let before = space.api::<Deployment>().get("taken-engine").await?;
        let taken = Simulated {
            name: "taken",
            args: &["--startup=0s"],
            ..Simulated::default()
        };
        let taken = taken.apply(&space).await?;
        let (status, message) = condition(&taken, "Ready", "ObjectConflict").await?;
        ensure!(
            status == "False" && message.contains("taken-engine"),
            "{status}: {message}"
        );
        others_work(&space).await?;
        let after = space.api::<Deployment>().get("taken-engine").await?;
        ensure!(
            before.spec == after.spec,
            "somebody else's Deployment was changed"
        );
        Ok(())
    })
    .await
}
