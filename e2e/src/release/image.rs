//! An image in an archive of the OCI layout: its configuration and every file of its layers.

use std::{
    collections::BTreeMap,
    io::{Cursor, Read},
};

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::USER;

/// One image.
#[derive(Debug)]
pub(super) struct Image {
    /// `sha256:…` of its manifest.
    pub digest: String,
    /// As in Go: `amd64`, `arm64`.
    pub architecture: String,
    /// As a container runs: `UID:GID`.
    pub user: String,
    /// The command of a container.
    pub entrypoint: Vec<String>,
    /// Names of its labels, each with a value.
    pub labels: Vec<String>,
    /// Everything in its layers that is no directory.
    pub files: Vec<File>,
    /// Sum of its layers, uncompressed.
    pub bytes: u64,
    /// Sum of its layers as a registry keeps them.
    pub pulled_bytes: u64,
}

/// A file, link or device in a layer.
#[derive(Debug)]
pub(super) struct File {
    /// Path without the leading slash.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Plain file.
    pub plain: bool,
    /// What it holds.
    pub content: Vec<u8>,
}

impl Image {
    /// Reads an archive that holds one image.
    ///
    /// # Errors
    /// It holds none or several, or a part is missing or not what its digest says.
    pub(super) fn read(archive: &[u8]) -> Result<Self> {
        let blobs = blobs(archive)?;
        let index: Value = serde_json::from_slice(blobs.get("index.json").context("no index.json")?)?;
        let manifests = index["manifests"].as_array().context("no manifests")?;
        ensure!(manifests.len() == 1, "{} images in one archive", manifests.len());
        let digest = text(&manifests[0]["digest"])?;
        let manifest: Value = serde_json::from_slice(blob(&blobs, &digest)?)?;
        let config: Value = serde_json::from_slice(blob(&blobs, &text(&manifest["config"]["digest"])?)?)?;

        let (mut files, mut bytes, mut pulled_bytes) = (Vec::new(), 0, 0);
        for layer in manifest["layers"].as_array().context("no layers")? {
            let packed = blob(&blobs, &text(&layer["digest"])?)?;
            let mut unpacked = Vec::new();
            if text(&layer["mediaType"])?.ends_with("+gzip") {
                GzDecoder::new(packed).read_to_end(&mut unpacked)?;
            } else {
                unpacked.extend_from_slice(packed);
            }
            bytes += unpacked.len() as u64;
            pulled_bytes += packed.len() as u64;
            files.extend(files_of(&unpacked)?);
        }
        let settings = &config["config"];
        Ok(Self {
            digest,
            architecture: text(&config["architecture"])?,
            user: settings["User"].as_str().unwrap_or_default().to_owned(),
            entrypoint: strings(&settings["Entrypoint"]),
            labels: settings["Labels"]
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(_, value)| value.as_str().is_some_and(|value| !value.is_empty()))
                .map(|(name, _)| name.clone())
                .collect(),
            files,
            bytes,
            pulled_bytes,
        })
    }

    /// What must not be in the image whose program is `name`.
    pub(super) fn faults(&self, name: &str, most_bytes: u64) -> Vec<String> {
        let mut faults = Vec::new();
        if self.bytes > most_bytes {
            faults.push(format!("{} bytes, more than {most_bytes}", self.bytes));
        }
        if self.user != USER {
            faults.push(format!("user `{}`, not {USER}", self.user));
        }
        if self.entrypoint != [format!("/{name}")] {
            faults.push(format!("entry point {:?}, not /{name}", self.entrypoint));
        }
        for file in &self.files {
            if file.path != name {
                faults.push(format!("/{} in the image", file.path));
            } else if !file.plain || file.mode != 0o755 {
                faults.push(format!("/{name} is no plain file with mode 755"));
            }
        }
        if self.files.is_empty() {
            faults.push("nothing in the image".to_owned());
        }
        for label in ["title", "version", "revision", "licenses"] {
            let label = format!("org.opencontainers.image.{label}");
            if !self.labels.contains(&label) {
                faults.push(format!("no label {label}"));
            }
        }
        faults
    }
}

fn blobs(archive: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut blobs = BTreeMap::new();
    for file in files_of(archive)? {
        blobs.insert(file.path.trim_start_matches("./").to_owned(), file.content);
    }
    Ok(blobs)
}

fn blob<'a>(blobs: &'a BTreeMap<String, Vec<u8>>, digest: &str) -> Result<&'a [u8]> {
    let path = format!("blobs/{}", digest.replace(':', "/"));
    let blob = blobs.get(&path).with_context(|| format!("no {path}"))?;
    let sum: String = Sha256::digest(blob)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    ensure!(digest == format!("sha256:{sum}"), "{digest} holds {sum}");
    Ok(blob)
}

fn files_of(archive: &[u8]) -> Result<Vec<File>> {
    let mut files = Vec::new();
    for entry in tar::Archive::new(Cursor::new(archive)).entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            continue;
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        files.push(File {
            path: entry.path()?.to_string_lossy().into_owned(),
            // Some write the kind of the file before them.
            mode: entry.header().mode()? & 0o7777,
            plain: kind.is_file(),
            content,
        });
    }
    Ok(files)
}

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().context("a text is missing")?.to_owned())
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|part| part.as_str().map(str::to_owned))
        .collect()
}
