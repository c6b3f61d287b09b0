//! What a deployment costs in time and memory: the table of `engine-interface.md` §5.2.

use std::{fmt, str::FromStr, time::Duration};

/// Coefficients of one deployment. Step time = base + prefill tokens × `per_prefill_token` + context tokens of all
/// sequences × `per_context_token` + sequences × `per_sequence`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    /// Name on the command line.
    pub name: &'static str,
    /// Fixed time of a step, milliseconds (weights through the memory bus).
    pub base_ms: f64,
    /// Milliseconds per new prefill token in the step.
    pub per_prefill_token_ms: f64,
    /// Microseconds per token of context that the step attends to.
    pub per_context_token_us: f64,
    /// Milliseconds per sequence in the step.
    pub per_sequence_ms: f64,
    /// Front end's time per request (HTTP, template), milliseconds; adds to the first token only.
    pub front_end_ms: f64,
    /// Front end's time per prompt token (tokenising), microseconds.
    pub front_end_token_us: f64,
    /// Tokens of KV cache at 0.92 of the memory.
    pub kv_tokens: u32,
    /// Default step budget, tokens.
    pub max_batched_tokens: u32,
    /// Default batch size, sequences.
    pub max_sequences: u32,
    /// Longest context of the model, tokens.
    pub context_tokens: u32,
    /// Size of the weights, GiB: what sleep and wake copy.
    pub weights_gib: f64,
}

const H100_8B: Profile = Profile {
    name: "8b-h100",
    base_ms: 6.4,
    per_prefill_token_ms: 0.033,
    per_context_token_us: 0.05,
    per_sequence_ms: 0.02,
    front_end_ms: 5.0,
    front_end_token_us: 1.0,
    kv_tokens: 450_000,
    max_batched_tokens: 8192,
    max_sequences: 1024,
    context_tokens: 131_072,
    weights_gib: 15.0,
};

const A100_8B: Profile = Profile {
    name: "8b-a100",
    base_ms: 11.0,
    per_prefill_token_ms: 0.115,
    per_context_token_us: 0.085,
    per_sequence_ms: 0.03,
    max_batched_tokens: 2048,
    max_sequences: 256,
    ..H100_8B
};

/// Every deployment known by name.
pub const PROFILES: [Profile; 7] = [
    H100_8B,
    Profile {
        name: "8b-h200",
        base_ms: 5.3,
        per_context_token_us: 0.035,
        kv_tokens: 900_000,
        ..H100_8B
    },
    A100_8B,
    Profile {
        name: "8b-l4",
        base_ms: 62.0,
        per_prefill_token_ms: 0.26,
        per_context_token_us: 0.55,
        per_sequence_ms: 0.05,
        kv_tokens: 36_000,
        ..A100_8B
    },
    Profile {
        name: "70b-4xh100",
        base_ms: 18.5,
        per_prefill_token_ms: 0.08,
        per_context_token_us: 0.033,
        per_sequence_ms: 0.03,
        kv_tokens: 498_000,
        weights_gib: 132.0,
        ..H100_8B
    },
    Profile {
        name: "70b-4xa100",
        base_ms: 30.0,
        per_prefill_token_ms: 0.30,
        per_context_token_us: 0.055,
        per_sequence_ms: 0.05,
        kv_tokens: 490_000,
        weights_gib: 132.0,
        ..A100_8B
    },
    Profile {
        name: "tiny-cpu",
        base_ms: 0.2,
        per_prefill_token_ms: 0.0005,
        per_context_token_us: 0.0002,
        per_sequence_ms: 0.001,
        front_end_ms: 0.0,
        front_end_token_us: 0.0,
        kv_tokens: 262_144,
        max_batched_tokens: 2048,
        max_sequences: 256,
        context_tokens: 32_768,
        weights_gib: 0.1,
    },
];

/// What one step computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Tokens computed, decode ones included.
    pub tokens: usize,
    /// Of these, tokens of prompts (or of recomputed sequences).
    pub prefill_tokens: usize,
    /// Context of all sequences in the step, tokens.
    pub context_tokens: usize,
    /// Sequences in the step.
    pub sequences: usize,
}

impl Profile {
    /// The fast profile for tests.
    pub fn tiny() -> Self {
        PROFILES[PROFILES.len() - 1]
    }

    /// Duration of a step, unscaled.
    pub fn step_time(&self, work: Work) -> Duration {
        let ms = self.base_ms
            + self.per_prefill_token_ms * work.prefill_tokens as f64
            + self.per_context_token_us * work.context_tokens as f64 / 1000.0
            + self.per_sequence_ms * work.sequences as f64;
        Duration::from_secs_f64(ms / 1000.0)
    }

    /// Time the front end spends on a request before the engine sees it, unscaled.
    pub fn front_end_time(&self, prompt_tokens: usize) -> Duration {
        let ms = self.front_end_ms + self.front_end_token_us * prompt_tokens as f64 / 1000.0;
        Duration::from_secs_f64(ms / 1000.0)
    }
}

/// A profile name that is not in the table.
#[derive(Debug, thiserror::Error)]
#[error("unknown profile `{0}`; known: 8b-h100, 8b-h200, 8b-a100, 8b-l4, 70b-4xh100, 70b-4xa100, tiny-cpu")]
pub struct UnknownProfile(String);

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        PROFILES
            .into_iter()
            .find(|profile| profile.name == name)
            .ok_or_else(|| UnknownProfile(name.to_owned()))
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published latencies of a batch of 8 with input 32 and output 128, per step (§5.3), within the ±25 % claimed.
    #[test]
    fn decode_steps_agree_with_published_benchmarks() {
        for (name, published_ms) in [
            ("8b-a100", 12.3),
            ("8b-h100", 7.8),
            ("8b-h200", 6.5),
            ("70b-4xa100", 31.2),
            ("70b-4xh100", 19.1),
        ] {
            let profile: Profile = name.parse().unwrap();
            let work = Work {
                tokens: 8,
                prefill_tokens: 0,
                context_tokens: 8 * 96,
                sequences: 8,
            };
            let ms = profile.step_time(work).as_secs_f64() * 1000.0;
            assert!(
                (ms / published_ms - 1.0).abs() < 0.25,
                "{name}: {ms} ms, published {published_ms} ms"
            );
        }
    }

    #[test]
    fn every_profile_is_found_and_listed_in_the_error() {
        let listed = "x".parse::<Profile>().unwrap_err().to_string();
        for profile in PROFILES {
            assert_eq!(profile.to_string().parse::<Profile>().unwrap(), profile);
            assert!(listed.contains(profile.name));
        }
    }
}
