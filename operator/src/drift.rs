//! Whether an observed object still says everything that the desired one says. Pure.
//!
//! The API server adds defaults and other writers add fields of their own; both are left alone. A write is needed
//! when our own wish changed (the hash annotation differs) or when a field we own was changed under us.

use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// Annotation that carries the hash of the desired object it was written from.
pub const HASH_ANNOTATION: &str = "weir.dev/applied-hash";

/// Keys by which server-side apply tells the elements of a list apart, most specific first.
const MERGE_KEYS: [&str; 4] = ["uid", "mountPath", "name", "containerPort"];

/// Adds the hash annotation to a desired object.
///
/// # Errors
/// When the object has no JSON form.
pub fn stamp(object: &impl Serialize) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(object)?;
    let digest = Sha256::digest(value.to_string().as_bytes());
    let hash: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut)
        && let Some(annotations) = metadata
            .entry("annotations")
            .or_insert_with(|| Value::Object(Map::new()))
            .as_object_mut()
    {
        annotations.insert(HASH_ANNOTATION.to_owned(), Value::String(hash));
    }
    Ok(value)
}

/// Whether `observed` says everything that `desired` says.
#[must_use]
pub fn holds(desired: &Value, observed: &Value) -> bool {
    first_difference(desired, observed).is_none()
}

/// Path of the first field of `desired` that `observed` does not have, for the log.
#[must_use]
pub fn first_difference(desired: &Value, observed: &Value) -> Option<String> {
    match (desired, observed) {
        (Value::Object(desired), Value::Object(observed)) => desired.iter().find_map(|(key, wish)| {
            let found = match observed.get(key) {
                Some(found) => first_difference(wish, found),
                None if is_empty(wish) => None,
                None => Some(String::new()),
            };
            found.map(|rest| format!(".{key}{rest}"))
        }),
        (Value::Array(desired), Value::Array(observed)) => list_difference(desired, observed),
        (Value::String(desired), Value::String(observed)) => {
            (desired != observed && !same_quantity(desired, observed)).then(String::new)
        }
        (wish, found) if wish == found => None,
        (wish, Value::Null) if is_empty(wish) => None,
        _ => Some(String::new()),
    }
}

fn list_difference(desired: &[Value], observed: &[Value]) -> Option<String> {
    if let Some(key) = merge_key(desired) {
        return desired.iter().find_map(|wish| {
            let found = observed.iter().find(|found| found.get(key) == wish.get(key));
            let name = wish.get(key).map(ToString::to_string).unwrap_or_default();
            match found {
                Some(found) => first_difference(wish, found),
                None => Some(String::new()),
            }
            .map(|rest| format!("[{name}]{rest}"))
        });
    }
    if desired.len() != observed.len() {
        return Some(String::new());
    }
    desired
        .iter()
        .zip(observed)
        .enumerate()
        .find_map(|(index, (wish, found))| Some(format!("[{index}]{}", first_difference(wish, found)?)))
}

fn merge_key(list: &[Value]) -> Option<&'static str> {
    MERGE_KEYS
        .into_iter()
        .find(|key| !list.is_empty() && list.iter().all(|element| element.get(key).is_some()))
}

/// What the API server leaves out when it stores an object.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// `500m` and `0.5` are one quantity: the API server stores its own spelling.
fn same_quantity(one: &str, other: &str) -> bool {
    matches!((quantity(one), quantity(other)), (Some(one), Some(other))
        if (one - other).abs() <= f64::EPSILON * one.abs())
}

/// The value of a Kubernetes quantity; `None` for other text.
fn quantity(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 15] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let (number, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| text.strip_suffix(suffix).map(|number| (number, *factor)))
        .unwrap_or((text, 1.0));
    number.parse::<f64>().ok().map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(desired: &Value, observed: &Value, expected: Option<&str>) {
        assert_eq!(
            first_difference(desired, observed).as_deref(),
            expected,
            "{desired} in {observed}"
        );
    }

    #[test]
    fn defaults_and_foreign_fields_are_no_drift() {
        check(&json!({"a": 1}), &json!({"a": 1, "b": 2}), None);
        check(
            &json!({"containers": [{"name": "engine", "image": "x"}]}),
            &json!({"containers": [{"name": "mesh"}, {"name": "engine", "image": "x", "terminationMessagePath": "/dev/x"}]}),
            None,
        );
        check(&json!({"emptyDir": {}}), &json!({"emptyDir": {}}), None);
        check(&json!({"ingress": [], "value": "", "x": null}), &json!({}), None);
    }

    #[test]
    fn changed_missing_and_extra_values_are_drift() {
        check(&json!({"a": {"b": 1}}), &json!({"a": {"b": 2}}), Some(".a.b"));
        check(&json!({"a": false}), &json!({}), Some(".a"));
        check(
            &json!({"args": ["x"]}),
            &json!({"args": ["x", "y"]}),
            Some(".args"),
        );
        check(&json!({"args": ["x"]}), &json!({"args": ["z"]}), Some(".args[0]"));
        check(
            &json!({"containers": [{"name": "engine"}]}),
            &json!({"containers": [{"name": "other"}]}),
            Some(".containers[\"engine\"]"),
        );
    }

    #[test]
    fn quantities_are_compared_by_value() {
        check(&json!("0.5"), &json!("500m"), None);
        check(&json!("1024Mi"), &json!("1Gi"), None);
        check(&json!("2"), &json!("2000m"), None);
        check(&json!("1Gi"), &json!("1G"), Some(""));
        check(&json!("1x"), &json!("1y"), Some(""));
    }

    #[test]
    fn the_stamp_follows_the_content_and_nothing_else() {
        let object = |image: &str| json!({"metadata": {"name": "a"}, "spec": {"image": image}});
        let stamped = stamp(&object("x")).unwrap();
        assert_eq!(stamped, stamp(&object("x")).unwrap());
        let other = stamp(&object("y")).unwrap();
        assert_ne!(
            stamped["metadata"]["annotations"],
            other["metadata"]["annotations"]
        );
        assert!(!holds(&other, &stamped));
    }
}
