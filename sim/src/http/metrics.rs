//! `/metrics`: vLLM's names, labels and buckets (`engine-interface.md` §2).

use std::{
    fmt::{Display, Write},
    sync::PoisonError,
};

use http::{Response, StatusCode};

use super::{App, body::AnswerBody, empty, with_type};
use crate::{driver::View, engine::stats::Histogram};

const KIND: &str = "text/plain; version=1.0.0; charset=utf-8";

/// Answers the page; 503 when the engine's task is gone.
pub(super) async fn page(app: &App) -> Response<AnswerBody> {
    let Some(view) = app.engine.ask(crate::driver::Command::View).await else {
        return empty(StatusCode::SERVICE_UNAVAILABLE);
    };
    with_type(StatusCode::OK, KIND, render(app, &view))
}

/// A page under construction. Writing to a string cannot fail.
struct Page {
    text: String,
    /// `engine="0",model_name="…"`.
    labels: String,
    /// Seconds since 1970 at which all series began.
    created: f64,
}

fn float(value: f64) -> String {
    if value.abs() >= 1e16 {
        format!("{value:e}")
    } else {
        format!("{value:?}")
    }
}

impl Page {
    fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.text, "{name}{{{labels}}} {value}");
    }

    fn head(&mut self, name: &str, kind: &str) {
        let _ = writeln!(
            self.text,
            "# HELP {name} As vLLM exports it.\n# TYPE {name} {kind}"
        );
    }

    /// One gauge; `more` are labels that sort behind the common ones.
    fn gauges(&mut self, name: &str, series: &[(&str, f64)]) {
        self.head(name, "gauge");
        for (more, value) in series {
            let labels = format!("{}{more}", self.labels);
            self.line(name, &labels, float(*value));
        }
    }

    fn gauge(&mut self, name: &str, value: f64) {
        self.gauges(name, &[("", value)]);
    }

    /// One counter with its creation times; label sets are complete.
    fn counters(&mut self, name: &str, series: &[(String, u64)]) {
        self.head(&format!("{name}_total"), "counter");
        for (labels, value) in series {
            self.line(&format!("{name}_total"), labels, float(*value as f64));
        }
        self.head(&format!("{name}_created"), "gauge");
        for (labels, _) in series {
            let created = float(self.created);
            self.line(&format!("{name}_created"), labels, created);
        }
    }

    fn counter(&mut self, name: &str, value: u64) {
        let labels = self.labels.clone();
        self.counters(name, &[(labels, value)]);
    }

    /// Counter with one more label that sorts behind the common ones.
    fn counter_by(&mut self, name: &str, label: &str, series: &[(&str, u64)]) {
        let with = |value: &str| format!("{},{label}=\"{value}\"", self.labels);
        let series: Vec<_> = series
            .iter()
            .map(|(value, count)| (with(value), *count))
            .collect();
        self.counters(name, &series);
    }

    fn histogram(&mut self, name: &str, histogram: &Histogram) {
        self.head(name, "histogram");
        let labels = self.labels.clone();
        // `le` sorts between `engine` and `model_name`.
        let bucket = |le: &str| labels.replacen(",model_name", &format!(",le=\"{le}\",model_name"), 1);
        for (bound, count) in histogram.buckets() {
            self.line(
                &format!("{name}_bucket"),
                &bucket(&float(bound)),
                float(count as f64),
            );
        }
        let count = float(histogram.count() as f64);
        self.line(&format!("{name}_bucket"), &bucket("+Inf"), &count);
        self.line(&format!("{name}_count"), &labels, &count);
        self.line(&format!("{name}_sum"), &labels, float(histogram.sum()));
        self.head(&format!("{name}_created"), "gauge");
        let created = float(self.created);
        self.line(&format!("{name}_created"), &labels, created);
    }
}

fn render(app: &App, view: &View) -> String {
    let model = app
        .options
        .canonical_name()
        .replace('\\', "\\\\")
        .replace('"', "\\\"");
    let mut page = Page {
        text: String::with_capacity(64 << 10),
        labels: format!("engine=\"0\",model_name=\"{model}\""),
        created: app.engine.clock().unix_ms(std::time::Duration::ZERO) as f64 / 1000.0,
    };
    gauges(&mut page, view);
    cache_config(&mut page, app);
    counters(&mut page, view, &model);
    histograms(&mut page, view);
    http_counts(&mut page, app);
    page.text
}

fn gauges(page: &mut Page, view: &View) {
    let load = view.load;
    page.gauge("vllm:num_requests_running", load.running as f64);
    page.gauge("vllm:num_requests_waiting", load.waiting as f64);
    page.gauges(
        "vllm:num_requests_waiting_by_reason",
        &[
            (",reason=\"capacity\"", load.waiting as f64),
            (",reason=\"deferred\"", 0.0),
        ],
    );
    page.gauge("vllm:kv_cache_usage_perc", load.kv_usage);
    let state = |level: Option<u8>| f64::from(u8::from(view.rest.filter(|level| *level > 0) == level));
    page.gauges(
        "vllm:engine_sleep_state",
        &[
            (",sleep_state=\"awake\"", state(None)),
            (",sleep_state=\"weights_offloaded\"", state(Some(1))),
            (",sleep_state=\"discard_all\"", state(Some(2))),
        ],
    );
    page.gauge("vllm:sleep_mode_operations_in_flight", 0.0);
}

