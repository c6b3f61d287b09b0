//! Every case of `crds/cases` and every sample of `deploy/samples` against a real API server: nothing is stored.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use kube::Client;
use serde_json::{Value, json};
use weir_crds::LLMPool;
use weir_e2e::{
    TestNamespace, accepts, cluster, cluster::progress::Progress, installation, manifest, with_temp_namespace,
};
use weir_operator::llm_pool::{build::build, validate::validate};

/// File name and text of every case in `crds/cases/DIRECTORY`.
fn cases(directory: &str) -> Result<Vec<(String, String)>> {
    let found = yaml_files(&format!("crds/cases/{directory}"))?;
    ensure!(found.len() > 20, "only {} cases in {directory}", found.len());
    Ok(found)
}

/// File name and text of every YAML file in a directory of the work tree.
fn yaml_files(directory: &str) -> Result<Vec<(String, String)>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(directory);
    let mut found = Vec::new();
    for entry in fs::read_dir(&path).with_context(|| format!("reading {}", path.display()))? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "yaml") {
            found.push((file.display().to_string(), fs::read_to_string(&file)?));
        }
    }
    found.sort();
    Ok(found)
}

/// What the API server says to the creation of `object` with strict field validation: `None` when it would create it.
async fn refusal(client: &Client, namespace: &str, object: &Value) -> Result<Option<String>> {
    let plural = match object["kind"].as_str() {
        Some("LLMPool") => "llmpools",
        Some("WorkflowPolicy") => "workflowpolicies",
        other => bail!("kind {other:?}"),
    };
    let version = object["apiVersion"].as_str().context("apiVersion")?;
    let uri = format!(
        "/apis/{version}/namespaces/{namespace}/{plural}?dryRun=All&fieldValidation=Strict&fieldManager=weir-e2e"
    );
    let request = http::Request::post(uri)
        .header("content-type", "application/json")
        .body(object.to_string().into_bytes())?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => Ok(Some(status.message)),
        Err(error) => Err(error).context("asking the API server"),
    }
}

#[tokio::test]
async fn the_api_server_agrees_with_every_case() -> Result<()> {
    let (_, client) = cluster().await?;
    Progress::new()
        .step("installing the kinds", installation::kinds(&client))
        .await?;
    with_temp_namespace(async |space| {
        let mut wrong = Vec::new();
        for (name, text) in cases("accepted")? {
            for object in manifest::documents(&text)? {
                if let Some(said) = refusal(&space.client, &space.name, &object).await? {
                    wrong.push(format!("{name} is refused: {said}"));
                }
            }
        }
        for (name, text) in cases("rejected")? {
            let expected = text.lines().next().and_then(|line| line.strip_prefix("# "));
            let expected = expected.with_context(|| format!("{name} does not say why"))?;
            for object in manifest::documents(&text)? {
                match refusal(&space.client, &space.name, &object).await? {
                    Some(said) if said.contains(expected) => {}
                    Some(said) => wrong.push(format!("{name} is refused without `{expected}`: {said}")),
                    None => wrong.push(format!("{name} is accepted")),
                }
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_unknown_field_is_refused() -> Result<()> {
    let (_, client) = cluster().await?;
    Progress::new()
        .step("installing the kinds", installation::kinds(&client))
        .await?;
    with_temp_namespace(async |space| {
        let (_, text) = cases("accepted")?.into_iter().next_back().context("a case")?;
        let mut object = manifest::documents(&text)?
            .into_iter()
            .next()
            .context("a document")?;
        object["spec"]["noSuchField"] = true.into();
        let said = refusal(&space.client, &space.name, &object).await?;
        let said = said.context("a field that does not exist is accepted")?;
        ensure!(said.contains("noSuchField"), "{said}");
        Ok(())
    })
    .await
}

/// The engine Deployment of a pool, and a pod of it, as the API server would take them. Priority and runtime class are
/// left out of the pod: they are the cluster's, and named by samples that say so.
async fn engine_is_admitted(space: &TestNamespace, object: Value) -> Result<()> {
    let mut pool: LLMPool = serde_json::from_value(object)?;
    pool.metadata.namespace = Some(space.name.clone());
    pool.metadata.uid = Some("7c1f4b0e-0000-4000-8000-000000000000".to_owned());
    let valid = validate(&pool, std::slice::from_ref(&pool))?;
    let desired = build(&valid, "localhost/weir-router:dev");
    let template = desired.deployment.spec.as_ref().map(|spec| spec.template.clone());
    let mut pod = serde_json::to_value(template)?;
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("engine");
    let spec = pod["spec"].as_object_mut().context("a pod")?;
    spec.remove("priorityClassName");
    spec.remove("runtimeClassName");
    for object in [
        pod,
        serde_json::to_value(&desired.deployment)?,
        serde_json::to_value(&desired.budget)?,
        serde_json::to_value(&desired.network_policy)?,
    ] {
        accepts(&space.client, &space.name, &object.to_string()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_sample_and_its_engine_pod_are_admitted() -> Result<()> {
    let (_, client) = cluster().await?;
    Progress::new()
        .step("installing the kinds", installation::kinds(&client))
        .await?;
    with_temp_namespace(async |space| {
        let mut pools = 0;
        for (name, text) in yaml_files("deploy/samples")? {
            for object in manifest::documents(&text)? {
                if let Some(said) = refusal(&space.client, &space.name, &object).await? {
                    bail!("{name} is refused: {said}");
                }
                if object["kind"] == "LLMPool" {
                    engine_is_admitted(&space, object)
                        .await
                        .with_context(|| format!("the engine of {name}"))?;
                    pools += 1;
                }
            }
        }
        ensure!(pools >= 8, "only {pools} pools in deploy/samples");
        Ok(())
    })
    .await
}
