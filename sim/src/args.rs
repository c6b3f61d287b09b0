//! The command line: `engine_sim serve MODEL [vLLM's flags] [the simulator's own]`, or SGLang's ([`sglang`]).

mod sglang;

use std::{net::IpAddr, time::Duration};

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::{
    engine::{Policy, profile::Profile},
    flavour::Flavour,
    options::Options,
};

/// Simulator of a vLLM server.
#[derive(Debug, Parser)]
#[command(name = "engine_sim", version, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve a model. Flags of `vllm serve` that mean nothing to a simulator are accepted with a warning.
    Serve(Box<Serve>),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SchedulingPolicy {
    Fcfs,
    Priority,
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Model source: only a name here.
    model: String,
    #[arg(long, num_args = 1.., action = ArgAction::Set)]
    served_model_name: Vec<String>,
    #[arg(long, default_value = "0.0.0.0")]
    host: String,
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Tokens; `32k` and `auto` are understood.
    #[arg(long, value_parser = context_length, allow_hyphen_values = true)]
    max_model_len: Option<ContextLength>,
    #[arg(long, value_parser = size)]
    max_num_seqs: Option<u32>,
    #[arg(long, value_parser = size)]
    max_num_batched_tokens: Option<u32>,
    #[arg(long, default_value_t = 16)]
    block_size: u32,
    #[arg(long)]
    num_gpu_blocks_override: Option<u32>,
    #[arg(long, value_enum, default_value = "fcfs")]
    scheduling_policy: SchedulingPolicy,
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    enable_prefix_caching: bool,
    #[arg(long)]
    no_enable_prefix_caching: bool,
    #[arg(long)]
    max_num_queued_reqs: Option<u32>,
    #[arg(long)]
    max_num_queued_tokens: Option<u64>,
    #[arg(long, num_args = 1.., action = ArgAction::Set, env = "VLLM_API_KEY", hide_env_values = true)]
    api_key: Vec<String>,
    #[arg(long)]
    enable_prompt_tokens_details: bool,
    #[arg(long)]
    enable_force_include_usage: bool,
    #[arg(long)]
    enable_request_id_headers: bool,
    #[arg(long)]
    enable_server_load_tracking: bool,
    #[arg(long)]
    enable_sleep_mode: bool,
    /// Seconds that SIGTERM leaves to requests in flight.
    #[arg(long, default_value_t = 0)]
    shutdown_timeout: u64,
    /// Seconds between comments in a silent stream; 0 = none.
    #[arg(long, default_value_t = 0)]
    sse_keep_alive_interval: u64,
    #[arg(long, default_value_t = 1)]
    stream_interval: u32,
    #[command(flatten)]
    simulation: Simulation,
    /// As the environment variable: `1` opens the development endpoints.
    #[arg(long, env = "VLLM_SERVER_DEV_MODE", default_value = "0", hide = true)]
    dev_mode: String,
    /// As the environment variable: seconds until an idle connection is closed.
    #[arg(long, env = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", default_value_t = 5, hide = true)]
    http_timeout_keep_alive: u64,
}

/// Flags of the simulation itself, the same for every flavour.
#[derive(Debug, Args)]
struct Simulation {
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Deployment to behave like: 8b-h100, 8b-h200, 8b-a100, 8b-l4, 70b-4xh100, 70b-4xa100, tiny-cpu.
    #[arg(long, default_value = "8b-h100")]
    profile: Profile,
    /// Factor on the engine's durations; 0.1 = ten times faster. Start-up is not scaled.
    #[arg(long, default_value_t = 1.0)]
    time_scale: f64,
    /// Time during which connections are refused, e.g. `2s`, `500ms`, `1m30s`; SGLang answers in its last tenth, but
    /// 503 to `/ready`.
    #[arg(long, default_value = "0s", value_parser = duration)]
    startup: Duration,
}

