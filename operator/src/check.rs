//! `weir-operator --check`: looks whether an operator with these flags and these rights can work, and whether one
//! leads. It writes nothing.

use std::{
    io::{self, Write},
    time::Duration,
};

use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    coordination::v1::Lease,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::timeout;

use crate::{args::Config, calls::TIMEOUT, kinds, rights, version};

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
    wrong.extend(
        rights(
            client,
            &config.watch_namespaces,
            (&config.namespace, &config.lease_name),
        )
        .await,
    );
    wrong.extend(version::of(client).await.as_ref().and_then(version::too_old));
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

/// What the operator needs and may not do, in the words of `kubectl auth can-i`.
///
/// `lease` is namespace and name of the lease.
pub async fn rights(client: &Client, namespaces: &[String], lease: (&str, &str)) -> Vec<String> {
    let scopes: Vec<Option<&str>> = if namespaces.is_empty() {
        vec![None]
    } else {
        namespaces.iter().map(|name| Some(name.as_str())).collect()
    };
    let mut wrong = Vec::new();
    for (group, resource, verbs) in rights::RIGHTS {
        let of_lease = resource == rights::LEASES;
        let scopes = if of_lease {
            &[Some(lease.0)]
        } else {
            scopes.as_slice()
        };
        let named = of_lease.then_some(lease.1);
        for scope in scopes {
            let mut denied = Vec::new();
            for verb in verbs {
                // A right to create cannot be bound to a name.
                let name = named.filter(|_| *verb != "create");
                match may(client, (group, resource, verb), (*scope, name)).await {
                    Ok(true) => {}
                    Ok(false) => denied.push(*verb),
                    Err(error) => {
                        return vec![format!("the API server does not say what is allowed: {error}")];
                    }
                }
            }
            if !denied.is_empty() {
                let whole = if group.is_empty() {
                    resource.to_owned()
                } else {
                    format!("{resource} of {group}")
                };
                let place = scope.map_or("all namespaces".to_owned(), |name| format!("namespace {name}"));
                wrong.push(format!(
                    "no right to {} {whole} in {place}: {}",
                    denied.join(", "),
                    rights::GRANT
                ));
            }
        }
    }
    wrong
}

/// Whether this operator may do something.
async fn may(
    client: &Client,
    (group, resource, verb): (&str, &str, &str),
    (namespace, name): (Option<&str>, Option<&str>),
) -> Result<bool, String> {
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource)),
        None => (resource, None),
    };
    let asked = ResourceAttributes {
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource: subresource.map(str::to_owned),
        verb: Some(verb.to_owned()),
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(asked),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    match timeout(TIMEOUT, reviews.create(&PostParams::default(), &review)).await {
        Ok(Ok(answer)) => Ok(answer.status.is_some_and(|status| status.allowed)),
        Ok(Err(error)) => Err(rights::explained(&error)),
        Err(_) => Err("no answer in time".to_owned()),
    }
}
