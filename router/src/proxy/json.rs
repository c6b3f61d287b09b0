//! Small questions to a JSON text, answered without building it.

use std::{borrow::Cow, fmt};

use memchr::memchr2;
use serde::{
    Deserializer as _,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};

/// Whether objects and arrays nest deeper than `limit`. Looks at brackets outside strings only; what is not JSON is
/// found out later.
#[must_use]
pub fn is_deeper_than(text: &[u8], limit: u32) -> bool {
    let mut depth = 0_u32;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => at = after_string(text, at),
            _ => {}
        }
    }
    false
}

/// Index after the closing quote of the string whose content begins at `at`.
fn after_string(text: &[u8], mut at: usize) -> usize {
    while let Some(found) = text.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found + 1;
        if text[at - 1] == b'"' {
            return at;
        }
        at += 1;
    }
    text.len()
}

/// A JSON string, if `text` is one.
#[must_use]
pub fn string(text: &str) -> Option<Cow<'_, str>> {
    struct Text;
    impl<'de> Visitor<'de> for Text {
        type Value = Cow<'de, str>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }
        fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
            Ok(Cow::Borrowed(text))
        }
        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Cow::Owned(text.to_owned()))
        }
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let value = json.deserialize_str(Text).ok()?;
    json.end().ok()?;
    Some(value)
}

/// The raw text at a dotted path of object keys. `None` when a step is missing or not an object; of repeated keys the
/// last one counts, as with the JSON readers of the engines.
#[must_use]
pub fn at_path<'a>(text: &'a str, path: &str) -> Option<&'a str> {
    let mut value = text;
    for step in path.split('.') {
        value = member(value, step)?;
    }
    Some(value)
}

/// The raw text of an object's member.
#[must_use]
pub fn member<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut found = None;
    each_member(text, |name, value| {
        if name == key {
            found = Some(value);
        }
    })
    .ok()?;
    found
}

/// Calls `visit` with key and raw value of every member, in order.
///
/// # Errors
/// The text is not a JSON object.
pub fn each_member<'a>(text: &'a str, visit: impl FnMut(&str, &'a str)) -> Result<(), serde_json::Error> {
    struct Members<F>(F);
    impl<'de, F: FnMut(&str, &'de str)> Visitor<'de> for Members<F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }
        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some(key) = map.next_key::<Key<'de>>()? {
                let value: &serde_json::value::RawValue = map.next_value()?;
                (self.0)(&key.0, value.get());
            }
            Ok(())
        }
    }
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(Members(visit))?;
    json.end()
}

/// Calls `visit` with the raw text of every element until it returns false.
///
/// # Errors
/// The text up to there is not a JSON array.
pub fn each_element<'a>(text: &'a str, visit: impl FnMut(&'a str) -> bool) -> Result<(), serde_json::Error> {
    struct Elements<'v, F>(F, &'v mut bool);
    impl<'de, F: FnMut(&'de str) -> bool> Visitor<'de> for Elements<'_, F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON array")
        }
        fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
            while let Some(value) = seq.next_element::<&serde_json::value::RawValue>()? {
                if !(self.0)(value.get()) {
                    *self.1 = true;
                    return Err(A::Error::custom("stopped"));
                }
            }
            Ok(())
        }
    }
    let mut stopped = false;
    let mut json = serde_json::Deserializer::from_str(text);
    match json.deserialize_seq(Elements(visit, &mut stopped)) {
        Err(_) if stopped => Ok(()),
        Err(error) => Err(error),
        Ok(()) => json.end(),
    }
}

/// An object key, borrowed unless it has escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object key")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_strings() {
        let check = |text: &str, limit, expected| {
            assert_eq!(is_deeper_than(text.as_bytes(), limit), expected, "{text}")
        };
        check(r#"{"a":[1]}"#, 2, false);
        check(r#"{"a":[1]}"#, 1, true);
        check(r#"{"a":"[[[[{{{{\"[[\\"}"#, 1, false);
        check(r#"[[],[],[]]"#, 2, false);
        check(&"[".repeat(1 << 20), 128, true);
        check(r#"{"a":"unclosed [[["#, 1, false);
    }

    #[test]
    fn paths_find_raw_values_and_the_last_of_repeated_keys() {
        let text = r#"{"a":{"b":"x","b":"y"},"c":[1],"\u0064":2}"#;
        assert_eq!(at_path(text, "a.b"), Some(r#""y""#));
        assert_eq!(at_path(text, "c"), Some("[1]"));
        assert_eq!(at_path(text, "d"), Some("2"));
        assert_eq!(at_path(text, "c.b"), None);
        assert_eq!(at_path(text, "nothing"), None);
    }

    #[test]
    fn elements_are_visited_until_told_to_stop() {
        let mut seen = Vec::new();
        each_element(r#"[1,"two",{"three":3},oops"#, |element| {
            seen.push(element);
            seen.len() < 3
        })
        .unwrap();
        assert_eq!(seen, ["1", r#""two""#, r#"{"three":3}"#]);
        assert!(each_element("[1,", |_| true).is_err());
    }

    #[test]
    fn strings_are_unescaped() {
        assert_eq!(string(r#""a\n""#).as_deref(), Some("a\n"));
        assert_eq!(string("1"), None);
    }
}
