//! Plays sessions: turns in order, sub-agents beside their parents, pauses kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weir_wire::headers;

use crate::args::{Arrivals, Style};
use crate::body::{Ask, ChatBody, ToolChoice};
use crate::children::{Children, propagate};
use crate::client::{Seen, Target};
use crate::clock::{self, ms_between};
use crate::conversation::{Conversation, Messages};
use crate::random::{Random, seed_of};
use crate::record::{Fault, MAX_MESSAGE_CHARS, Outcome, Record};
use crate::roster::{Entry, Roster};
use crate::trace::{After, Agent, Ending, Step, Turn};

/// Wait after a 429 that does not say how long.
const DEFAULT_RETRY: Duration = Duration::from_secs(1);

/// What the report hears.
#[derive(Debug)]
pub(crate) enum Event {
    SessionStarted,
    SessionEnded,
    Sent,
    Ended(Box<Record>),
}

/// All that playing needs.
#[derive(Debug)]
pub(crate) struct Player {
    pub(crate) target: Target,
    pub(crate) style: Style,
    pub(crate) roster: Roster,
    pub(crate) events: mpsc::Sender<Event>,
    /// Ends everything: pauses at once, requests as cancelled.
    pub(crate) stop: CancellationToken,
    pub(crate) started: Instant,
}

/// Who a request is from.
#[derive(Debug)]
struct Caller {
    session: String,
    workflow: String,
    agent: String,
    /// The request of the parent's that started this agent.
    parent_request: Option<String>,
}

/// Where an agent belongs, handed down to its sub-agents.
#[derive(Debug)]
struct Place {
    session: String,
    workflow: String,
    seed: u64,
    shared_blocks: bool,
}

impl Player {
    /// Plays the roster; ends when every session has ended, or soon after `stop`.
    pub(crate) async fn play(self: Arc<Self>, arrivals: Arrivals, seed: u64) {
        let mut tasks = JoinSet::new();
        match arrivals {
            Arrivals::Closed(width) => {
                let next = Arc::new(AtomicUsize::new(0));
                for _ in 0..width.min(self.roster.len()) {
                    tasks.spawn(Arc::clone(&self).play_one_after_other(Arc::clone(&next)));
                }
            }
            Arrivals::Poisson(rate) => {
                let mut random = Random::new(seed_of(seed, "arrivals"));
                let mut at_s = 0.0;
                for number in 0..self.roster.len() {
                    at_s += random.exponential(1.0 / rate);
                    if !self.sleep_until(self.started + seconds(at_s)).await {
                        break;
                    }
                    tasks.spawn(Arc::clone(&self).play_session(self.roster.entry(number)));
                }
            }
            Arrivals::Traced => {
                for number in 0..self.roster.len() {
                    let entry = self.roster.entry(number);
                    let at = self.scaled(entry.session.arrival_s.unwrap_or(0.0));
                    if !self.sleep_until(self.started + at).await {
                        break;
                    }
                    tasks.spawn(Arc::clone(&self).play_session(entry));
                }
            }
        }
        while let Some(ended) = tasks.join_next().await {
            propagate(ended);
        }
    }

