use super::*;

const MINIMAL: &str =
    "pools:\n- name: coder\n  model: coder-8b\n  endpoints:\n  - {name: a, address: 127.0.0.1:8000}\n";

fn check(yaml: &str, expected: Result<(), &str>) {
    match (GatewayConfig::parse(yaml), expected) {
        (Ok(_), Ok(())) => {}
        (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error} lacks {part}"),
        (got, expected) => panic!("{yaml}: got {got:?}, expected {expected:?}"),
    }
}

#[test]
fn a_minimal_file_is_enough() {
    check(MINIMAL, Ok(()));
}

#[test]
fn yaml_form_reads_back_to_the_same_value_and_hash() {
    let mut config = GatewayConfig::parse(MINIMAL).unwrap();
    config.policies.push(
        serde_json::from_value(serde_json::json!({
            "name": "agents", "pools": ["coder"],
            "identity": [{"header": "x-session"}, "knownClients", {"body": "metadata.session"}, "conversationRoot"],
            "slo": {"ttft": "2s"}, "priority": {"class": "Interactive", "ceiling": "Interactive", "weight": 4},
        }))
        .unwrap(),
    );
    let again = GatewayConfig::parse(&config.to_yaml().unwrap()).unwrap();
    assert_eq!(again, config);
    assert_eq!(again.hash().unwrap(), config.hash().unwrap());
}

#[test]
fn wrong_files_are_refused_by_field() {
    let with = |extra: &str| format!("{MINIMAL}{extra}");
    check("pools: [", Err("not valid YAML"));
    check(&with("surprise: 1\n"), Err("surprise"));
    check(
        &with("- name: coder\n  model: other\n"),
        Err("pools[1].name: `coder` is used twice"),
    );
    check(&with("- name: b\n  model: coder-8b\n"), Err("already belongs"));
    check(
        &with("limits: {maxConnections: 0}\n"),
        Err("limits.maxConnections"),
    );
    check(
        &with("limits: {maxBufferedBytes: 5}\n"),
        Err("limits.maxBufferedBytes"),
    );
    check(&with("timeouts: {idle: 0s}\n"), Err("timeouts.idle"));
    check(&with("timeouts: {idle: -5s}\n"), Err("not a duration"));
    check(
        &with("policies:\n- {name: p, pools: [nobody]}\n"),
        Err("no pool is called `nobody`"),
    );
    check(
        &with("policies:\n- {name: p, pools: [coder], priority: {weight: 65}}\n"),
        Err("weight"),
    );
    check(
        &MINIMAL.replace("127.0.0.1:8000", "localhost"),
        Err("must be host:port"),
    );
    check(&MINIMAL.replace("coder-8b", "''"), Err("pools[0].model"));
}
