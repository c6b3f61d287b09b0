//! Objects that a pool's spec names and Weir does not make: Secrets, ConfigMaps, volume claims. Pure.
//!
//! Whether they exist is read from what kubelet and scheduler say of the engine pods, which the operator watches
//! anyway. Asking the API server would need the right to read every Secret of every namespace the operator looks
//! after, for it cannot know beforehand which ones pools will name; the pods' words need no right at all, name the
//! object, and change by themselves once it exists, for kubelet and scheduler try again. The price: while no pod runs
//! nobody has looked, and the status says so.

use std::fmt;

use k8s_openapi::api::core::v1::EnvVar;
use weir_crds::{LLMPoolSpec, llmpool::ModelSource};

/// Kinds of such objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of a token, or of variables.
    Secret,
    /// Of variables.
    ConfigMap,
    /// Of weights or caches.
    PersistentVolumeClaim,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Secret, Self::ConfigMap, Self::PersistentVolumeClaim];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An object, or a key in it, that a pod waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The key, where the object is there without it.
    pub key: Option<String>,
}

impl Missing {
    /// Reads what kubelet (`secret "x" not found`, `couldn't find key k in Secret ns/x`) or scheduler
    /// (`… persistentvolumeclaim "x" not found. …`) say; `None` for anything else.
    #[must_use]
    pub fn read(message: &str) -> Option<Self> {
        Kind::ALL
            .into_iter()
            .find_map(|kind| whole(kind, message).or_else(|| key(kind, message)))
    }

    /// What to do about it: for the condition and the event.
    #[must_use]
    pub fn sentence(&self, spec: &LLMPoolSpec, namespace: &str) -> String {
        let Self { kind, name, key } = self;
        let fields: Vec<String> = named(spec)
            .into_iter()
            .filter(|named| named.kind == *kind && named.name == *name)
            .map(|named| named.field)
            .collect();
        let (by, or) = if fields.is_empty() {
            (String::new(), String::new())
        } else {
            let fields = fields.join(" and ");
            (format!(", named by {fields},"), format!(", or change {fields}"))
        };
        let cure = match key {
            None => format!("does not exist in namespace {namespace}: create it{or}"),
            Some(key) => format!("of namespace {namespace} has no key {key}: add it{or}"),
        };
        format!("{kind} {name}{by} {cure}; the engine pod goes on by itself then")
    }
}

fn whole(kind: Kind, message: &str) -> Option<Missing> {
    let quoted = format!("{} \"", kind.as_str().to_ascii_lowercase());
    let (_, rest) = message.split_once(&quoted)?;
    let (name, after) = rest.split_once('"')?;
    after.starts_with(" not found").then(|| Missing {
        kind,
        name: name.to_owned(),
        key: None,
    })
}

fn key(kind: Kind, message: &str) -> Option<Missing> {
    let (_, rest) = message.split_once("couldn't find key ")?;
    let (key, rest) = rest.split_once(&format!(" in {kind} "))?;
    let object = rest.split_whitespace().next()?;
    let (_, name) = object.split_once('/')?;
    Some(Missing {
        kind,
        name: name.to_owned(),
        key: Some(key.to_owned()),
    })
}

/// An object that a spec names, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The field.
    pub field: String,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Everything that a spec names and needs, in the order of its fields. What is marked optional is left out.
