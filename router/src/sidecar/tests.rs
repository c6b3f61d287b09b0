//! A whole sidecar over real sockets, in front of a stub engine.

use std::{
    convert::Infallible,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
};
use weir_wire::{
    WorkflowKey, headers,
    sidecar::{EngineState, HOMES, Homes, STATE},
};

use super::*;
use crate::{
    fetch::{Get, get},
    metrics::Role,
};

/// An engine that answers a chat when it is let go.
struct Stub {
    model: &'static str,
    health: Mutex<StatusCode>,
    go: Semaphore,
    started: AtomicU32,
    aborted: AtomicU32,
    seen: Mutex<Option<HeaderMap>>,
}

/// Counts a chat that was dropped before its end.
struct Chat(Arc<Stub>, bool);

impl Chat {
    fn finished(&mut self) {
        self.1 = true;
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        if !self.1 {
            self.0.aborted.fetch_add(1, Ordering::SeqCst);
        }
    }
}

type StubBody = UnsyncBoxBody<Bytes, Infallible>;

const USAGE: &str = r#"data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14}}

data: [DONE]

"#;

impl Stub {
    fn new(model: &'static str) -> Arc<Self> {
        Arc::new(Self {
            model,
            health: Mutex::new(StatusCode::OK),
            go: Semaphore::new(0),
            started: AtomicU32::new(0),
            aborted: AtomicU32::new(0),
            seen: Mutex::default(),
        })
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let stub = Arc::clone(&self);
            let service = service_fn(move |request| {
                let stub = Arc::clone(&stub);
                async move { Ok::<_, Infallible>(stub.answer(&request)) }
            });
            connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    }

    fn answer(self: Arc<Self>, request: &Request<Incoming>) -> Response<StubBody> {
        let whole = |status, text: String| {
            let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
            *response.status_mut() = status;
            response
        };
        match request.uri().path() {
            "/health" => whole(*self.health.lock().unwrap(), String::new()),
            "/v1/models" => whole(
                StatusCode::OK,
                format!(r#"{{"data":[{{"id":"{}"}}]}}"#, self.model),
            ),
            "/metrics" => whole(
                StatusCode::OK,
                "vllm:num_requests_running{engine=\"0\"} 5.0\nvllm:num_requests_waiting{engine=\"0\"} 2.0\n"
                    .into(),
            ),
            "/v1/chat/completions" => self.chat(request.headers().clone()),
            _ => whole(StatusCode::OK, "the way in".into()),
        }
    }

    /// The head at once, the first event when let go, as vLLM does.
    fn chat(self: Arc<Self>, headers: HeaderMap) -> Response<StubBody> {
        *self.seen.lock().unwrap() = Some(headers);
        self.started.fetch_add(1, Ordering::SeqCst);
        let chat = Chat(self, false);
        let events = futures::stream::once(async move {
            let mut chat = chat;
            let stub = Arc::clone(&chat.0);
            stub.go.acquire().await.unwrap().forget();
            chat.finished();
            Ok(Frame::data(Bytes::from(USAGE)))
        });
        let mut response = Response::new(StreamBody::new(events.boxed()).boxed_unsync());
        response
            .headers_mut()
            .insert("content-type", HeaderValue::from_static("text/event-stream"));
        response
    }
}

struct World {
    stub: Arc<Stub>,
    traffic: SocketAddr,
    admin: SocketAddr,
    stop: CancellationToken,
    engine: JoinSet<()>,
    engine_address: SocketAddr,
    sidecar: JoinSet<Result<(), SidecarError>>,
    _dir: tempfile::TempDir,
}

impl World {
    /// A sidecar for model `m`, whose engine is not started yet.
    async fn new(served: &'static str, concurrency: u32) -> Self {
        // A port that is free now, and refuses connections until the engine takes it.
        let engine_address = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let token_file = dir.path().join("token");
        std::fs::write(&token_file, "secret").unwrap();
        let settings = Settings {
            pool: "p".into(),
            pool_uid: "u".into(),
            engine: EngineKind::Vllm,
            engine_port: engine_address.port(),
            model: "m".into(),
            concurrency: Some(concurrency),
            listen: "127.0.0.1:0".parse().unwrap(),
            admin_listen: "127.0.0.1:0".parse().unwrap(),
            token_file: Some(token_file),
            drain_timeout: Duration::from_secs(60),
        };
        let sidecar = Sidecar::bind(settings, Metrics::new(Role::Sidecar).unwrap())
            .await
            .unwrap();
        let (traffic, admin) = sidecar.addresses().unwrap();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(sidecar.run(stop.clone()));
        Self {
            stub: Stub::new(served),
            traffic,
            admin,
            stop,
            engine: JoinSet::new(),
            engine_address,
            sidecar: tasks,
            _dir: dir,
        }
    }

