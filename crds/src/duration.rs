//! Durations: Go-style strings such as `90s`, `1m30s`, `500ms`, and the form `auto` where Weir can find its own.

use std::{borrow::Cow, fmt, str::FromStr, time};

use kube::core::Duration;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::schema;

/// Either a duration or `auto`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DurationOrAuto {
    /// Weir finds a value.
    #[default]
    Auto,
    /// This one.
    Fixed(Duration),
}

impl DurationOrAuto {
    /// The fixed value; `None` for `auto`.
    #[must_use]
    pub fn fixed(self) -> Option<Duration> {
        match self {
            Self::Auto => None,
            Self::Fixed(duration) => Some(duration),
        }
    }
}

impl fmt::Display for DurationOrAuto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(duration) => duration.fmt(f),
        }
    }
}

impl Serialize for DurationOrAuto {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DurationOrAuto {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        if text == "auto" {
            return Ok(Self::Auto);
        }
        Duration::from_str(&text)
            .map(Self::Fixed)
            .map_err(de::Error::custom)
    }
}

impl JsonSchema for DurationOrAuto {
    fn schema_name() -> Cow<'static, str> {
        "DurationOrAuto".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schema::duration_or_auto()
    }
}

/// A duration for a status: rounded to milliseconds, so that its text is short.
#[must_use]
pub fn millis(duration: time::Duration) -> Duration {
    time::Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)).into()
}

/// The shortest Go-style text of a duration in whole hours, minutes, seconds and milliseconds: `1h30m`, `90ms`,
/// `0s`. What is below a millisecond is dropped.
#[must_use]
pub fn go_format(duration: time::Duration) -> String {
    let total = duration.as_secs();
    let parts = [
        (u128::from(total / 3600), "h"),
        (u128::from(total % 3600 / 60), "m"),
        (u128::from(total % 60), "s"),
        (u128::from(duration.subsec_millis()), "ms"),
    ];
    let text: String = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatted_durations_read_back() {
        for (millis, expected) in [
            (0, "0s"),
            (90, "90ms"),
            (1_500, "1s500ms"),
            (60_000, "1m"),
            (90_000, "1m30s"),
            (86_400_000, "24h"),
        ] {
            let span = time::Duration::from_millis(millis);
            assert_eq!(go_format(span), expected);
            assert_eq!(Duration::from_str(expected).unwrap(), span);
        }
    }

    #[test]
    fn auto_and_durations_read_back() {
        for text in ["auto", "5s"] {
            let value: DurationOrAuto = serde_json::from_value(text.into()).unwrap();
            assert_eq!(serde_json::to_value(value).unwrap(), text);
        }
        assert!(serde_json::from_value::<DurationOrAuto>("Auto".into()).is_err());
    }
}
