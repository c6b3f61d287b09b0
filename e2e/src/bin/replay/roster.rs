//! Which sessions are played, in which order.

use std::path::Path;

use crate::args::{Arrivals, Config, TraceSource};
use crate::random::{Random, nth, seed_of};
use crate::trace::{self, Format, Generator, Limits, Session, Trace, TraceError};

/// Sessions of the generator when nothing is said.
const BUILTIN_SESSIONS: usize = 20;
/// Of the generator's sessions, so many may be over the limits for each that is not.
const BUILTIN_TRIES: usize = 200;

/// Why there is nothing to play.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RosterError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("no session is left: every first prompt is over --max-prompt-tokens (see --prompt-scale)")]
    NothingFits,
    #[error(
        "--trace-arrivals needs a trace with absolute times; this one has none (use --rate or --concurrency)"
    )]
    NoTimes,
}

/// A session about to be played.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) session: Session,
    /// Unique in this replay.
    pub(crate) label: String,
    /// Of its prompts' text.
    pub(crate) seed: u64,
}

/// The sessions of a replay. The order and the text follow from the seed alone.
#[derive(Debug)]
pub(crate) struct Roster {
    sessions: Sessions,
    order: Vec<usize>,
    count: usize,
    limits: Limits,
    seed: u64,
}

#[derive(Debug)]
enum Sessions {
    Trace(Trace),
    Builtin(Generator),
}

impl Roster {
    /// # Errors
    /// When the trace cannot be read or no session fits the limits.
    pub(crate) fn new(config: &Config) -> Result<Self, RosterError> {
        let limits = Limits {
            turns: config.max_turns,
            // The most tokens of the trace that make no more words than asked for.
            prompt_tokens: config.max_prompt_tokens.map_or(u64::MAX, |words| {
                (((words + 1) as f64 / config.style.prompt_scale).ceil() as u64).saturating_sub(1)
            }),
        };
        let (sessions, mut order) = match &config.trace {
            TraceSource::File(path) => from_file(path, limits)?,
            TraceSource::Builtin => from_generator(config, limits),
        };
        if order.is_empty() {
            return Err(RosterError::NothingFits);
        }
        let by_time = config.arrivals == Arrivals::Traced;
        match &sessions {
            Sessions::Trace(trace) if by_time => {
                let time = |index: &usize| trace.sessions[*index].arrival_s;
                if order.iter().any(|index| time(index).is_none()) {
                    return Err(RosterError::NoTimes);
                }
                order.sort_by(|one, other| {
                    time(one)
                        .partial_cmp(&time(other))
                        .unwrap_or(std::cmp::Ordering::Equal)
                });
            }
            Sessions::Builtin(_) if by_time => return Err(RosterError::NoTimes),
            Sessions::Trace(trace) if trace.format != Format::Mooncake => {
                Random::new(seed_of(config.seed, "order")).shuffle(&mut order);
            }
            // Requests that share prefixes stand near each other in time, and a generator has no order to lose.
            Sessions::Trace(_) | Sessions::Builtin(_) => {}
        }
        let asked = config.sessions.unwrap_or(order.len());
        let count = if by_time { asked.min(order.len()) } else { asked };
        Ok(Self {
            sessions,
            order,
            count,
            limits,
            seed: config.seed,
        })
    }

    /// How many sessions are to be played.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// How many different ones there are; `None` for the generator, which has no end.
    pub(crate) fn available(&self) -> Option<usize> {
        match &self.sessions {
            Sessions::Trace(trace) => Some(trace.sessions.len()),
            Sessions::Builtin(_) => None,
        }
    }

    /// The trace's file name, or `builtin`.
    pub(crate) fn name(&self) -> &str {
        match &self.sessions {
            Sessions::Trace(trace) => &trace.name,
            Sessions::Builtin(_) => "builtin",
        }
    }

    /// What was played, for the summary.
    pub(crate) fn source(&self) -> String {
        match &self.sessions {
            Sessions::Trace(trace) => trace.format.to_string(),
            Sessions::Builtin(_) => {
                "builtin generator with the published statistics of Claude Code sessions (callanjfox/kv-cache-tester)"
                    .to_owned()
            }
        }
    }

    /// The `number`-th session to play.
    pub(crate) fn entry(&self, number: usize) -> Entry {
        let (round, place) = (number / self.order.len(), number % self.order.len());
        let index = self.order[place];
        let session = match &self.sessions {
            Sessions::Trace(trace) => trace.sessions[index].clone(),
            Sessions::Builtin(generator) => limited(generator.session(index), self.limits),
        };
        let mut label = trace::plain_id(&session.id);
        if round > 0 {
            label.push_str(&format!(".r{round}"));
        }
        let round_seed = nth(self.seed, round as u64);
        let seed = if session.shared_blocks {
            round_seed
        } else {
            seed_of(round_seed, &session.id)
        };
        Entry { session, label, seed }
    }
}

fn limited(mut session: Session, limits: Limits) -> Session {
    session.limit(limits);
    session
}

fn from_file(path: &Path, limits: Limits) -> Result<(Sessions, Vec<usize>), TraceError> {
    let mut trace = trace::load(path)?;
    for session in &mut trace.sessions {
        session.limit(limits);
    }
    let order = (0..trace.sessions.len())
        .filter(|index| trace.sessions[*index].turns() > 0)
        .collect();
    Ok((Sessions::Trace(trace), order))
}

fn from_generator(config: &Config, limits: Limits) -> (Sessions, Vec<usize>) {
    let generator = Generator::new(config.seed);
    let wanted = config.sessions.unwrap_or(BUILTIN_SESSIONS);
    let order = (0..wanted.saturating_mul(BUILTIN_TRIES))
        .filter(|index| limited(generator.session(*index), limits).turns() > 0)
        .take(wanted)
        .collect();
    (Sessions::Builtin(generator), order)
}
