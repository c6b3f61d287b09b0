//! The engine without sockets or clock: vLLM's continuous batching, one step at a time (`engine-interface.md` §5.1).
//!
//! [`Engine::step`] decides what the next step computes, says how long it takes, and returns the tokens that exist at
//! its end. The caller owns time: it waits `duration`, then hands the outputs on.

mod blocks;
pub mod profile;
pub mod script;
mod sequence;
pub mod stats;
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

/// What a step under construction has scheduled.
struct Plan {
    budget: usize,
    scheduled: Vec<(SequenceId, usize)>,
    preempted: usize,
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

    /// Schedules and computes one step that begins at `now`; `None` when there is nothing to run.
    pub fn step(&mut self, now: Duration) -> Option<StepResult> {
        let budget = self.settings.max_batched_tokens.max(1) as usize;
        let mut plan = Plan {
            budget,
            scheduled: Vec::with_capacity(self.running.len()),
            preempted: 0,
        };
        self.schedule_running(&mut plan);
        if plan.preempted == 0 {
            self.schedule_waiting(&mut plan, now);
        }
        self.stats.num_preemptions += plan.preempted as u64;
        if plan.scheduled.is_empty() {
            return None;
        }
        let work = self.compute(&plan);
        let time = self.settings.profile.step_time(work);
        let duration = time.mul_f64(self.settings.time_scale * self.slowdown);
        let outputs = self.emit(&plan, now + duration);
        self.stats.iteration_tokens.observe(work.tokens as f64);
        Some(StepResult {
            duration,
            outputs,
            preempted: plan.preempted,
            work,
        })
    }

    /// Running sequences first, each its next tokens; preempts when blocks run out.
    fn schedule_running(&mut self, plan: &mut Plan) {
        let mut index = 0;
        while index < self.running.len() && plan.budget > 0 {
            let id = self.running[index];
            let wanted = self.sequence(id).pending().min(plan.budget);
            while !self.grow(id, wanted) {
                let victim = self.victim().unwrap_or(id);
                if let Some(at) = plan.scheduled.iter().position(|(other, _)| *other == victim) {
                    plan.budget += plan.scheduled.remove(at).1;
                    index -= 1;
                }
                self.preempt(victim);
                plan.preempted += 1;
                if victim == id {
                    return;
                }
            }
            plan.budget -= wanted;
            plan.scheduled.push((id, wanted));
            index += 1;
        }
    }

    /// Waiting sequences while all blocks of the first one's prompt fit; the first that does not fit stops the rest.
    fn schedule_waiting(&mut self, plan: &mut Plan, now: Duration) {
        let block_size = self.settings.block_size as usize;
        while plan.budget > 0 && self.running.len() < self.settings.max_sequences as usize {
            let Some((&key, &id)) = self.waiting.first_key_value() else {
                return;
            };
            let sequence = self.sequences.get_mut(&id).expect(LISTED);
            let length = sequence.tokens.len();
            let hit = self.pool.lookup(sequence.lookup_hashes(block_size));
            let needed = length.div_ceil(block_size) - hit.len();
            if needed + self.pool.unreferenced(&hit) > self.pool.free() {
                return;
            }
            self.waiting.remove(&key);
            self.waiting_tokens -= length as u64;
            self.pool.reference(&hit);
            sequence.start_from(hit, block_size);
            if sequence.scheduled.is_none() {
                sequence.scheduled = Some(now);
                sequence.cached = Some(sequence.computed);
                self.stats.prefix_cache_queries += length as u64;
                self.stats.prefix_cache_hits += sequence.computed as u64;
            }
            let wanted = sequence.pending().min(plan.budget);
            self.running.push(id);
            let fits = self.grow(id, wanted);
            debug_assert!(fits, "the whole prompt was found to fit");
            plan.budget -= wanted;
            plan.scheduled.push((id, wanted));
        }
    }

    /// Gives a sequence the blocks for `tokens` more, and makes the blocks they fill findable.
    fn grow(&mut self, id: SequenceId, tokens: usize) -> bool {
        let block_size = self.settings.block_size as usize;
        let sequence = self.sequences.get_mut(&id).expect(LISTED);
        let computed = sequence.computed + tokens;
        let missing = computed
            .div_ceil(block_size)
            .saturating_sub(sequence.blocks.len());
        if !self.pool.allocate(missing, &mut sequence.blocks) {
            return false;
        }
        for (block, hash) in sequence.newly_full(computed, block_size) {
            self.pool.register(block, hash);
        }
        true
    }

    /// Who leaves the batch next.
    fn victim(&self) -> Option<SequenceId> {
        match self.settings.policy {
            Policy::Fcfs => self.running.last().copied(),
            Policy::Priority => self.running.iter().copied().max_by_key(|id| {
                let sequence = self.sequence(*id);
                (sequence.request.priority, sequence.arrival)
            }),
        }
    }

