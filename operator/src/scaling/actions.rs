//! What a scaler does to the world: replica patches, orders to gateways, deletions.

use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, Patch, Preconditions},
};
use serde_json::json;
use tokio::time::Instant;
use weir_crds::{human, names};
use weir_wire::control::{Order, OrderAnswer, OrderRequest};

use super::{
    CONFIRM, Look, Scaler,
    decide::{Action, Decision},
    demand::Demand,
    fence::{self, Answer, Fence, Step},
    instant::after,
    victim::{self, Victim},
};
use crate::{
    calls::{CallError, TIMEOUT, manager},
    control::{board::Replica, order},
    events::What,
};

/// Grace of a pod that is deleted although its engine never started: it would ignore the signal for its whole grace.
const SHORT_GRACE_SECONDS: u32 = 5;
/// Life of a drain order: by its end the pod is gone or the order is given again.
const DRAIN_LEASE_MS: u64 = 120_000;
/// Pause before a fence that failed is tried again.
const FENCE_AGAIN: Duration = Duration::from_secs(2);

#[expect(
    clippy::disallowed_methods,
    reason = "a fence is measured on this process's monotonic clock"
)]
fn monotonic() -> Instant {
    Instant::now()
}

impl Scaler {
    /// Carries out a decision.
    pub(super) async fn act(
        &mut self,
        look: &Look,
        decision: &Decision,
        now: Timestamp,
    ) -> Result<(), CallError> {
        match &decision.action {
            Action::None => Ok(()),
            Action::Raise(replicas) => self.raise(look, *replicas, now).await,
            Action::Lower(replicas, victim) => self.lower(look, *replicas, victim.as_ref(), now).await,
            Action::Zero => self.zero(look, decision, now).await,
            Action::Stop => self.patch_replicas(0, now, TIMEOUT).await,
            Action::Restart { name, uid } => {
                self.delete_pod(name, uid).await?;
                self.memory.timeouts = self.memory.timeouts.saturating_add(1);
                let limit = human(look.view.settings.deadline);
                let note = format!(
                    "engine pod {name} was not ready after {limit} (startup.deadline); it is started anew"
                );
                self.event(&look.pool, What::StartTimeout, note);
                Ok(())
            }
            Action::Hurry { name, uid } => self.delete_pod(name, uid).await,
            Action::Unfence => {
                self.order_all(look, &Order::Unfence).await;
                Ok(())
            }
        }
    }

    /// Writes back replicas that somebody else changed.
    pub(super) async fn write_back(
        &mut self,
        look: &Look,
        replicas: u32,
        now: Timestamp,
    ) -> Result<(), CallError> {
        self.patch_replicas(replicas, now, TIMEOUT).await?;
        let who = self.foreign.as_ref().map_or("somebody", |(who, _)| who.as_str());
        tracing::warn!(pool = %self.key, replicas, who, "replicas were changed and written back");
        let note = format!(
            "{who} changed the replicas of Deployment {}; written back to {replicas}. Change spec.scaling of the pool instead",
            names::engine(&self.key.name)
        );
        self.event(&look.pool, What::ReplicasChanged, note);
        Ok(())
    }

    async fn raise(&mut self, look: &Look, replicas: u32, now: Timestamp) -> Result<(), CallError> {
        let before = look.view.replicas.unwrap_or(0);
        let began = monotonic();
        self.patch_replicas(replicas, now, TIMEOUT).await?;
        self.memory.ordered_at = Some(now);
        let demand = &look.view.demand;
        tracing::info!(pool = %self.key, before, replicas, held = demand.held, queued = demand.queued, "replicas raised");
        self.operator
            .metrics
            .replica_patches
            .with_label_values(&["up"])
            .inc();
        if before == 0 && demand.waiting() > 0 {
            self.operator
                .metrics
                .wake_seconds
                .observe(began.elapsed().as_secs_f64());
            let note = format!("{} requests wait; engine pods 0 -> {replicas}", demand.waiting());
            self.event(&look.pool, What::Waking, note);
        } else {
            let note = format!(
                "{} requests run and {} wait; engine pods {before} -> {replicas}",
                demand.in_flight,
                demand.waiting()
            );
            self.event(&look.pool, What::ScalingUp, note);
        }
        Ok(())
    }

    async fn lower(
        &mut self,
        look: &Look,
        replicas: u32,
        victim: Option<&Victim>,
        now: Timestamp,
    ) -> Result<(), CallError> {
        if let Some(victim) = victim.filter(|victim| victim.serves) {
            let drain = Order::Drain {
                uid: victim.uid.clone(),
                lease_ms: DRAIN_LEASE_MS,
            };
            self.order_all(look, &drain).await;
        }
        if let Err(error) = self.remove_one(look, replicas, victim, now).await {
            // It stays after all, and must not stay without requests until the drain order lapses.
            if let Some(victim) = victim {
                let undrain = Order::Undrain {
                    uid: victim.uid.clone(),
                };
                self.order_all(look, &undrain).await;
            }
            return Err(error);
        }
        let name = victim.map_or("none yet", |victim| victim.name.as_str());
        tracing::info!(pool = %self.key, replicas, victim = name, "replicas lowered");
        self.operator
            .metrics
            .replica_patches
            .with_label_values(&["down"])
            .inc();
        let note = format!(
            "fewer engine pods are enough: {} -> {replicas}, without {name}",
            replicas + 1
        );
        self.event(&look.pool, What::ScalingDown, note);
        Ok(())
    }

