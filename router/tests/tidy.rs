//! Pure modules stay pure: no socket, runtime, clock, global random source or logger in those that decide.

#![expect(clippy::unwrap_used, reason = "a source that cannot be read ends the test")]

use std::{fs, path::Path};

/// Modules that only turn values into values.
const PURE: [&str; 10] = [
    "proxy/headers.rs",
    "proxy/json.rs",
    "proxy/request/ask.rs",
    "proxy/request/route.rs",
    "proxy/usage.rs",
    "proxy/respond.rs",
    "gateway/identify.rs",
    "gateway/policy.rs",
    "gateway/models.rs",
    "gateway/scheduler/recent.rs",
];
/// What they must not name.
const FORBIDDEN: [&str; 8] = [
    "tokio::",
    "hyper::",
    "std::net",
    "std::fs",
    "Instant",
    "SystemTime",
    "rand::",
    "tracing::",
];
/// Longest file without its tests, lines.
const MAX_LINES: usize = 500;

fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

#[test]
fn pure_modules_name_nothing_impure() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for module in PURE {
        let text =
            fs::read_to_string(source.join(module)).unwrap_or_else(|error| panic!("{module}: {error}"));
        for (number, line) in without_tests(&text).lines().enumerate() {
            for word in FORBIDDEN {
                assert!(
                    !line.contains(word),
                    "{module}:{}: {word} in {line:?}",
                    number + 1
                );
            }
        }
    }
}

fn check_lengths(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            check_lengths(&path);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let lines = without_tests(&fs::read_to_string(&path).unwrap()).lines().count();
            assert!(lines <= MAX_LINES, "{} has {lines} lines", path.display());
        }
    }
}

#[test]
fn files_are_short_enough_to_be_read() {
    check_lengths(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
}
