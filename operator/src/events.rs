//! Kubernetes events on the objects people wrote: what happened and, where something is wrong, what to change.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use weir_crds::names;

use crate::calls::{TIMEOUT, is_namespace_ending};

/// Longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1_000;

/// What happened; the name is the event's reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Requests wait: the first engine pods are ordered.
    Waking,
    /// More engine pods are ordered.
    ScalingUp,
    /// One engine pod fewer.
    ScalingDown,
    /// The pool begins to serve.
    Ready,
    /// The pool was idle long enough and stops.
    ScaledToZero,
    /// Another pool of the gateway has the model name.
    ModelConflict,
    /// The object cannot be used as it is.
    Invalid,
    /// No node has room.
    Unschedulable,
    /// A start took longer than its deadline.
    StartTimeout,
    /// An image cannot be pulled.
    ImageUnavailable,
    /// The engine ends as soon as it has started.
    EngineFailing,
    /// The API server makes no engine pods.
    PodsRefused,
    /// An object that the spec names is not there.
    ReferenceMissing,
    /// Somebody else wrote replicas.
    ReplicasChanged,
    /// An object could not be written.
    ApplyFailed,
}

impl What {
    /// The event's reason.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waking => "Waking",
            Self::ScalingUp => "ScalingUp",
            Self::ScalingDown => "ScalingDown",
            Self::Ready => "Ready",
            Self::ScaledToZero => "ScaledToZero",
            Self::ModelConflict => "ModelConflict",
            Self::Invalid => "Invalid",
            Self::Unschedulable => "Unschedulable",
            Self::StartTimeout => "StartTimeout",
            Self::ImageUnavailable => "ImageUnavailable",
            Self::EngineFailing => "EngineFailing",
            Self::PodsRefused => "PodsRefused",
            Self::ReferenceMissing => "ReferenceMissing",
            Self::ReplicasChanged => "ReplicasChanged",
            Self::ApplyFailed => "ApplyFailed",
        }
    }

    const fn type_(self) -> EventType {
        match self {
            Self::Waking | Self::ScalingUp | Self::ScalingDown | Self::Ready | Self::ScaledToZero => {
                EventType::Normal
            }
            Self::ModelConflict
            | Self::Invalid
            | Self::Unschedulable
            | Self::StartTimeout
            | Self::ImageUnavailable
            | Self::EngineFailing
            | Self::PodsRefused
            | Self::ReferenceMissing
            | Self::ReplicasChanged
            | Self::ApplyFailed => EventType::Warning,
        }
    }
}

/// Publishes events. A lost event is logged and changes nothing else.
#[derive(Clone)]
pub struct Events(Recorder);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    /// Events reported by this replica of the operator.
    #[must_use]
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter {
            controller: names::FIELD_MANAGER.to_owned(),
            instance: Some(identity.to_owned()),
        };
        Self(Recorder::new(client, reporter))
    }

    /// Publishes one.
    pub async fn publish(&self, about: &ObjectReference, what: What, note: &str) {
        let event = Event {
            type_: what.type_(),
            reason: what.as_str().to_owned(),
            note: Some(note[..note.floor_char_boundary(MAX_NOTE)].to_owned()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        match tokio::time::timeout(TIMEOUT, self.0.publish(&event, about)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if is_namespace_ending(&error) => {
                tracing::debug!(
                    reason = what.as_str(),
                    "the namespace is being deleted; the event is lost"
                );
            }
            Ok(Err(error)) => tracing::warn!(reason = what.as_str(), %error, "an event was lost"),
            Err(_) => tracing::warn!(reason = what.as_str(), "an event was lost: no answer in time"),
        }
    }
}
