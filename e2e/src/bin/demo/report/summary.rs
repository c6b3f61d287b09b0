//! The summary for people: one line per part of the report.

use std::io::{self, Write};

use serde_json::Value;

use super::{Idle, ReplicaHours, Report, Requests, Tokens, Wake, Workflows};

const UNKNOWN: &str = "unknown";

impl Report {
    /// Writes the summary to standard output.
    ///
    /// # Errors
    /// Standard output is closed.
    pub(crate) fn print(&self) -> io::Result<()> {
        let lines = [
            ("requests", self.requests.line()),
            ("workflows", self.workflows.line()),
            ("prompt tokens", self.tokens.line()),
            ("wake", self.wake.line()),
            ("phases", self.wake.phases()),
            ("idle", self.idle.line()),
            (
                "replica-hours",
                self.replica_hours.line(self.scale.most_ready_endpoints),
            ),
            (
                "cluster",
                format!("Kubernetes {} ({})", self.cluster.version, self.cluster.kind),
            ),
            ("played", played(&self.trace)),
        ];
        let mut out = io::stdout();
        writeln!(out, "\nSummary")?;
        for (name, line) in lines {
            writeln!(out, "  {name:<14} {line}")?;
        }
        writeln!(out)
    }
}

impl Requests {
    fn line(&self) -> String {
        let Self {
            sent,
            ok,
            failed,
            lost,
            held,
            ..
        } = self;
        format!("{sent} sent, {ok} answered, {failed} failed, {lost} lost, {held} held")
    }
}

impl Workflows {
    fn line(&self) -> String {
        let Self {
            count,
            turns,
            home_kept_percent,
            home_kept,
            home_moved,
            home_lost,
        } = self;
        let returning = home_kept + home_moved + home_lost;
        let kept = home_kept_percent.map_or_else(|| UNKNOWN.to_owned(), |percent| format!("{percent:.1} %"));
        format!(
            "{count} with {turns} turns; {kept} of {returning} returning turns kept their home, {home_moved} were moved, \
             {home_lost} found it gone"
        )
    }
}

impl Tokens {
    fn line(&self) -> String {
        let Self {
            prompt,
            cached,
            uncached,
        } = self;
        format!("{prompt}: {cached} cached, {uncached} not")
    }
}

impl Wake {
    fn line(&self) -> String {
        let dispatch: Vec<f64> = self.ready_to_dispatch_ms.iter().map(|ms| *ms as f64).collect();
        format!(
            "held to order {}; order to Ready {}; ready to dispatch {}; first byte {} after Ready",
            list(&self.held_to_patch_ms, "ms"),
            list(&self.patch_to_ready_s, "s"),
            list(&dispatch, "ms"),
            list(&self.first_byte_after_pod_ready_ms, "ms"),
        )
    }

    fn phases(&self) -> String {
        let Some(phases) = self.phases.as_object() else {
            return UNKNOWN.to_owned();
        };
        let part = |(name, value): (&String, &Value)| format!("{name} {}", value.as_str().unwrap_or(UNKNOWN));
        phases.iter().map(part).collect::<Vec<_>>().join(", ")
    }
}

impl Idle {
    fn line(&self) -> String {
        let seconds =
            |value: Option<f64>| value.map_or_else(|| UNKNOWN.to_owned(), |value| format!("{value:.1} s"));
        format!(
            "break-even {}, threshold {}, zero {:.1} s after the last request",
            seconds(self.break_even_s),
            seconds(self.threshold_s),
            self.zero_after_s
        )
    }
}

impl ReplicaHours {
    fn line(&self, most_ready: usize) -> String {
        let Self { used, always_on } = self;
        let saved = if *always_on > 0.0 {
            100.0 * (1.0 - used / always_on)
        } else {
            0.0
        };
        format!(
            "{used:.4} used, {always_on:.4} always on ({saved:.0} % saved); at most {most_ready} endpoints ready"
        )
    }
}

fn played(trace: &Value) -> String {
    let text = |field: &str| match trace.get(field) {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => UNKNOWN.to_owned(),
    };
    let (sessions, source) = (text("sessions"), text("source"));
    let (pauses, prompts) = (text("time_scale"), text("prompt_scale"));
    format!("{sessions} sessions of {source}, pauses x {pauses}, prompts x {prompts}")
}

fn list(values: &[f64], unit: &str) -> String {
    if values.is_empty() {
        return UNKNOWN.to_owned();
    }
    let values: Vec<_> = values.iter().map(|value| format!("{value:.1}")).collect();
    format!("{} {unit}", values.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_unknowns() {
        assert_eq!(list(&[1.0, 2.25], "ms"), "1.0, 2.2 ms");
        assert_eq!(list(&[], "ms"), UNKNOWN);
        let hours = ReplicaHours {
            used: 0.25,
            always_on: 1.0,
        };
        assert!(hours.line(3).contains("(75 % saved)"));
    }
}
