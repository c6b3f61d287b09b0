//! Production chat requests (`kvcache-ai/Mooncake`, FAST '25): 512-token blocks, equal ids are equal content
//! in the whole trace. A request has no known predecessor, so each is a session of one turn.

use std::sync::Arc;

use serde::Deserialize;

use super::{After, Agent, Ending, MAIN, Prompt, Run, Session, Source, Step, TraceError, Turn};

const BLOCK_TOKENS: u64 = 512;

#[derive(Deserialize)]
struct Line {
    /// Milliseconds.
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
}

pub(super) fn sessions(source: &Source<'_>) -> Result<Vec<Session>, TraceError> {
    let mut sessions = Vec::with_capacity(source.lines.len());
    for line in source.parsed::<Line>() {
        let (number, line) = line?;
        let turn = Turn {
            pause_s: 0.0,
            after: After::End,
            joins: Vec::new(),
            prompt: Prompt::Blocks {
                keep: 0,
                runs: runs(&line.hash_ids),
                tail: None,
            },
            prompt_tokens: line.input_length,
            output_tokens: line.output_length,
            ending: Ending::Other,
        };
        let agent = Agent {
            id: MAIN.to_owned(),
            head_tokens: 0,
            block_tokens: BLOCK_TOKENS,
            steps: vec![Step::Turn(turn)],
        };
        sessions.push(Session {
            id: format!("request-{number:05}"),
            arrival_s: Some(line.timestamp / 1e3),
            shared_blocks: true,
            agent: Arc::new(agent),
        });
    }
    Ok(sessions)
}

fn runs(ids: &[u64]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &id in ids {
        match runs.last_mut() {
            Some(run) if run.first + run.count == id => run.count += 1,
            _ => runs.push(Run { first: id, count: 1 }),
        }
    }
    runs
}
