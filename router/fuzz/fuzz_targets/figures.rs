//! An engine's metrics page gives figures or none, and shares are shares.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_router::sidecar::engine::figures::parse_metrics;

fuzz_target!(|page: &str| {
    if let Some(figures) = parse_metrics(page) {
        assert!(figures.kv_usage.is_none_or(|usage| (0.0..=1.0).contains(&usage)));
    }
});
