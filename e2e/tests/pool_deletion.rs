//! A gateway's last pool is deleted while a request waits for its engine: the request is answered, not kept until the
//! gateway's grace is over.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::api::DeleteParams;
use weir_crds::LLMPool;
use weir_e2e::{
    client::Chat,
    install,
    pool::{PATIENCE, Simulated},
    with_temp_namespace,
};

/// From the deletion to the answer: garbage collection, and the gateway's stop.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_request_held_by_a_deleted_pool_is_answered() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let recipe = Simulated {
            name: "deleted",
            args: &["--startup=600s"],
            more: "  idle: {policy: Never}",
            ..Simulated::default()
        };
        let (pool, caller) = recipe.settled(&space, 0).await?;
        let chat = Chat::new(&pool.model, "Is anybody there?");
        let held = caller.chat(&chat);
        let delete = async {
            pool.until("to start", PATIENCE, |status| status.replicas == 1)
                .await?;
            let pools = space.api::<LLMPool>();
            pools.delete(&pool.name, &DeleteParams::background()).await?;
            anyhow::Ok(())
        };
        let both = async { tokio::try_join!(held, delete) };
        let answered = tokio::time::timeout(PATIENCE + ANSWERED_WITHIN, both).await;
        let (answer, ()) = answered.context("the held request was not answered")??;
        ensure!(answer.status == 503, "{answer:?}");
        let reason = answer.header("x-weir-reason");
        ensure!(
            matches!(reason, "draining" | "no_capacity"),
            "{reason}: {answer:?}"
        );
        Ok(())
    })
    .await
}
