//! The engine without sockets or clock: vLLM's continuous batching, one step at a time (`engine-interface.md` §5.1).
//!
//! [`Engine::step`] decides what the next step computes, says how long it takes, and returns the tokens that exist at
//! its end. The caller owns time: it waits `duration`, then hands the outputs on.

mod blocks;
pub mod profile;
pub mod script;
mod sequence;
pub mod stats;
mod step;
#[cfg(test)]
mod tests;
pub mod tokens;

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

pub use self::sequence::{Asked, Request, SequenceId};
use self::{
    blocks::BlockPool,
    profile::{Profile, Work},
    script::Finish,
    sequence::{Sequence, WaitKey},
    stats::Stats,
    tokens::Token,
};

/// Order of the waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// First come, first served; preempts the last that began to run.
    Fcfs,
    /// Lowest `priority` first, then arrival; preempts the highest, latest.
    Priority,
}

/// What the engine is made of.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Time model.
    pub profile: Profile,
    /// Factor on every duration.
    pub time_scale: f64,
    /// Tokens per block.
    pub block_size: u32,
    /// Blocks of KV cache, the null block included.
    pub blocks: u32,
    /// Step budget, tokens.
    pub max_batched_tokens: u32,
    /// Batch size, sequences.
    pub max_sequences: u32,
    /// Longest prompt plus output, tokens.
    pub max_model_len: u32,
    /// Whether full blocks are kept and found again.
    pub prefix_caching: bool,
    /// Order of the waiting.
    pub policy: Policy,
    /// Most requests running and waiting; `None` = no limit.
    pub max_queued_requests: Option<u32>,
    /// Most prompt tokens waiting; `None` = no limit.
    pub max_queued_tokens: Option<u64>,
}

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// `--max-num-queued-reqs`.
    #[error("too many requests")]
    Requests,
    /// `--max-num-queued-tokens`.
    #[error("too many waiting tokens")]
    Tokens,
    /// The sequence can never fit into the KV cache.
    #[error("sequence is larger than the cache")]
    TooLong,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// Whose.
    pub id: SequenceId,
    /// The token; `None` when the sequence ended without one.
    pub token: Option<Token>,
    /// Present with the last token.
    pub finish: Option<Finish>,
    /// Prompt tokens found in the cache when the sequence first ran.
    pub cached_tokens: usize,
}

/// The result of a step.
#[derive(Debug, Clone)]
pub struct StepResult {
    /// How long the step takes, scaled.
    pub duration: Duration,
    /// What exists at its end: one token for every sequence whose prompt is complete.
    pub outputs: Vec<Output>,
    /// Sequences thrown out of the batch for lack of blocks.
    pub preempted: usize,
    /// What was computed.
    pub work: Work,
}

/// Present state, for gauges.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Sequences in the batch.
    pub running: usize,
    /// Sequences in the queue, preempted ones included.
    pub waiting: usize,
    /// Share of KV blocks referenced, 0 to 1.
    pub kv_usage: f64,
}

/// A simulated engine.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    pool: BlockPool,
    sequences: HashMap<SequenceId, Sequence>,
    running: Vec<SequenceId>,
    waiting: BTreeMap<WaitKey, SequenceId>,
    waiting_tokens: u64,
    arrivals: u64,
    returns: i64,
    slowdown: f64,
    stats: Stats,
}

const LISTED: &str = "running and waiting only list sequences that exist";

impl Engine {
    /// An idle engine with an empty cache.
    pub fn new(settings: Settings) -> Self {
        Self {
            pool: BlockPool::new(settings.blocks, settings.prefix_caching),
            sequences: HashMap::new(),
            running: Vec::new(),
            waiting: BTreeMap::new(),
            waiting_tokens: 0,
            arrivals: 0,
            returns: 0,
            slowdown: 1.0,
            stats: Stats::new(settings.max_model_len),
            settings,
        }
    }

