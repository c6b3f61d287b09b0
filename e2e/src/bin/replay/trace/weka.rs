//! Real Claude Code sessions (`callanjfox/kv-cache-tester`, repacked one session a line).
//!
//! Block ids are run-length coded: a request's ids are the first `keep` ids of the previous request of the same
//! list (sub-agents left out), then `runs` of `[first id, count]`. A sub-agent stands between the requests of its
//! parent, has a list of its own, and its times count from its marker.

use std::sync::Arc;

use serde::Deserialize;

use super::{After, Agent, Ending, MAIN, Prompt, Run, Session, Source, Step, TraceError, Turn, plain_id};

/// Server time of a request whose answer the trace does not time: medians of those that have it
/// (first token after 2.45 s, then 0.03 s per token), never beyond the next request.
const FIRST_TOKEN_S: f64 = 2.45;
const PER_TOKEN_S: f64 = 0.03;

#[derive(Deserialize)]
struct Line {
    id: String,
    block_size: u64,
    #[serde(default)]
    tool_tokens: u64,
    #[serde(default)]
    system_tokens: u64,
    requests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Entry {
    #[serde(rename = "subagent")]
    SubAgent {
        t: f64,
        agent_id: String,
        #[serde(default)]
        tool_tokens: u64,
        #[serde(default)]
        system_tokens: u64,
        requests: Vec<Entry>,
    },
    /// `n` streams, `s` does not; the block coding is the same.
    #[serde(rename = "n", alias = "s")]
    Request(Request),
}

#[derive(Deserialize)]
struct Request {
    t: f64,
    r#in: u64,
    out: u64,
    #[serde(default)]
    stop: Option<String>,
    #[serde(default)]
    api_time: Option<f64>,
    keep: u64,
    runs: Vec<(u64, u64)>,
}

pub(super) fn sessions(source: &Source<'_>) -> Result<Vec<Session>, TraceError> {
    let mut sessions = Vec::new();
    for line in source.parsed::<Line>() {
        let (number, line) = line?;
        if line.block_size == 0 {
            return Err(source.content(number, "block_size is 0".to_owned()));
        }
        let head_tokens = line.tool_tokens + line.system_tokens;
        let list = List {
            id: MAIN.to_owned(),
            head_tokens,
            block_tokens: line.block_size,
        };
        let (agent, _end) = list
            .agent(line.requests)
            .map_err(|what| source.content(number, what))?;
        sessions.push(Session {
            id: line.id,
            arrival_s: None,
            shared_blocks: false,
            agent: Arc::new(agent),
        });
    }
    Ok(sessions)
}

/// What is known of an agent before its requests are.
struct List {
    id: String,
    head_tokens: u64,
    block_tokens: u64,
}

/// A spawned agent that no turn has waited for yet: its index and its end in the trace.
struct Running {
    index: usize,
    end_s: f64,
}

/// The agent's steps so far, in the trace's time.
#[derive(Default)]
struct Timeline {
    steps: Vec<Step>,
    running: Vec<Running>,
    agent_ids: Vec<String>,
    /// Blocks of the last prompt.
    blocks: u64,
    turn_end_s: f64,
    last_end_s: f64,
}

impl List {
    /// The agent and when it ends, in seconds from the list's zero.
    fn agent(self, entries: Vec<Entry>) -> Result<(Agent, f64), String> {
        let next_request_s = next_requests(&entries);
        let mut line = Timeline::default();
        for (entry, next_s) in entries.into_iter().zip(next_request_s) {
            match entry {
                Entry::SubAgent {
                    t,
                    agent_id,
                    tool_tokens,
                    system_tokens,
                    requests,
                } => {
                    let id = line.agent_id(&self.id, &agent_id);
                    let head_tokens = tool_tokens + system_tokens;
                    let list = Self {
                        id,
                        head_tokens,
                        block_tokens: self.block_tokens,
                    };
                    let (agent, duration_s) = list.agent(requests)?;
                    line.spawn(t, duration_s, agent);
                }
                Entry::Request(request) => line.request(&request, next_s)?,
            }
        }
        let Timeline {
            mut steps,
            last_end_s,
            ..
        } = line;
        give_tails(&mut steps);
        let Self {
            id,
            head_tokens,
            block_tokens,
        } = self;
        Ok((
            Agent {
                id,
                head_tokens,
                block_tokens,
                steps,
            },
            last_end_s,
        ))
    }
}

impl Timeline {
    /// An id that goes into headers and is the agent's alone.
    fn agent_id(&mut self, parent: &str, id: &str) -> String {
        let mut id = plain_id(id);
        if self.agent_ids.contains(&id) {
            id = format!("{id}.{}", self.agent_ids.len());
        }
        self.agent_ids.push(id.clone());
        if parent == MAIN {
            id
        } else {
            format!("{parent}.{id}")
        }
    }

