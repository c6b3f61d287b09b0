//! Sizes in bytes as strings, the subset of Kubernetes quantities that means bytes.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A positive size in bytes, such as `1Gi` or `500M`: up to 12 digits and an optional unit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(String);

/// Not a size of the allowed form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size such as 1Gi or 500M")]
pub struct ParseByteSizeError(String);

const UNITS: [(&str, u64); 9] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("", 1),
];

fn parse(text: &str) -> Option<u64> {
    let (digits, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit).map(|digits| (digits, *factor)))?;
    let plain = digits.len() <= 12 && !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    let count: u64 = plain.then(|| digits.parse().ok()).flatten()?;
    Some(count.saturating_mul(factor))
}

impl ByteSize {
    /// The size; 0 for text that is no size, which the schema does not let in.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        parse(&self.0).unwrap_or(0)
    }

    /// The text as written, a valid Kubernetes quantity.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn gibibyte() -> Self {
        Self("1Gi".to_owned())
    }
}

impl FromStr for ByteSize {
    type Err = ParseByteSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match parse(text) {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(ParseByteSizeError(text.to_owned())),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 14, "pattern": "^[1-9][0-9]{0,11}(Ki|Mi|Gi|Ti|k|M|G|T)?$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_schema_lets_in() {
        for (text, expected) in [
            ("1Gi", Some(1 << 30)),
            ("500M", Some(500_000_000)),
            ("7", Some(7)),
            ("999999999999Ti", Some(u64::MAX)),
            ("", None),
            ("0", None),
            ("01", None),
            ("-1Gi", None),
            ("1.5Gi", None),
            ("Gi", None),
            ("1 Gi", None),
            ("1Pi", None),
        ] {
            assert_eq!(
                text.parse::<ByteSize>().ok().map(|s| s.bytes()),
                expected,
                "{text}"
            );
        }
    }
}
