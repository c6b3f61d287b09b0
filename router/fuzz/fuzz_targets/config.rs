//! A configuration is refused, or reads back from its own text to the same value.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_router::gateway::file::describe;
use weir_wire::config::GatewayConfig;

fuzz_target!(|text: &str| {
    let Ok(config) = GatewayConfig::parse(text) else {
        return;
    };
    let again = GatewayConfig::parse(&config.to_yaml().expect("a configuration can be written"));
    assert_eq!(again.expect("what was written can be read"), config);
    assert!(describe(&config).contains("limits:"));
});
