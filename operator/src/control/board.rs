//! What every gateway replica last said about its pools, and who wants to know. Filled by the streams, read by the
//! scalers and by status.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use weir_wire::control::{Event, PoolState};

use crate::key::Key;

/// A gateway pod and its admin address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replica {
    /// Pod UID.
    pub uid: String,
    /// Pod name.
    pub pod: String,
    /// Admin port.
    pub address: SocketAddr,
    /// When its process started: it knows of no request before.
    pub started: Option<Timestamp>,
}

/// A pool's state and when it was heard.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// What the replica said.
    pub state: Arc<PoolState>,
    /// When.
    pub at: Timestamp,
}

/// One replica as far as one pool is concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaView {
    /// The replica.
    pub replica: Replica,
    /// The hash of the configuration it runs with; `None` while its stream is down.
    pub config_hash: Option<String>,
    /// What it said about the pool; `None` while unknown.
    pub seen: Option<Seen>,
}

#[derive(Debug)]
struct Entry {
    replica: Replica,
    config_hash: Option<String>,
    pools: BTreeMap<String, Seen>,
}

/// All gateways' replicas.
#[derive(Debug)]
pub struct Board {
    gateways: Mutex<BTreeMap<Key, BTreeMap<String, Entry>>>,
    listeners: Mutex<BTreeMap<Key, Arc<Notify>>>,
    configurations: watch::Sender<u64>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            gateways: Mutex::default(),
            listeners: Mutex::default(),
            configurations: watch::Sender::new(0),
        }
    }
}