    async fn play_one_after_other(self: Arc<Self>, next: Arc<AtomicUsize>) {
        while !self.stop.is_cancelled() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.roster.len() {
                return;
            }
            Arc::clone(&self).play_session(self.roster.entry(number)).await;
        }
    }

    async fn play_session(self: Arc<Self>, entry: Entry) {
        self.tell(Event::SessionStarted).await;
        let place = Arc::new(Place {
            workflow: format!("{}-{}", self.style.run_id, entry.label),
            session: entry.label,
            seed: entry.seed,
            shared_blocks: entry.session.shared_blocks,
        });
        Arc::clone(&self)
            .play_agent(place, entry.session.agent, None)
            .await;
        self.tell(Event::SessionEnded).await;
    }

    /// Boxed, because an agent plays the agents it starts.
    fn play_agent(
        self: Arc<Self>,
        place: Arc<Place>,
        agent: Arc<Agent>,
        parent_request: Option<String>,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut conversation =
                Conversation::new(&agent, self.style.prompt_scale, place.seed, place.shared_blocks);
            let caller = Caller {
                session: place.session.clone(),
                workflow: place.workflow.clone(),
                agent: agent.id.clone(),
                parent_request,
            };
            let mut children = Children::default();
            let (mut last_sent, mut last_end) = (clock::now(), clock::now());
            let mut turns = 0_usize;
            for step in &agent.steps {
                match step {
                    Step::Spawn { pause_s, agent } => {
                        let cause = turns.checked_sub(1).map(|turn| self.request_id(&caller, turn));
                        let (player, place, agent) =
                            (Arc::clone(&self), Arc::clone(&place), Arc::clone(agent));
                        let start = last_end + self.scaled(*pause_s);
                        children.start(async move {
                            if player.sleep_until(start).await {
                                player.play_agent(place, agent, cause).await;
                            }
                        });
                    }
                    Step::Turn(turn) => {
                        let joined = children.ended(&turn.joins).await;
                        let before = match turn.after {
                            After::End => joined.map_or(last_end, |joined| last_end.max(joined)),
                            After::Start => last_sent,
                        };
                        if !self.sleep_until(before + self.scaled(turn.pause_s)).await {
                            break;
                        }
                        last_sent = clock::now();
                        self.play_turn(&caller, turns, turn, &conversation.advance(turn))
                            .await;
                        last_end = clock::now();
                        turns += 1;
                    }
                }
            }
            children.all_ended().await;
        })
    }

    /// Sends one request, again after a 429 if that is wanted, and tells the report.
    async fn play_turn(&self, caller: &Caller, number: usize, turn: &Turn, messages: &Messages) {
        let sent = clock::now();
        self.tell(Event::Sent).await;
        let request_id = self.request_id(caller, number);
        let max_tokens = self.max_tokens(turn);
        let tools = self.style.tools.then_some(match turn.ending {
            Ending::ToolUse => ToolChoice::Required,
            Ending::Other => ToolChoice::None,
        });
        let ask = Ask {
            model: &self.style.model,
            max_tokens,
            stream: self.style.stream,
            ignore_eos: self.style.ignore_eos,
            tools,
        };
        let body = ChatBody::new(&ask, messages);
        let mut retries = 0;
        let (seen, result) = loop {
            let mut seen = Seen::default();
            // Every attempt has an id of its own.
            let id = if retries == 0 {
                request_id.clone()
            } else {
                format!("{request_id}-{retries}")
            };
            let result = self
                .attempt(sent, body.clone(), request_headers(caller, &id), &mut seen)
                .await;
            let busy = seen.status == Some(http::StatusCode::TOO_MANY_REQUESTS);
            if !(busy && self.style.retry_429) {
                break (seen, result);
            }
            let wait = seen.retry_after.unwrap_or(DEFAULT_RETRY);
            let over = clock::now() + wait >= sent + self.style.timeout;
            if over || !self.sleep_until(clock::now() + wait).await {
                break (seen, result);
            }
            retries += 1;
        };
        let mut record = record(self.started, sent, &seen, result.err());
        record.session.clone_from(&caller.session);
        record.workflow.clone_from(&caller.workflow);
        record.agent.clone_from(&caller.agent);
        record.turn = number;
        record.request_id = request_id;
        record.retries = retries;
        record.planned_tokens = messages.tokens;
        record.reusable_tokens = messages.reusable_tokens;
        record.max_tokens = max_tokens;
        self.tell(Event::Ended(Box::new(record))).await;
    }

    /// One exchange, within the time that is left of the request and until `stop`.
    async fn attempt(
        &self,
        sent: Instant,
        body: ChatBody,
        headers: HeaderMap,
        seen: &mut Seen,
    ) -> Result<(), Fault> {
        tokio::select! {
            biased;
            result = self.target.exchange(body, headers, seen) => result,
            () = self.stop.cancelled() => Err(Fault::Cancelled),
            () = tokio::time::sleep_until(sent + self.style.timeout) => Err(Fault::Timeout),
        }
    }

    fn request_id(&self, caller: &Caller, turn: usize) -> String {
        format!("{}-{}-{turn}", caller.workflow, caller.agent)
    }

    fn max_tokens(&self, turn: &Turn) -> u64 {
        let scaled = (turn.output_tokens as f64 * self.style.output_scale).round() as u64;
        scaled.clamp(1, self.style.max_output_tokens)
    }

    /// A pause of the trace in real time.
    fn scaled(&self, pause_s: f64) -> Duration {
        seconds(pause_s.min(self.style.max_pause_s) * self.style.time_scale)
    }

    /// False if the replay was stopped meanwhile.
    async fn sleep_until(&self, at: Instant) -> bool {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep_until(at) => true,
        }
    }

    /// A report that cannot be written any more ends the replay.
    async fn tell(&self, event: Event) {
        if self.events.send(event).await.is_err() {
            self.stop.cancel();
        }
    }
}

/// Traces hold pauses of days; those that no clock can hold are cut.
fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value.clamp(0.0, 1e8)).unwrap_or_default()
}

fn request_headers(caller: &Caller, request_id: &str) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(4);
    let mut add = |name: &'static str, value: &str| {
        // Ids are made of plain characters, so none is refused.
        if let Ok(value) = HeaderValue::try_from(value) {
            map.insert(HeaderName::from_static(name), value);
        }
    };
    add(headers::WORKFLOW_ID, &caller.workflow);
    add(headers::AGENT_ID, &caller.agent);
    add(headers::REQUEST_ID, request_id);
    if let Some(parent) = &caller.parent_request {
        add(headers::PARENT_REQUEST_ID, parent);
    }
    map
}

/// The part of a record that comes from the exchange.
fn record(started: Instant, sent: Instant, seen: &Seen, fault: Option<Fault>) -> Record {
    let since = |at: Option<Instant>| at.map(|at| ms_between(sent, at));
    let outcome = fault
        .as_ref()
        .map_or(Outcome::Ok, |fault| fault.outcome(seen.status.is_some()));
    Record {
        session: String::new(),
        workflow: String::new(),
        agent: String::new(),
        turn: 0,
        request_id: String::new(),
        retries: 0,
        sent_at: ms_between(started, sent),
        head_ms: since(seen.head_at),
        first_byte_ms: since(seen.first_byte_at),
        ttft_ms: since(seen.first_token_at),
        total_ms: ms_between(sent, clock::now()),
        status: seen.status.map(|status| status.as_u16()),
        outcome,
        reason: seen.reason.clone(),
        endpoint: seen.endpoint.clone(),
        home: seen.home.clone(),
        queued_ms: seen.queued_ms,
        held: seen.held,
        prompt_tokens: seen.usage.prompt_tokens,
        cached_tokens: seen.usage.cached_tokens,
        completion_tokens: seen.usage.completion_tokens,
        planned_tokens: 0,
        reusable_tokens: None,
        max_tokens: 0,
        finish_reason: seen.finish_reason.clone(),
        error: fault.as_ref().map(Fault::kind),
        message: fault.map(|fault| fault.to_string().chars().take(MAX_MESSAGE_CHARS).collect()),
    }
}
