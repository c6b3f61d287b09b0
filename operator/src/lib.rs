//! Weir's operator: reconciles LLMPools and WorkflowPolicies, and is the only writer of replicas. Read `run.rs` for
//! how the parts are joined, `llm_pool.rs` for one reconcile, `scaling.rs` for one pool's life between zero and many.

pub mod admin;
pub mod args;
pub mod calls;
pub mod control;
pub mod drift;
pub mod key;
pub mod lease;
pub mod metrics;
pub mod queue;
pub mod telemetry;
