//! Whole replays against a small server of the tests' own, which answers as it is told.

mod outcomes;
mod stub;

use std::collections::HashSet;
use std::path::PathBuf;

use clap::Parser as _;
use serde_json::Value;
use stub::{DONE, Heard, LAST, ROLE, Stub, USAGE, WEIR, good, stream, whole};

use super::*;
use crate::args::Args;
use crate::report::Requests;

struct Ran {
    summary: Summary,
    records: Vec<Value>,
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file with this text; its path.
    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// `extra` are words of the command line.
    fn config(&self, url: &str, extra: &str) -> Config {
        let (records, summary) = (self.path("records.jsonl"), self.path("summary.json"));
        let (records, summary) = (records.to_str().unwrap(), summary.to_str().unwrap());
        let common = [
            "replay",
            "--url",
            url,
            "--model",
            "m",
            "--records",
            records,
            "--summary",
            summary,
        ];
        let scale = ["--prompt-scale", "0.05"];
        Args::try_parse_from(
            common
                .iter()
                .copied()
                .chain(scale)
                .chain(extra.split_whitespace()),
        )
        .unwrap()
        .check()
        .unwrap()
    }

    async fn replay(&self, url: &str, extra: &str, stop: CancellationToken) -> Ran {
        let summary = replay(self.config(url, extra), stop).await.unwrap();
        let text = std::fs::read_to_string(self.path("records.jsonl")).unwrap();
        let records: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let Requests {
            sent,
            ok,
            failed,
            lost,
            cancelled,
            ..
        } = summary.totals.requests;
        assert_eq!(
            sent,
            ok + failed + lost + cancelled,
            "every request has one outcome"
        );
        assert_eq!(sent, records.len() as u64, "every request has one record");
        Ran { summary, records }
    }
}

async fn run(url: &str, extra: &str) -> Ran {
    Files::new().replay(url, extra, CancellationToken::new()).await
}

#[tokio::test]
async fn a_replay_reports_what_servers_say() {
    let stub = Stub::new(|_| stream(WEIR, &[": keep-alive\n\n", ROLE, LAST, USAGE, DONE])).await;
    let extra = "--trace builtin --sessions 3 --max-turns 5 --time-scale 0";
    let ran = run(&stub.url, extra).await;
    let totals = &ran.summary.totals;
    let sent = totals.requests.sent;
    assert!(sent >= 9, "{sent} requests");
    assert_eq!((totals.requests.ok, totals.requests.held), (sent, sent));
    assert_eq!(
        (totals.tokens.prompt, totals.tokens.cached),
        (100 * sent, 60 * sent)
    );
    assert_eq!(
        (totals.workflows.count, totals.workflows.home_kept_percent),
        (3, Some(100.0))
    );
    assert_eq!(
        totals.held.first_byte_ms.as_ref().map(|held| held.samples as u64),
        Some(sent)
    );
    let record = &ran.records[0];
    for (field, value) in [
        ("outcome", Value::from("ok")),
        ("status", 200.into()),
        ("endpoint", "pod-1".into()),
        ("home", "kept".into()),
        ("queued_ms", 12.0.into()),
        ("held", true.into()),
        ("prompt_tokens", 100.into()),
        ("cached_tokens", 60.into()),
        ("completion_tokens", 3.into()),
        ("finish_reason", "length".into()),
        ("error", Value::Null),
    ] {
        assert_eq!(record[field], value, "{field} in {record}");
    }
    let time = |field: &str| record[field].as_f64().unwrap();
    assert!(time("first_byte_ms") <= time("ttft_ms") && time("ttft_ms") <= time("total_ms"));
    let summary = serde_json::to_value(&ran.summary).unwrap();
    for pointer in [
        "/trace/source",
        "/requests/sent",
        "/tokens/cached",
        "/ttft_ms/p99",
        "/duration_s",
        "/workflows/turns",
    ] {
        assert!(
            summary.pointer(pointer).is_some_and(|value| !value.is_null()),
            "{pointer} in {summary}"
        );
    }
}

