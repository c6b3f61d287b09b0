//! The gateway's admin port: what the operator hears of the pools, and what it orders.

mod events;

use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use weir_wire::control::{EVENTS, Order, OrderRequest};

use super::{endpoints::Readiness, pools::Pools, scheduler::OrderError};
use crate::{
    admin::{Access, AdminBody, Call, Routes, json, text},
    metrics::{Metrics, OrderResult},
};
use events::Events;

/// Longest life of a fence, milliseconds.
const MAX_FENCE_MS: u64 = 60_000;
/// Longest life of a drain order, milliseconds.
const MAX_DRAIN_MS: u64 = 3_600_000;

/// The control API over the pools.
pub struct Control {
    /// The pools.
    pub pools: Arc<Pools>,
    /// What `/readyz` answers.
    pub readiness: Arc<Readiness>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// New at every start of the process.
    pub instance: String,
}

impl Routes for Control {
    fn readiness(&self) -> Result<(), &'static str> {
        self.readiness.check()
    }

    fn refresh(&self) {
        for pool in self.pools.list() {
            self.metrics.pool(pool.name()).show(&pool.states().borrow());
        }
    }

    fn access(&self, method: &Method, path: &str) -> Access {
        match *method {
            Method::GET if path == EVENTS => Access::TokenLong,
            Method::POST if ordered_pool(path).is_some() => Access::Token,
            _ => Access::Unknown,
        }
    }

    async fn answer(&self, call: Call) -> Response<AdminBody> {
        match ordered_pool(call.head.uri.path()) {
            Some(pool) => {
                let (result, answer) = self.order(pool, &call.body).await;
                self.metrics.orders.with_label_values(&[result.as_str()]).inc();
                answer
            }
            None => self.events(),
        }
    }
}

impl Control {
    fn events(&self) -> Response<AdminBody> {
        let events = Events::new(Arc::clone(&self.pools), self.instance.clone(), &self.metrics);
        let lines = stream::unfold(events, |mut events| async move {
            let line = events.next().await?;
            Some((Ok(Frame::data(line)), events))
        });
        let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
        let kind = HeaderValue::from_static("application/x-ndjson");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }

    async fn order(&self, pool: &str, body: &Bytes) -> (OrderResult, Response<AdminBody>) {
        let request = match read_order(body) {
            Ok(request) => request,
            Err(problem) => return (OrderResult::Invalid, text(StatusCode::BAD_REQUEST, problem)),
        };
        let Some(pool) = self.pools.by_name(pool) else {
            return unknown();
        };
        tracing::debug!(pool = %pool.name(), epoch = request.epoch, order = ?request.order, "order");
        match pool.order(request.epoch, request.order).await {
            Ok(answer) => {
                let result = if answer.done {
                    OrderResult::Done
                } else {
                    OrderResult::NotDone
                };
                (result, json(StatusCode::OK, &answer))
            }
            Err(error @ OrderError::Stale { .. }) => (
                OrderResult::Stale,
                text(StatusCode::CONFLICT, format!("{error}\n")),
            ),
            Err(OrderError::Gone) => unknown(),
        }
    }
}

/// The pool of `/control/v1/pools/{pool}/orders`.
fn ordered_pool(path: &str) -> Option<&str> {
    let pool = path.strip_prefix("/control/v1/pools/")?.strip_suffix("/orders")?;
    (!pool.is_empty() && !pool.contains('/')).then_some(pool)
}

fn unknown() -> (OrderResult, Response<AdminBody>) {
    (
        OrderResult::UnknownPool,
        text(StatusCode::NOT_FOUND, "no such pool\n"),
    )
}

/// An order within its bounds, or what is wrong with it.
fn read_order(body: &[u8]) -> Result<OrderRequest, String> {
    let request: OrderRequest =
        serde_json::from_slice(body).map_err(|error| format!("not an order: {error}\n"))?;
    let (lease_ms, most) = match &request.order {
        Order::Fence { lease_ms } => (*lease_ms, MAX_FENCE_MS),
        Order::Drain { lease_ms, .. } => (*lease_ms, MAX_DRAIN_MS),
        Order::Unfence | Order::Undrain { .. } => (1, 1),
    };
    if !(1..=most).contains(&lease_ms) {
        return Err(format!("leaseMs: must be 1 to {most}\n"));
    }
    Ok(request)
}

#[cfg(test)]
mod tests;
