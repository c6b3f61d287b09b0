//! Schemas that neither serde nor schemars can say: bounded durations, Kubernetes' own types with bounds added, and
//! the clean-up that makes a derived schema fit for a CustomResourceDefinition.

use std::time;

use kube::core::Duration;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use crate::duration::go_format;

/// A Go-style duration in a spec.
const DURATION: &str = r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+$";
/// The same or `auto`.
const DURATION_OR_AUTO: &str = r"^(auto|([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+)$";
/// Longest text of a duration.
const DURATION_LENGTH: u32 = 32;

/// Default of a duration field: `N` seconds.
pub(crate) fn seconds<const N: u64>() -> Duration {
    time::Duration::from_secs(N).into()
}

/// A duration longer than 0 and at most a week.
pub(crate) fn positive_duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "maxLength": DURATION_LENGTH, "pattern": DURATION,
        "x-kubernetes-validations": [{
            "rule": "duration(self) > duration('0s') && duration(self) <= duration('168h')",
            "message": "must be longer than 0s and at most 168h",
        }],
    })
}

/// A duration of at most a week.
pub(crate) fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "maxLength": DURATION_LENGTH, "pattern": DURATION,
        "x-kubernetes-validations": [{
            "rule": "duration(self) <= duration('168h')",
            "message": "must be at most 168h",
        }],
    })
}

/// A duration of at most a week, or `auto`.
pub(crate) fn duration_or_auto() -> Schema {
    json_schema!({
        "type": "string", "maxLength": DURATION_LENGTH, "pattern": DURATION_OR_AUTO,
        "x-kubernetes-validations": [{
            "rule": "self == 'auto' || duration(self) <= duration('168h')",
            "message": "must be auto or at most 168h",
        }],
    })
}

/// A duration that the operator writes.
pub(crate) fn status_duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": DURATION_LENGTH})
}

/// The last start times, oldest first.
pub(crate) fn recent_durations(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "maxItems": 16, "items": status_duration(generator)})
}

/// Labels or annotations: at most 32, values of at most 4,096 bytes.
pub(crate) fn string_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 4_096},
    })
}

/// Labels: at most 32, values as Kubernetes wants them.
pub(crate) fn label_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": 32,
        "additionalProperties": {
            "type": "string", "maxLength": 63, "pattern": "^([A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?)?$",
        },
    })
}

/// Requests or limits of a container: at most 16 resources.
pub(crate) fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": 16,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 32,
            "pattern": r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$",
        },
    })
}

/// A type of Kubernetes' own API, with a bound added wherever it has none, and short descriptions.
pub(crate) fn embedded<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = T::json_schema(generator);
    if let Some(object) = schema.as_object_mut() {
        bound(object);
    }
    schema
}

/// The same as a list merged by `name`, at most 64 items.
pub(crate) fn embedded_by_name<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": 64, "items": embedded::<T>(generator),
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
    })
}

/// The same as a list that is replaced as a whole, at most 32 items.
pub(crate) fn embedded_list<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": 32, "items": embedded::<T>(generator),
        "x-kubernetes-list-type": "atomic",
    })
}

/// Conditions, merged by `type`.
pub(crate) fn conditions(generator: &mut SchemaGenerator) -> Schema {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    json_schema!({
        "type": "array", "maxItems": 16, "items": embedded::<Condition>(generator),
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
    })
}

/// Largest integer that JSON numbers carry exactly.
const MAX_INTEGER: u64 = (1 << 53) - 1;

fn bound(schema: &mut Map<String, Value>) {
    shorten_description(schema);
    if is_type(schema, "string") && !schema.contains_key("format") && !schema.contains_key("enum") {
        schema.entry("maxLength").or_insert(json!(4_096));
    }
    if schema.get("x-kubernetes-int-or-string") == Some(&json!(true)) {
        schema.entry("maxLength").or_insert(json!(32));
    }
    if is_type(schema, "integer") {
        schema.entry("minimum").or_insert(json!(-1));
        let most = match schema.get("format").and_then(Value::as_str) {
            Some("int32") => i32::MAX.unsigned_abs().into(),
            _ => MAX_INTEGER,
        };
        schema.entry("maximum").or_insert(json!(most));
    }
    if is_type(schema, "array") {
        schema.entry("maxItems").or_insert(json!(32));
    }
    if schema.get("additionalProperties").is_some_and(Value::is_object) {
        schema.entry("maxProperties").or_insert(json!(32));
    }
    each_child(schema, bound);
}

