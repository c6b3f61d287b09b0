//! Every case of `crds/cases` against a real API server: nothing is stored.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use kube::Client;
use serde_json::Value;
use weir_e2e::{cluster, cluster::progress::Progress, installation, manifest, with_temp_namespace};

/// File name and text of every case in `crds/cases/DIRECTORY`.
fn cases(directory: &str) -> Result<Vec<(String, String)>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../crds/cases")
        .join(directory);
    let mut found = Vec::new();
    for entry in fs::read_dir(&path).with_context(|| format!("reading {}", path.display()))? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "yaml") {
            found.push((file.display().to_string(), fs::read_to_string(&file)?));
        }
    }
    ensure!(
        found.len() > 20,
        "only {} cases in {}",
        found.len(),
        path.display()
    );
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