impl Simulation {
    fn options(self) -> Options {
        Options {
            seed: self.seed,
            profile: self.profile,
            time_scale: self.time_scale,
            startup: self.startup,
            ..Options::default()
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContextLength {
    Auto,
    Tokens(u32),
}

/// `auto`, -1, or a size.
fn context_length(text: &str) -> Result<ContextLength, String> {
    match text {
        "auto" | "-1" => Ok(ContextLength::Auto),
        _ => size(text).map(ContextLength::Tokens),
    }
}

/// A number with vLLM's suffixes: k, m for powers of 1000, K, M for powers of 1024.
fn size(text: &str) -> Result<u32, String> {
    let (digits, factor) = match text.char_indices().last() {
        Some((end, 'k')) => (&text[..end], 1000.0),
        Some((end, 'K')) => (&text[..end], 1024.0),
        Some((end, 'm')) => (&text[..end], 1e6),
        Some((end, 'M')) => (&text[..end], 1_048_576.0),
        _ => (text, 1.0),
    };
    let number: f64 = digits.parse().map_err(|_| format!("`{text}` is not a number"))?;
    let value = number * factor;
    if value >= 1.0 && value <= f64::from(u32::MAX) && value.fract() == 0.0 {
        Ok(value as u32)
    } else {
        Err(format!("`{text}` is not a whole number of at least 1"))
    }
}

/// A Go-style duration: numbers with units h, m, s, ms, one after the other.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration like 90s, 500ms or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let units = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        seconds += number
            * match &rest[..units] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
        rest = &rest[units..];
    }
    if text.is_empty() {
        Err(wrong())
    } else {
        Ok(Duration::from_secs_f64(seconds))
    }
}

/// Reads a command line (program name first). Also returns the flags that were accepted and ignored.
///
/// # Errors
/// Clap's, with its exit code; help and version are such errors too.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = String>,
) -> Result<(Options, Vec<String>), clap::Error> {
    let mut arguments: Vec<String> = arguments.into_iter().collect();
    match flavour(&mut arguments).as_deref() {
        Some("sglang") => return sglang::parse(arguments),
        Some("vllm") | None => {}
        Some(other) => {
            let message = format!("--flavour is `vllm` or `sglang`, not `{other}`");
            return Err(Cli::command().error(clap::error::ErrorKind::ValueValidation, message));
        }
    }
    let mut command = Cli::command();
    command.build();
    let serve = command.find_subcommand("serve").unwrap_or(&command);
    let (known, ignored) = drop_unknown(arguments, serve);
    let Verb::Serve(serve) = Cli::try_parse_from(known)?.command;
    Ok((options(*serve)?, ignored))
}

/// Takes out what names the engine to speak like: `--flavour X` after `serve`, or Python's `-m sglang.launch_server`.
fn flavour(arguments: &mut Vec<String>) -> Option<String> {
    if arguments
        .get(1..3)
        .is_some_and(|words| words == ["-m", "sglang.launch_server"])
    {
        arguments.drain(1..3);
        return Some("sglang".to_owned());
    }
    let at = arguments
        .iter()
        .position(|word| word == "--flavour" || word.starts_with("--flavour="))?;
    let word = arguments.remove(at);
    let named = match word.split_once('=') {
        Some((_, named)) => named.to_owned(),
        None if at < arguments.len() => arguments.remove(at),
        None => String::new(),
    };
    // SGLang's flags follow the program's name.
    if named == "sglang" {
        arguments.retain(|word| word != "serve");
    }
    Some(named)
}

fn host(text: &str) -> Result<IpAddr, clap::Error> {
    match text {
        "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
        text => text.parse().map_err(|_| {
            let message = format!("`{text}` is not an IP address");
            Cli::command().error(clap::error::ErrorKind::ValueValidation, message)
        }),
    }
}

const fn seconds(value: u64) -> Duration {
    Duration::from_secs(value)
}

fn options(serve: Serve) -> Result<Options, clap::Error> {
    let host = host(&serve.host)?;
    Ok(Options {
        flavour: Flavour::Vllm,
        model: serve.model,
        served_names: serve.served_model_name,
        host,
        port: serve.port,
        max_model_len: match serve.max_model_len {
            Some(ContextLength::Tokens(tokens)) => Some(tokens),
            Some(ContextLength::Auto) | None => None,
        },
        max_num_seqs: serve.max_num_seqs,
        max_num_batched_tokens: serve.max_num_batched_tokens,
        block_size: serve.block_size,
        num_gpu_blocks: serve.num_gpu_blocks_override,
        prefix_caching: !serve.no_enable_prefix_caching,
        policy: match serve.scheduling_policy {
            SchedulingPolicy::Fcfs => Policy::Fcfs,
            SchedulingPolicy::Priority => Policy::Priority,
        },
        max_num_queued_reqs: serve.max_num_queued_reqs,
        max_num_queued_tokens: serve.max_num_queued_tokens,
        api_keys: serve.api_key,
        prompt_tokens_details: serve.enable_prompt_tokens_details,
        force_include_usage: serve.enable_force_include_usage,
        request_id_headers: serve.enable_request_id_headers,
        load_tracking: serve.enable_server_load_tracking,
        sleep_mode: serve.enable_sleep_mode,
        dev_mode: serve.dev_mode == "1",
        shutdown_timeout: seconds(serve.shutdown_timeout),
        keep_alive: seconds(serve.http_timeout_keep_alive),
        sse_keep_alive: (serve.sse_keep_alive_interval > 0).then(|| seconds(serve.sse_keep_alive_interval)),
        stream_interval: serve.stream_interval,
        ..serve.simulation.options()
    })
}

