//! A namespace can be deleted although no operator runs: nothing of ours waits for one.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::DeleteParams};
use weir_e2e::{
    Seen, TestNamespace, await_condition,
    client::Chat,
    cluster, install, look_again, operator,
    pool::{PATIENCE, Simulated},
    with_temp_namespace,
};

const POLICY: &str = "apiVersion: weir.dev/v1alpha1
kind: WorkflowPolicy
metadata: {name: agents}
spec: {poolSelector: {}}
";

async fn furnish(space: &TestNamespace) -> Result<()> {
    space.apply(POLICY).await?;
    for (name, more) in [
        ("serving", "  idle: {policy: Never}\n  scaling: {minReplicas: 1}"),
        ("zero", "  drain: {timeout: 10m}"),
    ] {
        let recipe = Simulated {
            name,
            args: &["--startup=0s"],
            more,
            ..Simulated::default()
        };
        let pool = recipe.apply(space).await?;
        let caller = pool.caller().await?;
        if name == "serving" {
            pool.serving(1, PATIENCE).await?;
            caller.chat(&Chat::new(&pool.model, "Hello.")).await?.whole()?;
        } else {
            pool.at_zero(PATIENCE).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_namespace_goes_without_an_operator() -> Result<()> {
    install().await?;
    let (_, client) = cluster().await?;
    let result = with_temp_namespace(async |space| {
        furnish(&space).await?;
        operator::scale(&space.client, 0).await?;
        let namespaces: Api<Namespace> = Api::all(space.client.clone());
        namespaces.delete(&space.name, &DeleteParams::default()).await?;
        await_condition("the namespace to be gone", Duration::from_secs(60), async || {
            look_again(&space.client, &space.name).await?;
            Ok(match namespaces.get_opt(&space.name).await? {
                None => Seen::Done(()),
                Some(left) => {
                    let conditions = left
                        .status
                        .and_then(|status| status.conditions)
                        .unwrap_or_default();
                    let messages: Vec<_> = conditions.into_iter().filter_map(|one| one.message).collect();
                    Seen::NotYet(messages.join("; "))
                }
            })
        })
        .await
    })
    .await;
    operator::scale(&client, 2).await?;
    result
}
