//! One request, one screen: parse → identify → policy → admit → decide → forward → stream → record.
//!
//! [`Gateway::answer`] is the handler of the traffic port. Everything it holds lives in its future or, from the
//! first byte on, in the answer's body; a client that leaves drops either, and with it the place at the endpoint, the
//! upstream connection and the share of the byte budget.

pub mod control;
pub mod endpoints;
pub mod file;
pub mod fixed;
mod forward;
mod homes;
pub mod identify;
pub mod models;
pub mod policy;
pub mod pools;
pub mod scheduler;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, request::Parts};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use weir_schedule::{ShedReason, Workflow};
use weir_wire::{WorkflowKey, headers};

use self::{
    forward::{Attempt, Job},
    identify::{Evidence, identify},
    policy::{Load, Wishes},
    pools::{Pools, View},
    scheduler::{Admission, Shed, Waiting},
};
use crate::{
    metrics::{self, Metrics},
    proxy::{
        budget::{Budget, Held},
        headers::{ask_engine_priority, for_upstream},
        request::{Api, Ask, Received, Route, Target, parse, read_body},
        respond::{ErrorShape, Refusal, Reply, json_reply},
        upstream::Outgoing,
    },
};

const REQUEST_ID: HeaderName = HeaderName::from_static(headers::REQUEST_ID);
const PRIORITY: HeaderName = HeaderName::from_static(headers::PRIORITY);
/// The only tenant, until callers are told apart.
const TENANT: &str = "default";
/// Bodies longer than this are parsed beside the tasks that serve others.
const LONG_BODY_BYTES: usize = 1 << 20;
/// Longest wait for a second endpoint after the first failed.
const RETRY_PATIENCE: Duration = Duration::from_secs(30);
/// Longest request id taken over from a client, bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// The gateway's traffic side. Shared by all connections.
pub struct Gateway {
    pools: Arc<Pools>,
    metrics: Arc<Metrics>,
    budget: Budget,
    /// Cancelled before the pools are closed because the process is about to end.
    last_call: CancellationToken,
    /// First half of request ids, different in every process.
    instance: u32,
    requests: AtomicU64,
}

/// A refusal, and the shape its client expects.
struct Refused {
    refusal: Refusal,
    shape: ErrorShape,
}

/// A request whose path is known, and whose body is still to be read.
struct Arrival<'a> {
    route: Route,
    api: Api,
    head: Parts,
    body: Incoming,
    id: &'a str,
}

/// A request that can be admitted.
struct Understood {
    job: Job,
    wanted: weir_schedule::Request,
    /// Its share of the byte budget.
    held: Held,
}