impl Board {
    fn gateways(&self) -> MutexGuard<'_, BTreeMap<Key, BTreeMap<String, Entry>>> {
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to be told of changes of one pool's state: every call gives the same.
    pub fn listen(&self, pool: &Key) -> Arc<Notify> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(listeners.entry(pool.clone()).or_default())
    }

    /// Forgets the listener of a pool that is gone.
    pub fn forget(&self, pool: &Key) {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(pool);
    }

    /// Rises whenever a replica says which configuration it runs with, or falls silent.
    #[must_use]
    pub fn configurations(&self) -> watch::Receiver<u64> {
        self.configurations.subscribe()
    }

    /// Tells a pool's listener that something it reads has changed.
    pub fn tell(&self, pool: &Key) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = listeners.get(pool) {
            listener.notify_one();
        }
    }

    /// Tells every pool of a namespace: a replica came, went or fell silent.
    fn tell_all(&self, namespace: &str) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        for (pool, listener) in listeners.iter() {
            if pool.namespace == namespace {
                listener.notify_one();
            }
        }
        drop(listeners);
        self.configurations
            .send_modify(|version| *version = version.wrapping_add(1));
    }

    /// The replicas that exist now. New ones are unknown until they speak; those that are gone are forgotten.
    pub fn expect(&self, wanted: &BTreeSet<(Key, Replica)>) {
        let mut touched = BTreeSet::new();
        {
            let mut gateways = self.gateways();
            for (gateway, replicas) in gateways.iter_mut() {
                replicas.retain(|_, entry| {
                    let keep = wanted.contains(&(gateway.clone(), entry.replica.clone()));
                    if !keep {
                        touched.insert(gateway.namespace.clone());
                    }
                    keep
                });
            }
            gateways.retain(|_, replicas| !replicas.is_empty());
            for (gateway, replica) in wanted {
                gateways
                    .entry(gateway.clone())
                    .or_default()
                    .entry(replica.uid.clone())
                    .or_insert_with(|| {
                        touched.insert(gateway.namespace.clone());
                        Entry {
                            replica: replica.clone(),
                            config_hash: None,
                            pools: BTreeMap::new(),
                        }
                    });
            }
        }
        for namespace in touched {
            self.tell_all(&namespace);
        }
    }

    /// Takes one event of a replica's stream.
    pub fn hear(&self, gateway: &Key, uid: &str, event: Event, at: Timestamp) {
        let told = {
            let mut gateways = self.gateways();
            let Some(entry) = gateways
                .get_mut(gateway)
                .and_then(|replicas| replicas.get_mut(uid))
            else {
                return;
            };
            match event {
                Event::Hello { config_hash, .. } => {
                    entry.config_hash = Some(config_hash);
                    None
                }
                Event::Pool(state) => {
                    let pool = state.pool.clone();
                    entry.pools.insert(
                        pool.clone(),
                        Seen {
                            state: Arc::new(*state),
                            at,
                        },
                    );
                    Some(pool)
                }
                Event::PoolRemoved { pool } => {
                    entry.pools.remove(&pool);
                    Some(pool)
                }
                Event::Heartbeat => return,
            }
        };
        match told {
            Some(pool) => self.tell(&gateway.sibling(&pool)),
            None => self.tell_all(&gateway.namespace),
        }
    }

    /// A replica's stream is down: what it said is void.
    pub fn lose(&self, gateway: &Key, uid: &str) {
        if let Some(entry) = self
            .gateways()
            .get_mut(gateway)
            .and_then(|replicas| replicas.get_mut(uid))
        {
            entry.config_hash = None;
            entry.pools.clear();
        }
        self.tell_all(&gateway.namespace);
    }

    /// Every replica of a gateway, as far as one pool is concerned. States of another UID's pool do not count.
    #[must_use]
    pub fn view(&self, gateway: &Key, pool: &str, pool_uid: &str) -> Vec<ReplicaView> {
        let gateways = self.gateways();
        gateways
            .get(gateway)
            .into_iter()
            .flat_map(BTreeMap::values)
            .map(|entry| ReplicaView {
                replica: entry.replica.clone(),
                config_hash: entry.config_hash.clone(),
                seen: entry
                    .pools
                    .get(pool)
                    .filter(|seen| seen.state.uid == pool_uid)
                    .cloned(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(uid: &str) -> Replica {
        Replica {
            uid: uid.to_owned(),
            pod: format!("weir-{uid}"),
            address: "10.0.0.1:9090".parse().unwrap(),
            started: None,
        }
    }

    fn state(pool_uid: &str, held: u32) -> Event {
        Event::Pool(Box::new(PoolState {
            pool: "coder".to_owned(),
            uid: pool_uid.to_owned(),
            held,
            ..PoolState::default()
        }))
    }

    #[tokio::test]
    async fn a_state_reaches_its_listener_and_silence_makes_it_unknown() {
        let board = Board::default();
        let gateway = Key::new("agents", "weir");
        let listener = board.listen(&Key::new("agents", "coder"));
        board.expect(&BTreeSet::from([
            (gateway.clone(), replica("a")),
            (gateway.clone(), replica("b")),
        ]));
        listener.notified().await;
        board.hear(&gateway, "a", state("u1", 3), Timestamp::UNIX_EPOCH);
        listener.notified().await;
        let view = board.view(&gateway, "coder", "u1");
        assert_eq!(view.len(), 2);
        assert_eq!(view[0].seen.as_ref().map(|seen| seen.state.held), Some(3));
        assert_eq!(view[1].seen, None, "b has not spoken");
        assert_eq!(
            board.view(&gateway, "coder", "other")[0].seen,
            None,
            "another object of that name"
        );
        board.lose(&gateway, "a");
        listener.notified().await;
        assert_eq!(board.view(&gateway, "coder", "u1")[0].seen, None);
        board.expect(&BTreeSet::from([(gateway.clone(), replica("b"))]));
        assert_eq!(board.view(&gateway, "coder", "u1").len(), 1);
    }

    #[test]
    fn an_event_of_a_replica_that_is_gone_changes_nothing() {
        let board = Board::default();
        let gateway = Key::new("agents", "weir");
        board.hear(&gateway, "ghost", state("u1", 1), Timestamp::UNIX_EPOCH);
        assert!(board.view(&gateway, "coder", "u1").is_empty());
    }
}
