//! Engine flags and environment variables that the operator or the sidecar sets, so that a pool may not.

/// Flags refused in `spec.engine.args`, without the leading dashes. vLLM reads `_` as `-` in flag names, so both
/// spellings are refused.
pub const FLAGS: [&str; 27] = [
    "admin-api-key",
    "api-key",
    "enable-cache-report",
    "enable-http2",
    "enable-metrics",
    "enable-prompt-tokens-details",
    "enable-sleep-mode",
    "enable-ssl-refresh",
    "grpc-port",
    "headless",
    "host",
    "model",
    "model-path",
    "no-enable-prompt-tokens-details",
    "port",
    "revision",
    "root-path",
    "served-model-name",
    "shutdown-timeout",
    "sse-keep-alive-interval",
    "ssl-ca-certs",
    "ssl-cert-reqs",
    "ssl-certfile",
    "ssl-keyfile",
    "tokenizer-revision",
    "uds",
    "warmups",
];

/// Names refused in `spec.engine.env`; names beginning with [`ENV_PREFIX`] are refused too.
pub const ENV: [&str; 13] = [
    "HF_HOME",
    "HF_TOKEN",
    "HOME",
    "HUGGING_FACE_HUB_TOKEN",
    "SGLANG_TIMEOUT_KEEP_ALIVE",
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
pub const METADATA_PREFIXES: [&str; 4] = [
    "weir.dev/",
    "app.kubernetes.io/",
    "controller.kubernetes.io/",
    "pod-template-hash",
];
