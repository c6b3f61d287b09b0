//! What follows from the pods that the API server shows: which are endpoints of which pool, and what changed. Pure;
//! `endpoints.rs` carries it out.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::Event;
use weir_crds::names::label;

/// Most pods followed by one gateway: 16 for each of the pools it may have.
const MAX_FOLLOWED: usize = 4096;

/// What matters of an engine pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodView {
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) pool: String,
    pub(super) pool_uid: String,
    pub(super) address: Option<IpAddr>,
    /// Its deletion was asked for.
    pub(super) leaving: bool,
    /// All its containers ended for good.
    pub(super) ended: bool,
    /// The kubelet's Ready condition.
    pub(super) ready: bool,
}

impl PodView {
    /// `None` when the pod lacks a name, a UID or a pool's labels.
    pub(super) fn read(pod: &Pod) -> Option<Self> {
        let labels = pod.metadata.labels.as_ref()?;
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        let conditions = status
            .and_then(|status| status.conditions.as_deref())
            .unwrap_or_default();
        Some(Self {
            uid: pod.metadata.uid.clone()?,
            name: pod.metadata.name.clone()?,
            pool: labels.get(label::POOL)?.clone(),
            pool_uid: labels.get(label::POOL_UID)?.clone(),
            address: status.and_then(|status| status.pod_ip.as_deref()?.parse().ok()),
            leaving: pod.metadata.deletion_timestamp.is_some(),
            ended: matches!(phase, Some("Succeeded" | "Failed")),
            ready: conditions
                .iter()
                .any(|it| it.type_ == "Ready" && it.status == "True"),
        })
    }
}

/// The pods of the last complete list and what was watched since.
#[derive(Default)]
pub(super) struct Pods {
    known: BTreeMap<String, PodView>,
    listing: Option<BTreeMap<String, PodView>>,
    complete: bool,
}

impl Pods {
    /// Takes one watch event in; `true` when the known pods may have changed. A list replaces them all, so that a
    /// pod whose deletion was missed does not live on.
    pub(super) fn observe(&mut self, event: &Event<Pod>) -> bool {
        match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                false
            }
            Event::InitApply(pod) => {
                if let (Some(listing), Some(view)) = (&mut self.listing, PodView::read(pod)) {
                    listing.insert(view.uid.clone(), view);
                }
                false
            }
            Event::InitDone => {
                self.known = self.listing.take().unwrap_or_default();
                self.complete = true;
                true
            }
            Event::Apply(pod) => match PodView::read(pod) {
                Some(view) => {
                    self.known.insert(view.uid.clone(), view);
                    true
                }
                // Its labels were taken away.
                None => self.remove(pod),
            },
            Event::Delete(pod) => self.remove(pod),
        }
    }

    fn remove(&mut self, pod: &Pod) -> bool {
        pod.metadata
            .uid
            .as_ref()
            .is_some_and(|uid| self.known.remove(uid).is_some())
    }

    /// A list was complete at least once.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The pods that are endpoints of the given pools (name to UID).
    pub(super) fn wanted(&self, pools: &BTreeMap<String, String>) -> BTreeMap<String, Target> {
        let ours = self
            .known
            .values()
            .filter(|pod| pools.get(&pod.pool) == Some(&pod.pool_uid) && !pod.ended);
        ours.filter_map(|pod| {
            let target = Target {
                uid: pod.uid.clone(),
                name: pod.name.clone(),
                pool: pod.pool.clone(),
                address: pod.address?,
                leaving: pod.leaving,
                ready: pod.ready,
            };
            Some((pod.uid.clone(), target))
        })
        .take(MAX_FOLLOWED)
        .collect()
    }
}

/// A pod that is an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) pool: String,
    pub(super) address: IpAddr,
    pub(super) leaving: bool,
    pub(super) ready: bool,
}

/// What to do about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// It is gone, ended, moved to another address, or no pool's any more.
    Forget(String),
    /// It is leaving: nothing new goes there.
    Withdraw(String),
    /// The kubelet's view of its readiness changed.
    Kubelet(String, bool),
    /// It is a new endpoint.
    Follow(Target),
}

/// Brings `followed` to `wanted` and says what that takes, in the order in which it is to be done.
pub(super) fn advance(
    followed: &mut BTreeMap<String, Target>,
    mut wanted: BTreeMap<String, Target>,
) -> Vec<Change> {
    let mut changes = Vec::new();
    followed.retain(|uid, target| {
        let stays = wanted
            .get(uid)
            .is_some_and(|now| (now.address, &now.pool) == (target.address, &target.pool));
        if !stays {
            changes.push(Change::Forget(uid.clone()));
        }
        stays
    });
    // A pod that was never an endpoint and is leaving does not become one.
    wanted.retain(|uid, target| !target.leaving || followed.contains_key(uid));
    for (uid, now) in wanted {
        match followed.entry(uid) {
            Entry::Vacant(new) => {
                changes.push(Change::Follow(now.clone()));
                new.insert(now);
            }
            Entry::Occupied(mut old) => {
                let uid = old.key().clone();
                match (old.get().leaving, now.leaving) {
                    (false, true) => changes.push(Change::Withdraw(uid)),
                    (false, false) if old.get().ready != now.ready => {
                        changes.push(Change::Kubelet(uid, now.ready));
                    }
                    _ => {}
                }
                old.insert(now);
            }
        }
    }
    changes
}

#[cfg(test)]
mod tests;
