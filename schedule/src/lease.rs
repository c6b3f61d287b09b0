//! Tool pauses: workflows whose last answer asked for a tool call and that are expected back. While one lasts, the
//! pool is not idle. Kept apart from homes, because a workflow is expected back whether or not its home still lives.

use std::collections::BTreeSet;

use indexmap::IndexMap;

use crate::types::{Time, Workflow};

/// The running leases.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    ends: IndexMap<Workflow, Time>,
    by_end: BTreeSet<(Time, Workflow)>,
}

impl Leases {
    /// Starts or renews a lease. At most `most` are kept; the one that would end first makes room.
    pub(crate) fn start(&mut self, workflow: Workflow, until: Time, most: u32) {
        self.end(workflow);
        self.ends.insert(workflow, until);
        self.by_end.insert((until, workflow));
        while self.ends.len() > most as usize {
            let Some((_, first)) = self.by_end.first().copied() else {
                break;
            };
            self.end(first);
        }
    }

    /// The workflow is back.
    pub(crate) fn end(&mut self, workflow: Workflow) {
        if let Some(until) = self.ends.swap_remove(&workflow) {
            self.by_end.remove(&(until, workflow));
        }
    }

    /// Ends the leases that lapsed.
    pub(crate) fn expire(&mut self, now: Time) {
        while let Some((until, workflow)) = self.by_end.first().copied()
            && until <= now
        {
            self.end(workflow);
        }
    }

    /// The earliest end.
    pub(crate) fn next_expiry(&self) -> Option<Time> {
        self.by_end.first().map(|(until, _)| *until)
    }

    /// Leases that run past `now`, and the last end.
    pub(crate) fn running(&self, now: Time) -> (usize, Option<Time>) {
        let lapsed = self.by_end.iter().take_while(|(until, _)| *until <= now).count();
        let last = self.by_end.last().map(|(until, _)| *until);
        (self.ends.len() - lapsed, last.filter(|until| *until > now))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}
