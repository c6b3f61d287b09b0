//! The sidecar's part of the admin port: its state, its homes, the preStop hook, the engine's liveness.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{Method, Response, StatusCode};
use weir_wire::sidecar::{DRAIN, ENGINE_LIVEZ, HOMES, STATE};

use super::{cap::Cap, drain::Activity, engine::EngineWatch, homes::HomeMemory, now, state::StateHub};
use crate::{
    admin::{Access, AdminBody, Call, Routes, json, text},
    metrics::Metrics,
};

/// What the admin port shows.
pub(super) struct SidecarRoutes {
    pub(super) hub: Arc<StateHub>,
    pub(super) homes: Arc<HomeMemory>,
    pub(super) activity: Arc<Activity>,
    pub(super) cap: Arc<Cap>,
    pub(super) engine: Arc<EngineWatch>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) drain_timeout: Duration,
}

impl Routes for SidecarRoutes {
    fn readiness(&self) -> Result<(), &'static str> {
        if self.hub.is_ready() {
            Ok(())
        } else {
            Err("the engine is not ready\n")
        }
    }

    fn refresh(&self) {
        let metrics = &self.metrics.sidecar;
        metrics.in_flight.set(i64::from(self.activity.in_flight()));
        metrics.waiting.set(i64::from(self.cap.waiting()));
        metrics.concurrency.set(i64::from(self.cap.concurrency()));
        metrics.homes.set(self.homes.len() as i64);
    }

    fn access(&self, method: &Method, path: &str) -> Access {
        match (method, path) {
            (&Method::GET, STATE) => Access::TokenLong,
            (&Method::GET, HOMES) => Access::Token,
            // The kubelet asks these; they tell nothing and change nothing.
            (&Method::GET, DRAIN | ENGINE_LIVEZ) => Access::Open,
            _ => Access::Unknown,
        }
    }

    async fn answer(&self, call: Call) -> Response<AdminBody> {
        match call.head.uri.path() {
            STATE => self.state(&call).await,
            HOMES => self.homes(),
            DRAIN => self.drain().await,
            _ if self.engine.alive.load(Ordering::Relaxed) => text(StatusCode::OK, "ok\n"),
            _ => text(StatusCode::SERVICE_UNAVAILABLE, "the engine does not answer\n"),
        }
    }
}

impl SidecarRoutes {
    async fn state(&self, call: &Call) -> Response<AdminBody> {
        let number = |name| call.query(name).map_or(Ok(0), str::parse::<u64>);
        let (Ok(after), Ok(wait_ms)) = (number("after"), number("waitMs")) else {
            return text(
                StatusCode::BAD_REQUEST,
                "after and waitMs must be whole numbers\n",
            );
        };
        json(
            StatusCode::OK,
            &self.hub.newer(after, Duration::from_millis(wait_ms)).await,
        )
    }

    fn homes(&self) -> Response<AdminBody> {
        json(StatusCode::OK, &self.homes.list(now()))
    }

    /// The kubelet goes on to stop the engine when this is answered, whatever the answer.
    async fn drain(&self) -> Response<AdminBody> {
        tracing::info!(in_flight = self.activity.in_flight(), "draining");
        if self.activity.quiet(self.drain_timeout).await {
            tracing::info!("drained");
            text(StatusCode::OK, "drained\n")
        } else {
            tracing::warn!(in_flight = self.activity.in_flight(), "drain timeout passed");
            text(StatusCode::OK, "not drained in time\n")
        }
    }
}
