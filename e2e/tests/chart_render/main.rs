//! The chart without a cluster: what its schema refuses, what its values do, what it renders. Rendered value sets are
//! compared by `make generate-check`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_e2e::{
    chart::{Helm, directory},
    manifest,
};

fn yaml(path: &str) -> Result<Value> {
    let path = directory().join(path);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(serde_saphyr::from_str(&text)?)
}

/// Name, first line and content of every file of a directory of the chart's tests.
fn cases(kind: &str) -> Result<Vec<(String, String, Value)>> {
    let mut cases = Vec::new();
    for entry in fs::read_dir(directory().join("tests").join(kind))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        let first = text.lines().next().and_then(|line| line.strip_prefix("# "));
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let first = first.with_context(|| format!("{name} does not begin with a comment"))?;
        cases.push((name, first.to_owned(), serde_saphyr::from_str(&text)?));
    }
    ensure!(!cases.is_empty(), "no cases in {kind}");
    Ok(cases)
}

/// Paths of all leaves: what is no map, and maps of the user's own keys.
fn leaves(
    path: &str,
    value: &Value,
    schema: &Value,
    root: &Value,
    found: &mut BTreeSet<String>,
) -> Result<()> {
    let schema = resolved(schema, root);
    match (value, schema["properties"].as_object()) {
        (Value::Object(fields), Some(known)) if !fields.is_empty() => {
            for (name, field) in fields {
                let schema = known
                    .get(name)
                    .with_context(|| format!("{path}/{name} is not in the schema"))?;
                leaves(&format!("{path}/{name}"), field, schema, root, found)?;
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
    Ok(())
}

fn resolved<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => root
            .pointer(reference.trim_start_matches('#'))
            .unwrap_or(&Value::Null),
        None => schema,
    }
}

fn schema() -> Result<Value> {
    let text = fs::read_to_string(directory().join("values.schema.json"))?;
    Ok(serde_json::from_str(&text)?)
}

#[tokio::test]
async fn wrong_values_are_refused_by_key() -> Result<()> {
    let helm = Helm::offline()?;
    let cases = cases("bad")?;
    ensure!(cases.len() >= 30, "{} wrong values files", cases.len());
    for (name, expected, values) in cases {
        let said = match helm.render(&values).await {
            Ok(_) => anyhow::bail!("{name} is accepted"),
            Err(error) => error.to_string(),
        };
        ensure!(said.contains(&expected), "{name}: `{expected}` is not in\n{said}");
    }
    Ok(())
}

#[test]
fn schema_and_values_have_the_same_keys() -> Result<()> {
    fn same(path: &str, schema: &Value, values: &Value, root: &Value, wrong: &mut Vec<String>) {
        let schema = resolved(schema, root);
        let Some(known) = schema["properties"].as_object() else {
            return;
        };
        // A key that values.yaml leaves empty is the user's; Kubernetes' own types are listed in the schema alone.
        let Some(given) = values.as_object().filter(|given| !given.is_empty()) else {
            return;
        };
        for (name, field) in known {
            match given.get(name) {
                Some(value) => same(&format!("{path}/{name}"), field, value, root, wrong),
                // What is refused by name, and Helm's own.
                None if field.get("const").is_some() || name == "global" => {}
                None => wrong.push(format!("{path}/{name} is not in values.yaml")),
            }
        }
    }
    let (schema, values) = (schema()?, yaml("values.yaml")?);
    let mut wrong = Vec::new();
    same("", &schema, &values, &schema, &mut wrong);
    assert_eq!(wrong, Vec::<String>::new());
    // The other way round.
    leaves("", &values, &schema, &schema, &mut BTreeSet::new())
}

#[test]
fn the_schema_is_closed_at_every_level() -> Result<()> {
    fn closed(path: &str, schema: &Value, open: &mut Vec<String>) {
        if let Some(fields) = schema.as_object() {
            if schema["type"] == "object" && fields.get("additionalProperties").is_none() {
                open.push(path.to_owned());
            }
            for (name, field) in fields {
                closed(&format!("{path}/{name}"), field, open);
            }
        }
        for (index, item) in schema.as_array().into_iter().flatten().enumerate() {
            closed(&format!("{path}/{index}"), item, open);
        }
    }
    let mut open = Vec::new();
    closed("", &schema()?, &mut open);
    assert_eq!(open, ["/properties/global"]);
    Ok(())
}

#[tokio::test]
async fn every_value_has_an_effect_and_a_description() -> Result<()> {
    let helm = Helm::offline()?;
    let (schema, values) = (schema()?, yaml("values.yaml")?);
    let readme = fs::read_to_string(directory().join("README.md"))?;
    let mut all = BTreeSet::new();
    leaves("", &values, &schema, &schema, &mut all)?;
    let mut without_effect = all.clone();
    for (_, _, set) in cases("values")? {
        let with = helm.render(&set).await?;
        for leaf in without_effect.clone() {
            if set.pointer(&leaf).is_none() {
                continue;
            }
            let mut less = set.clone();
            let (parent, name) = leaf.rsplit_once('/').context("a path")?;
            let fields = less.pointer_mut(parent).and_then(Value::as_object_mut);
            fields.context("a map")?.remove(name);
            if helm.render(&less).await? != with {
                without_effect.remove(&leaf);
            }
        }
    }
    // Its effect is on the kinds, which no value set holds.
    let gone = helm.render(&json!({"crds": {"keep": false}})).await? != helm.render(&json!({})).await?;
    ensure!(
        gone && without_effect.remove("/crds/keep"),
        "crds.keep has no effect"
    );
    assert_eq!(without_effect, BTreeSet::new(), "values without an effect");
    for leaf in &all {
        let key = leaf.trim_start_matches('/').replace('/', ".");
        let described = readme.lines().any(|line| {
            let cells: Vec<&str> = line.split(" | ").collect();
            cells[0].trim_start_matches("| ") == key && cells.last().is_some_and(|text| text.len() > 10)
        });
        let parent = key.rsplit_once('.').map_or("", |(parent, _)| parent);
        ensure!(
            described || readme.contains(&format!("| {parent} |")),
            "{key} has no description"
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_kinds_are_those_of_crds_yaml() -> Result<()> {
    let helm = Helm::offline()?;
    for (keep, annotations) in [
        (true, json!({"helm.sh/resource-policy": "keep"})),
        (false, Value::Null),
    ] {
        let rendered = helm.render(&json!({"crds": {"keep": keep}})).await?;
        let mut found: BTreeMap<String, Value> = BTreeMap::new();
        for mut document in manifest::documents(&rendered)? {
            if document["kind"] == "CustomResourceDefinition" {
                ensure!(
                    document["metadata"]["annotations"] == annotations,
                    "{}",
                    document["metadata"]
                );
                let name = document["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                document["metadata"] = json!({"name": name});
                found.insert(name, document);
            }
        }
        ensure!(found.len() == 2, "{:?}", found.keys());
        for (name, document) in found {
            let plural = name.split('.').next().unwrap_or_default();
            let file = directory().join(format!("../../crds/yaml/{plural}.yaml"));
            let expected: Value = serde_saphyr::from_str(&fs::read_to_string(file)?)?;
            ensure!(document == expected, "{name} is not crds/yaml/{plural}.yaml");
        }
    }
    Ok(())
}

#[tokio::test]
async fn rendering_twice_gives_the_same() -> Result<()> {
    let helm = Helm::offline()?;
    for (name, _, values) in cases("values")? {
        ensure!(
            helm.render(&values).await? == helm.render(&values).await?,
            "{name}"
        );
    }
    Ok(())
}

/// The objects of a rendered value set, by kind, namespace and name.
async fn objects(values: &Value) -> Result<BTreeMap<(String, String, String), Value>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let documents = manifest::documents(&Helm::offline()?.render(values).await?)?;
    let key = |document: &Value| {
        let metadata = &document["metadata"];
        (
            text(&document["kind"]),
            text(&metadata["namespace"]),
            text(&metadata["name"]),
        )
    };
    Ok(documents
        .into_iter()
        .map(|document| (key(&document), document))
        .collect())
}

#[tokio::test]
async fn an_operator_of_some_namespaces_has_the_same_rights_there_and_none_elsewhere() -> Result<()> {
    let everywhere = objects(&json!({"crds": {"install": false}})).await?;
    let some = objects(&json!({"crds": {"install": false}, "watchNamespaces": ["a", "weir-system"]})).await?;
    let cluster_wide: Vec<_> = some
        .keys()
        .filter(|(_, namespace, _)| namespace.is_empty())
        .collect();
    assert_eq!(cluster_wide, Vec::<&(String, String, String)>::new());
    let key =
        |kind: &str, namespace: &str, name: &str| (kind.to_owned(), namespace.to_owned(), name.to_owned());
    let rules = &everywhere[&key("ClusterRole", "", "weir-operator")]["rules"];
    ensure!(rules.as_array().is_some_and(|rules| rules.len() >= 10), "{rules}");
    for (namespace, name) in [("a", "weir-operator"), ("weir-system", "weir-operator-pools")] {
        assert_eq!(&some[&key("Role", namespace, name)]["rules"], rules);
        let binding = &some[&key("RoleBinding", namespace, name)];
        assert_eq!(binding["roleRef"]["name"], name);
        assert_eq!(
            binding["subjects"],
            json!([{"kind": "ServiceAccount", "name": "weir-operator", "namespace": "weir-system"}])
        );
    }
    // The rights on the lease are the same in both.
    let lease = key("Role", "weir-system", "weir-operator");
    assert_eq!(everywhere[&lease], some[&lease]);
    let roles = some.keys().filter(|(kind, ..)| kind == "Role").count();
    assert_eq!(roles, 3);
    Ok(())
}
