//! Programs of the operating system that the plane needs, and the Debian packages that have them.

use anyhow::{Result, bail};

use super::{
    command::{command, find, run_with},
    progress::{Detail, Progress},
};

/// A program and its Debian package.
#[derive(Debug, Clone, Copy)]
pub struct Needed {
    /// Name on `PATH`.
    pub program: &'static str,
    /// Debian package.
    pub package: &'static str,
}

/// What the local plane runs beside its own binaries.
pub const PLANE: &[Needed] = &[
    Needed {
        program: "containerd",
        package: "containerd",
    },
    Needed {
        program: "runc",
        package: "runc",
    },
    Needed {
        program: "nft",
        package: "nftables",
    },
    Needed {
        program: "conntrack",
        package: "conntrack",
    },
    Needed {
        program: "ip",
        package: "iproute2",
    },
    Needed {
        program: "buildah",
        package: "buildah",
    },
    Needed {
        program: "openssl",
        package: "openssl",
    },
    Needed {
        program: "busybox",
        package: "busybox-static",
    },
];

/// Debian's package of the network plugins, which are not on `PATH`.
const CNI_PACKAGE: &str = "containernetworking-plugins";
const CNI_DIRECTORIES: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// Directory of the `bridge` and `host-local` network plugins.
#[must_use]
pub fn cni_directory() -> Option<&'static str> {
    CNI_DIRECTORIES
        .into_iter()
        .find(|directory| std::path::Path::new(directory).join("bridge").is_file())
}

/// Installs what is missing with `apt-get`; needs root. With nothing missing it asks nobody.
///
/// # Errors
/// A package cannot be installed, or this machine has no `apt-get`: the error names what to install by hand.
pub async fn ensure(needed: &[Needed], progress: &Progress) -> Result<()> {
    let mut missing: Vec<&str> = needed
        .iter()
        .filter(|needed| find(needed.program).is_none())
        .map(|needed| needed.package)
        .collect();
    if cni_directory().is_none() {
        missing.push(CNI_PACKAGE);
    }
    if missing.is_empty() {
        return Ok(());
    }
    if find("apt-get").is_none() {
        bail!(
            "these programs are missing and this machine has no apt-get to install them: {}",
            missing.join(" ")
        );
    }
    let detail = Detail::default();
    let what = format!("installing Debian packages {}", missing.join(" "));
    let install = async {
        let apt = |args: &[&str]| {
            let mut apt = command("apt-get", ["-q", "-y", "-o", "DPkg::Lock::Timeout=300"]);
            apt.args(args).env("DEBIAN_FRONTEND", "noninteractive");
            apt
        };
        run_with(apt(&["update"]), &detail).await?;
        let mut install = apt(&["install", "--no-install-recommends"]);
        install.args(&missing);
        run_with(install, &detail).await?;
        Ok(())
    };
    progress.step_with(&what, &detail, install).await
}
