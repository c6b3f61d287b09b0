//! A request body is read or refused; what is forwarded is the same object without `workflow_metadata` and `priority`.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use weir_router::proxy::request::parse;

fuzz_target!(|body: &[u8]| {
    let Ok(ask) = parse(body, 64) else {
        return;
    };
    let forwarded = ask.forwarded(Bytes::copy_from_slice(body));
    let Ok(mut before) = serde_json::from_slice::<Map<String, Value>>(body) else {
        // The router takes numbers as they are written; serde_json's values do not hold every one.
        return;
    };
    before.remove("workflow_metadata");
    before.remove("priority");
    let after: Map<String, Value> = serde_json::from_slice(&forwarded).expect("what is forwarded is JSON");
    assert_eq!(before, after);
    assert!(ask.model.is_none_or(|model| (1..=256).contains(&model.len())));
    assert!((1..=128).contains(&ask.n));
});
