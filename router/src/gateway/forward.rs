//! One attempt at one endpoint: the request as the engine gets it, the wait for its first byte, and the answer as the
//! client gets it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header, response};
use tokio::time::{Instant, timeout};
use weir_schedule::{Decision, HomeUse, Outcome};
use weir_wire::{WorkflowKey, headers};

use super::{
    now,
    pools::Entry,
    scheduler::{Admission, Endpoint, FirstByte, Permit, Record},
};
use crate::{
    metrics::UpstreamFailure,
    proxy::{
        headers::for_client,
        inflight::{End, InFlight, Observer},
        request::Api,
        respond::{ENGINE_DOWN, Refusal, Reply},
        stream::{Expected, Observed},
        upstream::{Outgoing, UpstreamBody, UpstreamError},
        usage::Seen,
    },
};

/// A request that was understood, for as many attempts as it gets.
pub(super) struct Job {
    pub(super) arrived: Instant,
    pub(super) api: Api,
    /// The client asked for a stream.
    pub(super) stream: bool,
    pub(super) entry: Arc<Entry>,
    /// What endpoints get, but for what differs from one to the other. Holds nothing of the client's connection.
    pub(super) outgoing: Outgoing,
    pub(super) workflow: Option<HeaderValue>,
    pub(super) key: Option<WorkflowKey>,
    pub(super) id: String,
    pub(super) first_token: Duration,
    pub(super) idle: Duration,
}

const WORKFLOW_ID: HeaderName = HeaderName::from_static(headers::WORKFLOW_ID);
const ENDPOINT: HeaderName = HeaderName::from_static(headers::ENDPOINT);
const HOME: HeaderName = HeaderName::from_static(headers::HOME);
const QUEUED_MS: HeaderName = HeaderName::from_static(headers::QUEUED_MS);
const HELD: HeaderName = HeaderName::from_static(headers::HELD);

/// The number of an attempt, unique in the process, so that no two requests in an engine share an id.
pub(super) struct Attempt(u64);

impl Attempt {
    pub(super) fn new(numbers: &AtomicU64) -> Self {
        Self(numbers.fetch_add(1, Ordering::Relaxed))
    }
}

/// An attempt that failed before its first byte went to the client.
pub(super) struct Failure {
    kind: FailureKind,
    /// The engine's own answer, for when there is no second attempt.
    answer: Option<Box<(response::Parts, Observed)>>,
    endpoint: HeaderValue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FailureKind {
    Connect,
    Broken,
    Answer,
    FirstTokenTimeout,
}

impl Failure {
    /// The endpoint could not be reached at all, and is out of rotation now.
    pub(super) fn is_connect(&self) -> bool {
        self.kind == FailureKind::Connect
    }

    /// Another endpoint may do better. Time that ran out would only run out again.
    pub(super) fn is_retryable(&self) -> bool {
        self.kind != FailureKind::FirstTokenTimeout
    }

    /// A second attempt is made: the first one's answer is closed, or it would keep its place in the engine.
    pub(super) fn abandon(self) {
        if let Some(answer) = self.answer {
            answer.1.abandon(End::Failed);
        }
    }

