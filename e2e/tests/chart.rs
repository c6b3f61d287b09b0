//! A release's life on a real cluster: the previous chart, an upgrade under traffic, values that reach the router, and
//! its removal; and an operator that may look at some namespaces alone.

use std::fs;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Pod, Secret},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api, Client,
    api::{ListParams, LogParams},
};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use weir_e2e::{
    Seen, TestNamespace, await_condition,
    chart::{
        Helm,
        bench::{Bench, NEW_FIELD, PREVIOUS, previous_chart},
        directory,
        traffic::Traffic,
    },
    client::{Caller, Chat},
    cluster::progress::Progress,
    installation, manifest, operator,
    pool::{PATIENCE, Pool, Simulated, gateway_pods, name_of, pod_caller},
    with_temp_namespace,
};
use weir_wire::{headers, ports};

/// The kinds and the release are the cluster's: one test at a time.
static CLUSTER: Mutex<()> = Mutex::const_new(());
/// Waits until every pod of these Deployments runs this image tag, and nothing of the old is left.
async fn rolled(space: &TestNamespace, tag: &str) -> Result<()> {
    let deployments: Api<Deployment> = space.api();
    let pods: Api<Pod> = space.api();
    await_condition(
        &format!("gateway and engines with {tag}"),
        PATIENCE * 2,
        async || {
            let mut left = Vec::new();
            for deployment in deployments.list(&ListParams::default()).await? {
                let status = deployment.status.unwrap_or_default();
                let wanted = deployment.spec.and_then(|spec| spec.replicas);
                if status.available_replicas != wanted || status.updated_replicas != wanted {
                    left.push(deployment.metadata.name.unwrap_or_default());
                }
            }
            for pod in pods.list(&ListParams::default()).await? {
                let spec = pod.spec.unwrap_or_default();
                let images = spec
                    .containers
                    .iter()
                    .chain(spec.init_containers.iter().flatten());
                let old = images
                    .filter_map(|container| container.image.as_deref())
                    .any(|image| image.contains("weir-router") && !image.ends_with(tag));
                if old {
                    left.push(pod.metadata.name.unwrap_or_default());
                }
            }
            Ok(if left.is_empty() {
                Seen::Done(())
            } else {
                Seen::NotYet(left.join(", "))
            })
        },
    )
    .await
}

fn recipe() -> Simulated<'static> {
    Simulated {
        name: "served",
        args: &[
            "--startup=0s",
            "--profile=8b-h100",
            "--time-scale=0.5",
            "--seed=1",
        ],
        max_concurrency: Some(8),
        more: "  scaling: {minReplicas: 2, maxReplicas: 2}\n  idle: {policy: Never}",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_under_traffic_loses_nothing_and_brings_the_kinds_along() -> Result<()> {
    let _alone = CLUSTER.lock().await;
    let bench = Bench::new().await?;
    let packages = tempfile::tempdir()?;
    let helm = Helm::on(&bench.cluster)?;
    let previous = previous_chart(&helm, packages.path()).await?;
    bench.install_previous(&previous).await?;
    ensure!(
        !bench.kind_has(NEW_FIELD).await?,
        "the old kind has the new field"
    );
    // This operator knows more than the kinds.
    says(&bench.client, &format!("LLMPool.spec.{NEW_FIELD}")).await?;
    with_temp_namespace(async |space| {
        let pool = recipe().apply(&space).await?;
        let caller = pool.caller().await?;
        pool.serving(2, PATIENCE).await?;
        rolled(&space, PREVIOUS).await?;

        let traffic = Traffic::begin(&caller, &pool.model, 4);
        let current = helm.package(&directory(), packages.path()).await?;
        bench.upgrade(&current, &json!({})).await?;
        rolled(&space, "dev").await?;
        pool.serving(2, PATIENCE).await?;
        let answered = traffic.end().await?;
        ensure!(answered > 20, "{answered} requests are too few to tell");
        Progress::new().say(format_args!("{answered} requests during the upgrade, none lost"));

        ensure!(bench.kind_has(NEW_FIELD).await?, "the kind is the old one");
        pool.change(&json!({NEW_FIELD: {"annotations": {"example.com/kept": "yes"}}}))
            .await?;
        let kept = pool.get().await?.spec.pod_metadata;
        ensure!(kept.annotations.contains_key("example.com/kept"), "{kept:?}");
        let said = bench.release.test().await?;
        ensure!(said.contains("Succeeded"), "{said}");

        let before = bench.versions().await?;
        ensure!(before.len() >= 12, "{before:?}");
        bench.upgrade(&current, &json!({})).await?;
        assert_eq!(
            bench.versions().await?,
            before,
            "the same values changed something"
        );
        Ok(())
    })
    .await
}

/// Waits until an operator's log says `text`.
async fn says(client: &Client, text: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), operator::NAMESPACE);
    await_condition(&format!("a log line with {text}"), PATIENCE, async || {
        for pod in operator::pods(client).await? {
            let log = pods.logs(&pod, &LogParams::default()).await?;
            if log.contains(text) {
                return Ok(Seen::Done(()));
            }
        }
        Ok(Seen::NotYet("not yet".to_owned()))
    })
    .await
}

