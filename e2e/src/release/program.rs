//! A program as ELF, as far as a release must know it: for which machine, what it asks a loader for, and the crates whose
//! paths its messages of panics name.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use regex::bytes::Regex;

/// Segment types of the ELF specification.
const DYNAMIC: u32 = 2;
const INTERPRETER: u32 = 3;
/// Entries of the dynamic segment: end, and a library that is needed.
const NEEDED: u64 = 1;
/// Bytes of an entry of the dynamic segment.
const ENTRY: usize = 16;

/// One program.
#[derive(Debug)]
pub(super) struct Program {
    machine: u16,
    interpreter: bool,
    libraries: usize,
    /// `NAME@VERSION` of crates, as in the paths that `make release` leaves.
    pub crates: BTreeSet<String>,
    /// A home directory in it, which tells who compiled it.
    home: Option<String>,
}

impl Program {
    /// Reads a 64-bit little-endian program.
    ///
    /// # Errors
    /// It is something else, or cut off.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        ensure!(bytes.starts_with(b"\x7fELF\x02\x01"), "no 64-bit program");
        let (offset, size, count) = (
            address(bytes, 32)?,
            half(bytes, 54)?.into(),
            usize::from(half(bytes, 56)?),
        );
        let (mut interpreter, mut libraries) = (false, 0);
        for index in 0..count {
            let header = part(bytes, offset.saturating_add(index.saturating_mul(size)), 56)?;
            match u32::from_le_bytes(array(header, 0)?) {
                INTERPRETER => interpreter = true,
                DYNAMIC => {
                    let table = part(bytes, address(header, 8)?, address(header, 32)?)?;
                    for entry in table.chunks_exact(ENTRY) {
                        libraries += usize::from(u64::from_le_bytes(array(entry, 0)?) == NEEDED);
                    }
                }
                _ => {}
            }
        }
        let first = |pattern: &str| -> Result<BTreeSet<String>> {
            Ok(Regex::new(pattern)?
                .captures_iter(bytes)
                .filter_map(|found| found.get(1))
                .map(|found| String::from_utf8_lossy(found.as_bytes()).into_owned())
                .collect())
        };
        Ok(Self {
            machine: half(bytes, 18)?,
            interpreter,
            libraries,
            crates: first(r"(?-u)/cargo/([0-9A-Za-z_-]+-[0-9]+\.[0-9]+\.[0-9A-Za-z.+-]+)/")?
                .iter()
                .filter_map(|directory| crate_of(directory))
                .collect(),
            home: first(r"(?-u)(/(?:root|home/[0-9A-Za-z_.-]+)/[0-9A-Za-z_.-]+/)")?.pop_first(),
        })
    }

    /// As in Go: `amd64`, `arm64`.
    pub(super) fn architecture(&self) -> &'static str {
        match self.machine {
            62 => "amd64",
            183 => "arm64",
            _ => "unknown",
        }
    }

    /// What a program that runs alone in an image must not ask for.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.interpreter || self.libraries > 0 {
            faults.push(format!("not static: it needs {} libraries", self.libraries));
        }
        if let Some(home) = &self.home {
            faults.push(format!("it names a directory of who compiled it: {home}"));
        }
        if self.crates.is_empty() {
            faults.push("no paths of crates in it: was it compiled by `make release`?".to_owned());
        }
        faults
    }
}

/// `NAME@VERSION` of a directory `NAME-VERSION` of a registry. A name may have digits after a dash, a version begins with
/// digits and a dot.
fn crate_of(directory: &str) -> Option<String> {
    let dash = directory.match_indices('-').map(|(at, _)| at).find(|at| {
        let after = &directory[at + 1..];
        after
            .split_once('.')
            .is_some_and(|(major, _)| !major.is_empty() && major.bytes().all(|byte| byte.is_ascii_digit()))
    })?;
    Some(format!("{}@{}", &directory[..dash], &directory[dash + 1..]))
}

fn part(bytes: &[u8], offset: usize, size: usize) -> Result<&[u8]> {
    match bytes.get(offset..offset.saturating_add(size)) {
        Some(part) => Ok(part),
        None => bail!("cut off at {offset}"),
    }
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N]> {
    Ok(part(bytes, offset, N)?.try_into()?)
}

fn half(bytes: &[u8], offset: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(array(bytes, offset)?))
}

fn address(bytes: &[u8], offset: usize) -> Result<usize> {
    usize::try_from(u64::from_le_bytes(array(bytes, offset)?)).context("an address beyond this machine's")
}
