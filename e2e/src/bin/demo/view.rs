//! What the demo sees of the pool, from watches: the object, the ordered replicas, the pods, each change with its
//! instant.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use weir_crds::{LLMPool, LLMPoolStatus, names};
use weir_e2e::cluster::progress::{Detail, Progress, now};

/// Everything seen so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// The pool as it is now.
    pub(crate) pool: Option<LLMPool>,
    /// Every change of the engine Deployment's replicas.
    pub(crate) ordered: Vec<(Instant, i32)>,
    /// Every engine pod that ever was, by UID.
    pub(crate) pods: BTreeMap<String, PodTimes>,
}

/// One engine pod's life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodTimes {
    pub(crate) created: Instant,
    pub(crate) ready: Option<Instant>,
    pub(crate) gone: Option<Instant>,
}

impl View {
    pub(crate) fn status(&self) -> Option<&LLMPoolStatus> {
        self.pool.as_ref()?.status.as_ref()
    }

    /// Reason of the Ready condition.
    pub(crate) fn reason(&self) -> &str {
        let conditions = self.status().map_or(&[][..], |status| &status.conditions);
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
        ready.map_or("", |condition| condition.reason.as_str())
    }

    /// Replicas in the engine Deployment now.
    pub(crate) fn replicas(&self) -> Option<i32> {
        self.ordered.last().map(|(_, replicas)| *replicas)
    }

    /// When replicas went from 0 to more, each time.
    pub(crate) fn wakes(&self) -> impl Iterator<Item = Instant> {
        let pairs = self.ordered.windows(2);
        pairs
            .filter(|pair| pair[0].1 == 0 && pair[1].1 > 0)
            .map(|pair| pair[1].0)
    }

    /// Engine pods that exist.
    pub(crate) fn living(&self) -> usize {
        self.pods.values().filter(|pod| pod.gone.is_none()).count()
    }

    /// Engine pods that are Ready.
    pub(crate) fn ready(&self) -> usize {
        self.pods
            .values()
            .filter(|pod| pod.gone.is_none() && pod.ready.is_some())
            .count()
    }

    /// When the first pod after `since` became Ready.
    pub(crate) fn ready_after(&self, since: Instant) -> Option<Instant> {
        self.pods
            .values()
            .filter_map(|pod| pod.ready)
            .filter(|ready| *ready >= since)
            .min()
    }

    /// Sum of the pods' lives up to `end`.
    pub(crate) fn replica_time(&self, end: Instant) -> Duration {
        self.pods
            .values()
            .map(|pod| pod.gone.unwrap_or(end) - pod.created)
            .sum()
    }

    fn line(&self) -> String {
        let status = self.status();
        let activity = status.and_then(|status| status.activity.as_ref());
        let mut line = format!(
            "{}, {} endpoints ready, {} ordered",
            if self.reason().is_empty() {
                "no status yet"
            } else {
                self.reason()
            },
            self.ready(),
            self.replicas().unwrap_or(0)
        );
        if let Some(activity) = activity {
            let (held, queued, running) = (activity.held, activity.queued, activity.in_flight);
            line.push_str(&format!(", {held} held, {queued} queued, {running} in flight"));
        }
        line
    }
}

/// Watches until dropped.
#[derive(Debug)]
pub(crate) struct Observer {
    view: watch::Receiver<View>,
    _watches: JoinSet<()>,
}

impl Observer {
    pub(crate) fn start(client: &Client, namespace: &str, pool: &str) -> Self {
        let (sender, view) = watch::channel(View::default());
        let sender = Arc::new(sender);
        let mut watches = JoinSet::new();
        let named = watcher::Config::default().fields(&format!("metadata.name={pool}"));
        let see = Arc::clone(&sender);
        watches.spawn(follow(
            Api::namespaced(client.clone(), namespace),
            named,
            move |pool: LLMPool, gone| {
                see.send_modify(|view| view.pool = (!gone).then_some(pool));
            },
        ));
        let engine = watcher::Config::default().fields(&format!("metadata.name={}", names::engine(pool)));
        let see = Arc::clone(&sender);
        watches.spawn(follow(
            Api::namespaced(client.clone(), namespace),
            engine,
            move |deployment: Deployment, gone| {
                let replicas = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
                let replicas = if gone { 0 } else { replicas };
                see.send_if_modified(|view| {
                    let changed = view.replicas() != Some(replicas);
                    if changed {
                        view.ordered.push((now(), replicas));
                    }
                    changed
                });
            },
        ));
        let pods = watcher::Config::default().labels(&format!("{}={pool}", names::label::POOL));
        watches.spawn(follow(
            Api::namespaced(client.clone(), namespace),
            pods,
            move |pod: Pod, gone| {
                sender.send_modify(|view| note_pod(view, &pod, gone));
            },
        ));
        Self {
            view,
            _watches: watches,
        }
    }

