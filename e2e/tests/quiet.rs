//! A cluster in which nothing happens: for a minute the audit log shows no write by the operator or a gateway, the
//! renewal of the operator's lease apart.

use std::time::Duration;

use anyhow::{Result, ensure};
use weir_e2e::{
    Seen, TestNamespace, await_condition,
    client::Chat,
    cluster::{
        audit::{AuditEvent, Filter, Mark},
        progress::now,
    },
    install, others_ended,
    pool::{PATIENCE, Simulated},
    with_temp_namespace,
};

const QUIET: Duration = Duration::from_secs(60);
/// No write for so long: the effects of the set-up are over.
const SETTLED: Duration = Duration::from_secs(5);

/// Writes by the operator and by this namespace's gateway. Leases are how operators agree on a leader; they are
/// renewed as long as one lives.
fn our_writes(space: &TestNamespace, mark: Mark) -> Result<Vec<AuditEvent>> {
    let mut events = space
        .cluster
        .audit()?
        .since(mark, &Filter::writes().by("weir-"))?;
    events.retain(|event| {
        let of_lease = event
            .object_ref
            .as_ref()
            .is_some_and(|object| object.resource == "leases");
        !of_lease && event.user.username.starts_with("system:serviceaccount:")
    });
    Ok(events)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_while_nothing_happens() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let serving = Simulated {
            name: "serving",
            args: &["--startup=0s"],
            more: "  idle: {policy: Never}\n  scaling: {minReplicas: 1}\n  accelerator: {hourlyPrice: \"2.50\"}",
            ..Simulated::default()
        };
        let (serving, caller) = serving.settled(&space, 1).await?;
        let zero = Simulated {
            name: "zero",
            args: &["--startup=0s"],
            more: "  idle: {policy: Fixed, after: 1s}",
            ..Simulated::default()
        };
        let zero = zero.apply(&space).await?;
        zero.caller().await?;
        caller.chat(&Chat::new(&serving.model, "Hello.")).await?.whole()?;
        caller.chat(&Chat::new(&zero.model, "Hello.")).await?.whole()?;
        zero.at_zero(PATIENCE).await?;
        others_ended(&space.client, PATIENCE).await?;

        let audit = space.cluster.audit()?;
        let mut since = (audit.mark()?, now());
        await_condition("writes to settle", PATIENCE, async || {
            let writes = our_writes(&space, since.0)?;
            if !writes.is_empty() {
                since = (audit.mark()?, now());
            }
            Ok(if now() - since.1 >= SETTLED {
                Seen::Done(())
            } else {
                Seen::NotYet(format!("{:?}", writes.last()))
            })
        })
        .await?;

        let mark = audit.mark()?;
        tokio::time::sleep(QUIET).await;
        let writes = our_writes(&space, mark)?;
        let shown: Vec<String> = writes
            .iter()
            .map(|event| format!("{} {} {}", event.user.username, event.verb, event.uri))
            .collect();
        ensure!(shown.is_empty(), "{} writes:\n{}", shown.len(), shown.join("\n"));
        // It was quiet, not dead.
        caller.chat(&Chat::new(&zero.model, "Hello again.")).await?.whole()?;
        Ok(())
    })
    .await
}
