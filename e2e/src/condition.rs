//! Waiting for something to become true, with the last state seen in the error.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::cluster::progress::{Progress, now};

const PERIOD: Duration = Duration::from_millis(100);
/// A wait that lasts longer says so.
const TICK: Duration = Duration::from_secs(5);

/// What one look saw.
#[derive(Debug)]
pub enum Seen<T> {
    /// What was waited for.
    Done(T),
    /// Something else; the text goes into progress lines and the error.
    NotYet(String),
}

/// Looks every 100 ms until `look` returns [`Seen::Done`].
///
/// An error of `look` counts as not yet: the object may not exist, or the API server be busy.
///
/// # Errors
/// Not done within `limit`; the error names what was waited for and what was seen last.
pub async fn await_condition<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Seen<T>>,
) -> Result<T> {
    let progress = Progress::new();
    let began = now();
    let mut said = began;
    loop {
        let last = match tokio::time::timeout(limit, look()).await {
            Ok(Ok(Seen::Done(value))) => return Ok(value),
            Ok(Ok(Seen::NotYet(state))) => state,
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "the look itself did not end".to_owned(),
        };
        let waited = now() - began;
        if waited >= limit {
            bail!(
                "waited {:.1} s for {what}; last seen: {last}",
                waited.as_secs_f64()
            );
        }
        if now() - said >= TICK {
            said = now();
            progress.say(format_args!("waiting for {what}: {last}"));
        }
        tokio::time::sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_the_value_or_the_last_state() {
        let mut looks = 0;
        let value = await_condition("three", Duration::from_secs(10), async || {
            looks += 1;
            Ok(if looks == 3 {
                Seen::Done(looks)
            } else {
                Seen::NotYet(looks.to_string())
            })
        })
        .await;
        assert_eq!(value.ok(), Some(3));
        let never: Result<()> = await_condition("never", Duration::from_secs(1), async || {
            Ok(Seen::NotYet("half way".to_owned()))
        })
        .await;
        let text = never.expect_err("a timeout").to_string();
        assert!(text.contains("never") && text.contains("half way"), "{text}");
    }
}
