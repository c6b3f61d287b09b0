//! A pool that names a Secret or a volume claim that is not there says so in the cluster's own words, and goes on by
//! itself once it is.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use serde_json::json;
use weir_crds::{
    LLMPoolStatus,
    condition::{ConditionType, find},
};
use weir_e2e::{
    Seen, await_condition, install,
    pool::{PATIENCE, Pool, Simulated},
    with_temp_namespace,
};

/// Reason and message of a condition.
fn said(status: &LLMPoolStatus, condition: ConditionType) -> (String, String) {
    find(&status.conditions, condition)
        .map(|found| (found.reason.clone(), found.message.clone()))
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_is_named_and_the_pool_serves_once_it_exists() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let recipe = Simulated {
            name: "licensed",
            args: &["--startup=0s"],
            more: "  idle: {policy: Never}\n  scaling: {minReplicas: 1}",
            ..Simulated::default()
        };
        let yaml = recipe.yaml().replace(
            "    imagePullPolicy:",
            "    env: [{name: LICENCE, valueFrom: {secretKeyRef: {name: licence, key: text}}}]\n    imagePullPolicy:",
        );
        ensure!(yaml.contains("LICENCE"), "{yaml}");
        space.apply(&yaml).await?;
        let pool = Pool {
            space: space.clone(),
            name: recipe.name.to_owned(),
            model: format!("{}-model", recipe.name),
        };
        let status = pool.reason("ReferenceMissing", PATIENCE).await?;
        let (_, message) = said(&status, ConditionType::Ready);
        let expected = format!(
            "Secret licence, named by spec.engine.env[LICENCE], does not exist in namespace {}: create it",
            space.name
        );
        ensure!(message.starts_with(&expected), "{message}");
        let about = "involvedObject.kind=LLMPool,involvedObject.name=licensed,reason=ReferenceMissing";
        await_condition("one event with the same words", PATIENCE, async || {
            let list = space
                .api::<Event>()
                .list(&ListParams::default().fields(about))
                .await?;
            let told: Vec<_> = list.into_iter().filter_map(|event| event.message).collect();
            let once = told == [message.clone()];
            Ok(if once { Seen::Done(()) } else { Seen::NotYet(format!("{told:?}")) })
        })
        .await?;

        let secret = "{apiVersion: v1, kind: Secret, metadata: {name: licence}, stringData: {other: x}}";
        space.apply(secret).await?;
        pool.until("to lack a key", PATIENCE, |status| {
            said(status, ConditionType::Ready).1.contains("has no key text")
        })
        .await?;
        let secret = "{apiVersion: v1, kind: Secret, metadata: {name: licence}, stringData: {text: x}}";
        space.apply(secret).await?;
        let status = pool.serving(1, PATIENCE).await?;
        ensure!(
            said(&status, ConditionType::Progressing).0 != "ReferenceMissing",
            "{status:?}"
        );
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_claim_is_named_and_is_no_lack_of_room() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let recipe = Simulated {
            name: "claiming",
            args: &["--startup=0s"],
            more: "  idle: {policy: Never}\n  scaling: {minReplicas: 1}\n  cache: {claimName: compiled}",
            ..Simulated::default()
        };
        let pool = recipe.apply(&space).await?;
        let status = pool.reason("ReferenceMissing", PATIENCE).await?;
        let (reason, message) = said(&status, ConditionType::CapacityAvailable);
        ensure!(
            reason == "ReferenceMissing"
                && message.starts_with("PersistentVolumeClaim compiled, named by spec.cache"),
            "{reason}: {message}"
        );
        pool.change(&json!({"cache": null})).await?;
        let status = pool.serving(1, PATIENCE).await?;
        let (reason, _) = said(&status, ConditionType::CapacityAvailable);
        ensure!(reason == "Scheduled", "{reason}");
        Ok(())
    })
    .await
}
