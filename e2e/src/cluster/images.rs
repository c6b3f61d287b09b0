//! Container images: built with buildah (or docker) from a directory with a Dockerfile, kept in the cache as archives
//! named by a hash of what went in, and handed to a cluster once per content.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::{
    Cluster,
    cache::Cache,
    command::{command, find, run, run_with, succeeds},
    plane::Plane,
    progress::{Detail, Progress},
};

/// The image of every pod's first process.
const PAUSE: &str = "localhost/weir-pause:plane";
/// A busybox, for looking at a cluster from inside.
pub const TOOLBOX: &str = "localhost/weir-toolbox:dev";
/// The root of the work tree this was compiled in.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The project's images: name, Dockerfile, binary.
pub const PROJECT: [(&str, &str, &str); 3] = [
    (
        "localhost/weir-operator:dev",
        "Dockerfile.operator",
        "weir-operator",
    ),
    ("localhost/weir-router:dev", "Dockerfile.router", "weir-router"),
    (
        "localhost/weir-engine-sim:dev",
        "Dockerfile.engine-sim",
        "engine_sim",
    ),
];

/// A built image.
#[derive(Debug, Clone)]
pub struct Archive {
    /// Name with tag.
    pub name: String,
    /// First 8 bytes of the SHA-256 over everything that went in, in hex.
    pub hash: String,
    /// The archive, in docker's format.
    pub path: PathBuf,
}

/// Compiles the project's binaries statically and builds its three images. With nothing changed, about a second.
///
/// # Errors
/// A compilation or an image build fails.
pub async fn project(cache: &Cache, progress: &Progress) -> Result<Vec<Archive>> {
    project_as(cache, "dev", progress).await
}

/// As [`project`], under another tag.
///
/// # Errors
/// As [`project`].
pub async fn project_as(cache: &Cache, tag: &str, progress: &Progress) -> Result<Vec<Archive>> {
    let binaries = compile(progress).await?;
    let mut archives = Vec::new();
    for (name, dockerfile, binary) in PROJECT {
        let context = tempfile::tempdir()?;
        let source = binaries.join(binary);
        fs::copy(&source, context.path().join(binary))
            .with_context(|| format!("{} was not built", source.display()))?;
        let dockerfile = Path::new(WORKSPACE).join("deploy").join(dockerfile);
        fs::copy(&dockerfile, context.path().join("Dockerfile"))
            .with_context(|| format!("reading {}", dockerfile.display()))?;
        let name = format!("{}:{tag}", name.trim_end_matches(":dev"));
        archives.push(build(cache, &name, context.path(), progress).await?);
    }
    Ok(archives)
}

/// The image of [`TOOLBOX`].
///
/// # Errors
/// No static busybox, or the build fails.
pub async fn toolbox(cache: &Cache, progress: &Progress) -> Result<Archive> {
    let busybox = find("busybox").context("busybox is missing (package busybox-static)")?;
    let files = [("busybox", busybox)];
    from_files(
        cache,
        TOOLBOX,
        include_str!("components/toolbox/Dockerfile"),
        &files,
        progress,
    )
    .await
}

/// Loads the pause image into a plane that is just starting.
pub(super) async fn load_pause(cache: &Cache, plane: &Plane, progress: &Progress) -> Result<()> {
    let files = [("pause", plane.binaries().path("pause"))];
    let dockerfile = include_str!("components/pause/Dockerfile");
    let archive = from_files(cache, PAUSE, dockerfile, &files, progress).await?;
    import(plane, &archive).await
}

/// Directory of the static binaries, all of them compiled and up to date.
async fn compile(progress: &Progress) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut build = command(
        &cargo,
        [
            "build",
            "--locked",
            "--profile",
            "image",
            "--bins",
            "--target",
            &target,
        ],
    );
    // The same packages as in the Makefile: another selection is another set of features, compiled anew.
    build
        .args(["-p", "weir-operator", "-p", "weir-router", "-p", "weir-e2e"])
        .current_dir(WORKSPACE)
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    for inherited in [
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "RUSTC",
        "RUSTC_WORKSPACE_WRAPPER",
    ] {
        build.env_remove(inherited);
    }
    // What cargo tells the programs it runs, build scripts (ring's) take for a reason to run again.
    let told = env::vars_os().map(|(name, _)| name);
    for name in told.filter(|name| {
        name.to_str().is_some_and(|name| {
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        })
    }) {
        build.env_remove(name);
    }
    let detail = Detail::default();
    let compile = async { run_with(build, &detail).await.map(|_| ()) };
    progress
        .step_with("compiling static binaries", &detail, compile)
        .await?;
    Ok(binaries())
}

/// Directory of the static binaries that images are made of, once [`project`] has compiled them.
#[must_use]
pub fn binaries() -> PathBuf {
    let directory =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new(WORKSPACE).join("target"), PathBuf::from);
    directory
        .join(format!("{}-unknown-linux-gnu", env::consts::ARCH))
        .join("image")
}

