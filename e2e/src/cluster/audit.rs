//! Reads the API server's audit log: who wrote (or read) what, since a mark.

use std::{
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::progress::now;

/// The audit log of a running cluster.
#[derive(Debug, Clone)]
pub struct Audit {
    path: PathBuf,
}

/// A place in the log.
#[derive(Debug, Clone, Copy)]
pub struct Mark(u64);

/// One request that the API server has answered (or, for a watch, begun to answer).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// Who asked.
    pub user: User,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// `ResponseStarted` (of long answers only) or `ResponseComplete`.
    pub stage: String,
    /// Path and query as asked.
    #[serde(rename = "requestURI")]
    pub uri: String,
    /// What was asked for; `None` for paths that are no object.
    #[serde(default)]
    pub object_ref: Option<ObjectRef>,
    /// The answer.
    #[serde(default)]
    pub response_status: Option<Status>,
    /// The body of a write to a Deployment; `None` for others.
    #[serde(default)]
    pub request_object: Option<Value>,
    /// When the API server received it, by this machine's clock, to the microsecond.
    pub request_received_timestamp: Timestamp,
}

/// Who asked.
#[derive(Debug, Clone, Deserialize)]
pub struct User {
    /// `system:serviceaccount:NAMESPACE:NAME`, or a certificate's name.
    #[serde(default)]
    pub username: String,
}

/// What was asked for; absent parts are empty.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectRef {
    /// Plural, such as `deployments`.
    pub resource: String,
    /// Such as `status` or `scale`.
    pub subresource: String,
    /// Empty for objects of the cluster.
    pub namespace: String,
    /// Empty for lists and creations.
    pub name: String,
    /// API group, empty for core.
    pub api_group: String,
}

/// The answer.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// HTTP status.
    #[serde(default)]
    pub code: u16,
}

/// Which events are wanted; an absent part matches all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// A part of the user's name.
    pub user: Option<String>,
    /// One of these verbs.
    pub verbs: Vec<&'static str>,
    /// The resource, in plural.
    pub resource: Option<String>,
    /// The namespace.
    pub namespace: Option<String>,
}

impl AuditEvent {
    /// Long answers are logged twice: a watch counts when it begins, everything else when it ends.
    fn is_the_one_of_its_request(&self) -> bool {
        (self.verb == "watch") == (self.stage == "ResponseStarted")
    }
}

impl Filter {
    /// Every write.
    #[must_use]
    pub fn writes() -> Self {
        Self {
            verbs: vec!["create", "update", "patch", "delete", "deletecollection"],
            ..Self::default()
        }
    }

    /// Only by users whose name contains `user`.
    #[must_use]
    pub fn by(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// Only of `resource`.
    #[must_use]
    pub fn of(mut self, resource: &str) -> Self {
        self.resource = Some(resource.to_owned());
        self
    }

    /// Only in `namespace`.
    #[must_use]
    pub fn within(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Whether `event` is wanted.
    #[must_use]
    pub fn matches(&self, event: &AuditEvent) -> bool {
        let default = ObjectRef::default();
        let object = event.object_ref.as_ref().unwrap_or(&default);
        self.user
            .as_ref()
            .is_none_or(|user| event.user.username.contains(user.as_str()))
            && (self.verbs.is_empty() || self.verbs.contains(&event.verb.as_str()))
            && self
                .resource
                .as_ref()
                .is_none_or(|resource| object.resource == *resource)
            && self
                .namespace
                .as_ref()
                .is_none_or(|namespace| object.namespace == *namespace)
    }
}

impl Audit {
    /// The log at `path`.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
        }
    }

    /// The log's present end.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn mark(&self) -> Result<Mark> {
        let metadata =
            std::fs::metadata(&self.path).with_context(|| format!("reading {}", self.path.display()))?;
        Ok(Mark(metadata.len()))
    }

    /// The events after `mark` that `filter` wants, oldest first. The API server writes an event just after the
    /// client has its answer: to see one's own, use [`Self::expect`].
    ///
    /// # Errors
    /// The log cannot be read, or holds something else than events.
    pub fn since(&self, mark: Mark, filter: &Filter) -> Result<Vec<AuditEvent>> {
        let mut file = File::open(&self.path).with_context(|| format!("reading {}", self.path.display()))?;
        file.seek(SeekFrom::Start(mark.0))?;
        let mut found = Vec::new();
        let mut reader = BufReader::new(file);
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 {
            // A line still being written is for the next call.
            if line.ends_with('\n') {
                let event: AuditEvent = serde_json::from_str(&line).context("a line of the audit log")?;
                if event.is_the_one_of_its_request() && filter.matches(&event) {
                    found.push(event);
                }
            }
            line.clear();
        }
        Ok(found)
    }

    /// Waits until at least one event after `mark` is wanted by `filter`.
    ///
    /// # Errors
    /// None within `limit`, or as [`Self::since`].
    pub async fn expect(&self, mark: Mark, filter: &Filter, limit: Duration) -> Result<Vec<AuditEvent>> {
        let deadline = now() + limit;
        loop {
            let found = self.since(mark, filter)?;
            if !found.is_empty() {
                return Ok(found);
            }
            if now() > deadline {
                bail!("no event for {filter:?} within {} s", limit.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LINE: &str = r#"{"kind":"Event","level":"Metadata","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/a/configmaps","verb":"create","user":{"username":"system:serviceaccount:weir-system:weir-operator","groups":["x"]},"objectRef":{"resource":"configmaps","namespace":"a","name":"b","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":201},"requestReceivedTimestamp":"2026-01-02T03:04:05.678901Z"}"#;

    #[test]
    fn events_after_the_mark_are_found_and_filtered() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let audit = Audit::at(file.path());
        writeln!(file, "{LINE}").expect("a write");
        let mark = audit.mark().expect("a mark");
        writeln!(file, "{}", LINE.replace("\"a\"", "\"c\"")).expect("a write");
        write!(file, "{{\"half\":").expect("a write");
        let found = |filter: Filter| audit.since(mark, &filter).expect("events").len();
        assert_eq!(
            found(Filter::default()),
            1,
            "neither before the mark nor half written"
        );
        assert_eq!(
            found(Filter::writes().by("weir-operator").of("configmaps").within("c")),
            1
        );
        assert_eq!(found(Filter::writes().by("somebody")), 0);
        assert_eq!(found(Filter::writes().of("pods")), 0);
        assert_eq!(found(Filter::writes().within("a")), 0);
        let reads = Filter {
            verbs: vec!["get"],
            ..Filter::default()
        };
        assert_eq!(found(reads), 0);
    }
}
