//! Port numbers, all above 1023 so that no capability is needed.

/// OpenAI traffic, on the gateway and on the sidecar.
pub const TRAFFIC: u16 = 8080;
/// Probes, metrics and (with a token) the control API, on gateway, sidecar and operator.
pub const ADMIN: u16 = 9090;
/// vLLM's HTTP port, on 127.0.0.1 inside the engine pod.
pub const VLLM: u16 = 8000;
/// SGLang's HTTP port, on 127.0.0.1 inside the engine pod.
pub const SGLANG: u16 = 30000;
