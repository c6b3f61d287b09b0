//! What the API server does with an object, without one: structural schema, defaults, rules.

use kube::core::cel::{Validator, apply_defaults};
use regex::Regex;
use serde_json::Value;

/// The OpenAPI schema of a kind.
pub(crate) fn schema_of<K: kube::CustomResourceExt>() -> Value {
    let crd = K::crd();
    serde_json::to_value(
        crd.spec.versions[0]
            .schema
            .as_ref()
            .unwrap()
            .open_api_v3_schema
            .as_ref()
            .unwrap(),
    )
    .unwrap()
}

/// Every complaint about `object`, each with the path of its field.
pub(crate) fn complaints(schema: &Value, object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    structure(schema, object, "", &mut found);
    if found.is_empty() {
        let defaulted = apply_defaults(schema, object);
        if let Err(errors) = Validator::new().validate(schema, &defaulted, None) {
            found.extend(
                errors
                    .as_slice()
                    .iter()
                    .map(|error| format!("{}: {}", error.field_path, error.message)),
            );
        }
    }
    found
}

fn structure(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let mut complain = |what: &str| found.push(format!("{path}: {what}"));
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        complain("unsupported value");
    }
    let int_or_string = schema["x-kubernetes-int-or-string"] == true;
    match (schema["type"].as_str(), value) {
        (None, Value::String(_) | Value::Number(_)) if int_or_string => {}
        (Some("string"), Value::String(_))
        | (Some("boolean"), Value::Bool(_))
        | (Some("object"), Value::Object(_))
        | (Some("array"), Value::Array(_))
        | (Some("number"), Value::Number(_)) => {}
        (Some("integer"), Value::Number(number)) if number.is_i64() || number.is_u64() => {}
        _ => complain("wrong type"),
    }
    match value {
        Value::Number(number) => {
            let n = number.as_f64().unwrap();
            if schema["minimum"].as_f64().is_some_and(|least| n < least) {
                complain("too small");
            }
            if schema["maximum"].as_f64().is_some_and(|most| n > most) {
                complain("too great");
            }
        }
        Value::String(text) => {
            let length = text.chars().count() as u64;
            if schema["minLength"].as_u64().is_some_and(|least| length < least) {
                complain("too short");
            }
            if schema["maxLength"].as_u64().is_some_and(|most| length > most) {
                complain("too long");
            }
            if schema["pattern"]
                .as_str()
                .is_some_and(|pattern| !Regex::new(pattern).unwrap().is_match(text))
            {
                complain("should match");
            }
        }
        Value::Array(items) => list(schema, items, path, found),
        Value::Object(_) if path == ".metadata" => {}
        Value::Object(_) => object(schema, value, path, found),
        _ => {}
    }
}

fn list(schema: &Value, items: &[Value], path: &str, found: &mut Vec<String>) {
    if schema["maxItems"]
        .as_u64()
        .is_some_and(|most| items.len() as u64 > most)
    {
        found.push(format!("{path}: too many items"));
    }
    let keys: Vec<&Value> = match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => items.iter().collect(),
        Some("map") => {
            let key = schema["x-kubernetes-list-map-keys"][0].as_str().unwrap();
            items.iter().map(|item| &item[key]).collect()
        }
        _ => Vec::new(),
    };
    if (1..keys.len()).any(|index| keys[..index].contains(&keys[index])) {
        found.push(format!("{path}: duplicate value"));
    }
    for (index, item) in items.iter().enumerate() {
        structure(&schema["items"], item, &format!("{path}[{index}]"), found);
    }
}

fn object(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let fields = value.as_object().unwrap();
    for name in schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if !fields.contains_key(name) {
            found.push(format!("{path}.{name}: required"));
        }
    }
    if schema["maxProperties"]
        .as_u64()
        .is_some_and(|most| fields.len() as u64 > most)
    {
        found.push(format!("{path}: too many keys"));
    }
    for (name, field) in fields {
        let at = format!("{path}.{name}");
        match (schema["properties"].get(name), schema.get("additionalProperties")) {
            (Some(property), _) => structure(property, field, &at, found),
            (None, Some(any)) => structure(any, field, &at, found),
            (None, None)
                if path.is_empty() && ["apiVersion", "kind", "metadata"].contains(&name.as_str()) => {}
            (None, None) => found.push(format!("{at}: unknown field")),
        }
    }
}
