use std::collections::BTreeMap;
use std::io::Write as _;

use super::*;

/// A real trace from `shared/traces` beside or above the repository, where it is there.
pub(crate) fn real(file: &str) -> Option<Trace> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = here
        .ancestors()
        .map(|folder| folder.join("shared/traces").join(file))
        .find(|path| path.exists());
    match path {
        Some(path) => Some(load(&path).unwrap()),
        None => {
            println!("{file} is not on this machine: this test uses built-in sessions alone");
            None
        }
    }
}

fn written(lines: &[&str]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    lines.iter().for_each(|line| writeln!(file, "{line}").unwrap());
    file
}

fn sessions(lines: &[&str]) -> Result<Vec<Session>, TraceError> {
    load(written(lines).path()).map(|trace| trace.sessions)
}

fn turns(agent: &Agent) -> Vec<&Turn> {
    agent
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Turn(turn) => Some(turn),
            Step::Spawn { .. } => None,
        })
        .collect()
}

/// A main agent of four requests; one sub-agent ends before the third, one after the last.
const WEKA: &str = r#"{"id":"trace_1","models":["m"],"block_size":64,"hash_id_scope":"local","tool_tokens":100,"system_tokens":28,
"totals":{},"requests":[
{"t":0.0,"type":"n","model":"m","in":200,"out":70,"stop":"tool_use","api_time":4.0,"think_time":0.0,"keep":0,"runs":[[1,3]]},
{"t":10.0,"type":"s","model":"m","in":330,"out":9,"stop":"","think_time":6.0,"keep":3,"runs":[[4,2]]},
{"t":12.5,"type":"subagent","agent_id":"agent_001","tool_tokens":5,"system_tokens":6,"requests":[
  {"t":0.0,"type":"n","in":64,"out":1,"stop":"end_turn","api_time":1.5,"keep":0,"runs":[[50,1]]}]},
{"t":13.0,"type":"subagent","agent_id":"agent_002","requests":[
  {"t":2.0,"type":"n","in":130,"out":1,"stop":"tool_use","api_time":1.0,"keep":0,"runs":[[60,2]]},
  {"t":90.0,"type":"n","in":131,"out":1,"stop":"end_turn","api_time":1.0,"keep":2,"runs":[]}]},
{"t":20.0,"type":"n","model":"m","in":330,"out":5,"stop":"end_turn","api_time":1.0,"keep":5,"runs":[]},
{"t":30.0,"type":"n","model":"m","in":500,"out":5,"stop":"end_turn","api_time":1.0,"keep":2,"runs":[[9,1],[20,4]]}]}"#;

#[test]
fn weka_sessions_are_decoded() {
    let session = &sessions(&[&WEKA.replace('\n', "")]).unwrap()[0];
    let agent = &session.agent;
    assert_eq!(
        (session.id.as_str(), agent.head_tokens, agent.block_tokens),
        ("trace_1", 128, 64)
    );
    assert_eq!((session.shared_blocks, session.turns()), (false, 7));
    let main = turns(agent);
    // No server time is known for the second: 2.45 s + 9 tokens of 0.03 s.
    let pauses: Vec<f64> = main.iter().map(|turn| turn.pause_s).collect();
    assert_eq!(pauses, [0.0, 6.0, 20.0 - 14.0, 9.0]);
    let joins: Vec<&[usize]> = main.iter().map(|turn| turn.joins.as_slice()).collect();
    assert_eq!(joins, [&[][..], &[], &[0], &[]]);
    assert_eq!((main[0].ending, main[3].ending), (Ending::ToolUse, Ending::Other));
    let Step::Spawn {
        pause_s,
        agent: first,
    } = &agent.steps[2]
    else {
        panic!("no sub-agent")
    };
    assert!(
        (pause_s - (12.5 - 12.72)).abs() < 0.01 || *pause_s == 0.0,
        "pause {pause_s}"
    );
    assert_eq!((first.id.as_str(), first.head_tokens), ("agent_001", 11));
    let Step::Spawn { agent: second, .. } = &agent.steps[3] else {
        panic!("no sub-agent")
    };
    assert_eq!(
        turns(second).iter().map(|turn| turn.pause_s).collect::<Vec<_>>(),
        [2.0, 87.0]
    );
}

#[test]
fn weka_tails_are_what_the_next_prompt_shows() {
    let session = &sessions(&[&WEKA.replace('\n', "")]).unwrap()[0];
    let tails: Vec<Option<u64>> = turns(&session.agent)
        .iter()
        .map(|turn| match &turn.prompt {
            Prompt::Blocks { tail, .. } => *tail,
            Prompt::Text { .. } => panic!("weka prompts have blocks"),
        })
        .collect();
    // The second and third are equal and followed by one that keeps less; nothing follows the last.
    assert_eq!(tails, [Some(4), None, None, None]);
}

