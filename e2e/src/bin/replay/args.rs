//! The command line, and what it means.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use http::Uri;
use http::header::{HOST, HeaderName, HeaderValue};
use http::uri::{Authority, Scheme};

use crate::client::Target;

const CHAT_PATH: &str = "/chat/completions";

/// Plays agent sessions against an OpenAI endpoint and records every request.
///
/// Sessions come from a trace (Claude Code sessions of kv-cache-tester, LMCache agent traces, Mooncake; plain or
/// .xz, recognised by content) or, with `--trace builtin`, from a generator with published statistics. Turns of an agent
/// follow each other with the trace's pauses; sub-agents run beside their parent. Equal blocks of the trace are equal
/// bytes of the prompts, so that prefix caches see what they would have seen.
///
/// A request ends in exactly one outcome: ok (a complete answer), failed (an error, or an answer that breaks off), lost (no
/// answer at all), cancelled (Ctrl-C or --duration). A session goes on after a failure; nothing is retried unless
/// asked. The exit code is 0 when the replay ran to its end, whatever the outcomes, and 130 when it was interrupted; the
/// summary is written in both cases.
#[derive(Debug, Parser)]
#[command(name = "replay", version)]
pub(crate) struct Args {
    /// Base URL, with or without /v1: http://host:8080, http://host/pools/NAME/v1
    #[arg(long)]
    url: String,
    /// Model name to ask for
    #[arg(long)]
    model: String,
    /// Trace file, or `builtin`
    #[arg(long)]
    trace: String,
    /// Sessions to play [default: those of the trace; builtin: 20]. More than the trace has: again, with other text
    #[arg(long)]
    sessions: Option<usize>,
    /// Closed loop: so many sessions at once [default: 4]
    #[arg(long, conflicts_with_all = ["rate", "trace_arrivals"])]
    concurrency: Option<usize>,
    /// Open loop: so many sessions a second start, as a Poisson process
    #[arg(long, conflicts_with = "trace_arrivals")]
    rate: Option<f64>,
    /// Open loop: sessions start when the trace says (traces with absolute time), scaled by --time-scale
    #[arg(long)]
    trace_arrivals: bool,
    /// Factor on all pauses: 0.1 is ten times faster
    #[arg(long, default_value_t = 1.0)]
    time_scale: f64,
    /// Longest pause in seconds, before scaling [default: none]
    #[arg(long)]
    max_pause: Option<f64>,
    /// Words per token of the trace's prompts: 0.05 sends prompts of a twentieth, with the same share reused
    #[arg(long, default_value_t = 1.0)]
    prompt_scale: f64,
    /// Factor on the length of answers [default: as --prompt-scale]
    #[arg(long)]
    output_scale: Option<f64>,
    /// Seed of the order of sessions, arrivals, texts and builtin sessions
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// First part of workflow and request ids [default: s<SEED>]; give each of several replays against one gateway its own
    #[arg(long)]
    run_id: Option<String>,
    /// Ends an agent after so many turns
    #[arg(long)]
    max_turns: Option<usize>,
    /// Ends an agent before its first prompt of more tokens, after scaling
    #[arg(long)]
    max_prompt_tokens: Option<u64>,
    /// Cuts answers to so many tokens, after scaling
    #[arg(long)]
    max_output_tokens: Option<u64>,
    /// Ask for streams (the default)
    #[arg(long, overrides_with = "no_stream")]
    stream: bool,
    /// Ask for whole answers
    #[arg(long)]
    no_stream: bool,
    /// Declare a tool, and require a call where the trace's turn ended in one
    #[arg(long)]
    tools: bool,
    /// Leave `ignore_eos` out, for servers that refuse unknown fields; answers are then shorter than in the trace
    #[arg(long)]
    no_ignore_eos: bool,
    /// Send again after a 429, when its Retry-After says
    #[arg(long)]
    retry_429: bool,
    /// A header for every request, `name: value`; may be given several times
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// Seconds after which a request is given up
    #[arg(long, default_value_t = 1800.0)]
    timeout: f64,
    /// Stop after so many seconds: no new turns, those under way are cancelled [default: none]
    #[arg(long)]
    duration: Option<f64>,
    /// Where to write one JSON line per request
    #[arg(long)]
    records: PathBuf,
    /// Where to write the summary, as JSON
    #[arg(long)]
    summary: PathBuf,
}

/// What the command line asks for, checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) target: Target,
    pub(crate) url: String,
    pub(crate) trace: TraceSource,
    pub(crate) sessions: Option<usize>,
    pub(crate) arrivals: Arrivals,
    pub(crate) seed: u64,
    pub(crate) max_turns: usize,
    pub(crate) max_prompt_tokens: Option<u64>,
    pub(crate) duration: Option<Duration>,
    pub(crate) records: PathBuf,
    pub(crate) summary: PathBuf,
    pub(crate) style: Style,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TraceSource {
    Builtin,
    File(PathBuf),
}

