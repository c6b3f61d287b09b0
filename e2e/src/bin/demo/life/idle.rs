//! No more requests: the countdown to break-even, and zero.

use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use tokio::time::Instant;
use weir_crds::{LLMPoolStatus, llmpool::IdleStatus};
use weir_e2e::cluster::progress::Progress;

use super::{MINUTE, show};
use crate::{
    report::{Idle, Kubectl},
    stage::Stage,
    view::{Observer, View},
};

/// Waits until the pool is at zero.
///
/// # Errors
/// It does not get there.
pub(super) async fn idle(
    stage: &Stage,
    observer: &Observer,
    last_end: Instant,
    shown: &mut Vec<Kubectl>,
) -> Result<Idle> {
    let progress = &stage.progress;
    let what = "no more requests; waiting for idleness";
    let idle = observer
        .until(progress, what, MINUTE, |view| counting(view, last_end))
        .await?;
    show(stage, "idle", shown).await?;
    if let Some(reason) = &idle.reason {
        progress.say(format_args!("why: {reason}"));
    }
    let seconds = |value: Option<weir_crds::Duration>| value.map(|value| Duration::from(value).as_secs_f64());
    let limit = Duration::from_secs_f64(seconds(idle.threshold).unwrap_or(0.0)) + MINUTE * 2;
    let what = "counting down to break-even";
    let zero = tokio::select! {
        zero = observer.until(progress, what, limit, |view| ordered_zero(view, last_end)) => zero?,
        never = count_down(progress, observer) => never,
    };
    let gone = |view: &View| (view.living() == 0 && view.reason() == "AtZero").then_some(());
    let what = "zero is ordered; waiting for the pods to end";
    observer.until(progress, what, MINUTE * 2, gone).await?;
    show(stage, "at zero again", shown).await?;
    Ok(Idle {
        break_even_s: seconds(idle.break_even),
        threshold_s: seconds(idle.threshold),
        zero_after_s: (zero - last_end).as_secs_f64(),
        reason: idle.reason,
    })
}

/// The idleness that is being counted, or that has already led to zero.
fn counting(view: &View, last_end: Instant) -> Option<IdleStatus> {
    let idle = view.status()?.idle.clone()?;
    (idle.zero_at.is_some() || ordered_zero(view, last_end).is_some()).then_some(idle)
}

/// When zero replicas were ordered, after the last request.
fn ordered_zero(view: &View, last_end: Instant) -> Option<Instant> {
    let (at, replicas) = view.ordered.last()?;
    (*replicas == 0 && *at >= last_end).then_some(*at)
}

/// Says every two seconds how far it is.
async fn count_down<T>(progress: &Progress, observer: &Observer) -> T {
    let mut ticks = tokio::time::interval(Duration::from_secs(2));
    loop {
        ticks.tick().await;
        let view = observer.view();
        let line = view
            .status()
            .and_then(|status| countdown_line(status, Timestamp::now()));
        if let Some(line) = line {
            progress.say(line);
        }
    }
}

fn countdown_line(status: &LLMPoolStatus, now: Timestamp) -> Option<String> {
    let idle = status.idle.as_ref()?;
    let since = status.activity.as_ref()?.idle_since.as_ref()?;
    let left = idle.zero_at.as_ref()?.0.duration_since(now).as_secs_f64();
    let idle_for = now.duration_since(since.0).as_secs_f64();
    let break_even = idle
        .break_even
        .map_or_else(|| "unknown".to_owned(), |value| value.to_string());
    let zero = if left > 0.0 {
        format!("in {left:.0} s")
    } else {
        "is due".to_owned()
    };
    Some(format!(
        "idle for {idle_for:.0} s; break-even {break_even}; zero {zero}"
    ))
}
