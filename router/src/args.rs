//! The command line. Every flag can be given as an environment variable too.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use weir_wire::{config::EngineKind, ports};

/// Routes LLM requests of agent workflows.
#[derive(Debug, Parser)]
#[command(name = "weir-router", version)]
pub struct Args {
    /// What to be.
    #[command(subcommand)]
    pub role: Role,
    /// Form of log lines.
    #[arg(long, global = true, env = "WEIR_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// What to log, in the syntax of tracing's EnvFilter.
    #[arg(long, global = true, env = "WEIR_LOG", default_value = "info")]
    pub log: String,
}

/// The two roles.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Stand in front of pools: hold, order and place requests.
    Gateway(GatewayArgs),
    /// Stand in front of one engine, in its pod.
    Sidecar(SidecarArgs),
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Flags of the gateway.
#[derive(Debug, ClapArgs)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["config", "name"]))]
pub struct GatewayArgs {
    /// Run without Kubernetes, from this file; it is read again when it changes.
    #[arg(long, env = "WEIR_CONFIG")]
    pub config: Option<PathBuf>,
    /// Read the file, print what was understood, and end.
    #[arg(long, requires = "config", conflicts_with = "name")]
    pub check: bool,
    /// The gateway's namespace.
    #[arg(long, env = "WEIR_NAMESPACE", requires = "name")]
    pub namespace: Option<String>,
    /// The gateway's name; its configuration is the ConfigMap NAME-gateway.
    #[arg(long, env = "WEIR_NAME", requires_all = ["namespace", "token_file"])]
    pub name: Option<String>,
    /// File with the control token.
    #[arg(long, env = "WEIR_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Where the traffic port listens.
    #[arg(long, env = "WEIR_LISTEN", default_value_t = any(ports::TRAFFIC))]
    pub listen: SocketAddr,
    /// Where the admin port listens.
    #[arg(long, env = "WEIR_ADMIN_LISTEN", default_value_t = any(ports::ADMIN))]
    pub admin_listen: SocketAddr,
}

/// Flags of the sidecar.
#[derive(Debug, ClapArgs)]
pub struct SidecarArgs {
    /// The pool's name.
    #[arg(long, env = "WEIR_POOL")]
    pub pool: String,
    /// The pool's UID.
    #[arg(long, env = "WEIR_POOL_UID")]
    pub pool_uid: String,
    /// The engine: VLLM or SGLang.
    #[arg(long, env = "WEIR_ENGINE", value_parser = engine)]
    pub engine: EngineKind,
    /// The engine's port on 127.0.0.1.
    #[arg(long, env = "WEIR_ENGINE_PORT")]
    pub engine_port: u16,
    /// The model name that the engine must serve before it counts as ready.
    #[arg(long, env = "WEIR_MODEL")]
    pub model: String,
    /// Requests let into the engine at once.
    #[arg(long, env = "WEIR_CONCURRENCY", default_value = "auto")]
    pub concurrency: Concurrency,
    /// File with the control token.
    #[arg(long, env = "WEIR_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Where the traffic port listens.
    #[arg(long, env = "WEIR_LISTEN", default_value_t = any(ports::TRAFFIC))]
    pub listen: SocketAddr,
    /// Where the admin port listens.
    #[arg(long, env = "WEIR_ADMIN_LISTEN", default_value_t = any(ports::ADMIN))]
    pub admin_listen: SocketAddr,
    /// Longest wait for requests in flight when the pod ends.
    #[arg(long, env = "WEIR_DRAIN_TIMEOUT", value_parser = span, default_value = "10m")]
    pub drain_timeout: Duration,
}

/// `auto`, or at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concurrency(pub Option<u32>);

impl FromStr for Concurrency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self(None)),
            _ => match text.parse() {
                Ok(count) if count > 0 => Ok(Self(Some(count))),
                _ => Err("must be `auto` or a number of at least 1".to_owned()),
            },
        }
    }
}

impl fmt::Display for Concurrency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("auto"),
            Some(count) => count.fmt(f),
        }
    }
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

fn engine(text: &str) -> Result<EngineKind, String> {
    match text {
        "VLLM" => Ok(EngineKind::Vllm),
        "SGLang" => Ok(EngineKind::SGLang),
        _ => Err("must be VLLM or SGLang".to_owned()),
    }
}

fn span(text: &str) -> Result<Duration, String> {
    let span: weir_wire::Duration = text
        .parse()
        .map_err(|error: weir_wire::ParseDurationError| error.to_string())?;
    Ok(span.into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("weir-router").chain(line.split(' ')))
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_gateway_has_one_source_of_configuration() {
        assert!(parse("gateway --config f --check").is_ok());
        assert!(parse("gateway --namespace n --name g --token-file t").is_ok());
        for wrong in [
            "gateway",
            "gateway --name g",
            "gateway --namespace n",
            "gateway --config f --name g --namespace n --token-file t",
            "gateway --namespace n --name g --token-file t --check",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_sidecar_is_told_everything_about_its_engine() {
        let line = "sidecar --pool p --pool-uid u --engine VLLM --engine-port 8000 --model m";
        let Ok(Args {
            role: Role::Sidecar(args),
            ..
        }) = parse(&format!("{line} --concurrency 4 --drain-timeout 90s"))
        else {
            panic!("{line}");
        };
        assert_eq!(args.concurrency, Concurrency(Some(4)));
        assert_eq!(args.drain_timeout, Duration::from_secs(90));
        assert!(parse(line).is_ok());
        for wrong in [
            " --concurrency 0",
            " --engine vllm",
            " --drain-timeout -1s",
            " --drain-timeout soon",
        ] {
            assert!(parse(&format!("{line}{wrong}")).is_err(), "{wrong}");
        }
    }
}
