//! Every call to the API server: each has a name, a timeout and a metric, and a write is refused once this process
//! may no longer write.

use std::{fmt::Debug, future::Future, time::Duration};

use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;
use weir_crds::names;

use crate::{lease::Leadership, metrics::Metrics, rights};

/// Longest wait for one answer of the API server. Shorter than the time between the leader's renew deadline and the
/// end of its lease: a write that was allowed to begin has ended before another process may write.
pub const TIMEOUT: Duration = Duration::from_secs(4);

/// A call that failed; its name is metric label and event reason.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer in time.
    #[error("{call}: the API server did not answer in {after:?}")]
    Timeout {
        /// The call.
        call: &'static str,
        /// The limit.
        after: Duration,
    },
    /// This process does not hold the lease any more.
    #[error("{call}: the lease is lost")]
    NotLeader {
        /// The call.
        call: &'static str,
    },
    /// The API server refused.
    #[error("{call}: {}", rights::explained(source))]
    Api {
        /// The call.
        call: &'static str,
        /// Its answer.
        #[source]
        source: Box<kube::Error>,
    },
}

impl CallError {
    /// The object changed, or is not there: looking again and trying again is the cure.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.has_code(409) || self.has_code(404)
    }

    /// The namespace is being deleted, so nothing can be made in it any more.
    #[must_use]
    pub fn is_namespace_ending(&self) -> bool {
        matches!(self, Self::Api { source, .. } if is_namespace_ending(source))
    }

    /// The object as it would be contradicts itself.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        self.has_code(422)
    }

    fn has_code(&self, code: u16) -> bool {
        matches!(self, Self::Api { source, .. }
            if matches!(source.as_ref(), kube::Error::Api(status) if status.code == code))
    }
}

/// The API server refuses to make an object because its namespace is being deleted: that never passes.
#[must_use]
pub fn is_namespace_ending(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403
        && causes
            .into_iter()
            .any(|cause| cause.reason == "NamespaceTerminating")
}

/// The way to the API server.
#[derive(Clone)]
pub struct Calls {
    client: Client,
    leadership: Leadership,
    metrics: Metrics,
}

impl Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calls")
            .field("leadership", &self.leadership)
            .finish_non_exhaustive()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "calls are measured on this process's monotonic clock"
)]
fn now() -> Instant {
    Instant::now()
}

impl Calls {
    /// Calls through `client` for as long as `leadership` lasts.
    #[must_use]
    pub fn new(client: Client, leadership: Leadership, metrics: Metrics) -> Self {
        Self {
            client,
            leadership,
            metrics,
        }
    }

    /// The client, for making an [`Api`].
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The right to write.
    #[must_use]
    pub fn leadership(&self) -> &Leadership {
        &self.leadership
    }

    /// A call that changes nothing.
    ///
    /// # Errors
    /// [`CallError::Timeout`] or the API server's refusal.
    pub async fn read<T>(
        &self,
        call: &'static str,
        future: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, CallError> {
        self.limited(call, TIMEOUT, future).await
    }

    /// A call that changes something, given up after `limit` and never later than [`TIMEOUT`].
    ///
    /// # Errors
    /// [`CallError::NotLeader`] before anything is sent; else as [`Self::read`].
    pub async fn write<T>(
        &self,
        call: &'static str,
        limit: Duration,
        future: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, CallError> {
        if self.leadership.remaining().is_zero() {
            self.metrics
                .api_calls
                .with_label_values(&[call, "not_leader"])
                .inc();
            return Err(CallError::NotLeader { call });
        }
        self.limited(call, limit.min(TIMEOUT), future).await
    }

    /// Server-side apply under our field manager, forced: the operator's word on its own fields holds.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn apply<K>(
        &self,
        call: &'static str,
        api: &Api<K>,
        name: &str,
        body: &Value,
    ) -> Result<K, CallError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        self.write(call, TIMEOUT, api.patch(name, &manager(), &Patch::Apply(body)))
            .await
    }

    /// Merge patch: maps are merged, lists replaced as a whole, other writers' elements included.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn overwrite<K>(
        &self,
        call: &'static str,
        api: &Api<K>,
        name: &str,
        body: &Value,
    ) -> Result<K, CallError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let manager = PatchParams {
            field_manager: Some(names::FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        self.write(call, TIMEOUT, api.patch(name, &manager, &Patch::Merge(body)))
            .await
    }

    /// Deletes an object; one that is gone already counts as deleted.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn delete<K>(
        &self,
        call: &'static str,
        api: &Api<K>,
        name: &str,
        how: &DeleteParams,
    ) -> Result<(), CallError>
    where
        K: Clone + DeserializeOwned + Debug + Resource,
    {
        match self.write(call, TIMEOUT, api.delete(name, how)).await {
            Err(error) if error.is_stale() => Ok(()),
            other => other.map(drop),
        }
    }

    async fn limited<T>(
        &self,
        call: &'static str,
        limit: Duration,
        future: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, CallError> {
        let began = now();
        let answer = tokio::time::timeout(limit, future).await;
        self.metrics
            .api_seconds
            .with_label_values(&[call])
            .observe(began.elapsed().as_secs_f64());
        let (outcome, result) = match answer {
            Ok(Ok(value)) => ("ok", Ok(value)),
            Ok(Err(source)) => (
                "refused",
                Err(CallError::Api {
                    call,
                    source: Box::new(source),
                }),
            ),
            Err(_) => ("timeout", Err(CallError::Timeout { call, after: limit })),
        };
        self.metrics.api_calls.with_label_values(&[call, outcome]).inc();
        result
    }
}

/// Parameters of every server-side apply.
#[must_use]
pub fn manager() -> PatchParams {
    PatchParams::apply(names::FIELD_MANAGER).force()
}
