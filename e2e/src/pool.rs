//! A pool of simulated engines in a test's namespace: its manifest, its status, its pods, and the way to its gateway.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::Value;
use weir_crds::{LLMPool, LLMPoolStatus, condition::ConditionType, condition::find, names};

use crate::{
    client::Caller,
    condition::{Seen, await_condition},
    manifest::FIELD_MANAGER,
    namespace::TestNamespace,
    reach::reach_pod,
};

/// Image of the simulated engine.
pub const ENGINE_SIM: &str = "localhost/weir-engine-sim:dev";
/// Longest wait for anything that takes seconds.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A pool to be applied; its model is called `NAME-model`.
#[derive(Debug, Clone, Default)]
pub struct Simulated<'a> {
    /// Name.
    pub name: &'a str,
    /// Arguments of the simulator.
    pub args: &'a [&'a str],
    /// Requests per engine.
    pub max_concurrency: Option<u32>,
    /// More lines of the spec, indented by two.
    pub more: &'a str,
}

/// A pool in a namespace.
#[derive(Clone)]
pub struct Pool {
    /// Where it is.
    pub space: TestNamespace,
    /// Its name.
    pub name: String,
    /// Its model's name.
    pub model: String,
}

impl<'a> Simulated<'a> {
    /// One engine that starts at once and always runs.
    #[must_use]
    pub fn steady(name: &'a str) -> Self {
        Self {
            name,
            args: &["--startup=0s"],
            more: "  idle: {policy: Never}\n  scaling: {minReplicas: 1}",
            ..Self::default()
        }
    }

    /// The manifest.
    #[must_use]
    pub fn yaml(&self) -> String {
        let Self { name, args, more, .. } = self;
        let cap = self
            .max_concurrency
            .map(|cap| format!("\n    maxConcurrency: {cap}"));
        format!(
            "apiVersion: weir.dev/v1alpha1
kind: LLMPool
metadata: {{name: {name}}}
spec:
  model: {{name: {name}-model, source: image}}
  engine:
    image: {ENGINE_SIM}
    imagePullPolicy: IfNotPresent
    args: [{args}]{cap}
  resources: {{requests: {{cpu: 10m, memory: 32Mi}}, limits: {{memory: 512Mi}}}}
{more}
",
            args = args.join(", "),
            cap = cap.unwrap_or_default(),
        )
    }

    /// Applies it.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn apply(&self, space: &TestNamespace) -> Result<Pool> {
        space.apply(&self.yaml()).await?;
        Ok(Pool {
            space: space.clone(),
            name: self.name.to_owned(),
            model: format!("{}-model", self.name),
        })
    }

    /// Applies it, finds the way to its gateway, and waits until so many endpoints serve; with 0, until it is at zero.
    ///
    /// # Errors
    /// As [`Self::apply`], or the pool does not come there within [`PATIENCE`].
    pub async fn settled(&self, space: &TestNamespace, endpoints: i32) -> Result<(Pool, Caller)> {
        let pool = self.apply(space).await?;
        let caller = pool.caller().await?;
        match endpoints {
            0 => pool.at_zero(PATIENCE).await?,
            count => pool.serving(count, PATIENCE).await?,
        };
        Ok((pool, caller))
    }
}