    /// There is no second attempt: what the client is told.
    pub(super) fn into_reply(self, job: &Job) -> Result<Reply, Refusal> {
        if let Some(answer) = self.answer {
            let (head, observed) = *answer;
            return Ok(Response::from_parts(head, observed.into_reply_body()));
        }
        let refusal = match self.kind {
            FailureKind::Connect | FailureKind::Broken | FailureKind::Answer => Refusal::EngineFailed,
            FailureKind::FirstTokenTimeout => Refusal::FirstTokenTimeout,
        };
        let (_, reason) = refusal.status_and_reason();
        tracing::debug!(endpoint = ?self.endpoint, reason, "request failed");
        job.entry.handle.record(Record::Failed {
            reason,
            had_objectives: job.entry.policy.has_objectives(),
        });
        Err(refusal)
    }
}

impl Job {
    /// Sends the request and waits for the first byte. The answer's head is held back until then: engines send it at
    /// once, and it proves nothing.
    pub(super) async fn attempt(&mut self, admission: Admission, number: Attempt) -> Result<Reply, Failure> {
        let Admission {
            endpoint,
            decision,
            permit,
        } = admission;
        let mut lease = InFlight::new(Box::new(Flight {
            permit: Some(permit),
            entry: Arc::clone(&self.entry),
            arrived: self.arrived,
            before_dispatch: now().duration_since(self.arrived),
            stream: self.stream,
            first_byte: None,
        }));
        self.address(&endpoint, &number);
        let begun = timeout(self.first_token, begin(&endpoint, &self.outgoing)).await;
        let (kind, end, failure) = match begun {
            // As good as a connection refused: its sidecar could not reach the engine.
            Ok(Ok(begun)) if endpoint.info.sidecar && begun.engine_is_down() => {
                (FailureKind::Connect, End::ConnectFailed, UpstreamFailure::Connect)
            }
            Ok(Ok(begun)) => return self.pass_on(begun, lease, &endpoint, &decision),
            Ok(Err(error)) if error.is_connect() => {
                (FailureKind::Connect, End::ConnectFailed, UpstreamFailure::Connect)
            }
            Ok(Err(_)) => (FailureKind::Broken, End::Failed, UpstreamFailure::Reset),
            Err(_) => (
                FailureKind::FirstTokenTimeout,
                End::FirstTokenTimeout,
                UpstreamFailure::FirstTokenTimeout,
            ),
        };
        self.entry.handle.metrics().upstream_failure(failure);
        lease.finish(end, &Seen::default());
        Err(Failure {
            kind,
            answer: None,
            endpoint: endpoint.label.clone(),
        })
    }

    fn pass_on(
        &self,
        begun: Begun,
        lease: InFlight,
        endpoint: &Endpoint,
        decision: &Decision,
    ) -> Result<Reply, Failure> {
        let status = begun.head.status;
        let events = begun
            .head
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let expected = Expected {
            status: status.as_u16(),
            events,
            shape: self.api.shape(),
            idle: self.idle,
        };
        let observed = Observed::new(expected, begun.body, begun.first, lease);
        let mut head = Response::new(()).into_parts().0;
        head.status = status;
        head.headers = begun.head.headers;
        for_client(&mut head.headers);
        self.label(&mut head.headers, endpoint, decision);
        let failure = if is_engine_failure(status) {
            Some(UpstreamFailure::Status)
        } else {
            observed.seen().error.then_some(UpstreamFailure::Event)
        };
        let Some(failure) = failure else {
            return Ok(Response::from_parts(head, observed.into_reply_body()));
        };
        self.entry.handle.metrics().upstream_failure(failure);
        Err(Failure {
            kind: FailureKind::Answer,
            answer: Some(Box::new((head, observed))),
            endpoint: endpoint.label.clone(),
        })
    }

    /// Makes the request out to this endpoint and this attempt.
    fn address(&mut self, endpoint: &Endpoint, number: &Attempt) {
        let id = HeaderValue::try_from(format!("{}-{:x}", self.id, number.0)).ok();
        let key = self.key.filter(|_| endpoint.info.sidecar);
        let key = key.and_then(|key| HeaderValue::try_from(key.to_string()).ok());
        let named = [
            (headers::REQUEST_ID, id.as_ref()),
            (headers::WORKFLOW_KEY, key.as_ref()),
        ];
        self.outgoing
            .set_of_attempt(named.into_iter().filter_map(|(name, value)| Some((name, value?))));
    }

    /// What Weir says of its own doing.
    fn label(&self, map: &mut HeaderMap, endpoint: &Endpoint, decision: &Decision) {
        map.insert(ENDPOINT, endpoint.label.clone());
        let home = match decision.home {
            HomeUse::None => "none",
            HomeUse::New => "new",
            HomeUse::Kept => "kept",
            HomeUse::Moved => "moved",
        };
        map.insert(HOME, HeaderValue::from_static(home));
        let waited = u64::try_from(decision.waited.as_millis()).unwrap_or(u64::MAX);
        map.insert(QUEUED_MS, HeaderValue::from(waited));
        if decision.held {
            map.insert(HELD, HeaderValue::from_static("1"));
        }
        if let Some(workflow) = &self.workflow {
            map.insert(WORKFLOW_ID, workflow.clone());
        }
    }
}

/// Statuses with which an engine (or its sidecar) says that it, not the request, is at fault.
fn is_engine_failure(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::INTERNAL_SERVER_ERROR | StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE
    )
}