/// Keeps the first sentence: the rest is Kubernetes' own documentation.
fn shorten_description(schema: &mut Map<String, Value>) {
    if let Some(Value::String(text)) = schema.get_mut("description")
        && let Some(end) = text.find(". ").or_else(|| text.find(".\n"))
    {
        text.truncate(end + 1);
    }
}

/// Makes a derived schema fit for a CustomResourceDefinition, in every part of it:
/// * an absent field is absent, never `null`, so that `has()` in a rule means what it says;
/// * Rust's integer formats become minimum and maximum;
/// * default durations read as people write them.
pub(crate) fn tidy(schema: &mut Schema) {
    if let Some(object) = schema.as_object_mut() {
        tidy_object(object);
    }
}

fn tidy_object(schema: &mut Map<String, Value>) {
    drop_null(schema);
    bound_integers(schema);
    each_child(schema, tidy_object);
    tidy_default(schema);
}

/// A group's default repeats the defaults of its fields: the API server evaluates a group's rules on it as it
/// stands, before it fills in anything.
fn tidy_default(schema: &mut Map<String, Value>) {
    let is_duration = schema
        .get("pattern")
        .and_then(Value::as_str)
        .is_some_and(|pattern| pattern == DURATION || pattern == DURATION_OR_AUTO);
    let fields = schema.get("properties").cloned();
    match schema.get_mut("default") {
        Some(Value::Object(group)) => {
            for (name, value) in group {
                if let Some(own) = fields
                    .as_ref()
                    .and_then(|fields| fields.get(name)?.get("default"))
                {
                    *value = own.clone();
                }
            }
        }
        Some(Value::String(text)) if is_duration => {
            if let Ok(duration) = text.parse::<Duration>() {
                *text = go_format(duration.into());
            }
        }
        _ => {}
    }
}

fn drop_null(schema: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            schema.insert("type".into(), one);
        }
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    let Some(Value::Array(branches)) = schema.get_mut("anyOf") else {
        return;
    };
    branches.retain(|branch| branch.get("type") != Some(&json!("null")));
    if let [Value::Object(only)] = branches.as_slice() {
        let only = only.clone();
        schema.remove("anyOf");
        for (key, value) in only {
            schema.entry(key).or_insert(value);
        }
    }
}

fn bound_integers(schema: &mut Map<String, Value>) {
    let (format, most) = match schema.get("format").and_then(Value::as_str) {
        Some("uint8") => ("int32", u8::MAX.into()),
        Some("uint16") => ("int32", u16::MAX.into()),
        Some("uint32") => ("int64", u32::MAX.into()),
        Some("uint64" | "uint" | "int64") => ("int64", MAX_INTEGER),
        _ => return,
    };
    schema.insert("format".into(), format.into());
    schema.entry("minimum").or_insert(json!(0));
    schema.entry("maximum").or_insert(json!(most));
}

fn is_type(schema: &Map<String, Value>, name: &str) -> bool {
    match schema.get("type") {
        Some(Value::String(one)) => one == name,
        Some(Value::Array(many)) => many.iter().any(|one| one == name),
        _ => false,
    }
}

fn each_child(schema: &mut Map<String, Value>, visit: fn(&mut Map<String, Value>)) {
    for key in ["items", "additionalProperties"] {
        if let Some(Value::Object(child)) = schema.get_mut(key) {
            visit(child);
        }
    }
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        for child in properties.values_mut() {
            if let Value::Object(child) = child {
                visit(child);
            }
        }
    }
}