impl Gateway {
    /// A gateway in front of `pools`.
    #[must_use]
    pub fn new(
        pools: Arc<Pools>,
        metrics: Arc<Metrics>,
        instance: u32,
        last_call: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            pools,
            metrics,
            budget: Budget::default(),
            last_call,
            instance,
            requests: AtomicU64::new(0),
        })
    }

    /// Answers one request.
    pub async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        let id = self.request_id(request.headers());
        let mut reply = match self.serve(request, &id).await {
            Ok(reply) => reply,
            Err(Refused { refusal, shape }) => {
                let (status, reason) = refusal.status_and_reason();
                tracing::debug!(status = status.as_u16(), reason, source = ?refusal.source(), "refused");
                refusal.reply(shape)
            }
        };
        if let Ok(id) = HeaderValue::try_from(id) {
            reply.headers_mut().insert(REQUEST_ID, id);
        }
        reply
    }

    async fn serve(&self, request: Request<Incoming>, id: &str) -> Result<Reply, Refused> {
        let (head, body) = request.into_parts();
        let view = self.pools.view();
        let route = Route::find(&head.method, head.uri.path_and_query())
            .map_err(|refusal| self.rejected(refusal, ErrorShape::OpenAi))?;
        let Target::Forward(api) = route.target else {
            return answer_models(&view, &route)
                .map_err(|refusal| self.rejected(refusal, ErrorShape::OpenAi));
        };
        let shape = api.shape();
        let arrival = Arrival {
            route,
            api,
            head,
            body,
            id,
        };
        let understood = self.understand(&view, arrival).await;
        drop(view);
        let Understood {
            mut job,
            wanted,
            held,
        } = understood.map_err(|refusal| self.rejected(refusal, shape))?;
        let reply = self.dispatch(&mut job, wanted).await;
        drop(held);
        reply.map_err(|refusal| Refused { refusal, shape })
    }

    /// Reads, parses, identifies and applies the policy: what the request is, and what it wants of its pool.
    async fn understand(&self, view: &View, arrival: Arrival<'_>) -> Result<Understood, Refusal> {
        let arrived = now();
        let Arrival {
            route,
            api,
            head,
            body,
            id,
        } = arrival;
        let limits = &view.config.limits;
        let timeouts = &view.config.timeouts;
        let pause = timeouts.body_read.into();
        let received = read_body(&head.headers, body, limits, pause, &self.budget).await?;
        let ask = self.parse(&received, limits.max_json_depth).await?;
        let entry = view.pick(route.pool.as_deref(), ask.model.as_deref())?.clone();
        let evidence = Evidence {
            headers: &head.headers,
            ask: &ask,
            body: &received.bytes,
        };
        let identity = identify(evidence, entry.policy.identity())?;
        let key = identity
            .as_ref()
            .map(|identity| WorkflowKey::derive(TENANT, entry.handle.name(), &identity.id));
        ask.check(api)?;
        let wishes = Wishes {
            class: priority_header(&head.headers)?,
            priority: ask.workflow.priority,
        };
        let load = Load {
            workflow: key.map(|key| Workflow(*key.as_bytes())),
            prompt_tokens: ask.prompt_tokens,
            bytes: received.bytes.len() as u64,
        };
        let wanted = entry.policy.request(wishes, load)?;
        if ask.engine_priority || ask_engine_priority(&head.headers) {
            entry.handle.metrics().priorities_removed.inc();
        }
        let Received { bytes, held } = received;
        // The head as received pins the connection's read buffer, and a request may wait for long: it ends here.
        let headers = for_upstream(&head.headers);
        let job = Job {
            arrived,
            api,
            stream: ask.stream,
            entry,
            outgoing: Outgoing::new(&head.method, &route.path, headers, ask.forwarded(bytes)),
            workflow: identity.and_then(|identity| HeaderValue::try_from(identity.id).ok()),
            key,
            id: id.to_owned(),
            first_token: timeouts.first_token.into(),
            idle: timeouts.idle.into(),
        };
        Ok(Understood { job, wanted, held })
    }

    /// Admits, decides and forwards; a second time, elsewhere, when the first endpoint failed before its first byte.
    async fn dispatch(&self, job: &mut Job, wanted: weir_schedule::Request) -> Result<Reply, Refusal> {
        let pool = job.entry.handle.clone();
        let first = self.admitted(pool.submit(wanted.clone())).await?;
        let failed_on = first.endpoint.id;
        let failure = match job.attempt(first, Attempt::new(&self.requests)).await {
            Ok(reply) => return Ok(reply),
            Err(failure) => failure,
        };
        let not_on = (!failure.is_connect()).then_some(failed_on);
        if !failure.is_retryable() || (not_on.is_some() && !self.has_another(job, failed_on)) {
            return failure.into_reply(job);
        }
        let again = weir_schedule::Request { not_on, ..wanted };
        let second = match not_on {
            // Its endpoint is out of rotation now; this waits like any other for one that is in.
            None => Ok(self.admitted(pool.resubmit(again)).await),
            Some(_) => timeout(RETRY_PATIENCE, self.admitted(pool.resubmit(again))).await,
        };
        let Ok(Ok(second)) = second else {
            return failure.into_reply(job);
        };
        failure.abandon();
        pool.metrics().retries.inc();
        match job.attempt(second, Attempt::new(&self.requests)).await {
            Ok(reply) => Ok(reply),
            Err(failure) => failure.into_reply(job),
        }
    }

    async fn admitted(&self, waiting: Waiting) -> Result<Admission, Refusal> {
        waiting
            .await
            .map_err(|Shed { reason, retry_after }| match reason {
                ShedReason::QueueFull => Refusal::QueueFull { retry_after },
                ShedReason::NoCapacity if self.last_call.is_cancelled() => Refusal::Draining,
                ShedReason::NoCapacity => Refusal::NoCapacity { retry_after },
                ShedReason::Suspended => Refusal::Suspended,
                ShedReason::ColdStartTimeout => Refusal::ColdStartTimeout { retry_after },
            })
    }

    /// Another endpoint than the one that failed could take a request, as far as was last published.
    fn has_another(&self, job: &Job, failed: weir_schedule::EndpointId) -> bool {
        let known = job.entry.handle.endpoints();
        let states = job.entry.handle.states();
        let state = states.borrow();
        known
            .iter()
            .filter(|(id, _)| *id != failed)
            .any(|(_, info)| state.endpoints.iter().any(|it| it.uid == info.uid && it.eligible))
    }

    async fn parse(&self, received: &Received, depth: u32) -> Result<Ask, Refusal> {
        if received.bytes.len() <= LONG_BODY_BYTES {
            return parse(&received.bytes, depth);
        }
        let bytes = received.bytes.clone();
        let parsed = tokio::task::spawn_blocking(move || parse(&bytes, depth)).await;
        parsed.unwrap_or_else(|_| Err(Refusal::malformed("the body could not be read")))
    }

    /// Counts a request that no pool has seen.
    fn rejected(&self, refusal: Refusal, shape: ErrorShape) -> Refused {
        let (_, reason) = refusal.status_and_reason();
        self.metrics
            .pool("none")
            .request(metrics::Outcome::Rejected, reason);
        Refused { refusal, shape }
    }

    /// The client's own id if it can serve as one, else a new one.
    fn request_id(&self, map: &HeaderMap) -> String {
        let given = map
            .get(REQUEST_ID)
            .and_then(|value| value.to_str().ok())
            .filter(|id| !id.is_empty() && id.len() <= MAX_REQUEST_ID_BYTES);
        match given {
            Some(id) => id.to_owned(),
            None => {
                let number = self.requests.fetch_add(1, Ordering::Relaxed);
                format!("{:08x}{number:08x}", self.instance)
            }
        }
    }
}

fn priority_header(map: &HeaderMap) -> Result<Option<&str>, Refusal> {
    map.get(PRIORITY)
        .map(|value| {
            value
                .to_str()
                .map_err(|_| Refusal::invalid(headers::PRIORITY, "X-Weir-Priority is not text"))
        })
        .transpose()
}

fn answer_models(view: &View, route: &Route) -> Result<Reply, Refusal> {
    let pool = match &route.pool {
        Some(name) => Some(view.pick(Some(name), None)?),
        None => None,
    };
    let body = match (&route.target, pool) {
        (Target::Model(id), pool) => {
            let unknown = || Refusal::UnknownModel {
                model: id.chars().take(256).collect(),
            };
            let entry = pool.or_else(|| view.by_model(id)).ok_or_else(unknown)?;
            models::one(&entry.config, id).ok_or_else(unknown)?
        }
        (_, Some(entry)) => models::list(std::iter::once(entry.config.as_ref())),
        (_, None) => view.models.clone(),
    };
    Ok(json_reply(StatusCode::OK, body))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the request path is a shell: it times its own requests"
)]
fn now() -> Instant {
    Instant::now()
}
