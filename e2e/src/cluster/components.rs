//! Builds the parts of Kubernetes from their published Go modules, once per cache. The `go.mod` and `go.sum` beside
//! the sources pin every module, so that a build is the same everywhere.
//!
//! `k8s.io/kubernetes` requires its staging modules at `v0.0.0`; `components/kubernetes/go.mod` replaces exactly
//! those by the published `v0.MINOR.PATCH` of the same release.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::{
    cache::Cache,
    command::{command, find, run, run_with},
    progress::{Detail, Progress},
};

/// The Kubernetes release that the plane runs; the same as in `components/kubernetes/go.mod`.
pub const KUBERNETES: &str = "v1.34.4";

/// One Go module with what is built from it.
struct Module {
    name: &'static str,
    files: &'static [(&'static str, &'static str)],
    /// Output name and package.
    programs: &'static [(&'static str, &'static str)],
}

const MODULES: [Module; 3] = [
    Module {
        name: "kubernetes",
        files: &[
            ("go.mod", include_str!("components/kubernetes/go.mod")),
            ("go.sum", include_str!("components/kubernetes/go.sum")),
            ("tools.go", include_str!("components/kubernetes/tools.go")),
        ],
        programs: &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            (
                "kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
            ),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            ("etcd", "go.etcd.io/etcd/server/v3"),
        ],
    },
    Module {
        name: "coredns",
        files: &[
            ("go.mod", include_str!("components/coredns/go.mod")),
            ("go.sum", include_str!("components/coredns/go.sum")),
            ("main.go", include_str!("components/coredns/main.go")),
        ],
        programs: &[("coredns", ".")],
    },
    Module {
        name: "pause",
        files: &[
            ("go.mod", include_str!("components/pause/go.mod")),
            ("main.go", include_str!("components/pause/main.go")),
        ],
        programs: &[("pause", ".")],
    },
];

/// The built binaries.
#[derive(Debug, Clone)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Where the binaries of this release and these pins live, built or not.
    #[must_use]
    pub fn locate(cache: &Cache) -> Self {
        let mut hash = Sha256::new();
        for module in &MODULES {
            for (name, text) in module.files {
                hash.update(name);
                hash.update(text);
            }
        }
        let pins: String = hash.finalize()[..4]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self {
            directory: cache.path(&format!("plane/{KUBERNETES}-{pins}")),
        }
    }

    /// The path of one.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The directory of all.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn missing(&self, module: &Module) -> Vec<(&'static str, &'static str)> {
        let absent = |(name, _): &&(&str, &str)| !self.path(name).is_file();
        module.programs.iter().filter(absent).copied().collect()
    }

    /// Builds what is missing; concurrent callers wait for the first.
    ///
    /// # Errors
    /// No Go on `PATH`, a module cannot be fetched, or a build fails.
    pub async fn ensure(&self, cache: &Cache, progress: &Progress) -> Result<()> {
        if MODULES.iter().all(|module| self.missing(module).is_empty()) {
            return Ok(());
        }
        let _lock = cache.lock("plane-build", progress).await?;
        fs::create_dir_all(&self.directory)?;
        for module in &MODULES {
            let missing = self.missing(module);
            if !missing.is_empty() {
                self.build(module, &missing, progress).await?;
            }
        }
        Ok(())
    }

    async fn build(
        &self,
        module: &Module,
        missing: &[(&'static str, &'static str)],
        progress: &Progress,
    ) -> Result<()> {
        if find("go").is_none() {
            bail!(
                "Go is missing: the local Kubernetes is built from its Go modules (package `golang-go`, or go.dev)"
            );
        }
        let source = tempfile::tempdir_in(&self.directory).context("a directory for the sources")?;
        for (name, text) in module.files {
            fs::write(source.path().join(name), text)?;
        }
        let built = source.path().join("built");
        fs::create_dir(&built)?;
        let detail = Detail::default();
        let build = async {
            let mut build = command(
                "go",
                ["build", "-v", "-trimpath", "-ldflags", &link_flags(), "-o"],
            );
            build
                .arg(&built)
                .args(missing.iter().map(|(_, package)| package))
                .current_dir(source.path())
                .env("CGO_ENABLED", "0")
                .env("GOFLAGS", "-mod=readonly -buildvcs=false");
            run_with(build, &detail).await?;
            for (name, package) in missing {
                let from = built.join(output_name(module, package));
                fs::rename(&from, self.path(name)).with_context(|| format!("installing {name}"))?;
            }
            Ok(())
        };
        let release = if module.name == "kubernetes" {
            KUBERNETES
        } else {
            ""
        };
        let what = format!("building {} {release} (once)", module.name);
        progress.step_with(&what, &detail, build).await
    }
}

/// The name `go build -o DIRECTORY` gives to a program: the last element of its path, less a version.
fn output_name(module: &Module, package: &'static str) -> &'static str {
    if package == "." {
        return module.name;
    }
    let is_version = |element: &&str| {
        element
            .strip_prefix('v')
            .is_some_and(|rest| rest.parse::<u8>().is_ok())
    };
    let mut elements = package.rsplit('/').filter(|element| !is_version(element));
    elements.next().unwrap_or(package)
}

fn link_flags() -> String {
    let minor = KUBERNETES.split('.').nth(1).unwrap_or_default();
    let set = |name: &str, value: &str| format!(" -X k8s.io/component-base/version.{name}={value}");
    format!(
        "-s -w{}{}{} -X k8s.io/client-go/pkg/version.gitVersion={KUBERNETES}",
        set("gitVersion", KUBERNETES),
        set("gitMajor", "1"),
        set("gitMinor", minor)
    )
}

/// `kubectl` from `PATH`, else the built one.
#[must_use]
pub fn kubectl(binaries: &Binaries) -> PathBuf {
    find("kubectl").unwrap_or_else(|| binaries.path("kubectl"))
}

/// Whether `kubectl` can be called at all.
pub async fn kubectl_works(binaries: &Binaries) -> bool {
    let mut version = tokio::process::Command::new(kubectl(binaries));
    version.args(["version", "--client"]);
    run(version).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_release_is_the_built_one() {
        let pins = MODULES[0].files[0].1;
        assert!(pins.contains(&format!("k8s.io/kubernetes {KUBERNETES}")));
        let staging = format!("v0.{}", KUBERNETES.trim_start_matches("v1."));
        let replaced = pins.lines().filter(|line| line.starts_with("replace k8s.io/"));
        let mut count = 0;
        for line in replaced {
            assert!(line.ends_with(&staging), "{line}");
            count += 1;
        }
        assert!(count >= 30, "only {count} staging modules are replaced");
    }

    #[test]
    fn output_names_are_those_of_go() {
        let [kubernetes, coredns, _] = &MODULES;
        assert_eq!(output_name(kubernetes, "go.etcd.io/etcd/server/v3"), "server");
        assert_eq!(
            output_name(kubernetes, "k8s.io/kubernetes/cmd/kubelet"),
            "kubelet"
        );
        assert_eq!(output_name(coredns, "."), "coredns");
    }

    #[test]
    fn other_pins_are_other_binaries() {
        let cache = Cache::at(Path::new("/nowhere"));
        let path = Binaries::locate(&cache).path("etcd");
        assert!(path.starts_with("/nowhere/plane") && path.to_string_lossy().contains(KUBERNETES));
    }
}
