//! The contract, offline: every rule has an accepted and a rejected case, everything is bounded and described, schema
//! and Rust agree about defaults, samples and generated files are right. The cases in `crds/cases` are replayed
//! against an API server by the cluster tests: the first line of a rejected case is a part of the expected message.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper of a test fails by panicking"
)]

mod offline;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use offline::{complaints, schema_of};
use serde_json::{Value, json};
use weir_crds::{LLMPool, LLMPoolSpec, WorkflowPolicy, WorkflowPolicySpec, reserved};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Name and text of every YAML file in a directory of the workspace.
fn yaml_files(directory: &str) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = fs::read_dir(workspace().join(directory))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{directory} holds no cases");
    files
}

fn parse(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

fn complaints_about(object: &Value) -> Vec<String> {
    match object["kind"].as_str() {
        Some("LLMPool") => complaints(&schema_of::<LLMPool>(), object),
        Some("WorkflowPolicy") => complaints(&schema_of::<WorkflowPolicy>(), object),
        other => panic!("kind {other:?}"),
    }
}

fn assert_readable(object: Value) {
    match object["kind"].as_str() {
        Some("LLMPool") => drop(serde_json::from_value::<LLMPool>(object).unwrap()),
        _ => drop(serde_json::from_value::<WorkflowPolicy>(object).unwrap()),
    }
}

#[test]
fn accepted_cases_are_accepted_and_readable() {
    for (name, text) in yaml_files("crds/cases/accepted") {
        let object = parse(&text);
        assert_eq!(complaints_about(&object), Vec::<String>::new(), "{name}");
        assert_readable(object);
    }
}

#[test]
fn rejected_cases_are_rejected_for_the_stated_reason_alone() {
    for (name, text) in yaml_files("crds/cases/rejected") {
        let expected = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# "))
            .unwrap();
        let found = complaints_about(&parse(&text));
        assert!(!found.is_empty(), "{name} is accepted");
        for complaint in found {
            assert!(
                complaint.contains(expected),
                "{name}: `{complaint}` lacks `{expected}`"
            );
        }
    }
}

#[test]
fn the_rules_of_flags_and_the_operator_agree() {
    let owned = [
        &reserved::MODEL_FLAGS[..],
        &reserved::ADDRESS_FLAGS,
        &reserved::LIFECYCLE_FLAGS,
    ]
    .concat();
    let mut words: BTreeSet<String> = [
        "-",
        "--",
        "--=a",
        "---host",
        "-host",
        "--xhost",
        "--hostx",
        "--host --port",
    ]
    .map(str::to_owned)
    .into();
    for flag in owned {
        words.insert(format!("--{}", flag.replace('-', "_")));
        for length in [1, flag.len() / 2, flag.len()] {
            for tail in ["", "=a", ".a", "\n", "x"] {
                words.insert(format!("--{}{tail}", &flag[..length]));
            }
        }
    }
    // The engine alone: the other rules would take a minute.
    let schema = &schema_of::<LLMPool>()["properties"]["spec"]["properties"]["engine"];
    let mut rules = schema["x-kubernetes-validations"].clone();
    let of_flags = |rule: &Value| rule["rule"].as_str().unwrap().contains("find(");
    rules.as_array_mut().unwrap().retain(of_flags);
    let schema = json!({"type": "object", "x-kubernetes-validations": rules,
        "properties": {"args": {"type": "array", "items": {"type": "string"}}}});
    let mut refused = 0;
    for word in words {
        let object = json!({"args": [word]});
        let found = complaints(&schema, &object);
        let agreed = found.is_empty() == reserved::owned_flag(&word).is_none();
        assert!(agreed, "{word:?}: {found:?}");
        refused += usize::from(!found.is_empty());
    }
    assert!(refused > 200, "only {refused} words are refused");
}

#[test]
fn every_rejected_case_has_an_accepted_sibling() {
    let names = |directory| {
        yaml_files(directory)
            .into_iter()
            .map(|(name, _)| name)
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(names("crds/cases/accepted"), names("crds/cases/rejected"));
}

fn visit(schema: &Value, path: &str, see: &mut dyn FnMut(&str, &Value)) {
    see(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        visit(field, &format!("{path}.{name}"), see);
    }
    for part in ["items", "additionalProperties"] {
        if schema[part].is_object() {
            visit(&schema[part], &format!("{path}[]"), see);
        }
    }
}

fn visit_both(see: &mut dyn FnMut(&str, &Value)) {
    for (kind, schema) in [
        ("LLMPool", schema_of::<LLMPool>()),
        ("WorkflowPolicy", schema_of::<WorkflowPolicy>()),
    ] {
        visit(&schema, kind, see);
    }
}

#[test]
fn every_rule_has_a_rejected_case() {
    let cases = yaml_files("crds/cases/rejected");
    let mut rules = 0;
    visit_both(&mut |path, schema| {
        for rule in schema["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let message = rule["message"].as_str().unwrap();
            let covered = cases.iter().any(|(_, text)| {
                text.lines()
                    .next()
                    .and_then(|line| line.strip_prefix("# "))
                    .is_some_and(|part| message.contains(part))
            });
            assert!(covered, "{path}: no rejected case for `{message}`");
            rules += 1;
        }
    });
    assert!(rules > 40, "only {rules} rules were found");
}

#[test]
fn everything_is_bounded() {
    visit_both(&mut |path, schema| {
        let has = |key: &str| schema.get(key).is_some();
        match schema["type"].as_str() {
            Some("string") => {
                assert!(
                    has("maxLength") || has("enum") || schema["format"] == "date-time",
                    "{path}"
                );
            }
            Some("integer" | "number") => assert!(has("minimum") && has("maximum"), "{path}"),
            Some("array") => assert!(has("maxItems"), "{path}"),
            Some("object") => assert!(!has("additionalProperties") || has("maxProperties"), "{path}"),
            Some("boolean") => {}
            _ => assert!(
                schema["x-kubernetes-int-or-string"] == true && has("maxLength"),
                "{path}: no type"
            ),
        }
    });
}

#[test]
fn every_field_is_described() {
    visit_both(&mut |path, schema| {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let text = field["description"].as_str().unwrap_or_default();
            // `spec` and `status` are described by the kind, metadata by Kubernetes.
            assert!(
                text.len() > 8 || path.ends_with("labelSelector[]"),
                "{path}.{name} has no description"
            );
        }
    });
}

#[test]
fn nothing_in_a_spec_may_be_null() {
    visit_both(&mut |path, schema| {
        let inside_kubernetes = path.contains(".env[]");
        let is_root = path.ends_with(".status");
        assert!(
            schema["nullable"] != true || inside_kubernetes || is_root,
            "{path}"
        );
    });
}

#[test]
fn schema_and_rust_agree_about_defaults() {
    let pool = json!({"model": {"name": "m", "source": "image"}, "engine": {"image": "i"}});
    let filled = kube::core::cel::apply_defaults(&schema_of::<LLMPool>()["properties"]["spec"], &pool);
    let from_schema: LLMPoolSpec = serde_json::from_value(filled).unwrap();
    let from_rust: LLMPoolSpec = serde_json::from_value(pool).unwrap();
    assert_eq!(from_schema, from_rust);
    assert_eq!(
        from_rust,
        LLMPoolSpec::new(from_rust.model.clone(), from_rust.engine.clone())
    );

    let filled =
        kube::core::cel::apply_defaults(&schema_of::<WorkflowPolicy>()["properties"]["spec"], &json!({}));
    let from_schema: WorkflowPolicySpec = serde_json::from_value(filled).unwrap();
    let from_rust: WorkflowPolicySpec = serde_json::from_value(json!({})).unwrap();
    assert_eq!(from_schema, from_rust);
    assert_eq!(from_rust, WorkflowPolicySpec::default());
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let spec = &schema_of::<LLMPool>()["properties"]["spec"]["properties"];
    assert_eq!(spec["gateway"]["default"], "weir");
    assert_eq!(
        spec["scaling"]["default"],
        json!({"minReplicas": 0, "maxReplicas": 1, "kvUtilization": 0.8, "queueWait": "1s", "scaleDownDelay": "1m"})
    );
    assert_eq!(
        spec["idle"]["default"],
        json!({"policy": "BreakEven", "waitingWeight": "1", "coldStartPrior": "2m", "gpuIdlePercent": 5})
    );
    assert_eq!(
        spec["hold"]["default"],
        json!({"maxRequests": 5000, "maxBytes": "1Gi"})
    );
    assert_eq!(spec["drain"]["default"], json!({"timeout": "10m"}));
    assert_eq!(spec["startup"]["default"], json!({"deadline": "30m"}));
    assert_eq!(
        spec["rollout"]["default"],
        json!({"maxSurge": 0, "maxUnavailable": 1})
    );
    let spec = &schema_of::<WorkflowPolicy>()["properties"]["spec"]["properties"];
    assert_eq!(
        spec["affinity"]["default"],
        json!({"maxWait": "auto", "maxAge": "24h", "spread": "Overflow"})
    );
    // What the operator's defaults fill in must not be filled in by the schema.
    assert_eq!(spec["limits"]["default"], json!({}));
    assert_eq!(
        spec["toolPause"]["default"],
        json!({"lease": "auto", "blocksScaleToZero": true})
    );
    assert_eq!(
        spec["messages"]["default"],
        json!({"enabled": false, "maxQueueSize": 1000})
    );
}

#[test]
fn samples_are_accepted() {
    let mut kinds = BTreeSet::new();
    for (name, text) in yaml_files("deploy/samples") {
        for document in text.split("\n---\n") {
            let object = parse(document);
            if object["apiVersion"] != weir_crds::names::API_VERSION {
                continue;
            }
            assert_eq!(complaints_about(&object), Vec::<String>::new(), "{name}");
            kinds.insert(object["kind"].as_str().unwrap().to_owned());
            assert_readable(object);
        }
    }
    assert_eq!(kinds.len(), 2, "samples of both kinds: {kinds:?}");
}

#[test]
fn generated_files_are_up_to_date() {
    let output = Command::new(env!("CARGO_BIN_EXE_crdgen"))
        .args(["--check", "--root"])
        .arg(workspace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