#[test]
fn mooncake_requests_are_sessions_that_share_blocks() {
    let lines = [
        r#"{"timestamp":0,"input_length":1030,"output_length":5,"hash_ids":[0,14,15]}"#,
        r#"{"timestamp":3000,"input_length":512,"output_length":6,"hash_ids":[0]}"#,
    ];
    let sessions = sessions(&lines).unwrap();
    let turn = turns(&sessions[0].agent)[0];
    let Prompt::Blocks { keep: 0, runs, .. } = &turn.prompt else {
        panic!("not blocks")
    };
    assert_eq!(runs, &[Run { first: 0, count: 1 }, Run { first: 14, count: 2 }]);
    assert_eq!((turn.prompt_tokens, turn.output_tokens), (1030, 5));
    assert_eq!(
        (sessions[1].arrival_s, sessions[1].shared_blocks),
        (Some(3.0), true)
    );
}

#[test]
fn lmcache_lines_become_sessions_in_order_of_time() {
    let lines = [
        r#"{"timestamp":5000000,"input":"hello","output":"world","session_id":"a"}"#,
        r#"{"timestamp":6000000,"input":"other","output":"","session_id":"b"}"#,
        r#"{"timestamp":7500000,"input":"hello world again","output":"x","session_id":"a"}"#,
        r#"{"timestamp":7000000,"input":"hello world","output":"x","session_id":"a"}"#,
    ];
    let sessions = sessions(&lines).unwrap();
    assert_eq!(
        sessions
            .iter()
            .map(|session| session.arrival_s)
            .collect::<Vec<_>>(),
        [Some(0.0), Some(1.0)]
    );
    let first = turns(&sessions[0].agent);
    assert_eq!(
        first.iter().map(|turn| turn.pause_s).collect::<Vec<_>>(),
        [0.0, 2.0, 0.5]
    );
    assert_eq!(
        first.iter().map(|turn| turn.prompt_tokens).collect::<Vec<_>>(),
        [2, 3, 5]
    );
    assert!(first.iter().all(|turn| turn.after == After::Start));
}

