//! The command line: one clap struct, turned into one validated [`Config`].

use std::{net::SocketAddr, time::Duration};

use clap::{Parser, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::{gateway::config::WorkflowDefaults, lease};

/// Flags as typed; every one but `--check`, which is no setting, is also read from the environment.
#[derive(Debug, Parser)]
#[command(
    name = "weir-operator",
    version,
    about = "Reconciles LLMPools and WorkflowPolicies."
)]
pub struct Args {
    /// Look whether an operator with these flags and these rights can work and whether one leads; print it and end.
    #[arg(long)]
    check: bool,
    /// Namespace to watch; repeat it or separate several by commas. Absent: all namespaces.
    #[arg(long, env = "WEIR_WATCH_NAMESPACE", value_delimiter = ',')]
    watch_namespace: Vec<String>,
    /// Image of `weir-router`, for gateways and sidecars.
    #[arg(long, env = "WEIR_ROUTER_IMAGE")]
    router_image: String,
    /// Namespace the operator runs in; its lease is there.
    #[arg(long, env = "WEIR_NAMESPACE")]
    namespace: String,
    /// Name of this process among the operator's replicas, at most 128 bytes: the pod's name.
    #[arg(long, env = "WEIR_IDENTITY")]
    identity: String,
    /// Address of `/livez`, `/readyz` and `/metrics`.
    #[arg(long, env = "WEIR_ADMIN_LISTEN", default_value = "0.0.0.0:9090")]
    admin_listen: SocketAddr,
    /// Name of the lease in that namespace; replicas of one operator share it.
    #[arg(long, env = "WEIR_LEASE_NAME", default_value = "weir-operator")]
    lease_name: String,
    /// Whether workflows get a home where no WorkflowPolicy says so by `affinity.mode`.
    #[arg(long, env = "WEIR_WORKFLOW_SUPPORT", default_value_t = true, action = clap::ArgAction::Set)]
    workflow_support: bool,
    /// Seconds without a turn after which a home is forgotten, where no WorkflowPolicy says so by `affinity.idleTTL`.
    #[arg(long, env = "WEIR_WORKFLOW_TTL", default_value_t = 3_600, value_parser = clap::value_parser!(u32).range(1..=604_800))]
    workflow_ttl: u32,
    /// Most workflows with a home, for each pool, where no WorkflowPolicy says so by `limits.maxWorkflows`.
    #[arg(long, env = "WEIR_MAX_WORKFLOWS", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_workflows: u32,
    /// Form of log lines on standard error.
    #[arg(long, env = "WEIR_LOG_FORMAT", value_enum, default_value = "json")]
    log_format: LogFormat,
    /// What to log, in the syntax of tracing's EnvFilter, such as `weir_operator=debug,info`.
    #[arg(long, env = "WEIR_LOG", default_value = "info")]
    log: String,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// What the operator runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Only look whether the operator can work.
    pub check: bool,
    /// Namespaces to watch; empty: all.
    pub watch_namespaces: Vec<String>,
    /// Image of gateways and sidecars.
    pub router_image: String,
    /// The operator's own namespace.
    pub namespace: String,
    /// This replica's name.
    pub identity: String,
    /// Address of probes and metrics.
    pub admin_listen: SocketAddr,
    /// Name of the lease.
    pub lease_name: String,
    /// What holds for workflows where no policy says otherwise.
    pub workflows: WorkflowDefaults,
    /// Timing of the lease.
    pub lease: lease::Settings,
    /// Form of log lines.
    pub log_format: LogFormat,
    /// Log filter.
    pub log: String,
}

