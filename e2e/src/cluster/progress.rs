//! Progress on the terminal: every step says what is being waited for, and says so again every few seconds.

use std::{
    fmt::Display,
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use tokio::time::Instant;

/// Longest silence of a running step.
const TICK: Duration = Duration::from_secs(3);
/// Steps shorter than this get one line, not two.
const BRIEF: Duration = Duration::from_millis(700);

/// Writes lines to standard error, each with the seconds since it was made.
#[derive(Clone, Debug)]
pub struct Progress {
    since: Instant,
}

/// What a running step is doing right now; shown with its next line.
#[derive(Clone, Debug, Default)]
pub struct Detail(Arc<Mutex<String>>);

/// The shell's clock.
#[expect(
    clippy::disallowed_methods,
    reason = "the harness is a shell: it waits on real processes"
)]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Starts the clock of the shown seconds.
    #[must_use]
    pub fn new() -> Self {
        Self { since: now() }
    }

    /// Seconds since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        now() - self.since
    }

    /// One line.
    pub fn say(&self, text: impl Display) {
        // Progress must not end the work it reports: a closed terminal is no error.
        let _ = writeln!(io::stderr(), "[{:6.1}s] {text}", self.elapsed().as_secs_f64());
    }

    /// Runs `work`, saying `what` at its start, every few seconds, and at its end.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn step<T>(&self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.step_with(what, &Detail::default(), work).await
    }

    /// As [`Self::step`], with what `work` says of itself in `detail`.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn step_with<T>(
        &self,
        what: &str,
        detail: &Detail,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let began = now();
        self.say(what);
        // Boxed: steps nest, and each would otherwise carry the size of all below it.
        let mut work = Box::pin(work);
        let mut ticks = tokio::time::interval_at(began + TICK, TICK);
        loop {
            tokio::select! {
                result = &mut work => {
                    let took = now() - began;
                    match &result {
                        Ok(_) if took < BRIEF => {}
                        Ok(_) => self.say(format_args!("{what}: done in {:.1} s", took.as_secs_f64())),
                        Err(_) => self.say(format_args!("{what}: FAILED after {:.1} s", took.as_secs_f64())),
                    }
                    return result;
                }
                _ = ticks.tick() => {
                    let seconds = (now() - began).as_secs();
                    self.say(format_args!("{what}: {seconds} s{}", detail.suffix()));
                }
            }
        }
    }
}

impl Detail {
    /// Replaces the shown text.
    pub fn set(&self, text: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text.into();
    }

    /// The shown text.
    #[must_use]
    pub fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn suffix(&self) -> String {
        let text = self.get();
        let shown: String = text.chars().take(170).collect();
        if shown.is_empty() {
            shown
        } else {
            format!(", {shown}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_step_returns_what_its_work_returns() {
        let progress = Progress::new();
        let answer = progress
            .step("counting", async {
                tokio::time::sleep(TICK * 3).await;
                Ok(7)
            })
            .await;
        assert_eq!(answer.ok(), Some(7));
        let failed: Result<()> = progress.step("failing", async { anyhow::bail!("no") }).await;
        assert!(failed.is_err());
    }

    #[test]
    fn long_details_are_cut() {
        let detail = Detail::default();
        detail.set("x".repeat(500));
        assert_eq!(detail.suffix().len(), 172);
    }
}