/// `X-Weir-Home` of one turn.
async fn home(caller: &Caller, pool: &Pool, workflow: &str) -> Result<String> {
    let chat = Chat::new(&pool.model, "Hello.").workflow(workflow);
    let answer = caller.chat(&chat).await?.whole()?;
    Ok(answer.header(headers::HOME).to_owned())
}

/// Waits until the gateway runs with a configuration that contains `text`.
async fn configured(space: &TestNamespace, text: &str) -> Result<()> {
    await_condition(&format!("a gateway with {text}"), PATIENCE, async || {
        let maps: Api<ConfigMap> = space.api();
        let data = maps.get("weir-gateway").await?.data.unwrap_or_default();
        let config = data.get("gateway.yaml").context("no configuration")?;
        let wanted = weir_wire::config::GatewayConfig::parse(config)?.hash()?;
        let pods = gateway_pods(space).await?;
        let pod = pods.first().context("no gateway pod")?;
        let log = space
            .api::<Pod>()
            .logs(&name_of(pod), &LogParams::default())
            .await?;
        Ok(if config.contains(text) && log.contains(&wanted) {
            Seen::Done(())
        } else {
            Seen::NotYet(format!("wants {wanted}:\n{config}"))
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn workflow_support_reaches_the_router_and_a_removed_release_leaves_nothing() -> Result<()> {
    let _alone = CLUSTER.lock().await;
    let bench = Bench::new().await?;
    with_temp_namespace(async |space| {
        let with = async |support: Value| bench.upgrade(&directory(), &json!({"router": {"workflowSupport": support}})).await;
        with(json!({"ttl": 6, "maxWorkflows": 1})).await?;
        let pool = recipe().apply(&space).await?;
        let caller = pool.caller().await?;
        pool.serving(2, PATIENCE).await?;
        configured(&space, "idleTtl: 6s").await?;

        // One home at most: the second workflow's takes the place of the first's.
        ensure!(home(&caller, &pool, "a").await? == "new", "a's first turn");
        ensure!(home(&caller, &pool, "a").await? == "kept", "a's second turn");
        ensure!(home(&caller, &pool, "b").await? == "new", "b's first turn");
        ensure!(home(&caller, &pool, "a").await? == "new", "a's home should have made room");
        // Six seconds without a turn.
        forgotten(&space).await?;
        ensure!(home(&caller, &pool, "a").await? == "new", "a's home should be forgotten");

        // A policy goes before the chart's values, and leaves the rest to them.
        let policy = "apiVersion: weir.dev/v1alpha1\nkind: WorkflowPolicy\nmetadata: {name: more}\nspec: {pools: \
                      [served], limits: {maxWorkflows: 9}}\n";
        space.apply(policy).await?;
        configured(&space, "maxWorkflows: 9").await?;
        for workflow in ["c", "d", "e"] {
            ensure!(home(&caller, &pool, workflow).await? == "new", "{workflow}'s first turn");
        }
        ensure!(home(&caller, &pool, "c").await? == "kept", "c's second turn");
        forgotten(&space).await?;

        with(json!({"enabled": false})).await?;
        configured(&space, "mode: None").await?;
        for _ in 0..2 {
            ensure!(home(&caller, &pool, "a").await? == "none", "a home without support");
        }

        // The kinds and what runs stay when they are to be kept.
        bench.upgrade(&directory(), &json!({})).await?;
        bench.release.uninstall().await?;
        ensure!(installation::is_installed(&bench.client).await?, "the kinds are gone");
        home(&caller, &pool, "a").await?;
        ensure!(remains(&bench).await?.is_empty(), "left behind: {:?}", remains(&bench).await?);

        // Another release takes them over, and takes them along.
        bench.upgrade(&directory(), &json!({"crds": {"keep": false}})).await?;
        pool.serving(2, PATIENCE).await?;
        bench.release.uninstall().await?;
        await_condition("nothing to be left", PATIENCE, async || {
            let mut left = remains(&bench).await?;
            if installation::is_installed(&bench.client).await? {
                left.push("the kinds".to_owned());
            }
            for pod in space.api::<Pod>().list(&ListParams::default()).await? {
                left.extend(pod.metadata.name);
            }
            for secret in space.api::<Secret>().list(&ListParams::default()).await? {
                left.extend(secret.metadata.name);
            }
            Ok(if left.is_empty() { Seen::Done(()) } else { Seen::NotYet(left.join(", ")) })
        })
        .await
    })
    .await
}

/// Waits until the gateway knows no home, having known one.
async fn forgotten(space: &TestNamespace) -> Result<()> {
    let pods = gateway_pods(space).await?;
    let gateway = pod_caller(space, pods.first().context("no gateway pod")?, ports::ADMIN).await?;
    let open = async || {
        let metrics = gateway.get("/metrics").await?;
        let text = String::from_utf8_lossy(&metrics.body).into_owned();
        let line = text
            .lines()
            .find(|line| line.starts_with("weir_workflows{") && line.contains("\"open\""));
        let value = line
            .and_then(|line| line.rsplit_once(' '))
            .context("no such metric")?
            .1;
        anyhow::Ok(value.parse::<f64>()?)
    };
    // The state behind the metric is up to a second old.
    await_condition("homes to be known", PATIENCE, async || {
        Ok(if open().await? > 0.0 {
            Seen::Done(())
        } else {
            Seen::NotYet("none".to_owned())
        })
    })
    .await?;
    await_condition("homes to be forgotten", PATIENCE, async || {
        let open = open().await?;
        Ok(if open > 0.0 {
            Seen::NotYet(format!("{open} homes"))
        } else {
            Seen::Done(())
        })
    })
    .await
}

/// What is left of the release.
async fn remains(bench: &Bench) -> Result<Vec<String>> {
    let client = &bench.client;
    let mut left = Vec::new();
    let mut add =
        |kind: &str, name: Option<String>| left.push(format!("{kind} {}", name.unwrap_or_default()));
    let all = ListParams::default();
    for object in Api::<Deployment>::namespaced(client.clone(), operator::NAMESPACE)
        .list(&all)
        .await?
    {
        add("Deployment", object.metadata.name);
    }
    for object in Api::<Lease>::namespaced(client.clone(), operator::NAMESPACE)
        .list(&all)
        .await?
    {
        add("Lease", object.metadata.name);
    }
    for object in Api::<Secret>::namespaced(client.clone(), operator::NAMESPACE)
        .list(&all)
        .await?
    {
        add("Secret", object.metadata.name);
    }
    let ours = ListParams::default().labels("app.kubernetes.io/name=weir");
    for object in Api::<ClusterRole>::all(client.clone()).list(&ours).await? {
        add("ClusterRole", object.metadata.name);
    }
    for object in Api::<ClusterRoleBinding>::all(client.clone()).list(&ours).await? {
        add("ClusterRoleBinding", object.metadata.name);
    }
    Ok(left)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_of_one_namespace_works_with_roles_alone() -> Result<()> {
    let _alone = CLUSTER.lock().await;
    let bench = Bench::new().await?;
    with_temp_namespace(async |watched| {
        let watched = &watched;
        let bench = &bench;
        with_temp_namespace(async |other| {
            let one = json!({"watchNamespaces": [watched.name]});
            bench.upgrade(&directory(), &one).await?;
            let ours = ListParams::default().labels("app.kubernetes.io/name=weir");
            let wide = Api::<ClusterRole>::all(bench.client.clone()).list(&ours).await?;
            ensure!(wide.items.is_empty(), "rights on the whole cluster: {wide:?}");
            let unseen = recipe().apply(&other).await?;
            let pool = recipe().apply(watched).await?;
            let caller = pool.caller().await?;
            pool.serving(2, PATIENCE).await?;
            home(&caller, &pool, "a").await?;
            let said = bench.release.test().await?;
            ensure!(said.contains("Succeeded"), "{said}");
            ensure!(
                unseen.get().await?.status.is_none(),
                "the other namespace was looked at"
            );
            Ok(())
        })
        .await
    })
    .await
}

/// The value sets of the chart's tests; the pod of `helm test` under restricted Pod Security, too.
#[tokio::test(flavor = "multi_thread")]
async fn rendered_value_sets_are_accepted() -> Result<()> {
    let _alone = CLUSTER.lock().await;
    with_temp_namespace(async |space| {
        let mut asked = 0;
        for entry in fs::read_dir(directory().join("tests/golden"))? {
            for mut document in manifest::documents(&fs::read_to_string(entry?.path())?)? {
                // This cluster has no Prometheus Operator, and its own roles may be there under these names.
                let of_monitoring = document["apiVersion"] == "monitoring.coreos.com/v1";
                let is_role = document["kind"]
                    .as_str()
                    .is_some_and(|kind| kind.starts_with("Cluster"));
                if of_monitoring || is_role {
                    continue;
                }
                document["metadata"]["namespace"] = space.name.clone().into();
                if document["kind"] == "Pod" {
                    document["spec"]["serviceAccountName"] = "default".into();
                }
                manifest::accepts(&space.client, &space.name, &document.to_string()).await?;
                asked += 1;
            }
        }
        ensure!(asked > 20, "{asked} objects");
        Ok(())
    })
    .await
}
