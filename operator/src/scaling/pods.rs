//! What an engine pod's object says, reduced to what scaling needs. Pure.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt;
use weir_crds::names;

use crate::references::Missing;

/// Why an engine pod does not get ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// No node has room, in the scheduler's words.
    Unschedulable(String),
    /// An image cannot be pulled.
    Image(String),
    /// An object that the spec names is not there.
    Missing(Missing),
    /// The engine (or the sidecar) ends as soon as it has started, or cannot be started.
    Crashing(String),
}

/// One engine pod.
#[derive(Debug, Clone, PartialEq)]
pub struct EnginePod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it got a node.
    pub scheduled: Option<Timestamp>,
    /// When the sidecar's container started.
    pub sidecar_started: Option<Timestamp>,
    /// When the engine's container last started.
    pub engine_started: Option<Timestamp>,
    /// The engine answered its start-up probe at least once since that.
    pub engine_up: bool,
    /// How often the engine's container was restarted.
    pub restarts: i32,
    /// The kubelet calls the pod ready.
    pub ready: bool,
    /// When it last became so, or ceased to be.
    pub ready_changed: Option<Timestamp>,
    /// It is being deleted.
    pub terminating: bool,
    /// Why it does not get ahead.
    pub trouble: Option<Trouble>,
    /// Its deletion-cost annotation.
    pub deletion_cost: Option<String>,
}

fn started(status: &ContainerStatus) -> Option<Timestamp> {
    let running = status.state.as_ref()?.running.as_ref()?;
    running.started_at.as_ref().map(|Time(at)| *at)
}

fn stuck(status: &ContainerStatus) -> Option<Trouble> {
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    let text = || match &waiting.message {
        Some(message) => format!("{}: {message}", status.name),
        None => format!(
            "{}: {}",
            status.name,
            waiting.reason.as_deref().unwrap_or("waiting")
        ),
    };
    let missing = || waiting.message.as_deref().and_then(Missing::read);
    match waiting.reason.as_deref()? {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull"
        | "ImageInspectError" => Some(Trouble::Image(text())),
        "CreateContainerConfigError" if let Some(missing) = missing() => Some(Trouble::Missing(missing)),
        "CrashLoopBackOff"
        | "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "StartError" => Some(Trouble::Crashing(text())),
        _ => None,
    }
}

