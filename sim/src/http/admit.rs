//! A parsed request on its way into the engine.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::HeaderMap;
use tokio::sync::mpsc;

use super::{
    App,
    ask::Ask,
    error::ApiError,
    generate::{Api, Call, Meta, Tally},
    speech::Speaker,
};
use crate::{
    driver::{Command, Event, Failure, Submission},
    engine::{
        Asked, Rejection, Request, SequenceId,
        script::{Limits, Script, output_key},
        tokens::{hash_tokens, mix},
    },
    ledger::{Entry, Outcome},
};

/// Longest text from a client in the ledger, bytes.
const MAX_NOTED: usize = 256;
/// Headers the ledger keeps, besides all `x-weir-…`.
const NOTED_HEADERS: [&str; 13] = [
    "x-request-id",
    "x-session-id",
    "x-session-affinity",
    "session-id",
    "thread-id",
    "x-claude-code-session-id",
    "x-claude-code-agent-id",
    "x-claude-code-parent-agent-id",
    "x-dynamo-session-id",
    "x-smg-routing-key",
    "x-aibrix-session-key",
    "x-vllm-priority",
    "x-data-parallel-rank",
];

/// Takes the request out of the engine when its answer is dropped early.
pub(crate) struct Lease {
    app: Arc<App>,
    job: u64,
}