#[test]
fn what_cannot_be_read_says_where() {
    let weka = WEKA.replace('\n', "");
    for (lines, expected) in [
        (
            vec![weka.as_str(), "{"],
            "line 2: not a session of the weka-claude-code format",
        ),
        (
            vec![&weka.replace(r#""keep":5"#, r#""keep":6"#)],
            "line 1: a request keeps 6 blocks of a prompt with 5",
        ),
        (
            vec![&weka.replace(r#""block_size":64"#, r#""block_size":0"#)],
            "line 1: block_size is 0",
        ),
        (vec![r#"{"some":"json"}"#], "the first line has neither"),
        (vec!["no json"], "the first line has neither"),
        (vec![], "has no session"),
    ] {
        let error = sessions(&lines).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} should contain {expected}");
    }
    assert!(matches!(
        load(Path::new("/nonexistent")),
        Err(TraceError::Read { .. })
    ));
}

#[test]
fn xz_is_recognised_by_content() {
    let packed: &[u8] = &[
        0xFD, 0x37, 0x7A, 0x58, 0x5A, 0x00, 0x00, 0x04, 0xE6, 0xD6, 0xB4, 0x46, 0x02, 0x00, 0x21, 0x01, 0x16,
        0x00, 0x00, 0x00, 0x74, 0x2F, 0xE5, 0xA3, 0xE0, 0x00, 0x41, 0x00, 0x39, 0x5D, 0x00, 0x3D, 0x88, 0x8A,
        0x86, 0xD4, 0x15, 0xF8, 0xE4, 0xE0, 0xE8, 0x1B, 0x9A, 0xCA, 0x29, 0x54, 0x31, 0x55, 0x6F, 0x73, 0xB1,
        0xB4, 0x0F, 0x81, 0x10, 0x21, 0x3F, 0x52, 0x5D, 0xEC, 0xF7, 0x54, 0xA3, 0x50, 0x7C, 0x76, 0xAC, 0xCD,
        0xE9, 0xA1, 0x94, 0xCC, 0xD3, 0x17, 0xE2, 0x99, 0x35, 0xCB, 0xE6, 0xD7, 0x7D, 0xB6, 0x0D, 0x0D, 0xBA,
        0x09, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x8A, 0x64, 0x56, 0xD4, 0x28, 0xBA, 0xDA, 0x3B, 0x00, 0x01,
        0x55, 0x42, 0x86, 0x3C, 0x98, 0x7F, 0x1F, 0xB6, 0xF3, 0x7D, 0x01, 0x00, 0x00, 0x00, 0x00, 0x04, 0x59,
        0x5A,
    ];
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(packed).unwrap();
    let trace = load(file.path()).unwrap();
    assert_eq!((trace.format, trace.sessions.len()), (Format::Mooncake, 1));
    file.as_file().set_len(packed.len() as u64 - 20).unwrap();
    assert!(
        matches!(load(file.path()), Err(TraceError::Read { .. })),
        "a cut file is an error"
    );
}

#[test]
fn limits_end_agents_early() {
    let all = &sessions(&[&WEKA.replace('\n', "")]).unwrap()[0];
    let limited = |turns, prompt_tokens| {
        let mut session = all.clone();
        session.limit(Limits { turns, prompt_tokens });
        session.turns()
    };
    assert_eq!(limited(usize::MAX, u64::MAX), 7);
    // Two of the main agent, and with them both sub-agents: one and two turns.
    assert_eq!(limited(2, u64::MAX), 5);
    assert_eq!(limited(1, u64::MAX), 1);
    assert_eq!(limited(usize::MAX, 330), 6);
    assert_eq!(limited(usize::MAX, 130), 0);
}

/// Blocks of a prompt, from the first turn's on.
fn block_counts(agent: &Agent) -> Vec<(u64, u64)> {
    turns(agent)
        .iter()
        .map(|turn| match &turn.prompt {
            Prompt::Blocks { keep, runs, .. } => {
                (*keep, keep + runs.iter().map(|run| run.count).sum::<u64>())
            }
            Prompt::Text { .. } => panic!("not blocks"),
        })
        .collect()
}

#[test]
fn the_real_weka_trace_has_what_its_readme_says() {
    let Some(trace) = real("weka-claude-code/sessions.jsonl.xz") else {
        return;
    };
    assert_eq!(trace.format, Format::Weka);
    let (mut kept, mut tokens) = (0, 0);
    for session in &trace.sessions {
        for (turn, (keep, blocks)) in turns(&session.agent).iter().zip(block_counts(&session.agent)) {
            assert_eq!(
                blocks,
                turn.prompt_tokens / 64,
                "{}: the last block may be partial",
                session.id
            );
            kept += keep * 64;
            tokens += turn.prompt_tokens;
        }
    }
    let percent = 100 * kept / tokens;
    assert_eq!(percent, 96);
}

/// What is published of the sessions that the generator stands for.
#[test]
fn builtin_sessions_have_the_published_statistics() {
    let generator = Generator::new(1);
    let mut pauses: BTreeMap<bool, Vec<f64>> = BTreeMap::new();
    let (mut outputs, mut prompts, mut kept, mut count) = (0, 0, 0, 0);
    let (mut tool_use, mut subagent_starts, mut lengths) = (0, Vec::new(), Vec::new());
    for index in 0..600 {
        let session = generator.session(index);
        let main = turns(&session.agent);
        lengths.push(main.len() as f64);
        for (turn, (keep, blocks)) in main.iter().zip(block_counts(&session.agent)) {
            assert_eq!(blocks, turn.prompt_tokens / 64);
            kept += keep * 64;
            prompts += turn.prompt_tokens;
            outputs += turn.output_tokens;
            count += 1;
            tool_use += u64::from(turn.ending == Ending::ToolUse);
        }
        for pair in main.windows(2) {
            pauses
                .entry(pair[0].ending == Ending::ToolUse)
                .or_default()
                .push(pair[1].pause_s);
        }
        for step in &session.agent.steps {
            if let Step::Spawn { agent, .. } = step {
                subagent_starts.push(turns(agent)[0].prompt_tokens as f64);
            }
        }
    }
    let near = |what: &str, value: f64, published: f64, tolerance: f64| {
        println!("{what}: {value:.1}, published {published}");
        assert!(
            (value / published - 1.0).abs() <= tolerance,
            "{what} is {value}, published {published}"
        );
    };
    let tool_pauses = &mut pauses.remove(&true).unwrap();
    near("pause after tools, median s", median(tool_pauses), 8.6, 0.05);
    let long = tool_pauses.iter().filter(|pause| **pause > 60.0).count() as f64;
    near(
        "pauses after tools over 60 s, %",
        100.0 * long / tool_pauses.len() as f64,
        12.0,
        0.05,
    );
    near(
        "pause after the end of a turn, median s",
        median(&mut pauses.remove(&false).unwrap()),
        210.0,
        0.15,
    );
    near("answer, mean tokens", outputs as f64 / count as f64, 440.0, 0.05);
    near(
        "prompt, mean tokens",
        prompts as f64 / count as f64,
        122_000.0,
        0.1,
    );
    near(
        "prompt in earlier blocks, %",
        100.0 * kept as f64 / prompts as f64,
        96.0,
        0.015,
    );
    near(
        "turns that end in a tool, %",
        100.0 * tool_use as f64 / count as f64,
        94.5,
        0.02,
    );
    near("turns of a session, median", median(&mut lengths), 46.0, 0.15);
    near(
        "first prompt of sub-agents, median tokens",
        median(&mut subagent_starts),
        10_400.0,
        0.1,
    );
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
fn builtin_sessions_follow_the_seed() {
    let session = |seed, index| format!("{:?}", Generator::new(seed).session(index));
    assert_eq!(session(1, 3), session(1, 3));
    assert_ne!(session(1, 3), session(2, 3));
    assert_ne!(session(1, 3), session(1, 4));
}
