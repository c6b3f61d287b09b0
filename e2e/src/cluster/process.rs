//! Long-lived processes of the plane: each in a process group of its own, recorded by number *and* start time, so that
//! a number the kernel has given to somebody else is never signalled.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Record {
    /// Process number.
    pub pid: i32,
    /// Clock ticks from boot to the process's start (`/proc/PID/stat`, field 22).
    pub started: u64,
}

impl Record {
    /// The living process with this number; `None` if there is none, or only its unreaped remains.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let (state, _, started) = stat(pid)?;
        (state != 'Z' && state != 'X').then_some(Self { pid, started })
    }

    /// The process that runs this code.
    #[must_use]
    pub fn own() -> Option<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// The process that started the one that runs this code.
    #[must_use]
    pub fn parent() -> Option<Self> {
        Self::of(rustix::process::getppid()?.as_raw_nonzero().get())
    }

    /// Reads `PID TICKS`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (pid, started) = text.trim().split_once(' ')?;
        Some(Self {
            pid: pid.parse().ok()?,
            started: started.parse().ok()?,
        })
    }

    /// The form that [`Self::parse`] reads.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{} {}", self.pid, self.started)
    }

    /// Whether this very process still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Sends `signal`, if this very process still runs.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            // It may have ended since the look a line above.
            let _ = kill_process(pid, signal);
        }
    }
}

/// Starts `program` detached from the terminal, its output in `DIRECTORY/log/NAME.log`, its record in
/// `DIRECTORY/run/NAME`.
///
/// # Errors
/// The program, the log or the record cannot be opened.
pub fn start(directory: &Path, name: &str, program: &Path, args: &[String]) -> Result<Record> {
    let log = File::create(log_path(directory, name))?;
    let child = Command::new(program)
        .args(args)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    let record = pid
        .and_then(Record::of)
        .with_context(|| format!("{name} ended at once"))?;
    fs::write(directory.join("run").join(name), record.text())?;
    Ok(record)
}

/// Where [`start`] puts the output of `name`.
#[must_use]
pub fn log_path(directory: &Path, name: &str) -> PathBuf {
    directory.join("log").join(format!("{name}.log"))
}

/// The records in `DIRECTORY/run`, with names.
#[must_use]
pub fn recorded(directory: &Path) -> Vec<(String, Record)> {
    let Ok(entries) = fs::read_dir(directory.join("run")) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let record = Record::parse(&fs::read_to_string(entry.path()).ok()?)?;
            Some((entry.file_name().to_string_lossy().into_owned(), record))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Asks all to end, then kills those that have not ended after `grace`. Returns when none is left.
pub async fn stop(records: &[Record], grace: Duration) {
    for record in records {
        record.signal(Signal::TERM);
    }
    if !gone_within(records, grace).await {
        for record in records {
            record.signal(Signal::KILL);
        }
        gone_within(records, Duration::from_secs(10)).await;
    }
}

async fn gone_within(records: &[Record], limit: Duration) -> bool {
    let wait = async {
        while records.iter().any(Record::is_alive) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(limit, wait).await.is_ok()
}

/// Every process with the words of its command line.
#[must_use]
pub fn all() -> Vec<(Record, Vec<String>)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let record = Record::of(pid)?;
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let words = line
                .split(|byte| *byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            Some((record, words))
        })
        .collect()
}

/// The descendants of `roots`, and `roots` themselves.
#[must_use]
pub fn with_descendants(roots: &[Record]) -> Vec<Record> {
    let processes: Vec<(Record, i32)> = all()
        .into_iter()
        .filter_map(|(record, _)| Some((record, stat(record.pid)?.1)))
        .collect();
    let mut found = roots.to_vec();
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|record| record.pid) {
        next += 1;
        let children = processes
            .iter()
            .filter(|(_, of)| *of == parent)
            .map(|(record, _)| *record);
        let new: Vec<_> = children.filter(|child| !found.contains(child)).collect();
        found.extend(new);
    }
    found
}

/// State, parent and start time from `/proc/PID/stat`.
fn stat(pid: i32) -> Option<(char, i32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may itself hold spaces and brackets: fields count from the last bracket.
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    Some((
        fields.first()?.chars().next()?,
        fields.get(1)?.parse().ok()?,
        fields.get(19)?.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_writing_and_names_one_process_only() {
        let own = Record::own().expect("this process");
        assert_eq!(Record::parse(&own.text()), Some(own));
        assert!(own.is_alive());
        let other = Record {
            started: own.started + 1,
            ..own
        };
        assert!(!other.is_alive(), "another start time is another process");
        assert!(Record::parse("12").is_none());
    }

    #[tokio::test]
    async fn started_processes_are_recorded_and_stopped() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in ["log", "run"] {
            fs::create_dir(directory.path().join(name)).expect("a directory");
        }
        let shell = Path::new("/bin/sh");
        let args = ["-c".to_owned(), "trap '' TERM; sleep 600 & wait".to_owned()];
        let record = start(directory.path(), "stubborn", shell, &args).expect("a shell");
        assert_eq!(recorded(directory.path()), vec![("stubborn".to_owned(), record)]);
        let family = with_descendants(&[record]);
        stop(&family, Duration::from_millis(50)).await;
        assert!(!record.is_alive());
    }
}
