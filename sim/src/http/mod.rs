//! The HTTP face: vLLM's routes, shapes and manners (`engine-interface.md` §1), or SGLang's ([`sglang`]), and `/sim`
//! for tests.

mod admit;
mod ask;
mod body;
mod chat;
mod completions;
mod connection;
mod control;
mod error;
mod generate;
mod messages;
mod metrics;
mod prompt;
mod responses;
mod route;
pub(crate) mod sglang;
mod simulation;
mod speech;
mod stream;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::json;
use tokio::sync::mpsc;

use self::{
    body::AnswerBody,
    error::{ApiError, Shape},
};
pub(crate) use self::{connection::serve as serve_connection, simulation::apply as apply_fault};
use crate::{
    driver::Handle,
    engine::{
        Settings,
        tokens::{hash_bytes, mix},
    },
    fault::Faults,
    ledger::Ledger,
    options::Options,
};

/// The version this simulator speaks like.
pub(crate) const VERSION: &str = "0.32.0";

/// What the server's task is told by requests and by the embedding program.
#[derive(Debug)]
pub(crate) enum Control {
    /// SIGTERM.
    Terminate,
    /// Close or open the listener.
    Refuse(bool),
    /// Exit with code 0 after so many milliseconds: the engine process died.
    ExitAfter(u64),
}

/// Everything a connection needs. Shared by all.
pub(crate) struct App {
    pub(crate) options: Options,
    pub(crate) settings: Settings,
    pub(crate) engine: Handle,
    pub(crate) ledger: Ledger,
    pub(crate) faults: Faults,
    pub(crate) control: mpsc::UnboundedSender<Control>,
    /// Part of `system_fingerprint`: differs by configuration.
    fingerprint: String,
    /// Seed of request ids: differs by start.
    id_seed: u64,
    draining: AtomicBool,
    dead: AtomicBool,
    /// SGLang's last `/health` heard nothing from the engine.
    silent: AtomicBool,
    /// When SGLang's warm-up ends, on the engine's clock; unset while the server does not listen.
    warm_at: OnceLock<Duration>,
    /// Generation requests that are not answered to their end.
    in_flight: AtomicUsize,
    /// Requests by route, method and class of status.
    counts: Mutex<BTreeMap<(&'static str, &'static str, u16), u64>>,
}

impl App {
    pub(crate) fn new(
        options: Options,
        settings: Settings,
        engine: Handle,
        ledger: Ledger,
        control: mpsc::UnboundedSender<Control>,
    ) -> Self {
        let configuration = hash_bytes(format!("{settings:?}").as_bytes());
        let clock = engine.clock();
        Self {
            fingerprint: format!("vllm-{VERSION}-{:08x}", configuration as u32),
            id_seed: mix(clock.unix_ms(clock.now()) ^ u64::from(std::process::id()).rotate_left(40)),
            options,
            settings,
            engine,
            ledger,
            faults: Faults::default(),
            control,
            draining: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            warm_at: OnceLock::new(),
            in_flight: AtomicUsize::new(0),
            counts: Mutex::default(),
        }
    }

    /// SIGTERM came. With vLLM's shutdown timeout new generation requests are refused from now on; SGLang goes on taking
    /// them, and only its probes say so.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// `/health` says 503 from now on: the engine process is gone.
    pub(crate) fn die(&self) {
        self.dead.store(true, Relaxed);
    }

    fn is_healthy(&self) -> bool {
        !self.dead.load(Relaxed) && !self.faults.unhealthy()
    }

    /// The listener opens now; SGLang warms up for so long.
    pub(crate) fn warm_up(&self, time: Duration) {
        let warm_at = self.engine.clock().now() + time;
        self.warm_at.get_or_init(|| warm_at);
    }

    fn is_starting(&self) -> bool {
        let now = self.engine.clock().now();
        self.warm_at.get().is_none_or(|warm_at| now < *warm_at)
    }

    fn is_hung(&self) -> bool {
        self.faults.hung()
    }

    /// The last `/health` of an SGLang server failed: SIGTERM ends it at once.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Relaxed)
    }

    /// SGLang's `/ready`.
    fn is_ready(&self) -> bool {
        self.is_healthy() && !self.is_draining() && !self.is_starting() && !self.is_silent()
    }

    /// The model's name in an answer: vLLM's own, or for SGLang whatever was asked for.
    fn answered_model(&self, asked: Option<&str>) -> String {
        let own = self.options.canonical_name();
        match self.options.sglang() {
            Some(_) => asked.filter(|model| !model.is_empty()).unwrap_or("default"),
            None => own,
        }
        .to_owned()
    }

    /// Any served name or none will do.
    fn check_model(&self, model: Option<&str>) -> Result<(), ApiError> {
        let Some(model) = model.filter(|model| !model.is_empty()) else {
            return Ok(());
        };
        if self.options.sglang().is_some() {
            return sglang::check_model(self, model);
        }
        let names = self.options.names();
        if names.iter().any(|name| name == model) {
            return Ok(());
        }
        let message = format!(
            "The model `{model}` does not exist. Valid aliases: {}.",
            names.join(", ")
        );
        Err(ApiError::not_found(message, Some("model")))
    }

    fn count(&self, route: &'static str, method: &Method, status: StatusCode) {
        if !matches!(
            route,
            "/metrics" | "/health" | "/load" | "/ping" | "/version" | "/server_info"
        ) {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            *counts
                .entry((route, method_label(method), status.as_u16() / 100))
                .or_default() += 1;
        }
    }
}

/// Methods as labels: a client may invent others without end.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn with_type(status: StatusCode, kind: &'static str, bytes: impl Into<Bytes>) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::whole(bytes));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn json_response(bytes: impl Into<Bytes>) -> Response<AnswerBody> {
    with_type(StatusCode::OK, "application/json", bytes)
}

fn json_value(value: &serde_json::Value) -> Response<AnswerBody> {
    json_response(value.to_string())
}

/// A status without a body.
fn empty(status: StatusCode) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::whole(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// The framework's own errors: another shape than the API's.
fn detail(status: StatusCode) -> Response<AnswerBody> {
    let text = status.canonical_reason().unwrap_or_default();
    with_type(status, "application/json", json!({"detail": text}).to_string())
}

fn failure(error: &ApiError, shape: Shape) -> Response<AnswerBody> {
    with_type(error.status, "application/json", error.body(shape))
}
