//! Leader election over one `coordination.k8s.io/v1` Lease, by client-go's rule: a follower never compares wall
//! clocks; it measures on its own monotonic clock how long it has seen the same record, and takes over when that is
//! longer than the record's duration. The leader stops writing `renew_deadline` after its last renewal, which is
//! shorter than the duration by more than any single write may take.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::ObjectMeta, api::PostParams};
use tokio::time::Instant;

use crate::rights;

/// Timing of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// A record seen unchanged for this long is free.
    pub duration: Duration,
    /// The leader gives up this long after its last renewal.
    pub renew_deadline: Duration,
    /// Pause between two attempts.
    pub retry: Duration,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the lease is measured on this process's monotonic clock"
)]
fn now() -> Instant {
    Instant::now()
}

/// The right to write, as long as it lasts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leadership {
    transitions: u32,
    orders: Arc<AtomicU32>,
    until: Arc<Mutex<Option<Instant>>>,
}

impl Leadership {
    /// A term that ends at `until`, or never.
    #[must_use]
    pub fn new(transitions: u32, until: Option<Instant>) -> Self {
        Self {
            transitions,
            orders: Arc::default(),
            until: Arc::new(Mutex::new(until)),
        }
    }

    /// How much longer this process may write, counted from now; zero once the term is over.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        match *self.until.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(until) => until.saturating_duration_since(now()),
            None => Duration::MAX,
        }
    }

    /// A fencing token higher than all before it, of this term and of earlier ones: the lease's transitions in the
    /// upper 32 bits, a counter in the lower.
    #[must_use]
    pub fn next_epoch(&self) -> u64 {
        let order = self.orders.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        (u64::from(self.transitions) << 32) | u64::from(order)
    }

    fn extend(&self, until: Instant) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Ends the term at once.
    pub fn end(&self) {
        self.extend(now());
    }
}

/// What an observed record allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nobody holds it, or its holder was silent for its duration.
    Free,
    /// This process holds it.
    Mine,
    /// Somebody else holds it.
    Taken,
}

/// A record and since when it was seen unchanged.
#[derive(Debug, Clone)]
struct Seen {
    spec: LeaseSpec,
    since: Instant,
}

impl Seen {
    fn observe(before: Option<Self>, spec: &LeaseSpec, now: Instant) -> Self {
        match before {
            Some(seen) if seen.spec == *spec => seen,
            _ => Self {
                spec: spec.clone(),
                since: now,
            },
        }
    }

    fn verdict(&self, identity: &str, default_duration: Duration, now: Instant) -> Verdict {
        let holder = self.spec.holder_identity.as_deref().unwrap_or_default();
        if holder == identity {
            return Verdict::Mine;
        }
        let duration = self
            .spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(default_duration, Duration::from_secs);
        if holder.is_empty() || now.saturating_duration_since(self.since) > duration {
            Verdict::Free
        } else {
            Verdict::Taken
        }
    }
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("the API server did not answer in {0:?}")]
    Timeout(Duration),
    #[error("{}", rights::explained(.0))]
    Api(kube::Error),
    #[error("the lease belongs to another process")]
    Taken,
    #[error("another process wrote the lease first")]
    Raced,
}

impl From<kube::Error> for AttemptError {
    fn from(error: kube::Error) -> Self {
        match error {
            // Made or changed since it was read: of several that try at once one wins.
            kube::Error::Api(status) if status.code == 409 => Self::Raced,
            other => Self::Api(other),
        }
    }
}

/// Takes and keeps one lease.
#[derive(Debug)]
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    settings: Settings,
    seen: Option<Seen>,
}

