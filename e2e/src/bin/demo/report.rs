//! What the demo found, for people and as `report.json`.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::{play::Summary, request::Answer};

mod summary;

/// `target/demo/report.json`. Field names are a contract: other programs read them.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    requests: Requests,
    workflows: Workflows,
    tokens: Tokens,
    wake: Wake,
    idle: Idle,
    replica_hours: ReplicaHours,
    scale: Scale,
    /// Time to the first token of the sessions' requests, quantiles.
    ttft_ms: Value,
    /// What was played.
    trace: Value,
    cluster: ClusterInfo,
    times: Times,
    kubectl: Vec<Kubectl>,
}

/// All requests of the demo. `lost`: no answer at all.
#[derive(Debug, Serialize)]
pub(crate) struct Requests {
    sent: u64,
    ok: u64,
    failed: u64,
    lost: u64,
    held: u64,
    errors: Value,
}

#[derive(Debug, Serialize)]
pub(crate) struct Workflows {
    count: u64,
    turns: u64,
    /// Of the returning turns (kept, moved and lost), those served at home.
    home_kept_percent: Option<f64>,
    home_kept: u64,
    home_moved: u64,
    /// Returning turns whose home was gone, with its pod or by being forgotten; they were given a new one.
    home_lost: u64,
}

/// As the engines report them.
#[derive(Debug, Serialize)]
pub(crate) struct Tokens {
    prompt: u64,
    cached: u64,
    uncached: u64,
}

/// Lists have one entry per wake (or endpoint).
#[derive(Debug, Default, Serialize)]
pub(crate) struct Wake {
    /// From sending the held request to seeing the operator's replicas in a watch.
    pub(crate) held_to_patch_ms: Vec<f64>,
    /// From there to the pod's Ready condition.
    pub(crate) patch_to_ready_s: Vec<f64>,
    /// From the gateway's knowing the endpoint to its first dispatch there, by the gateway's clock.
    pub(crate) ready_to_dispatch_ms: Vec<u64>,
    /// First byte of the held request's answer; negative: before the kubelet called the pod Ready.
    pub(crate) first_byte_after_pod_ready_ms: Vec<f64>,
    /// `status.coldStart.phases` of the pool.
    pub(crate) phases: Value,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Idle {
    pub(crate) break_even_s: Option<f64>,
    pub(crate) threshold_s: Option<f64>,
    /// From the end of the last request to the order of zero replicas.
    pub(crate) zero_after_s: f64,
    /// The operator's sentence.
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct ReplicaHours {
    /// Sum of the engine pods' lives.
    used: f64,
    /// `maxReplicas` engines from the pool's creation to the end.
    always_on: f64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Scale {
    most_ready_endpoints: usize,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct ClusterInfo {
    version: String,
    kind: &'static str,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Times {
    /// Cluster, images and installation.
    set_up_s: f64,
    /// The pool's life.
    life_s: f64,
    /// The sessions.
    sessions_s: f64,
}

/// What `kubectl get llmpools` showed.
#[derive(Debug, Serialize)]
pub(crate) struct Kubectl {
    pub(crate) stage: &'static str,
    pub(crate) text: String,
}

impl Report {
    /// The first request and the sessions together.
    pub(crate) fn new(first: &Answer, sessions: &Summary) -> Self {
        let (prompt, cached) = (
            sessions.tokens.prompt + first.prompt_tokens,
            sessions.tokens.cached + first.cached_tokens,
        );
        let homes = |name: &str| sessions.workflows.homes.get(name).copied().unwrap_or(0);
        Self {
            requests: Requests {
                sent: sessions.requests.sent + 1,
                ok: sessions.requests.ok + 1,
                failed: sessions.requests.failed,
                lost: sessions.requests.lost,
                held: sessions.requests.held + 1,
                errors: sessions.errors.clone(),
            },
            workflows: Workflows {
                count: sessions.workflows.count + 1,
                turns: sessions.workflows.turns + 1,
                home_kept_percent: sessions.workflows.home_kept_percent,
                home_kept: homes("kept"),
                home_moved: homes("moved"),
                home_lost: sessions.workflows.home_lost,
            },
            tokens: Tokens {
                prompt,
                cached,
                uncached: prompt.saturating_sub(cached),
            },
            wake: Wake::default(),
            idle: Idle::default(),
            replica_hours: ReplicaHours::default(),
            scale: Scale::default(),
            ttft_ms: sessions.ttft_ms.clone(),
            trace: sessions.trace.clone(),
            cluster: ClusterInfo::default(),
            times: Times {
                sessions_s: sessions.duration_s,
                ..Times::default()
            },
            kubectl: Vec::new(),
        }
    }

    pub(crate) fn with_wake(self, wake: Wake) -> Self {
        Self { wake, ..self }
    }

    pub(crate) fn with_idle(self, idle: Idle) -> Self {
        Self { idle, ..self }
    }

    pub(crate) fn with_replica_hours(self, used: Duration, always_on: Duration) -> Self {
        let hours = |time: Duration| time.as_secs_f64() / 3600.0;
        let replica_hours = ReplicaHours {
            used: hours(used),
            always_on: hours(always_on),
        };
        Self {
            replica_hours,
            ..self
        }
    }

    pub(crate) fn with_cluster(self, version: String, kind: &'static str) -> Self {
        Self {
            cluster: ClusterInfo { version, kind },
            ..self
        }
    }

    pub(crate) fn with_course(
        mut self,
        kubectl: Vec<Kubectl>,
        set_up: Duration,
        life: Duration,
        most: usize,
    ) -> Self {
        self.times.set_up_s = set_up.as_secs_f64();
        self.times.life_s = life.as_secs_f64();
        self.scale.most_ready_endpoints = most;
        Self { kubectl, ..self }
    }

    /// Nothing may be lost or fail.
    ///
    /// # Errors
    /// Something was.
    pub(crate) fn check(&self) -> Result<()> {
        let Requests {
            sent,
            ok,
            failed,
            lost,
            ..
        } = self.requests;
        if failed > 0 || lost > 0 || ok != sent {
            bail!("of {sent} requests {ok} were answered, {failed} failed and {lost} were lost");
        }
        Ok(())
    }
}
