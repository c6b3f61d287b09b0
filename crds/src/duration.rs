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

/// A duration in whole milliseconds, for what is read back as a number.
#[must_use]
pub fn millis(duration: time::Duration) -> Duration {
    time::Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)).into()
}

/// What a duration is rounded to wherever people read it: three significant digits below a minute, whole seconds from
/// there on, and nothing finer than a millisecond.
#[must_use]
pub fn rounding(duration: time::Duration) -> time::Duration {
    time::Duration::from_millis(match duration.as_millis() {
        0..1_000 => 1,
        1_000..10_000 => 10,
        10_000..60_000 => 100,
        _ => 1_000,
    })
}

/// The duration that [`human`] writes: the only rounding there is. Rounding again changes nothing.
#[must_use]
pub fn rounded(duration: time::Duration) -> time::Duration {
    let step = rounding(duration).as_millis();
    let nearest = (duration.as_nanos() / 500_000 / step).div_ceil(2) * step;
    time::Duration::from_millis(u64::try_from(nearest).unwrap_or(u64::MAX))
}

/// A duration for people: [`rounded`], in Go's form: `0s`, `12ms`, `3.45s`, `10.1s`, `1m30s`, `1h`.
#[must_use]
pub fn human(duration: time::Duration) -> String {
    let rounded = rounded(duration);
    if rounded.is_zero() || rounded >= time::Duration::from_secs(60) {
        return go_format(rounded);
    }
    // Below a minute the standard library writes what Go does.
    format!("{rounded:?}")
}

/// Writes a status duration as [`human`] does; `kubectl` shows the text as it is.
pub(crate) fn serialize_human<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => serializer.serialize_some(&human((*duration).into())),
        None => serializer.serialize_none(),
    }
}

/// The exact Go-style text of a duration in whole hours, minutes, seconds and milliseconds, for programs: `1h30m`,
/// `90ms`, `0s`. What is below a millisecond is dropped.
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
    fn people_read_three_digits() {
        let check = |nanos: u64, expected: &str| {
            let span = time::Duration::from_nanos(nanos);
            assert_eq!(human(span), expected, "{span:?}");
            let read: time::Duration = Duration::from_str(expected).unwrap().into();
            assert_eq!(read, rounded(span), "what is written is read back");
            assert_eq!(human(read), expected, "rounding again changes nothing");
            assert!(
                read.abs_diff(span) * 2 <= rounding(span),
                "{expected} for {span:?}"
            );
        };
        const MILLI: u64 = 1_000_000;
        for (nanos, expected) in [
            (0, "0s"),
            (1, "0s"),
            (499_999, "0s"),
            (500_000, "1ms"),
            (12 * MILLI, "12ms"),
            (999 * MILLI + 499_999, "999ms"),
            (999 * MILLI + 500_000, "1s"),
            (1_234 * MILLI, "1.23s"),
            (1_235 * MILLI, "1.24s"),
            (9_996 * MILLI, "10s"),
            (10_097 * MILLI, "10.1s"),
            (12_000 * MILLI, "12s"),
            (59_960 * MILLI, "1m"),
            (60_400 * MILLI, "1m"),
            (90_700 * MILLI, "1m31s"),
            (3_600_000 * MILLI, "1h"),
            (90_061_001 * MILLI, "25h1m1s"),
        ] {
            check(nanos, expected);
        }
        assert_eq!(
            rounded(rounded(time::Duration::MAX)),
            rounded(time::Duration::MAX)
        );
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
