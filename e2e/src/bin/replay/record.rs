//! What is written about each request, and how outcomes are told apart.

use serde::Serialize;

use crate::sse::{SseError, Usage};

/// Longest text of an answer that goes into a record.
pub(crate) const MAX_MESSAGE_CHARS: usize = 300;

/// How a request ended; each has exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// A complete answer.
    Ok,
    /// An answer that is an error, or breaks off.
    Failed,
    /// No answer at all: not even a status.
    Lost,
    /// Given up by this client, because it was told to stop.
    Cancelled,
}

/// What went wrong with a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("the connection ended before an answer: {0}")]
    NoAnswer(#[source] hyper::Error),
    #[error("the answer breaks off: {0}")]
    Cut(#[source] hyper::Error),
    #[error("the stream ends without [DONE]")]
    NoDone,
    #[error("{0}")]
    Status(String),
    #[error("{0}")]
    ErrorEvent(String),
    #[error("the engine gave up: finish_reason {0}")]
    Finish(String),
    #[error("the answer is not a chat completion")]
    BadAnswer,
    #[error("the answer is larger than 16 MiB")]
    TooLarge,
    #[error(transparent)]
    Sse(#[from] SseError),
    #[error("no end within the time limit")]
    Timeout,
    #[error("stopped")]
    Cancelled,
}

impl Fault {
    /// The word for records and summaries; the set is closed.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::NoAnswer(_) => "no_answer",
            Self::Cut(_) => "cut",
            Self::NoDone => "no_done",
            Self::Status(_) => "status",
            Self::ErrorEvent(_) => "error_event",
            Self::Finish(_) => "finish",
            Self::BadAnswer | Self::Sse(SseError::NotJson) => "bad_answer",
            Self::TooLarge | Self::Sse(SseError::TooLong) => "too_large",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }

    /// `answered`: a status has been received.
    pub(crate) fn outcome(&self, answered: bool) -> Outcome {
        match self {
            Self::Cancelled => Outcome::Cancelled,
            Self::Connect(_) | Self::NoAnswer(_) => Outcome::Lost,
            Self::Timeout if !answered => Outcome::Lost,
            Self::Timeout
            | Self::Cut(_)
            | Self::NoDone
            | Self::Status(_)
            | Self::ErrorEvent(_)
            | Self::Finish(_)
            | Self::BadAnswer
            | Self::TooLarge
            | Self::Sse(_) => Outcome::Failed,
        }
    }
}

/// One line of the records file. Times are milliseconds, counted from the start of the replay or of the request.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Record {
    pub(crate) session: String,
    pub(crate) workflow: String,
    pub(crate) agent: String,
    /// Number of the turn within its agent, from 0.
    pub(crate) turn: usize,
    pub(crate) request_id: String,
    /// Sent again after a 429, so many times (only with `--retry-429`).
    pub(crate) retries: u32,
    /// Since the start of the replay.
    pub(crate) sent_at: f64,
    /// Until the status line and headers.
    pub(crate) head_ms: Option<f64>,
    /// Until the first byte of the answer's body.
    pub(crate) first_byte_ms: Option<f64>,
    /// Until the first event with a token; only for streams.
    pub(crate) ttft_ms: Option<f64>,
    pub(crate) total_ms: f64,
    pub(crate) status: Option<u16>,
    pub(crate) outcome: Outcome,
    /// `x-weir-reason`.
    pub(crate) reason: Option<String>,
    /// `x-weir-endpoint`.
    pub(crate) endpoint: Option<String>,
    /// `x-weir-home`.
    pub(crate) home: Option<String>,
    /// `x-weir-queued-ms`.
    pub(crate) queued_ms: Option<f64>,
    /// `x-weir-held`.
    pub(crate) held: bool,
    /// As the engine reports them.
    pub(crate) prompt_tokens: Option<u64>,
    pub(crate) cached_tokens: Option<u64>,
    pub(crate) completion_tokens: Option<u64>,
    /// As planned from the trace, after scaling and without the chat template.
    pub(crate) planned_tokens: u64,
    /// Of these, tokens that the agent's previous prompt begins with.
    pub(crate) reusable_tokens: Option<u64>,
    pub(crate) max_tokens: u64,
    pub(crate) finish_reason: Option<String>,
    /// Kind of the fault, from a closed set.
    pub(crate) error: Option<&'static str>,
    pub(crate) message: Option<String>,
}

impl Record {
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            completion_tokens: self.completion_tokens,
        }
    }
}
