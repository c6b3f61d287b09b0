//! Where things live outside the work tree: `$WEIR_CACHE`, by default `$XDG_CACHE_HOME/weir` or `~/.cache/weir`.

use std::{
    env,
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use super::progress::Progress;

/// The cache directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// An exclusive lock on a file; released when dropped, or by the kernel when the process dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Cache {
    /// The cache that the environment names.
    ///
    /// # Errors
    /// Neither `WEIR_CACHE`, `XDG_CACHE_HOME` nor `HOME` is set.
    pub fn from_env() -> Result<Self> {
        let named = |name: &str| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let root = named("WEIR_CACHE")
            .or_else(|| named("XDG_CACHE_HOME").map(|path| path.join("weir")))
            .or_else(|| named("HOME").map(|path| path.join(".cache/weir")))
            .context("set WEIR_CACHE (or HOME): a place for binaries, images and cluster state is needed")?;
        Ok(Self { root })
    }

    /// A cache at `root`.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
    }

    /// A subdirectory, created if absent.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }

    /// A path below the cache that may not exist.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Waits for the lock `NAME.lock`.
    ///
    /// # Errors
    /// The file cannot be opened or locked.
    pub async fn lock(&self, name: &str, progress: &Progress) -> Result<Lock> {
        let path = self.directory("locks")?.join(format!("{name}.lock"));
        lock(&path, progress).await
    }
}

/// Waits for the lock at `path`.
///
/// # Errors
/// The file cannot be opened or locked.
pub async fn lock(path: &Path, progress: &Progress) -> Result<Lock> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    let try_lock = |file: &File| match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => Ok(false),
        Err(error) => Err(error).with_context(|| format!("locking {}", path.display())),
    };
    if !try_lock(&file)? {
        let wait = async {
            while !try_lock(&file)? {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        };
        let what = format!("waiting for another command that holds {}", path.display());
        progress.step(&what, wait).await?;
    }
    Ok(Lock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lock_is_held_by_one_at_a_time() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let cache = Cache::at(directory.path());
        let progress = Progress::new();
        let first = cache.lock("x", &progress).await.expect("a free lock");
        let second = cache.lock("x", &progress);
        let mut second = std::pin::pin!(second);
        let early = tokio::time::timeout(Duration::from_millis(150), &mut second).await;
        assert!(early.is_err(), "the second got the lock while the first held it");
        drop(first);
        second.await.expect("the lock after its release");
    }
}