impl EnginePod {
    /// Reads a pod; `None` for one that has ended or has no UID yet.
    #[must_use]
    pub fn read(pod: &Pod) -> Option<Self> {
        let status = pod.status.clone().unwrap_or_default();
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return None;
        }
        let condition = |type_: &str| {
            status
                .conditions
                .iter()
                .flatten()
                .find(move |found| found.type_ == type_)
        };
        let is_true = |type_: &str| condition(type_).is_some_and(|found| found.status == "True");
        let since = |type_: &str| {
            condition(type_).and_then(|found| found.last_transition_time.as_ref().map(|Time(at)| *at))
        };
        let containers: Vec<&ContainerStatus> = status
            .init_container_statuses
            .iter()
            .chain(&status.container_statuses)
            .flatten()
            .collect();
        let named = |name: &str| {
            containers
                .iter()
                .copied()
                .find(move |container| container.name == name)
        };
        let engine = named(names::container::ENGINE);
        let unschedulable = condition("PodScheduled")
            .filter(|found| found.status == "False" && found.reason.as_deref() == Some("Unschedulable"))
            .map(|found| found.message.clone().unwrap_or_default())
            .map(|said| Missing::read(&said).map_or(Trouble::Unschedulable(said), Trouble::Missing));
        Some(Self {
            name: pod.name_any(),
            uid: pod.uid()?,
            created: pod
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(Timestamp::UNIX_EPOCH, |Time(at)| *at),
            scheduled: is_true("PodScheduled").then(|| since("PodScheduled")).flatten(),
            sidecar_started: named(names::container::SIDECAR).and_then(started),
            engine_started: engine.and_then(started),
            engine_up: engine.is_some_and(|engine| engine.started == Some(true)),
            restarts: engine.map_or(0, |engine| engine.restart_count),
            ready: is_true("Ready"),
            ready_changed: since("Ready"),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            trouble: unschedulable.or_else(|| containers.iter().copied().find_map(stuck)),
            deletion_cost: pod
                .annotations()
                .get(names::annotation::POD_DELETION_COST)
                .cloned(),
        })
    }

    /// Since when the engine has been able to become ready and has not; `None` while it does not run (no node, an
    /// image on its way) or is ready.
    #[must_use]
    pub fn starting_since(&self) -> Option<Timestamp> {
        let started = self.engine_started?;
        (!self.ready).then(|| self.ready_changed.map_or(started, |changed| changed.max(started)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(status: &Value) -> EnginePod {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "coder-engine-1", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": status,
        }))
        .unwrap();
        EnginePod::read(&pod).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + second).unwrap()
    }

    #[test]
    fn a_running_pod_is_read() {
        let read = pod(&json!({
            "phase": "Running",
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"},
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:09Z"},
            ],
            "initContainerStatuses": [{"name": "sidecar", "image": "r", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": "2026-01-01T00:00:03Z"}}}],
            "containerStatuses": [{"name": "engine", "image": "e", "imageID": "", "ready": true, "restartCount": 2,
                "started": true, "state": {"running": {"startedAt": "2026-01-01T00:00:04Z"}}}],
        }));
        assert_eq!(
            (read.scheduled, read.sidecar_started, read.engine_started),
            (Some(at(1)), Some(at(3)), Some(at(4)))
        );
        assert!(read.ready && read.engine_up && read.starting_since().is_none());
        assert_eq!((read.restarts, read.trouble), (2, None));
    }

    #[test]
    fn a_pod_without_a_node_says_why_and_does_not_age() {
        let read = pod(&json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: gpu"},
        ]}));
        assert_eq!(
            read.trouble,
            Some(Trouble::Unschedulable("0/1 nodes: gpu".to_owned()))
        );
        assert_eq!(read.starting_since(), None);
    }

    #[test]
    fn images_and_crashes_are_told_apart() {
        let waiting = |reason: &str| {
            pod(
                &json!({"containerStatuses": [{"name": "engine", "image": "e", "imageID": "", "ready": false,
                "restartCount": 0, "state": {"waiting": {"reason": reason}}}]}),
            )
            .trouble
        };
        assert_eq!(
            waiting("ErrImagePull"),
            Some(Trouble::Image("engine: ErrImagePull".to_owned()))
        );
        assert_eq!(
            waiting("CrashLoopBackOff"),
            Some(Trouble::Crashing("engine: CrashLoopBackOff".to_owned()))
        );
        assert_eq!(waiting("ContainerCreating"), None);
    }

    #[test]
    fn a_missing_object_is_no_crash_and_no_lack_of_room() {
        let read = pod(
            &json!({"containerStatuses": [{"name": "engine", "image": "e", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": "CreateContainerConfigError",
                "message": "secret \"hf\" not found"}}}]}),
        );
        let missing = |message| Missing::read(message).map(Trouble::Missing);
        assert_eq!(read.trouble, missing(r#"secret "hf" not found"#));
        let said = r#"0/1 nodes are available: persistentvolumeclaim "w" not found."#;
        let read = pod(&json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said},
        ]}));
        assert_eq!(read.trouble, missing(said));
        assert!(read.trouble.is_some());
    }

    #[test]
    fn a_start_begins_with_the_engine_and_again_when_readiness_is_lost() {
        let running = |ready_since: &str| {
            pod(&json!({
                "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": ready_since}],
                "containerStatuses": [{"name": "engine", "image": "e", "imageID": "", "ready": false,
                    "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:30Z"}}}],
            }))
        };
        assert_eq!(running("2026-01-01T00:00:01Z").starting_since(), Some(at(30)));
        assert_eq!(running("2026-01-01T00:01:00Z").starting_since(), Some(at(60)));
        assert_eq!(
            pod(&json!({})).starting_since(),
            None,
            "an image may take its time"
        );
    }

    #[test]
    fn an_ended_pod_is_none() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"uid": "u"}, "status": {"phase": "Failed"}})).unwrap();
        assert_eq!(EnginePod::read(&pod), None);
    }
}
