//! A client that sees bytes: nothing between the test and the socket.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use weir_sim::{Options, Running, spawn};

/// Longest wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A simulator with the model names of the captured samples.
pub(crate) async fn tiny(options: Options) -> Running {
    spawn(Options {
        served_names: vec!["tiny".to_owned(), "alias".to_owned()],
        ..options
    })
    .await
    .unwrap()
}

/// Bytes of a request.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: sim\r\n");
    if !body.is_empty() && !headers.iter().any(|(name, _)| *name == "content-type") {
        text.push_str("content-type: application/json\r\n");
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    text.into_bytes()
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Data of the events of a stream.
    pub(crate) fn events(&self) -> Vec<&str> {
        self.body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .collect()
    }

    /// The body with times and fingerprints blanked.
    pub(crate) fn normalised(&self) -> String {
        let mut text = self.body.clone();
        for (before, stop) in [
            ("\"created\":", ','),
            ("\"created_at\":", ','),
            ("vllm-0.32.0-", '"'),
            ("modelperm-", '"'),
        ] {
            let mut parts = text.split(before).map(str::to_owned).collect::<Vec<_>>();
            for part in parts.iter_mut().skip(1) {
                let end = part.find(stop).unwrap();
                part.replace_range(..end, "X");
            }
            text = parts.join(before);
        }
        text
    }
}

/// A connection.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    pub(crate) received: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            received: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Reads until `text` has come; panics at the connection's end.
    pub(crate) async fn until(&mut self, text: &str) {
        timeout(PATIENCE, async {
            while !String::from_utf8_lossy(&self.received).contains(text) {
                let count = self.stream.read_buf(&mut self.received).await.unwrap();
                assert!(
                    count > 0,
                    "closed before `{text}`: {}",
                    String::from_utf8_lossy(&self.received)
                );
            }
        })
        .await
        .unwrap_or_else(|_| panic!("`{text}` never came: {}", String::from_utf8_lossy(&self.received)));
    }

    /// Reads to the connection's end and returns all that ever came. A reset counts as an end.
    pub(crate) async fn end(&mut self) -> String {
        timeout(PATIENCE, async {
            while matches!(self.stream.read_buf(&mut self.received).await, Ok(1..)) {}
        })
        .await
        .unwrap_or_else(|_| panic!("not closed: {}", String::from_utf8_lossy(&self.received)));
        String::from_utf8_lossy(&self.received).into_owned()
    }

    /// Whether nothing comes, not even an end, for `time`.
    pub(crate) async fn silent_for(&mut self, time: Duration) -> bool {
        timeout(time, self.stream.read_buf(&mut self.received))
            .await
            .is_err()
    }

    /// Sends a request and reads its answer; the connection stays open.
    pub(crate) async fn ask(&mut self, method: &str, path: &str, body: &str) -> Answer {
        self.send(&request(method, path, &[], body)).await;
        self.until("\r\n\r\n").await;
        let text = String::from_utf8_lossy(&self.received).into_owned();
        let (head, _) = text.split_once("\r\n\r\n").unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap();
        let whole = head.len() + 4 + length.parse::<usize>().unwrap();
        while self.received.len() < whole {
            assert!(self.stream.read_buf(&mut self.received).await.unwrap() > 0);
        }
        let bytes: Vec<u8> = self.received.drain(..whole).collect();
        parse(&String::from_utf8_lossy(&bytes))
    }
}

/// One request on its own connection.
pub(crate) async fn ask(
    sim: &Running,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut connection = Connection::open(sim.address).await;
    let headers = [headers, &[("connection", "close")]].concat();
    connection.send(&request(method, path, &headers, body)).await;
    parse(&connection.end().await)
}

pub(crate) async fn get(sim: &Running, path: &str) -> Answer {
    ask(sim, "GET", path, &[], "").await
}

pub(crate) async fn post(sim: &Running, path: &str, body: &Value) -> Answer {
    ask(sim, "POST", path, &[], &body.to_string()).await
}

/// A chat request that was sent and is in the engine.
pub(crate) async fn begin_chat(sim: &Running, body: &Value) -> Connection {
    let before = sim.in_engine();
    let mut connection = Connection::open(sim.address).await;
    connection
        .send(&request("POST", "/v1/chat/completions", &[], &body.to_string()))
        .await;
    timeout(PATIENCE, sim.wait_for_requests(|count| *count > before))
        .await
        .unwrap();
    connection
}

/// Waits until the engine is empty.
pub(crate) async fn drained(sim: &Running) {
    timeout(PATIENCE, sim.wait_for_requests(|count| *count == 0))
        .await
        .unwrap();
}

fn parse(text: &str) -> Answer {
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let chunked = head.contains("transfer-encoding: chunked");
    let body = if chunked { unchunk(body) } else { body.to_owned() };
    Answer {
        status,
        head: head.to_owned(),
        body,
    }
}

/// Undoes chunked framing; a cut stream is marked.
fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    loop {
        let Some((size, rest)) = body.split_once("\r\n") else {
            return whole + "<cut>";
        };
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return whole;
        }
        whole.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
}