/// The gateway knows homes that are there; that one is gone, only the replay can tell.
#[tokio::test]
async fn a_home_that_is_gone_is_a_home_not_kept() {
    let stub = Stub::new(|request| {
        let turn = request.id().rsplit('-').next().unwrap();
        let home = ["new", "kept", "new", "moved", "none", "kept"][turn.parse::<usize>().unwrap()];
        stream(&format!("x-weir-home: {home}\r\n"), &[ROLE, LAST, USAGE, DONE])
    })
    .await;
    let turns = r#"{"t":0,"type":"n","in":100,"out":1,"stop":"tool_use","api_time":1,"keep":0,"runs":[]}"#;
    let lines = ["one", "two"].map(|id| {
        let turns = [turns; 6].join(",");
        format!(r#"{{"id":"{id}","models":[],"block_size":64,"requests":[{turns}]}}"#)
    });
    let files = Files::new();
    let trace = files.write("homes.jsonl", &lines.join("\n"));
    let extra = format!("--trace {trace} --time-scale 0");
    let ran = files.replay(&stub.url, &extra, CancellationToken::new()).await;
    let workflows = ran.summary.totals.workflows;
    assert_eq!((workflows.turns, workflows.home_lost), (12, 2));
    // Each: two kept, one moved, one lost; the first turn and the one that was placed nowhere count for nothing.
    assert_eq!(workflows.home_kept_percent, Some(50.0));
}

#[tokio::test]
async fn requests_carry_ids_and_ask_for_what_the_trace_had() {
    let stub = Stub::new(good).await;
    let extra = "--trace builtin --sessions 2 --max-turns 3 --time-scale 0 --max-output-tokens 9 --run-id r7 \
                 --tools --header authorization:key";
    run(&format!("{}/pools/p/v1", stub.url), extra).await;
    let heard = stub.heard();
    for request in &heard {
        assert_eq!(request.path, "/pools/p/v1/chat/completions");
        assert_eq!(request.headers["authorization"], "key");
        let workflow = &request.headers["x-weir-workflow-id"];
        assert!(workflow.starts_with("r7-session-0000"), "{workflow}");
        assert!(
            request
                .id()
                .starts_with(&format!("{workflow}-{}", request.headers["x-weir-agent-id"]))
        );
        assert_eq!(
            (&request.body["stream"], &request.body["ignore_eos"]),
            (&true.into(), &true.into())
        );
        assert_eq!(request.body["stream_options"]["include_usage"], true);
        assert!((1..=9).contains(&request.body["max_tokens"].as_u64().unwrap()));
        assert_eq!(request.body["tools"].as_array().unwrap().len(), 1);
        assert!(["required", "none"].contains(&request.body["tool_choice"].as_str().unwrap()));
    }
    let ids: HashSet<&str> = heard.iter().map(Heard::id).collect();
    assert_eq!(ids.len(), heard.len(), "ids are unique");
}

#[tokio::test]
async fn whole_answers_are_understood() {
    let body = r#"{"object":"chat.completion","choices":[{"index":0,"message":{"content":"x"},"finish_reason":"length"}],"usage":{"prompt_tokens":9,"completion_tokens":2}}"#;
    let stub = Stub::new(move |_| whole("200 OK", "", body)).await;
    let extra = "--trace builtin --sessions 1 --max-turns 2 --time-scale 0 --no-stream";
    let ran = run(&stub.url, extra).await;
    assert!(stub.heard().iter().all(|request| request.body["stream"] == false));
    let totals = &ran.summary.totals;
    assert_eq!(totals.requests.ok, totals.requests.sent);
    assert!(totals.ttft_ms.is_none() && totals.total_ms.is_some());
    assert_eq!(ran.records[0]["cached_tokens"], Value::Null);
}

/// A sub-agent that the third turn waits for, and one that runs on beside it.
const FAMILY: &str = r#"{"id":"family","models":[],"block_size":64,"requests":[
{"t":0,"type":"n","in":200,"out":70,"stop":"tool_use","api_time":1,"keep":0,"runs":[[1,3]]},
{"t":2,"type":"subagent","agent_id":"agent_001","requests":[
  {"t":0,"type":"n","in":640,"out":1,"stop":"tool_use","api_time":1,"keep":0,"runs":[[50,10]]},
  {"t":5,"type":"n","in":700,"out":1,"stop":"end_turn","api_time":1,"keep":10,"runs":[]}]},
{"t":2,"type":"subagent","agent_id":"agent_002","requests":[
  {"t":0,"type":"n","in":640,"out":1,"stop":"tool_use","api_time":500,"keep":0,"runs":[[90,10]]},
  {"t":900,"type":"n","in":700,"out":1,"stop":"end_turn","api_time":1,"keep":10,"runs":[]}]},
{"t":10,"type":"n","in":330,"out":9,"stop":"","api_time":1,"keep":3,"runs":[[4,2]]}]}"#;