fn cache_config(page: &mut Page, app: &App) {
    let settings = &app.settings;
    let tokens = u64::from(settings.blocks - 1) * u64::from(settings.block_size);
    let concurrency = tokens as f64 / f64::from(settings.max_model_len);
    let caching = if settings.prefix_caching { "True" } else { "False" };
    page.head("vllm:cache_config_info", "gauge");
    let labels = format!(
        "block_size=\"{}\",cache_dtype=\"auto\",enable_prefix_caching=\"{caching}\",engine=\"0\",\
         gpu_memory_utilization=\"0.92\",kv_cache_max_concurrency=\"{concurrency:.2}\",\
         kv_cache_size_tokens=\"{tokens}\",num_gpu_blocks=\"{}\",prefix_caching_hash_algo=\"sha256\"",
        settings.block_size, settings.blocks
    );
    page.line("vllm:cache_config_info", &labels, "1.0");
}

fn counters(page: &mut Page, view: &View, model: &str) {
    let stats = &view.stats;
    page.counter("vllm:prefix_cache_queries", stats.prefix_cache_queries);
    page.counter("vllm:prefix_cache_hits", stats.prefix_cache_hits);
    for name in [
        "external_prefix_cache_queries",
        "external_prefix_cache_hits",
        "mm_cache_queries",
        "mm_cache_hits",
    ] {
        page.counter(&format!("vllm:{name}"), 0);
    }
    page.counter("vllm:num_preemptions", stats.num_preemptions);
    page.counter("vllm:prompt_tokens", stats.prompt_tokens);
    let cached = stats.prompt_tokens_cached;
    page.counter_by(
        "vllm:prompt_tokens_by_source",
        "source",
        &[
            ("local_compute", stats.prompt_tokens - cached),
            ("local_cache_hit", cached),
            ("external_kv_transfer", 0),
        ],
    );
    page.counter("vllm:prompt_tokens_cached", cached);
    let rest = ["host", "p2p", "disk", "external_unspecified"].map(|source| (source, 0));
    let sources: Vec<_> = [("device", cached)].into_iter().chain(rest).collect();
    page.counter_by("vllm:prompt_tokens_cached_by_source", "source", &sources);
    page.counter("vllm:generation_tokens", stats.generation_tokens);
    // `finished_reason` sorts between `engine` and `model_name`.
    let by_reason = [
        ("stop", stats.finished_stop),
        ("length", stats.finished_length),
        ("abort", stats.finished_abort),
        ("error", 0),
        ("repetition", 0),
    ];
    let labels = |reason| format!("engine=\"0\",finished_reason=\"{reason}\",model_name=\"{model}\"");
    page.counters(
        "vllm:request_success",
        &by_reason.map(|(reason, count)| (labels(reason), count)),
    );
    let rejections = [
        ("max_num_queued_reqs", stats.rejected_requests),
        ("max_num_queued_tokens", stats.rejected_tokens),
    ];
    let labels = |reason| format!("model_name=\"{model}\",reason=\"{reason}\"");
    page.counters(
        "vllm:admission_rejections",
        &rejections.map(|(reason, count)| (labels(reason), count)),
    );
    for name in [
        "estimated_flops_per_gpu",
        "estimated_read_bytes_per_gpu",
        "estimated_write_bytes_per_gpu",
    ] {
        page.counter(&format!("vllm:{name}"), 0);
    }
}

fn histograms(page: &mut Page, view: &View) {
    let stats = &view.stats;
    for (name, histogram) in [
        ("time_to_first_token_seconds", &stats.time_to_first_token),
        ("inter_token_latency_seconds", &stats.inter_token_latency),
        (
            "request_time_per_output_token_seconds",
            &stats.time_per_output_token,
        ),
        ("e2e_request_latency_seconds", &stats.e2e_request_latency),
        ("request_queue_time_seconds", &stats.request_queue_time),
        ("request_inference_time_seconds", &stats.request_inference_time),
        ("request_prefill_time_seconds", &stats.request_prefill_time),
        ("request_decode_time_seconds", &stats.request_decode_time),
        ("request_prompt_tokens", &stats.request_prompt_tokens),
        ("request_generation_tokens", &stats.request_generation_tokens),
        (
            "request_max_num_generation_tokens",
            &stats.request_max_num_generation_tokens,
        ),
        ("request_params_max_tokens", &stats.request_params_max_tokens),
        (
            "request_prefill_kv_computed_tokens",
            &stats.request_prefill_kv_computed_tokens,
        ),
        ("iteration_tokens_total", &stats.iteration_tokens),
        ("request_params_n", &stats.request_params_n),
        ("request_num_preemptions", &stats.request_num_preemptions),
    ] {
        page.histogram(&format!("vllm:{name}"), histogram);
    }
}

fn http_counts(page: &mut Page, app: &App) {
    page.head("http_requests_total", "counter");
    let counts = app.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for ((handler, method, class), count) in counts {
        let labels = format!("handler=\"{handler}\",method=\"{method}\",status=\"{class}xx\"");
        page.line("http_requests_total", &labels, float(count as f64));
    }
    page.head("process_start_time_seconds", "gauge");
    let _ = writeln!(page.text, "process_start_time_seconds {}", float(page.created));
}
