//! The name of a workflow between gateway and sidecar: a hash, so that no client-chosen text crosses the pool.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// First 16 bytes of `SHA-256(len(tenant) ‖ tenant ‖ len(pool) ‖ pool ‖ id)`, written as 32 lower-case hex digits.
/// Lengths are 8-byte big-endian, so that no two different triples share their input.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkflowKey([u8; 16]);

impl WorkflowKey {
    /// The key of workflow `id` (as the client sent it) of `tenant` in `pool`.
    #[must_use]
    pub fn derive(tenant: &str, pool: &str, id: &str) -> Self {
        let mut hash = Sha256::new();
        for part in [tenant, pool] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        hash.update(id.as_bytes());
        let digest = hash.finalize();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        Self(key)
    }

    /// A key from its bytes, for tests and simulations that need many distinct ones.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The key's bytes, for hashing it against an endpoint's name.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// A text that is not 32 hex digits.
#[derive(Debug, PartialEq, Eq)]
pub struct ParseWorkflowKeyError;

impl fmt::Display for ParseWorkflowKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a workflow key is 32 hex digits")
    }
}

impl std::error::Error for ParseWorkflowKeyError {}

impl FromStr for WorkflowKey {
    type Err = ParseWorkflowKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.as_bytes();
        if digits.len() != 32 {
            return Err(ParseWorkflowKeyError);
        }
        let mut key = [0; 16];
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16).ok_or(ParseWorkflowKeyError)?;
            let low = char::from(pair[1]).to_digit(16).ok_or(ParseWorkflowKeyError)?;
            *byte = (high * 16 + low) as u8;
        }
        Ok(Self(key))
    }
}

impl TryFrom<String> for WorkflowKey {
    type Error = ParseWorkflowKeyError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<WorkflowKey> for String {
    fn from(key: WorkflowKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for WorkflowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let text: String = digits
            .map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0'))
            .collect();
        f.write_str(&text)
    }
}

impl fmt::Debug for WorkflowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkflowKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_separate_tenant_pool_and_id() {
        let base = WorkflowKey::derive("a", "b", "c");
        assert_eq!(base, WorkflowKey::derive("a", "b", "c"));
        for other in [("ab", "", "c"), ("a", "bc", ""), ("", "ab", "c"), ("a", "b", "C")] {
            assert_ne!(base, WorkflowKey::derive(other.0, other.1, other.2), "{other:?}");
        }
    }

    #[test]
    fn text_form_round_trips_and_rejects_anything_else() {
        let key = WorkflowKey::derive("t", "p", "w");
        assert_eq!(key.to_string().parse(), Ok(key));
        for bad in [
            "",
            "0",
            "zz",
            &"g".repeat(32),
            &"0".repeat(33),
            "é234567890123456789012345678901",
        ] {
            assert_eq!(bad.parse::<WorkflowKey>(), Err(ParseWorkflowKeyError), "{bad}");
        }
    }
}
