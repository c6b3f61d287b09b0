//! The task behind [`Handle`](super::Handle).

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep_until,
};

use super::{Clock, Command, Event, Failure, Handle, PauseMode, Rest, Submission, View};
use crate::{
    engine::{Engine, Output, SequenceId, Settings, StepResult, script::Finish},
    ledger::{End, Ledger, Outcome},
};

/// A task that woke up late lets the engine catch up at most so much: a real one does not run faster afterwards.
const MAX_LAG: Duration = Duration::from_millis(100);
/// Commands obeyed between two steps when the engine is behind.
const BURST: usize = 256;

/// A request in the engine.
struct Job {
    events: mpsc::UnboundedSender<Event>,
    request_id: String,
    ledger: u64,
    choices: u32,
    open: u32,
    end: End,
}

struct Task {
    engine: Engine,
    clock: Clock,
    ledger: Ledger,
    jobs: HashMap<u64, Job>,
    live: watch::Sender<usize>,
    /// The step under way and when it ends.
    step: Option<(Duration, StepResult)>,
    /// End of the last step when the next follows without a pause.
    last_end: Option<Duration>,
    rest: Option<u8>,
    /// A rest that waits for requests in flight; later ones are kept outside.
    resting: Option<(Rest, oneshot::Sender<()>)>,
    outside: Vec<Submission>,
    hung: bool,
    dead: bool,
    silent: bool,
}

/// Makes an engine: the handle, and the future that runs it until all handles are gone.
pub(crate) fn run(
    settings: Settings,
    clock: Clock,
    ledger: Ledger,
) -> (Handle, impl Future<Output = ()> + Send + 'static) {
    let (commands, received) = mpsc::unbounded_channel();
    let (live, live_view) = watch::channel(0);
    let handle = Handle {
        commands,
        jobs: Arc::default(),
        clock,
        live: live_view,
    };
    let task = Task {
        engine: Engine::new(settings),
        clock,
        ledger,
        jobs: HashMap::new(),
        live,
        step: None,
        last_end: None,
        rest: None,
        resting: None,
        outside: Vec::new(),
        hung: false,
        dead: false,
        silent: false,
    };
    (handle, task.run(received))
}

