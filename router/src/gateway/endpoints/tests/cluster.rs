//! A Kubernetes API server and sidecars, as far as discovery uses them.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc};
use tower::service_fn;
use weir_wire::sidecar::{HOMES, STATE};

use super::super::*;
use crate::{
    admin::{self, Access, Admin, AdminBody, Call, Routes},
    metrics::Role,
    sidecar::now,
    sidecar::{drain::Activity, homes::HomeMemory, state::StateHub},
};

pub(super) type ApiBody = UnsyncBoxBody<Bytes, Infallible>;

/// One kind of object: what a list shows, and who watches.
#[derive(Default)]
pub(super) struct Shelf {
    objects: Vec<Value>,
    watchers: Vec<mpsc::UnboundedSender<Bytes>>,
    /// Answer lists with this status instead.
    broken: Option<StatusCode>,
    lists: usize,
}

/// An API server with pods and ConfigMaps.
#[derive(Default)]
pub(super) struct Api {
    pub(super) pods: Mutex<Shelf>,
    pub(super) maps: Mutex<Shelf>,
    /// Every request's path and query.
    pub(super) asked: Mutex<Vec<String>>,
}

impl Api {
    pub(super) fn client(self: &Arc<Self>) -> Client {
        let api = Arc::clone(self);
        let service = service_fn(move |request: Request<Body>| {
            let answer = api.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        Client::new(service, "ns")
    }

    fn answer(&self, request: &Request<Body>) -> Response<ApiBody> {
        assert_eq!(request.method(), Method::GET, "a gateway only reads");
        let whole = request.uri().to_string();
        self.asked.lock().unwrap().push(whole.clone());
        let (shelf, kind) = match request.uri().path() {
            "/api/v1/namespaces/ns/pods" => (&self.pods, "Pod"),
            "/api/v1/namespaces/ns/configmaps" => (&self.maps, "ConfigMap"),
            other => panic!("a gateway has no business at {other}"),
        };
        let mut shelf = shelf.lock().unwrap();
        if whole.contains("watch=true") {
            let (sender, receiver) = mpsc::unbounded_channel();
            shelf.watchers.push(sender);
            let lines = futures::stream::unfold(receiver, |mut receiver| async move {
                let line = receiver.recv().await?;
                Some((Ok(Frame::data(line)), receiver))
            });
            return Response::new(StreamBody::new(lines).boxed_unsync());
        }
        shelf.lists += 1;
        let body = json!({"kind": format!("{kind}List"), "apiVersion": "v1",
            "metadata": {"resourceVersion": "1"}, "items": shelf.objects});
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync());
        *response.status_mut() = shelf.broken.take().unwrap_or(StatusCode::OK);
        response
    }
}

impl Shelf {
    /// What the next list shows; watchers hear nothing.
    pub(super) fn set(&mut self, objects: Vec<Value>) {
        self.objects = objects;
    }

    pub(super) fn break_next_list(&mut self) {
        self.broken = Some(StatusCode::INTERNAL_SERVER_ERROR);
    }

    pub(super) fn lists(&self) -> usize {
        self.lists
    }

    pub(super) fn is_watched(&self) -> bool {
        !self.watchers.is_empty()
    }

    /// Tells watchers of one event.
    pub(super) fn tell(&mut self, kind: &str, object: &Value) {
        let line = Bytes::from(format!("{}\n", json!({"type": kind, "object": object})));
        self.watchers.retain(|watcher| watcher.send(line.clone()).is_ok());
    }

    /// The watch has fallen too far behind: its next step is a list.
    pub(super) fn expire(&mut self) {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "too old resource version", "reason": "Expired", "code": 410});
        self.tell("ERROR", &status);
        self.watchers.clear();
    }
}

/// A sidecar's admin port.
pub(super) struct FakeSidecar {
    pub(super) hub: Arc<StateHub>,
    pub(super) homes: Arc<HomeMemory>,
}

struct FakeRoutes {
    hub: Arc<StateHub>,
    homes: Arc<HomeMemory>,
    mute: bool,
}

