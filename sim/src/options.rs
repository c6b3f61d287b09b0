//! Everything a simulator can be told, with vLLM's defaults.

use std::{net::IpAddr, net::Ipv4Addr, time::Duration};

use crate::{
    engine::{Policy, Settings, profile::Profile},
    flavour::Flavour,
};

/// vLLM's share of blocks: tokens per block on CUDA.
const BLOCK_SIZE: u32 = 16;

/// How one simulator is set up. `Default` is the fast in-process engine for tests: `tiny-cpu`, ephemeral port, ready
/// at once.
#[derive(Debug, Clone)]
pub struct Options {
    /// The engine to speak like.
    pub flavour: Flavour,
    /// Model source, shown as `root` in `/v1/models`.
    pub model: String,
    /// Names clients may ask for, the canonical one first; empty = the model source.
    pub served_names: Vec<String>,
    /// Address to listen on.
    pub host: IpAddr,
    /// Port; 0 = any free one.
    pub port: u16,
    /// Time and memory model.
    pub profile: Profile,
    /// Factor on all durations of the engine; 0.1 = ten times faster.
    pub time_scale: f64,
    /// Time during which connections are refused; not scaled.
    pub startup: Duration,
    /// Decides the words of every answer.
    pub seed: u64,
    /// Longest context, tokens; `None` = the profile's, or what fits into the cache.
    pub max_model_len: Option<u32>,
    /// Batch size, sequences; `None` = the profile's.
    pub max_num_seqs: Option<u32>,
    /// Step budget, tokens; `None` = the profile's.
    pub max_num_batched_tokens: Option<u32>,
    /// Tokens per block of KV cache.
    pub block_size: u32,
    /// Blocks of KV cache, the null block included; `None` = the profile's memory.
    pub num_gpu_blocks: Option<u32>,
    /// Whether prefixes are cached.
    pub prefix_caching: bool,
    /// Order of the waiting.
    pub policy: Policy,
    /// `--max-num-queued-reqs`.
    pub max_num_queued_reqs: Option<u32>,
    /// `--max-num-queued-tokens`.
    pub max_num_queued_tokens: Option<u64>,
    /// Keys that guard `/v1` and its like; empty = open.
    pub api_keys: Vec<String>,
    /// `--enable-prompt-tokens-details`.
    pub prompt_tokens_details: bool,
    /// `--enable-force-include-usage`.
    pub force_include_usage: bool,
    /// `--enable-request-id-headers`.
    pub request_id_headers: bool,
    /// `--enable-server-load-tracking`.
    pub load_tracking: bool,
    /// `--enable-sleep-mode`.
    pub sleep_mode: bool,
    /// `VLLM_SERVER_DEV_MODE=1`.
    pub dev_mode: bool,
    /// `--shutdown-timeout`: how long SIGTERM lets requests in flight go on.
    pub shutdown_timeout: Duration,
    /// `VLLM_HTTP_TIMEOUT_KEEP_ALIVE`: idle time after an answer before the connection is closed.
    pub keep_alive: Duration,
    /// `--sse-keep-alive-interval`; `None` = no comments.
    pub sse_keep_alive: Option<Duration>,
    /// `--stream-interval`: least tokens per chunk.
    pub stream_interval: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            flavour: Flavour::Vllm,
            model: "sim-model".to_owned(),
            served_names: Vec::new(),
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            profile: Profile::tiny(),
            time_scale: 1.0,
            startup: Duration::ZERO,
            seed: 0,
            max_model_len: None,
            max_num_seqs: None,
            max_num_batched_tokens: None,
            block_size: BLOCK_SIZE,
            num_gpu_blocks: None,
            prefix_caching: true,
            policy: Policy::Fcfs,
            max_num_queued_reqs: None,
            max_num_queued_tokens: None,
            api_keys: Vec::new(),
            prompt_tokens_details: false,
            force_include_usage: false,
            request_id_headers: false,
            load_tracking: false,
            sleep_mode: false,
            dev_mode: false,
            shutdown_timeout: Duration::ZERO,
            keep_alive: Duration::from_secs(5),
            sse_keep_alive: None,
            stream_interval: 1,
        }
    }
}

