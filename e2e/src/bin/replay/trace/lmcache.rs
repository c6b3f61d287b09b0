//! Agent traces with full text (`LMCache/lmcache-agent-trace`): a line is one request, `session_id` groups them.

use std::sync::Arc;

use indexmap::IndexMap;
use serde::Deserialize;

use super::{After, Agent, Ending, MAIN, Prompt, Session, Source, Step, TraceError, Turn};

/// Bytes of one token of English text and code, for limits and `max_tokens` only; the engine counts for itself.
const BYTES_PER_TOKEN: usize = 4;

#[derive(Deserialize)]
struct Line {
    /// Microseconds, when the request was sent or logged: the trace does not say how long the answer took.
    timestamp: u64,
    input: String,
    output: String,
    session_id: String,
}

pub(super) fn sessions(source: &Source<'_>) -> Result<Vec<Session>, TraceError> {
    let mut grouped: IndexMap<String, Vec<Line>> = IndexMap::new();
    for line in source.parsed::<Line>() {
        let (_, line) = line?;
        grouped.entry(line.session_id.clone()).or_default().push(line);
    }
    let zero = grouped
        .values()
        .flatten()
        .map(|line| line.timestamp)
        .min()
        .unwrap_or(0);
    Ok(grouped
        .into_iter()
        .map(|(id, lines)| session(id, lines, zero))
        .collect())
}

/// Pauses are the gaps between time stamps, from request to request.
fn session(id: String, mut lines: Vec<Line>, zero: u64) -> Session {
    lines.sort_by_key(|line| line.timestamp);
    let start = lines.first().map_or(zero, |line| line.timestamp);
    let mut before = start;
    let steps = lines
        .into_iter()
        .map(|line| {
            let pause_s = (line.timestamp - before) as f64 / 1e6;
            before = line.timestamp;
            Step::Turn(Turn {
                pause_s,
                after: After::Start,
                joins: Vec::new(),
                prompt_tokens: line.input.len().div_ceil(BYTES_PER_TOKEN) as u64,
                output_tokens: line.output.len().div_ceil(BYTES_PER_TOKEN) as u64,
                prompt: Prompt::Text {
                    input: line.input,
                    output: line.output,
                },
                ending: Ending::Other,
            })
        })
        .collect();
    let agent = Agent {
        id: MAIN.to_owned(),
        head_tokens: 0,
        block_tokens: 0,
        steps,
    };
    let arrival_s = Some((start - zero) as f64 / 1e6);
    Session {
        id,
        arrival_s,
        shared_blocks: true,
        agent: Arc::new(agent),
    }
}
