//! Made-up coding-agent sessions with the statistics of published ones, for machines without traces.
//!
//! The figures are those of the Claude Code sessions in GitHub `callanjfox/kv-cache-tester`: pause after a tool call
//! with median 8.6 s and 12 % over 60 s, after the end of a turn with median 210 s; prompts of 122,000 tokens on
//! average, 96 % of them in the session's earlier blocks; answers of 440 tokens; sub-agents that start from about 10,000
//! tokens of their own. Log-normals are fitted to a median and one quantile; the constants say which.
//! How many sessions have sub-agents is *not* theirs: theirs are rare (3 %), and a short run should show some.

use std::sync::Arc;

use super::weka::give_tails;
use super::{After, Agent, Ending, Prompt, Run, Session, Step, Turn};
use crate::random::{Random, nth};

const BLOCK_TOKENS: u64 = 64;

/// Turns of a main agent: median 46, 90th percentile 179.
const TURNS: LogNormal = LogNormal {
    median: 46.0,
    sigma: 1.06,
    least: 3.0,
    most: 450.0,
};
/// Tools and system prompt: quartiles 12.7k, 15.0k, 15.5k.
const HEAD_TOKENS: LogNormal = LogNormal {
    median: 15_000.0,
    sigma: 0.12,
    least: 8_000.0,
    most: 24_000.0,
};
/// First prompt of a session that starts new, beyond its head: half of all first prompts have under 27k in total.
const FRESH_TOKENS: LogNormal = LogNormal {
    median: 8_000.0,
    sigma: 0.9,
    least: 200.0,
    most: 60_000.0,
};
/// First prompt of a session that takes up an old context: 75th percentile of all 104k, 90th 260k.
const RESUMED_TOKENS: LogNormal = LogNormal {
    median: 120_000.0,
    sigma: 0.6,
    least: 40_000.0,
    most: 400_000.0,
};
const RESUMED_SHARE: f64 = 0.35;
/// What a turn adds besides the last answer (tool results, files, questions): median 281, 90th percentile 2,842.
const ADDED_TOKENS: LogNormal = LogNormal {
    median: 281.0,
    sigma: 1.8,
    least: 8.0,
    most: 60_000.0,
};
/// Answers: median 217, mean 440.
const OUTPUT_TOKENS: LogNormal = LogNormal {
    median: 217.0,
    sigma: 1.19,
    least: 1.0,
    most: 16_000.0,
};
/// Median 8.6 s; 12 % over 60 s gives sigma = ln(60 / 8.6) / 1.175.
const TOOL_PAUSE_S: LogNormal = LogNormal {
    median: 8.6,
    sigma: 1.653,
    least: 0.2,
    most: 40_000.0,
};
/// Median 210 s, 75th percentile 1,050 s.
const USER_PAUSE_S: LogNormal = LogNormal {
    median: 210.0,
    sigma: 2.2,
    least: 1.0,
    most: 80_000.0,
};
const TOOL_USE_SHARE: f64 = 0.945;
/// A prompt over this is summarised: compactions start from 150k tokens at the median.
const COMPACTION_TOKENS: LogNormal = LogNormal {
    median: 160_000.0,
    sigma: 0.25,
    least: 60_000.0,
    most: 400_000.0,
};
/// Prompt after a compaction, and the share of it that is still the old prefix.
const COMPACTED_TOKENS: LogNormal = LogNormal {
    median: 34_000.0,
    sigma: 0.5,
    least: 16_000.0,
    most: 100_000.0,
};
const COMPACTED_KEPT: f64 = 0.39;

/// Ours, see above.
const SESSIONS_WITH_SUBAGENTS: f64 = 0.1;
const SUBAGENT_TURNS: LogNormal = LogNormal {
    median: 10.0,
    sigma: 0.4,
    least: 2.0,
    most: 24.0,
};
const SUBAGENT_TOKENS: LogNormal = LogNormal {
    median: 10_400.0,
    sigma: 0.2,
    least: 8_000.0,
    most: 18_000.0,
};
/// Tools and system prompt of a sub-agent.
const SUBAGENT_HEAD_TOKENS: u64 = 7_500;
const SUBAGENT_ADDED_TOKENS: LogNormal = LogNormal {
    median: 900.0,
    sigma: 1.0,
    least: 8.0,
    most: 20_000.0,
};
const SUBAGENT_PAUSE_S: LogNormal = LogNormal {
    median: 3.0,
    sigma: 0.5,
    least: 0.2,
    most: 60.0,
};
/// The parent of the rest goes on before its sub-agent has ended.
const SUBAGENT_JOINED: f64 = 0.2;

struct LogNormal {
    median: f64,
    sigma: f64,
    least: f64,
    most: f64,
}

impl LogNormal {
    fn draw(&self, random: &mut Random) -> f64 {
        random
            .log_normal(self.median, self.sigma)
            .clamp(self.least, self.most)
    }

    fn count(&self, random: &mut Random) -> u64 {
        self.draw(random).round() as u64
    }
}