    async fn ready(served: &'static str, concurrency: u32) -> Self {
        let mut world = Self::new(served, concurrency).await;
        world.start_engine().await;
        world.state_when(|state| state.ready).await;
        world
    }

    async fn start_engine(&mut self) {
        let listener = TcpListener::bind(self.engine_address).await.unwrap();
        self.engine.spawn(Arc::clone(&self.stub).serve(listener));
    }

    async fn get(&self, target: &str) -> (u16, String) {
        let (status, body) = get(Get {
            address: self.admin,
            target,
            bearer: Some(HeaderValue::from_static("Bearer secret")),
            max_bytes: 1 << 20,
            within: Duration::from_secs(30),
        })
        .await
        .unwrap();
        (status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
    }

    /// Long-polls until the state is as asked.
    async fn state_when(&self, wanted: impl Fn(&EngineState) -> bool) -> EngineState {
        let mut after = 0;
        loop {
            let (status, body) = self.get(&format!("{STATE}?after={after}&waitMs=20000")).await;
            assert_eq!(status, 200, "{body}");
            let state: EngineState = serde_json::from_str(&body).unwrap();
            if wanted(&state) {
                return state;
            }
            after = state.version;
        }
    }

    /// Sends a request and leaves the answer to be read.
    async fn send(&self, path: &str, headers: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.traffic).await.unwrap();
        let request = format!("POST {path} HTTP/1.1\r\nhost: a\r\n{headers}content-length: 2\r\n\r\n{{}}");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn until(&self, mut reached: impl AsyncFnMut() -> bool) {
        let reaching = async {
            while !reached().await {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), reaching)
            .await
            .expect("not reached in 30 s");
    }

    async fn started(&self, count: u32) {
        self.until(async || self.stub.started.load(Ordering::SeqCst) == count)
            .await;
    }
}

/// Everything up to the end of the answer's events, or of its body where it has a length.
async fn read_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if text.contains("0\r\n\r\n") || text.contains("\"code\":") {
            return text;
        }
        let length = stream.read(&mut buffer).await.unwrap();
        if length == 0 {
            return text;
        }
        answer.extend_from_slice(&buffer[..length]);
    }
}

#[tokio::test]
async fn readiness_follows_the_engine_and_its_figures_are_told() {
    let mut world = World::new("m", 3).await;
    assert_eq!(world.get("/readyz").await.0, 503);
    assert_eq!(world.get("/engine/livez").await.0, 503);
    assert_eq!(world.get("/livez").await.0, 200);
    world.start_engine().await;
    let ready = world.state_when(|state| state.ready).await;
    assert_eq!(ready.concurrency, 3);
    assert!(ready.start_ms.is_some());
    assert_eq!(world.get("/readyz").await.0, 200);
    assert_eq!(world.get("/engine/livez").await.0, 200);
    let known = world
        .state_when(|state| state.engine.is_some())
        .await
        .engine
        .unwrap();
    assert_eq!((known.running, known.waiting), (5, 2));
    // The engine's process ends: its port is closed, and nothing is known of it any more.
    world.engine.shutdown().await;
    let gone = world.state_when(|state| !state.ready).await;
    assert_eq!(gone.instance, ready.instance);
    world.state_when(|state| state.engine.is_none()).await;
    assert_eq!(world.get("/engine/livez").await.0, 503);
}

#[tokio::test]
async fn an_engine_with_another_model_is_alive_and_not_ready() {
    let mut world = World::new("other", 3).await;
    world.start_engine().await;
    world
        .until(async || world.get("/engine/livez").await.0 == 200)
        .await;
    assert_eq!(world.get("/readyz").await.0, 503);
}

