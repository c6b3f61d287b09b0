//! Made-up coding-agent sessions with the statistics of published ones, for machines without traces.
//!
//! The figures are those of the Claude Code sessions in GitHub `callanjfox/kv-cache-tester`: pause after a tool call
//! with median 8.6 s and 12 % over 60 s, after the end of a turn with median 210 s; prompts of 122,000 tokens on
//! average, 96 % of them in the session's earlier blocks; answers of 440 tokens; sub-agents that start from about 10,000
//! tokens of their own. Log-normals are fitted to a median and one quantile; the constants say which.
//! How many sessions have sub-agents is *not* theirs: theirs are rare (3 %), and a short run should show some.

use std::sync::Arc;

use super::weka::give_tails;
use super::{After, Agent, Ending, MAIN, Prompt, Run, Session, Step, Turn};
use crate::random::{Random, nth};

const BLOCK_TOKENS: u64 = 64;

/// Turns of a main agent: median 46, 90th percentile 179.
const TURNS: LogNormal = LogNormal::new(46.0, 1.06, 3.0, 450.0);
/// Tools and system prompt: quartiles 12.7k, 15.0k, 15.5k.
const HEAD_TOKENS: LogNormal = LogNormal::new(15_000.0, 0.12, 8_000.0, 24_000.0);
/// First prompt of a session that starts new, beyond its head: half of all first prompts have under 27k in total.
const FRESH_TOKENS: LogNormal = LogNormal::new(8_000.0, 0.9, 200.0, 60_000.0);
/// First prompt of a session that takes up an old context: 75th percentile of all 104k, 90th 260k.
const RESUMED_TOKENS: LogNormal = LogNormal::new(160_000.0, 0.65, 40_000.0, 600_000.0);
const RESUMED_SHARE: f64 = 0.35;
/// What a turn adds besides the last answer (tool results, files, questions): median 281, 90th percentile 2,842.
const ADDED_TOKENS: LogNormal = LogNormal::new(281.0, 1.8, 8.0, 60_000.0);
/// Answers: median 217, mean 440.
const OUTPUT_TOKENS: LogNormal = LogNormal::new(217.0, 1.19, 1.0, 16_000.0);
/// Median 8.6 s; 12 % over 60 s gives sigma = ln(60 / 8.6) / 1.175.
const TOOL_PAUSE_S: LogNormal = LogNormal::new(8.6, 1.653, 0.2, 40_000.0);
/// Median 210 s, 75th percentile 1,050 s.
const USER_PAUSE_S: LogNormal = LogNormal::new(210.0, 2.2, 1.0, 80_000.0);
const TOOL_USE_SHARE: f64 = 0.945;
/// A prompt over this is summarised. Theirs happen at 150k tokens at the median, but some contexts hold a million and are
/// never summarised; one distribution stands for both, wide enough to give the average prompt.
const COMPACTION_TOKENS: LogNormal = LogNormal::new(230_000.0, 0.5, 80_000.0, 900_000.0);
/// Prompt after a compaction, and the share of it that is still the old prefix.
const COMPACTED_TOKENS: LogNormal = LogNormal::new(34_000.0, 0.5, 16_000.0, 100_000.0);
const COMPACTED_KEPT: f64 = 0.39;

/// Turns whose client has rewritten its context early on (1.5 %), and the share of the last prompt they keep: quartiles
/// 6 %, 13 %, 25 %.
const REWRITTEN_SHARE: f64 = 0.015;
const REWRITTEN_KEPT: LogNormal = LogNormal::new(0.13, 1.05, 0.01, 0.95);

/// Ours, see above.
const SESSIONS_WITH_SUBAGENTS: f64 = 0.1;
const SUBAGENT_TURNS: LogNormal = LogNormal::new(10.0, 0.4, 2.0, 24.0);
const SUBAGENT_TOKENS: LogNormal = LogNormal::new(10_400.0, 0.2, 8_000.0, 18_000.0);
/// Tools and system prompt of a sub-agent.
const SUBAGENT_HEAD_TOKENS: u64 = 7_500;
const SUBAGENT_ADDED_TOKENS: LogNormal = LogNormal::new(900.0, 1.0, 8.0, 20_000.0);
const SUBAGENT_PAUSE_S: LogNormal = LogNormal::new(3.0, 0.5, 0.2, 60.0);
/// The parent of the rest goes on before its sub-agent has ended.
const SUBAGENT_JOINED: f64 = 0.2;

struct LogNormal {
    median: f64,
    sigma: f64,
    least: f64,
    most: f64,
}

impl LogNormal {
    /// Draws are clamped to `least..=most`.
    const fn new(median: f64, sigma: f64, least: f64, most: f64) -> Self {
        Self {
            median,
            sigma,
            least,
            most,
        }
    }

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
        let head_tokens = HEAD_TOKENS.count(&mut random);
        let mut steps = main_turns(&mut random, &mut blocks, head_tokens);
        if random.chance(SESSIONS_WITH_SUBAGENTS) {
            add_subagents(&mut random, &mut blocks, &mut steps);
        }
        give_tails(&mut steps);
        let agent = Agent {
            id: MAIN.to_owned(),
            head_tokens,
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

fn main_turns(random: &mut Random, blocks: &mut Blocks, head_tokens: u64) -> Vec<Step> {
    let resumed = random.chance(RESUMED_SHARE);
    let first = if resumed { RESUMED_TOKENS } else { FRESH_TOKENS };
    let mut tokens = head_tokens + first.count(random);
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
        } else if random.chance(REWRITTEN_SHARE) {
            kept = (kept as f64 * REWRITTEN_KEPT.draw(random)) as u64;
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
