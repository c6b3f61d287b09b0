//! From a raw spec and its neighbours to everything that builders read. Pure.

use std::collections::BTreeMap;

use kube::ResourceExt;
use weir_crds::{LLMPool, LLMPoolSpec, llmpool::ModelSource, reserved};
use weir_wire::config::MAX_POOLS;

use crate::key::Key;

/// Why a pool is not served by its gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// An older pool has the name.
    Model {
        /// The model name or alias.
        model: String,
        /// The older pool.
        by: String,
    },
    /// The gateway has as many pools as it can.
    TooMany,
}

impl Refusal {
    /// What to change.
    #[must_use]
    pub fn message(&self, gateway: &str) -> String {
        match self {
            Self::Model { model, by } => format!(
                "pool {by} is older and serves model {model} through gateway {gateway}: choose another spec.model.name \
                 (or alias), or another spec.gateway"
            ),
            Self::TooMany => {
                format!(
                    "gateway {gateway} has {MAX_POOLS} older pools, which is the most: choose another spec.gateway"
                )
            }
        }
    }
}

/// Where the engine finds the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Downloaded from Hugging Face.
    HuggingFace(String),
    /// In a volume claim, at a path below its mount.
    Claim {
        /// The claim.
        claim: String,
        /// The path.
        path: String,
    },
    /// What the engine image makes of it.
    Image(String),
}

/// A pool that can be built.
#[derive(Debug, Clone, PartialEq)]
pub struct Valid {
    /// Its key.
    pub key: Key,
    /// Its UID.
    pub uid: String,
    /// Where its weights are.
    pub source: Source,
    /// The rest of its spec.
    pub spec: LLMPoolSpec,
    /// Why it gets no engines.
    pub refusal: Option<Refusal>,
}

/// A spec that cannot be built, although the schema let it in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// No UID: not an object of an API server.
    #[error("the object has no UID")]
    NoUid,
    /// The source's form.
    #[error(
        "spec.model.source: `{0}` is none of hf://organisation/repository, pvc://claim/path, image, image:///path"
    )]
    Source(String),
    /// No pod may be missing and none may be more: a rollout could never begin.
    #[error("spec.rollout: maxSurge and maxUnavailable must not both be 0")]
    Rollout,
    /// A flag of the engine that only the operator may set.
    #[error(
        "spec.engine.args: `{arg}` sets --{flag}, which the operator sets or refuses; both engines also take the \
         beginning of a flag for the flag"
    )]
    OwnedFlag {
        /// The word.
        arg: String,
        /// The flag.
        flag: &'static str,
    },
    /// `Fixed` without a time.
    #[error("spec.idle.after: policy Fixed needs it")]
    FixedWithoutAfter,
}

/// Checks a pool.
///
/// # Errors
/// [`Invalid`] naming the field.
pub fn validate(pool: &LLMPool, siblings: &[LLMPool]) -> Result<Valid, Invalid> {
    let spec = &pool.spec;
    let source = match spec.model.parsed_source() {
        Some(ModelSource::HuggingFace(repository)) => Source::HuggingFace(repository.to_owned()),
        Some(ModelSource::Claim { claim, path }) => Source::Claim {
            claim: claim.to_owned(),
            path: path.to_owned(),
        },
        Some(ModelSource::ImagePath(path)) => Source::Image(path.to_owned()),
        Some(ModelSource::Image) => Source::Image(spec.model.name.clone()),
        None => return Err(Invalid::Source(spec.model.source.clone())),
    };
    if let Some((arg, flag)) = spec.engine.args.iter().find_map(owned) {
        let arg = arg.split('=').next().unwrap_or_default().to_owned();
        return Err(Invalid::OwnedFlag { arg, flag });
    }
    if spec.rollout.max_surge == 0 && spec.rollout.max_unavailable == 0 {
        return Err(Invalid::Rollout);
    }
    if spec.idle.policy == weir_crds::llmpool::IdlePolicy::Fixed && spec.idle.after.is_none() {
        return Err(Invalid::FixedWithoutAfter);
    }
    Ok(Valid {
        key: Key::of(pool),
        uid: pool.uid().ok_or(Invalid::NoUid)?,
        source,
        spec: spec.clone(),
        refusal: refusal(pool, siblings),
    })
}

fn owned(arg: &String) -> Option<(&String, &'static str)> {
    reserved::owned_flag(arg).map(|flag| (arg, flag))
}

/// Why `pool` is not served, given all pools of its namespace.
#[must_use]
pub fn refusal<'a>(pool: &LLMPool, siblings: impl IntoIterator<Item = &'a LLMPool>) -> Option<Refusal> {
    let of_gateway = siblings.into_iter().filter(|other| {
        other.spec.gateway == pool.spec.gateway && other.metadata.deletion_timestamp.is_none()
    });
    let mut refusals = refusals(of_gateway);
    refusals.remove(&pool.uid().unwrap_or_default()).flatten()
}

/// For every pool of one gateway, by UID: served, or why not. The oldest comes first, names decide between equals; a
/// refused pool takes no name away from younger ones.
#[must_use]
pub fn refusals<'a>(pools: impl IntoIterator<Item = &'a LLMPool>) -> BTreeMap<String, Option<Refusal>> {
    let mut by_age: Vec<&LLMPool> = pools.into_iter().collect();
    by_age.sort_by_cached_key(|pool| {
        (
            pool.metadata.creation_timestamp.as_ref().map(|at| at.0),
            pool.name_any(),
        )
    });
    let mut taken: BTreeMap<&str, String> = BTreeMap::new();
    let mut served = 0;
    let mut verdicts = BTreeMap::new();
    for pool in by_age {
        let conflict = pool.spec.model.names().find_map(|name| {
            taken.get(name).map(|by| Refusal::Model {
                model: name.to_owned(),
                by: by.clone(),
            })
        });
        let refusal = conflict.or((served == MAX_POOLS).then_some(Refusal::TooMany));
        if refusal.is_none() {
            served += 1;
            for name in pool.spec.model.names() {
                taken.insert(name, pool.name_any());
            }
        }
        verdicts.insert(pool.uid().unwrap_or_default(), refusal);
    }
    verdicts
}