async fn from_files(
    cache: &Cache,
    name: &str,
    dockerfile: &str,
    files: &[(&str, PathBuf)],
    progress: &Progress,
) -> Result<Archive> {
    let context = tempfile::tempdir()?;
    fs::write(context.path().join("Dockerfile"), dockerfile)?;
    for (name, source) in files {
        fs::copy(source, context.path().join(name))
            .with_context(|| format!("reading {}", source.display()))?;
    }
    build(cache, name, context.path(), progress).await
}

/// Builds the image `name` from `context`, unless the cache has it with this content.
///
/// # Errors
/// Neither buildah nor docker works here, or the build fails.
pub async fn build(cache: &Cache, name: &str, context: &Path, progress: &Progress) -> Result<Archive> {
    let hash = hash(name, context)?;
    let directory = cache.directory("images")?;
    let plain = name.replace(['/', ':'], "_");
    let path = directory.join(format!("{plain}-{hash}.tar"));
    let archive = Archive {
        name: name.to_owned(),
        hash,
        path,
    };
    if archive.path.is_file() {
        return Ok(archive);
    }
    let _lock = cache.lock("images", progress).await?;
    let part = archive.path.with_extension("part");
    let _ = fs::remove_file(&part);
    progress
        .step(
            &format!("building image {name}"),
            pack(cache, name, context, &part),
        )
        .await?;
    for entry in fs::read_dir(&directory)?.flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.starts_with(&format!("{plain}-")) && file.ends_with(".tar") {
            fs::remove_file(entry.path())?;
        }
    }
    fs::rename(&part, &archive.path)?;
    Ok(archive)
}

async fn pack(cache: &Cache, name: &str, context: &Path, archive: &Path) -> Result<()> {
    let dockerfile = context.join("Dockerfile");
    if find("buildah").is_some() {
        // Its own store: nothing of the user's images is touched.
        let buildah = |verb: &str| {
            let mut buildah = command("buildah", ["--storage-driver", "vfs", "--root"]);
            buildah
                .arg(cache.path("buildah"))
                .arg("--runroot")
                .arg(cache.path("buildah-run"))
                .arg(verb);
            buildah
        };
        let mut bud = buildah("bud");
        bud.args(["--isolation", "chroot", "--layers=false", "-t", name, "-f"])
            .arg(&dockerfile)
            .arg(context);
        run(bud).await?;
        let mut push = buildah("push");
        push.arg(name)
            .arg(format!("docker-archive:{}:{name}", archive.display()));
        run(push).await?;
        let mut remove = buildah("rmi");
        remove.args(["--force", name]);
        return run(remove).await.map(|_| ());
    }
    if find("docker").is_some() && succeeds(command("docker", ["info"])).await {
        let mut docker = command("docker", ["build", "-t", name, "-f"]);
        docker.arg(&dockerfile).arg(context);
        run(docker).await?;
        let mut save = command("docker", ["save", "-o"]);
        save.arg(archive).arg(name);
        return run(save).await.map(|_| ());
    }
    bail!(
        "images are built with buildah or docker, and neither works here (Debian: `apt-get install buildah`)"
    )
}

/// Hands `archive` to `cluster`, unless it has this content already.
///
/// # Errors
/// The cluster refuses it, or is one that this program cannot hand images to.
pub async fn load(cluster: &Cluster, archive: &Archive, progress: &Progress) -> Result<()> {
    let what = format!("loading {} into the cluster", archive.name);
    match cluster {
        Cluster::Plane(plane) => {
            let marker = plane
                .state()
                .join("images")
                .join(archive.name.replace(['/', ':'], "_"));
            if fs::read_to_string(&marker).is_ok_and(|loaded| loaded == archive.hash) {
                return Ok(());
            }
            progress.step(&what, import(plane, archive)).await?;
            Ok(fs::write(marker, &archive.hash)?)
        }
        Cluster::Kind(kind) => progress.step(&what, kind.load(&archive.path)).await,
        Cluster::Given(given) => given.load(archive, progress).await,
    }
}

async fn import(plane: &Plane, archive: &Archive) -> Result<()> {
    let mut import = plane.ctr(&["images", "import"]);
    import.arg(&archive.path);
    run(import).await.map(|_| ())
}

fn hash(name: &str, context: &Path) -> Result<String> {
    let mut files = Vec::new();
    let mut directories = vec![context.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path)
            } else {
                files.push(path)
            }
        }
    }
    files.sort();
    let mut hash = Sha256::new();
    hash.update(name);
    for file in files {
        let inside = file.strip_prefix(context).unwrap_or(&file);
        let content = fs::read(&file)?;
        hash.update(inside.as_os_str().as_encoded_bytes());
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(content);
    }
    Ok(hash.finalize()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_follows_name_and_content() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("binary");
        fs::write(&file, "one").expect("a file");
        let first = hash("a", directory.path()).expect("a hash");
        assert_eq!(first, hash("a", directory.path()).expect("a hash"));
        assert_ne!(first, hash("b", directory.path()).expect("a hash"));
        fs::write(&file, "two").expect("a file");
        assert_ne!(first, hash("a", directory.path()).expect("a hash"));
    }
}