/// An answer of which the first bytes are here.
struct Begun {
    head: response::Parts,
    body: UpstreamBody,
    first: Option<Bytes>,
}

impl Begun {
    /// A sidecar's word that its engine takes no connections.
    fn engine_is_down(&self) -> bool {
        self.head.status == StatusCode::SERVICE_UNAVAILABLE
            && self
                .head
                .headers
                .get(headers::REASON)
                .is_some_and(|reason| reason == ENGINE_DOWN)
    }
}

async fn begin(endpoint: &Endpoint, outgoing: &Outgoing) -> Result<Begun, UpstreamError> {
    let (head, mut body) = endpoint.upstream.send(outgoing).await?.into_parts();
    let first = body.data().await.transpose()?;
    Ok(Begun { head, body, first })
}

/// Keeps a dispatched request's books: the scheduler's place, times, tokens.
struct Flight {
    permit: Option<Permit>,
    entry: Arc<Entry>,
    arrived: Instant,
    before_dispatch: Duration,
    stream: bool,
    first_byte: Option<Duration>,
}

impl Flight {
    fn outcome(&self, end: End, seen: &Seen, total: Duration) -> (Outcome, Record) {
        let failed = |reason| Record::Failed {
            reason,
            had_objectives: self.entry.policy.has_objectives(),
        };
        match end {
            End::Answered(status) if status < 500 => {
                let footprint_tokens = seen
                    .usage
                    .map(|usage| usage.prompt_tokens.saturating_add(usage.completion_tokens));
                let completed = Outcome::Completed {
                    footprint_tokens,
                    tool_call: seen.tool_call,
                };
                // A stream that came in one piece began when it ended.
                let ttft = self.stream.then(|| self.first_byte.unwrap_or(total));
                let record = Record::Completed {
                    usage: seen.usage,
                    slo_met: self.entry.policy.is_met(ttft, total),
                    first_byte: ttft.map(|ttft| FirstByte {
                        since_arrival: ttft,
                        since_dispatch: ttft.saturating_sub(self.before_dispatch),
                    }),
                };
                (completed, record)
            }
            End::Answered(_) => (Outcome::Failed, failed("engine_status")),
            End::ErrorEvent => (Outcome::Failed, failed("engine_event")),
            End::Cut => (Outcome::Failed, failed("engine_cut")),
            End::IdleTimeout => (Outcome::Failed, failed("idle_timeout")),
            End::ClientGone => (Outcome::Cancelled, Record::Cancelled),
            // Before the first byte: what it means for the request is decided by whoever may try again.
            End::ConnectFailed => (Outcome::ConnectFailed, Record::Attempt),
            End::Failed | End::FirstTokenTimeout => (Outcome::Failed, Record::Attempt),
        }
    }
}

impl Observer for Flight {
    fn first_byte(&mut self) {
        self.first_byte = Some(now().duration_since(self.arrived));
        if let Some(permit) = &self.permit {
            permit.first_byte();
        }
    }

    fn finished(&mut self, end: End, seen: &Seen) {
        let total = now().duration_since(self.arrived);
        let metrics = self.entry.handle.metrics();
        metrics.duration.observe(total.as_secs_f64());
        let in_one_piece = matches!(end, End::Answered(_)).then_some(total);
        if let Some(ttft) = self.first_byte.or(in_one_piece) {
            metrics.ttft.observe(ttft.as_secs_f64());
        }
        let failure = match end {
            End::ErrorEvent => Some(UpstreamFailure::Event),
            End::Cut => Some(UpstreamFailure::Cut),
            End::IdleTimeout => Some(UpstreamFailure::IdleTimeout),
            _ => None,
        };
        if let Some(failure) = failure {
            metrics.upstream_failure(failure);
        }
        let (outcome, record) = self.outcome(end, seen, total);
        if let Some(permit) = self.permit.take() {
            permit.finish(outcome, record);
        }
    }
}
