//! One step of continuous batching: who runs, who waits, who is thrown out, and what it costs.

use std::time::Duration;

use super::{
    Engine, LISTED, Output, Policy, StepResult,
    profile::Work,
    script::Finish,
    sequence::{Sequence, SequenceId},
    stats::Stats,
};

/// What a step under construction has scheduled.
struct Plan {
    budget: usize,
    scheduled: Vec<(SequenceId, usize)>,
    preempted: usize,
}

impl Engine {
    /// Schedules and computes one step that begins at `now`; `None` when there is nothing to run.
    pub fn step(&mut self, now: Duration) -> Option<StepResult> {
        let plan = self.schedule(now);
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

    /// Decides what runs. The first of the running may have to throw itself out, which leaves an empty step; such
    /// steps take no time, so the next one is decided at once. Each throws somebody out, so this ends.
    fn schedule(&mut self, now: Duration) -> Plan {
        let budget = self.settings.max_batched_tokens.max(1) as usize;
        let mut preempted = 0;
        loop {
            let mut plan = Plan {
                budget,
                scheduled: Vec::with_capacity(self.running.len()),
                preempted: 0,
            };
            self.schedule_running(&mut plan);
            let stuck = plan.scheduled.is_empty() && plan.preempted > 0;
            if plan.preempted == 0 {
                self.schedule_waiting(&mut plan, now);
            }
            preempted += plan.preempted;
            if !stuck {
                plan.preempted = preempted;
                return plan;
            }
        }
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

    pub(super) fn preempt(&mut self, id: SequenceId) {
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
