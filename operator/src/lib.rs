//! Weir's operator: reconciles LLMPools and WorkflowPolicies, and is the only writer of replicas. Read `run.rs` for
//! how the parts are joined, `llm_pool.rs` for one reconcile, `scaling.rs` for one pool's life between zero and many.

pub mod admin;
pub mod args;
pub mod caches;
pub mod calls;
pub mod check;
pub mod control;
pub mod drift;
pub mod events;
pub mod gateway;
pub mod key;
pub mod kinds;
pub mod labels;
pub mod lease;
pub mod llm_pool;
pub mod metrics;
pub mod operator;
pub mod owned;
pub mod probes;
pub mod queue;
pub mod references;
pub mod restricted;
pub mod rights;
pub mod run;
pub mod scaling;
pub mod telemetry;
pub mod version;
pub mod workflow_policy;