impl Routes for FakeRoutes {
    fn readiness(&self) -> Result<(), &'static str> {
        Ok(())
    }

    fn refresh(&self) {}

    fn access(&self, _: &Method, path: &str) -> Access {
        match path {
            STATE => Access::TokenLong,
            HOMES => Access::Token,
            _ => Access::Unknown,
        }
    }

    async fn answer(&self, call: Call) -> Response<AdminBody> {
        if self.mute {
            return std::future::pending().await;
        }
        if call.head.uri.path() == HOMES {
            return admin::json(StatusCode::OK, &self.homes.list(now()));
        }
        let number = |name| call.query(name).unwrap().parse::<u64>().unwrap();
        let state = self
            .hub
            .newer(number("after"), Duration::from_millis(number("waitMs")))
            .await;
        admin::json(StatusCode::OK, &state)
    }
}

/// The whole stage. Pods have loopback addresses, and all sidecars the same port.
pub(super) struct World {
    pub(super) api: Arc<Api>,
    pub(super) pools: Arc<Pools>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) readiness: Arc<Readiness>,
    token: TokenFile,
    port: u16,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl World {
    pub(super) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "secret").unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let metrics = Metrics::new(Role::Gateway).unwrap();
        Self {
            api: Arc::default(),
            pools: pools(&metrics),
            metrics,
            readiness: Arc::default(),
            token: TokenFile::open(dir.path().join("token")).unwrap(),
            port,
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
            _dir: dir,
        }
    }

    pub(super) fn start(&mut self) {
        let discovery = Discovery {
            client: self.api.client(),
            namespace: "ns".into(),
            gateway: "g".into(),
            pools: Arc::clone(&self.pools),
            token: self.token.clone(),
            sidecar_port: self.port,
            metrics: Arc::clone(&self.metrics),
            readiness: Arc::clone(&self.readiness),
        };
        self.tasks.spawn(discovery.run(self.stop.clone()));
    }

    pub(super) async fn sidecar(&mut self, address: &str, instance: &str, mute: bool) -> FakeSidecar {
        let activity = Activity::new(now());
        let hub = Arc::new(StateHub::new(instance.into(), 4, activity));
        let homes = Arc::new(HomeMemory::new());
        let listener = TcpListener::bind((address, self.port)).await.unwrap();
        let routes = FakeRoutes {
            hub: Arc::clone(&hub),
            homes: Arc::clone(&homes),
            mute,
        };
        let served = Admin::new(
            routes,
            Metrics::new(Role::Sidecar).unwrap(),
            Some(self.token.clone()),
        );
        self.tasks
            .spawn(admin::serve(listener, served, self.stop.clone()));
        FakeSidecar { hub, homes }
    }

    pub(super) async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

/// The pools of a gateway, none yet.
fn pools(metrics: &Arc<Metrics>) -> Arc<Pools> {
    Pools::new(Arc::clone(metrics), CancellationToken::new())
}

/// A ConfigMap with one pool `p` for each UID given (`p0`, `p1`, …).
pub(super) fn map(uids: &[&str]) -> Value {
    let pools: Vec<String> = uids
        .iter()
        .enumerate()
        .map(|(index, uid)| format!("- {{name: p{index}, uid: {uid}, model: m{index}, wakes: true}}\n"))
        .collect();
    document(&format!("pools:\n{}", pools.concat()))
}

pub(super) fn document(text: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": "g-gateway", "namespace": "ns", "uid": "cm", "resourceVersion": "2"},
        "data": {"gateway.yaml": text}})
}

/// A pod of pool `p0` (UID `u0`).
pub(super) fn pod(uid: &str, address: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": format!("pod-{uid}"), "namespace": "ns", "uid": uid, "resourceVersion": "2",
            "labels": {"weir.dev/pool": "p0", "weir.dev/pool-uid": "u0"}},
        "spec": {"containers": []},
        "status": {"podIP": address, "phase": "Running"}})
}
