//! A configuration that changes while connections are open: the new limits bite on the next connection, and the open
//! ones keep what they began with.

#![expect(clippy::unwrap_used, reason = "a stage that fails ends its test")]

mod stage;

use std::{fs, path::Path, sync::Arc};

use stage::*;
use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::timeout,
};
use weir_router::{
    gateway::file,
    metrics::{Metrics, Role},
};

/// A standalone gateway whose configuration is a file.
struct Filed {
    stage: Stage,
    path: Arc<Path>,
    _watching: JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Filed {
    async fn open(head: &str, address: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path: Arc<Path> = dir.path().join("gateway.yaml").into();
        let stage = Stage::open(&yaml(head, address)).await;
        fs::write(&path, yaml(head, address)).unwrap();
        let mut watching = JoinSet::new();
        watching.spawn(file::watch(
            Arc::clone(&path),
            Arc::clone(&stage.pools),
            Metrics::new(Role::Gateway).unwrap(),
            stage.stop.clone(),
        ));
        Self {
            stage,
            path,
            _watching: watching,
            _dir: dir,
        }
    }

    /// Writes the file anew and returns when it is in force.
    async fn change(&self, head: &str, address: &str) {
        let mut changes = self.stage.pools.changes();
        changes.mark_unchanged();
        fs::write(&self.path, yaml(head, address)).unwrap();
        let changed = timeout(SOON, changes.changed()).await;
        changed.expect("the file is read").unwrap();
    }
}

fn yaml(head: &str, address: &str) -> String {
    format!("{head}\npools: [{{name: p, model: m, endpoints: [{{name: e, address: '{address}'}}]}}]\n")
}

/// A request on a connection that stays open.
async fn ask(client: &mut Client, headers: &str) -> String {
    let length = CHAT.len();
    client
        .write(&format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n{headers}\r\n{CHAT}"
        ))
        .await;
    client.read_until("{}").await
}

#[tokio::test]
async fn limits_of_the_traffic_port_change_with_the_file() {
    let engine = Engine::start(|_| json("{}")).await;
    let address = engine.address.to_string();
    let filed = Filed::open("limits: {maxConnections: 8, maxHeaders: 40}", &address).await;
    let many = (0..20).fold(String::new(), |all, index| format!("{all}x-h{index}: 1\r\n"));
    let mut old = Client::connect(filed.stage.address).await;
    assert!(ask(&mut old, &many).await.starts_with("HTTP/1.1 200 "));

    let head = "limits: {maxConnections: 2, maxHeaders: 10}\ntimeouts: {headerRead: 300ms}";
    filed.change(head, &address).await;
    // The second of two, and no more than ten headers.
    let refused = filed.stage.ask("/v1/chat/completions", &many, CHAT).await;
    assert_eq!(refused.refusal(), (431, "invalid".into(), Some("headers".into())));
    // The time for a head.
    let mut slow = Client::connect(filed.stage.address).await;
    slow.write("POST /v1/chat/completions HTTP/1.1\r\nhost:").await;
    assert_eq!(slow.finish().await.status, 408);
    // The one from before has the room that it began with, and is one of two.
    let mut new = Client::connect(filed.stage.address).await;
    assert!(ask(&mut new, "").await.starts_with("HTTP/1.1 200 "));
    let third = Client::connect(filed.stage.address).await;
    assert_eq!(third.finish().await.status, 0, "the third is closed unanswered");
    old.write("GET /v1/models HTTP/1.1\r\nhost: h\r\n").await;
    old.write(&format!("{many}connection: close\r\n\r\n")).await;
    assert!(old.read_until("\"list\"").await.contains("\"m\""));
}

#[tokio::test]
async fn the_time_to_connect_changes_with_the_file() {
    // A listener that accepts nothing, with a full backlog: connecting takes for ever.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(stream) = timeout(std::time::Duration::from_millis(200), TcpStream::connect(address)).await {
        queue.push(stream.unwrap());
        assert!(queue.len() < 64, "the backlog never fills");
    }
    let filed = Filed::open("timeouts: {connect: 1h}", &address.to_string()).await;
    let waiting = filed.stage.begin("/v1/chat/completions", "", CHAT).await;
    filed.stage.state(|state| state.in_flight == 1).await;
    filed
        .change("timeouts: {connect: 100ms}", &address.to_string())
        .await;
    // The request on its way still has its hour; the next one fails, and takes the endpoint out of rotation.
    let next = filed.stage.begin("/v1/chat/completions", "", CHAT).await;
    let state = filed
        .stage
        .state(|state| state.endpoints.iter().any(|it| !it.eligible))
        .await;
    assert!(state.in_flight >= 1, "{state:?}");
    drop((waiting, next, queue, listener));
}
