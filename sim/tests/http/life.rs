//! Start-up and SIGTERM (§6.4 to §6.6).

use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use weir_sim::{Exit, Fault, Options, Outcome};

use crate::client::{Connection, begin_chat, get, post, request, tiny};

fn chat() -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "ignore_eos": true, "stream": true})
}

async fn until_refused(address: std::net::SocketAddr) {
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn connections_are_refused_until_ready() {
    let mut sim = tiny(Options {
        startup: Duration::from_millis(200),
        ..Options::default()
    })
    .await;
    assert!(TcpStream::connect(sim.address).await.is_err());
    sim.ready().await;
    let answer = get(&sim, "/health").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    assert!(answer.head.contains("content-length: 0"));
}

#[tokio::test]
async fn the_first_signal_during_start_up_is_swallowed() {
    let mut sim = tiny(Options {
        startup: Duration::from_millis(200),
        ..Options::default()
    })
    .await;
    sim.terminate();
    sim.ready().await;
    assert_eq!(get(&sim, "/health").await.status, 200);

    let mut sim = tiny(Options {
        startup: Duration::from_secs(600),
        ..Options::default()
    })
    .await;
    sim.terminate();
    sim.terminate();
    assert_eq!(sim.exited().await.unwrap(), Exit::Interrupted);
}

#[tokio::test]
async fn an_idle_server_exits_at_once() {
    for shutdown_timeout in [Duration::ZERO, Duration::from_secs(600)] {
        let mut sim = tiny(Options {
            shutdown_timeout,
            ..Options::default()
        })
        .await;
        let mut idle = Connection::open(sim.address).await;
        assert_eq!(idle.ask("GET", "/health", "").await.status, 200);
        sim.terminate();
        assert_eq!(sim.exited().await.unwrap(), Exit::Done);
        assert_eq!(idle.end().await, "");
    }
}

#[tokio::test]
async fn without_a_shutdown_timeout_streams_hang_until_their_clients_leave() {
    let mut sim = tiny(Options::default()).await;
    sim.fault(Fault::Hang {});
    let mut stream = begin_chat(&sim, &chat()).await;
    stream.until("\r\n\r\n").await;
    sim.terminate();
    until_refused(sim.address).await;
    sim.fault(Fault::Clear {});
    assert!(
        stream.silent_for(Duration::from_millis(300)).await,
        "no token, no error, no end"
    );
    drop(stream);
    assert_eq!(sim.exited().await.unwrap(), Exit::Done);
}

#[tokio::test]
async fn with_a_shutdown_timeout_requests_finish_and_new_ones_get_500() {
    let mut sim = tiny(Options {
        shutdown_timeout: Duration::from_secs(600),
        ..Options::default()
    })
    .await;
    sim.fault(Fault::Hang {});
    let mut stream = begin_chat(&sim, &chat()).await;
    sim.terminate();
    loop {
        let refused = post(
            &sim,
            "/v1/chat/completions",
            &json!({"messages": [], "model": "zzz"}),
        )
        .await;
        assert_eq!(refused.status, 404, "the drain refuses only what would run");
        let mut probe = Connection::open(sim.address).await;
        probe
            .send(&request(
                "POST",
                "/v1/chat/completions",
                &[],
                &json!({"messages": []}).to_string(),
            ))
            .await;
        // Before the order has arrived the request is taken, and waits in the hung engine.
        if !probe.silent_for(Duration::from_millis(50)).await {
            probe.until("cannot schedule new futures after shutdown").await;
            assert!(String::from_utf8_lossy(&probe.received).starts_with("HTTP/1.1 500"));
            break;
        }
    }
    assert_eq!(get(&sim, "/health").await.status, 200);
    sim.fault(Fault::Clear {});
    stream.until("data: [DONE]").await;
    assert_eq!(sim.exited().await.unwrap(), Exit::Done);
    assert_eq!(sim.ledger().entries[0].outcome, Outcome::Finished);
}

#[tokio::test]
async fn a_drain_that_runs_out_kills_the_engine() {
    let mut sim = tiny(Options {
        shutdown_timeout: Duration::from_millis(100),
        ..Options::default()
    })
    .await;
    sim.fault(Fault::Hang {});
    let mut stream = begin_chat(&sim, &chat()).await;
    stream.until("\r\n\r\n").await;
    sim.terminate();
    while get(&sim, "/health").await.status == 200 {}
    until_refused(sim.address).await;
    assert!(stream.silent_for(Duration::from_millis(100)).await);
    drop(stream);
    assert_eq!(sim.exited().await.unwrap(), Exit::Done);
}

#[tokio::test]
async fn stopping_closes_every_connection() {
    let sim = tiny(Options::default()).await;
    sim.fault(Fault::Hang {});
    let mut stream = begin_chat(&sim, &chat()).await;
    let address = sim.address;
    sim.stop().await;
    stream.end().await;
    assert!(TcpStream::connect(address).await.is_err());
}