/// A flag whose value cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgsError {
    /// Empty, although a name is needed.
    #[error("--{flag} must not be empty")]
    Empty {
        /// The flag.
        flag: &'static str,
    },
    /// Not a Kubernetes name.
    #[error("--{flag} {value}: must be at most 63 lower-case letters, digits and dashes")]
    NotAName {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
    },
    /// Longer than events can carry.
    #[error("--{flag} {value}: must have at most {MAX_IDENTITY} bytes")]
    TooLong {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
    },
    /// Not a log filter.
    #[error("--{flag} {value}: {why}")]
    Filter {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Longest identity in bytes: what an event's `reportingInstance` takes.
const MAX_IDENTITY: usize = 128;

impl Args {
    /// Reads the process's command line and environment; prints help or the mistake and exits where there is one.
    #[must_use]
    pub fn read() -> Config {
        match Self::parse().into_config() {
            Ok(config) => config,
            Err(error) => <Self as clap::CommandFactory>::command()
                .error(clap::error::ErrorKind::ValueValidation, error)
                .exit(),
        }
    }

    /// Validates every flag.
    ///
    /// # Errors
    /// [`ArgsError`] naming the flag.
    pub fn into_config(self) -> Result<Config, ArgsError> {
        let Self {
            check,
            watch_namespace,
            router_image,
            namespace,
            identity,
            admin_listen,
            lease_name,
            workflow_support,
            workflow_ttl,
            max_workflows,
            log_format,
            log,
        } = self;
        let mut watch_namespaces: Vec<String> = watch_namespace
            .into_iter()
            .filter(|name| !name.is_empty())
            .collect();
        watch_namespaces.sort();
        watch_namespaces.dedup();
        for name in &watch_namespaces {
            label("watch-namespace", name)?;
        }
        label("namespace", &namespace)?;
        if router_image.trim().is_empty() {
            return Err(ArgsError::Empty { flag: "router-image" });
        }
        if identity.trim().is_empty() {
            return Err(ArgsError::Empty { flag: "identity" });
        }
        if identity.len() > MAX_IDENTITY {
            return Err(ArgsError::TooLong {
                flag: "identity",
                value: identity,
            });
        }
        if let Err(error) = EnvFilter::try_new(&log) {
            return Err(ArgsError::Filter {
                flag: "log",
                value: log,
                why: error.to_string(),
            });
        }
        label("lease-name", &lease_name)?;
        Ok(Config {
            check,
            watch_namespaces,
            router_image,
            namespace,
            identity,
            admin_listen,
            lease_name,
            workflows: WorkflowDefaults {
                enabled: workflow_support,
                idle_ttl: Duration::from_secs(workflow_ttl.into()),
                max_workflows,
            },
            lease: lease::Settings {
                duration: Duration::from_secs(15),
                renew_deadline: Duration::from_secs(10),
                retry: Duration::from_secs(2),
            },
            log_format,
            log,
        })
    }
}

fn label(flag: &'static str, value: &str) -> Result<(), ArgsError> {
    if value.is_empty() {
        return Err(ArgsError::Empty { flag });
    }
    let fits = value.len() <= 63
        && value
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !value.starts_with('-')
        && !value.ends_with('-');
    if fits {
        Ok(())
    } else {
        Err(ArgsError::NotAName {
            flag,
            value: value.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;

    /// Overrides what every other flag is given.
    fn read(extra: &[&str]) -> Result<Args, clap::Error> {
        let base = [
            "weir-operator",
            "--router-image",
            "router:1",
            "--namespace",
            "weir-system",
            "--identity",
            "a",
        ];
        let mut command = Args::command().args_override_self(true);
        let matches = command.try_get_matches_from_mut(base.iter().chain(extra))?;
        Args::from_arg_matches(&matches)
    }

    #[test]
    fn namespaces_are_sorted_and_taken_once() {
        let args = read(&["--watch-namespace", "b,a", "--watch-namespace", "b"]).unwrap();
        let config = args.into_config().unwrap();
        assert_eq!(config.watch_namespaces, ["a", "b"]);
        assert_eq!(config.admin_listen.port(), weir_wire::ports::ADMIN);
    }

    #[test]
    fn workflow_defaults_are_those_of_the_chart() {
        assert_eq!(
            read(&[]).unwrap().into_config().unwrap().workflows,
            WorkflowDefaults::default()
        );
        let flags = [
            "--workflow-support=false",
            "--workflow-ttl=90",
            "--max-workflows=7",
        ];
        let expected = WorkflowDefaults {
            enabled: false,
            idle_ttl: Duration::from_secs(90),
            max_workflows: 7,
        };
        assert_eq!(read(&flags).unwrap().into_config().unwrap().workflows, expected);
        for refused in [
            "--workflow-ttl=0",
            "--max-workflows=0",
            "--workflow-support=maybe",
        ] {
            let whole = [
                "weir-operator",
                "--router-image=r",
                "--namespace=n",
                "--identity=a",
                refused,
            ];
            assert!(Args::try_parse_from(whole).is_err(), "{refused}");
        }
    }

    #[test]
    fn unusable_values_are_refused_by_flag() {
        let long = "x".repeat(64);
        for (flag, value) in [
            ("--watch-namespace", "Not_A_Name"),
            ("--watch-namespace", &long),
            ("--namespace", ""),
            ("--namespace", "-a"),
            ("--lease-name", ""),
            ("--lease-name", "a.b"),
            ("--router-image", " "),
            ("--identity", ""),
            ("--identity", &"x".repeat(129)),
            ("--log", "info,=5"),
            ("--log-format", "xml"),
            ("--admin-listen", "9090"),
        ] {
            let refused = match read(&[flag, value]) {
                Ok(args) => args.into_config().unwrap_err().to_string(),
                Err(error) => error.to_string(),
            };
            assert!(refused.contains(flag), "{flag} {value}: {refused}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Args::try_parse_from(["weir-operator"]).unwrap_err().to_string();
        for flag in ["--router-image", "--namespace", "--identity"] {
            assert!(error.contains(flag), "{error}");
        }
    }

    #[test]
    fn every_flag_is_explained_and_read_from_the_environment() {
        let command = Args::command();
        let flags: Vec<&clap::Arg> = command.get_arguments().collect();
        assert!(flags.len() >= 8, "{}", flags.len());
        for flag in flags {
            let name = flag.get_long().unwrap();
            assert!(
                flag.get_help().is_some_and(|help| help.to_string().len() > 10),
                "--{name}"
            );
            if name == "check" {
                assert_eq!(flag.get_env(), None);
                continue;
            }
            let expected = format!("WEIR_{}", name.replace('-', "_").to_ascii_uppercase());
            assert_eq!(flag.get_env().unwrap().to_str(), Some(expected.as_str()));
        }
    }
}
