//! The control API over real sockets.

use std::{fs, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use weir_wire::{
    config::GatewayConfig,
    control::{Event, OrderAnswer, PoolState, orders_path},
};

use super::*;
use crate::{
    admin::{self, Admin, TokenFile},
    gateway::scheduler::fixtures::request,
    metrics::Role,
    sidecar::now,
};

struct World {
    pools: Arc<Pools>,
    metrics: Arc<Metrics>,
    address: SocketAddr,
    stop: CancellationToken,
    server: JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("token"), "secret").unwrap();
        let token = TokenFile::open(dir.path().join("token")).unwrap();
        let metrics = Metrics::new(Role::Gateway).unwrap();
        let pools = pools(&metrics);
        let control = Control {
            pools: Arc::clone(&pools),
            readiness: Arc::default(),
            metrics: Arc::clone(&metrics),
            instance: "i".into(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let mut server = JoinSet::new();
        let admin = Admin::new(control, Arc::clone(&metrics), Some(token));
        server.spawn(admin::serve(listener, admin, stop.clone()));
        Self {
            pools,
            metrics,
            address,
            stop,
            server,
            _dir: dir,
        }
    }

    fn configure(&self, names: &[&str]) -> String {
        let pools: Vec<String> = names
            .iter()
            .map(|name| format!("- {{name: {name}, uid: u, model: {name}, wakes: true}}\n"))
            .collect();
        let config = GatewayConfig::parse(&format!("pools:\n{}", pools.concat())).unwrap();
        let hash = config.hash().unwrap();
        self.pools.apply(config).unwrap();
        hash
    }

    async fn request(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer secret\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    async fn events(&self) -> Stream {
        Stream(BufReader::new(self.request("GET", EVENTS, "").await).lines())
    }

    /// Status and body.
    async fn order(&self, pool: &str, body: &str) -> (u16, String) {
        let mut answer = String::new();
        self.request("POST", &orders_path(pool), body)
            .await
            .read_to_string(&mut answer)
            .await
            .unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }
}

/// The pools of a gateway, none yet.
fn pools(metrics: &Arc<Metrics>) -> Arc<Pools> {
    Pools::new(Arc::clone(metrics), CancellationToken::new())
}

struct Stream(Lines<BufReader<TcpStream>>);

impl Stream {
    /// The next event; lines of heads and chunk sizes are passed over.
    async fn next(&mut self) -> Event {
        let reading = async {
            loop {
                let line = self.0.next_line().await.unwrap().expect("the stream ended");
                if line.starts_with('{') {
                    return serde_json::from_str(&line).unwrap();
                }
            }
        };
        timeout(Duration::from_secs(20), reading)
            .await
            .expect("no event in 20 s")
    }

    async fn next_pool(&mut self) -> PoolState {
        match self.next().await {
            Event::Pool(state) => *state,
            other => panic!("expected a pool, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_stream_begins_with_everything_and_goes_on_with_changes() {
    let mut world = World::new().await;
    let hash = world.configure(&["a", "b"]);
    let mut events = world.events().await;
    let hello = |config_hash| Event::Hello {
        instance: "i".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        config_hash,
    };
    assert_eq!(events.next().await, hello(hash));
    assert_eq!(events.next_pool().await.pool, "a");
    assert_eq!(events.next_pool().await.pool, "b");
    assert_eq!(world.metrics.control_streams.get(), 1);

    // A fence changes the state at once.
    let (status, body) = world
        .order("b", r#"{"epoch":5,"order":{"type":"fence","leaseMs":1000}}"#)
        .await;
    assert_eq!(status, 200, "{body}");
    let answer: OrderAnswer = serde_json::from_str(&body).unwrap();
    assert!(answer.done && answer.state.fenced);
    let state = events.next_pool().await;
    assert_eq!((state.pool.as_str(), state.epoch, state.fenced), ("b", 5, true));

    let hash = world.configure(&["b", "c"]);
    assert_eq!(events.next().await, hello(hash));
    assert_eq!(events.next().await, Event::PoolRemoved { pool: "a".into() });
    assert_eq!(events.next_pool().await.pool, "c");

    world.stop.cancel();
    world.server.join_next().await.unwrap().unwrap();
    assert_eq!(world.metrics.control_streams.get(), 0);
}

/// A stream without a socket, so that time can be paused.
async fn next(events: &mut Events) -> Event {
    serde_json::from_slice(&events.next().await.unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_held_request_is_told_at_once_and_silence_is_broken_by_heartbeats() {
    let metrics = Metrics::new(Role::Gateway).unwrap();
    let pools = pools(&metrics);
    pools
        .apply(GatewayConfig::parse("pools: [{name: a, model: m, wakes: true}]").unwrap())
        .unwrap();
    let mut events = Events::new(Arc::clone(&pools), "i".into(), &metrics);
    assert!(matches!(next(&mut events).await, Event::Hello { .. }));
    assert!(matches!(next(&mut events).await, Event::Pool(_)));

    let began = now();
    let _waiting = pools.by_name("a").unwrap().submit(request());
    match next(&mut events).await {
        Event::Pool(state) => assert_eq!(state.held, 1),
        other => panic!("expected the wake, got {other:?}"),
    }
    assert!(now() - began < Duration::from_millis(100), "{:?}", now() - began);

    let mut beats = 0;
    while beats < 3 {
        if next(&mut events).await == Event::Heartbeat {
            beats += 1;
        }
    }
    assert_eq!((now() - began).as_secs(), 15);

    // A stream that begins now is told how old things are now, not how old they were when they last changed.
    let mut late = Events::new(Arc::clone(&pools), "i".into(), &metrics);
    assert!(matches!(next(&mut late).await, Event::Hello { .. }));
    match next(&mut late).await {
        Event::Pool(state) => assert!(state.oldest_held_age_ms.unwrap() >= 14_900, "{state:?}"),
        other => panic!("expected the pool, got {other:?}"),
    }
}

#[tokio::test]
async fn orders_are_read_strictly_and_old_epochs_are_refused() {
    let world = World::new().await;
    world.configure(&["a"]);
    let fence = |epoch: u64, lease: u64| {
        format!(r#"{{"epoch":{epoch},"order":{{"type":"fence","leaseMs":{lease}}}}}"#)
    };
    for (pool, body, expected) in [
        ("a", fence(7, 1000), 200),
        ("a", fence(7, 1000), 200),
        ("a", fence(6, 1000), 409),
        ("nobody", fence(8, 1000), 404),
        ("a", fence(8, 0), 400),
        ("a", fence(8, 60_001), 400),
        ("a", String::new(), 400),
        ("a", r#"{"epoch":9,"order":{"type":"destroy"}}"#.into(), 400),
        (
            "a",
            r#"{"epoch":9,"order":{"type":"unfence"},"more":1}"#.into(),
            400,
        ),
        ("a", r#"{"epoch":-1,"order":{"type":"unfence"}}"#.into(), 400),
        (
            "a",
            r#"{"epoch":9,"order":{"type":"drain","uid":"x","leaseMs":3600001}}"#.into(),
            400,
        ),
        ("a/b", fence(9, 1000), 404),
        ("", fence(9, 1000), 404),
    ] {
        assert_eq!(world.order(pool, &body).await.0, expected, "{pool} {body}");
    }
    let counted = |result| world.metrics.orders.with_label_values(&[result]).get();
    assert_eq!(
        (counted("stale"), counted("unknown_pool"), counted("invalid")),
        (1, 1, 7)
    );
}

#[tokio::test]
async fn a_scrape_shows_the_pools() {
    let world = World::new().await;
    world.configure(&["a"]);
    let mut page = String::new();
    world
        .request("GET", "/metrics", "")
        .await
        .read_to_string(&mut page)
        .await
        .unwrap();
    assert!(
        page.contains(r#"weir_waiting_requests{pool="a",state="held"} 0"#),
        "{page}"
    );
}
