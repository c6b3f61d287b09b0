//! Runs one external command to its end. The command gets a process group of its own, which ends with the future that
//! waits for it, and with this process: nothing outlives an interrupted step.

use std::{collections::VecDeque, process::Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::Command,
};

use super::progress::Detail;

/// Lines of output that an error shows.
const SHOWN: usize = 25;

/// A process group that is asked to end when this is dropped.
#[derive(Debug)]
pub struct Group(Option<Pid>);

impl Group {
    /// The group led by a child that was started with `process_group(0)`.
    #[must_use]
    pub fn of(child: &tokio::process::Child) -> Self {
        Self(
            child
                .id()
                .and_then(|id| i32::try_from(id).ok())
                .and_then(Pid::from_raw),
        )
    }

    /// The leader ended by itself: leave the number alone, it may be given to another process.
    pub fn ended(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // The group may have ended a moment ago, which is what is wanted.
            let _ = kill_process_group(pid, Signal::TERM);
        }
    }
}

/// A command with `args`, no input, and nothing of its output on the terminal.
#[must_use]
pub fn command<S: AsRef<std::ffi::OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Runs `command` and returns what it wrote to standard output.
///
/// # Errors
/// It cannot be started, or ends with another status than 0; the error shows the end of what it wrote.
pub async fn run(command: Command) -> Result<String> {
    run_with(command, &Detail::default()).await
}

/// As [`run`], with the latest line of output in `detail`.
///
/// # Errors
/// As [`run`].
pub async fn run_with(command: Command, detail: &Detail) -> Result<String> {
    let shown = shown(&command);
    let mut command = tied(&command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting `{shown}`"))?;
    let mut group = Group::of(&child);
    // `wait` would close it at once, and end the command with it.
    let held = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr, status) = tokio::join!(
        read(stdout, detail, None),
        read(stderr, detail, Some(400)),
        child.wait()
    );
    group.ended();
    drop(held);
    let (stdout, stderr) = (stdout?, stderr?);
    let status = status?;
    if !status.success() {
        let text = if stderr.is_empty() { &stdout } else { &stderr };
        let first = text.len().saturating_sub(SHOWN);
        let tail = Vec::from_iter(text.range(first..).map(String::as_str)).join("\n  ");
        bail!("`{shown}` failed ({status}):\n  {tail}");
    }
    Ok(Vec::from(stdout).join("\n"))
}

/// `program` as a process group of its own that cannot outlive this process, even when this one is killed: a shell
/// beside it ends the group when the child's standard input, which only this process can write, is closed. The program
/// itself has no input.
#[must_use]
pub fn tied(program: &Command) -> Command {
    const TIE: &str = r#"exec 3<&0; (cat <&3; kill -- -$$) >/dev/null 2>&1 & exec "$@" </dev/null 3<&-"#;
    let program = program.as_std();
    let mut tied = command("sh", ["-c", TIE, "tied"]);
    tied.arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => tied.env(name, value),
            None => tied.env_remove(name),
        };
    }
    if let Some(directory) = program.get_current_dir() {
        tied.current_dir(directory);
    }
    tied.stdin(Stdio::piped()).process_group(0);
    tied
}

/// Whether `command` runs and ends with status 0.
pub async fn succeeds(command: Command) -> bool {
    run(command).await.is_ok()
}

/// The first directory of `PATH` (and the administrator's directories) that has `program`.
#[must_use]
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"])
        .map(|directory| std::path::Path::new(directory).join(program))
        .find(|candidate| candidate.is_file())
}

fn shown(command: &Command) -> String {
    let command = command.as_std();
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|word| word.to_string_lossy()));
    let text = words.join(" ");
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Lines of `stream`; all of them, or the last `keep`.
async fn read(
    stream: Option<impl AsyncRead + Unpin>,
    detail: &Detail,
    keep: Option<usize>,
) -> Result<VecDeque<String>> {
    let mut lines = VecDeque::new();
    let Some(stream) = stream else {
        return Ok(lines);
    };
    let mut reader = BufReader::new(stream);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).await? > 0 {
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        bytes.clear();
        if !line.trim().is_empty() {
            detail.set(line.trim());
        }
        if keep.is_some_and(|keep| lines.len() >= keep) {
            lines.pop_front();
        }
        lines.push_back(line);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::{super::process::Record, *};

    #[tokio::test]
    async fn output_and_failure_are_told_apart() {
        let said = run(command("sh", ["-c", "echo one; echo two"])).await;
        assert_eq!(said.ok().as_deref(), Some("one\ntwo"));
        let error = run(command("sh", ["-c", "echo reason >&2; exit 3"])).await;
        let text = error.map_or_else(|error| error.to_string(), |_| String::new());
        assert!(text.contains("reason") && text.contains('3'), "{text}");
    }

    #[tokio::test]
    async fn a_dropped_wait_ends_the_whole_group() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let wait = run(command("sh", ["-c", &script]));
        let pid = tokio::select! {
            pid = written_pid(&file) => pid,
            ended = wait => panic!("ended early: {ended:?}"),
        };
        assert!(ended(pid).await, "the grandchild {pid} outlived the wait");
    }

    #[tokio::test]
    async fn a_tied_program_ends_with_its_input() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("pid");
        // A child of the program's own, as `cargo` has them.
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let mut child = tied(&command("sh", ["-c", &script])).spawn().expect("a shell");
        let pid = written_pid(&file).await;
        assert!(Record::of(pid).is_some());
        // What the kernel does for a process that is killed.
        drop(child.stdin.take());
        assert!(ended(pid).await, "the program {pid} outlived its input");
        child.wait().await.expect("the program's end");
    }

    #[tokio::test]
    async fn a_tied_program_that_ends_by_itself_closes_its_output() {
        let mut tied = tied(&command("sh", ["-c", "echo said; exit 7"]));
        let child = tied.stdout(Stdio::piped()).spawn();
        let mut child = child.expect("a shell");
        let held = child.stdin.take();
        let output = read(child.stdout.take(), &Detail::default(), None).await;
        assert_eq!(output.expect("lines"), ["said"]);
        assert_eq!(child.wait().await.expect("an end").code(), Some(7));
        drop(held);
    }

    async fn written_pid(file: &std::path::Path) -> i32 {
        loop {
            if let Ok(text) = std::fs::read_to_string(file)
                && let Ok(pid) = text.trim().parse::<i32>()
            {
                return pid;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn ended(pid: i32) -> bool {
        for _ in 0..200 {
            if Record::of(pid).is_none() {
                return true;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        false
    }
}