#[tokio::test]
async fn requests_past_places_and_queue_are_sent_elsewhere() {
    let world = World::ready("m", 1).await;
    let mut first = world.send("/v1/chat/completions", "").await;
    world.started(1).await;
    let mut queued = Vec::new();
    for count in 1..=8 {
        queued.push(world.send("/v1/chat/completions", "").await);
        let line = format!("weir_sidecar_waiting_requests {count}");
        world
            .until(async || world.get("/metrics").await.1.contains(&line))
            .await;
    }
    let refused = read_answer(&mut world.send("/v1/chat/completions", "").await).await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(refused.contains("x-weir-reason: saturated"), "{refused}");
    world.stub.go.add_permits(9);
    for stream in queued.iter_mut().chain([&mut first]) {
        let answer = read_answer(stream).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("[DONE]"),
            "{answer}"
        );
    }
    assert_eq!(world.stub.started.load(Ordering::SeqCst), 9);
    assert_eq!(world.stub.aborted.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_engine_that_takes_no_connections_is_told_apart_from_one_that_fails() {
    let world = World::new("m", 1).await;
    let refused = read_answer(&mut world.send("/v1/chat/completions", "").await).await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(refused.contains("x-weir-reason: engine_down"), "{refused}");
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_engine_and_the_place() {
    let world = World::ready("m", 1).await;
    drop(world.send("/v1/chat/completions", "").await);
    world
        .until(async || {
            world
                .get("/metrics")
                .await
                .1
                .contains("weir_sidecar_in_flight_requests 0")
        })
        .await;
    let leaving = world.send("/v1/chat/completions", "").await;
    world
        .until(async || world.stub.started.load(Ordering::SeqCst) > world.stub.aborted.load(Ordering::SeqCst))
        .await;
    drop(leaving);
    let all_aborted =
        || world.stub.started.load(Ordering::SeqCst) == world.stub.aborted.load(Ordering::SeqCst);
    world.until(async || all_aborted()).await;
    world.stub.go.add_permits(1);
    let answer = read_answer(&mut world.send("/v1/chat/completions", "").await).await;
    assert!(answer.contains("[DONE]"), "{answer}");
}

#[tokio::test]
async fn a_workflow_served_here_is_remembered_and_its_key_stays_in_the_sidecar() {
    let world = World::ready("m", 2).await;
    let key = WorkflowKey::derive("t", "p", "w");
    world.stub.go.add_permits(1);
    let headers = format!(
        "{}: {key}\r\n{}: r-1\r\n",
        headers::WORKFLOW_KEY,
        headers::REQUEST_ID
    );
    let answer = read_answer(&mut world.send("/v1/chat/completions", &headers).await).await;
    assert!(answer.contains("[DONE]"), "{answer}");
    let seen = world.stub.seen.lock().unwrap().take().unwrap();
    assert!(!seen.contains_key(headers::WORKFLOW_KEY));
    assert_eq!(seen[headers::REQUEST_ID], "r-1");
    let homes: Homes = serde_json::from_str(&world.get(HOMES).await.1).unwrap();
    assert_eq!(homes.homes.len(), 1);
    assert_eq!((homes.homes[0].key, homes.homes[0].tokens), (key, Some(14)));
}

#[tokio::test]
async fn paths_outside_the_api_do_not_reach_the_engine() {
    let world = World::ready("m", 2).await;
    for path in ["/sleep", "/metrics", "/collective_rpc", "/v1/../sleep"] {
        let answer = read_answer(&mut world.send(path, "").await).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    let state: EngineState = serde_json::from_str(&world.get(STATE).await.1).unwrap();
    assert_eq!(state.last_activity_age_ms, None, "probing is no activity");
}

#[tokio::test]
async fn the_hook_and_the_end_wait_for_requests_in_flight() {
    let mut world = World::ready("m", 2).await;
    let mut stream = world.send("/v1/chat/completions", "").await;
    world.started(1).await;
    {
        let mut hook = std::pin::pin!(world.get("/drain"));
        // Another round trip on the admin port cannot overtake the hook into being answered first by luck alone:
        // the hook has nothing to answer while the request is there.
        tokio::select! {
            answer = hook.as_mut() => panic!("the hook ended before the request: {answer:?}"),
            _ = world.state_when(|state| state.in_flight == 1) => {}
        }
        world.stub.go.add_permits(1);
        assert!(read_answer(&mut stream).await.contains("[DONE]"));
        assert_eq!(hook.await, (200, "drained\n".into()));
    }
    let mut last = world.send("/v1/chat/completions", "").await;
    world.started(2).await;
    world.stop.cancel();
    world
        .until(async || TcpStream::connect(world.traffic).await.is_err())
        .await;
    assert_eq!(world.get("/livez").await.0, 200, "probes are answered to the end");
    world.stub.go.add_permits(1);
    assert!(read_answer(&mut last).await.contains("[DONE]"));
    drop(last);
    world.sidecar.join_next().await.unwrap().unwrap().unwrap();
}
