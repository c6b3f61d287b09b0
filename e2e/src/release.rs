//! What the files of a release must hold, read from the files themselves: images with one static program and nothing
//! else, and bills of materials that list what was linked.

mod image;
mod materials;
mod program;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use image::Image;
use materials::{Lock, Materials};
use program::Program;

/// The images of a release.
const NAMES: [&str; 2] = ["weir-operator", "weir-router"];
/// User and group of every image, as in `deploy/Dockerfile.*`.
const USER: &str = "65532:65532";
/// Most bytes of an image, uncompressed.
const MOST_BYTES: u64 = 30_000_000;
/// The work tree whose lock file the bills of materials are compared with.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What [`check`] saw.
#[derive(Debug, Default)]
pub struct Report {
    /// A line for each image.
    pub found: Vec<String>,
    /// What must not be, each with the file's name.
    pub faults: Vec<String>,
}

/// Checks every image in `directory`, with its program and its bill of materials.
///
/// # Errors
/// A file is missing or unreadable, or there is no image at all.
pub fn check(directory: &Path) -> Result<Report> {
    let lock = Lock::parse(&fs::read_to_string(Path::new(WORKSPACE).join("Cargo.lock"))?);
    let mut report = Report::default();
    for name in NAMES {
        let images = images(directory, name)?;
        ensure!(
            !images.is_empty(),
            "{} has no image of {name}",
            directory.display()
        );
        for path in images {
            check_image(name, &path, &lock, &mut report).with_context(|| path.display().to_string())?;
        }
    }
    Ok(report)
}

/// The archives of `name`, for one or more architectures.
fn images(directory: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if file.starts_with(&format!("{name}-")) && file.ends_with(".oci.tar") {
            images.push(path);
        }
    }
    images.sort();
    Ok(images)
}

fn check_image(name: &str, path: &Path, lock: &Lock, report: &mut Report) -> Result<()> {
    let beside = path.to_string_lossy();
    let beside = beside.trim_end_matches(".oci.tar");
    let image = Image::read(&fs::read(path)?)?;
    let bytes = fs::read(beside)?;
    let program = Program::parse(&bytes)?;
    let materials = Materials::parse(&fs::read_to_string(format!("{beside}.cdx.json"))?)?;

    let mut faults = image.faults(name, MOST_BYTES);
    if image.files.first().is_none_or(|file| file.content != bytes) {
        faults.push("the program in the image is not the one beside it".to_owned());
    }
    if program.architecture() != image.architecture {
        faults.push(format!(
            "an image for {} with a program for {}",
            image.architecture,
            program.architecture()
        ));
    }
    faults.extend(program.faults());
    faults.extend(materials.faults(lock, &program.crates, &image.digest));
    report.found.push(format!(
        "{name} {}: {:.1} MB in the image, {:.1} MB to pull, user {}, {} components of which {} show in the program, {}",
        image.architecture,
        image.bytes as f64 / 1e6,
        image.pulled_bytes as f64 / 1e6,
        image.user,
        materials.components.len(),
        program.crates.len(),
        image.digest,
    ));
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    report
        .faults
        .extend(faults.into_iter().map(|fault| format!("{file}: {fault}")));
    Ok(())
}
