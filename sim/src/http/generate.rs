//! One generation request from parsed to answered, whatever its API.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use tokio::time::sleep;

use super::{
    App,
    admit::{Admitted, clip_max_tokens, submit},
    ask::Ask,
    body::{AnswerBody, Cut},
    error::{ApiError, Shape},
    speech::{Ending, Part, Piece, Speaker},
    stream::{EventStream, Format, Opening},
};
use crate::{
    driver::{Event, Failure},
    engine::{script::Finish, tokens::Token},
    fault::Mishap,
};

/// A request as it came in, apart from its body.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) app: &'a Arc<App>,
    pub(crate) api: &'a dyn Api,
    pub(crate) path: &'static str,
    pub(crate) headers: &'a HeaderMap,
}

/// An API: how its answers look.
pub(crate) trait Api: Send + Sync {
    /// Prefix of ids.
    fn id_prefix(&self) -> &'static str;
    /// `max_tokens` when the client names none; `None` = the rest of the context.
    fn default_max_tokens(&self) -> Option<u64>;
    /// Shape of errors.
    fn shape(&self) -> Shape {
        Shape::OpenAi
    }
    /// Writer of a stream.
    fn format(&self, meta: Arc<Meta>) -> Box<dyn Format>;
    /// A whole answer.
    fn whole(&self, meta: &Meta, tally: &Tally, choices: &[Said]) -> Vec<u8>;
}

/// What every part of an answer repeats.
#[derive(Debug)]
pub(crate) struct Meta {
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// Canonical model name.
    pub(crate) model: String,
    pub(crate) fingerprint: String,
    pub(crate) include_usage: bool,
    pub(crate) continuous_usage: bool,
    pub(crate) max_tokens: u64,
    /// Prompts' tokens when the client wants them back.
    pub(crate) prompt_token_ids: Option<Vec<Vec<Token>>>,
    /// Choices per prompt.
    pub(crate) choices: u32,
}

impl Meta {
    /// The prompt's tokens of a choice, if wanted.
    pub(crate) fn prompt_tokens_of(&self, choice: u32) -> Option<&[Token]> {
        let prompts = self.prompt_token_ids.as_ref()?;
        prompts
            .get((choice / self.choices.max(1)) as usize)
            .map(Vec::as_slice)
    }
}

/// Token counts of an answer so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) prompt: u64,
    pub(crate) cached: u64,
    /// Full blocks of the prompt that were not cached before, in tokens.
    pub(crate) created: u64,
    pub(crate) output: u64,
    /// Whether `prompt_tokens_details` are shown.
    pub(crate) details: bool,
    per_choice: BTreeMap<u32, u64>,
    /// Tokens of the prompt in full blocks, when these are cached.
    block_tokens: u64,
}

impl Tally {
    /// Nothing said yet to a prompt of so many tokens.
    pub(crate) fn new(prompt: u64, block_tokens: u64, details: bool) -> Self {
        Self {
            prompt,
            block_tokens,
            details,
            ..Self::default()
        }
    }

    /// Counts an output; the first choice's cache hit stands for the request.
    pub(crate) fn count(&mut self, choice: u32, token: bool, cached: usize) {
        if token {
            self.output += 1;
            *self.per_choice.entry(choice).or_default() += 1;
        }
        if choice == 0 {
            self.cached = cached as u64;
            self.created = self.block_tokens.saturating_sub(self.cached);
        }
    }

    /// Output tokens of one choice.
    pub(crate) fn output_of(&self, choice: u32) -> u64 {
        self.per_choice.get(&choice).copied().unwrap_or(0)
    }
}

/// A choice that ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) text: String,
    /// Id, name, arguments.
    pub(crate) call: Option<(String, String, String)>,
    pub(crate) ending: Ending,
    pub(crate) tokens: Option<Vec<Token>>,
}

/// Answers a parsed request, or its parse error.
pub(crate) async fn answer(
    call: Call<'_>,
    parsed: Result<Ask, ApiError>,
) -> Result<Response<AnswerBody>, Cut> {
    let mishap = call.app.faults.next();
    match mishap {
        Some(Mishap::Reset) => return Err(Cut),
        Some(Mishap::Delay(ms)) => sleep(Duration::from_millis(ms)).await,
        Some(Mishap::Status(status)) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return Ok(super::failure(&ApiError::ordered(status), call.api.shape()));
        }
        Some(Mishap::Cut(_) | Mishap::Error(_) | Mishap::Stall(_)) | None => {}
    }
    match answer_ask(call, parsed, mishap).await {
        Ok(response) => Ok(response),
        Err(Trouble::Api(error)) => Ok(super::failure(&error, call.api.shape())),
        Err(Trouble::Cut) => Err(Cut),
    }
}

