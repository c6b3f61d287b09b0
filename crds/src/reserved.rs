//! Engine flags and environment variables that the operator or the sidecar sets, so that a pool may not.
//!
//! A flag is refused in every form in which an engine takes it: as a word of its own or with `=value`; with `_` for
//! `-`, which vLLM reads as the same; with a key behind a dot (`--host.a`), which vLLM makes a value of; and cut short,
//! for the argument parsers of both engines (Python's argparse) take the beginning of a flag for the flag. No flag of
//! either engine that a pool may use is the beginning of one that it may not.

/// Flags refused in `spec.engine.args`, without the leading dashes, because `spec.model` says it.
pub const MODEL_FLAGS: [&str; 4] = ["model", "model-path", "revision", "served-model-name"];

/// Flags refused because the engine is reached by its sidecar alone, on 127.0.0.1, without TLS and keys.
pub const ADDRESS_FLAGS: [&str; 22] = [
    "admin-api-key",
    "api-key",
    "enable-http2",
    "enable-ssl-refresh",
    "fastapi-root-path",
    "grpc",
    "grpc-http-sidecar-port",
    "grpc-mode",
    "grpc-port",
    "headless",
    "host",
    "port",
    "root-path",
    "sidecar",
    "smg-grpc-mode",
    "smg-http-sidecar-port",
    "ssl-ca-certs",
    "ssl-cert-reqs",
    "ssl-certfile",
    "ssl-keyfile",
    "ssl-keyfile-password",
    "uds",
];

/// Flags refused because the operator sets what the router relies on: shutdown, sleep, usage details, metrics, the
/// direction of priorities.
pub const LIFECYCLE_FLAGS: [&str; 11] = [
    "abort-on-priority-when-disabled",
    "enable-cache-report",
    "enable-memory-saver",
    "enable-metrics",
    "enable-metrics-for-all-schedulers",
    "enable-prompt-tokens-details",
    "enable-sleep-mode",
    "no-enable-prompt-tokens-details",
    "schedule-low-priority-values-first",
    "shutdown-timeout",
    "sse-keep-alive-interval",
];

/// The flag that a word of `spec.engine.args` sets although the operator does; the CEL rules of `spec.engine` say the
/// same.
#[must_use]
pub fn owned_flag(arg: &str) -> Option<&'static str> {
    let flag = arg
        .strip_prefix("--")?
        .split(['=', '.', ' '])
        .next()?
        .replace('_', "-");
    let mut owned = MODEL_FLAGS.iter().chain(&ADDRESS_FLAGS).chain(&LIFECYCLE_FLAGS);
    owned
        .find(|owned| !flag.is_empty() && owned.starts_with(&flag))
        .copied()
}

/// Names refused in `spec.engine.env`; names beginning with [`ENV_PREFIX`] are refused too.
pub const ENV: [&str; 19] = [
    "HF_HOME",
    "HF_TOKEN",
    "HOME",
    "HUGGING_FACE_HUB_TOKEN",
    "SGLANG_CACHE_DIR",
    "SGLANG_DIAG_BYPASS_HEALTH_GENERATE",
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION",
    "SGLANG_GRPC_PORT",
    "SGLANG_HEALTH_CHECK_TIMEOUT",
    "SGLANG_TIMEOUT_KEEP_ALIVE",
    "SGL_FORCE_SHUTDOWN",
    "VLLM_API_KEY",
    "VLLM_CACHE_ROOT",
    "VLLM_ENGINE_READY_TIMEOUT_S",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH",
    "VLLM_PORT",
    "VLLM_SERVER_DEV_MODE",
    "XDG_CACHE_HOME",
];

/// Environment names of the router, in every container that it may run in.
pub const ENV_PREFIX: &str = "WEIR_";

/// Key prefixes refused in `spec.podMetadata`, because the operator and the gateway select by them.
pub const METADATA_PREFIXES: [&str; 3] = ["weir.dev/", "app.kubernetes.io/", "controller.kubernetes.io/"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_owned_flag_is_found() {
        for (arg, expected) in [
            ("--host", Some("host")),
            ("--host=0.0.0.0", Some("host")),
            ("--hos=0.0.0.0", Some("host")),
            ("--h", Some("headless")),
            ("--port=80\n", Some("port")),
            ("--api_k=x", Some("api-key")),
            ("--host.a", Some("host")),
            ("--served_model_name=x", Some("served-model-name")),
            ("--grpc", Some("grpc")),
            ("--hostname", None),
            ("--max-model-len=8", None),
            ("--model-loader-extra-config={}", None),
            ("--enable-prefix-caching", None),
            ("-tp", None),
            ("--", None),
            ("host", None),
            ("", None),
        ] {
            assert_eq!(owned_flag(arg), expected, "{arg}");
        }
    }
}
