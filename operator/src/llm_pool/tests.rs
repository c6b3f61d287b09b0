//! The pure steps on whole objects: samples as users write them, snapshots of what is built from them.

mod news;
mod samples;

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};
use weir_crds::{LLMPool, LLMPoolStatus, names, reserved};

use super::{
    build::{Desired, build},
    observe::Observed,
    status::{Verdict, derive, news},
    validate::{Invalid, Refusal, Source, Valid, refusal, validate},
};
use crate::{
    events::What,
    references::Missing,
    scaling::{
        cost::Ledger,
        decide::{Action, Decision, Mode},
        demand::Demand,
        idle::{self, Blocker},
        outlook::Outlook,
        pods::{EnginePod, Trouble},
        starts::Starts,
    },
};

fn sample(text: &str) -> LLMPool {
    let mut pool: LLMPool = serde_saphyr::from_str(text).unwrap();
    pool.metadata.namespace = Some("agents".to_owned());
    pool.metadata.uid = Some("0b9d".to_owned());
    pool.metadata.generation = Some(3);
    pool
}

fn minimal() -> LLMPool {
    sample(include_str!("../../../deploy/samples/pool-minimal.yaml"))
}

fn full() -> LLMPool {
    sample(include_str!("../../../deploy/samples/pool-full.yaml"))
}

fn changed(change: impl FnOnce(&mut Value)) -> LLMPool {
    let mut pool = serde_json::to_value(minimal()).unwrap();
    change(&mut pool["spec"]);
    serde_json::from_value(pool).unwrap()
}

fn built(pool: &LLMPool) -> (Valid, Desired) {
    let valid = validate(pool, std::slice::from_ref(pool)).unwrap();
    let desired = build(&valid, "router:1");
    (valid, desired)
}

#[test]
fn objects_of_a_minimal_pool() {
    let (_, desired) = built(&minimal());
    insta::assert_yaml_snapshot!("minimal_deployment", desired.deployment);
    insta::assert_yaml_snapshot!("minimal_budget", desired.budget);
    insta::assert_yaml_snapshot!("minimal_network_policy", desired.network_policy);
}

#[test]
fn objects_of_a_full_pool() {
    insta::assert_yaml_snapshot!("full_deployment", built(&full()).1.deployment);
}

#[test]
fn the_engine_of_an_sglang_pool() {
    let pool = sample(include_str!("../../../deploy/samples/pool-sglang.yaml"));
    let deployment = built(&pool).1.deployment;
    let pod = deployment.spec.unwrap().template.spec.unwrap();
    insta::assert_yaml_snapshot!("sglang_engine", pod.containers[0]);
    insta::assert_yaml_snapshot!("sglang_sidecar_args", pod.init_containers.unwrap()[0].args);
}

#[test]
fn sources_become_arguments_and_volumes() {
    let first_arg = |source: &str| {
        let (valid, desired) = built(&changed(|spec| spec["model"]["source"] = json!(source)));
        let pod = desired.deployment.spec.unwrap().template.spec.unwrap();
        let mounted = pod.volumes.unwrap().iter().any(|volume| volume.name == "models");
        (
            valid.source,
            pod.containers[0].args.clone().unwrap()[0].clone(),
            mounted,
        )
    };
    let claim = |path: &str| Source::Claim {
        claim: "weights".to_owned(),
        path: path.to_owned(),
    };
    assert_eq!(
        first_arg("pvc://weights/a/b"),
        (claim("a/b"), "/models/a/b".to_owned(), true)
    );
    assert_eq!(
        first_arg("pvc://weights"),
        (claim(""), "/models".to_owned(), true)
    );
    assert_eq!(
        first_arg("image:///opt/m"),
        (Source::Image("/opt/m".to_owned()), "/opt/m".to_owned(), false)
    );
    assert_eq!(
        first_arg("image"),
        (Source::Image("qwen3-8b".to_owned()), "qwen3-8b".to_owned(), false)
    );
}