/// Makes sessions one by one: the same for equal seed and index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Generator {
    seed: u64,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed }
    }

    pub(crate) fn session(self, index: usize) -> Session {
        let mut random = Random::new(nth(self.seed, index as u64));
        let mut blocks = Blocks {
            next_id: 1,
            filled: 0,
        };
        let mut steps = main_turns(&mut random, &mut blocks);
        if random.chance(SESSIONS_WITH_SUBAGENTS) {
            add_subagents(&mut random, &mut blocks, &mut steps);
        }
        give_tails(&mut steps);
        let agent = Agent {
            id: "main".to_owned(),
            head_tokens: HEAD_TOKENS.count(&mut random),
            block_tokens: BLOCK_TOKENS,
            steps,
        };
        Session {
            id: format!("session-{index:05}"),
            arrival_s: None,
            shared_blocks: false,
            agent: Arc::new(agent),
        }
    }
}

/// Hands out block ids and remembers the size of the agent's last prompt.
struct Blocks {
    next_id: u64,
    filled: u64,
}

impl Blocks {
    /// A prompt of `tokens` that keeps the first `kept` tokens of the last one.
    fn prompt(&mut self, tokens: u64, kept: u64) -> Prompt {
        let keep = (kept / BLOCK_TOKENS).min(self.filled);
        let count = (tokens / BLOCK_TOKENS).saturating_sub(keep);
        let runs = vec![Run {
            first: self.next_id,
            count,
        }];
        self.next_id += count;
        self.filled = keep + count;
        Prompt::Blocks {
            keep,
            runs,
            tail: None,
        }
    }
}

fn main_turns(random: &mut Random, blocks: &mut Blocks) -> Vec<Step> {
    let resumed = random.chance(RESUMED_SHARE);
    let first = if resumed { RESUMED_TOKENS } else { FRESH_TOKENS };
    let mut tokens = HEAD_TOKENS.count(random) + first.count(random);
    let limit = COMPACTION_TOKENS.count(random).max(tokens + 20_000);
    let (mut kept, mut pause_s) = (0, 0.0);
    let mut steps = Vec::new();
    for _ in 0..TURNS.count(random) {
        let output_tokens = OUTPUT_TOKENS.count(random);
        let ending = if random.chance(TOOL_USE_SHARE) {
            Ending::ToolUse
        } else {
            Ending::Other
        };
        steps.push(Step::Turn(Turn {
            pause_s,
            after: After::End,
            joins: Vec::new(),
            prompt: blocks.prompt(tokens, kept),
            prompt_tokens: tokens,
            output_tokens,
            ending,
        }));
        pause_s = if ending == Ending::ToolUse {
            TOOL_PAUSE_S
        } else {
            USER_PAUSE_S
        }
        .draw(random);
        kept = tokens;
        tokens += output_tokens + ADDED_TOKENS.count(random);
        if tokens > limit {
            tokens = COMPACTED_TOKENS.count(random);
            kept = (tokens as f64 * COMPACTED_KEPT) as u64;
        }
    }
    steps
}

/// Puts one to three sub-agents after a turn in the first half; all start together, like parallel tool calls.
fn add_subagents(random: &mut Random, blocks: &mut Blocks, steps: &mut Vec<Step>) {
    let place = 1 + random.below(steps.len().div_ceil(2).max(1));
    let spawns = 1 + random.below(3);
    if let Some(Step::Turn(next)) = steps.get_mut(place) {
        next.joins = (0..spawns).filter(|_| random.chance(SUBAGENT_JOINED)).collect();
    }
    for index in 0..spawns {
        let mut steps_of = subagent_turns(random, blocks);
        give_tails(&mut steps_of);
        let agent = Agent {
            id: format!("agent_{:03}", index + 1),
            head_tokens: SUBAGENT_HEAD_TOKENS,
            block_tokens: BLOCK_TOKENS,
            steps: steps_of,
        };
        steps.insert(
            place + index,
            Step::Spawn {
                pause_s: 0.5,
                agent: Arc::new(agent),
            },
        );
    }
}

fn subagent_turns(random: &mut Random, blocks: &mut Blocks) -> Vec<Step> {
    blocks.filled = 0;
    let mut tokens = SUBAGENT_TOKENS.count(random);
    let (mut kept, mut pause_s) = (0, 0.0);
    let turns = SUBAGENT_TURNS.count(random);
    let turn = |index| {
        let output_tokens = OUTPUT_TOKENS.count(random);
        let ending = if index + 1 < turns {
            Ending::ToolUse
        } else {
            Ending::Other
        };
        let turn = Turn {
            pause_s,
            after: After::End,
            joins: Vec::new(),
            prompt: blocks.prompt(tokens, kept),
            prompt_tokens: tokens,
            output_tokens,
            ending,
        };
        pause_s = SUBAGENT_PAUSE_S.draw(random);
        kept = tokens;
        tokens += output_tokens + SUBAGENT_ADDED_TOKENS.count(random);
        Step::Turn(turn)
    };
    (0..turns).map(turn).collect()
}
