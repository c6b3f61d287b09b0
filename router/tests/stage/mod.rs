//! A stage for the real router on real sockets: a gateway, engines that do what a test says byte by byte, and a client
//! that sees every byte.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a stage that fails ends its test"
)]
#![expect(
    dead_code,
    unreachable_pub,
    reason = "every test binary uses its own part of the stage"
)]

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use weir_router::{
    gateway::{Gateway, pools::Pools, scheduler::EndpointInfo, scheduler::PoolHandle},
    metrics::{Metrics, Role},
    proxy::server::{self, Traffic},
};
use weir_schedule::{EndpointId, Event};
use weir_wire::{config::GatewayConfig, control::PoolState};

/// Longest wait for anything that must come.
pub const SOON: Duration = Duration::from_secs(20);

/// One part of what an engine does with a request.
#[derive(Clone)]
pub enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Waits for [`Engine::go_on`], or notices that the router left.
    Wait,
    /// Closes the connection.
    Close,
}

/// Sends text.
pub fn send(text: impl Into<Vec<u8>>) -> Step {
    Step::Send(text.into())
}

/// A complete JSON answer.
pub fn json(body: &str) -> Vec<Step> {
    vec![send(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))]
}

/// An answer with a status and a JSON body.
pub fn status(status: &str, body: &str) -> Vec<Step> {
    vec![send(format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))]
}

/// The head of an event stream.
pub const SSE_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

/// One chunk.
pub fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

