//! A span of time as configuration files write it.

use std::{fmt, str::FromStr, time};

use serde::{Deserialize, Serialize};

/// Most bytes of the text form.
const MAX_TEXT: usize = 64;
/// Most digits before and after a point: the sum of all terms then stays far inside a 64-bit count of seconds.
const MAX_DIGITS: usize = 9;

/// A span of time, never negative, written in Go's style: `90s`, `1h30m`, `1.5s`.
///
/// Kubernetes' own type ([`kube::core::Duration`]) prints it; reading is stricter here, because that type panics on
/// absurd magnitudes and takes negative ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration(time::Duration);

/// A text that is no duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a duration: write a number and a unit (ns, us, ms, s, m, h), such as 90s or 1h30m")]
pub struct ParseDurationError;

impl FromStr for Duration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "0" {
            return Ok(Self::default());
        }
        if text.is_empty() || text.len() > MAX_TEXT || !text.is_ascii() {
            return Err(ParseDurationError);
        }
        let mut rest = text;
        while !rest.is_empty() {
            rest = skip_term(rest).ok_or(ParseDurationError)?;
        }
        let parsed: kube::core::Duration = text.parse().map_err(|_| ParseDurationError)?;
        Ok(parsed.into())
    }
}

/// What follows the first `number unit`.
fn skip_term(text: &str) -> Option<&str> {
    let whole = text.bytes().take_while(u8::is_ascii_digit).count();
    if whole == 0 || whole > MAX_DIGITS {
        return None;
    }
    let mut rest = &text[whole..];
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > MAX_DIGITS {
            return None;
        }
        rest = &fraction[digits..];
    }
    ["ns", "us", "ms", "s", "m", "h"]
        .iter()
        .find_map(|unit| rest.strip_prefix(unit))
}

impl TryFrom<String> for Duration {
    type Error = ParseDurationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Duration> for String {
    fn from(span: Duration) -> Self {
        span.to_string()
    }
}

impl From<time::Duration> for Duration {
    fn from(span: time::Duration) -> Self {
        Self(span)
    }
}

impl From<Duration> for time::Duration {
    fn from(span: Duration) -> Self {
        span.0
    }
}

/// A negative span, which the kinds' schemas do not let in, becomes zero.
impl From<kube::core::Duration> for Duration {
    fn from(span: kube::core::Duration) -> Self {
        if span.is_negative() {
            Self::default()
        } else {
            Self(span.into())
        }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", kube::core::Duration::from(self.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: Result<u64, ParseDurationError>) {
        let millis = text
            .parse::<Duration>()
            .map(|span| time::Duration::from(span).as_millis() as u64);
        assert_eq!(millis, expected, "{text}");
    }

    #[test]
    fn go_style_texts_are_read_and_others_refused() {
        check("90s", Ok(90_000));
        check("1h30m", Ok(5_400_000));
        check("1.5s", Ok(1_500));
        check("250ms", Ok(250));
        check("0", Ok(0));
        check("0s", Ok(0));
        for bad in [
            "",
            "s",
            "5",
            "-5s",
            "+5s",
            "5 s",
            "1s-2s",
            "1e300h",
            "9999999999h",
            ".5s",
            "5.s",
            "5d",
            "5µs",
            "inf",
            "NaNs",
        ] {
            check(bad, Err(ParseDurationError));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-+0-9.eEa-z µ]{0,80}") {
            let _ = text.parse::<Duration>();
        }

        #[test]
        fn what_is_printed_reads_back(millis in 0_u64..1_000_000_000) {
            let span = Duration::from(time::Duration::from_millis(millis));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }
    }
}