/// Flags and variables that the operator sets must be refused to users, or the two would collide.
#[test]
fn what_the_operator_sets_is_reserved() {
    let flags: Vec<&str> = [
        &reserved::MODEL_FLAGS[..],
        &reserved::ADDRESS_FLAGS,
        &reserved::LIFECYCLE_FLAGS,
    ]
    .concat();
    for engine in ["VLLM", "SGLang"] {
        let pool = changed(|spec| {
            spec["engine"]["type"] = json!(engine);
            spec["model"]["revision"] = json!("main");
            spec["model"]["tokenSecretRef"] = json!({"name": "s", "key": "k"});
        });
        let pod = built(&pool).1.deployment.spec.unwrap().template.spec.unwrap();
        let engine = &pod.containers[0];
        for arg in engine
            .args
            .iter()
            .flatten()
            .filter_map(|arg| arg.strip_prefix("--"))
        {
            assert!(flags.contains(&arg), "--{arg} is not reserved");
        }
        let mut names = BTreeSet::new();
        for variable in engine.env.iter().flatten() {
            assert!(
                reserved::ENV.contains(&variable.name.as_str()),
                "{} is not reserved",
                variable.name
            );
            assert!(names.insert(&variable.name), "{} is set twice", variable.name);
        }
    }
}

#[test]
fn the_grace_covers_drain_shutdown_and_teardown() {
    let pool = changed(|spec| spec["drain"] = json!({"timeout": "90s"}));
    let pod = built(&pool).1.deployment.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.termination_grace_period_seconds, Some(90 + 30 + 15));
    let probe = pod.containers[0].startup_probe.clone().unwrap();
    assert!(
        probe.failure_threshold.unwrap() * probe.period_seconds.unwrap() >= 1_800,
        "the default deadline"
    );
}

#[test]
fn specs_that_cannot_be_built_are_refused_by_field() {
    let check = |change: fn(&mut Value), expected: Invalid| {
        assert_eq!(validate(&changed(change), &[]), Err(expected));
    };
    check(
        |spec| spec["model"]["source"] = json!("s3://x"),
        Invalid::Source("s3://x".to_owned()),
    );
    check(
        |spec| spec["rollout"] = json!({"maxSurge": 0, "maxUnavailable": 0}),
        Invalid::Rollout,
    );
    check(
        |spec| spec["idle"] = json!({"policy": "Fixed"}),
        Invalid::FixedWithoutAfter,
    );
    check(
        |spec| spec["engine"]["args"] = json!(["--max-model-len=8", "--api_k=secret"]),
        Invalid::OwnedFlag {
            arg: "--api_k".to_owned(),
            flag: "api-key",
        },
    );
}

fn pool(name: &str, second: u32, models: &[&str], gateway: &str) -> LLMPool {
    serde_json::from_value(json!({
        "apiVersion": names::API_VERSION, "kind": "LLMPool",
        "metadata": {"name": name, "namespace": "n", "uid": name,
            "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
        "spec": {"model": {"name": models[0], "aliases": models[1..], "source": "image"}, "engine": {"image": "e"},
            "gateway": gateway},
    }))
    .unwrap()
}

#[test]
fn the_oldest_pool_keeps_a_model_name() {
    let pools = [
        pool("young", 9, &["c", "b"], "weir"),
        pool("old", 1, &["a"], "weir"),
        pool("middle", 5, &["b", "a"], "weir"),
        pool("elsewhere", 9, &["a"], "other"),
    ];
    let refused = |index: usize| refusal(&pools[index], &pools);
    assert_eq!(refused(1), None);
    assert_eq!(
        refused(2),
        Some(Refusal::Model {
            model: "a".to_owned(),
            by: "old".to_owned()
        })
    );
    assert_eq!(refused(0), None, "a refused pool takes no name away");
    assert_eq!(refused(3), None, "another gateway");
    let twins = [pool("b", 1, &["m"], "weir"), pool("a", 1, &["m"], "weir")];
    assert_eq!(refusal(&twins[1], &twins), None, "equal age: names decide");
    assert!(refusal(&twins[0], &twins).is_some());
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + second).unwrap()
}