/// Takes out flags that this program does not know, with their values (whatever follows up to the next flag). Model
/// sources come first, as for `vllm serve`. Underscores in flag names count as dashes.
fn drop_unknown(arguments: Vec<String>, command: &clap::Command) -> (Vec<String>, Vec<String>) {
    let takes = |name: &str| {
        let argument = command.get_arguments().find(|argument| {
            argument.get_long() == Some(name)
                || argument
                    .get_all_aliases()
                    .is_some_and(|aliases| aliases.contains(&name))
        })?;
        Some(!matches!(
            argument.get_action(),
            ArgAction::SetTrue | ArgAction::Help | ArgAction::Version
        ))
    };
    let (mut known, mut ignored) = (Vec::new(), Vec::new());
    let (mut dropping, mut value_due) = (false, false);
    for argument in arguments {
        let is_flag = argument.starts_with('-') && argument.parse::<f64>().is_err() && !value_due;
        if !is_flag {
            if dropping {
                ignored.push(argument)
            } else {
                known.push(argument)
            }
            value_due = false;
            continue;
        }
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (argument.as_str(), None),
        };
        let name = name.replace('_', "-");
        let taken = if matches!(name.as_str(), "-h" | "--help" | "-V" | "--version") {
            Some(false)
        } else {
            name.strip_prefix("--").and_then(takes)
        };
        dropping = taken.is_none();
        value_due = taken == Some(true) && value.is_none();
        let argument = value.map_or(name.clone(), |value| format!("{name}={value}"));
        if dropping {
            ignored.push(argument)
        } else {
            known.push(argument)
        }
    }
    (known, ignored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> (Options, Vec<String>) {
        let words = std::iter::once("engine_sim")
            .chain(line.split_whitespace())
            .map(str::to_owned);
        parse(words).unwrap()
    }

    #[test]
    fn the_operators_command_line_is_understood() {
        let (options, ignored) = parse_line(
            "serve org/name --served-model-name tiny alias --host 127.0.0.1 --port 8000 --shutdown-timeout 30 \
             --enable-prompt-tokens-details --startup 2s --profile 8b-h100 --time-scale 0.1 --seed 1",
        );
        assert!(ignored.is_empty(), "{ignored:?}");
        assert_eq!(options.names(), ["tiny", "alias"]);
        assert_eq!(options.model, "org/name");
        assert_eq!(options.shutdown_timeout, Duration::from_secs(30));
        assert_eq!(options.startup, Duration::from_secs(2));
        assert!(options.prompt_tokens_details);
        assert_eq!((options.profile.name, options.seed), ("8b-h100", 1));
    }

    #[test]
    fn unknown_flags_are_ignored_with_their_values() {
        let (options, ignored) = parse_line(
            "serve m --tensor-parallel-size 4 -tp 2 --kv-events-config {\"a\":1} --trust-remote-code --max_num_seqs 7 \
             --dtype=auto --port 9",
        );
        assert_eq!((options.max_num_seqs, options.port), (Some(7), 9));
        assert_eq!(
            ignored,
            [
                "--tensor-parallel-size",
                "4",
                "-tp",
                "2",
                "--kv-events-config",
                "{\"a\":1}",
                "--trust-remote-code",
                "--dtype=auto"
            ]
        );
    }

    #[test]
    fn sizes_and_switches_are_read_as_vllm_reads_them() {
        let (options, _) =
            parse_line("serve m --max-model-len 32k --no-enable-prefix-caching --max-num-seqs 1K");
        assert_eq!(
            (options.max_model_len, options.max_num_seqs),
            (Some(32_000), Some(1024))
        );
        assert!(!options.prefix_caching);
        let (options, _) =
            parse_line("serve m --max-model-len -1 --no-enable-prefix-caching --enable-prefix-caching");
        assert_eq!(options.max_model_len, None);
        assert!(options.prefix_caching);
        let (options, _) = parse_line("serve m --scheduling-policy priority --api-key a b --block-size 32");
        assert_eq!((options.policy, options.block_size), (Policy::Priority, 32));
        assert_eq!(options.api_keys, ["a", "b"]);
        let (options, _) =
            parse_line("serve m --seed 1 --served-model-name a b --seed 2 --served-model-name c");
        assert_eq!(
            (options.seed, options.served_names),
            (2, vec!["c".to_owned()]),
            "the last one counts"
        );
    }

    #[test]
    fn durations_are_go_style() {
        assert_eq!(duration("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("1.5s").unwrap(), Duration::from_millis(1500));
        for wrong in ["", "5", "s", "5x", "-1s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
