//! Releases with one thing wrong each, and the recipes that images and releases come from.

use std::{fs, io::Write, process::Command};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::*;

/// A tar with these files: path, mode, content.
fn tar(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        archive
            .append_data(&mut header, path, *content)
            .expect("memory takes it");
    }
    archive.into_inner().expect("memory takes it")
}

fn digest(blob: &[u8]) -> String {
    let sum: String = Sha256::digest(blob)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{sum}")
}

/// An archive with one image, whose layer holds `files` and whose settings are `settings`.
fn archive(settings: &Value, files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut layer = GzEncoder::new(Vec::new(), Compression::fast());
    layer.write_all(&tar(files)).expect("memory takes it");
    let layer = layer.finish().expect("memory takes it");
    let config = json!({"architecture": "amd64", "os": "linux", "config": settings}).to_string();
    let manifest = json!({
        "config": {"digest": digest(config.as_bytes())},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(&layer)}],
    })
    .to_string();
    let index = json!({"manifests": [{"digest": digest(manifest.as_bytes())}]}).to_string();
    let blob = |content: &[u8]| format!("blobs/{}", digest(content).replace(':', "/"));
    tar(&[
        ("index.json", 0o644, index.as_bytes()),
        (&blob(&layer), 0o644, &layer),
        (&blob(config.as_bytes()), 0o644, config.as_bytes()),
        (&blob(manifest.as_bytes()), 0o644, manifest.as_bytes()),
    ])
}

fn settings() -> Value {
    json!({
        "User": "65532:65532",
        "Entrypoint": ["/weir-router"],
        "Labels": {
            "org.opencontainers.image.title": "weir-router",
            "org.opencontainers.image.version": "1.0.0",
            "org.opencontainers.image.revision": "0123",
            "org.opencontainers.image.licenses": "Apache-2.0",
        },
    })
}

const PROGRAM: (&str, u32, &[u8]) = ("weir-router", 0o100_755, b"program");

fn image_faults(settings: &Value, files: &[(&str, u32, &[u8])]) -> Vec<String> {
    let image = Image::read(&archive(settings, files)).expect("an image");
    image.faults("weir-router", 100_000)
}

#[test]
fn an_image_holds_one_program_and_runs_it_without_rights() {
    assert_eq!(image_faults(&settings(), &[PROGRAM]), [""; 0]);
    for user in ["", "0", "root", "weir", "65532"] {
        let mut settings = settings();
        settings["User"] = user.into();
        assert_eq!(
            image_faults(&settings, &[PROGRAM]),
            [format!("user `{user}`, not 65532:65532")]
        );
    }
    let mut shell = settings();
    shell["Entrypoint"] = json!(["/bin/sh", "-c", "/weir-router"]);
    assert!(image_faults(&shell, &[PROGRAM])[0].starts_with("entry point"));
    let mut bare = settings();
    bare["Labels"]["org.opencontainers.image.revision"] = "".into();
    assert_eq!(
        image_faults(&bare, &[PROGRAM]),
        ["no label org.opencontainers.image.revision"]
    );
}

#[test]
fn an_image_holds_nothing_else_and_is_small() {
    let shell = ("bin/sh", 0o755, b"shell".as_slice());
    assert_eq!(
        image_faults(&settings(), &[PROGRAM, shell]),
        ["/bin/sh in the image"]
    );
    assert_eq!(image_faults(&settings(), &[]), ["nothing in the image"]);
    let setuid = ("weir-router", 0o4755, b"program".as_slice());
    assert_eq!(
        image_faults(&settings(), &[setuid]),
        ["/weir-router is no plain file with mode 755"]
    );
    let large = vec![0; 100_000];
    let faults = image_faults(&settings(), &[("weir-router", 0o755, &large)]);
    assert!(faults[0].ends_with("bytes, more than 100000"), "{faults:?}");
}

#[test]
fn a_changed_blob_is_no_image() {
    let archive = archive(&settings(), &[PROGRAM]);
    let at = archive.windows(5).position(|window| window == b"linux");
    let mut changed = archive.clone();
    changed[at.expect("the configuration names the system")] = b'L';
    assert!(Image::read(&archive).is_ok());
    let error = Image::read(&changed).expect_err("a configuration that was changed");
    assert!(error.to_string().contains(" holds "), "{error}");
}

/// A program of 64 bits for `machine` with segments of these types and contents.
fn elf(machine: u16, segments: &[(u32, &[u8])], rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18..20].copy_from_slice(&machine.to_le_bytes());
    bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
    bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
    bytes[56..58].copy_from_slice(&u16::try_from(segments.len()).expect("few").to_le_bytes());
    let mut contents = Vec::new();
    for (kind, content) in segments {
        let mut header = [0; 56];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        let offset = 64 + 56 * segments.len() + contents.len();
        header[8..16].copy_from_slice(&(offset as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&header);
        contents.extend_from_slice(content);
    }
    bytes.extend(contents);
    bytes.extend_from_slice(rest);
    bytes
}

const CRATES: &[u8] = b"\0/cargo/k8s-openapi-0.29.0/src/lib.rs\0/cargo/tokio-1.53.2/src/a.rs\0";