fn engine_pod(trouble: Option<Trouble>) -> EnginePod {
    EnginePod {
        name: "coder-engine-a".to_owned(),
        uid: "a".to_owned(),
        created: at(0),
        scheduled: None,
        sidecar_started: None,
        engine_started: None,
        engine_up: false,
        restarts: 0,
        ready: trouble.is_none(),
        ready_changed: None,
        terminating: false,
        trouble,
        deletion_cost: None,
    }
}

fn outlook(change: impl FnOnce(&mut Outlook)) -> Outlook {
    let verdict = idle::Verdict {
        break_even: std::time::Duration::from_secs(20),
        refill: Some(std::time::Duration::from_millis(1_500)),
        threshold: Some(std::time::Duration::from_secs(20)),
        since: Ok(at(5)),
        zero_at: Some(at(25)),
    };
    let mut outlook = Outlook {
        uid: "0b9d".to_owned(),
        mode: Mode::Run,
        policy: idle::Policy::Never,
        desired: 1,
        decision: Decision {
            action: Action::None,
            look_again: None,
            verdict,
            sentence: "because".to_owned(),
            serving: 1,
            starting: 0,
        },
        demand: Demand {
            replicas: 1,
            window: Some(std::time::Duration::from_secs(300)),
            ttft_p95: Some(std::time::Duration::from_millis(1_400)),
            slo_met: 9,
            slo_total: 12,
            ..Demand::default()
        },
        pods: vec![engine_pod(None)],
        rolling: false,
        starts: Starts {
            recent: vec![std::time::Duration::from_secs(10)],
            samples: 1,
            phases: None,
        },
        ledger: Ledger::resume(1.0, 0.5, 0.25, None),
        timeouts: 0,
        foreign: None,
        refused: None,
        epoch: 7,
        failure: None,
        configurations: vec![("weir-gateway-x".to_owned(), Some("h".to_owned()))],
    };
    change(&mut outlook);
    outlook
}

fn observed(pool: LLMPool, outlook: Option<Outlook>) -> Observed {
    Observed {
        siblings: vec![pool.clone()],
        pool,
        deployment: None,
        budget: None,
        network_policy: None,
        outlook: outlook.map(std::sync::Arc::new),
        config_hash: Some("h".to_owned()),
        policies: 1,
    }
}

fn applied(pool: &LLMPool) -> Verdict {
    let (valid, desired) = built(pool);
    let Desired {
        deployment,
        budget,
        network_policy,
    } = desired;
    Verdict::Applied(Box::new((
        valid,
        super::apply::Applied {
            deployment,
            budget,
            network_policy,
        },
    )))
}

#[test]
fn a_status_derived_again_from_itself_is_the_same_but_for_cost() {
    let mut pool = full();
    pool.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
    let first = derive(
        &observed(pool.clone(), Some(outlook(|_| ()))),
        &applied(&pool),
        at(100),
    );
    insta::assert_yaml_snapshot!("status", first);
    // Through JSON, as the API server keeps it.
    let stored: LLMPoolStatus = serde_json::from_value(serde_json::to_value(&first).unwrap()).unwrap();
    pool.status = Some(stored);
    let again = derive(
        &observed(pool.clone(), Some(outlook(|_| ()))),
        &applied(&pool),
        at(5_000),
    );
    let without_cost = |status: &LLMPoolStatus| LLMPoolStatus {
        cost: None,
        ..status.clone()
    };
    assert_eq!(without_cost(&again), without_cost(&first));
    assert_ne!(again.cost, first.cost, "cost grows with time");
    assert_eq!(
        news(&observed(pool.clone(), Some(outlook(|_| ()))), &applied(&pool)),
        [],
        "nothing begins"
    );
}

fn ready_reason(change: impl FnOnce(&mut Outlook)) -> (String, String) {
    let pool = minimal();
    let status = derive(
        &observed(pool.clone(), Some(outlook(change))),
        &applied(&pool),
        at(100),
    );
    (
        status.conditions[0].status.clone(),
        status.conditions[0].reason.clone(),
    )
}

