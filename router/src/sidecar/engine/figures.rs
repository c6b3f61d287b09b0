//! Engine metrics (Prometheus text) in Weir's one vocabulary. Whatever is unknown or malformed is skipped; names are
//! those of vLLM 0.32 and SGLang 0.5.

use weir_wire::sidecar::EngineFigures;

/// Lines looked at; a vLLM server has about 800, with many adapters a few thousand.
const MAX_LINES: usize = 50_000;
/// Longest line looked at, bytes; `cache_config_info` has about 1,000.
const MAX_LINE: usize = 64 << 10;

/// A sum over series (one per data-parallel rank); `None` without any.
#[derive(Default, Clone, Copy)]
struct Sum {
    total: f64,
    series: u32,
}

impl Sum {
    fn add(&mut self, value: f64) {
        self.total += value;
        self.series += 1;
    }

    fn tokens(self) -> Option<u64> {
        // The cast saturates, and no negative value is ever added.
        (self.series > 0).then_some(self.total as u64)
    }

    fn count(self) -> Option<u32> {
        (self.series > 0).then_some(self.total as u32)
    }

    fn mean(self) -> Option<f64> {
        (self.series > 0).then(|| (self.total / f64::from(self.series)).clamp(0.0, 1.0))
    }
}

#[derive(Default)]
struct Sums {
    running: Sum,
    waiting: Sum,
    usage: Sum,
    capacity: Sum,
    prompt: Sum,
    cached: Sum,
    prefix_hits: Sum,
    generation: Sum,
}

/// The figures of an engine's metrics page; `None` when it does not say how many requests run and wait.
#[must_use]
pub fn parse_metrics(page: &str) -> Option<EngineFigures> {
    let mut sums = Sums::default();
    for series in page
        .lines()
        .take(MAX_LINES)
        .filter(|line| line.len() <= MAX_LINE)
        .filter_map(Series::read)
    {
        sums.add(&series);
    }
    Some(EngineFigures {
        running: sums.running.count()?,
        waiting: sums.waiting.count()?,
        kv_usage: sums.usage.mean(),
        kv_capacity_tokens: sums.capacity.tokens(),
        prompt_tokens_total: sums.prompt.tokens(),
        cached_tokens_total: sums.cached.tokens().or(sums.prefix_hits.tokens()),
        generation_tokens_total: sums.generation.tokens(),
    })
}

impl Sums {
    fn add(&mut self, series: &Series<'_>) {
        let (sum, value) = match series.name {
            "vllm:num_requests_running" | "sglang:num_running_reqs" => (&mut self.running, series.value),
            "vllm:num_requests_waiting" | "sglang:num_queue_reqs" => (&mut self.waiting, series.value),
            "vllm:kv_cache_usage_perc" | "sglang:token_usage" => (&mut self.usage, series.value),
            "vllm:prompt_tokens_total" | "sglang:prompt_tokens_total" => (&mut self.prompt, series.value),
            "vllm:prompt_tokens_cached_total" | "sglang:cached_tokens_total" => {
                (&mut self.cached, series.value)
            }
            "vllm:prefix_cache_hits_total" => (&mut self.prefix_hits, series.value),
            "vllm:generation_tokens_total" | "sglang:generation_tokens_total" => {
                (&mut self.generation, series.value)
            }
            "sglang:max_total_num_tokens" => (&mut self.capacity, series.value),
            "vllm:cache_config_info" => match series.cache_tokens() {
                Some(tokens) => (&mut self.capacity, tokens),
                None => return,
            },
            _ => return,
        };
        if value.is_finite() && value >= 0.0 && !series.is_repeated() {
            sum.add(value);
        }
    }
}

/// One sample line.
struct Series<'a> {
    name: &'a str,
    /// Between the braces.
    labels: &'a str,
    value: f64,
}

impl<'a> Series<'a> {
    /// Reads `name{label="text",…} value [time]`.
    fn read(line: &'a str) -> Option<Self> {
        let line = line.trim();
        let end = line.find(|it: char| it == '{' || it.is_whitespace())?;
        let (name, rest) = line.split_at(end);
        if name.is_empty() || name.starts_with('#') {
            return None;
        }
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_at(closing_brace(rest)?),
            None => ("", rest),
        };
        let value = rest
            .trim_start_matches('}')
            .split_whitespace()
            .next()?
            .parse()
            .ok()?;
        Some(Self { name, labels, value })
    }

    /// SGLang says some things more than once: per tensor- and pipeline-parallel rank, of which the first holds for all
    /// (with attention in data parallel, each `dp_rank` speaks for itself, whatever its `tp_rank`), and gauges once
    /// more per priority, of which the empty one is the total. Counters have no total: each priority adds to them.
    fn is_repeated(&self) -> bool {
        if !self.name.starts_with("sglang:") {
            return false;
        }
        let later = |label| self.label(label).is_some_and(|rank| rank != "0");
        let later_rank = later("pp_rank") || (later("tp_rank") && self.label("dp_rank").is_none());
        let part = !self.name.ends_with("_total") && self.label("priority").is_some_and(|it| !it.is_empty());
        later_rank || part
    }

    /// The text of a label, as written (escapes are left; the labels that are read have none).
    fn label(&self, name: &str) -> Option<&'a str> {
        let mut rest = self.labels;
        loop {
            let (key, after) = rest.split_once('=')?;
            let after = after.trim_start().strip_prefix('"')?;
            let end = closing_quote(after)?;
            if key.trim_matches([',', ' ']) == name {
                return after.get(..end);
            }
            rest = after.get(end + 1..)?;
        }
    }

    /// KV capacity from `cache_config_info`: newer engines say it in tokens, older ones in blocks.
    fn cache_tokens(&self) -> Option<f64> {
        let number = |label| self.label(label).and_then(|text| text.parse::<f64>().ok());
        number("kv_cache_size_tokens").or_else(|| Some(number("num_gpu_blocks")? * number("block_size")?))
    }
}

