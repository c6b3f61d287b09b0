//! What the KV cache that a stop loses costs to compute again. Pure.

use super::demand::Demand;

/// Seconds of one engine pod to prefill again what the workflows at home on a pod left in its KV cache: the mean over
/// the endpoints of `min(footprints, capacity) / µ`. Footprints are last prompt plus completion of workflows that have
/// not expired; more than the cache holds cannot be lost. Rounded to tenths, so that noise does not show.
///
/// `None` where it is not known, which is never nothing: a gateway is silent, nobody has learned µ (`prefill`,
/// tokens a second) yet, or the engines tell no token counts.
#[must_use]
pub fn refill(demand: &Demand, prefill: Option<f64>) -> Option<f64> {
    if !demand.known() {
        return None;
    }
    let at_home = || demand.endpoints.values().filter(|it| it.workflows > 0);
    if at_home().next().is_none() {
        return Some(0.0);
    }
    let tokens: f64 = at_home()
        .map(|it| it.kv_tokens.min(it.kv_capacity_tokens.unwrap_or(u64::MAX)) as f64)
        .sum();
    let rate = prefill.filter(|rate| *rate > 0.0)?;
    let pods = demand
        .endpoints
        .values()
        .filter(|it| it.eligible || it.workflows > 0)
        .count();
    let pods = u32::try_from(pods).unwrap_or(u32::MAX);
    (tokens > 0.0).then(|| (tokens / f64::from(pods) / rate * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::demand::Endpoint;

    /// Workflows, tokens, capacity.
    type Pod = (u32, u64, Option<u64>);

    fn check(pods: &[Pod], prefill: Option<f64>, expected: Option<f64>) {
        let endpoints = pods
            .iter()
            .enumerate()
            .map(|(index, (workflows, kv_tokens, kv_capacity_tokens))| {
                let endpoint = Endpoint {
                    eligible: true,
                    workflows: *workflows,
                    kv_tokens: *kv_tokens,
                    kv_capacity_tokens: *kv_capacity_tokens,
                    ..Endpoint::default()
                };
                (index.to_string(), endpoint)
            });
        let demand = Demand {
            replicas: 1,
            endpoints: endpoints.collect(),
            ..Demand::default()
        };
        assert_eq!(refill(&demand, prefill), expected, "{pods:?} {prefill:?}");
        let silent = Demand {
            silent: vec!["g".to_owned()],
            ..demand
        };
        assert_eq!(refill(&silent, prefill), None);
    }

    #[test]
    fn footprints_over_the_prefill_rate_or_unknown() {
        let rate = Some(10_000.0);
        // Nothing is at home anywhere: nothing is lost, whatever the rate.
        check(&[], None, Some(0.0));
        check(&[(0, 0, None)], None, Some(0.0));
        check(&[(3, 60_000, None)], rate, Some(6.0));
        // More than the cache holds cannot be lost.
        check(&[(9, 900_000, Some(200_000))], rate, Some(20.0));
        check(&[(9, 90_000, Some(200_000))], rate, Some(9.0));
        // The mean of two pods, one of them empty.
        check(&[(9, 60_000, None), (1, 20_000, None)], rate, Some(4.0));
        check(&[(9, 60_000, None), (0, 0, None)], rate, Some(3.0));
        // Tenths.
        check(&[(1, 1_234, None)], rate, Some(0.1));
        // Unknown is not nothing.
        check(&[(3, 60_000, None)], None, None);
        check(&[(3, 60_000, None)], Some(0.0), None);
        check(&[(3, 0, None)], rate, None);
    }
}
