//! What tests of the scheduler and of what is built on it begin with.

use std::time::Duration;

use weir_schedule::{Affinity, Class, Request, RequestId};

/// A request without a workflow.
pub(in crate::gateway) fn request() -> Request {
    Request {
        id: RequestId(0),
        workflow: None,
        class: Class::Standard,
        weight: 1,
        max_wait: None,
        affinity: Affinity::None,
        idle_ttl: Duration::from_secs(60),
        max_age: Duration::from_secs(60),
        tool_pause: Duration::ZERO,
        tool_pause_blocks_zero: false,
        prompt_tokens: Some(10),
        bytes: 40,
        not_on: None,
    }
}
