//! Labels of everything the operator makes. Pure.

use std::collections::BTreeMap;

use weir_crds::names::{FIELD_MANAGER, component, label};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

/// Selects the engine pods of one pool, of this UID only.
#[must_use]
pub fn engine_selector(pool: &str, uid: &str) -> Labels {
    labels(&[
        (label::POOL, pool),
        (label::POOL_UID, uid),
        (label::COMPONENT, component::ENGINE),
    ])
}

/// Labels of what a pool owns.
#[must_use]
pub fn engine(pool: &str, uid: &str, gateway: &str) -> Labels {
    let mut all = engine_selector(pool, uid);
    all.extend(labels(&[
        (label::GATEWAY, gateway),
        (label::APP_NAME, "weir"),
        (label::APP_INSTANCE, pool),
        (label::APP_COMPONENT, component::ENGINE),
        (label::APP_MANAGED_BY, FIELD_MANAGER),
    ]));
    all
}

/// Selects the pods of one gateway.
#[must_use]
pub fn gateway_selector(gateway: &str) -> Labels {
    labels(&[(label::GATEWAY, gateway), (label::COMPONENT, component::GATEWAY)])
}

/// Labels of what a gateway's pools own together.
#[must_use]
pub fn gateway(gateway: &str) -> Labels {
    let mut all = gateway_selector(gateway);
    all.extend(labels(&[
        (label::APP_NAME, "weir"),
        (label::APP_INSTANCE, gateway),
        (label::APP_COMPONENT, component::GATEWAY),
        (label::APP_MANAGED_BY, FIELD_MANAGER),
    ]));
    all
}

/// The text form of a selector.
#[must_use]
pub fn selector_text(selector: &Labels) -> String {
    let parts: Vec<String> = selector
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    parts.join(",")
}
