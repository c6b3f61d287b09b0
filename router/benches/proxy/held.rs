//! Memory with 10,000 held requests of 8 KiB, and a minute after they left.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::sleep};

use crate::systems::Weir;

const REQUESTS: usize = 10_000;
const BODY_BYTES: usize = 8 << 10;
/// After the clients left.
const REST: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize)]
pub(super) struct Held {
    requests: usize,
    body_bytes: usize,
    idle_rss_mb: f64,
    held_rss_mb: f64,
    after_a_minute_rss_mb: f64,
}

pub(super) fn measure(scratch: &Path) -> anyhow::Result<Held> {
    raise_descriptor_limit()?;
    let weir = Weir::start_holding(scratch)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        sleep(Duration::from_secs(1)).await;
        let idle_rss_mb = weir.process.rss_mb()?;
        let begin = r#"{"model":"m","messages":[{"role":"user","content":""#;
        let end = r#""}]}"#;
        let filler = "x".repeat(BODY_BYTES - begin.len() - end.len());
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: weir\r\ncontent-type: application/json\r\ncontent-length: {BODY_BYTES}\r\n\r\n{begin}{filler}{end}"
        );
        let mut clients = Vec::with_capacity(REQUESTS);
        for number in 0..REQUESTS {
            let connected = TcpStream::connect(&weir.address).await;
            let mut client = connected.with_context(|| format!("connection {number}"))?;
            client.write_all(request.as_bytes()).await?;
            clients.push(client);
        }
        sleep(Duration::from_secs(3)).await;
        let held_rss_mb = weir.process.rss_mb()?;
        for client in &clients {
            let mut byte = [0];
            // Nothing has come back: it is held, not refused.
            anyhow::ensure!(client.try_read(&mut byte).is_err(), "a request was not held");
        }
        drop(clients);
        sleep(REST).await;
        Ok(Held {
            requests: REQUESTS,
            body_bytes: BODY_BYTES,
            idle_rss_mb,
            held_rss_mb,
            after_a_minute_rss_mb: weir.process.rss_mb()?,
        })
    })
}

fn raise_descriptor_limit() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum })?)
}
