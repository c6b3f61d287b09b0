//! One request through the sidecar: admit, pass on, observe, remember. The engine behind it is reached by no other way.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header, response, uri::PathAndQuery};
use hyper::body::Incoming;
use weir_wire::{
    WorkflowKey,
    config::{EngineKind, Limits},
    headers as names,
};

use super::{
    cap::{Cap, Place},
    dialect,
    drain::{Activity, Presence},
    homes::HomeMemory,
    now,
};
use crate::{
    metrics::{Metrics, SidecarRefusal},
    proxy::{
        budget::Budget,
        headers,
        inflight::{End, InFlight, Observer},
        request::{self, Target},
        respond::{ErrorShape, Refusal, Reply},
        stream::{Expected, Observed},
        upstream::{Outgoing, Upstream, UpstreamBody, UpstreamError},
        usage::Seen,
    },
};

static REQUEST_ID: HeaderName = HeaderName::from_static(names::REQUEST_ID);
/// Longest silence inside an answer. The gateway's own limit is shorter; this one ends what nobody watches.
const SILENCE: Duration = Duration::from_secs(3600);

/// Everything a request needs.
pub(super) struct Passage {
    pub(super) engine: EngineKind,
    pub(super) cap: Arc<Cap>,
    pub(super) activity: Arc<Activity>,
    pub(super) homes: Arc<HomeMemory>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) limits: Limits,
    pub(super) body_pause: Duration,
    pub(super) budget: Budget,
}

/// Keeps a request's place and presence until its answer has ended, and remembers its workflow then.
struct Turn {
    homes: Arc<HomeMemory>,
    key: Option<WorkflowKey>,
    begun: bool,
    _place: Place,
    _presence: Presence,
}

impl Observer for Turn {
    fn first_byte(&mut self) {
        self.begun = true;
    }

    fn finished(&mut self, end: End, seen: &Seen) {
        let Some(key) = self.key else { return };
        let served = match end {
            End::Answered(status) => (200..300).contains(&status),
            // The prompt is in the cache as soon as the first token is out.
            End::ErrorEvent | End::Cut | End::IdleTimeout | End::ClientGone => self.begun,
            End::FirstTokenTimeout | End::ConnectFailed | End::Failed => false,
        };
        if served {
            let tokens = seen
                .usage
                .map(|usage| usage.prompt_tokens.saturating_add(usage.completion_tokens));
            self.homes.record(key, tokens, now());
        }
    }
}

impl Passage {
    /// Answers one request of the traffic port. Dropping the future, or the answer, abandons the request in the engine.
    pub(super) async fn pass(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        let shape = shape(request.method(), request.uri().path_and_query());
        match self.forward(request, shape).await {
            Ok(reply) => reply,
            Err(refusal) => {
                self.count(&refusal);
                refusal.reply(shape)
            }
        }
    }

    async fn forward(&self, request: Request<Incoming>, shape: ErrorShape) -> Result<Reply, Refusal> {
        let (head, body) = request.into_parts();
        let target = served_path(head.uri.path_and_query()).ok_or(Refusal::UnknownPath)?;
        // Probes of other paths are no activity: they must not keep a pod from being idle.
        let presence = self.activity.enter();
        let received =
            request::read_body(&head.headers, body, &self.limits, self.body_pause, &self.budget).await?;
        let place = self.cap.enter().await.map_err(|_| Refusal::Saturated)?;
        self.metrics.sidecar.requests.inc();
        let lease = InFlight::new(Box::new(Turn {
            homes: Arc::clone(&self.homes),
            key: workflow_key(&head.headers),
            begun: false,
            _place: place,
            _presence: presence,
        }));
        let headers = engine_headers(&head.headers);
        let outgoing = Outgoing::new(&head.method, target.as_str(), headers, received.bytes);
        self.exchange(&outgoing, shape, lease).await
    }