    fn spawn(&mut self, start_s: f64, duration_s: f64, agent: Agent) {
        let end_s = start_s + duration_s;
        // Every spawn before has pushed an id.
        self.running.push(Running {
            index: self.agent_ids.len() - 1,
            end_s,
        });
        self.last_end_s = self.last_end_s.max(end_s);
        let pause_s = (start_s - self.turn_end_s).max(0.0);
        self.steps.push(Step::Spawn {
            pause_s,
            agent: Arc::new(agent),
        });
    }

    fn request(&mut self, request: &Request, next_s: Option<f64>) -> Result<(), String> {
        let joined: Vec<Running> = self
            .running
            .extract_if(.., |agent| agent.end_s <= request.t)
            .collect();
        let before_s = joined
            .iter()
            .fold(self.turn_end_s, |latest, agent| latest.max(agent.end_s));
        let pause_s = (request.t - before_s).max(0.0);
        let joins = joined.iter().map(|agent| agent.index).collect();
        self.turn_end_s = request.t + busy_s(request, next_s);
        self.last_end_s = self.last_end_s.max(self.turn_end_s);
        self.steps
            .push(Step::Turn(turn(request, pause_s, joins, &mut self.blocks)?));
        Ok(())
    }
}

/// For every entry, the time of the next request of the same list.
fn next_requests(entries: &[Entry]) -> Vec<Option<f64>> {
    let mut next = None;
    let mut times: Vec<Option<f64>> = entries
        .iter()
        .rev()
        .map(|entry| match entry {
            Entry::Request(request) => next.replace(request.t),
            Entry::SubAgent { .. } => next,
        })
        .collect();
    times.reverse();
    times
}

fn busy_s(request: &Request, next_s: Option<f64>) -> f64 {
    request.api_time.unwrap_or_else(|| {
        let usual_s = FIRST_TOKEN_S + PER_TOKEN_S * request.out as f64;
        next_s.map_or(usual_s, |next_s| usual_s.min((next_s - request.t).max(0.0)))
    })
}

/// One request as a turn; `blocks` is the number of blocks of the list's last prompt and becomes this one's.
fn turn(request: &Request, pause_s: f64, joins: Vec<usize>, blocks: &mut u64) -> Result<Turn, String> {
    if request.keep > *blocks {
        return Err(format!(
            "a request keeps {} blocks of a prompt with {blocks}",
            request.keep
        ));
    }
    let runs: Vec<Run> = request
        .runs
        .iter()
        .map(|&(first, count)| Run { first, count })
        .collect();
    *blocks = runs
        .iter()
        .try_fold(request.keep, |sum, run| sum.checked_add(run.count))
        .ok_or_else(|| "a prompt has more blocks than can be counted".to_owned())?;
    Ok(Turn {
        pause_s,
        after: After::End,
        joins,
        prompt: Prompt::Blocks {
            keep: request.keep,
            runs,
            tail: None,
        },
        prompt_tokens: request.r#in,
        output_tokens: request.out,
        ending: if request.stop.as_deref() == Some("tool_use") {
            Ending::ToolUse
        } else {
            Ending::Other
        },
    })
}

/// Says of every prompt how the block goes on of which it has only the first tokens.
///
/// A prompt's last tokens fill no block and have no id; the next prompt, if it keeps all blocks, shows the id
/// of the full one. With it, the bytes of a prompt are the first bytes of its successor, to the last token.
pub(super) fn give_tails(steps: &mut [Step]) {
    let mut following: Option<(u64, Option<u64>)> = None;
    for step in steps.iter_mut().rev() {
        let Step::Turn(Turn {
            prompt: Prompt::Blocks { keep, runs, tail },
            ..
        }) = step
        else {
            continue;
        };
        let blocks = *keep + runs.iter().map(|run| run.count).sum::<u64>();
        *tail = following
            .filter(|(kept, _)| *kept == blocks)
            .and_then(|(_, id)| id);
        let opening = runs
            .iter()
            .find(|run| run.count > 0)
            .map_or(*tail, |run| Some(run.first));
        following = Some((*keep, opening));
    }
}
