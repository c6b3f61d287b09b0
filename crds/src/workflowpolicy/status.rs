//! What the operator knows about a policy. Fields that are not known are absent, never 0.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{duration::serialize_human, schema};

/// State of a policy, written by the operator alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = schema::tidy)]
pub struct WorkflowPolicyStatus {
    /// Accepted, Programmed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Names of the pools that the policy holds for, at most 256.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 256),
        inner(length(max = 253)),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub matched_pools: Vec<String>,
    /// Workflows that have a home under this policy. Absent: not known now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_workflows: Option<u32>,
    /// Requests that met their objectives. Absent: none has had objectives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goodput: Option<PolicyGoodput>,
}

/// Requests under this policy that met their objectives, among those that had any.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyGoodput {
    /// The time that the numbers are about, up to the last answer: they stand still while nothing is answered.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_human")]
    #[schemars(schema_with = "schema::status_duration")]
    pub window: Option<Duration>,
    /// Share that met all of their objectives. Absent: none had any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u8>,
    /// Requests in the window that had objectives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
}