/// Why there is no ordinary answer.
enum Trouble {
    Api(ApiError),
    Cut,
}

impl From<ApiError> for Trouble {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

async fn answer_ask(
    call: Call<'_>,
    parsed: Result<Ask, ApiError>,
    mishap: Option<Mishap>,
) -> Result<Response<AnswerBody>, Trouble> {
    let Call { app, api, .. } = call;
    let ask = parsed?;
    app.check_model(ask.model.as_deref())?;
    let max_tokens = clip_max_tokens(app, api, &ask)?;
    let (stream, interval) = (
        ask.stream,
        ask.stream_interval.unwrap_or(app.options.stream_interval),
    );
    let sglang = app.options.sglang().is_some();
    let admitted = match submit(call, ask, max_tokens).await {
        // The scheduler's own refusal comes when the stream's head is out.
        Err(error) if sglang && stream && error.status == StatusCode::SERVICE_UNAVAILABLE => {
            return Ok(super::sglang::given_back(&error));
        }
        admitted => admitted?,
    };
    if !stream {
        return whole(api, admitted, mishap).await;
    }
    let Admitted {
        events,
        lease,
        meta,
        tally,
        speakers,
    } = admitted;
    let mut stream = EventStream::open(Opening {
        events,
        lease,
        format: api.format(Arc::new(meta)),
        speakers,
        tally,
        interval: interval as usize,
        keep_alive: app.options.sse_keep_alive,
        mishap,
    });
    if sglang {
        stream.begin().await.map_err(|Cut| Trouble::Cut)?;
    }
    let mut response = Response::new(AnswerBody::stream(stream));
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// Waits for all choices, then answers at once.
async fn whole(
    api: &dyn Api,
    admitted: Admitted,
    mishap: Option<Mishap>,
) -> Result<Response<AnswerBody>, Trouble> {
    let Admitted {
        mut events,
        lease,
        meta,
        mut tally,
        speakers,
    } = admitted;
    let mut listeners: Vec<Listener> = speakers.into_iter().map(Listener::new).collect();
    let mut open = listeners.len();
    while open > 0 {
        match events.recv().await {
            Some(Event::Output {
                choice,
                token,
                finish,
                cached_tokens,
            }) => {
                tally.count(choice, token.is_some(), cached_tokens);
                if let Some(listener) = listeners.get_mut(choice as usize) {
                    listener.tokens.extend(token);
                    listener.finish = listener.finish.or(finish);
                }
                open -= usize::from(finish.is_some());
            }
            Some(Event::Failed(failure)) => return Err(ApiError::from_failure(failure).into()),
            Some(Event::Admitted) => {}
            None => return Err(ApiError::from_failure(Failure::Dead).into()),
        }
    }
    drop(lease);
    match mishap {
        Some(Mishap::Cut(_)) => return Err(Trouble::Cut),
        Some(Mishap::Error(_)) => return Err(ApiError::internal("Ordered by /sim/fault.").into()),
        Some(Mishap::Stall(_)) => std::future::pending().await,
        Some(Mishap::Status(_) | Mishap::Reset | Mishap::Delay(_)) | None => {}
    }
    let keep_tokens = meta.prompt_token_ids.is_some();
    let choices: Vec<Said> = listeners
        .into_iter()
        .map(|listener| listener.close(keep_tokens))
        .collect();
    Ok(super::json_response(Bytes::from(
        api.whole(&meta, &tally, &choices),
    )))
}

/// Collects a choice of a plain answer.
struct Listener {
    speaker: Speaker,
    tokens: Vec<Token>,
    finish: Option<Finish>,
}

impl Listener {
    fn new(speaker: Speaker) -> Self {
        Self {
            speaker,
            tokens: Vec::new(),
            finish: None,
        }
    }

    fn close(mut self, keep_tokens: bool) -> Said {
        let parts = self.speaker.hear(&self.tokens);
        let finish = self.finish.unwrap_or(Finish::Abort);
        let mut said = Said {
            text: String::new(),
            call: None,
            ending: self.speaker.ending(finish),
            tokens: keep_tokens.then_some(self.tokens),
        };
        for part in parts {
            match (part, &mut said.call) {
                (Part::Text(text), _) => said.text.push_str(&text),
                (Part::Call { id, name }, call) => *call = Some((id, name, String::new())),
                (Part::Arguments(text), Some((_, _, arguments))) => arguments.push_str(&text),
                (Part::Arguments(_), None) => {}
            }
        }
        said
    }
}

/// For formats: the finish reason of a piece, if it ends its choice.
pub(crate) fn finish_reason(piece: &Piece) -> Option<&'static str> {
    piece.finish.map(Ending::finish_reason)
}
