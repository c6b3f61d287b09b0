//! The API server's version against the oldest that Weir is made for.

use k8s_openapi::apimachinery::pkg::version::Info;
use kube::Client;
use tokio::time::timeout;

use crate::calls::TIMEOUT;

/// Major and minor number of the oldest Kubernetes, as in `kubeVersion` of the chart.
pub const OLDEST: (u32, u32) = (1, 33);

/// What to say of an API server that is too old; `None` for one that is not, or that does not say its numbers.
#[must_use]
pub fn too_old(server: &Info) -> Option<String> {
    // Clouds write a minor number such as `31+`.
    let number = |text: &str| {
        text.trim_end_matches(|c: char| !c.is_ascii_digit())
            .parse::<u32>()
            .ok()
    };
    let (major, minor) = (number(&server.major)?, number(&server.minor)?);
    let (oldest_major, oldest_minor) = OLDEST;
    ((major, minor) < OLDEST).then(|| {
        format!(
            "Kubernetes {} is older than {oldest_major}.{oldest_minor}: engine pods need native sidecars \
             (stable since 1.33; off before 1.29), and nothing older is tested; upgrade the cluster",
            server.git_version
        )
    })
}

/// The API server's version, if it says it.
pub async fn of(client: &Client) -> Option<Info> {
    match timeout(TIMEOUT, client.apiserver_version()).await {
        Ok(Ok(server)) => Some(server),
        Ok(Err(error)) => {
            tracing::debug!(%error, "the API server's version is not known");
            None
        }
        Err(_) => None,
    }
}

/// Says so in the log, and goes on: much may work.
pub async fn warn_if_old(client: &Client) {
    if let Some(why) = of(client).await.as_ref().and_then(too_old) {
        tracing::warn!(why, "the cluster is too old");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(major: &str, minor: &str, old: bool) {
        let server = Info {
            major: major.to_owned(),
            minor: minor.to_owned(),
            git_version: format!("v{major}.{minor}.0"),
            ..Info::default()
        };
        assert_eq!(too_old(&server).is_some(), old, "{major}.{minor}");
    }

    #[test]
    fn versions_are_compared_by_number() {
        check("1", "28", true);
        check("1", "32+", true);
        check("1", "33", false);
        check("1", "33+", false);
        check("1", "100", false);
        check("2", "0", false);
        check("", "", false);
    }

    #[test]
    fn the_chart_asks_for_the_same() {
        let chart = include_str!("../../charts/weir/Chart.yaml");
        let (major, minor) = OLDEST;
        assert!(
            chart.contains(&format!("kubeVersion: \">={major}.{minor}.0-0\"")),
            "{chart}"
        );
    }
}
