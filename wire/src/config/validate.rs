//! What a configuration must fulfil beyond its shape: bounds and cross-references.

use std::{collections::BTreeSet, time};

use super::{
    ConfigError, GatewayConfig, IdentitySource, Limits, MAX_ENDPOINTS, MAX_POLICIES, MAX_POOLS, PolicyConfig,
    PoolConfig, Timeouts,
};
use crate::Duration;

impl GatewayConfig {
    /// Checks bounds and cross-references.
    ///
    /// # Errors
    /// The first [`ConfigError::Invalid`] found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.pools.len() > MAX_POOLS {
            return Err(invalid("pools", format!("at most {MAX_POOLS} pools")));
        }
        if self.policies.len() > MAX_POLICIES {
            return Err(invalid("policies", format!("at most {MAX_POLICIES} policies")));
        }
        self.limits.validate()?;
        self.timeouts.validate()?;
        let mut names = BTreeSet::new();
        let mut models = BTreeSet::new();
        for (index, pool) in self.pools.iter().enumerate() {
            let field = format!("pools[{index}]");
            if !names.insert(pool.name.as_str()) {
                return Err(invalid(
                    format!("{field}.name"),
                    format!("`{}` is used twice", pool.name),
                ));
            }
            pool.validate(&field, &mut models)?;
        }
        let mut policy_names = BTreeSet::new();
        for (index, policy) in self.policies.iter().enumerate() {
            let field = format!("policies[{index}]");
            if !policy_names.insert(policy.name.as_str()) {
                return Err(invalid(
                    format!("{field}.name"),
                    format!("`{}` is used twice", policy.name),
                ));
            }
            policy.validate(&field, &names)?;
        }
        Ok(())
    }
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid {
        field: field.into(),
        problem: problem.into(),
    }
}

fn positive(field: &str, value: u64) -> Result<(), ConfigError> {
    if value == 0 {
        Err(invalid(field, "must be at least 1"))
    } else {
        Ok(())
    }
}

/// Longest duration a configuration may name: a week.
const MAX_DURATION: time::Duration = time::Duration::from_secs(7 * 86_400);

fn bounded(field: &str, value: Duration) -> Result<(), ConfigError> {
    let span: time::Duration = value.into();
    if span.is_zero() || span > MAX_DURATION {
        return Err(invalid(field, "must be longer than 0 and at most 168h"));
    }
    Ok(())
}

fn bounded_or_zero(field: &str, value: Duration) -> Result<(), ConfigError> {
    let span: time::Duration = value.into();
    if span > MAX_DURATION {
        return Err(invalid(field, "must be at least 0 and at most 168h"));
    }
    Ok(())
}

fn sized(field: &str, text: &str, most: usize) -> Result<(), ConfigError> {
    if text.is_empty() || text.len() > most {
        return Err(invalid(field, format!("must be 1 to {most} bytes long")));
    }
    Ok(())
}

impl Limits {
    fn validate(&self) -> Result<(), ConfigError> {
        positive("limits.maxConnections", self.max_connections.into())?;
        positive("limits.maxBodyBytes", self.max_body_bytes)?;
        positive("limits.maxJsonDepth", self.max_json_depth.into())?;
        positive("limits.maxHeaders", self.max_headers.into())?;
        if self.max_header_bytes < 8_192 {
            return Err(invalid("limits.maxHeaderBytes", "must be at least 8192"));
        }
        if self.max_buffered_bytes < self.max_body_bytes {
            return Err(invalid(
                "limits.maxBufferedBytes",
                "must be at least limits.maxBodyBytes",
            ));
        }
        Ok(())
    }
}

impl Timeouts {
    fn validate(&self) -> Result<(), ConfigError> {
        bounded("timeouts.headerRead", self.header_read)?;
        bounded("timeouts.bodyRead", self.body_read)?;
        bounded("timeouts.connect", self.connect)?;
        bounded("timeouts.firstToken", self.first_token)?;
        bounded("timeouts.idle", self.idle)?;
        bounded("timeouts.drain", self.drain)
    }
}

