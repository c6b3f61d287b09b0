//! The gateway's configuration as a ConfigMap, watched through the API: a mounted file would lag by up to a minute.
//! A document that cannot be used leaves the last good one in force.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    runtime::{WatchStreamExt as _, watcher},
};
use weir_crds::names;
use weir_wire::config::{ConfigError, FILE_KEY, GatewayConfig};

use super::{Discovery, WATCH_SECONDS};
use crate::metrics::{ConfigResult, Watched};

impl Discovery {
    pub(super) async fn watch_configuration(&self) {
        let name = names::gateway(&self.gateway);
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let config = watcher::Config::default()
            .fields(&format!("metadata.name={name}"))
            .timeout(WATCH_SECONDS);
        let mut events = std::pin::pin!(watcher(api, config).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(map) | watcher::Event::InitApply(map)) => self.load(&map),
                Ok(watcher::Event::Delete(_)) => {
                    tracing::warn!(config_map = %name, "configuration deleted, the last one stays in force");
                    self.pools.set_orphaned(true);
                }
                Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
                Err(error) => self.watch_failed(Watched::ConfigMap, &error),
            }
        }
    }

    fn load(&self, map: &ConfigMap) {
        let (result, current) = match self.put_in_force(map) {
            Ok(true) => (ConfigResult::Applied, 1),
            Ok(false) => (ConfigResult::Unchanged, 1),
            Err(error) => {
                tracing::error!(error = %error, "configuration refused, the last good one stays in force");
                (ConfigResult::Refused, 0)
            }
        };
        self.metrics
            .config_loads
            .with_label_values(&[result.as_str()])
            .inc();
        self.metrics.config_current.set(current);
    }

    /// `false` when it is in force already.
    fn put_in_force(&self, map: &ConfigMap) -> Result<bool, ConfigError> {
        let document = map
            .data
            .as_ref()
            .and_then(|data| data.get(FILE_KEY))
            .ok_or_else(|| ConfigError::Parse(format!("the ConfigMap has no key {FILE_KEY}")))?;
        self.pools.set_orphaned(false);
        let config = GatewayConfig::parse(document)?;
        let pools = config.pools.len();
        let changed = self.pools.apply(config)?;
        self.readiness.configured();
        if changed {
            tracing::info!(hash = %self.pools.config_hash(), pools, "configuration in force");
        }
        Ok(changed)
    }
}