#[must_use]
pub fn named(spec: &LLMPoolSpec) -> Vec<Named> {
    let mut found = Vec::new();
    let mut add = |kind, name: &str, field: String| {
        let name = name.to_owned();
        found.push(Named { kind, name, field });
    };
    if let Some(ModelSource::Claim { claim, .. }) = spec.model.parsed_source() {
        add(Kind::PersistentVolumeClaim, claim, "spec.model.source".to_owned());
    }
    if let Some(secret) = &spec.model.token_secret_ref {
        add(Kind::Secret, &secret.name, "spec.model.tokenSecretRef".to_owned());
    }
    for EnvVar { name, value_from, .. } in &spec.engine.env {
        let Some(from) = value_from else { continue };
        let field = || format!("spec.engine.env[{name}]");
        if let Some(secret) = from
            .secret_key_ref
            .as_ref()
            .filter(|it| it.optional != Some(true))
        {
            add(Kind::Secret, &secret.name, field());
        }
        if let Some(map) = from
            .config_map_key_ref
            .as_ref()
            .filter(|it| it.optional != Some(true))
        {
            add(Kind::ConfigMap, &map.name, field());
        }
    }
    if let Some(claim) = spec.cache.as_ref().and_then(|cache| cache.claim_name.as_ref()) {
        add(
            Kind::PersistentVolumeClaim,
            claim,
            "spec.cache.claimName".to_owned(),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(message: &str, expected: Option<(Kind, &str, Option<&str>)>) {
        let read = Missing::read(message);
        let read = read
            .as_ref()
            .map(|missing| (missing.kind, missing.name.as_str(), missing.key.as_deref()));
        assert_eq!(read, expected, "{message}");
    }

    #[test]
    fn the_words_of_kubelet_and_scheduler_name_the_object() {
        check(
            r#"secret "hf-token" not found"#,
            Some((Kind::Secret, "hf-token", None)),
        );
        check(
            r#"configmap "flags" not found"#,
            Some((Kind::ConfigMap, "flags", None)),
        );
        check(
            "couldn't find key token in Secret agents/hf-token",
            Some((Kind::Secret, "hf-token", Some("token"))),
        );
        check(
            "couldn't find key a.b in ConfigMap agents/flags",
            Some((Kind::ConfigMap, "flags", Some("a.b"))),
        );
        check(
            "0/3 nodes are available: persistentvolumeclaim \"weights\" not found. preemption: 0/3 nodes are available",
            Some((Kind::PersistentVolumeClaim, "weights", None)),
        );
        check("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", None);
        check("container has runAsNonRoot and image will run as root", None);
        check(r#"failed to sync secret cache: "x" timed out"#, None);
        check("", None);
    }

    fn spec() -> LLMPoolSpec {
        serde_json::from_value(json!({
            "model": {"name": "m", "source": "pvc://weights/a", "tokenSecretRef": {"name": "hf", "key": "k"}},
            "engine": {"image": "e", "env": [
                {"name": "PLAIN", "value": "1"},
                {"name": "LICENCE", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "l"}}},
                {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "flags", "key": "m"}}},
                {"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "no", "key": "x", "optional": true}}},
            ]},
            "cache": {"claimName": "compiled"},
        }))
        .unwrap()
    }

    #[test]
    fn everything_needed_is_named_by_its_field() {
        let found: Vec<String> = named(&spec())
            .iter()
            .map(|named| format!("{named} {}", named.field))
            .collect();
        assert_eq!(
            found,
            [
                "PersistentVolumeClaim weights spec.model.source",
                "Secret hf spec.model.tokenSecretRef",
                "Secret hf spec.engine.env[LICENCE]",
                "ConfigMap flags spec.engine.env[MODE]",
                "PersistentVolumeClaim compiled spec.cache.claimName",
            ]
        );
    }

    #[test]
    fn the_sentence_says_which_field_and_what_to_do() {
        let say = |message: &str| Missing::read(message).unwrap().sentence(&spec(), "agents");
        assert_eq!(
            say(r#"persistentvolumeclaim "compiled" not found"#),
            "PersistentVolumeClaim compiled, named by spec.cache.claimName, does not exist in namespace agents: \
             create it, or change spec.cache.claimName; the engine pod goes on by itself then"
        );
        assert_eq!(
            say("couldn't find key l in Secret agents/hf"),
            "Secret hf, named by spec.model.tokenSecretRef and spec.engine.env[LICENCE], of namespace agents has no \
             key l: add it, or change spec.model.tokenSecretRef and spec.engine.env[LICENCE]; the engine pod goes on \
             by itself then"
        );
        assert_eq!(
            say(r#"secret "injected" not found"#),
            "Secret injected does not exist in namespace agents: create it; the engine pod goes on by itself then"
        );
    }
}
