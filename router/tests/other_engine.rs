//! The router in front of an SGLang engine: gateway, sidecar, and the simulator in its SGLang flavour.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a stage that fails ends its test"
)]

mod stage;

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use stage::Stage;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use weir_router::{
    fetch::{Get, get},
    metrics::{Metrics, Role},
    sidecar::{Settings, Sidecar, SidecarError},
};
use weir_sim::{Fault, Flavour, Options, Running, Sglang, spawn};
use weir_wire::config::EngineKind;

/// An engine with its sidecar, and a gateway that knows both.
struct World {
    sim: Running,
    admin: SocketAddr,
    stage: Stage,
    _stop: CancellationToken,
    _sidecar: JoinSet<Result<(), SidecarError>>,
}

fn options() -> Options {
    Options {
        flavour: Flavour::Sglang(Sglang {
            metrics: true,
            low_values_first: true,
            ..Sglang::default()
        }),
        served_names: vec!["m".to_owned()],
        prompt_tokens_details: true,
        block_size: 1,
        ..Options::default()
    }
}

/// Looks every few milliseconds, for a minute, whether something that only shows when asked has come true.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let reached = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reached = tokio::time::timeout(Duration::from_secs(60), reached).await;
    reached.unwrap_or_else(|_| panic!("not within a minute: {what}"));
}

impl World {
    async fn new(options: Options) -> Self {
        let free = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let settings = Settings {
            pool: "p".into(),
            pool_uid: "u".into(),
            engine: EngineKind::SGLang,
            engine_port: free.port(),
            model: "m".into(),
            concurrency: Some(4),
            listen: "127.0.0.1:0".parse().unwrap(),
            admin_listen: "127.0.0.1:0".parse().unwrap(),
            token_file: None,
            drain_timeout: Duration::from_secs(60),
        };
        let sidecar = Sidecar::bind(settings, Metrics::new(Role::Sidecar).unwrap())
            .await
            .unwrap();
        let (traffic, admin) = sidecar.addresses().unwrap();
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(sidecar.run(stop.clone()));
        let sim = spawn(Options {
            port: free.port(),
            ..options
        })
        .await
        .unwrap();
        let stage = Stage::with(&[], 4, "").await;
        stage.add("e", traffic, 4);
        Self {
            sim,
            admin,
            stage,
            _stop: stop,
            _sidecar: running,
        }
    }

    async fn ready(options: Options) -> Self {
        let world = Self::new(options).await;
        world.probe("/readyz", 200).await;
        world
    }

    async fn ask(&self, target: &str) -> (u16, String) {
        let (status, body) = get(Get {
            address: self.admin,
            target,
            bearer: None,
            max_bytes: 1 << 20,
            within: Duration::from_secs(10),
        })
        .await
        .unwrap();
        (status.as_u16(), String::from_utf8_lossy(&body).into_owned())
    }

    /// Returns once a probe answers this status.
    async fn probe(&self, target: &str, status: u16) {
        eventually(target, async || self.ask(target).await.0 == status).await;
    }

    /// A stream that the engine has taken and does not answer until its fault is cleared.
    async fn hang(&self) -> stage::Client {
        self.sim.fault(Fault::Hang {});
        let json = "content-type: application/json\r\n";
        let stream = self
            .stage
            .begin("/v1/chat/completions", json, stage::STREAM)
            .await;
        self.sim.wait_for_requests(|count| *count == 1).await;
        stream
    }

    async fn chat(&self, fields: Value) -> stage::Answer {
        let mut body = json!({"model": "m", "max_tokens": 4, "ignore_eos": true,
            "messages": [{"role": "user", "content": "Say what there is to say about this, and no more."}]});
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        let json = "content-type: application/json\r\n";
        self.stage
            .ask("/v1/chat/completions", json, &body.to_string())
            .await
    }
}

#[tokio::test]
async fn an_engine_is_ready_when_it_is_warm() {
    let world = World::new(Options {
        startup: Duration::from_secs(3),
        ..options()
    })
    .await;
    assert_eq!(world.ask("/readyz").await.0, 503, "nothing listens");
    eventually("the engine's socket", async || {
        tokio::net::TcpStream::connect(world.sim.address).await.is_ok()
    })
    .await;
    assert_eq!(world.ask("/readyz").await.0, 503, "it listens and warms up");
    world.probe("/readyz", 200).await;
    assert_eq!(world.ask("/engine/livez").await.0, 200);
}

#[tokio::test]
async fn turns_report_their_cached_tokens_and_the_engine_its_figures() {
    let world = World::ready(options()).await;
    let cached = |answer: &stage::Answer| {
        let line = answer
            .body
            .lines()
            .find(|line| line.contains("\"usage\":{"))
            .unwrap();
        let chunk: Value = serde_json::from_str(line.trim_start_matches("data: ")).unwrap();
        chunk["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    let stream = json!({"stream": true, "stream_options": {"include_usage": true}});
    let first = world.chat(stream.clone()).await;
    assert_eq!((first.status, cached(&first)), (200, 0));
    assert!(
        first.complete && first.body.ends_with("data: [DONE]\n\n"),
        "{}",
        first.body
    );
    assert!(cached(&world.chat(stream).await) > 0);
    world.stage.state(|state| state.totals.cached_tokens > 0).await;
    let blocks = options().settings().unwrap().blocks;
    let capacity = format!("weir_engine_kv_capacity_tokens {}\n", blocks - 1);
    eventually(&capacity, async || {
        world.ask("/metrics").await.1.contains(&capacity)
    })
    .await;
}

#[tokio::test]
async fn errors_come_in_openais_shape() {
    let world = World::ready(options()).await;
    let wrong = world.chat(json!({"temperature": -1})).await;
    assert_eq!(wrong.status, 400);
    let error: Value = serde_json::from_str(&wrong.body).unwrap();
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("temperature"),
        "{error}"
    );
    assert_eq!(error["error"]["code"], 400);
    assert!(error.get("object").is_none(), "{error}");
    assert_eq!(
        wrong.header("content-length").unwrap(),
        wrong.body.len().to_string()
    );
}

#[tokio::test]
async fn a_stream_given_back_by_the_scheduler_is_an_answer_with_its_status() {
    let world = World::ready(Options {
        max_num_seqs: Some(1),
        max_num_queued_reqs: Some(1),
        ..options()
    })
    .await;
    let running = world.hang().await;
    let refused = world.chat(json!({"stream": true})).await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(refused.header("content-type"), Some("application/json"));
    let error: Value = serde_json::from_str(&refused.body).unwrap();
    assert_eq!(error["error"]["message"], "The request queue is full.");
    world.sim.fault(Fault::Clear {});
    assert_eq!(running.finish().await.status, 200);
}

#[tokio::test]
async fn a_draining_engine_leaves_rotation_and_finishes_its_streams() {
    let mut world = World::ready(Options {
        time_scale: 0.2,
        ..options()
    })
    .await;
    let stream = world.hang().await;
    world.sim.terminate();
    world.probe("/readyz", 503).await;
    world.sim.fault(Fault::Clear {});
    let answer = stream.finish().await;
    assert!(
        answer.status == 200 && answer.body.ends_with("data: [DONE]\n\n"),
        "{}",
        answer.body
    );
    assert_eq!(world.sim.exited().await.unwrap(), weir_sim::Exit::Done);
}