/// What an engine was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Request line and headers, as received.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Asked {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// An engine that follows a script.
pub struct Engine {
    pub address: SocketAddr,
    asked: mpsc::UnboundedReceiver<Asked>,
    gate: Arc<Semaphore>,
    gone: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Engine {
    /// An engine that answers the nth request (from 0) with `script(n)`.
    pub async fn start(script: impl Fn(usize) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, asked) = mpsc::unbounded_channel();
        let gate = Arc::new(Semaphore::new(0));
        let gone = Arc::new(AtomicUsize::new(0));
        let connections = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let actor = Actor {
            script: Arc::new(script),
            number: Arc::default(),
            seen,
            gate: Arc::clone(&gate),
            gone: Arc::clone(&gone),
        };
        let count = Arc::clone(&connections);
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                serving.spawn(actor.clone().serve(stream));
            }
        });
        Self {
            address,
            asked,
            gate,
            gone,
            connections,
            _tasks: tasks,
        }
    }

    /// The next request that came.
    pub async fn asked(&mut self) -> Asked {
        timeout(SOON, self.asked.recv())
            .await
            .expect("the engine is asked")
            .expect("the engine runs")
    }

    /// Requests that came and were not looked at.
    pub fn is_unasked(&mut self) -> bool {
        self.asked.try_recv().is_err()
    }

    /// Lets one waiting step go on.
    pub fn go_on(&self) {
        self.gate.add_permits(1);
    }

    /// Returns once the router has left `count` requests.
    pub async fn gone(&self, count: usize) {
        until(|| self.gone.load(Ordering::SeqCst) == count).await;
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

#[derive(Clone)]
struct Actor {
    script: Arc<dyn Fn(usize) -> Vec<Step> + Send + Sync>,
    number: Arc<AtomicUsize>,
    seen: mpsc::UnboundedSender<Asked>,
    gate: Arc<Semaphore>,
    gone: Arc<AtomicUsize>,
}

impl Actor {
    async fn serve(self, mut stream: TcpStream) {
        let mut buffer = Vec::new();
        while let Some(asked) = read_request(&mut stream, &mut buffer).await {
            let number = self.number.fetch_add(1, Ordering::SeqCst);
            let _ = self.seen.send(asked);
            for step in (self.script)(number) {
                match step {
                    Step::Send(bytes) => {
                        if stream.write_all(&bytes).await.is_err() {
                            self.gone.fetch_add(1, Ordering::SeqCst);
                            return;
                        }
                    }
                    Step::Wait => {
                        let mut byte = [0];
                        tokio::select! {
                            permit = self.gate.acquire() => permit.unwrap().forget(),
                            _ = stream.read(&mut byte) => {
                                self.gone.fetch_add(1, Ordering::SeqCst);
                                return;
                            }
                        }
                    }
                    Step::Close => return,
                }
            }
        }
    }
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Asked> {
    loop {
        if let Some(end) = find(buffer, b"\r\n\r\n") {
            let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
            let mut asked = Asked {
                head,
                body: Vec::new(),
            };
            let length: usize = asked.header("content-length").map_or(0, |it| it.parse().unwrap());
            while buffer.len() < end + 4 + length {
                if stream.read_buf(buffer).await.ok()? == 0 {
                    return None;
                }
            }
            asked.body = buffer[end + 4..end + 4 + length].to_vec();
            buffer.drain(..end + 4 + length);
            return Some(asked);
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// A gateway with its traffic port open.
pub struct Stage {
    pub address: SocketAddr,
    pub pools: Arc<Pools>,
    pub stop: CancellationToken,
    serving: JoinSet<io::Result<()>>,
}

impl Stage {
    /// A gateway with this configuration.
    pub async fn open(yaml: &str) -> Self {
        let metrics = Metrics::new(Role::Gateway).unwrap();
        let pools = Pools::new(Arc::clone(&metrics), CancellationToken::new());
        pools.apply(GatewayConfig::parse(yaml).unwrap()).unwrap();
        let counts = Arc::clone(&metrics);
        let gateway = Gateway::new(Arc::clone(&pools), metrics, 7, CancellationToken::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let token = stop.clone();
        let bounds = pools.bounds();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let handler = move |request| Arc::clone(&gateway).answer(request);
            let traffic = Traffic {
                listener,
                bounds,
                metrics: &counts,
            };
            server::serve(traffic, handler, token).await
        });
        Self {
            address,
            pools,
            stop,
            serving,
        }
    }

    /// A gateway with one pool `p` (model `m`, held while nothing is ready) and these engines, each with room for
    /// `concurrency` requests.
    pub async fn with(engines: &[&Engine], concurrency: u32, extra: &str) -> Self {
        let stage = Self::open(&format!(
            "{extra}\npools: [{{name: p, uid: u, model: m, aliases: [n], wakes: true}}]\n"
        ))
        .await;
        for (index, engine) in engines.iter().enumerate() {
            stage.add(&format!("e{index}"), engine.address, concurrency);
        }
        stage
    }

    pub fn pool(&self) -> PoolHandle {
        self.pools.by_name("p").unwrap()
    }

    /// Makes an endpoint known and ready.
    pub fn add(&self, name: &str, address: SocketAddr, concurrency: u32) -> EndpointId {
        let pool = self.pool();
        let endpoint = pool.set_endpoint(EndpointInfo {
            name: name.into(),
            uid: name.into(),
            address: address.to_string(),
            sidecar: false,
        });
        pool.notify(Event::EndpointReady {
            endpoint,
            concurrency,
        });
        endpoint
    }

    /// Returns once the pool's published state is as wanted.
    pub async fn state(&self, wanted: impl FnMut(&Arc<PoolState>) -> bool) -> PoolState {
        let mut states = self.pool().states();
        let state = timeout(SOON, states.wait_for(wanted)).await;
        (**state.expect("the state comes").unwrap()).clone()
    }

    /// Sends a request and reads its answer to the end.
    pub async fn ask(&self, path: &str, headers: &str, body: &str) -> Answer {
        self.begin(path, headers, body).await.finish().await
    }

    /// Sends a chat request for model `m`.
    pub async fn chat(&self) -> Answer {
        self.ask("/v1/chat/completions", "", CHAT).await
    }

    /// Sends a request; its answer is read later.
    pub async fn begin(&self, path: &str, headers: &str, body: &str) -> Client {
        let mut client = Client::connect(self.address).await;
        client
            .write(&format!(
                "POST {path} HTTP/1.1\r\nhost: weir\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}",
                body.len()
            ))
            .await;
        client
    }

    /// Stops the gateway and waits until it has drained.
    pub async fn close(mut self) {
        self.stop.cancel();
        let ended = timeout(SOON, self.serving.join_next()).await;
        ended.expect("the gateway drains").unwrap().unwrap().unwrap();
    }
}

/// A chat request.
pub const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
/// A streaming chat request.
pub const STREAM: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;

/// A raw connection to the gateway.
pub struct Client {
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            read: Vec::new(),
        }
    }

    pub async fn write(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads until the text read so far contains `part`; returns all of it.
    pub async fn read_until(&mut self, part: &str) -> String {
        let reading = async {
            while find(&self.read, part.as_bytes()).is_none() {
                let count = self.stream.read_buf(&mut self.read).await.unwrap();
                assert_ne!(
                    count,
                    0,
                    "ended without {part:?}: {}",
                    String::from_utf8_lossy(&self.read)
                );
            }
            String::from_utf8_lossy(&self.read).into_owned()
        };
        timeout(SOON, reading).await.expect("the text comes")
    }

    /// Reads to the end of the connection.
    pub async fn finish(mut self) -> Answer {
        let ended = timeout(SOON, self.stream.read_to_end(&mut self.read))
            .await
            .expect("the answer ends");
        Answer::parse(&self.read, ended.is_err())
    }
}

/// An answer, taken apart.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
    /// The body ended as its framing says.
    pub complete: bool,
}

impl Answer {
    fn parse(bytes: &[u8], broken: bool) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let Some((head, rest)) = text.split_once("\r\n\r\n") else {
            return Self {
                status: 0,
                head: text.into_owned(),
                body: String::new(),
                complete: false,
            };
        };
        let mut answer = Self {
            status: head[9..12].parse().unwrap(),
            head: head.to_owned(),
            body: rest.to_owned(),
            complete: !broken,
        };
        if answer.header("transfer-encoding") == Some("chunked") {
            let (body, complete) = dechunk(rest);
            answer.body = body;
            answer.complete &= complete;
        } else if let Some(length) = answer.header("content-length") {
            answer.complete &= length.parse() == Ok(rest.len());
        }
        answer
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// Status, `X-Weir-Reason` and the `param` of an OpenAI-shaped error.
    pub fn refusal(&self) -> (u16, String, Option<String>) {
        let body: serde_json::Value = serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", self.head, self.body));
        let error = &body["error"];
        assert!(
            error["message"].as_str().is_some_and(|it| !it.is_empty()),
            "{body}"
        );
        assert!(error["type"].is_string() && error["code"].is_string(), "{body}");
        let reason = self.header("x-weir-reason").unwrap_or_default().to_owned();
        (self.status, reason, error["param"].as_str().map(str::to_owned))
    }
}

fn dechunk(mut text: &str) -> (String, bool) {
    let mut body = String::new();
    loop {
        let Some((size, rest)) = text.split_once("\r\n") else {
            return (body, false);
        };
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (body, rest == "\r\n");
        }
        if rest.len() < size + 2 {
            body.push_str(&rest[..size.min(rest.len())]);
            return (body, false);
        }
        body.push_str(&rest[..size]);
        text = &rest[size + 2..];
    }
}

/// Waits until something observed by polling holds.
pub async fn until(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, waiting).await.expect("the condition comes true");
}

/// An address where nothing listens.
pub async fn nowhere() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}