impl Task {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            self.begin_step();
            let due = self
                .step
                .as_ref()
                .map(|(end, _)| *end)
                .filter(|_| !self.hung && !self.silent);
            if due.is_some_and(|due| due <= self.clock.now()) {
                self.end_step();
                for _ in 0..BURST {
                    let Ok(command) = commands.try_recv() else { break };
                    self.obey(command);
                }
                tokio::task::yield_now().await;
                continue;
            }
            let timer = self.clock.instant(due.unwrap_or_default());
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                () = sleep_until(timer), if due.is_some() => {}
            }
        }
    }

    fn begin_step(&mut self) {
        // A hung engine begins a step, as a hung GPU does; it never ends.
        if self.step.is_some() || self.rest.is_some() || self.dead || self.silent {
            return;
        }
        let now = self.clock.now();
        let start = self
            .last_end
            .take()
            .filter(|end| *end + MAX_LAG > now)
            .unwrap_or(now);
        self.step = self.engine.step(start).map(|step| (start + step.duration, step));
    }

    fn end_step(&mut self) {
        let Some((end, step)) = self.step.take() else {
            return;
        };
        self.last_end = Some(end);
        self.hand_out(&step.outputs, end);
        self.rest_if_drained();
    }

    fn hand_out(&mut self, outputs: &[Output], at: Duration) {
        for output in outputs {
            let Some(job) = self.jobs.get_mut(&output.id.job) else {
                continue;
            };
            if output.token.is_some() {
                if job.end.output_tokens == 0 {
                    job.end.cached_tokens = output.cached_tokens as u64;
                    self.ledger
                        .first_token(job.ledger, job.end.cached_tokens, self.clock.unix_ms(at));
                }
                job.end.output_tokens += 1;
            }
            drop(job.events.send(Event::Output {
                choice: output.id.choice,
                token: output.token,
                finish: output.finish,
                cached_tokens: output.cached_tokens,
            }));
            if let Some(finish) = output.finish {
                job.open -= 1;
                if finish == Finish::Abort {
                    job.end.outcome = Outcome::Cancelled;
                }
                if job.open == 0 {
                    self.forget(output.id.job, None, at);
                }
            }
        }
    }

    /// Takes a job off the books; `outcome` overrides what its choices say.
    fn forget(&mut self, job: u64, outcome: Option<Outcome>, at: Duration) -> Option<Job> {
        let mut job = self.jobs.remove(&job)?;
        job.end.at_ms = self.clock.unix_ms(at);
        job.end.outcome = outcome.unwrap_or(job.end.outcome);
        self.ledger.close(job.ledger, &job.end);
        self.live.send_replace(self.jobs.len());
        Some(job)
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.submit(*submission),
            Command::Abort(job) => self.abort(job),
            Command::Cancel(ids, reply) => drop(reply.send(self.cancel(&ids))),
            Command::Rest(rest, reply) => self.begin_rest(rest, reply),
            Command::Resume(reply) => {
                self.rest = None;
                for submission in std::mem::take(&mut self.outside) {
                    self.submit(submission);
                }
                let _ = reply.send(());
            }
            Command::ResetCache(reply) => drop(reply.send(self.engine.reset_prefix_cache())),
            Command::View(reply) => {
                let (stats, load) = (self.engine.stats().clone(), self.engine.load());
                drop(reply.send(Box::new(View {
                    stats,
                    load,
                    rest: self.rest,
                })));
            }
            Command::Hang(hung) => self.hung = hung,
            Command::Slow(factor) => self.engine.set_slowdown(factor),
            Command::Crash => self.crash(),
            Command::Silence => self.silent = true,
        }
    }

    fn submit(&mut self, submission: Submission) {
        if self.resting.is_some() {
            self.outside.push(submission);
            return;
        }
        let Submission {
            job,
            requests,
            events,
            mut entry,
        } = submission;
        let now = self.clock.now();
        let choices = requests.len() as u32;
        let taken = if self.dead {
            Err(Failure::Dead)
        } else {
            self.engine.submit(requests, now).map_err(Failure::Rejected)
        };
        if let Err(failure) = taken {
            entry.outcome = Outcome::Rejected;
            entry.ended_ms = Some(self.clock.unix_ms(now));
            self.ledger.open(entry);
            drop(events.send(Event::Failed(failure)));
            return;
        }
        let end = End {
            outcome: Outcome::Finished,
            prompt_tokens: entry.prompt_tokens,
            cached_tokens: 0,
            output_tokens: 0,
            at_ms: 0,
        };
        let request_id = entry.request_id.clone();
        let ledger = self.ledger.open(entry);
        drop(events.send(Event::Admitted));
        self.jobs.insert(
            job,
            Job {
                events,
                request_id,
                ledger,
                choices,
                open: choices,
                end,
            },
        );
        self.live.send_replace(self.jobs.len());
    }

    fn abort(&mut self, job: u64) {
        self.outside.retain(|submission| submission.job != job);
        if let Some(gone) = self.forget(job, Some(Outcome::Aborted), self.clock.now()) {
            for choice in 0..gone.choices {
                self.engine.abort(SequenceId { job, choice });
            }
            self.rest_if_drained();
        }
    }

    fn cancel(&mut self, ids: &[String]) -> usize {
        let named = |job: &Job| {
            ids.is_empty()
                || ids
                    .iter()
                    .any(|id| job.request_id == *id || job.request_id.ends_with(&format!("-{id}")))
        };
        let mut jobs: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(_, job)| named(job))
            .map(|(id, _)| *id)
            .collect();
        jobs.sort_unstable();
        for job in &jobs {
            let choices = self.jobs.get(job).map_or(0, |job| job.choices);
            let outputs: Vec<Output> = (0..choices)
                .map(|choice| SequenceId { job: *job, choice })
                .filter(|id| self.engine.abort(*id))
                .map(|id| Output {
                    id,
                    token: None,
                    finish: Some(Finish::Abort),
                    cached_tokens: 0,
                })
                .collect();
            self.hand_out(&outputs, self.clock.now());
        }
        jobs.len()
    }

    fn begin_rest(&mut self, rest: Rest, reply: oneshot::Sender<()>) {
        match rest.mode {
            PauseMode::Abort => {
                // The step under way ends now: sequences that finish with it are gone from the engine already.
                self.end_step();
                let outputs = self.engine.abort_all();
                self.hand_out(&outputs, self.clock.now());
            }
            PauseMode::Wait if !self.jobs.is_empty() => {
                self.resting = Some((rest, reply));
                return;
            }
            PauseMode::Wait => {}
            PauseMode::Keep if rest.level > 0 => self.engine.preempt_all(),
            PauseMode::Keep => {}
        }
        self.lie_down(rest);
        let _ = reply.send(());
    }

    fn rest_if_drained(&mut self) {
        if self.jobs.is_empty()
            && let Some((rest, reply)) = self.resting.take()
        {
            self.lie_down(rest);
            let _ = reply.send(());
            for submission in std::mem::take(&mut self.outside) {
                self.submit(submission);
            }
        }
    }

    fn lie_down(&mut self, rest: Rest) {
        self.rest = Some(rest.level);
        if rest.level > 0 || rest.clear_cache {
            self.engine.reset_prefix_cache();
        }
    }

    fn crash(&mut self) {
        self.dead = true;
        self.step = None;
        self.engine.abort_all();
        let now = self.clock.now();
        let mut jobs: Vec<u64> = self.jobs.keys().copied().collect();
        jobs.sort_unstable();
        for job in jobs {
            if let Some(job) = self.forget(job, Some(Outcome::Failed), now) {
                drop(job.events.send(Event::Failed(Failure::Dead)));
            }
        }
    }
}