    fn preempt(&mut self, id: SequenceId) {
        self.running.retain(|other| *other != id);
        self.returns -= 1;
        let front = self.returns;
        let sequence = self.sequences.get_mut(&id).expect(LISTED);
        self.pool.release(&sequence.forget());
        sequence.preemptions += 1;
        if self.settings.policy == Policy::Fcfs {
            sequence.key = (0, front);
        }
        self.waiting_tokens += sequence.tokens.len() as u64;
        self.waiting.insert(sequence.key, id);
    }

    fn compute(&mut self, plan: &Plan) -> Work {
        let mut work = Work {
            sequences: plan.scheduled.len(),
            ..Work::default()
        };
        for &(id, tokens) in &plan.scheduled {
            let sequence = self.sequences.get_mut(&id).expect(LISTED);
            let decode = sequence.produced() > 0 && sequence.pending() == 1;
            sequence.computed += tokens;
            work.tokens += tokens;
            work.prefill_tokens += if decode { 0 } else { tokens };
            work.context_tokens += sequence.computed;
        }
        work
    }

    /// One token for each sequence that is computed to its end; finished ones leave.
    fn emit(&mut self, plan: &Plan, end: Duration) -> Vec<Output> {
        let mut outputs = Vec::with_capacity(plan.scheduled.len());
        let mut ended = false;
        for &(id, _) in &plan.scheduled {
            let sequence = self.sequences.get_mut(&id).expect(LISTED);
            if sequence.pending() > 0 {
                continue;
            }
            let script = &sequence.request.script;
            let token = script.token(sequence.produced());
            sequence.tokens.push(token);
            let finish = (sequence.produced() >= script.len()).then(|| script.finish());
            let cached_tokens = sequence.cached.unwrap_or(0);
            count_token(&mut self.stats, sequence, end);
            outputs.push(Output {
                id,
                token: Some(token),
                finish,
                cached_tokens,
            });
            if let Some(finish) = finish {
                count_finish(&mut self.stats, sequence, finish);
                self.pool.release(&sequence.blocks);
                self.sequences.remove(&id);
                ended = true;
            }
        }
        if ended {
            let sequences = &self.sequences;
            self.running.retain(|id| sequences.contains_key(id));
        }
        outputs
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

fn count_token(stats: &mut Stats, sequence: &mut Sequence, end: Duration) {
    stats.generation_tokens += 1;
    if sequence.first_token.is_none() {
        sequence.first_token = Some(end);
        stats.prompt_tokens += sequence.prompt_len as u64;
        stats.prompt_tokens_cached += sequence.cached.unwrap_or(0) as u64;
        stats
            .time_to_first_token
            .observe_time(end.saturating_sub(sequence.request.arrived));
    } else {
        stats
            .inter_token_latency
            .observe_time(end.saturating_sub(sequence.last_token));
    }
    sequence.last_token = end;
}

fn count_finish(stats: &mut Stats, sequence: &Sequence, finish: Finish) {
    match finish {
        Finish::Stop => stats.finished_stop += 1,
        Finish::Length => stats.finished_length += 1,
        Finish::Abort => stats.finished_abort += 1,
    }
    let end = sequence.last_token;
    let scheduled = sequence.scheduled.unwrap_or(end);
    let first = sequence.first_token.unwrap_or(end);
    let (prompt, output) = (sequence.prompt_len, sequence.produced());
    let decode = end.saturating_sub(first);
    stats
        .e2e_request_latency
        .observe_time(end.saturating_sub(sequence.request.arrived));
    stats
        .request_queue_time
        .observe_time(scheduled.saturating_sub(sequence.queued));
    stats
        .request_prefill_time
        .observe_time(first.saturating_sub(scheduled));
    stats.request_decode_time.observe_time(decode);
    stats
        .request_inference_time
        .observe_time(end.saturating_sub(scheduled));
    stats
        .time_per_output_token
        .observe(decode.as_secs_f64() / output.saturating_sub(1).max(1) as f64);
    stats.request_prompt_tokens.observe(prompt as f64);
    stats.request_generation_tokens.observe(output as f64);
    stats.request_max_num_generation_tokens.observe(output as f64);
    stats
        .request_params_max_tokens
        .observe(f64::from(sequence.request.asked.max_tokens));
    stats
        .request_params_n
        .observe(f64::from(sequence.request.asked.choices));
    stats
        .request_prefill_kv_computed_tokens
        .observe((prompt - sequence.cached.unwrap_or(0)) as f64);
    stats
        .request_num_preemptions
        .observe(f64::from(sequence.preemptions));
}