impl Elector {
    /// An elector that has not tried yet. A process that restarts under the same identity takes its own lease back
    /// at once, with a new term.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, settings: Settings) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            settings,
            seen: None,
        }
    }

    /// Waits until this process holds the lease.
    pub async fn acquire(&mut self) -> Leadership {
        loop {
            let began = now();
            match self.attempt(true).await {
                Ok(transitions) => {
                    return Leadership::new(transitions, Some(began + self.settings.renew_deadline));
                }
                Err(AttemptError::Taken) => tracing::debug!("the lease is taken"),
                Err(AttemptError::Raced) => tracing::debug!("another process took the lease first"),
                Err(error) => tracing::warn!(%error, "the lease could not be taken"),
            }
            tokio::time::sleep(self.settings.retry).await;
        }
    }

    /// Renews until the term is over, then returns: another process holds the lease, or the API server was out of
    /// reach for the renew deadline.
    pub async fn keep(&mut self, leadership: &Leadership) {
        loop {
            tokio::time::sleep(self.settings.retry.min(leadership.remaining())).await;
            let began = now();
            match self.attempt(false).await {
                Ok(_) => leadership.extend(began + self.settings.renew_deadline),
                Err(AttemptError::Taken) => {
                    leadership.end();
                    return;
                }
                Err(error) => tracing::warn!(%error, "the lease could not be renewed"),
            }
            if leadership.remaining().is_zero() {
                return;
            }
        }
    }

    /// Gives the lease up, so that a follower takes it at its next attempt.
    pub async fn release(&mut self, leadership: &Leadership) {
        leadership.end();
        let released = tokio::time::timeout(self.settings.retry, async {
            let mut lease = self.api.get(&self.name).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = Some(String::new());
                spec.lease_duration_seconds = Some(1);
                spec.renew_time = Some(MicroTime(Timestamp::now()));
                self.api
                    .replace(&self.name, &PostParams::default(), &lease)
                    .await?;
            }
            Ok::<_, kube::Error>(())
        });
        match released.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the lease could not be released"),
            Err(_) => tracing::warn!("the lease could not be released in time"),
        }
    }

    /// One attempt to take or renew; the term's transitions when it worked. `new_term` raises the transitions even
    /// when the record already names this identity: a restarted process must not reuse epochs.
    async fn attempt(&mut self, new_term: bool) -> Result<u32, AttemptError> {
        let limit = self.settings.retry.max(Duration::from_secs(1));
        tokio::time::timeout(limit, self.take(new_term))
            .await
            .map_err(|_| AttemptError::Timeout(limit))?
    }

    async fn take(&mut self, new_term: bool) -> Result<u32, AttemptError> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.record(1, None)),
            };
            let lease = self.api.create(&PostParams::default(), &lease).await?;
            self.see(lease.spec.as_ref());
            return Ok(1);
        };
        let spec = lease.spec.get_or_insert_default().clone();
        self.see(Some(&spec));
        let verdict = self.seen.as_ref().map_or(Verdict::Taken, |seen| {
            seen.verdict(&self.identity, self.settings.duration, now())
        });
        let before = u32::try_from(spec.lease_transitions.unwrap_or(0)).unwrap_or(0);
        let (transitions, acquired) = match verdict {
            Verdict::Taken => return Err(AttemptError::Taken),
            // A leader whose lease was released or taken under it must not slip back into its old term.
            Verdict::Free if !new_term => return Err(AttemptError::Taken),
            Verdict::Mine if !new_term => (before, spec.acquire_time),
            Verdict::Free | Verdict::Mine => (before.saturating_add(1), None),
        };
        lease.spec = Some(self.record(transitions, acquired));
        let lease = self
            .api
            .replace(&self.name, &PostParams::default(), &lease)
            .await?;
        self.see(lease.spec.as_ref());
        Ok(transitions)
    }

    fn see(&mut self, spec: Option<&LeaseSpec>) {
        let spec = spec.cloned().unwrap_or_default();
        self.seen = Some(Seen::observe(self.seen.take(), &spec, now()));
    }

    fn record(&self, transitions: u32, acquired: Option<MicroTime>) -> LeaseSpec {
        let wall = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.settings.duration.as_secs()).ok(),
            acquire_time: acquired.or_else(|| Some(wall.clone())),
            renew_time: Some(wall),
            lease_transitions: i32::try_from(transitions).ok(),
            ..LeaseSpec::default()
        }
    }
}