/// When sessions start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Arrivals {
    /// So many at once.
    Closed(usize),
    /// So many a second.
    Poisson(f64),
    /// As the trace says.
    Traced,
}

/// How each request is made and paced.
#[derive(Debug, Clone)]
pub(crate) struct Style {
    pub(crate) model: String,
    pub(crate) run_id: String,
    pub(crate) time_scale: f64,
    pub(crate) max_pause_s: f64,
    pub(crate) prompt_scale: f64,
    pub(crate) output_scale: f64,
    pub(crate) max_output_tokens: u64,
    pub(crate) stream: bool,
    pub(crate) tools: bool,
    pub(crate) ignore_eos: bool,
    pub(crate) retry_429: bool,
    pub(crate) timeout: Duration,
}

/// An option that does not fit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArgsError {
    #[error("--url {url}: {what}")]
    Url { url: String, what: &'static str },
    #[error("--{option} must be {what}")]
    Range {
        option: &'static str,
        what: &'static str,
    },
    #[error("--header `{0}` is not `name: value`")]
    Header(String),
}

impl Args {
    /// # Errors
    /// Names the option that does not fit.
    pub(crate) fn check(self) -> Result<Config, ArgsError> {
        let headers = self
            .headers
            .iter()
            .map(|text| header(text))
            .collect::<Result<Vec<_>, _>>()?;
        let style = self.style()?;
        let arrivals = match (self.rate, self.trace_arrivals) {
            (Some(rate), _) if !(rate.is_finite() && rate > 0.0) => {
                return Err(ArgsError::Range {
                    option: "rate",
                    what: "more than 0",
                });
            }
            (Some(rate), _) => Arrivals::Poisson(rate),
            (None, true) => Arrivals::Traced,
            (None, false) => Arrivals::Closed(at_least_one("concurrency", self.concurrency.unwrap_or(4))?),
        };
        Ok(Config {
            target: target(&self.url, headers)?,
            url: self.url,
            trace: match self.trace.as_str() {
                "builtin" => TraceSource::Builtin,
                path => TraceSource::File(path.into()),
            },
            sessions: self
                .sessions
                .map(|count| at_least_one("sessions", count))
                .transpose()?,
            arrivals,
            seed: self.seed,
            max_turns: at_least_one("max-turns", self.max_turns.unwrap_or(usize::MAX))?,
            max_prompt_tokens: self.max_prompt_tokens,
            duration: self
                .duration
                .map(|value| seconds("duration", value))
                .transpose()?,
            records: self.records,
            summary: self.summary,
            style,
        })
    }

    fn style(&self) -> Result<Style, ArgsError> {
        let output_scale = self.output_scale.unwrap_or(self.prompt_scale);
        if !(0.001..=1.0).contains(&self.prompt_scale) {
            return Err(ArgsError::Range {
                option: "prompt-scale",
                what: "from 0.001 to 1",
            });
        }
        for (option, value) in [
            ("time-scale", self.time_scale),
            ("max-pause", self.max_pause.unwrap_or(0.0)),
            ("output-scale", output_scale),
        ] {
            if !(0.0..=1e6).contains(&value) {
                return Err(ArgsError::Range {
                    option,
                    what: "from 0 to a million",
                });
            }
        }
        let run_id = self.run_id.clone().unwrap_or_else(|| format!("s{}", self.seed));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if run_id.is_empty() || run_id.len() > 64 || !run_id.bytes().all(plain) {
            let what = "1 to 64 letters, digits, dots, dashes or underscores";
            return Err(ArgsError::Range {
                option: "run-id",
                what,
            });
        }
        Ok(Style {
            model: self.model.clone(),
            run_id,
            time_scale: self.time_scale,
            max_pause_s: self.max_pause.unwrap_or(f64::INFINITY),
            prompt_scale: self.prompt_scale,
            output_scale,
            max_output_tokens: self.max_output_tokens.unwrap_or(u64::MAX).max(1),
            stream: self.stream || !self.no_stream,
            tools: self.tools,
            ignore_eos: !self.no_ignore_eos,
            retry_429: self.retry_429,
            timeout: seconds("timeout", self.timeout)?,
        })
    }
}

fn at_least_one(option: &'static str, count: usize) -> Result<usize, ArgsError> {
    if count == 0 {
        Err(ArgsError::Range {
            option,
            what: "at least 1",
        })
    } else {
        Ok(count)
    }
}