/// Options that cannot work together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidOptions {
    /// As vLLM says it when one request of full length does not fit.
    #[error(
        "To serve at least one request with the models's max seq len ({max_model_len}), more KV cache is needed than \
         the available {kv_tokens} tokens. Try increasing `gpu_memory_utilization` or decreasing `max_model_len`."
    )]
    ContextTooLong {
        /// Asked-for context, tokens.
        max_model_len: u32,
        /// Cache, tokens.
        kv_tokens: u32,
    },
    /// A size that must not be zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// Not a usable factor.
    #[error("--time-scale must be a number above 0 and at most 1000")]
    TimeScale,
}

impl Options {
    /// The engine they describe.
    ///
    /// # Errors
    /// [`InvalidOptions`] naming the flag.
    pub fn settings(&self) -> Result<Settings, InvalidOptions> {
        let profile = self.profile;
        if !(self.time_scale > 0.0 && self.time_scale <= 1000.0) {
            return Err(InvalidOptions::TimeScale);
        }
        if self.block_size == 0 {
            return Err(InvalidOptions::Zero("--block-size"));
        }
        let blocks = self
            .num_gpu_blocks
            .unwrap_or(profile.kv_tokens / self.block_size + 1);
        if blocks < 2 {
            return Err(InvalidOptions::Zero(
                "usable blocks (--num-gpu-blocks-override - 1)",
            ));
        }
        let kv_tokens = (blocks - 1).saturating_mul(self.block_size);
        let max_model_len = self
            .max_model_len
            .unwrap_or(profile.context_tokens.min(kv_tokens));
        if max_model_len > kv_tokens {
            return Err(InvalidOptions::ContextTooLong {
                max_model_len,
                kv_tokens,
            });
        }
        let max_batched_tokens = self.max_num_batched_tokens.unwrap_or(profile.max_batched_tokens);
        let max_sequences = self.max_num_seqs.unwrap_or(profile.max_sequences);
        for (name, value) in [
            ("--max-model-len", max_model_len),
            ("--max-num-batched-tokens", max_batched_tokens),
            ("--max-num-seqs", max_sequences),
            ("--stream-interval", self.stream_interval),
        ] {
            if value == 0 {
                return Err(InvalidOptions::Zero(name));
            }
        }
        Ok(Settings {
            profile,
            time_scale: self.time_scale,
            block_size: self.block_size,
            blocks,
            max_batched_tokens,
            max_sequences,
            max_model_len,
            prefix_caching: self.prefix_caching,
            policy: self.policy,
            max_queued_requests: self.max_num_queued_reqs,
            max_queued_tokens: self.max_num_queued_tokens,
        })
    }

    /// Names clients may ask for, never empty.
    pub fn names(&self) -> &[String] {
        if self.served_names.is_empty() {
            std::slice::from_ref(&self.model)
        } else {
            &self.served_names
        }
    }

    /// SGLang's switches, when it is the engine to speak like.
    pub(crate) fn sglang(&self) -> Option<crate::flavour::Sglang> {
        self.flavour.sglang()
    }

    /// The name every answer carries, whatever alias was asked for.
    pub fn canonical_name(&self) -> &str {
        &self.names()[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_follow_the_profile() {
        let h100 = Options {
            profile: "8b-h100".parse().unwrap(),
            ..Options::default()
        };
        let settings = h100.settings().unwrap();
        assert_eq!(settings.blocks, 28_126);
        assert_eq!(
            (settings.max_batched_tokens, settings.max_sequences),
            (8192, 1024)
        );
        assert_eq!(settings.max_model_len, 131_072);
        let l4 = Options {
            profile: "8b-l4".parse().unwrap(),
            ..Options::default()
        };
        assert_eq!(l4.settings().unwrap().max_model_len, 36_000);
    }

    #[test]
    fn impossible_sizes_are_named() {
        let check = |options: Options, expected: &str| {
            let error = options.settings().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(
            Options {
                num_gpu_blocks: Some(10),
                max_model_len: Some(500),
                ..Options::default()
            },
            "(500)",
        );
        check(
            Options {
                block_size: 0,
                ..Options::default()
            },
            "--block-size",
        );
        check(
            Options {
                max_num_seqs: Some(0),
                ..Options::default()
            },
            "--max-num-seqs",
        );
        check(
            Options {
                time_scale: f64::NAN,
                ..Options::default()
            },
            "--time-scale",
        );
    }

    #[test]
    fn the_model_source_is_the_name_unless_told_otherwise() {
        assert_eq!(Options::default().canonical_name(), "sim-model");
        let named = Options {
            served_names: vec!["a".into(), "b".into()],
            ..Options::default()
        };
        assert_eq!(named.canonical_name(), "a");
    }
}
