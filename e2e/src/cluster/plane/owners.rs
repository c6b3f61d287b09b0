//! Who wants a plane to run: one file per owner below its state directory.
//!
//! The files are written and judged for good only under the lock with which planes are started and ended: somebody
//! else may join between a look and what follows from it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::remove;
use crate::cluster::{
    cache::{Lock, lock},
    process::Record,
    progress::Progress,
};

/// On whose behalf a plane runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Until somebody ends it by name.
    Nobody,
    /// Until this process has ended.
    Process(Record),
}

impl Owner {
    fn file_name(self) -> String {
        match self {
            Self::Nobody => "nobody".to_owned(),
            Self::Process(record) => record.pid.to_string(),
        }
    }

    /// The form in files; two owners have different ones.
    pub(in crate::cluster) fn text(self) -> String {
        match self {
            Self::Nobody => "nobody".to_owned(),
            Self::Process(record) => record.text(),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "nobody" => Some(Self::Nobody),
            text => Record::parse(text).map(Self::Process),
        }
    }

    fn is_alive(self) -> bool {
        match self {
            Self::Nobody => true,
            Self::Process(record) => record.is_alive(),
        }
    }
}

/// The owners of one plane.
#[derive(Debug, Clone)]
pub(super) struct Owners {
    state: PathBuf,
    lock: PathBuf,
}

impl Owners {
    /// Those of the plane in `state`; `lock` is the machine's lock for planes.
    pub(super) fn of(state: &Path, lock: &Path) -> Self {
        Self {
            state: state.to_path_buf(),
            lock: lock.to_path_buf(),
        }
    }

    /// Adds one.
    pub(super) fn add(&self, owner: Owner, _held: &Lock) -> Result<()> {
        let directory = self.directory();
        fs::create_dir_all(&directory)?;
        // Written whole or not at all: the guard may be reading.
        let part = self.state.join("owner.part");
        fs::write(&part, owner.text())?;
        Ok(fs::rename(part, directory.join(owner.file_name()))?)
    }

    /// Whether one is there now.
    pub(super) fn any(&self) -> bool {
        let entries = fs::read_dir(self.directory()).into_iter().flatten().flatten();
        let texts = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok());
        texts.filter_map(|text| Owner::parse(&text)).any(Owner::is_alive)
    }

    /// The lock, if under it nobody is left; the holder may end the plane.
    pub(super) async fn deserted(&self, progress: &Progress) -> Result<Option<Lock>> {
        if self.any() {
            return Ok(None);
        }
        let held = lock(&self.lock, progress).await?;
        // Somebody may have joined while the lock was awaited.
        Ok((!self.any()).then_some(held))
    }

    /// Removes one, then as [`Self::deserted`].
    pub(super) async fn withdraw(&self, owner: Owner, progress: &Progress) -> Result<Option<Lock>> {
        remove(&self.directory().join(owner.file_name()))?;
        self.deserted(progress).await
    }

    fn directory(&self) -> PathBuf {
        self.state.join("owners")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Machine {
        directory: tempfile::TempDir,
        progress: Progress,
    }

    impl Machine {
        fn new() -> Self {
            Self {
                directory: tempfile::tempdir().expect("a temporary directory"),
                progress: Progress::new(),
            }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("plane.lock")
        }

        fn owners(&self) -> Owners {
            Owners::of(&self.directory.path().join("state"), &self.path())
        }

        async fn lock(&self) -> Lock {
            lock(&self.path(), &self.progress).await.expect("the lock")
        }
    }

    fn own() -> Owner {
        Owner::Process(Record::own().expect("a process"))
    }

    /// A process that has ended.
    fn ended() -> Owner {
        let own = Record::own().expect("a process");
        Owner::Process(Record {
            started: own.started + 1,
            ..own
        })
    }

    #[tokio::test]
    async fn a_plane_is_deserted_when_its_last_owner_has_gone() {
        let machine = Machine::new();
        let owners = machine.owners();
        let held = machine.lock().await;
        for owner in [own(), Owner::Nobody] {
            owners.add(owner, &held).expect("a mark");
        }
        drop(held);
        let after = owners.withdraw(own(), &machine.progress).await.expect("a look");
        assert!(after.is_none(), "nobody's plane was given up");
        let after = owners.withdraw(Owner::Nobody, &machine.progress).await;
        assert!(after.expect("a look").is_some());
        let held = machine.lock().await;
        owners.add(ended(), &held).expect("a mark");
        assert!(!owners.any(), "an ended process is no owner");
    }

    /// One joins while the last owner goes: whoever has the lock first is right.
    #[tokio::test]
    async fn a_plane_that_somebody_joined_meanwhile_is_not_given_up() {
        for leaves in [true, false] {
            let machine = Machine::new();
            let owners = machine.owners();
            let joining = machine.lock().await;
            owners
                .add(if leaves { Owner::Nobody } else { ended() }, &joining)
                .expect("a mark");
            let leaving = async {
                if leaves {
                    owners.withdraw(Owner::Nobody, &machine.progress).await
                } else {
                    owners.deserted(&machine.progress).await
                }
            };
            let mut leaving = std::pin::pin!(leaving);
            let early = tokio::time::timeout(Duration::from_millis(150), &mut leaving).await;
            assert!(early.is_err(), "judged while another held the lock: {early:?}");
            owners.add(own(), &joining).expect("a mark");
            drop(joining);
            let after = leaving.await.expect("a look");
            assert!(
                after.is_none(),
                "the plane was ended under one that had joined it"
            );
        }
    }
}
