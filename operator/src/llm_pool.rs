//! One reconcile of one LLMPool, on one screen. Replicas are not written here: `scaling.rs` does.

pub mod apply;
pub mod build;
pub mod observe;
pub mod status;
#[cfg(test)]
mod tests;
pub mod validate;

use jiff::Timestamp;
use kube::Resource;
use weir_crds::LLMPool;

use crate::{events::What, key::Key, operator::Operator, owned::EnsureError, queue::Outcome};

/// Brings what one pool owns, and its status, to where they should be.
pub async fn reconcile(operator: Operator, key: Key) -> Outcome {
    // (client) everything the pool refers to; it may be gone, or be no pool at all
    let observed = match observe::observe(&operator, &key) {
        observe::Found::Pool(observed) => {
            operator.forget_report(&LLMPool::kind(&()), &key);
            observed
        }
        observe::Found::Unreadable(invalid) => {
            return observe::report_unreadable(&operator, &key, &invalid).await;
        }
        observe::Found::Gone => {
            operator.forget_report(&LLMPool::kind(&()), &key);
            return Outcome::Done;
        }
    };

    // (pure) what the builders read; a refused pool is built too, without engines
    let valid = validate::validate(&observed.pool, &observed.siblings);

    // (pure) every object the pool should own
    let applied = match valid
        .as_ref()
        .map(|valid| build::build(valid, &operator.router_image))
    {
        Ok(desired) => {
            // (client) the only writer of those objects
            Some(Box::pin(apply::apply(&operator.calls, &key, &observed, desired)).await)
        }
        Err(_) => None,
    };

    if let Some(Err(error)) = &applied
        && error.is_namespace_ending()
    {
        tracing::debug!(pool = %key, "the namespace is being deleted; the pool goes with it");
        return Outcome::Done;
    }
    if let Some(Err(error)) = &applied
        && error.is_passing()
    {
        tracing::debug!(pool = %key, %error, "an object changed meanwhile");
        return Outcome::Failed;
    }

    // (pure) what the status should say of all that, then (client) written if anything but time differs
    let failed = matches!(&applied, Some(Err(_)));
    let verdict = match (&valid, applied) {
        (Err(invalid), _) => status::Verdict::Invalid(invalid.clone()),
        (Ok(valid), Some(Ok(applied))) => status::Verdict::Applied(Box::new((valid.clone(), applied))),
        (Ok(_), Some(Err(error))) => status::Verdict::Failed(error_text(&error), is_foreign(&error)),
        (Ok(_), None) => status::Verdict::Failed("nothing was built".to_owned(), false),
    };
    let now = Timestamp::now();
    let wanted = status::derive(&observed, &verdict, now);
    match apply::write_status(&operator.calls, &key, &observed.pool, wanted).await {
        Ok(()) if !failed => announce(&operator, &observed, &verdict).await,
        Ok(()) => {
            announce(&operator, &observed, &verdict).await;
            return error_policy(&key, "apply");
        }
        Err(error) => {
            tracing::warn!(pool = %key, %error, "the status could not be written");
            return error_policy(&key, "status");
        }
    }
    operator
        .metrics
        .reconciles
        .with_label_values(&["LLMPool", "ok"])
        .inc();
    Outcome::Done
}

/// What failed is tried again, later each time.
fn error_policy(key: &Key, step: &'static str) -> Outcome {
    tracing::info!(pool = %key, step, "a reconcile failed; it is tried again");
    Outcome::Failed
}

fn error_text(error: &EnsureError) -> String {
    match error {
        EnsureError::Call(call) => call.to_string(),
        other => other.to_string(),
    }
}

fn is_foreign(error: &EnsureError) -> bool {
    matches!(error, EnsureError::Foreign { .. })
}

/// Events of states that begin now: those that the status did not show before.
async fn announce(operator: &Operator, observed: &observe::Observed, verdict: &status::Verdict) {
    let about = observed.pool.object_ref(&());
    for (what, note) in status::news(observed, verdict) {
        operator.events.publish(&about, what, &note).await;
    }
    if let status::Verdict::Failed(text, _) = verdict {
        operator
            .metrics
            .reconciles
            .with_label_values(&["LLMPool", "failed"])
            .inc();
        operator.events.publish(&about, What::ApplyFailed, text).await;
    }
}
