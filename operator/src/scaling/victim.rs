//! Which engine pod goes when one is removed. Pure.

use super::{demand::Demand, pods::EnginePod};

/// Cost that makes a pod the first to go; pods without the annotation count as 0.
pub const VICTIM_COST: &str = "-1000";

/// The pod to remove, and whether the gateways must stop sending to it first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    /// Pod name.
    pub name: String,
    /// Pod UID.
    pub uid: String,
    /// Requests may be going there.
    pub serves: bool,
}

/// The pod whose loss costs least. A pod that is not ready goes first: the ReplicaSet controller would take it first
/// whatever its cost. Among ready ones: fewest KV tokens that would be lost, then fewest workflows at home, then
/// fewest requests in flight, then the youngest, then by name.
#[must_use]
pub fn choose(pods: &[EnginePod], demand: &Demand) -> Option<Victim> {
    pods.iter()
        .filter(|pod| !pod.terminating)
        .min_by_key(|pod| {
            let endpoint = demand.endpoints.get(&pod.uid).cloned().unwrap_or_default();
            (
                pod.ready,
                endpoint.kv_tokens,
                endpoint.workflows,
                endpoint.in_flight,
                std::cmp::Reverse(pod.created),
                pod.name.clone(),
            )
        })
        .map(|pod| Victim {
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            serves: pod.ready
                || demand
                    .endpoints
                    .get(&pod.uid)
                    .is_some_and(|endpoint| endpoint.eligible),
        })
}

/// Pods whose annotation differs from what it should be when `victim` goes, with the value to write; `None` removes.
#[must_use]
pub fn costs<'a>(pods: &'a [EnginePod], victim: &str) -> Vec<(&'a str, Option<&'static str>)> {
    pods.iter()
        .filter(|pod| !pod.terminating)
        .filter_map(|pod| {
            let wanted = (pod.uid == victim).then_some(VICTIM_COST);
            (pod.deletion_cost.as_deref() != wanted).then_some((pod.name.as_str(), wanted))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::demand::Endpoint;
    use jiff::Timestamp;

    fn pod(name: &str, ready: bool, created: i64) -> EnginePod {
        EnginePod {
            name: name.to_owned(),
            uid: format!("u-{name}"),
            created: Timestamp::from_second(created).unwrap(),
            scheduled: None,
            sidecar_started: None,
            engine_started: None,
            engine_up: ready,
            restarts: 0,
            ready,
            ready_changed: None,
            terminating: false,
            trouble: None,
            deletion_cost: None,
        }
    }

    fn demand(values: &[(&str, u64, u32, u32)]) -> Demand {
        let mut demand = Demand::default();
        for (name, kv_tokens, workflows, in_flight) in values {
            let endpoint = Endpoint {
                eligible: true,
                kv_tokens: *kv_tokens,
                workflows: *workflows,
                in_flight: *in_flight,
                ..Endpoint::default()
            };
            demand.endpoints.insert(format!("u-{name}"), endpoint);
        }
        demand
    }

    fn check(pods: &[EnginePod], demand: &Demand, expected: Option<&str>) {
        assert_eq!(
            choose(pods, demand).map(|victim| victim.name).as_deref(),
            expected
        );
    }

    #[test]
    fn least_value_goes_then_least_load_then_youngest() {
        let pods = [pod("a", true, 1), pod("b", true, 2), pod("c", true, 3)];
        check(
            &pods,
            &demand(&[("a", 900, 1, 0), ("b", 100, 9, 9), ("c", 500, 0, 0)]),
            Some("b"),
        );
        check(
            &pods,
            &demand(&[("a", 5, 2, 0), ("b", 5, 1, 9), ("c", 5, 3, 0)]),
            Some("b"),
        );
        check(
            &pods,
            &demand(&[("a", 5, 1, 1), ("b", 5, 1, 2), ("c", 5, 1, 3)]),
            Some("a"),
        );
        check(&pods, &demand(&[]), Some("c"));
    }

    #[test]
    fn a_pod_that_is_not_ready_goes_first_and_one_that_goes_already_never() {
        let mut pods = vec![pod("a", true, 1), pod("b", false, 1)];
        check(&pods, &demand(&[("a", 0, 0, 0)]), Some("b"));
        pods[1].terminating = true;
        check(&pods, &demand(&[]), Some("a"));
        pods[0].terminating = true;
        check(&pods, &demand(&[]), None);
    }

    #[test]
    fn stale_marks_are_taken_off() {
        let mut pods = [pod("a", true, 1), pod("b", true, 1), pod("c", true, 1)];
        pods[0].deletion_cost = Some(VICTIM_COST.to_owned());
        assert_eq!(costs(&pods, "u-b"), [("a", None), ("b", Some(VICTIM_COST))]);
        pods[0].deletion_cost = None;
        pods[1].deletion_cost = Some(VICTIM_COST.to_owned());
        assert_eq!(costs(&pods, "u-b"), []);
    }
}