/// Where the first quote that is not escaped stands.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at),
            _ => {}
        }
    }
    None
}

/// Where the first brace outside quotes stands.
fn closing_brace(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: EngineFigures = EngineFigures {
        running: 0,
        waiting: 0,
        kv_usage: None,
        kv_capacity_tokens: None,
        prompt_tokens_total: None,
        cached_tokens_total: None,
        generation_tokens_total: None,
    };
    const LOAD: &str =
        "vllm:num_requests_running{engine=\"0\"} 2.0\nvllm:num_requests_waiting{engine=\"0\"} 1.0\n";

    fn check(page: &str, expected: Option<EngineFigures>) {
        assert_eq!(parse_metrics(page), expected, "{page}");
    }

    #[test]
    fn vllm_is_read_and_ranks_are_summed() {
        let page = r#"
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 4.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 1.0
vllm:num_requests_waiting{engine="1",model_name="tiny"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="tiny"} 0.75
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",kv_cache_size_tokens="4096",num_gpu_blocks="300"} 1.0
vllm:cache_config_info{block_size="16",cache_dtype="a}\"b",engine="1",kv_cache_size_tokens="None",num_gpu_blocks="256"} 1.0
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 1.795e+03
vllm:prompt_tokens_created{engine="0",model_name="tiny"} 1.7e+09
vllm:prompt_tokens_cached_total{engine="0",model_name="tiny"} 700.0
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 999.0
vllm:generation_tokens_total{engine="0",model_name="tiny"} 12.0
"#;
        check(
            page,
            Some(EngineFigures {
                running: 7,
                waiting: 1,
                kv_usage: Some(0.5),
                kv_capacity_tokens: Some(8192),
                prompt_tokens_total: Some(1795),
                cached_tokens_total: Some(700),
                generation_tokens_total: Some(12),
            }),
        );
    }

    #[test]
    fn sglang_is_read_and_tensor_ranks_are_not_summed() {
        let page = r#"
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 5
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="1"} 5
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 2
sglang:token_usage{model_name="m",tp_rank="0"} 0.5
sglang:max_total_num_tokens{model_name="m",tp_rank="0"} 1000
sglang:cached_tokens_total{cache_source="device",model_name="m"} 10
sglang:cached_tokens_total{cache_source="host",model_name="m"} 5
"#;
        check(
            page,
            Some(EngineFigures {
                running: 5,
                waiting: 2,
                kv_usage: Some(0.5),
                kv_capacity_tokens: Some(1000),
                cached_tokens_total: Some(15),
                ..EMPTY
            }),
        );
    }

    /// The page is what prometheus_client makes, in multi-process mode, of the names, labels and texts in SGLang 0.5.23:
    /// two ranks of data-parallel attention, priority scheduling on.
    #[test]
    fn sglangs_page_is_read_with_its_totals_and_ranks() {
        check(
            include_str!("sglang-metrics.txt"),
            Some(EngineFigures {
                running: 8,
                waiting: 3,
                kv_usage: Some(0.375),
                kv_capacity_tokens: Some(200_000),
                prompt_tokens_total: Some(3_000),
                cached_tokens_total: Some(850),
                generation_tokens_total: Some(60),
            }),
        );
    }

    #[test]
    fn what_is_missing_is_unknown_and_what_is_malformed_is_skipped() {
        let load = EngineFigures {
            running: 2,
            waiting: 1,
            ..EMPTY
        };
        check("", None);
        check("vllm:num_requests_running 2\n", None);
        check(LOAD, Some(load));
        for junk in [
            "vllm:kv_cache_usage_perc{",
            "vllm:kv_cache_usage_perc{engine=\"0} 1",
            "vllm:kv_cache_usage_perc NaN",
            "vllm:kv_cache_usage_perc +Inf",
            "vllm:prompt_tokens_total -5",
            "vllm:cache_config_info{block_size} 1",
            "vllm:cache_config_info{num_gpu_blocks=\"5\"} 1",
            "{} 1",
            "} 3",
            "=\"\u{e9}",
        ] {
            check(&format!("{junk}\n{LOAD}{junk}"), Some(load));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_page_is_too_strange(page in r#"(vllm:(cache_config_info|num_requests_running)|[{}="\\, a1#\n]|\PC)*"#) {
            let _ = parse_metrics(&page);
        }
    }

    #[test]
    fn absurd_values_saturate() {
        let figures = parse_metrics(&format!(
            "{LOAD}vllm:num_requests_running 1e300\nvllm:prompt_tokens_total 1e300\n"
        ));
        let figures = figures.unwrap();
        assert_eq!(
            (figures.running, figures.prompt_tokens_total),
            (u32::MAX, Some(u64::MAX))
        );
    }
}
