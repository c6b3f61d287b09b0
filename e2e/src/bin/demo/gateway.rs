//! What the gateway itself says about the pool's endpoints: one look at its control stream.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, Client, api::ListParams};
use tokio::net::TcpStream;
use weir_crds::names;
use weir_e2e::{cluster::Cluster, reach_pod};
use weir_wire::{
    control::{EVENTS, Event, PoolState},
    ports,
};

/// Longest wait for the first states of a stream.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pool as every gateway replica sees it.
pub(crate) async fn states(
    cluster: &Cluster,
    client: &Client,
    namespace: &str,
    pool: &str,
) -> Result<Vec<PoolState>> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = secrets
        .get(&names::control_secret(names::DEFAULT_GATEWAY))
        .await
        .context("the control token")?;
    let data = secret.data.unwrap_or_default();
    let token = data
        .get(names::CONTROL_TOKEN_KEY)
        .context("the control token's key")?;
    let token = String::from_utf8(token.0.clone()).context("the control token")?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let selector = format!(
        "{}={},{}={}",
        names::label::GATEWAY,
        names::DEFAULT_GATEWAY,
        names::label::COMPONENT,
        names::component::GATEWAY
    );
    let mut states = Vec::new();
    for pod in pods.list(&ListParams::default().labels(&selector)).await? {
        let name = pod.metadata.name.unwrap_or_default();
        let reach = reach_pod(cluster, client, namespace, &name, ports::ADMIN).await?;
        let look = tokio::time::timeout(PATIENCE, first_state(&reach.url, token.trim(), pool)).await;
        states.push(look.context("the gateway's first states")??);
    }
    Ok(states)
}

async fn first_state(url: &str, token: &str, pool: &str) -> Result<PoolState> {
    let authority = url.strip_prefix("http://").context("an http:// URL")?;
    let stream = TcpStream::connect(authority).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(EVENTS)
        .header(header::HOST, authority)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            bail!("the gateway answered {}", response.status());
        }
        let mut body = response.into_body();
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                text.extend_from_slice(&data);
            }
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                if let Event::Pool(state) = serde_json::from_slice(&line).context("a line of the stream")?
                    && state.pool == pool
                {
                    return Ok(*state);
                }
            }
        }
        bail!("the stream ended without the pool")
    };
    tokio::select! {
        state = exchange => state,
        Err(error) = connection => Err(error).context("the connection to the gateway"),
    }
}
