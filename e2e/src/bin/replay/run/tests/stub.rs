//! A server that answers chat completions as a test tells it, down to broken connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub(super) const ROLE: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\"},\"finish_reason\":null}]}\n\n";
pub(super) const LAST: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"},\"finish_reason\":\"length\"}]}\n\n";
pub(super) const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":60}}}\n\n";
pub(super) const DONE: &str = "data: [DONE]\n\n";
pub(super) const WEIR: &str =
    "x-weir-endpoint: pod-1\r\nx-weir-home: kept\r\nx-weir-queued-ms: 12\r\nx-weir-held: 1\r\n";

/// A request as the server read it.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub(super) headers: HashMap<String, String>,
    pub(super) body: Value,
    pub(super) path: String,
}

impl Heard {
    pub(super) fn id(&self) -> &str {
        &self.headers["x-request-id"]
    }
}

/// Bytes to send before the connection is closed; `None` keeps it open for ever.
pub(super) type Answer = Option<String>;

pub(super) struct Stub {
    pub(super) url: String,
    heard: Arc<Mutex<Vec<Heard>>>,
    /// Ends with the stub.
    _server: JoinSet<()>,
}

impl Stub {
    pub(super) async fn new(answer: impl Fn(&Heard) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (all, answer) = (Arc::clone(&heard), Arc::new(answer));
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (all, answer) = (Arc::clone(&all), Arc::clone(&answer));
                connections.spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let Some(request) = hear(&mut stream).await else {
                        return;
                    };
                    let answer = answer(&request);
                    all.lock().unwrap().push(request);
                    match answer {
                        Some(bytes) => stream.write_all(bytes.as_bytes()).await.unwrap(),
                        None => std::future::pending().await,
                    }
                });
            }
        });
        Self {
            url,
            heard,
            _server: server,
        }
    }

    pub(super) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }
}

async fn hear(stream: &mut BufReader<TcpStream>) -> Option<Heard> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut body = vec![0; headers["content-length"].parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    let body = serde_json::from_slice(&body).expect("the body is JSON of the announced length");
    Some(Heard { headers, body, path })
}

pub(super) fn stream(headers: &str, events: &[&str]) -> Answer {
    let events = events.concat();
    Some(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n{headers}\r\n{events}"
    ))
}

pub(super) fn whole(status: &str, headers: &str, body: &str) -> Answer {
    let length = body.len();
    Some(format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}"
    ))
}

pub(super) fn good(_: &Heard) -> Answer {
    stream("", &[ROLE, LAST, USAGE, DONE])
}
