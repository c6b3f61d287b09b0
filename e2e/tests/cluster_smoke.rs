//! The harness itself: a restricted pod runs, names resolve inside it, the scheduler counts GPUs, and the audit log
//! tells who wrote what.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{LogParams, PostParams},
};
use weir_e2e::{
    Seen, TestNamespace, await_condition, cluster::audit::Filter, rejects, toolbox, with_temp_namespace,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn pod(name: &str, image: &str, command: &str, resources: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  enableServiceLinks: false
  terminationGracePeriodSeconds: 1
  securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
    - name: box
      image: {image}
      imagePullPolicy: IfNotPresent
      args: [sh, -c, '{command}']
      resources: {resources}
      securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
"
    )
}

async fn phase(space: &TestNamespace, name: &str, wanted: &str) -> Result<Pod> {
    let pods: Api<Pod> = space.api();
    await_condition(&format!("pod {name} {wanted}"), PATIENCE, async || {
        let pod = pods.get(name).await?;
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.clone())
            .unwrap_or_default();
        Ok(if phase == wanted {
            Seen::Done(pod)
        } else {
            Seen::NotYet(phase)
        })
    })
    .await
}

#[tokio::test]
async fn a_restricted_pod_runs_and_resolves_names() -> Result<()> {
    let image = toolbox().await?;
    with_temp_namespace(async move |space| {
        let name = "kubernetes.default.svc.cluster.local";
        space
            .apply(&pod("box", image, &format!("/bin/busybox nslookup {name}"), "{}"))
            .await?;
        phase(&space, "box", "Succeeded").await?;
        let log = space.api::<Pod>().logs("box", &LogParams::default()).await?;
        ensure!(
            log.contains("10.96.0.1") || log.contains(name),
            "the answer was: {log}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_privileged_pod_is_refused() -> Result<()> {
    with_temp_namespace(async move |space| {
        let yaml = pod("root", "localhost/any:dev", "true", "{}")
            .replace("allowPrivilegeEscalation: false", "privileged: true");
        rejects(
            &space.client,
            &space.name,
            &yaml,
            "violates PodSecurity \"restricted",
        )
        .await
    })
    .await
}

#[tokio::test]
async fn the_scheduler_counts_gpus() -> Result<()> {
    let image = toolbox().await?;
    with_temp_namespace(async move |space| {
        let gpus = |count: &str| format!("{{limits: {{nvidia.com/gpu: \"{count}\"}}}}");
        space.apply(&pod("fits", image, "sleep 600", &gpus("1"))).await?;
        phase(&space, "fits", "Running").await?;
        space.apply(&pod("toomany", image, "true", &gpus("5"))).await?;
        await_condition("the scheduler to say why", PATIENCE, async || {
            let pod = space.api::<Pod>().get("toomany").await?;
            let conditions = pod
                .status
                .and_then(|status| status.conditions)
                .unwrap_or_default();
            let messages: Vec<_> = conditions
                .into_iter()
                .filter_map(|condition| condition.message)
                .collect();
            let said = messages
                .iter()
                .any(|message| message.contains("Insufficient nvidia.com/gpu"));
            Ok(if said {
                Seen::Done(())
            } else {
                Seen::NotYet(messages.join("; "))
            })
        })
        .await
    })
    .await
}

#[tokio::test]
async fn the_audit_log_tells_who_wrote() -> Result<()> {
    with_temp_namespace(async move |space| {
        let audit = space.cluster.audit()?;
        let mark = audit.mark()?;
        let map: ConfigMap = serde_json::from_value(serde_json::json!({"metadata": {"name": "written"}}))?;
        space
            .api::<ConfigMap>()
            .create(&PostParams::default(), &map)
            .await?;
        let filter = Filter::writes().of("configmaps").within(&space.name).by("admin");
        let events = audit.expect(mark, &filter, PATIENCE).await?;
        let event = events.first().context("an event")?;
        ensure!(event.verb == "create", "{event:?}");
        ensure!(
            event
                .response_status
                .as_ref()
                .is_some_and(|status| status.code == 201),
            "{event:?}"
        );
        Ok(())
    })
    .await
}
