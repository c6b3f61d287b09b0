//! A simulator of vLLM's HTTP server.
pub mod engine;
