//! A bill of materials in CycloneDX's JSON, and the lock file that it is compared with.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Deserialize;

/// A bill of materials, as far as it is checked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Materials {
    bom_format: String,
    spec_version: String,
    metadata: Metadata,
    /// What is in the program.
    pub components: Vec<Component>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    #[serde(default)]
    properties: Vec<Property>,
}

#[derive(Debug, Deserialize)]
struct Property {
    name: String,
    value: String,
}

/// A crate or a library.
#[derive(Debug, Deserialize)]
pub(super) struct Component {
    name: String,
    version: String,
    purl: String,
    #[serde(default)]
    licenses: Vec<serde_json::Value>,
    #[serde(default)]
    hashes: Vec<Hash>,
}

#[derive(Debug, Deserialize)]
struct Hash {
    content: String,
}

/// What runs in the compiler or in tests alone.
const NEVER_LINKED: [&str; 4] = ["syn", "serde_derive", "insta", "proptest"];
/// What is linked beside crates.
const BESIDE_CRATES: [&str; 3] = ["rust-std", "glibc", "libgcc"];

impl Materials {
    /// Reads a bill of materials.
    ///
    /// # Errors
    /// It is no JSON, or misses what CycloneDX asks for.
    pub(super) fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).context("the bill of materials")
    }

    /// What does not agree with the lock file, the crates that show in the program, and the image.
    pub(super) fn faults(&self, lock: &Lock, crates: &BTreeSet<String>, digest: &str) -> Vec<String> {
        let mut faults = Vec::new();
        if self.bom_format != "CycloneDX" || self.spec_version != "1.5" {
            faults.push(format!("materials in {} {}", self.bom_format, self.spec_version));
        }
        let image = self
            .metadata
            .properties
            .iter()
            .find(|one| one.name == "oci:image");
        if !image.is_some_and(|image| image.value.ends_with(&format!("@{digest}"))) {
            faults.push("materials of another image".to_owned());
        }
        let mut listed = BTreeSet::new();
        for component in &self.components {
            let name = format!("{}@{}", component.name, component.version);
            if component.licenses.is_empty() {
                faults.push(format!("{name} has no licence in the materials"));
            }
            if NEVER_LINKED.contains(&component.name.as_str()) {
                faults.push(format!("{name} is in the materials, but never linked"));
            }
            if component.purl.starts_with("pkg:cargo/") {
                match lock.0.get(&name) {
                    None => faults.push(format!("{name} is not in Cargo.lock")),
                    Some(sum) if component.hashes.first().map(|hash| &hash.content) != sum.as_ref() => {
                        faults.push(format!("{name} has another checksum than in Cargo.lock"));
                    }
                    Some(_) => {}
                }
            }
            listed.insert(name);
        }
        let missing = crates.iter().filter(|name| !listed.contains(*name));
        faults.extend(missing.map(|name| format!("{name} is linked, but not in the materials")));
        for name in BESIDE_CRATES {
            if !self.components.iter().any(|component| component.name == name) {
                faults.push(format!("{name} is linked, but not in the materials"));
            }
        }
        faults
    }
}

/// `NAME@VERSION` of every locked crate, with its checksum if it comes from a registry.
#[derive(Debug)]
pub(super) struct Lock(BTreeMap<String, Option<String>>);

impl Lock {
    /// Reads a `Cargo.lock`.
    pub(super) fn parse(text: &str) -> Self {
        let value = |block: &str, key: &str| {
            block.lines().find_map(|line| {
                let value = line.strip_prefix(key)?.strip_prefix(" = \"")?;
                Some(value.trim_end_matches('"').to_owned())
            })
        };
        let crates = text.split("[[package]]").skip(1).filter_map(|block| {
            let name = format!("{}@{}", value(block, "name")?, value(block, "version")?);
            Some((name, value(block, "checksum")))
        });
        Self(crates.collect())
    }
}
