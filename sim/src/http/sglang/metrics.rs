//! `/metrics` with SGLang's names and labels (`engine-interface.md` §2.6). Series appear with their first value, labels
//! in alphabetical order, and counters have no `_created`: that is Prometheus' multi-process registry.

use std::fmt::Write;

use http::{Response, StatusCode};

use super::{hit_rate, total_tokens};
use crate::{
    driver::{Command, View},
    engine::Policy,
    http::{App, body::AnswerBody, empty, with_type},
};

const KIND: &str = "text/plain; version=1.0.0; charset=utf-8";

/// Answers the page; 503 when the engine's task is gone.
pub(super) async fn page(app: &App) -> Response<AnswerBody> {
    let Some(view) = app.engine.ask(Command::View).await else {
        return empty(StatusCode::SERVICE_UNAVAILABLE);
    };
    with_type(StatusCode::OK, KIND, render(app, &view))
}

fn render(app: &App, view: &View) -> String {
    let mut common = vec![
        ("engine_type", "unified"),
        ("model_name", app.options.canonical_name()),
    ];
    if app.settings.policy == Policy::Priority {
        common.push(("priority", ""));
    }
    let ranks = [("moe_ep_rank", "0"), ("pp_rank", "0"), ("tp_rank", "0")];
    let scheduler = labels(&common, &ranks);
    let mut text = String::with_capacity(8 << 10);
    for (name, value) in gauges(app, view) {
        head(&mut text, name, "gauge");
        let _ = writeln!(text, "sglang:{name}{{{scheduler}}} {value:?}");
    }
    for (name, own, value) in counters(view) {
        head(&mut text, name, "counter");
        if value > 0 {
            let labels = labels(&common, own);
            let _ = writeln!(text, "sglang:{name}{{{labels}}} {:?}", value as f64);
        }
    }
    text
}

/// Writing to a string cannot fail.
fn head(text: &mut String, name: &str, kind: &str) {
    let _ = writeln!(
        text,
        "# HELP sglang:{name} As SGLang exports it.\n# TYPE sglang:{name} {kind}"
    );
}

/// Labels as text, sorted by name.
fn labels(common: &[Label<'_>], own: &[Label<'_>]) -> String {
    let mut all = [common, own].concat();
    all.sort_unstable();
    let texts: Vec<String> = all
        .iter()
        .map(|(name, value)| format!("{name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")))
        .collect();
    texts.join(",")
}

fn gauges(app: &App, view: &View) -> Vec<(&'static str, f64)> {
    let total = total_tokens(app) as f64;
    let used = (view.load.kv_usage * total).round();
    vec![
        ("num_running_reqs", view.load.running as f64),
        ("num_queue_reqs", view.load.waiting as f64),
        ("num_grammar_queue_reqs", 0.0),
        ("num_paused_reqs", 0.0),
        ("num_retracted_reqs", 0.0),
        ("cache_hit_rate", hit_rate(view)),
        ("token_usage", view.load.kv_usage),
        ("full_token_usage", view.load.kv_usage),
        ("num_used_tokens", used),
        ("kv_used_tokens", used),
        ("kv_available_tokens", total - used),
        ("max_total_num_tokens", total),
        ("page_size", f64::from(app.settings.block_size)),
        ("num_pages", f64::from(app.settings.blocks - 1)),
        ("context_len", f64::from(app.settings.max_model_len)),
    ]
}

type Label<'a> = (&'a str, &'a str);

/// Name, labels besides the common ones, value.
type Counter = (&'static str, &'static [Label<'static>], u64);

fn counters(view: &View) -> [Counter; 6] {
    // Streams and plain answers are not told apart.
    const STREAMING: &[Label<'_>] = &[("is_streaming", "true")];
    let stats = &view.stats;
    let finished = stats.finished_stop + stats.finished_length;
    [
        ("prompt_tokens_total", STREAMING, stats.prompt_tokens),
        ("generation_tokens_total", STREAMING, stats.generation_tokens),
        (
            "cached_tokens_total",
            &[("cache_source", "device")],
            stats.prompt_tokens_cached,
        ),
        ("num_requests_total", STREAMING, finished),
        ("num_aborted_requests_total", &[], stats.finished_abort),
        ("num_retracted_requests_total", &[], stats.num_preemptions),
    ]
}
