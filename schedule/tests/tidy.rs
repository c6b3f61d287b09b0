//! The scheduler stays pure: its sources name no clock, random source, runtime, socket, lock or unordered map.

use std::{fs, path::Path};

const BANNED: &[(&str, &str)] = &[
    ("Instant", "time comes in as an argument"),
    ("SystemTime", "time comes in as an argument"),
    ("HashMap", "its order differs between runs"),
    ("HashSet", "its order differs between runs"),
    ("rand::", "no random source"),
    ("tokio", "no runtime"),
    ("async ", "no runtime"),
    ("std::thread", "one task drives the machine"),
    ("std::sync", "one task drives the machine"),
    ("std::net", "no socket"),
    ("std::io", "no file"),
    ("std::fs", "no file"),
    ("std::env", "settings come in as an event"),
    ("tracing::", "effects are the only output"),
];

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((
                path.display().to_string(),
                fs::read_to_string(&path).expect("sources are text"),
            ));
        }
    }
}

#[test]
fn sources_are_pure() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() >= 8, "the scan found the sources");
    for (path, text) in &found {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for (word, reason) in BANNED {
                assert!(!code.contains(word), "{path}:{}: `{word}`: {reason}", number + 1);
            }
        }
    }
}

#[test]
fn the_only_dependency_is_the_ordered_map() {
    let manifest = include_str!("../Cargo.toml");
    let (_, rest) = manifest.split_once("[dependencies]\n").unwrap();
    let section = rest.split("\n[").next().unwrap();
    let names: Vec<_> = section.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(names, ["indexmap.workspace = true"]);
}