impl Lease {
    fn new(app: &Arc<App>, job: u64) -> Self {
        app.in_flight.fetch_add(1, Relaxed);
        Self {
            app: Arc::clone(app),
            job,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.app.in_flight.fetch_sub(1, Relaxed);
        self.app.engine.send(Command::Abort(self.job));
    }
}

/// An admitted request.
pub(super) struct Admitted {
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    pub(super) lease: Lease,
    pub(super) meta: Meta,
    pub(super) tally: Tally,
    pub(super) speakers: Vec<Speaker>,
}

/// Output bound of a request: what is asked, at most what the context leaves.
pub(super) fn clip_max_tokens(app: &App, api: &dyn Api, ask: &Ask) -> Result<u64, ApiError> {
    let limit = u64::from(app.settings.max_model_len);
    let longest = ask.prompts.iter().map(Vec::len).max().unwrap_or(0) as u64;
    if let Some(max_tokens) = ask.max_tokens
        && max_tokens > limit
    {
        let message = format!(
            "'max_tokens' or 'max_completion_tokens' is too large: {max_tokens}. This model's maximum context length \
             is {limit} tokens."
        );
        return Err(ApiError::bad_request(message, Some("max_tokens")));
    }
    if longest == 0 {
        return Err(ApiError::bad_request(
            "The decoder prompt cannot be empty".to_owned(),
            Some("prompt"),
        ));
    }
    if longest > limit {
        let message = format!(
            "This model's maximum context length is {limit} tokens. However, your request has {longest} input tokens. \
             Please reduce the length of the input messages."
        );
        return Err(ApiError::bad_request(message, Some("input_tokens")));
    }
    if longest == limit {
        return Err(ApiError::bad_request(
            "max_tokens must be at least 1, got 0.".to_owned(),
            Some("max_tokens"),
        ));
    }
    let wanted = ask.max_tokens.or(api.default_max_tokens()).unwrap_or(limit);
    Ok(wanted.min(limit - longest))
}

/// Hands the request to the engine and waits until it is admitted.
pub(super) async fn submit(call: Call<'_>, ask: Ask, max_tokens: u64) -> Result<Admitted, ApiError> {
    let app = call.app;
    if app.is_draining() && app.options.sglang().is_none() {
        return Err(ApiError::from_failure(Failure::Draining));
    }
    let arrived = app.engine.clock().now();
    let job = app.engine.next_job();
    let prompt_tokens: usize = ask.prompts.iter().map(Vec::len).sum();
    let delay = app
        .settings
        .profile
        .front_end_time(prompt_tokens)
        .mul_f64(app.settings.time_scale);
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let block = app.settings.block_size as usize;
    let block_tokens: usize = ask
        .prompts
        .iter()
        .map(|prompt| prompt.len() / block * block)
        .sum();
    let block_tokens = if app.settings.prefix_caching {
        block_tokens as u64
    } else {
        0
    };
    let tally = Tally::new(
        prompt_tokens as u64,
        block_tokens,
        app.options.prompt_tokens_details,
    );
    let meta = meta(call, &ask, job, arrived, max_tokens);
    let entry = entry(call, &ask, &meta.id, arrived);
    let requests = requests(app, job, arrived, ask, max_tokens);
    let call_id = |request: &Request| mix(job ^ (u64::from(request.id.choice) << 32));
    let speakers = requests
        .iter()
        .map(|request| Speaker::new(format!("chatcmpl-tool-{:016x}", call_id(request))))
        .collect();
    let (sender, mut events) = mpsc::unbounded_channel();
    let lease = Lease::new(app, job);
    let submission = Submission {
        job,
        requests,
        events: sender,
        entry,
    };
    app.engine.send(Command::Submit(Box::new(submission)));
    match events.recv().await {
        Some(Event::Admitted) => Ok(Admitted {
            events,
            lease,
            meta,
            tally,
            speakers,
        }),
        Some(Event::Failed(Failure::Rejected(Rejection::Requests))) if app.options.sglang().is_some() => {
            Err(ApiError::unavailable("The request queue is full."))
        }
        Some(Event::Failed(failure)) => Err(ApiError::from_failure(failure)),
        Some(Event::Output { .. }) | None => Err(ApiError::from_failure(Failure::Dead)),
    }
}

fn meta(call: Call<'_>, ask: &Ask, job: u64, arrived: Duration, max_tokens: u64) -> Meta {
    let app = call.app;
    let number = mix(app.id_seed ^ job);
    let suffix = ask
        .request_id
        .clone()
        .unwrap_or_else(|| match app.options.sglang() {
            Some(_) => format!("{number:016x}{:016x}", mix(number)),
            None => format!("{number:016x}"),
        });
    Meta {
        id: format!("{}{suffix}", call.api.id_prefix()),
        created: app.engine.clock().unix_ms(arrived) / 1000,
        model: app.answered_model(ask.model.as_deref()),
        fingerprint: app.fingerprint.clone(),
        include_usage: ask.include_usage || app.options.force_include_usage,
        continuous_usage: ask.continuous_usage || app.options.force_include_usage,
        max_tokens,
        prompt_token_ids: ask.return_token_ids.then(|| ask.prompts.clone()),
        choices: ask.choices,
    }
}

fn entry(call: Call<'_>, ask: &Ask, id: &str, arrived: Duration) -> Entry {
    Entry {
        sequence: 0,
        request_id: bounded(id),
        path: call.path,
        model: bounded(ask.model.as_deref().unwrap_or_default()),
        stream: ask.stream,
        headers: noted_headers(call.headers),
        prompt_tokens: ask.prompts.iter().map(Vec::len).sum::<usize>() as u64,
        cached_tokens: None,
        output_tokens: 0,
        received_ms: call.app.engine.clock().unix_ms(arrived),
        first_token_ms: None,
        ended_ms: None,
        outcome: Outcome::Running,
    }
}

/// One sequence per prompt and choice.
fn requests(app: &App, job: u64, arrived: Duration, ask: Ask, max_tokens: u64) -> Vec<Request> {
    let count = ask.prompts.len() * ask.choices as usize;
    let mut requests = Vec::with_capacity(count);
    let seed = mix(app.options.seed) ^ ask.seed;
    let limits = Limits {
        max: usize::try_from(max_tokens).unwrap_or(usize::MAX),
        min: usize::try_from(ask.min_tokens).unwrap_or(usize::MAX),
        ignore_eos: ask.ignore_eos,
    };
    for prompt in ask.prompts {
        let prompt_hash = hash_tokens(0, &prompt);
        for index in 0..ask.choices {
            let key = output_key(seed, prompt_hash, index);
            let script = match &ask.call_tool {
                Some(name) => Script::tool_call(key, name, limits),
                None => Script::words(key, limits),
            };
            requests.push(Request {
                id: SequenceId {
                    job,
                    choice: requests.len() as u32,
                },
                prompt: prompt.clone(),
                salt: ask.salt,
                script,
                priority: ask.priority,
                arrived,
                asked: Asked {
                    max_tokens: u32::try_from(max_tokens).unwrap_or(u32::MAX),
                    choices: ask.choices,
                },
            });
        }
    }
    requests
}

/// A client's text, cut to what the ledger keeps.
fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_NOTED)].to_owned()
}

fn noted_headers(headers: &HeaderMap) -> BTreeMap<String, String> {
    let noted = |name: &str| name.starts_with("x-weir-") || NOTED_HEADERS.contains(&name);
    headers
        .iter()
        .filter(|(name, _)| noted(name.as_str()))
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(&value.as_bytes()[..value.len().min(MAX_NOTED)]);
            (name.as_str().to_owned(), value.into_owned())
        })
        .collect()
}
