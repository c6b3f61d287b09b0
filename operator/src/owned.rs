//! Writing one owned object, and only when it is needed: nothing is written while the observed object says all that
//! the desired one does.

use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Preconditions},
};
use serde::Serialize;
use serde_json::Value;
use weir_crds::names;

use crate::{
    caches::Watched,
    calls::{CallError, Calls},
    drift,
    key::Key,
};

/// An object that could not be brought to its desired state.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    /// The API server refused, or did not answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// An object of that name exists and is not ours.
    #[error(
        "{kind} {name} exists and is not managed by {}: rename or delete it",
        names::FIELD_MANAGER
    )]
    Foreign {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// An object of an earlier owner of the same name is still being removed.
    #[error("{kind} {name} of a deleted object is still being removed")]
    Leaving {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The desired object has no JSON form.
    #[error("{name} cannot be written: {source}")]
    Form {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl EnsureError {
    /// The namespace is being deleted: what is missing there stays missing, and garbage collection does the rest.
    #[must_use]
    pub fn is_namespace_ending(&self) -> bool {
        matches!(self, Self::Call(call) if call.is_namespace_ending())
    }

    /// Looking again will do: the object changed meanwhile, or is on its way out.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Call(call) => call.is_stale(),
            Self::Leaving { .. } => true,
            Self::Foreign { .. } | Self::Form { .. } => false,
        }
    }
}

/// Who may own an object.
#[derive(Debug, Clone, Copy)]
pub enum Owner<'a> {
    /// The pool of this UID alone.
    Pool(&'a str),
    /// Any of a gateway's pools.
    Gateway,
}

/// One object's name, its call for metrics, and who owns it.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Name of the call.
    pub call: &'static str,
    /// Namespace and name.
    pub key: &'a Key,
    /// Who may own it.
    pub owner: Owner<'a>,
}

/// Brings one object to its desired state; returns it as it is then. `adjust` sets what depends on the object as it
/// is now and is no reason to write by itself.
///
/// # Errors
/// [`EnsureError`].
pub async fn ensure<K, D>(
    calls: &Calls,
    target: Target<'_>,
    desired: &D,
    observed: Option<&K>,
    adjust: impl Fn(&mut Value, Option<&K>),
) -> Result<K, EnsureError>
where
    K: Watched + Serialize,
    D: Serialize,
{
    let Target { call, key, owner } = target;
    let form = |source| EnsureError::Form {
        name: key.name.clone(),
        source,
    };
    let mut value = drift::stamp(desired).map_err(form)?;
    let api: Api<K> = Api::namespaced(calls.client(), &key.namespace);
    // The cache holds our own objects only, and may be behind: before something is made, the API server is asked.
    let fetched = match observed {
        Some(_) => None,
        None => calls.read("get_before_create", api.get_opt(&key.name)).await?,
    };
    let current = observed.or(fetched.as_ref());
    if let Some(current) = current {
        check_owner(current, owner)?;
        let found = serde_json::to_value(current).map_err(form)?;
        let Some(field) = drift::first_difference(&value, &found) else {
            return Ok(current.clone());
        };
        tracing::info!(kind = %K::kind(&()), object = %key, field, "an object differs from what it should be");
    }
    adjust(&mut value, current);
    match calls.apply(call, &api, &key.name, &value).await {
        // Somebody else's element in one of our lists contradicts ours (a Service port of the same name), and apply
        // leaves it there: our lists are written as a whole.
        Err(error) if error.is_invalid() && current.is_some() => {
            tracing::warn!(object = %key, %error, "an object cannot be applied; it is overwritten");
            Ok(calls.overwrite(call, &api, &key.name, &value).await?)
        }
        other => Ok(other?),
    }
}

fn check_owner<K: Resource<DynamicType = ()>>(current: &K, owner: Owner<'_>) -> Result<(), EnsureError> {
    let kind = K::kind(&()).into_owned();
    let name = current.name_any();
    let managed = current
        .labels()
        .get(names::label::APP_MANAGED_BY)
        .map(String::as_str);
    if managed != Some(names::FIELD_MANAGER) {
        return Err(EnsureError::Foreign { kind, name });
    }
    match owner {
        Owner::Pool(uid) if !crate::scaling::engines::owned_by(current, uid) => {
            Err(EnsureError::Leaving { kind, name })
        }
        Owner::Pool(_) | Owner::Gateway if current.meta().deletion_timestamp.is_some() => {
            Err(EnsureError::Leaving { kind, name })
        }
        Owner::Pool(_) | Owner::Gateway => Ok(()),
    }
}

/// Deletes an object of ours that is not wanted any more.
///
/// # Errors
/// [`CallError`].
pub async fn remove<K: Watched>(
    calls: &Calls,
    call: &'static str,
    observed: Option<&K>,
) -> Result<(), CallError> {
    let Some(object) = observed.filter(|object| object.meta().deletion_timestamp.is_none()) else {
        return Ok(());
    };
    let api: Api<K> = Api::namespaced(calls.client(), &object.namespace().unwrap_or_default());
    let only_this = Preconditions {
        uid: object.uid(),
        resource_version: None,
    };
    let how = DeleteParams::background().preconditions(only_this);
    calls.delete(call, &api, &object.name_any(), &how).await
}
