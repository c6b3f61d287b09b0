//! The engine's clock: one task owns the [`Engine`], waits out each step, and hands tokens to the requests.

mod task;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

pub(crate) use self::task::run;
use crate::{
    engine::{Load, Rejection, Request, script::Finish, stats::Stats, tokens::Token},
    ledger::Entry,
};

/// What a request's handler hears.
#[derive(Debug)]
pub(crate) enum Event {
    /// The engine took it; a stream's head may go out.
    Admitted,
    /// One choice went on or ended.
    Output {
        choice: u32,
        token: Option<Token>,
        finish: Option<Finish>,
        cached_tokens: usize,
    },
    /// It is over.
    Failed(Failure),
}

/// Why a request got no (further) answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    Rejected(Rejection),
    /// SIGTERM came and a drain is under way.
    Draining,
    /// The engine process is dead.
    Dead,
}

/// A request on its way into the engine.
pub(crate) struct Submission {
    pub(crate) job: u64,
    pub(crate) requests: Vec<Request>,
    pub(crate) events: mpsc::UnboundedSender<Event>,
    pub(crate) entry: Entry,
}

/// How requests in flight are treated before a sleep or pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PauseMode {
    /// They end with finish reason `abort`.
    Abort,
    /// They finish first.
    Wait,
    /// They stay, and go on after the resume.
    Keep,
}

/// A rest: paused, or asleep at a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rest {
    /// 0 = scheduling stopped only, 1 = weights in host memory, 2 = weights dropped; levels above 0 drop the cache.
    pub(crate) level: u8,
    pub(crate) mode: PauseMode,
    pub(crate) clear_cache: bool,
}

/// State for `/metrics` and the control endpoints.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) stats: Stats,
    pub(crate) load: Load,
    /// Level of the present rest; `None` = awake.
    pub(crate) rest: Option<u8>,
}

pub(crate) enum Command {
    Submit(Box<Submission>),
    /// The client of a request left.
    Abort(u64),
    /// End requests by their answer's id (without `chatcmpl-`), all when empty; says how many.
    Cancel(Vec<String>, oneshot::Sender<usize>),
    Rest(Rest, oneshot::Sender<()>),
    Resume(oneshot::Sender<()>),
    ResetCache(oneshot::Sender<bool>),
    View(oneshot::Sender<Box<View>>),
    Hang(bool),
    Slow(f64),
    /// The engine process dies and says so.
    Crash,
    /// The engine process dies unseen: nobody hears anything again.
    Silence,
}

/// Reaches the engine's task. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    jobs: Arc<AtomicU64>,
    clock: Clock,
    live: watch::Receiver<usize>,
}

/// The only reader of clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    epoch: Instant,
    unix_epoch: Duration,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the shell's one clock")]
    pub(crate) fn start() -> Self {
        let unix_epoch = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            epoch: Instant::now(),
            unix_epoch,
        }
    }

    /// Time since the engine's start.
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// The same instant for timers.
    pub(crate) fn instant(&self, at: Duration) -> Instant {
        self.epoch + at
    }

    /// Milliseconds since 1970 at `at`.
    pub(crate) fn unix_ms(&self, at: Duration) -> u64 {
        u64::try_from((self.unix_epoch + at).as_millis()).unwrap_or(u64::MAX)
    }
}

impl Handle {
    /// A number no other request has.
    pub(crate) fn next_job(&self) -> u64 {
        self.jobs.fetch_add(1, Relaxed)
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// Requests in the engine, as a channel.
    pub(crate) fn live(&self) -> watch::Receiver<usize> {
        self.live.clone()
    }

    /// Orders something; an engine whose task is gone obeys nothing.
    pub(crate) fn send(&self, command: Command) {
        drop(self.commands.send(command));
    }

    /// Orders something and waits for the answer; `None` when the engine's task is gone.
    pub(crate) async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply));
        answer.await.ok()
    }
}