    /// The engine's answer from its first byte on: until then a gateway may still send the request elsewhere, so an
    /// engine that fails before is answered for with a status, not with an event inside a stream.
    async fn exchange(
        &self,
        outgoing: &Outgoing,
        shape: ErrorShape,
        mut lease: InFlight,
    ) -> Result<Reply, Refusal> {
        let answer = match self.upstream.send(outgoing).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(error = %error, "engine failed a request");
                let (end, refusal) = if error.is_connect() {
                    (End::ConnectFailed, Refusal::EngineDown)
                } else {
                    (End::Failed, Refusal::EngineFailed)
                };
                lease.finish(end, &Seen::default());
                return Err(refusal);
            }
        };
        let (mut head, mut body) = answer.into_parts();
        let first = match self.begin(&mut head, &mut body).await {
            Ok(first) => first,
            Err(error) => {
                tracing::debug!(error = %error, "engine broke off before its first byte");
                lease.finish(End::Failed, &Seen::default());
                return Err(Refusal::EngineFailed);
            }
        };
        let expected = Expected {
            status: head.status.as_u16(),
            events: is_events(&head),
            shape,
            idle: SILENCE,
        };
        let observed = Observed::new(expected, body, first, lease);
        headers::for_client(&mut head.headers);
        Ok(Reply::from_parts(head, observed.into_reply_body()))
    }

    /// The first bytes of an answer; all of it when it is an error of an engine with its own words, which is said in
    /// ours then.
    async fn begin(
        &self,
        head: &mut response::Parts,
        body: &mut UpstreamBody,
    ) -> Result<Option<Bytes>, UpstreamError> {
        let first = body.data().await.transpose()?;
        let (events, begun) = (is_events(head), first.as_deref().unwrap_or_default());
        if self.engine != EngineKind::SGLang || !dialect::concerns(head.status, events, begun) {
            return Ok(first);
        }
        let mut whole = BytesMut::from(begun);
        while whole.len() < dialect::MAX_ERROR
            && let Some(bytes) = body.data().await.transpose()?
        {
            whole.extend_from_slice(&bytes);
        }
        let whole = whole.freeze();
        let translated = body
            .is_end()
            .then(|| dialect::translate(head.status, events, &whole))
            .flatten();
        let Some((status, said)) = translated else {
            return Ok(Some(whole));
        };
        head.status = status;
        head.headers.remove(header::TRANSFER_ENCODING);
        head.headers
            .insert(header::CONTENT_LENGTH, HeaderValue::from(said.len()));
        head.headers
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Some(said))
    }

    fn count(&self, refusal: &Refusal) {
        let reason = match refusal {
            Refusal::Saturated => SidecarRefusal::Saturated,
            Refusal::UnknownPath => SidecarRefusal::Path,
            Refusal::EngineDown | Refusal::EngineFailed => SidecarRefusal::Engine,
            _ => SidecarRefusal::Request,
        };
        self.metrics
            .sidecar
            .refused
            .with_label_values(&[reason.as_str()])
            .inc();
    }
}

fn is_events(head: &response::Parts) -> bool {
    let kind = head.headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

/// How the client of a path expects errors.
fn shape(method: &Method, path: Option<&PathAndQuery>) -> ErrorShape {
    match request::Route::find(method, path).map(|route| route.target) {
        Ok(Target::Forward(api)) => api.shape(),
        Ok(Target::Models | Target::Model(_)) | Err(_) => ErrorShape::OpenAi,
    }
}

/// Only the API goes through; the engine's development and control endpoints stay inside the pod. A path with dots
/// or escapes could be read in more than one way and is not served.
fn served_path(path: Option<&PathAndQuery>) -> Option<PathAndQuery> {
    let whole = path?;
    let path = whole.path();
    let api = path == "/tokenize" || path.starts_with("/v1/");
    let control = ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"].contains(&path);
    let plain = !path.contains("//") && !path.contains('%') && !path.split('/').any(|part| part == "..");
    (api && plain && !control).then(|| whole.clone())
}

fn workflow_key(headers: &HeaderMap) -> Option<WorkflowKey> {
    headers.get(names::WORKFLOW_KEY)?.to_str().ok()?.parse().ok()
}

/// All of Weir's own headers stay here; the attempt's request id goes on to the engine. SGLang's `x-override-…` are for
/// routers (priority, rank, where to fetch a KV cache from), and no client is one.
fn engine_headers(from: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    let id = from.get(&REQUEST_ID).map(|id| (&REQUEST_ID, id));
    headers::for_upstream(from)
        .filter(|(name, _)| !name.as_str().starts_with("x-override-"))
        .chain(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_api_is_served() {
        let check = |path: &str, expected: bool| {
            assert_eq!(
                served_path(Some(&path.parse().unwrap())).is_some(),
                expected,
                "{path}"
            );
        };
        for path in [
            "/v1/chat/completions",
            "/v1/models",
            "/v1/responses/r1?x=..",
            "/tokenize",
        ] {
            check(path, true);
        }
        for path in [
            "/",
            "/v1",
            "/sleep?level=1",
            "/metrics",
            "/health",
            "/invocations",
            "/detokenize",
            "/v1/../sleep",
            "/v1//sleep",
            "/v1/%2e%2e/sleep",
            "/v1/load_lora_adapter",
            "/tokenize/x",
        ] {
            check(path, false);
        }
        assert!(served_path(None).is_none());
    }

    #[test]
    fn the_engine_sees_the_request_id_and_none_of_our_headers() {
        let mut from = HeaderMap::new();
        let key = WorkflowKey::derive("t", "p", "w");
        from.insert(names::WORKFLOW_KEY, key.to_string().parse().unwrap());
        from.insert(names::REQUEST_ID, "r-1".parse().unwrap());
        from.insert(header::AUTHORIZATION, "Bearer k".parse().unwrap());
        from.insert("x-override-priority", "-9".parse().unwrap());
        let to: Vec<_> = engine_headers(&from).collect();
        assert_eq!(to.len(), 2);
        assert_eq!(to[1], (&REQUEST_ID, &HeaderValue::from_static("r-1")));
        assert_eq!(workflow_key(&from), Some(key));
        from.insert(names::WORKFLOW_KEY, "nonsense".parse().unwrap());
        assert_eq!(workflow_key(&from), None);
    }
}
