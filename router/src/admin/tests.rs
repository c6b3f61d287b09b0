//! The guard and the bounds, over real sockets.

use std::{fs, future, path::Path};

use http_body_util::StreamBody;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};

use super::*;
use crate::{
    fetch::{Get, get},
    metrics::Role,
};

/// One route of each kind; the long one tells when it was entered and never ends.
struct Sample {
    entered: mpsc::UnboundedSender<()>,
    ready: Result<(), &'static str>,
}

impl Routes for Sample {
    fn readiness(&self) -> Result<(), &'static str> {
        self.ready
    }

    fn refresh(&self) {}

    fn access(&self, method: &Method, path: &str) -> Access {
        match (method.as_str(), path) {
            ("GET", "/open") => Access::Open,
            ("POST", "/guarded") => Access::Token,
            ("GET", "/stream") => Access::TokenLong,
            _ => Access::Unknown,
        }
    }

    async fn answer(&self, call: Call) -> Response<AdminBody> {
        match call.head.uri.path() {
            "/open" => text(StatusCode::OK, call.query("name").unwrap_or("nobody").to_owned()),
            "/guarded" => json(StatusCode::OK, &call.body.len()),
            _ => {
                self.entered.send(()).unwrap();
                Response::new(StreamBody::new(futures::stream::pending()).boxed_unsync())
            }
        }
    }
}

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    entered: mpsc::UnboundedReceiver<()>,
    server: JoinSet<()>,
    metrics: Arc<Metrics>,
    _dir: tempfile::TempDir,
}

async fn running(long: usize, ready: Result<(), &'static str>) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let token = token_in(dir.path());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, entered) = mpsc::unbounded_channel();
    let metrics = Metrics::new(Role::Gateway).unwrap();
    let admin = Arc::new(Admin {
        routes: Sample {
            entered: sender,
            ready,
        },
        metrics: Arc::clone(&metrics),
        token: Some(token),
        long: Arc::new(Semaphore::new(long)),
    });
    let stop = CancellationToken::new();
    let mut server = JoinSet::new();
    server.spawn(serve(listener, admin, stop.clone()));
    Running {
        address,
        stop,
        entered,
        server,
        metrics,
        _dir: dir,
    }
}

fn token_in(dir: &Path) -> TokenFile {
    let path = dir.join("token");
    fs::write(&path, "secret").unwrap();
    TokenFile::open(path).unwrap()
}

async fn status(address: SocketAddr, target: &str, bearer: Option<&'static str>) -> (u16, String) {
    let what = Get {
        address,
        target,
        bearer: bearer.map(HeaderValue::from_static),
        max_bytes: 1 << 20,
        within: Duration::from_secs(10),
    };
    let (status, body) = get(what).await.unwrap();
    (status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
}

async fn raw(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn first_line(stream: &mut TcpStream) -> String {
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..length])
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn probes_are_open_and_guarded_routes_need_the_token() {
    let mut server = running(4, Ok(())).await;
    let at = server.address;
    for (target, bearer, expected) in [
        ("/livez", None, 200),
        ("/readyz", None, 200),
        ("/metrics", None, 200),
        ("/open", None, 200),
        ("/stream", None, 401),
        ("/stream", Some("Bearer wrong!"), 401),
        ("/stream", Some("secret"), 401),
        ("/guarded", Some("Bearer secret"), 404),
        ("/nowhere", Some("Bearer secret"), 404),
        ("/nowhere", None, 404),
    ] {
        assert_eq!(
            status(at, target, bearer).await.0,
            expected,
            "{target} {bearer:?}"
        );
    }
    assert_eq!(status(at, "/open?x=1&name=me", None).await.1, "me");
    assert_eq!(server.metrics.unauthorized.get(), 3);
    let with_body =
        "POST /guarded HTTP/1.1\r\nhost: a\r\nauthorization: Bearer secret\r\ncontent-length: 3\r\n\r\nabc";
    assert_eq!(first_line(&mut raw(at, with_body).await).await, "HTTP/1.1 200 OK");
    server.stop.cancel();
    server.server.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_missing_is_said_by_readyz() {
    let server = running(4, Err("no configuration yet\n")).await;
    assert_eq!(
        status(server.address, "/readyz", None).await,
        (503, "no configuration yet\n".to_owned())
    );
    assert_eq!(status(server.address, "/livez", None).await.0, 200);
}

#[tokio::test]
async fn a_body_past_the_bound_is_refused() {
    let server = running(4, Ok(())).await;
    let length = MAX_BODY + 1;
    let mut stream = raw(
        server.address,
        &format!("POST /guarded HTTP/1.1\r\nhost: a\r\nauthorization: Bearer secret\r\ncontent-length: {length}\r\n\r\n"),
    )
    .await;
    stream.write_all(&vec![b'x'; length]).await.unwrap();
    assert_eq!(first_line(&mut stream).await, "HTTP/1.1 413 Payload Too Large");
}

#[tokio::test]
async fn long_answers_are_bounded_leave_probes_alone_and_end_with_the_server() {
    let mut server = running(2, Ok(())).await;
    let at = server.address;
    let request = "GET /stream HTTP/1.1\r\nhost: a\r\nauthorization: Bearer secret\r\n\r\n";
    let mut streams = Vec::new();
    for _ in 0..2 {
        streams.push(raw(at, request).await);
        server.entered.recv().await.unwrap();
    }
    assert_eq!(
        first_line(&mut raw(at, request).await).await,
        "HTTP/1.1 503 Service Unavailable"
    );
    assert_eq!(status(at, "/livez", None).await.0, 200);
    // A place is free again once a reader leaves.
    streams.pop();
    loop {
        let mut next = raw(at, request).await;
        if first_line(&mut next).await == "HTTP/1.1 200 OK" {
            streams.push(next);
            break;
        }
        tokio::task::yield_now().await;
    }
    server.stop.cancel();
    server.server.join_next().await.unwrap().unwrap();
    future::ready(streams).await;
}
