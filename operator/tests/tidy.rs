//! Rules of layout that the compiler does not know: pure modules stay pure, files stay short.

use std::{fs, path::Path};

/// Pure modules of the operator: functions of their arguments.
const PURE: [&str; 31] = [
    "drift.rs",
    "gateway/build.rs",
    "gateway/build/deployment.rs",
    "gateway/config.rs",
    "labels.rs",
    "llm_pool/build.rs",
    "llm_pool/build/deployment.rs",
    "llm_pool/build/engine.rs",
    "llm_pool/build/network_policy.rs",
    "llm_pool/build/sidecar.rs",
    "llm_pool/status.rs",
    "llm_pool/status/conditions.rs",
    "llm_pool/validate.rs",
    "probes.rs",
    "references.rs",
    "restricted.rs",
    "scaling/cost.rs",
    "scaling/decide.rs",
    "scaling/demand.rs",
    "scaling/engines.rs",
    "scaling/fence.rs",
    "scaling/idle.rs",
    "scaling/instant.rs",
    "scaling/memory.rs",
    "scaling/pods.rs",
    "scaling/refill.rs",
    "scaling/replicas.rs",
    "scaling/restore.rs",
    "scaling/starts.rs",
    "scaling/victim.rs",
    "workflow_policy/validate.rs",
];

/// What a pure module may not name: clients, sockets, runtimes, clocks, random sources.
const IMPURE: [&str; 11] = [
    "tokio",
    "kube::Api",
    "kube::Client",
    "Client,",
    "hyper",
    "std::net::Tcp",
    "Instant::now",
    "Timestamp::now",
    "SystemTime",
    "rand::",
    "async fn",
];

/// Most lines of a file, and of a file without its tests.
const MAX_LINES: usize = 500;
const MAX_CODE_LINES: usize = 360;

fn code(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
}

fn files(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).expect("the directory is in the repository") {
        let path = entry.expect("the directory can be read").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn pure_modules_name_nothing_impure() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for module in PURE {
        let text =
            fs::read_to_string(source.join(module)).unwrap_or_else(|error| panic!("{module}: {error}"));
        for line in code(&text)
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
        {
            let named = IMPURE.iter().find(|word| line.contains(**word));
            assert_eq!(named, None, "{module}: {line}");
        }
    }
}

#[test]
fn files_are_short() {
    let mut found = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    files(&root.join("src"), &mut found);
    files(&root.join("tests"), &mut found);
    assert!(found.len() > 40, "the walk works");
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.lines().count() <= MAX_LINES,
            "{} has {} lines",
            path.display(),
            text.lines().count()
        );
        let is_test = path.ends_with("tests.rs") || path.starts_with(root.join("tests"));
        let lines = code(&text).lines().count();
        assert!(
            is_test || lines <= MAX_CODE_LINES,
            "{} has {lines} lines without tests",
            path.display()
        );
    }
}
