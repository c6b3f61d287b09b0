//! `GET /v1/models`, answered from the configuration, so that it works at zero too.

use bytes::Bytes;
use serde_json::{Value, json};
use weir_wire::config::PoolConfig;

/// The list of all names and aliases.
pub fn list<'a>(pools: impl Iterator<Item = &'a PoolConfig>) -> Bytes {
    let data: Vec<Value> = pools
        .flat_map(|pool| names(pool).map(|name| entry(pool, name)))
        .collect();
    Bytes::from(json!({"object": "list", "data": data}).to_string())
}

/// One model, if the pool serves it under that name.
pub fn one(pool: &PoolConfig, id: &str) -> Option<Bytes> {
    let name = names(pool).find(|name| *name == id)?;
    Some(Bytes::from(entry(pool, name).to_string()))
}

fn names(pool: &PoolConfig) -> impl Iterator<Item = &str> {
    std::iter::once(&pool.model)
        .chain(&pool.aliases)
        .map(String::as_str)
}

/// `created` is 0: the gateway does not know when a model was made, and a time that changed with every restart would
/// only look like an answer.
fn entry(pool: &PoolConfig, name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "weir", "root": pool.model, "parent": null})
}

#[cfg(test)]
mod tests {
    use weir_wire::config::GatewayConfig;

    use super::*;

    #[test]
    fn every_name_is_listed() {
        let config =
            GatewayConfig::parse("pools: [{name: a, model: org/m, aliases: [n]}, {name: b, model: o}]")
                .unwrap();
        let text = list(config.pools.iter());
        let value: Value = serde_json::from_slice(&text).unwrap();
        let ids: Vec<_> = value["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|model| model["id"].clone())
            .collect();
        assert_eq!(ids, ["org/m", "n", "o"]);
        assert!(one(&config.pools[0], "org/m").is_some());
        assert_eq!(one(&config.pools[0], "o"), None);
    }
}