    pub(crate) fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Waits until `look` finds what it looks for, and says what is being waited for.
    pub(crate) async fn until<T>(
        &self,
        progress: &Progress,
        what: &str,
        limit: Duration,
        look: impl Fn(&View) -> Option<T>,
    ) -> Result<T> {
        let detail = Detail::default();
        let wait = self.until_seen(limit, &detail, look);
        progress.step_with(what, &detail, wait).await
    }

    /// As [`Self::until`], with the state in `detail` alone.
    pub(crate) async fn until_seen<T>(
        &self,
        limit: Duration,
        detail: &Detail,
        look: impl Fn(&View) -> Option<T>,
    ) -> Result<T> {
        let mut view = self.view.clone();
        let wait = async {
            loop {
                let found = {
                    let seen = view.borrow_and_update();
                    detail.set(seen.line());
                    look(&seen)
                };
                if let Some(found) = found {
                    return anyhow::Ok(found);
                }
                view.changed().await.context("the watches have ended")?;
            }
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(found) => found,
            Err(_) => bail!("not within {} s; last seen: {}", limit.as_secs(), detail.get()),
        }
    }
}

/// Tells `see` of every object of one watch; `true` when it is gone. The watcher restarts by itself.
async fn follow<K>(api: Api<K>, config: watcher::Config, see: impl Fn(K, bool))
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
    K::DynamicType: Default,
{
    let mut events = watcher(api, config).default_backoff().boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => see(object, false),
            Ok(Event::Delete(object)) => see(object, true),
            Ok(Event::Init | Event::InitDone) | Err(_) => {}
        }
    }
}

fn note_pod(view: &mut View, pod: &Pod, gone: bool) {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let times = view.pods.entry(uid).or_insert_with(|| PodTimes {
        created: now(),
        ready: None,
        gone: None,
    });
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let ready = conditions
        .iter()
        .any(|one| one.type_ == "Ready" && one.status == "True");
    if ready && times.ready.is_none() {
        times.ready = Some(now());
    }
    if gone && times.gone.is_none() {
        times.gone = Some(now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ready: bool) -> Pod {
        let status = if ready { "True" } else { "False" };
        serde_json::from_value(serde_json::json!({
            "metadata": {"uid": "1"},
            "status": {"conditions": [{"type": "Ready", "status": status}]},
        }))
        .expect("a pod")
    }

    #[tokio::test(start_paused = true)]
    async fn replica_time_is_the_sum_of_lives() {
        let mut view = View::default();
        note_pod(&mut view, &pod(false), false);
        tokio::time::advance(Duration::from_secs(3)).await;
        note_pod(&mut view, &pod(true), false);
        assert_eq!((view.ready(), view.living()), (1, 1));
        tokio::time::advance(Duration::from_secs(4)).await;
        note_pod(&mut view, &pod(true), true);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(view.replica_time(now()), Duration::from_secs(7));
        assert_eq!((view.ready(), view.living()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_is_a_step_from_zero() {
        let start = now();
        let at = |seconds, replicas| (start + Duration::from_secs(seconds), replicas);
        let view = View {
            ordered: vec![at(0, 0), at(1, 1), at(2, 3), at(3, 0), at(4, 2)],
            ..View::default()
        };
        let wakes: Vec<_> = view.wakes().collect();
        assert_eq!(wakes, [at(1, 0).0, at(4, 0).0]);
    }
}
