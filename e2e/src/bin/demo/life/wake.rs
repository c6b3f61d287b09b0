//! The first request: held while the pool wakes, answered by the pod it woke.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::Instant;
use weir_e2e::{Reach, cluster::progress::Detail};

use super::{MINUTE, MODEL, POOL, show};
use crate::{
    gateway,
    report::{Kubectl, Wake},
    request::{self, Answer},
    stage::{NAMESPACE, Stage},
    view::{Observer, View},
};

/// Sends the request and follows what it causes.
///
/// # Errors
/// It is not held, or not answered well, or the pool does not wake.
pub(super) async fn wake(
    stage: &Stage,
    observer: &Observer,
    gateway: &Reach,
    shown: &mut Vec<Kubectl>,
) -> Result<(Answer, Wake)> {
    let progress = &stage.progress;
    let url = &gateway.url;
    progress.say(format_args!(
        "sending the first agent request to {url}/v1/chat/completions"
    ));
    let ask = async {
        let answer = tokio::time::timeout(MINUTE * 3, request::ask(url, MODEL)).await;
        answer.context("the first request")?.context("the first request")
    };
    let (answer, (patched, ready)) = tokio::try_join!(ask, course(stage, observer, shown))?;
    ensure!(
        answer.status == 200 && answer.whole,
        "the first request was answered badly: {answer:?}"
    );
    ensure!(
        answer.held,
        "the first request was not held although the pool was at zero: {answer:?}"
    );
    let first_byte = answer.first_byte.context("an answer without a byte")?;
    progress.say(format_args!(
        "answered by {} after {:.1} s, of which {:.1} s held",
        answer.endpoint.as_deref().unwrap_or("an unnamed endpoint"),
        (first_byte - answer.sent).as_secs_f64(),
        Duration::from_millis(answer.queued_ms.unwrap_or(0)).as_secs_f64()
    ));
    let measured = |view: &View| view.status().and_then(|status| status.cold_start.clone());
    let what = "waiting for the wake's phases";
    let cold_start = observer.until(progress, what, MINUTE, measured).await?;
    show(stage, "serving", shown).await?;
    let states = gateway::states(stage.cluster()?, stage.client()?, NAMESPACE, POOL).await?;
    let endpoints = states.iter().flat_map(|state| &state.endpoints);
    let wake = Wake {
        held_to_patch_ms: vec![millis(answer.sent, patched)],
        patch_to_ready_s: vec![(ready - patched).as_secs_f64()],
        ready_to_dispatch_ms: endpoints
            .filter_map(|endpoint| endpoint.ready_to_dispatch_ms)
            .collect(),
        // The gateway asks the sidecar itself and is served before the kubelet calls the pod Ready.
        first_byte_after_pod_ready_ms: vec![millis(ready, first_byte)],
        phases: serde_json::to_value(cold_start.phases)?,
    };
    Ok((answer, wake))
}

/// The instants of the order and of the pod's readiness.
async fn course(stage: &Stage, observer: &Observer, shown: &mut Vec<Kubectl>) -> Result<(Instant, Instant)> {
    let progress = &stage.progress;
    let woken = |view: &View| view.wakes().next();
    let what = "the request is held; waiting for the wake";
    let patched = observer.until(progress, what, MINUTE, woken).await?;
    // The status follows the order by a moment; one that does not is shown as it is.
    let waking = |view: &View| (view.reason() != "AtZero").then_some(());
    let _ = observer
        .until_seen(Duration::from_secs(2), &Detail::default(), waking)
        .await;
    show(stage, "first request held", shown).await?;
    let ready = |view: &View| view.ready_after(patched);
    let what = "waiting for the engine pod to be Ready";
    let ready = observer.until(progress, what, MINUTE * 2, ready).await?;
    Ok((patched, ready))
}

/// Negative when `to` was first.
fn millis(from: Instant, to: Instant) -> f64 {
    let apart = |a: Instant, b: Instant| (b - a).as_secs_f64() * 1e3;
    if to >= from {
        apart(from, to)
    } else {
        -apart(to, from)
    }
}
