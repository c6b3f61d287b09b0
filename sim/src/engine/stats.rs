//! What the engine counts, in the terms of vLLM's metrics (`engine-interface.md` §2).

use std::time::Duration;

/// Buckets of the time to first token, seconds.
pub const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// Buckets of gaps between tokens, seconds.
pub const GAP: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Buckets of phases of a request, seconds.
pub const PHASE: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
/// Buckets of tokens in a step.
pub const STEP_TOKENS: &[f64] = &[
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];
/// Buckets of the parameter `n`.
pub const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
/// Buckets of preemptions of one request.
pub const PREEMPTIONS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];

/// 1, 2, 5, 10, 20, 50 … up to `limit`.
pub fn one_two_five(limit: u32) -> Vec<f64> {
    let mut bounds = Vec::new();
    for exponent in 0..9 {
        for mantissa in [1_u64, 2, 5] {
            let bound = mantissa * 10_u64.pow(exponent);
            if bound > u64::from(limit) {
                return bounds;
            }
            bounds.push(bound as f64);
        }
    }
    bounds
}

/// A cumulative histogram.
#[derive(Debug, Clone)]
pub struct Histogram {
    bounds: Vec<f64>,
    counts: Vec<u64>,
    sum: f64,
    count: u64,
}

impl Histogram {
    /// An empty histogram with these upper bounds, rising.
    pub fn new(bounds: &[f64]) -> Self {
        Self {
            bounds: bounds.to_vec(),
            counts: vec![0; bounds.len()],
            sum: 0.0,
            count: 0,
        }
    }

    /// Counts one value.
    pub fn observe(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.sum += value;
        self.count += 1;
    }

    /// Counts a duration in seconds.
    pub fn observe_time(&mut self, value: Duration) {
        self.observe(value.as_secs_f64());
    }

    /// Upper bounds with the cumulative count at each.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.bounds
            .iter()
            .zip(&self.counts)
            .scan(0, |total, (bound, count)| {
                *total += count;
                Some((*bound, *total))
            })
    }

    /// Sum of all values.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// Totals since the engine started; each field is the vLLM series of the same name.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "every field is the vLLM metric of its name, documented in engine-interface.md §2"
)]
pub struct Stats {
    pub prefix_cache_queries: u64,
    pub prefix_cache_hits: u64,
    pub num_preemptions: u64,
    pub prompt_tokens: u64,
    pub prompt_tokens_cached: u64,
    pub generation_tokens: u64,
    pub finished_stop: u64,
    pub finished_length: u64,
    pub finished_abort: u64,
    pub rejected_requests: u64,
    pub rejected_tokens: u64,
    pub time_to_first_token: Histogram,
    pub inter_token_latency: Histogram,
    pub time_per_output_token: Histogram,
    pub e2e_request_latency: Histogram,
    pub request_queue_time: Histogram,
    pub request_inference_time: Histogram,
    pub request_prefill_time: Histogram,
    pub request_decode_time: Histogram,
    pub request_prompt_tokens: Histogram,
    pub request_generation_tokens: Histogram,
    pub request_max_num_generation_tokens: Histogram,
    pub request_params_max_tokens: Histogram,
    pub request_prefill_kv_computed_tokens: Histogram,
    pub request_params_n: Histogram,
    pub request_num_preemptions: Histogram,
    pub iteration_tokens: Histogram,
}

impl Stats {
    /// All zero, with token buckets up to the context's length.
    pub fn new(max_model_len: u32) -> Self {
        let tokens = Histogram::new(&one_two_five(max_model_len));
        let (gap, phase) = (Histogram::new(GAP), Histogram::new(PHASE));
        Self {
            prefix_cache_queries: 0,
            prefix_cache_hits: 0,
            num_preemptions: 0,
            prompt_tokens: 0,
            prompt_tokens_cached: 0,
            generation_tokens: 0,
            finished_stop: 0,
            finished_length: 0,
            finished_abort: 0,
            rejected_requests: 0,
            rejected_tokens: 0,
            time_to_first_token: Histogram::new(TTFT),
            inter_token_latency: gap.clone(),
            time_per_output_token: gap,
            e2e_request_latency: phase.clone(),
            request_queue_time: phase.clone(),
            request_inference_time: phase.clone(),
            request_prefill_time: phase.clone(),
            request_decode_time: phase,
            request_prompt_tokens: tokens.clone(),
            request_generation_tokens: tokens.clone(),
            request_max_num_generation_tokens: tokens.clone(),
            request_params_max_tokens: tokens.clone(),
            request_prefill_kv_computed_tokens: tokens,
            request_params_n: Histogram::new(CHOICES),
            request_num_preemptions: Histogram::new(PREEMPTIONS),
            iteration_tokens: Histogram::new(STEP_TOKENS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_bounds_inclusive() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 3.0] {
            histogram.observe(value);
        }
        assert_eq!(histogram.buckets().collect::<Vec<_>>(), [(1.0, 2), (2.0, 3)]);
        assert_eq!((histogram.count(), histogram.sum()), (4, 6.0));
    }

    #[test]
    fn token_bounds_stop_at_the_context() {
        assert_eq!(
            one_two_five(1024),
            [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
        );
    }
}
