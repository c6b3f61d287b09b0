//! SGLang's command line: `python3 -m sglang.launch_server FLAGS`, or `engine_sim serve --flavour sglang FLAGS`.

use clap::{ArgAction, CommandFactory, Parser, ValueEnum};

use super::{Simulation, drop_unknown, host, seconds};
use crate::{
    engine::Policy,
    flavour::{Flavour, Sglang},
    options::Options,
};

/// Tokens per page unless told otherwise.
const PAGE_SIZE: u32 = 1;

/// Simulator of an SGLang server.
#[derive(Debug, Parser)]
#[command(name = "sglang.launch_server", version, args_override_self = true)]
struct Launch {
    /// Model source: only a name here.
    #[arg(long, alias = "model")]
    model_path: String,
    /// The one name that the server goes by.
    #[arg(long)]
    served_model_name: Option<String>,
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    #[arg(long, default_value_t = 30000)]
    port: u16,
    #[arg(long)]
    context_length: Option<u32>,
    #[arg(long)]
    max_running_requests: Option<u32>,
    #[arg(long)]
    max_queued_requests: Option<u32>,
    #[arg(long)]
    chunked_prefill_size: Option<u32>,
    #[arg(long, default_value_t = PAGE_SIZE)]
    page_size: u32,
    #[arg(long)]
    max_total_tokens: Option<u32>,
    #[arg(long)]
    disable_radix_cache: bool,
    #[arg(long, value_enum, default_value = "fcfs")]
    schedule_policy: SchedulePolicy,
    #[arg(long)]
    enable_priority_scheduling: bool,
    #[arg(long)]
    schedule_low_priority_values_first: bool,
    #[arg(long, allow_hyphen_values = true)]
    default_priority_value: Option<i64>,
    #[arg(long)]
    abort_on_priority_when_disabled: bool,
    #[arg(long)]
    enable_metrics: bool,
    #[arg(long)]
    enable_cache_report: bool,
    #[arg(long)]
    stream_response_default_include_usage: bool,
    #[arg(long, action = ArgAction::Set)]
    api_key: Option<String>,
    #[arg(long, default_value_t = 1)]
    stream_interval: u32,
    #[command(flatten)]
    simulation: Simulation,
    #[arg(long, env = "SGLANG_TIMEOUT_KEEP_ALIVE", default_value_t = 5, hide = true)]
    timeout_keep_alive: u64,
}

/// Orders that the simulator knows; the others are first come, first served here.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum SchedulePolicy {
    Fcfs,
    Lpm,
    Random,
    DfsWeight,
    Lof,
    Priority,
    RoutingKey,
    Hrrn,
    ShortestPrefillFirst,
}

/// Reads SGLang's flags (program name first), as [`super::parse`].
pub(super) fn parse(arguments: Vec<String>) -> Result<(Options, Vec<String>), clap::Error> {
    let (known, ignored) = drop_unknown(arguments, &Launch::command());
    let launch = Launch::try_parse_from(known)?;
    if launch.enable_priority_scheduling
        && !matches!(launch.schedule_policy, SchedulePolicy::Fcfs | SchedulePolicy::Lof)
    {
        return Err(refused(
            "To use priority scheduling, schedule_policy must be 'fcfs' or 'lof'.",
        ));
    }
    let name = launch.served_model_name.as_ref().unwrap_or(&launch.model_path);
    if name.contains(':') {
        return Err(refused(
            "served_model_name cannot contain a colon (':') character.",
        ));
    }
    Ok((options(launch)?, ignored))
}

fn refused(message: &str) -> clap::Error {
    Launch::command().error(clap::error::ErrorKind::ValueValidation, message)
}

fn options(launch: Launch) -> Result<Options, clap::Error> {
    let page = launch.page_size.max(1);
    // SGLang bounds the waiting; the engine's own bound counts the running too.
    let running = launch
        .max_running_requests
        .unwrap_or(launch.simulation.profile.max_sequences);
    Ok(Options {
        flavour: Flavour::Sglang(Sglang {
            metrics: launch.enable_metrics,
            low_values_first: launch.schedule_low_priority_values_first,
            default_priority: launch.default_priority_value,
            abort_on_priority: launch.abort_on_priority_when_disabled,
        }),
        host: host(&launch.host)?,
        port: launch.port,
        served_names: launch.served_model_name.into_iter().collect(),
        model: launch.model_path,
        max_model_len: launch.context_length,
        max_num_seqs: launch.max_running_requests,
        max_num_batched_tokens: launch.chunked_prefill_size,
        block_size: page,
        num_gpu_blocks: launch.max_total_tokens.map(|tokens| tokens / page + 1),
        prefix_caching: !launch.disable_radix_cache,
        policy: if launch.enable_priority_scheduling {
            Policy::Priority
        } else {
            Policy::Fcfs
        },
        max_num_queued_reqs: launch
            .max_queued_requests
            .map(|waiting| waiting.saturating_add(running)),
        api_keys: launch.api_key.into_iter().collect(),
        prompt_tokens_details: launch.enable_cache_report,
        force_include_usage: launch.stream_response_default_include_usage,
        keep_alive: seconds(launch.timeout_keep_alive),
        stream_interval: launch.stream_interval,
        ..launch.simulation.options()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parse_line(line: &str) -> Result<(Options, Vec<String>), clap::Error> {
        super::super::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_operators_command_line_is_understood() {
        let (options, ignored) = parse_line(
            "python3 -m sglang.launch_server --model-path org/name --served-model-name coder --host 127.0.0.1 \
             --port 30000 --enable-metrics --enable-cache-report --schedule-low-priority-values-first --revision main \
             --tp 4 --startup=2s --profile=8b-h100 --time-scale=0.1 --seed=1",
        )
        .unwrap();
        assert_eq!(ignored, ["--revision", "main", "--tp", "4"]);
        assert_eq!(
            (options.model.as_str(), options.names()),
            ("org/name", &["coder".to_owned()][..])
        );
        assert_eq!((options.port, options.block_size), (30_000, 1));
        assert!(options.host.is_loopback() && options.prompt_tokens_details);
        let switches = options.flavour.sglang().unwrap();
        assert!(switches.metrics && switches.low_values_first && !switches.abort_on_priority);
        assert_eq!(options.startup, Duration::from_secs(2));
    }

    #[test]
    fn both_ways_to_call_it_are_the_same() {
        let flags = "--model-path m --max-running-requests 7 --enable-priority-scheduling";
        let direct = parse_line(&format!("python3 -m sglang.launch_server {flags}")).unwrap();
        for way in ["serve --flavour sglang", "serve --flavour=sglang"] {
            let named = parse_line(&format!("engine_sim {way} {flags}")).unwrap();
            assert_eq!(format!("{named:?}"), format!("{direct:?}"));
        }
        assert_eq!(
            (direct.0.max_num_seqs, direct.0.policy),
            (Some(7), Policy::Priority)
        );
        let (vllm, _) = parse_line("engine_sim serve --flavour vllm m").unwrap();
        assert_eq!(vllm.flavour, Flavour::Vllm);
    }

    #[test]
    fn what_sglang_refuses_is_refused() {
        for line in [
            "serve --flavour sglang",
            "serve --flavour mlc m",
            "serve --flavour sglang --model-path m --served-model-name a:b",
            "serve --flavour sglang --model-path m --enable-priority-scheduling --schedule-policy lpm",
            "serve --flavour sglang --model-path m positional",
        ] {
            assert!(parse_line(&format!("engine_sim {line}")).is_err(), "{line}");
        }
    }
}
