//! One operator's stream of events. Lines are made when the connection has room for them: a reader that is slow gets
//! fewer, newer states, and one that stops reading is broken off by the admin port; nothing is buffered for it.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::{self, select_all};
use prometheus::IntGauge;
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval},
};
use weir_wire::control::{Event, HEARTBEAT_MS, PoolState};

use crate::{
    gateway::{pools::Pools, scheduler::PoolHandle},
    metrics::Metrics,
};

/// The state of one stream.
pub(super) struct Events {
    pools: Arc<Pools>,
    instance: String,
    config_hash: Option<String>,
    changes: watch::Receiver<u64>,
    watched: BTreeMap<String, watch::Receiver<Arc<PoolState>>>,
    /// Never more than the pools before and after a change, and two.
    due: VecDeque<Event>,
    heartbeat: Interval,
    _open: Open,
}

/// Counts the streams that are open.
struct Open(IntGauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Events {
    pub(super) fn new(pools: Arc<Pools>, instance: String, metrics: &Metrics) -> Self {
        metrics.control_streams.inc();
        let mut heartbeat = interval(Duration::from_millis(HEARTBEAT_MS));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.reset();
        Self {
            changes: pools.changes(),
            pools,
            instance,
            config_hash: None,
            watched: BTreeMap::new(),
            due: VecDeque::new(),
            heartbeat,
            _open: Open(metrics.control_streams.clone()),
        }
    }

    /// The next line, as soon as there is one; `None` when the gateway's pools are gone.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        if self.config_hash.is_none() {
            self.look_again().await;
        }
        loop {
            if let Some(event) = self.due.pop_front() {
                return line(&event);
            }
            tokio::select! {
                changed = self.changes.changed() => {
                    changed.ok()?;
                    self.look_again().await;
                }
                state = next_state(&mut self.watched) => {
                    self.due.extend(state.map(|state| Event::Pool(Box::new(state))));
                }
                _ = self.heartbeat.tick() => self.due.push_back(Event::Heartbeat),
            }
        }
    }

    /// Takes in which configuration and which pools there are now.
    async fn look_again(&mut self) {
        self.changes.mark_unchanged();
        let config_hash = self.pools.config_hash();
        if self.config_hash.as_ref() != Some(&config_hash) {
            self.due.push_back(Event::Hello {
                instance: self.instance.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                config_hash: config_hash.clone(),
            });
            self.config_hash = Some(config_hash);
        }
        let pools: BTreeMap<String, PoolHandle> = self
            .pools
            .list()
            .into_iter()
            .map(|pool| (pool.name().to_owned(), pool))
            .collect();
        for pool in self.watched.keys().filter(|pool| !pools.contains_key(*pool)) {
            self.due.push_back(Event::PoolRemoved { pool: pool.clone() });
        }
        self.watched.retain(|pool, _| pools.contains_key(pool));
        for (name, pool) in pools {
            let mut states = pool.states();
            if self
                .watched
                .get(&name)
                .is_some_and(|known| known.same_channel(&states))
            {
                continue;
            }
            states.mark_unchanged();
            // Asked for, not taken from the channel: the ages there count from the last change.
            if let Some(state) = pool.state_now().await {
                self.due.push_back(Event::Pool(Box::new(state)));
            }
            self.watched.insert(name, states);
        }
    }
}

/// The next state that changed; `None` when a pool's scheduler ended, which [`Events::look_again`] will tell of.
async fn next_state(watched: &mut BTreeMap<String, watch::Receiver<Arc<PoolState>>>) -> Option<PoolState> {
    let living = watched.values_mut().filter(|states| states.has_changed().is_ok());
    let waiting: Vec<Pin<Box<dyn Future<Output = _> + Send>>> = living
        .map(|states| {
            let change: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move {
                states.changed().await.ok()?;
                Some(PoolState::clone(&states.borrow_and_update()))
            });
            change
        })
        .collect();
    if waiting.is_empty() {
        return future::pending().await;
    }
    select_all(waiting).await.0
}

/// One line of JSON; an event that cannot be written, which wire types do not cause, ends the stream.
fn line(event: &Event) -> Option<Bytes> {
    let mut line = serde_json::to_vec(event).ok()?;
    line.push(b'\n');
    Some(line.into())
}
