//! A workflow's id is found within its bounds or refused, whatever headers and body say.

#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use weir_router::{
    gateway::identify::{Evidence, MAX_ID_BYTES, identify},
    proxy::request::parse,
};
use weir_wire::config::IdentitySource;

const NAMES: [&str; 6] = [
    "x-weir-workflow-id",
    "x-weir-agent-id",
    "x-weir-parent-request-id",
    "x-claude-code-session-id",
    "session-id",
    "x-own",
];

fuzz_target!(|input: (Vec<(u8, Vec<u8>)>, String, bool, Vec<u8>)| {
    let (pairs, path, configured, body) = input;
    let Ok(ask) = parse(&body, 64) else {
        return;
    };
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            let name = NAMES[usize::from(name) % NAMES.len()];
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let sources = if configured {
        vec![
            IdentitySource::Header("x-own".to_owned()),
            IdentitySource::Body(path),
            IdentitySource::KnownClients,
            IdentitySource::ConversationRoot,
        ]
    } else {
        Vec::new()
    };
    let evidence = Evidence {
        headers: &headers,
        ask: &ask,
        body: &body,
    };
    if let Ok(Some(identity)) = identify(evidence, &sources) {
        assert!((1..=MAX_ID_BYTES).contains(&identity.id.len()));
        assert!(!identity.id.chars().any(char::is_control));
    }
});