#[test]
fn ready_says_what_a_user_waits_for() {
    let check = |change: fn(&mut Outlook), status: &str, reason: &str| {
        assert_eq!(ready_reason(change), (status.to_owned(), reason.to_owned()));
    };
    fn starting(outlook: &mut Outlook, trouble: Option<Trouble>) {
        outlook.decision.serving = 0;
        outlook.pods = vec![engine_pod(trouble)];
    }
    check(|_| (), "True", "Serving");
    check(
        |o| (o.desired, o.decision.serving, o.pods) = (0, 0, Vec::new()),
        "True",
        "AtZero",
    );
    check(|o| (o.desired, o.decision.serving) = (0, 0), "False", "Draining");
    check(|o| starting(o, None), "False", "Starting");
    check(
        |o| {
            starting(o, None);
            o.demand.held = 1;
        },
        "False",
        "Waking",
    );
    check(
        |o| starting(o, Some(Trouble::Image("x".to_owned()))),
        "False",
        "ImageUnavailable",
    );
    check(
        |o| starting(o, Some(Trouble::Crashing("x".to_owned()))),
        "False",
        "EngineFailing",
    );
    check(
        |o| starting(o, Missing::read(r#"secret "hf" not found"#).map(Trouble::Missing)),
        "False",
        "ReferenceMissing",
    );
    check(
        |o| {
            starting(o, None);
            o.timeouts = 2;
        },
        "False",
        "StartTimeout",
    );
    check(|o| o.mode = Mode::Suspended, "False", "Suspended");
    check(|o| o.demand.replicas = 0, "False", "GatewayNotReady");
}

#[test]
fn the_other_conditions_name_their_cause() {
    let check = |index: usize, change: fn(&mut Outlook), status: &str, reason: &str| {
        let pool = minimal();
        let status_ = derive(
            &observed(pool.clone(), Some(outlook(change))),
            &applied(&pool),
            at(100),
        );
        let condition = &status_.conditions[index];
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            (status, reason),
            "{}",
            condition.type_
        );
    };
    check(1, |_| (), "False", "Stable");
    check(1, |o| o.desired = 2, "True", "ScalingUp");
    check(1, |o| o.desired = 0, "True", "ScalingDown");
    check(1, |o| o.rolling = true, "True", "RollingOut");
    check(
        1,
        |o| o.failure = Some("refused".to_owned()),
        "True",
        "ApplyFailed",
    );
    check(2, |_| (), "True", "Scheduled");
    check(
        2,
        |o| o.pods = vec![engine_pod(Some(Trouble::Unschedulable("0/1".to_owned())))],
        "False",
        "Unschedulable",
    );
    fn claim_missing(outlook: &mut Outlook) {
        let missing = Missing::read(r#"persistentvolumeclaim "w" not found"#).map(Trouble::Missing);
        outlook.pods.push(engine_pod(missing));
    }
    check(0, claim_missing, "True", "Serving");
    check(1, claim_missing, "True", "ReferenceMissing");
    check(2, claim_missing, "False", "ReferenceMissing");
    check(3, |_| (), "True", "OperatorOnly");
    check(
        3,
        |o| o.foreign = Some("kubectl".to_owned()),
        "False",
        "ReplicasChanged",
    );
    check(4, |_| (), "True", "AllReporting");
    check(
        4,
        |o| o.demand.silent = vec!["g".to_owned()],
        "False",
        "SourceSilent",
    );
    check(
        4,
        |o| {
            o.decision.verdict.since = Err(Blocker::Bypassed {
                pod: "p".to_owned(),
                requests: 2,
            })
        },
        "False",
        "TrafficBypassesRouter",
    );
    check(5, |_| (), "True", "InForce");
    check(
        5,
        |o| o.configurations[0].1 = Some("old".to_owned()),
        "False",
        "Pending",
    );
}