fn seconds(option: &'static str, value: f64) -> Result<Duration, ArgsError> {
    let range = ArgsError::Range {
        option,
        what: "more than 0 and at most ten million seconds",
    };
    if value > 0.0 && value <= 1e7 {
        Ok(Duration::from_secs_f64(value))
    } else {
        Err(range)
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), ArgsError> {
    let bad = || ArgsError::Header(text.to_owned());
    let (name, value) = text.split_once(':').ok_or_else(bad)?;
    let name = HeaderName::try_from(name.trim()).map_err(|_| bad())?;
    let value = HeaderValue::try_from(value.trim()).map_err(|_| bad())?;
    Ok((name, value))
}

fn target(url: &str, headers: Vec<(HeaderName, HeaderValue)>) -> Result<Target, ArgsError> {
    let bad = |what| ArgsError::Url {
        url: url.to_owned(),
        what,
    };
    let uri = Uri::try_from(url).map_err(|_| bad("not a URL"))?;
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => {}
        Some(_) => return Err(bad("only http is spoken; put a TLS proxy in between")),
        None => return Err(bad("must begin with http://")),
    }
    if uri.query().is_some() {
        return Err(bad("must have no query"));
    }
    let authority: &Authority = uri.authority().ok_or_else(|| bad("has no host"))?;
    let base = uri.path().trim_end_matches('/');
    let version = if base == "/v1" || base.ends_with("/v1") {
        ""
    } else {
        "/v1"
    };
    let path = format!("{base}{version}{CHAT_PATH}");
    // A header of the user's replaces the one made here.
    let own_host = headers
        .iter()
        .find(|(name, _)| *name == HOST)
        .map(|(_, value)| value.clone());
    let host = match own_host {
        Some(host) => host,
        None => HeaderValue::try_from(authority.as_str()).map_err(|_| bad("has a strange host"))?,
    };
    Ok(Target {
        address: format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80)),
        host,
        path: Uri::try_from(path).map_err(|_| bad("has a strange path"))?,
        headers: without_host(headers),
    })
}

fn without_host(headers: Vec<(HeaderName, HeaderValue)>) -> Vec<(HeaderName, HeaderValue)> {
    headers.into_iter().filter(|(name, _)| *name != HOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(extra: &[&str]) -> Result<Config, String> {
        let common = [
            "replay",
            "--model",
            "m",
            "--trace",
            "builtin",
            "--records",
            "r",
            "--summary",
            "s",
        ];
        let url = if extra.contains(&"--url") {
            &[][..]
        } else {
            &["--url", "http://h:1"]
        };
        Args::try_parse_from(common.iter().chain(url).chain(extra))
            .map_err(|error| error.to_string())?
            .check()
            .map_err(|error| error.to_string())
    }

    #[test]
    fn urls_lead_to_chat_completions() {
        for (url, address, path) in [
            ("http://h:8080", "h:8080", "/v1/chat/completions"),
            ("http://h/", "h:80", "/v1/chat/completions"),
            ("http://h/v1", "h:80", "/v1/chat/completions"),
            ("http://h/pools/a/v1/", "h:80", "/pools/a/v1/chat/completions"),
            (
                "http://[::1]:9/pools/a",
                "[::1]:9",
                "/pools/a/v1/chat/completions",
            ),
        ] {
            let target = check(&["--url", url]).unwrap().target;
            assert_eq!(
                (target.address.as_str(), target.path.path()),
                (address, path),
                "{url}"
            );
        }
        for url in ["https://h", "h:8080", "http://h?x=1", "/v1", "http://"] {
            assert!(check(&["--url", url]).unwrap_err().contains("--url"), "{url}");
        }
    }

    #[test]
    fn arrivals_are_one_of_three() {
        assert_eq!(check(&[]).unwrap().arrivals, Arrivals::Closed(4));
        assert_eq!(
            check(&["--concurrency", "9"]).unwrap().arrivals,
            Arrivals::Closed(9)
        );
        assert_eq!(
            check(&["--rate", "0.5"]).unwrap().arrivals,
            Arrivals::Poisson(0.5)
        );
        assert_eq!(check(&["--trace-arrivals"]).unwrap().arrivals, Arrivals::Traced);
        assert!(check(&["--rate", "1", "--concurrency", "1"]).is_err());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (option, value) in [
            ("--rate", "0"),
            ("--rate", "NaN"),
            ("--concurrency", "0"),
            ("--sessions", "0"),
            ("--prompt-scale", "0"),
            ("--prompt-scale", "1.5"),
            ("--time-scale", "NaN"),
            ("--timeout", "0"),
            ("--header", "nothing"),
            ("--run-id", "a b"),
        ] {
            let error = check(&[option, value]).unwrap_err();
            assert!(error.contains(option), "{option} {value}: {error}");
        }
    }

    #[test]
    fn streams_are_the_default() {
        assert!(check(&[]).unwrap().style.stream);
        assert!(check(&["--stream"]).unwrap().style.stream);
        assert!(!check(&["--no-stream"]).unwrap().style.stream);
    }
}