    /// Marks the victim as the pod that goes first, then asks for one pod fewer.
    async fn remove_one(
        &mut self,
        look: &Look,
        replicas: u32,
        victim: Option<&Victim>,
        now: Timestamp,
    ) -> Result<(), CallError> {
        if let Some(victim) = victim {
            let pods: Api<Pod> = Api::namespaced(self.operator.calls.client(), &self.key.namespace);
            for (name, cost) in victim::costs(&look.view.pods, &victim.uid) {
                let annotations = match cost {
                    Some(cost) => json!({names::annotation::POD_DELETION_COST: cost}),
                    None => json!({}),
                };
                let mark = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations}});
                match self.operator.calls.apply("mark_victim", &pods, name, &mark).await {
                    Ok(_) => {}
                    // The pod is gone: so is its mark.
                    Err(error) if error.is_stale() || error.is_namespace_ending() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        self.patch_replicas(replicas, now, TIMEOUT).await
    }

    /// Fences every gateway replica and asks for no pods while all fences hold. Anything else lets arrivals through.
    async fn zero(&mut self, look: &Look, decision: &Decision, now: Timestamp) -> Result<(), CallError> {
        let sent = monotonic();
        let replicas: BTreeSet<String> = look
            .replicas
            .iter()
            .map(|view| view.replica.uid.clone())
            .collect();
        let order = Order::Fence {
            lease_ms: u64::try_from(fence::LEASE.as_millis()).unwrap_or(60_000),
        };
        let mut fence = Fence::new(replicas);
        for (replica, answer) in self.order_all(look, &order).await {
            let said = match answer {
                Some(answer) if answer.done && answer.state.is_idle() => Answer::Fenced,
                Some(_) => Answer::Busy,
                None => Answer::Unreachable,
            };
            fence.answer(&replica.uid, said);
        }
        let now_there = self.operator.board.view(&look.gateway, &self.key.name, &self.uid);
        let waiting = Demand::of(&now_there).waiting();
        let there: BTreeSet<String> = now_there.into_iter().map(|view| view.replica.uid).collect();
        let Some(left) = fence.commit(&there, waiting, sent.elapsed()) else {
            let outcome = match fence.step() {
                Step::GiveUp(Answer::Busy) => "busy",
                Step::GiveUp(_) => "unreachable",
                Step::Wait | Step::AllFenced => "overtaken",
            };
            self.operator.metrics.fences.with_label_values(&[outcome]).inc();
            tracing::info!(pool = %self.key, outcome, "the pool is not stopped now");
            self.memory.no_fence_until = Some(after(now, FENCE_AGAIN));
            self.order_all(look, &Order::Unfence).await;
            return Ok(());
        };
        if let Err(error) = self.patch_replicas(0, now, left).await {
            self.memory.no_fence_until = Some(after(now, FENCE_AGAIN));
            self.order_all(look, &Order::Unfence).await;
            return Err(error);
        }
        self.operator.metrics.fences.with_label_values(&["zero"]).inc();
        self.operator
            .metrics
            .replica_patches
            .with_label_values(&["zero"])
            .inc();
        tracing::info!(pool = %self.key, "replicas are zero");
        self.event(&look.pool, What::ScaledToZero, decision.sentence.clone());
        Ok(())
    }

    /// The replica patch: server-side apply of the scale subresource, so that the template stays out of it.
    async fn patch_replicas(
        &mut self,
        replicas: u32,
        now: Timestamp,
        limit: Duration,
    ) -> Result<(), CallError> {
        let api: Api<Deployment> = Api::namespaced(self.operator.calls.client(), &self.key.namespace);
        let name = names::engine(&self.key.name);
        let scale = Patch::Apply(json!({
            "apiVersion": "autoscaling/v1", "kind": "Scale",
            "metadata": {"name": name, "namespace": self.key.namespace},
            "spec": {"replicas": replicas},
        }));
        self.operator
            .calls
            .write(
                "patch_replicas",
                limit,
                api.patch_scale(&name, &manager(), &scale),
            )
            .await?;
        self.written = Some((replicas, after(now, CONFIRM)));
        Ok(())
    }

    async fn delete_pod(&mut self, name: &str, uid: &str) -> Result<(), CallError> {
        let api: Api<Pod> = Api::namespaced(self.operator.calls.client(), &self.key.namespace);
        let only_this = Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        };
        let how = DeleteParams::default()
            .grace_period(SHORT_GRACE_SECONDS)
            .preconditions(only_this);
        self.operator.calls.delete("delete_pod", &api, name, &how).await?;
        tracing::info!(pool = %self.key, pod = name, "an engine pod that never started was deleted");
        self.memory.hurried.insert(uid.to_owned());
        Ok(())
    }

    /// Sends one order to all gateway replicas at once, under a new epoch. `None` where there was no answer.
    async fn order_all(&self, look: &Look, order_: &Order) -> Vec<(Replica, Option<OrderAnswer>)> {
        // Above everything of this term, and above what a replica has obeyed: the lease may have been made anew.
        let known = look.view.demand.epoch.max(self.epoch.load(Ordering::Relaxed));
        let epoch = self
            .operator
            .calls
            .leadership()
            .next_epoch()
            .max(known.saturating_add(1));
        self.epoch.store(epoch, Ordering::Relaxed);
        let request = OrderRequest {
            epoch,
            order: order_.clone(),
        };
        let Some(token) = self.operator.tokens.get(&look.gateway) else {
            return look
                .replicas
                .iter()
                .map(|view| (view.replica.clone(), None))
                .collect();
        };
        let (request, token) = (&request, &token);
        let sent: FuturesUnordered<_> = look
            .replicas
            .iter()
            .map(|view| async move {
                match order(&view.replica, token, &self.key.name, request).await {
                    Ok(answer) => (view.replica.clone(), Some(answer)),
                    Err(error) => {
                        tracing::warn!(pool = %self.key, pod = view.replica.pod, %error, "an order failed");
                        (view.replica.clone(), None)
                    }
                }
            })
            .collect();
        sent.collect().await
    }
}
