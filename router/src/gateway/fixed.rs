//! The fixed endpoints of a standalone gateway: taken as ready from the start, and asked for their health so that one
//! that died is left out before a request finds it dead.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use http::Method;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use weir_schedule::{EndpointId, Event};
use weir_wire::config::PoolConfig;

use super::{
    pools::Pools,
    scheduler::{EndpointInfo, PoolHandle},
};
use crate::proxy::upstream::{Outgoing, Upstream, UpstreamSettings};

/// Requests one endpoint may have in flight when the configuration does not say.
const CONCURRENCY: u32 = 256;
/// Between two probes of an endpoint.
const PERIOD: Duration = Duration::from_secs(3);
/// For one probe. A loaded engine answers late, so that only several misses in a row count.
const PATIENCE: Duration = Duration::from_secs(2);
/// Unanswered probes in a row until an endpoint is left out; a refused connection counts at once.
const MISSES: u32 = 3;

/// Brings a pool's endpoints to what its configuration lists. Pools with a UID are the LLMPools of a
/// cluster, and left to discovery.
pub fn reconcile(pool: &PoolHandle, config: &PoolConfig) {
    if !config.uid.is_empty() {
        return;
    }
    let wanted: Vec<EndpointInfo> = config
        .endpoints
        .iter()
        .map(|endpoint| EndpointInfo {
            name: endpoint.name.clone(),
            uid: endpoint.name.clone(),
            address: endpoint.address.clone(),
            sidecar: false,
        })
        .collect();
    let known = pool.endpoints();
    for (id, info) in &known {
        if !wanted.iter().any(|endpoint| endpoint.uid == info.uid) {
            pool.remove_endpoint(*id);
        }
    }
    for info in wanted {
        let is_new = !known.iter().any(|(_, known)| *known == info);
        let endpoint = pool.set_endpoint(info);
        if is_new {
            pool.notify(ready(endpoint, config));
        }
    }
}

fn ready(endpoint: EndpointId, config: &PoolConfig) -> Event {
    Event::EndpointReady {
        endpoint,
        concurrency: config.max_concurrency.unwrap_or(CONCURRENCY),
    }
}

/// What is known of one endpoint's health.
struct Health {
    upstream: Arc<Upstream>,
    misses: u32,
    out: bool,
    concurrency: Option<u32>,
}

/// How a probe ended.
enum Probe {
    Answered,
    Refused,
    Missed,
}

/// Probes every fixed endpoint until `stop`.
pub async fn watch(pools: Arc<Pools>, stop: CancellationToken) {
    let mut known: HashMap<(String, EndpointId), Health> = HashMap::new();
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let entries: Vec<_> = pools
            .view()
            .pools
            .iter()
            .filter(|entry| !entry.config.endpoints.is_empty())
            .cloned()
            .collect();
        let mut before = std::mem::take(&mut known);
        let probed = entries.iter().flat_map(|entry| {
            let endpoints = entry.handle.endpoints();
            endpoints.into_iter().map(move |(id, info)| (entry, id, info))
        });
        let probes: Vec<_> = probed
            .map(|(entry, id, info)| {
                let key = (entry.handle.name().to_owned(), id);
                let health = before.remove(&key).unwrap_or_else(|| Health {
                    upstream: Upstream::new(
                        &info.address,
                        UpstreamSettings {
                            connect: PATIENCE,
                            idle_age: PERIOD + PATIENCE,
                        },
                    ),
                    misses: 0,
                    out: false,
                    concurrency: None,
                });
                async move {
                    let probe = probe(&health.upstream).await;
                    (key, entry, info, health, probe)
                }
            })
            .collect();
        for (key, entry, info, mut health, probe) in join_all(probes).await {
            let was_out = health.out;
            health.misses = match probe {
                Probe::Answered => 0,
                Probe::Refused => MISSES,
                Probe::Missed => health.misses.saturating_add(1),
            };
            health.out = health.misses >= MISSES;
            let concurrency = entry.config.max_concurrency;
            if health.out && !was_out {
                tracing::warn!(pool = entry.handle.name(), endpoint = %info.name, "endpoint does not answer");
                entry.handle.notify(Event::EndpointNotReady(key.1));
            } else if !health.out && (was_out || health.concurrency.is_some_and(|it| Some(it) != concurrency))
            {
                tracing::info!(pool = entry.handle.name(), endpoint = %info.name, "endpoint answers");
                entry.handle.notify(ready(key.1, &entry.config));
            }
            health.concurrency = concurrency;
            known.insert(key, health);
        }
    }
}

/// Anything but a server error shows a live server, also where it has no such path.
async fn probe(upstream: &Arc<Upstream>) -> Probe {
    let request = Outgoing::new(&Method::GET, "/health", [], Bytes::new());
    match timeout(PATIENCE, upstream.send(&request)).await {
        Ok(Ok(answer)) if !answer.status().is_server_error() => Probe::Answered,
        Ok(Err(error)) if error.is_connect() => Probe::Refused,
        Ok(_) | Err(_) => Probe::Missed,
    }
}