#[tokio::test]
async fn sub_agents_run_inside_and_beside_their_parent() {
    let stub = Stub::new(good).await;
    let files = Files::new();
    let trace = files.write("family.jsonl", &FAMILY.replace('\n', ""));
    let extra = format!("--trace {trace} --time-scale 0.001");
    let ran = files.replay(&stub.url, &extra, CancellationToken::new()).await;
    assert_eq!(
        (
            ran.summary.totals.requests.ok,
            ran.summary.totals.workflows.agents
        ),
        (6, 3)
    );
    let of = |agent: &str, turn: u64| {
        let found = ran
            .records
            .iter()
            .find(|record| record["agent"] == agent && record["turn"] == turn);
        let record = found.unwrap_or_else(|| panic!("no turn {turn} of {agent}"));
        let sent = record["sent_at"].as_f64().unwrap();
        (sent, sent + record["total_ms"].as_f64().unwrap())
    };
    assert!(
        of("agent_001", 0).0 >= of("main", 0).1,
        "sub-agents start after the turn that starts them"
    );
    assert!(
        of("main", 1).0 >= of("agent_001", 1).1,
        "the parent waits for the one that had ended"
    );
    assert!(of("main", 1).1 <= of("agent_002", 1).0, "and not for the other");
    // Pauses of 4 s between the sub-agent's turns, a thousand times faster.
    assert!(of("agent_001", 1).0 - of("agent_001", 0).1 >= 4.0);
    for request in stub.heard() {
        let agent = &request.headers["x-weir-agent-id"];
        let parent = request
            .headers
            .get("x-weir-parent-request-id")
            .map(String::as_str);
        assert_eq!(request.headers["x-weir-workflow-id"], "s1-family");
        assert_eq!(parent, (agent != "main").then_some("s1-family-main-0"), "{agent}");
    }
}

#[tokio::test]
async fn a_closed_loop_keeps_its_width_and_repeats_with_other_text() {
    let stub = Stub::new(good).await;
    let files = Files::new();
    let trace = files.write("family.jsonl", &FAMILY.replace('\n', ""));
    let extra = format!("--trace {trace} --time-scale 0 --sessions 3 --concurrency 1");
    let ran = files.replay(&stub.url, &extra, CancellationToken::new()).await;
    let sessions: Vec<&str> = ran
        .records
        .iter()
        .map(|record| record["session"].as_str().unwrap())
        .collect();
    let expected = ["family", "family.r1", "family.r2"]
        .map(|name| [name; 6])
        .concat();
    assert_eq!(sessions, expected, "one session after the other");
    let first_prompts: HashSet<String> = stub
        .heard()
        .iter()
        .filter(|request| request.id().ends_with("-main-0"))
        .map(|request| request.body["messages"].to_string())
        .collect();
    assert_eq!(first_prompts.len(), 3);
}

#[tokio::test]
async fn the_same_seed_sends_the_same_requests() {
    let prompts = async |seed: &str| {
        let stub = Stub::new(good).await;
        let extra = "--trace builtin --sessions 2 --max-turns 4 --time-scale 0 --run-id same --seed";
        run(&stub.url, &format!("{extra} {seed}")).await;
        let mut bodies: Vec<String> = stub
            .heard()
            .iter()
            .map(|request| format!("{} {}", request.id(), request.body))
            .collect();
        bodies.sort();
        bodies
    };
    let first = prompts("4").await;
    assert!(
        first == prompts("4").await,
        "seed 4 sends different requests the second time"
    );
    assert!(first != prompts("5").await, "seed 5 sends what seed 4 sends");
}

#[tokio::test]
async fn what_cannot_be_played_is_an_error() {
    for (extra, expected) in [
        ("--trace builtin --max-prompt-tokens 3", "no session is left"),
        ("--trace builtin --trace-arrivals", "absolute times"),
        ("--trace /nonexistent", "cannot read the trace"),
    ] {
        let config = Files::new().config("http://127.0.0.1:1", extra);
        let error = format!(
            "{:#}",
            replay(config, CancellationToken::new()).await.unwrap_err()
        );
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn traced_arrivals_come_when_the_trace_says() {
    let stub = Stub::new(good).await;
    let files = Files::new();
    let line = |at: u64, id: u64| {
        format!(r#"{{"timestamp":{at},"input_length":600,"output_length":3,"hash_ids":[0,{id}]}}"#)
    };
    let lines = [line(30_000, 3), line(0, 2), line(60_000, 5)].join("\n");
    let trace = files.write("chat.jsonl", &lines);
    let extra = format!("--trace {trace} --trace-arrivals --time-scale 0.001");
    let ran = files.replay(&stub.url, &extra, CancellationToken::new()).await;
    let mut sent: Vec<(&str, f64)> = ran
        .records
        .iter()
        .map(|record| {
            (
                record["session"].as_str().unwrap(),
                record["sent_at"].as_f64().unwrap(),
            )
        })
        .collect();
    sent.sort_by(|one, other| one.1.total_cmp(&other.1));
    assert_eq!(
        sent.iter().map(|one| one.0).collect::<Vec<_>>(),
        ["request-00002", "request-00001", "request-00003"]
    );
    assert!(sent[1].1 >= 30.0 && sent[2].1 >= 60.0, "{sent:?}");
    // The first block is the same in all, the second in none.
    let prompts: Vec<String> = stub
        .heard()
        .iter()
        .map(|request| request.body["messages"][0]["content"].to_string())
        .collect();
    assert!(prompts.iter().all(|prompt| prompt[..100] == prompts[0][..100]));
    assert!(prompts[0] != prompts[1]);
}