impl Pool {
    /// The object.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn get(&self) -> Result<LLMPool> {
        Ok(self.space.api::<LLMPool>().get(&self.name).await?)
    }

    /// Its status.
    ///
    /// # Errors
    /// It cannot be read, or there is none yet.
    pub async fn status(&self) -> Result<LLMPoolStatus> {
        self.get().await?.status.context("no status yet")
    }

    /// Waits until `holds` is true of a status that is about the present spec.
    ///
    /// # Errors
    /// Not within `limit`.
    pub async fn until(
        &self,
        what: &str,
        limit: Duration,
        holds: impl Fn(&LLMPoolStatus) -> bool,
    ) -> Result<LLMPoolStatus> {
        await_condition(&format!("pool {} {what}", self.name), limit, async || {
            let pool = self.get().await?;
            let status = pool.status.context("no status yet")?;
            let current = status.observed_generation == pool.metadata.generation;
            if current && holds(&status) {
                return Ok(Seen::Done(status));
            }
            Ok(Seen::NotYet(describe(&status, current)))
        })
        .await
    }

    /// Waits until its Ready condition has this reason.
    ///
    /// # Errors
    /// Not within `limit`.
    pub async fn reason(&self, reason: &str, limit: Duration) -> Result<LLMPoolStatus> {
        self.until(&format!("to be {reason}"), limit, |status| {
            ready_reason(status) == reason
        })
        .await
    }

    /// Waits until nothing runs, and the pool says so.
    ///
    /// # Errors
    /// Not within `limit`.
    pub async fn at_zero(&self, limit: Duration) -> Result<LLMPoolStatus> {
        self.until("to be at zero", limit, |status| {
            ready_reason(status) == "AtZero" && status.replicas == 0
        })
        .await
    }

    /// Waits until exactly so many endpoints run and answer.
    ///
    /// # Errors
    /// Not within `limit`.
    pub async fn serving(&self, replicas: i32, limit: Duration) -> Result<LLMPoolStatus> {
        self.until(&format!("to serve with {replicas}"), limit, |status| {
            ready_reason(status) == "Serving"
                && status.replicas == replicas
                && status.ready_replicas == replicas
        })
        .await
    }

    /// Changes the spec as a user would.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn change(&self, spec: &Value) -> Result<()> {
        let patch = serde_json::json!({ "spec": spec });
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let pools = self.space.api::<LLMPool>();
        pools.patch(&self.name, &params, &Patch::Merge(&patch)).await?;
        Ok(())
    }

    /// Its Deployment.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn deployment(&self) -> Result<Deployment> {
        let name = names::engine(&self.name);
        Ok(self.space.api::<Deployment>().get(&name).await?)
    }

    /// Its engine pods that are not being deleted.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn pods(&self) -> Result<Vec<Pod>> {
        let mut pods = self.all_pods().await?;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(pods)
    }

    /// Its engine pods, those that are being deleted too.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn all_pods(&self) -> Result<Vec<Pod>> {
        let of_pool = format!("{}={}", names::label::POOL, self.name);
        let pods: Api<Pod> = self.space.api();
        Ok(pods.list(&ListParams::default().labels(&of_pool)).await?.items)
    }

    /// Returns once the engine pod of this name is being deleted, or gone.
    ///
    /// # Errors
    /// Not within `limit`.
    pub async fn leaving(&self, pod: &str, limit: Duration) -> Result<()> {
        await_condition(&format!("pod {pod} to be deleted"), limit, async || {
            let stays = self.pods().await?.iter().any(|other| other.name_any() == pod);
            Ok(if stays {
                Seen::NotYet("it stays".to_owned())
            } else {
                Seen::Done(())
            })
        })
        .await
    }

    /// A way to the gateway, when it knows the model and the pool has its first status.
    ///
    /// # Errors
    /// Not within [`PATIENCE`].
    pub async fn caller(&self) -> Result<Caller> {
        let known = self
            .get()
            .await
            .map(|pool| pool.spec.gateway)
            .unwrap_or_else(|_| names::DEFAULT_GATEWAY.to_owned());
        let service = names::gateway_service(&known);
        await_condition(&format!("the gateway of {}", self.name), PATIENCE, async || {
            let reach = self.space.reach(&service, 80).await?;
            let caller = Caller::through(reach);
            let models = caller.get("/v1/models").await?.json();
            let listed = models["data"]
                .as_array()
                .is_some_and(|models| models.iter().any(|model| model["id"] == *self.model));
            Ok(if listed {
                Seen::Done(caller)
            } else {
                Seen::NotYet(models.to_string())
            })
        })
        .await
    }
}

/// Pods of a gateway.
///
/// # Errors
/// They cannot be listed.
pub async fn gateway_pods(space: &TestNamespace) -> Result<Vec<Pod>> {
    let of_gateway = format!("{}={}", names::label::COMPONENT, names::component::GATEWAY);
    let pods: Api<Pod> = space.api();
    Ok(pods.list(&ListParams::default().labels(&of_gateway)).await?.items)
}

/// A way to a pod's port.
///
/// # Errors
/// As [`reach_pod`].
pub async fn pod_caller(space: &TestNamespace, pod: &Pod, port: u16) -> Result<Caller> {
    let reach = reach_pod(&space.cluster, &space.client, &space.name, &name_of(pod), port).await?;
    Ok(Caller::through(reach))
}

/// Name of a pod.
#[must_use]
pub fn name_of(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

/// Reason of the Ready condition; empty without one.
#[must_use]
pub fn ready_reason(status: &LLMPoolStatus) -> &str {
    find(&status.conditions, ConditionType::Ready).map_or("", |condition| condition.reason.as_str())
}

fn describe(status: &LLMPoolStatus, current: bool) -> String {
    let ready = find(&status.conditions, ConditionType::Ready);
    let message = ready.map_or("", |ready| ready.message.as_str());
    format!(
        "{} ({message}), {} replicas, {} ready, {} desired{}; idle {:?}; activity {:?}",
        ready_reason(status),
        status.replicas,
        status.ready_replicas,
        status.desired_replicas,
        if current { "" } else { ", of an older spec" },
        status.idle,
        status.activity,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_is_a_pool() {
        let pool = Simulated {
            name: "a",
            args: &["--startup=2s", "--seed=1"],
            max_concurrency: Some(4),
            more: "  idle: {policy: Fixed, after: 1s}",
        };
        let documents = crate::manifest::documents(&pool.yaml()).expect("YAML");
        let read: LLMPool = serde_json::from_value(documents[0].clone()).expect("a pool");
        assert_eq!(read.spec.engine.max_concurrency, Some(4));
        assert_eq!(read.spec.engine.args.len(), 2);
    }
}
