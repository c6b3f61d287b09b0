//! The configuration of a standalone gateway: a file, read again when it changes.

use std::{fmt::Write as _, fs, io, path::Path, sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use weir_wire::config::{ConfigError, EngineKind, GatewayConfig, PoolConfig};

use super::pools::Pools;
use crate::metrics::{ConfigResult, Metrics};

/// Between two looks at the file.
const PERIOD: Duration = Duration::from_secs(2);
/// Longest file that is read, bytes.
const MAX_BYTES: u64 = 4 << 20;

/// A file that gives no configuration.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is too long to be a configuration.
    #[error("is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// It is not a configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Reads and validates a file.
///
/// # Errors
/// [`FileError`].
pub fn load(path: &Path) -> Result<GatewayConfig, FileError> {
    if fs::metadata(path)?.len() > MAX_BYTES {
        return Err(FileError::TooLong);
    }
    Ok(GatewayConfig::parse(&fs::read_to_string(path)?)?)
}

/// Reads the file every two seconds until `stop` and puts what changed in force. A file that cannot be used leaves the
/// last good one in force.
pub async fn watch(path: Arc<Path>, pools: Arc<Pools>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complaint = String::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let read = {
            let path = Arc::clone(&path);
            tokio::task::spawn_blocking(move || load(&path)).await
        };
        let Ok(read) = read else {
            continue;
        };
        let result = match read.and_then(|config| Ok(pools.apply(config)?)) {
            Ok(true) => ConfigResult::Applied,
            Ok(false) => ConfigResult::Unchanged,
            Err(error) => {
                let text = error.to_string();
                if text != complaint {
                    tracing::error!(error = %text, "configuration refused, the last good one stays in force");
                }
                complaint = text;
                metrics.config_current.set(0);
                ConfigResult::Refused
            }
        };
        if result == ConfigResult::Applied {
            tracing::info!(hash = %pools.config_hash(), "configuration in force");
        }
        if result != ConfigResult::Refused {
            complaint.clear();
            metrics.config_current.set(1);
        }
        if result != ConfigResult::Unchanged {
            metrics.config_loads.with_label_values(&[result.as_str()]).inc();
        }
    }
}

/// What `--check` prints: the configuration as it was understood, defaults filled in.
#[must_use]
pub fn describe(config: &GatewayConfig) -> String {
    let mut text = String::new();
    for pool in &config.pools {
        describe_pool(&mut text, config, pool);
    }
    let limits = &config.limits;
    let _ = writeln!(
        text,
        "limits: {} connections, bodies of {} bytes ({} together), JSON {} deep, {} headers of {} bytes",
        limits.max_connections,
        limits.max_body_bytes,
        limits.max_buffered_bytes,
        limits.max_json_depth,
        limits.max_headers,
        limits.max_header_bytes,
    );
    let timeouts = &config.timeouts;
    let _ = writeln!(
        text,
        "timeouts: head {}, body {}, connect {}, first token {}, idle {}, drain {}",
        timeouts.header_read,
        timeouts.body_read,
        timeouts.connect,
        timeouts.first_token,
        timeouts.idle,
        timeouts.drain,
    );
    text
}

fn describe_pool(text: &mut String, config: &GatewayConfig, pool: &PoolConfig) {
    let engine = match pool.engine {
        EngineKind::Vllm => "VLLM",
        EngineKind::SGLang => "SGLang",
    };
    let names = std::iter::once(&pool.model).chain(&pool.aliases);
    let names: Vec<_> = names.map(String::as_str).collect();
    let _ = writeln!(text, "pool {}: {engine}, model {}", pool.name, names.join(", "));
    let _ = writeln!(
        text,
        "  waiting: at most {} requests, {} bytes, {} while no endpoint is ready",
        pool.hold.max_requests, pool.hold.max_bytes, pool.hold.timeout
    );
    let policy = config
        .policies
        .iter()
        .find(|policy| policy.pools.contains(&pool.name));
    let _ = writeln!(
        text,
        "  policy: {}",
        policy.map_or("built-in defaults", |policy| policy.name.as_str())
    );
    for endpoint in &pool.endpoints {
        let _ = writeln!(text, "  endpoint {}: {}", endpoint.name, endpoint.address);
    }
    if pool.endpoints.is_empty() && !pool.wakes {
        let _ = writeln!(text, "  no endpoints: every request is answered 503 no_capacity");
    }
    if pool.suspended {
        let _ = writeln!(text, "  suspended: every request is answered 503 no_capacity");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_shows_what_was_understood() {
        let config = GatewayConfig::parse(
            "pools:\n- name: coder\n  model: m\n  aliases: [n]\n  endpoints: [{name: a, address: 'h:1'}]\n- {name: z, model: o}\npolicies: [{name: p, pools: [coder]}]\n",
        )
        .unwrap();
        assert_eq!(
            describe(&config),
            "pool coder: VLLM, model m, n\n\
             \x20 waiting: at most 5000 requests, 1073741824 bytes, 1800s while no endpoint is ready\n\
             \x20 policy: p\n\
             \x20 endpoint a: h:1\n\
             pool z: VLLM, model o\n\
             \x20 waiting: at most 5000 requests, 1073741824 bytes, 1800s while no endpoint is ready\n\
             \x20 policy: built-in defaults\n\
             \x20 no endpoints: every request is answered 503 no_capacity\n\
             limits: 16384 connections, bodies of 33554432 bytes (2147483648 together), JSON 128 deep, 128 headers of 65536 bytes\n\
             timeouts: head 15s, body 30s, connect 2s, first token 600s, idle 120s, drain 600s\n"
        );
    }

    #[test]
    fn files_that_are_no_configuration_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        assert!(matches!(load(&path), Err(FileError::Read(_))));
        fs::write(&path, "pools: 3").unwrap();
        assert!(matches!(load(&path), Err(FileError::Config(_))));
        fs::write(&path, "#".repeat(MAX_BYTES as usize + 1)).unwrap();
        assert!(matches!(load(&path), Err(FileError::TooLong)));
    }
}
