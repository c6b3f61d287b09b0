//! Events, and what keeps engine pods from coming to be.

use super::*;
use crate::scaling::demand::Endpoint;

/// The pod's state is the only source, so the condition goes with it, and there is one event however many show it.
#[test]
fn a_missing_reference_is_one_event_and_clears_when_it_is_there() {
    let mut pool = full();
    pool.metadata.namespace = Some("agents".to_owned());
    let with = |pool: &LLMPool, trouble: Option<Trouble>| {
        let outlook = outlook(|o| {
            o.decision.serving = u32::from(trouble.is_none());
            o.pods = vec![engine_pod(trouble)];
        });
        observed(pool.clone(), Some(outlook))
    };
    let claim = pool.spec.cache.as_ref().unwrap().claim_name.clone().unwrap();
    let said = format!("0/1 nodes are available: persistentvolumeclaim \"{claim}\" not found.");
    let lacking = with(&pool, Missing::read(&said).map(Trouble::Missing));
    let told = news(&lacking, &applied(&pool));
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, What::ReferenceMissing);
    assert!(
        told[0].1.contains(&format!(
            "PersistentVolumeClaim {claim}, named by spec.cache.claimName,"
        )),
        "{}",
        told[0].1
    );
    pool.status = Some(derive(&lacking, &applied(&pool), at(100)));
    let reasons = |pool: &LLMPool| -> Vec<String> {
        let conditions = pool.status.clone().unwrap().conditions;
        conditions.into_iter().map(|condition| condition.reason).collect()
    };
    assert_eq!(reasons(&pool)[..3], ["ReferenceMissing"; 3]);
    pool.status = Some(derive(&with(&pool, None), &applied(&pool), at(200)));
    assert_eq!(reasons(&pool)[..3], ["Serving", "Stable", "Scheduled"]);
}

/// The sidecar's word that the engine answers comes before the kubelet's that it runs.
#[test]
fn a_pod_that_serves_lacks_nothing_whatever_the_kubelet_still_says() {
    let pool = minimal();
    let late = outlook(|o| {
        o.pods = vec![engine_pod(
            Missing::read(r#"secret "hf" not found"#).map(Trouble::Missing),
        )];
        let endpoint = Endpoint {
            eligible: true,
            ..Endpoint::default()
        };
        o.demand.endpoints.insert("a".to_owned(), endpoint);
    });
    let status = derive(&observed(pool.clone(), Some(late)), &applied(&pool), at(100));
    let reasons: Vec<&str> = status.conditions.iter().map(|one| one.reason.as_str()).collect();
    assert_eq!(reasons[..3], ["Serving", "Stable", "Scheduled"]);
}

/// Nothing looks for references while no pod runs: the condition says which ones are unseen.
#[test]
fn at_zero_the_status_says_what_will_be_looked_for() {
    let message = |pool: &LLMPool| {
        let at_zero = outlook(|o| (o.desired, o.decision.serving, o.pods) = (0, 0, Vec::new()));
        let status = derive(&observed(pool.clone(), Some(at_zero)), &applied(pool), at(100));
        status.conditions[0].message.clone()
    };
    assert_eq!(
        message(&changed(|spec| spec["cache"] = json!({"claimName": "compiled"}))),
        "no engine pod runs; the next request starts one. It needs PersistentVolumeClaim compiled: looked for when it \
         starts"
    );
    assert_eq!(
        message(&changed(
            |spec| spec["model"] = json!({"name": "m", "source": "image"})
        )),
        "no engine pod runs; the next request starts one"
    );
}

#[test]
fn pods_that_the_api_server_refuses_are_told_in_its_words() {
    let pool = minimal();
    let said = "pods \"coder-engine-x\" is forbidden: exceeded quota: gpus";
    let refused = outlook(|o| {
        (o.decision.serving, o.pods) = (0, Vec::new());
        o.refused = Some(said.to_owned());
    });
    let seen = observed(pool.clone(), Some(refused));
    let status = derive(&seen, &applied(&pool), at(100));
    let told: Vec<(&str, &str)> = status.conditions[..2]
        .iter()
        .map(|condition| (condition.reason.as_str(), condition.message.as_str()))
        .collect();
    assert_eq!(told, [("PodsRefused", said), ("PodsRefused", said)]);
    assert_eq!(
        news(&seen, &applied(&pool)),
        [(What::PodsRefused, said.to_owned())],
        "one event"
    );
}

#[test]
fn a_state_that_begins_is_news_once() {
    let pool = minimal();
    let mut seen = observed(pool.clone(), Some(outlook(|_| ())));
    let whats = |observed: &Observed| -> Vec<What> {
        news(observed, &applied(&pool))
            .into_iter()
            .map(|(what, _)| what)
            .collect()
    };
    assert_eq!(whats(&seen), [What::Ready]);
    seen.pool.status = Some(derive(&seen, &applied(&pool), at(100)));
    assert_eq!(whats(&seen), []);
    let conflict = Verdict::Invalid(Invalid::Rollout);
    assert_eq!(
        news(&seen, &conflict)
            .into_iter()
            .map(|(what, _)| what)
            .collect::<Vec<_>>(),
        [What::Invalid]
    );
}