#[test]
fn a_program_is_static_and_names_its_crates() {
    let program = Program::parse(&elf(183, &[(2, &[0; 32])], CRATES)).expect("a program");
    assert_eq!(program.faults(), [""; 0]);
    assert_eq!(program.architecture(), "arm64");
    assert_eq!(
        Vec::from_iter(&program.crates),
        ["k8s-openapi@0.29.0", "tokio@1.53.2"]
    );

    let mut needed = [0; 32];
    needed[0] = 1;
    for dynamic in [(3, b"/lib64/ld".as_slice()), (2, &needed)] {
        let program = Program::parse(&elf(62, &[dynamic], CRATES)).expect("a program");
        assert!(
            program.faults()[0].starts_with("not static"),
            "{:?}",
            program.faults()
        );
    }
    let told = [CRATES, b"/root/src/main.rs"].concat();
    let program = Program::parse(&elf(62, &[], &told)).expect("a program");
    assert_eq!(
        program.faults(),
        ["it names a directory of who compiled it: /root/src/"]
    );
}

#[test]
fn this_test_is_no_program_of_a_release() {
    let bytes = fs::read("/proc/self/exe").expect("the running program");
    let faults = Program::parse(&bytes).expect("a program").faults();
    assert!(
        faults.iter().any(|fault| fault.starts_with("not static")),
        "{faults:?}"
    );
    assert!(Program::parse(&bytes[..100]).is_err(), "cut off");
    assert!(Program::parse(b"#!/bin/sh").is_err(), "a script");
}

/// The faults of a bill of materials with tokio and what is always linked, changed by `change`.
fn materials_faults(change: impl FnOnce(&mut Value)) -> Vec<String> {
    let library = |name: &str| json!({"name": name, "version": "1", "purl": format!("pkg:generic/{name}@1"), "licenses": [{"expression": "MIT"}]});
    let mut materials = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "metadata": {"properties": [{"name": "oci:image", "value": "registry/weir-router@sha256:01"}]},
        "components": [
            {"name": "tokio", "version": "1.53.2", "purl": "pkg:cargo/tokio@1.53.2",
                "licenses": [{"expression": "MIT"}], "hashes": [{"alg": "SHA-256", "content": "abc"}]},
            library("rust-std"), library("glibc"), library("libgcc"),
        ],
    });
    change(&mut materials);
    let lock = Lock::parse("[[package]]\nname = \"tokio\"\nversion = \"1.53.2\"\nchecksum = \"abc\"\n");
    let crates = ["tokio@1.53.2".to_owned()].into();
    Materials::parse(&materials.to_string())
        .expect("a bill of materials")
        .faults(&lock, &crates, "sha256:01")
}

#[test]
fn materials_agree_with_lock_file_program_and_image() {
    type Change<'a> = &'a dyn Fn(&mut Value);
    assert_eq!(materials_faults(|_| {}), [""; 0]);
    let cases: [(&str, Change<'_>); 8] = [
        ("materials in SPDX 1.5", &|all| all["bomFormat"] = "SPDX".into()),
        ("materials of another image", &|all| {
            all["metadata"]["properties"][0]["value"] = "registry/weir-router@sha256:02".into();
        }),
        ("tokio@1.53.2 has no licence in the materials", &|all| {
            all["components"][0]["licenses"] = json!([]);
        }),
        ("tokio@1.53.2 has another checksum than in Cargo.lock", &|all| {
            all["components"][0]["hashes"][0]["content"] = "abd".into()
        }),
        ("tokio@1.54.0 is not in Cargo.lock", &|all| {
            all["components"][0]["version"] = "1.54.0".into();
        }),
        ("tokio@1.53.2 is linked, but not in the materials", &|all| {
            all["components"][0]["name"] = "tokyo".into();
        }),
        ("insta@1 is in the materials, but never linked", &|all| {
            all["components"][1]["name"] = "insta".into();
        }),
        ("glibc is linked, but not in the materials", &|all| {
            all["components"][2]["name"] = "musl".into();
        }),
    ];
    for (fault, change) in cases {
        let faults = materials_faults(change);
        assert!(faults.iter().any(|found| found == fault), "{fault}: {faults:?}");
    }
}

#[test]
fn images_of_tests_and_releases_have_one_recipe() {
    for name in NAMES {
        let file = format!("deploy/Dockerfile.{}", name.trim_start_matches("weir-"));
        let text = fs::read_to_string(Path::new(WORKSPACE).join(&file)).expect("a Dockerfile");
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let expected = [
            "FROM scratch".to_owned(),
            format!("COPY {name} /{name}"),
            format!("USER {USER}"),
            format!("ENTRYPOINT [\"/{name}\"]"),
        ];
        assert_eq!(lines, expected, "{file}");
    }
}

#[test]
fn a_release_says_what_it_needs() {
    let said = |variables: &[(&str, &str)]| {
        let output = Command::new(Path::new(WORKSPACE).join(".ci/release"))
            .env_remove("REGISTRY")
            .env_remove("VERSION")
            .env_remove("ARCH")
            .envs(variables.iter().copied())
            .output()
            .expect("bash");
        assert_eq!(output.status.code(), Some(1), "{variables:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let registry = ("REGISTRY", "registry.example.com/weir");
    assert!(said(&[]).contains("make release REGISTRY="));
    for wrong in [
        "https://registry.example.com",
        "registry.example.com/",
        "a b",
        "Example.com/weir",
    ] {
        assert!(
            said(&[("REGISTRY", wrong)]).contains("is not a host with a path"),
            "{wrong}"
        );
    }
    assert!(said(&[registry, ("VERSION", "9.9.9")]).contains("Cargo.toml says"));
    assert!(said(&[registry, ("ARCH", "mips")]).contains("there are amd64 and arm64"));
}
