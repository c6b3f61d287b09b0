//! Probes and metrics: `GET /livez`, `/readyz`, `/metrics`. Served by the leader and by followers alike.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

use crate::metrics::Metrics;

/// Connections served at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 64;
/// Longest wait for a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest life of a connection: one that is never read must not keep its place from a probe.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);

/// What `/readyz` tells: a phase of start-up, or readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet useful; the text says what is missing.
    Waiting(String),
    /// Standing by while another process holds the lease.
    Following,
    /// Holding the lease, but not all objects have been listed.
    Listing,
    /// Holding the lease and reconciling.
    Leading,
}

/// Shared between the process and its probes.
#[derive(Debug, Clone)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    readiness: Readiness,
    /// What the API server refuses, by watch.
    refused: BTreeMap<String, String>,
}

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            readiness: Readiness::Waiting("starting".to_owned()),
            refused: BTreeMap::new(),
        })))
    }
}

impl Health {
    /// Sets what `/readyz` tells.
    pub fn set(&self, readiness: Readiness) {
        self.state().readiness = readiness;
    }

    /// Sets what the API server answers to a watch that it refuses; `None` once it does not.
    pub fn refused(&self, watch: &str, answer: Option<String>) {
        let refused = &mut self.state().refused;
        match answer {
            Some(answer) => refused.insert(watch.to_owned(), answer),
            None => refused.remove(watch),
        };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `/readyz` tells. Whoever leads and may not watch is not useful.
    #[must_use]
    pub fn get(&self) -> Readiness {
        let state = self.state();
        match &state.readiness {
            Readiness::Listing | Readiness::Leading if !state.refused.is_empty() => {
                let answers: BTreeSet<&str> = state.refused.values().map(String::as_str).collect();
                Readiness::Waiting(Vec::from_iter(answers).join("; "))
            }
            readiness => readiness.clone(),
        }
    }
}

fn answer(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

fn respond(method: &Method, path: &str, health: &Health, metrics: &Metrics) -> Response<Full<Bytes>> {
    if method != Method::GET {
        return answer(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match path {
        "/livez" => answer(StatusCode::OK, "ok\n"),
        "/readyz" => match health.get() {
            Readiness::Waiting(what) => answer(StatusCode::SERVICE_UNAVAILABLE, format!("waiting: {what}\n")),
            Readiness::Listing => answer(
                StatusCode::SERVICE_UNAVAILABLE,
                "waiting: the first listing of objects\n",
            ),
            Readiness::Following => answer(StatusCode::OK, "standing by\n"),
            Readiness::Leading => answer(StatusCode::OK, "leading\n"),
        },
        "/metrics" => match metrics.encode() {
            Ok(text) => answer(StatusCode::OK, text),
            Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        _ => answer(StatusCode::NOT_FOUND, "one of /livez /readyz /metrics\n"),
    }
}

/// Serves until the listener fails for good; never returns otherwise.
pub async fn serve(listener: TcpListener, health: Health, metrics: Metrics) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "an admin connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (health, metrics) = (health.clone(), metrics.clone());
        connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = respond(request.method(), request.uri().path(), &health, &metrics);
                async move { Ok::<_, Infallible>(response) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(CONNECTION_LIMIT, served).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "an admin connection ended"),
                Err(_) => tracing::debug!("an admin connection was open too long"),
            }
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    fn check(path: &str, readiness: Readiness, expected: StatusCode) {
        let health = Health::default();
        health.set(readiness);
        let response = respond(&Method::GET, path, &health, &Metrics::new().unwrap());
        assert_eq!(response.status(), expected, "{path}");
    }

    #[test]
    fn probes_tell_the_phase() {
        check("/livez", Readiness::Waiting("crds".to_owned()), StatusCode::OK);
        check(
            "/readyz",
            Readiness::Waiting("crds".to_owned()),
            StatusCode::SERVICE_UNAVAILABLE,
        );
        check("/readyz", Readiness::Listing, StatusCode::SERVICE_UNAVAILABLE);
        check("/readyz", Readiness::Following, StatusCode::OK);
        check("/readyz", Readiness::Leading, StatusCode::OK);
        check("/metrics", Readiness::Leading, StatusCode::OK);
        check("/else", Readiness::Leading, StatusCode::NOT_FOUND);
    }

    #[test]
    fn a_refused_watch_is_told_until_it_is_not() {
        let health = Health::default();
        health.set(Readiness::Following);
        health.refused("Pod", Some("u cannot list pods".to_owned()));
        assert_eq!(health.get(), Readiness::Following, "a follower watches nothing");
        health.set(Readiness::Listing);
        assert_eq!(health.get(), Readiness::Waiting("u cannot list pods".to_owned()));
        health.refused("Pod", None);
        assert_eq!(health.get(), Readiness::Listing);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_loses_its_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Health::default(), Metrics::new().unwrap()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n";
        let mut sent = 0;
        // It asks on and on until both sides' buffers are full and nothing moves.
        while let Ok(written) = tokio::time::timeout(Duration::from_secs(1), stream.write_all(request)).await
        {
            written.unwrap();
            sent += 1;
        }
        tokio::time::sleep(CONNECTION_LIMIT).await;
        let mut text = Vec::new();
        // The end may be a reset; what counts is how much was answered.
        drop(stream.read_to_end(&mut text).await);
        let answered = String::from_utf8_lossy(&text).matches("HTTP/1.1 200").count();
        assert!(answered > 0 && answered < sent, "{answered} of {sent} answered");
    }

    #[test]
    fn other_methods_are_refused() {
        let response = respond(
            &Method::POST,
            "/livez",
            &Health::default(),
            &Metrics::new().unwrap(),
        );
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