    /// Takes the sequences of one request, all or none.
    ///
    /// # Errors
    /// [`Rejection`] when an admission limit or the cache's size forbids it.
    pub fn submit(&mut self, requests: Vec<Request>, now: Duration) -> Result<(), Rejection> {
        if let Some(rejection) = self.refuses(&requests) {
            match rejection {
                Rejection::Requests => self.stats.rejected_requests += 1,
                Rejection::Tokens => self.stats.rejected_tokens += 1,
                Rejection::TooLong => {}
            }
            return Err(rejection);
        }
        for request in requests {
            self.arrivals += 1;
            let key = match self.settings.policy {
                Policy::Fcfs => (0, self.arrivals as i64),
                Policy::Priority => (request.priority, self.arrivals as i64),
            };
            self.waiting_tokens += request.prompt.len() as u64;
            self.waiting.insert(key, request.id);
            self.sequences
                .insert(request.id, Sequence::new(request, key, self.arrivals, now));
        }
        Ok(())
    }

    fn refuses(&self, requests: &[Request]) -> Option<Rejection> {
        let capacity = self.pool.usable() * self.settings.block_size as usize;
        if requests
            .iter()
            .any(|request| request.prompt.len() + request.script.len() > capacity)
        {
            return Some(Rejection::TooLong);
        }
        let count = self.sequences.len() + requests.len();
        if self
            .settings
            .max_queued_requests
            .is_some_and(|limit| count > limit as usize)
        {
            return Some(Rejection::Requests);
        }
        let tokens: u64 = requests.iter().map(|request| request.prompt.len() as u64).sum();
        let limit = self.settings.max_queued_tokens;
        limit
            .is_some_and(|limit| self.waiting_tokens + tokens > limit)
            .then_some(Rejection::Tokens)
    }

    /// Ends a sequence whose client left; its blocks are free at once. False if it is not here (any more).
    pub fn abort(&mut self, id: SequenceId) -> bool {
        let Some(sequence) = self.sequences.remove(&id) else {
            return false;
        };
        self.pool.release(&sequence.blocks);
        if self.waiting.remove(&sequence.key).is_some() {
            self.waiting_tokens -= sequence.tokens.len() as u64;
        } else {
            self.running.retain(|other| *other != id);
        }
        true
    }

    /// Ends everything with [`Finish::Abort`].
    pub fn abort_all(&mut self) -> Vec<Output> {
        let mut outputs: Vec<Output> = self
            .sequences
            .values()
            .map(|sequence| Output {
                id: sequence.request.id,
                token: None,
                finish: Some(Finish::Abort),
                cached_tokens: sequence.cached.unwrap_or(0),
            })
            .collect();
        outputs.sort_unstable_by_key(|output| output.id);
        for output in &outputs {
            self.abort(output.id);
        }
        self.stats.finished_abort += outputs.len() as u64;
        outputs
    }

    /// Sends everything that runs back to the queue; its KV is recomputed.
    pub fn preempt_all(&mut self) {
        while let Some(id) = self.running.last().copied() {
            self.preempt(id);
        }
    }

    /// Forgets all cached blocks; refused (false) while any is in use.
    pub fn reset_prefix_cache(&mut self) -> bool {
        self.pool.reset()
    }

    /// Multiplies the duration of steps from now on.
    pub fn set_slowdown(&mut self, factor: f64) {
        self.slowdown = factor;
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Present state.
    pub fn load(&self) -> Load {
        Load {
            running: self.running.len(),
            waiting: self.waiting.len(),
            kv_usage: self.pool.usage(),
        }
    }

    /// Totals so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What it is made of.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn sequence(&self, id: SequenceId) -> &Sequence {
        self.sequences.get(&id).expect(LISTED)
    }

    #[cfg(test)]
    fn assert_consistent(&self) {
        self.pool
            .assert_consistent(self.sequences.values().flat_map(|s| s.blocks.iter().copied()));
        assert_eq!(self.sequences.len(), self.running.len() + self.waiting.len());
        let waiting: u64 = self
            .waiting
            .values()
            .map(|id| self.sequence(*id).tokens.len() as u64)
            .sum();
        assert_eq!(waiting, self.waiting_tokens);
        assert!(self.running.len() <= self.settings.max_sequences as usize);
    }
}
