//! Decimal numbers as strings: money and weights, which must read back as written.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A non-negative decimal number as a string, such as `"2.50"`: up to 9 digits before and 6 after the point.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Decimal(String);

/// Not a decimal number of the allowed form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a decimal number such as 2.50 (up to 9 digits before the point, 6 after it)")]
pub struct ParseDecimalError(String);

impl Decimal {
    /// The number; 0 for text that is no number, which the schema does not let in.
    #[must_use]
    pub fn value(&self) -> f64 {
        self.0.parse().unwrap_or(0.0)
    }

    /// The text as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `value` with `places` (at most 6) digits after the point; negative, infinite and undefined values become 0,
    /// too large ones the largest.
    #[must_use]
    pub fn rounded(value: f64, places: usize) -> Self {
        let bounded = if value.is_nan() {
            0.0
        } else {
            value.clamp(0.0, 999_999_999.0)
        };
        Self(format!("{bounded:.*}", places.min(6)))
    }
}

impl FromStr for Decimal {
    type Err = ParseDecimalError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits =
            |part: &str, most| (1..=most).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        if digits(whole, 9) && digits(fraction, 6) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseDecimalError(text.to_owned()))
        }
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for Decimal {
    fn schema_name() -> Cow<'static, str> {
        "Decimal".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 16, "pattern": r"^[0-9]{1,9}(\.[0-9]{1,6})?$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_schema_lets_in() {
        for (text, expected) in [
            ("2.50", Some(2.5)),
            ("0", Some(0.0)),
            ("999999999.999999", Some(999_999_999.999_999)),
            ("", None),
            (".5", None),
            ("1.", None),
            ("-1", None),
            ("1e3", None),
            ("1234567890", None),
            ("0.1234567", None),
        ] {
            assert_eq!(
                text.parse::<Decimal>().ok().map(|d| d.value()),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn rounding_always_gives_a_readable_decimal() {
        for value in [0.0, 1.0 / 3.0, -4.0, f64::NAN, f64::INFINITY, 1e12, 0.000_000_1] {
            let decimal = Decimal::rounded(value, 4);
            assert!(
                decimal.as_str().parse::<Decimal>().is_ok(),
                "{value} -> {decimal}"
            );
        }
        assert_eq!(Decimal::rounded(2.5, 2).as_str(), "2.50");
    }
}
