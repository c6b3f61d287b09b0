use http::{HeaderName, HeaderValue};

use super::*;
use crate::proxy::request::parse;

fn find(
    headers: &[(&'static str, &str)],
    body: &str,
    sources: &[IdentitySource],
) -> Result<Option<Identity>, Refusal> {
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            )
        })
        .collect();
    let ask = parse(body.as_bytes(), 64)?;
    let evidence = Evidence {
        headers: &headers,
        ask: &ask,
        body: body.as_bytes(),
    };
    identify(evidence, sources)
}

fn id(headers: &[(&'static str, &str)], body: &str) -> Option<String> {
    find(headers, body, &[]).unwrap().map(|identity| identity.id)
}

const TURN: &str =
    r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"hello"}"#;

#[test]
fn sources_hold_in_their_order() {
    let body =
        r#"{"model":"m","workflow_metadata":{"workflow_id":"body"},"user":"u","prompt_cache_key":"k"}"#;
    let plain = r#"{"model":"m","user":"u"}"#;
    let check = |headers: &[(&'static str, &str)], body: &str, expected: &str| {
        assert_eq!(id(headers, body).as_deref(), Some(expected));
    };
    check(
        &[("x-weir-workflow-id", "head"), ("x-session-id", "s")],
        body,
        "head",
    );
    check(&[("x-session-id", "s")], body, "body");
    check(&[("x-session-id", "s")], plain, "s");
    check(
        &[("x-claude-code-session-id", "c"), ("x-session-id", "s")],
        plain,
        "c",
    );
    check(&[], plain, "u");
    check(&[], r#"{"user":"u","metadata":{"session_id":"m"}}"#, "m");
    check(&[], r#"{"user":"u","metadata":{"session_id":7}}"#, "u");
    check(
        &[],
        r#"{"prompt_cache_key":"k","vllm_xargs":{"agentic_context":"x"}}"#,
        "x",
    );
}

#[test]
fn configured_sources_replace_the_built_in_order() {
    let sources = [
        IdentitySource::Header("x-run".into()),
        IdentitySource::Body("metadata.run".into()),
    ];
    let body = r#"{"user":"u","metadata":{"run":"b"}}"#;
    let found = |headers: &[(&'static str, &str)], body: &str| {
        find(headers, body, &sources).unwrap().map(|identity| identity.id)
    };
    assert_eq!(found(&[("x-run", "h")], body).as_deref(), Some("h"));
    assert_eq!(found(&[], body).as_deref(), Some("b"));
    assert_eq!(found(&[("x-session-id", "s")], r#"{"user":"u"}"#), None);
}

#[test]
fn bad_ids_are_refused_by_field() {
    let long = "x".repeat(257);
    let check = |headers: &[(&'static str, &str)], body: &str, field: &str| match find(headers, body, &[]) {
        Err(Refusal::Invalid {
            param: Some(param), ..
        }) => assert_eq!(param, field),
        other => panic!("{body}: {other:?}"),
    };
    check(&[("x-weir-workflow-id", &long)], "{}", "x-weir-workflow-id");
    check(&[("x-weir-workflow-id", "")], "{}", "x-weir-workflow-id");
    check(&[("x-weir-agent-id", &long)], "{}", "x-weir-agent-id");
    check(&[("x-session-id", &long)], "{}", "x-session-id");
    let body = |field: &str, id: &str| format!("{{\"workflow_metadata\":{{\"{field}\":\"{id}\"}}}}");
    for field in ["workflow_id", "agent_id", "parent_request_id"] {
        check(
            &[],
            &body(field, &"y".repeat(1 << 20)),
            &format!("workflow_metadata.{field}"),
        );
    }
    check(
        &[],
        &body("workflow_id", "a\\nb"),
        "workflow_metadata.workflow_id",
    );
    check(
        &[],
        &format!("{{\"prompt_cache_key\":\"{long}\"}}"),
        "prompt_cache_key",
    );
    assert_eq!(id(&[], &format!("{{\"user\":\"{long}\"}}")), None);
    assert!(id(&[("x-weir-workflow-id", &"é".repeat(128))], "{}").is_some());
}

#[test]
fn every_turn_of_a_conversation_has_the_same_root() {
    let first = id(&[], &format!("{TURN}]}}")).unwrap();
    let later = id(
        &[],
        &format!(
            "{TURN},{{\"role\":\"assistant\",\"content\":\"a\"}},{{\"role\":\"user\",\"content\":\"b\"}}]}}"
        ),
    );
    assert!(first.starts_with("root-") && first.len() == 37);
    assert_eq!(later.as_deref(), Some(first.as_str()));
    let other = id(&[], &format!("{}]}}", TURN.replace("hello", "hi")));
    assert_ne!(other.as_deref(), Some(first.as_str()));
    assert_eq!(id(&[], r#"{"model":"m","prompt":"p"}"#), None);
    assert_eq!(
        id(
            &[],
            r#"{"model":"m","messages":[{"role":"system","content":"s"}]}"#
        ),
        None
    );
    assert!(id(&[], r#"{"model":"m","input":"question","instructions":"i"}"#).is_some());
}
