use proptest::prelude::*;

use super::*;

fn ask(body: &str) -> Ask {
    parse(body.as_bytes(), 128).unwrap_or_else(|refusal| panic!("{body}: {refusal:?}"))
}

/// The field that a refusal of `body` names.
fn refused(body: &str) -> Option<String> {
    match parse(body.as_bytes(), 16) {
        Err(Refusal::Invalid { param, .. }) => param.map(std::borrow::Cow::into_owned),
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn the_fields_the_router_acts_on_are_read() {
    let ask = ask(
        r#"{"model":"org/m","messages":[{"role":"user","content":"x"}],"stream":true,
            "stream_options":{"include_usage":true},"n":2,"max_completion_tokens":7,"unknown":{"a":[1]},
            "workflow_metadata":{"workflow_id":"w","agent_id":"a","workflow_priority":2.5,
            "context_sharing_strategy":"selective","metadata":{"x":1},"more":0}}"#,
    );
    assert_eq!(ask.model.as_deref(), Some("org/m"));
    assert!(ask.stream && ask.include_usage);
    assert_eq!((ask.n, ask.max_tokens), (2, Some(7)));
    assert_eq!(ask.workflow.workflow_id.as_deref(), Some("w"));
    assert_eq!(ask.workflow.priority, Some(2.5));
    assert_eq!(ask.workflow.context_sharing, Some(ContextSharing::Selective));
}

#[test]
fn null_is_absent() {
    let ask = ask(r#"{"model":null,"stream":null,"n":null,"max_tokens":null,"workflow_metadata":null}"#);
    assert_eq!(
        (ask.model, ask.stream, ask.n, ask.max_tokens),
        (None, false, 1, None)
    );
    assert_eq!(ask.cuts.len(), 1);
}

#[test]
fn bad_input_is_refused_by_field() {
    let check = |body: &str, field: Option<&str>| assert_eq!(refused(body).as_deref(), field, "{body}");
    for malformed in [
        "",
        "{",
        "[]",
        "null",
        "{\"a\":1,}",
        "{\"a\":1} x",
        "{'a':1}",
        "{\"a\":nul}",
        "{\"a\":\"\u{1}\"}",
    ] {
        check(malformed, None);
    }
    check(&format!("{{\"a\":{}1{}}}", "[".repeat(20), "]".repeat(20)), None);
    check(r#"{"model":""}"#, Some("model"));
    check(r#"{"model":1}"#, Some("model"));
    check(r#"{"model":["m"]}"#, Some("model"));
    check(&format!("{{\"model\":\"{}\"}}", "m".repeat(257)), Some("model"));
    check(r#"{"model":"a","model":"b"}"#, Some("model"));
    check(r#"{"model":"a","mod\u0065l":"b"}"#, Some("model"));
    check(r#"{"stream":"yes"}"#, Some("stream"));
    check(r#"{"stream_options":[]}"#, Some("stream_options"));
    check(
        r#"{"stream_options":{"include_usage":1}}"#,
        Some("stream_options.include_usage"),
    );
    for n in [
        "0",
        "-1",
        "1.5",
        "129",
        "1e9",
        "\"2\"",
        "99999999999999999999999",
        "{}",
    ] {
        check(&format!("{{\"n\":{n}}}"), Some("n"));
    }
    for tokens in ["-1", "0.5", "10000001", "1e400", "true"] {
        check(&format!("{{\"max_tokens\":{tokens}}}"), Some("max_tokens"));
        check(
            &format!("{{\"max_completion_tokens\":{tokens}}}"),
            Some("max_completion_tokens"),
        );
    }
    check(r#"{"workflow_metadata":"w"}"#, Some("workflow_metadata"));
    check(
        r#"{"workflow_metadata":{"workflow_id":7}}"#,
        Some("workflow_metadata.workflow_id"),
    );
    check(
        r#"{"workflow_metadata":{"workflow_id":"a","workflow_id":"b"}}"#,
        Some("workflow_metadata.workflow_id"),
    );
    for priority in ["0", "-1", "\"high\"", "1e999"] {
        check(
            &format!("{{\"workflow_metadata\":{{\"workflow_priority\":{priority}}}}}"),
            Some("workflow_metadata.workflow_priority"),
        );
    }
    check(
        r#"{"workflow_metadata":{"context_sharing_strategy":"all"}}"#,
        Some("workflow_metadata.context_sharing_strategy"),
    );
    assert!(parse(b"{\"a\":\"\xff\"}", 16).is_err());
}

#[test]
fn only_workflow_metadata_and_priority_are_cut_out() {
    let check = |body: &str, expected: &str| {
        let forwarded = ask(body).forwarded(Bytes::copy_from_slice(body.as_bytes()));
        assert_eq!(forwarded, expected, "{body}");
    };
    check(r#"{"workflow_metadata":{}}"#, "{}");
    check(r#"{ "workflow_metadata" : {"a":[1]} }"#, "{ }");
    check(r#"{"workflow_metadata":{}, "b" :1.50}"#, r#"{ "b" :1.50}"#);
    check(
        r#"{"a":1 , "workflow_metadata":{} , "b":2}"#,
        r#"{"a":1 , "b":2}"#,
    );
    check(
        r#"{"a":"workflow_metadata","workflow_metadata":null}"#,
        r#"{"a":"workflow_metadata"}"#,
    );
    check(r#"{"workflow\u005fmetadata":{},"a":1}"#, r#"{"a":1}"#);
    check(
        r#"{"a":{"workflow_metadata":{}, "priority":1}}"#,
        r#"{"a":{"workflow_metadata":{}, "priority":1}}"#,
    );
    check(r#"{"priority":-5}"#, "{}");
    check(
        r#"{"model":"m", "priority" : -1e3 ,"n":1}"#,
        r#"{"model":"m" ,"n":1}"#,
    );
    check(r#"{"priority":null,"workflow_metadata":{},"a":1}"#, r#"{"a":1}"#);
    check(r#"{ "workflow_metadata":{} , "priority":1 }"#, "{ }");
    check(r#"{"priority":1,"a":1,"workflow_metadata":{}}"#, r#"{"a":1}"#);
    check(r#"{"a":1,"priority":1,"workflow_metadata":{}}"#, r#"{"a":1}"#);
    check(r#"{"a":1,"pri\u006frity":"x","b":[]}"#, r#"{"a":1,"b":[]}"#);
    check(
        r#"{"priority_":1,"Priority":2,"a":"priority"}"#,
        r#"{"priority_":1,"Priority":2,"a":"priority"}"#,
    );
}

#[test]
fn a_body_without_them_is_forwarded_as_the_very_same_bytes() {
    let body = Bytes::from_static(br#" {"model" : "m","n": 1,"x":{"priority":9}} "#);
    let asked = ask(std::str::from_utf8(&body).unwrap());
    assert!(!asked.engine_priority);
    assert_eq!(asked.forwarded(body.clone()).as_ptr(), body.as_ptr());
    assert!(ask(r#"{"priority":0}"#).engine_priority);
    assert_eq!(
        refused(r#"{"priority":0,"priority":-9}"#).as_deref(),
        Some("priority")
    );
}

proptest! {
    /// Whatever surrounds it, cutting leaves the same object without that member.
    #[test]
    fn cutting_removes_exactly_the_members_meant(
        before in proptest::collection::vec(("[a-z]{1,6}", "[ -~]{0,12}"), 0..4),
        between in proptest::collection::vec(("[a-z]{1,6}", "[ -~]{0,12}"), 0..2),
        after in proptest::collection::vec(("[a-z]{1,6}", "[ -~]{0,12}"), 0..4),
        space in "[ \n\t]{0,3}",
    ) {
        let pair = |(key, value): &(String, String)| {
            format!("{space}{}{space}:{}", serde_json::json!(format!("k{key}")), serde_json::json!(value))
        };
        let mut members: Vec<String> = before.iter().map(pair).collect();
        members.push(format!("{space}\"workflow_metadata\"{space}:{space}{{\"workflow_id\":\"w\"}}{space}"));
        members.extend(between.iter().map(pair));
        members.push(format!("{space}\"priority\"{space}:{space}-1{space}"));
        members.extend(after.iter().map(pair));
        let body = format!("{space}{{{}}}{space}", members.join(","));
        let forwarded = ask(&body).forwarded(Bytes::from(body.clone()));
        let mut expected: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&body).unwrap();
        expected.remove("workflow_metadata");
        expected.remove("priority");
        let got: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&forwarded).unwrap();
        prop_assert_eq!(got, expected);
    }

    /// No bytes make the reader panic.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes, 8);
    }
}
