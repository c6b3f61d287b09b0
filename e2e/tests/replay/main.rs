//! The replay client as a process: it does not outlive the program that holds the other end of its standard input.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    time::timeout,
};

/// Longest wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A replay against a server that never answers, with its files in `directory`.
fn replay(url: &str, directory: &Path, input: Stdio) -> Child {
    Command::new(env!("CARGO_BIN_EXE_replay"))
        .args(["--url", url, "--model", "m", "--trace", "builtin"])
        .args(["--sessions", "1", "--until-stdin-closes"])
        .arg("--records")
        .arg(directory.join("records.jsonl"))
        .arg("--summary")
        .arg(directory.join("summary.json"))
        .stdin(input)
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn code(replay: &mut Child) -> Option<i32> {
    timeout(PATIENCE, replay.wait()).await.unwrap().unwrap().code()
}

#[tokio::test]
async fn it_ends_with_the_other_end_of_its_input() {
    let directory = tempfile::tempdir().unwrap();
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", server.local_addr().unwrap());
    // The shell stands for a program that is killed: it holds the other end, and nobody tells the replay.
    let mut holder = Command::new("sh")
        .args(["-c", "sleep 600"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .process_group(0)
        .spawn()
        .unwrap();
    let pipe: Stdio = holder.stdout.take().unwrap().try_into().unwrap();
    let mut replay = replay(&url, directory.path(), pipe);
    // A request is under way, and the replay goes on while the other end is held.
    let (_connection, _) = timeout(PATIENCE, server.accept()).await.unwrap().unwrap();
    assert!(replay.try_wait().unwrap().is_none());
    let group = rustix::process::Pid::from_raw(holder.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    holder.wait().await.unwrap();
    assert_eq!(code(&mut replay).await, Some(130));
    let summary = std::fs::read_to_string(directory.path().join("summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(
        (&summary["interrupted"], &summary["requests"]["cancelled"]),
        (&true.into(), &1.into())
    );
}

#[tokio::test]
async fn an_input_that_never_closes_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut replay = replay("http://127.0.0.1:1", directory.path(), Stdio::null());
    assert_eq!(code(&mut replay).await, Some(1));
}
