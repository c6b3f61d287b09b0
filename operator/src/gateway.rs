//! One reconcile of one gateway: the objects that pools of one namespace with the same `spec.gateway` share. They are
//! owned by all of those pools, so the last one takes them along; a gateway that no pool names any more is removed.

pub mod apply;
pub mod build;
pub mod config;
pub mod observe;

use crate::{key::Key, operator::Operator, queue::Outcome};

/// Brings what one gateway consists of to where it should be.
pub async fn reconcile(operator: Operator, key: Key) -> Outcome {
    // (client) its pools, policies and objects; the token's Secret is read by name
    let observed = match observe::observe(&operator, &key).await {
        Ok(observed) => observed,
        Err(error) => {
            tracing::warn!(gateway = %key, %error, "a gateway's token could not be read");
            return Outcome::Failed;
        }
    };
    if observed.pools.is_empty() && observed.unreadable {
        tracing::warn!(gateway = %key, "no readable pool names the gateway; it stays, for an unreadable one may");
        return Outcome::Done;
    }
    if observed.pools.is_empty() {
        operator.tokens.forget(&key);
        return match apply::remove_all(&operator.calls, &observed).await {
            Ok(()) => Outcome::Done,
            Err(error) => {
                tracing::warn!(gateway = %key, %error, "a gateway without pools could not be removed");
                Outcome::Failed
            }
        };
    }

    // (pure) the configuration, then every object
    let config = match config::render(
        &key.name,
        &observed.pools,
        &observed.policies,
        &operator.workflows,
    ) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(gateway = %key, %error, "a gateway's configuration cannot be rendered");
            return Outcome::Failed;
        }
    };
    let token = observed.token.clone().unwrap_or_else(observe::new_token);
    let desired = match build::build(&key, &observed.pools, &config, &token, &operator.router_image) {
        Ok(desired) => desired,
        Err(error) => {
            tracing::error!(gateway = %key, %error, "a gateway's configuration has no YAML form");
            return Outcome::Failed;
        }
    };

    // (client) the only writer of those objects
    let result = Box::pin(apply::apply(&operator.calls, &observed, desired)).await;
    let outcome = match &result {
        Ok(()) => "ok",
        Err(error) if error.is_namespace_ending() => "namespace_ending",
        Err(_) => "failed",
    };
    operator
        .metrics
        .reconciles
        .with_label_values(&["Gateway", outcome])
        .inc();
    match result {
        Ok(()) => {
            // Only now: a stream must not try a token that no Secret holds.
            operator.tokens.set(&key, &token);
            Outcome::Done
        }
        Err(error) if error.is_namespace_ending() => {
            tracing::debug!(gateway = %key, "the namespace is being deleted; the gateway goes with it");
            Outcome::Done
        }
        Err(error) => {
            if !error.is_passing() {
                tracing::warn!(gateway = %key, %error, "a gateway could not be written");
                apply::tell_pools(&operator, &observed, &error).await;
            }
            Outcome::Failed
        }
    }
}