impl PoolConfig {
    fn validate<'a>(&'a self, field: &str, models: &mut BTreeSet<&'a str>) -> Result<(), ConfigError> {
        sized(&format!("{field}.name"), &self.name, 63)?;
        for (name, path) in std::iter::once((&self.model, format!("{field}.model"))).chain(
            self.aliases
                .iter()
                .map(|alias| (alias, format!("{field}.aliases"))),
        ) {
            sized(&path, name, 256)?;
            if !models.insert(name) {
                return Err(invalid(
                    path,
                    format!("model name `{name}` already belongs to another pool or alias"),
                ));
            }
        }
        if self.max_concurrency == Some(0) {
            return Err(invalid(format!("{field}.maxConcurrency"), "must be at least 1"));
        }
        positive(
            &format!("{field}.hold.maxRequests"),
            self.hold.max_requests.into(),
        )?;
        positive(&format!("{field}.hold.maxBytes"), self.hold.max_bytes)?;
        bounded(&format!("{field}.hold.timeout"), self.hold.timeout)?;
        if self.endpoints.len() > MAX_ENDPOINTS {
            return Err(invalid(
                format!("{field}.endpoints"),
                format!("at most {MAX_ENDPOINTS} endpoints"),
            ));
        }
        let mut names = BTreeSet::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let field = format!("{field}.endpoints[{index}]");
            sized(&format!("{field}.name"), &endpoint.name, 63)?;
            if !names.insert(&endpoint.name) {
                return Err(invalid(
                    format!("{field}.name"),
                    format!("`{}` is used twice", endpoint.name),
                ));
            }
            let port = endpoint.address.rsplit_once(':').and_then(|(host, port)| {
                (!host.is_empty())
                    .then(|| port.parse::<u16>().ok())
                    .flatten()
                    .filter(|port| *port > 0)
            });
            if port.is_none() || endpoint.address.len() > 261 {
                return Err(invalid(
                    format!("{field}.address"),
                    "must be host:port, such as 10.0.0.7:8000",
                ));
            }
        }
        Ok(())
    }
}

impl PolicyConfig {
    fn validate(&self, field: &str, pools: &BTreeSet<&str>) -> Result<(), ConfigError> {
        sized(&format!("{field}.name"), &self.name, 253)?;
        if let Some(unknown) = self.pools.iter().find(|pool| !pools.contains(pool.as_str())) {
            return Err(invalid(
                format!("{field}.pools"),
                format!("no pool is called `{unknown}`"),
            ));
        }
        if self.identity.len() > 16 {
            return Err(invalid(format!("{field}.identity"), "at most 16 sources"));
        }
        for source in &self.identity {
            if let IdentitySource::Header(text) | IdentitySource::Body(text) = source {
                sized(&format!("{field}.identity"), text, 256)?;
            }
        }
        if let Some(wait) = self.affinity.max_wait {
            bounded_or_zero(&format!("{field}.affinity.maxWait"), wait)?;
        }
        bounded(&format!("{field}.affinity.idleTtl"), self.affinity.idle_ttl)?;
        bounded(&format!("{field}.affinity.maxAge"), self.affinity.max_age)?;
        if !(1..=64).contains(&self.priority.weight) {
            return Err(invalid(format!("{field}.priority.weight"), "must be 1 to 64"));
        }
        if let Some(wait) = self.priority.max_wait {
            bounded(&format!("{field}.priority.maxWait"), wait)?;
        }
        for (name, objective) in [("ttft", self.slo.ttft), ("completion", self.slo.completion)] {
            if let Some(objective) = objective {
                bounded(&format!("{field}.slo.{name}"), objective)?;
            }
        }
        if self.max_workflows == 0 || self.max_workflows > 1_000_000 {
            return Err(invalid(format!("{field}.maxWorkflows"), "must be 1 to 1000000"));
        }
        bounded_or_zero(&format!("{field}.toolPause"), self.tool_pause)
    }
}
