//! The user's contract: the kinds [`LLMPool`] and [`WorkflowPolicy`], their conditions, and the names of everything
//! that the operator makes for them. Read `llmpool.rs` and `workflowpolicy.rs` first; `crds/yaml/` and
//! `docs/crds.md` are generated from them by `crdgen`.

pub mod condition;
mod decimal;
mod duration;
pub mod llmpool;
pub mod names;
pub mod reserved;
mod schema;
mod size;
pub mod workflowpolicy;

pub use decimal::Decimal;
pub use duration::{DurationOrAuto, go_format, human, millis, rounded, rounding};
pub use kube::core::Duration;
pub use llmpool::{LLMPool, LLMPoolSpec, LLMPoolStatus};
pub use size::ByteSize;
pub use workflowpolicy::{WorkflowPolicy, WorkflowPolicySpec, WorkflowPolicyStatus};
