//! Log lines on standard error. Messages are constant strings, values are fields.

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::args::LogFormat;

/// Starts logging for the life of the process. A filter that cannot be read is replaced by `info`, and said so.
pub fn start(format: LogFormat, filter: &str) {
    let (parsed, wrong) = match EnvFilter::try_new(filter) {
        Ok(parsed) => (parsed, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let registry = tracing_subscriber::registry().with(parsed);
    let lines = fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).init(),
        LogFormat::Text => registry.with(lines).init(),
    }
    if let Some(error) = wrong {
        tracing::warn!(%error, filter, "the log filter cannot be read; info is used");
    }
}
