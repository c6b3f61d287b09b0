//! The processes of a pod, as this machine sees them.

use std::{collections::HashSet, fs};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::cluster::process::Record;

/// Kernel ticks per second in `/proc/PID/stat`; Linux gives user space 100 on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has used.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Processor time since its start in seconds.
    pub cpu_seconds: f64,
}

/// The processes in a pod whose program is called `program`.
///
/// # Errors
/// There is none here: the pod is gone, or runs on another machine.
pub fn of_pod(pod: &str, program: &str) -> Result<Vec<Record>> {
    let mut found = HashSet::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        // Every container has its pod's name as host name.
        let wanted = format!("HOSTNAME={pod}");
        let is_of_pod = environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == wanted.as_bytes());
        if is_of_pod && name.trim_end() == program {
            found.extend(Record::of(pid));
        }
    }
    ensure!(
        !found.is_empty(),
        "no process {program} of pod {pod} on this machine"
    );
    Ok(found.into_iter().collect())
}

/// Kills the processes in a pod whose program is called `program`, without letting them say a word.
///
/// # Errors
/// As [`of_pod`].
pub fn kill(pod: &str, program: &str) -> Result<()> {
    for record in of_pod(pod, program)? {
        record.signal(Signal::KILL);
    }
    Ok(())
}

/// What a process has used up to now; `None` when it has ended.
#[must_use]
pub fn usage(record: Record) -> Option<Usage> {
    let directory = format!("/proc/{}", record.pid);
    let status = fs::read_to_string(format!("{directory}/status")).ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = resident.trim().trim_end_matches("kB").trim().parse().ok()?;
    let stat = fs::read_to_string(format!("{directory}/stat")).ok()?;
    // The program's name stands in brackets and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok().map(f64::from);
    let (user, system) = (ticks()?, ticks()?);
    record.is_alive().then_some(Usage {
        resident_bytes: kibibytes << 10,
        cpu_seconds: (user + system) / TICKS_PER_SECOND,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_time() {
        let own = Record::own().expect("a process");
        let before = usage(own).expect("figures");
        assert!(before.resident_bytes > 1 << 20, "{before:?}");
        let mut sum = 0_u64;
        while usage(own).expect("figures").cpu_seconds <= before.cpu_seconds {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }

    #[test]
    fn a_pod_that_is_not_here_is_said() {
        assert!(of_pod("no-such-pod", "weir-operator").is_err());
    }
}
