//! `weir-operator --check`: looks whether an operator with these flags and these rights can work, and whether one
//! leads. It writes nothing.

use std::{
    io::{self, Write},
    time::Duration,
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Pod, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{Role, RoleBinding},
};
use kube::{Api, Client, api::ListParams};
use tokio::time::timeout;

use crate::{args::Config, calls::TIMEOUT, kinds};

/// Looks, with a pause between them, before what is wrong counts: a leader may just be changing.
const LOOKS: u32 = 15;
const PAUSE: Duration = Duration::from_secs(2);

/// Prints what was found; `false` where something keeps the operator from its work.
///
/// # Errors
/// There is no client to be made, or nowhere to print.
pub async fn check(client: &Client, config: &Config) -> anyhow::Result<bool> {
    let mut out = io::stdout();
    let mut wrong = look(client, config).await;
    for _ in 1..LOOKS {
        if wrong.is_empty() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        wrong = look(client, config).await;
    }
    if wrong.is_empty() {
        writeln!(
            out,
            "the kinds are installed, the rights are granted, an operator leads"
        )?;
    }
    for problem in &wrong {
        writeln!(out, "wrong: {problem}")?;
    }
    Ok(wrong.is_empty())
}

/// Everything that is wrong, each with what to do.
async fn look(client: &Client, config: &Config) -> Vec<String> {
    let mut wrong = kinds::missing(client, &config.watch_namespaces).await;
    if wrong.is_empty() {
        match kinds::lacking(client).await {
            Ok(fields) if fields.is_empty() => {}
            Ok(fields) => wrong.push(format!(
                "the installed kinds are older than this operator: apply crds/yaml of its version; they lack {}",
                fields.join(", ")
            )),
            Err(error) => wrong.push(format!("the schema of the kinds cannot be read: {error}")),
        }
    }
    wrong.extend(rights(client, &config.watch_namespaces).await);
    let leases: Api<Lease> = Api::namespaced(client.clone(), &config.namespace);
    let lease = timeout(TIMEOUT, leases.get(&config.lease_name)).await;
    let (name, namespace) = (&config.lease_name, &config.namespace);
    match lease {
        Ok(Ok(lease)) => {
            let holder = lease
                .spec
                .and_then(|spec| spec.holder_identity)
                .unwrap_or_default();
            if holder.is_empty() {
                wrong.push(format!(
                    "no operator leads: nobody holds the lease {name} in {namespace}; kubectl -n {namespace} logs deploy/{name}"
                ));
            }
        }
        Ok(Err(error)) => wrong.push(format!("the lease {name} in {namespace}: {error}")),
        Err(_) => wrong.push(format!(
            "the lease {name} in {namespace}: the API server does not answer"
        )),
    }
    wrong
}

/// The kinds that may not be listed, of all that the operator watches.
async fn rights(client: &Client, namespaces: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    let scopes: Vec<Option<&str>> = if namespaces.is_empty() {
        vec![None]
    } else {
        namespaces.iter().map(|name| Some(name.as_str())).collect()
    };
    for scope in scopes {
        wrong.extend(listed::<Deployment>(client, scope).await);
        wrong.extend(listed::<Pod>(client, scope).await);
        wrong.extend(listed::<Service>(client, scope).await);
        wrong.extend(listed::<ServiceAccount>(client, scope).await);
        wrong.extend(listed::<ConfigMap>(client, scope).await);
        wrong.extend(listed::<Role>(client, scope).await);
        wrong.extend(listed::<RoleBinding>(client, scope).await);
        wrong.extend(listed::<PodDisruptionBudget>(client, scope).await);
        wrong.extend(listed::<NetworkPolicy>(client, scope).await);
    }
    wrong
}

async fn listed<K>(client: &Client, namespace: Option<&str>) -> Option<String>
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let one = ListParams::default().limit(1);
    match timeout(TIMEOUT, api.list_metadata(&one)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(format!(
            "{} cannot be listed: the operator's role must be bound to its ServiceAccount ({error})",
            K::plural(&())
        )),
        Err(_) => Some(format!("{}: the API server does not answer", K::plural(&()))),
    }
}
