//! The waiting requests of a pool, in one order.
//!
//! First to last, of those that an endpoint with room may serve:
//!
//! 1. **Overdue** requests: `wait ≥ bound`, the bound being the request's own `max_wait`, else its class's
//!    ([`Class::bound`]). Among themselves by deadline (`arrival + bound`), then by arrival.
//! 2. **Returning** turns (the workflow has, or while the request waited had, a home) and retries; then **new** work.
//! 3. Inside: by [`Class`].
//! 4. Inside: retries first; then the smallest `(1 / weight) / (1 + wait / 60 s)`, which is the greatest
//!    `weight · (60 s + wait)`, computed in whole nanoseconds. Ties by arrival.
//!
//! So before its bound a request never goes before a waiting one of a higher class and the same standing (returning or
//! new) that could go to the same endpoint, and past its bound it goes before all that are not past theirs. A request
//! that no endpoint with room may serve lets others pass.
//!
//! Requests that may go to the same endpoints share a [`Lane`]. Among equal standing, class and weight the order by 4.
//! never changes, so a lane is a sorted set, and its head the best of one candidate for each weight that occurs.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::Duration,
};

use indexmap::IndexMap;

use crate::{
    place::Lane,
    types::{Affinity, Class, Request, RequestId, Time, Workflow},
};

/// A wait of this long doubles a request's urgency inside its class.
const AGEING: Duration = Duration::from_secs(60);

/// Standing of work that is not overdue, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Returning,
    New,
}

/// Where a request waits, and for how long it stays patient there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) lane: Lane,
    pub(crate) rank: Rank,
    /// When it stops waiting for its home alone.
    pub(crate) patient_until: Option<Time>,
}

/// A waiting request.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) request: Request,
    pub(crate) arrived: Time,
    /// Arrivals in order.
    pub(crate) seq: u64,
    pub(crate) route: Route,
}

impl Waiting {
    /// Overdue from then on.
    pub(crate) fn deadline(&self) -> Time {
        let bound = self.request.max_wait.unwrap_or(self.request.class.bound());
        self.arrived.plus(bound)
    }

    fn key(&self) -> Key {
        Key {
            rank: self.route.rank,
            class: self.request.class,
            retry: Reverse(self.request.not_on.is_some()),
            weight: self.request.weight.clamp(1, 64),
            seq: self.seq,
            arrived: self.arrived,
            id: self.request.id,
        }
    }
}

/// Place in a lane. Sorted so that requests of one weight stand together, in order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    rank: Rank,
    class: Class,
    retry: Reverse<bool>,
    weight: u32,
    seq: u64,
    arrived: Time,
    id: RequestId,
}

impl Key {
    fn turn(&self, now: Time) -> Turn {
        let age = now.since(self.arrived).saturating_add(AGEING).as_nanos();
        Turn::Due {
            rank: self.rank,
            class: self.class,
            retry: self.retry,
            urgency: Reverse(u128::from(self.weight).saturating_mul(age)),
            seq: self.seq,
        }
    }
}

/// Place in the order of the whole queue, first served least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Turn {
    Overdue {
        deadline: Time,
        seq: u64,
    },
    Due {
        rank: Rank,
        class: Class,
        retry: Reverse<bool>,
        urgency: Reverse<u128>,
        seq: u64,
    },
}

#[derive(Debug, Default)]
struct Line {
    order: BTreeSet<Key>,
    deadlines: BTreeSet<(Time, u64, RequestId)>,
    arrivals: BTreeSet<(u64, RequestId)>,
}

impl Line {
    fn head(&self, now: Time) -> Option<(Turn, RequestId)> {
        if let Some((deadline, seq, id)) = self.deadlines.first().copied()
            && deadline <= now
        {
            return Some((Turn::Overdue { deadline, seq }, id));
        }
        let mut first = *self.order.first()?;
        let mut best = (first.turn(now), first.id);
        loop {
            let past = Key {
                seq: u64::MAX,
                ..first
            };
            let next = self.order.range((Bound::Excluded(past), Bound::Unbounded)).next();
            match next {
                Some(next)
                    if (next.rank, next.class, next.retry) == (first.rank, first.class, first.retry) =>
                {
                    first = *next;
                    best = best.min((first.turn(now), first.id));
                }
                _ => return Some(best),
            }
        }
    }
}

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: IndexMap<RequestId, Waiting>,
    lines: BTreeMap<Lane, Line>,
    by_workflow: BTreeSet<(Workflow, u64, RequestId)>,
    patience: BTreeSet<(Time, u64, RequestId)>,
    bytes: u64,
    next_seq: u64,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The number of the next arrival: all waiting have a smaller one.
    pub(crate) const fn next_seq(&self) -> u64 {
        self.next_seq
    }

    pub(crate) fn get(&self, id: RequestId) -> Option<&Waiting> {
        self.waiting.get(&id)
    }

    pub(crate) fn push(&mut self, request: Request, route: Route, now: Time) {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.bytes = self.bytes.saturating_add(request.bytes);
        if let Some(workflow) = affine(&request) {
            self.by_workflow.insert((workflow, seq, request.id));
        }
        let id = request.id;
        let waiting = Waiting {
            request,
            arrived: now,
            seq,
            route,
        };
        self.line_up(&waiting);
        self.waiting.insert(id, waiting);
    }

    pub(crate) fn remove(&mut self, id: RequestId) -> Option<Waiting> {
        let waiting = self.waiting.swap_remove(&id)?;
        self.bytes = self.bytes.saturating_sub(waiting.request.bytes);
        if let Some(workflow) = affine(&waiting.request) {
            self.by_workflow.remove(&(workflow, waiting.seq, id));
        }
        self.step_out(&waiting);
        Some(waiting)
    }

    /// Moves a waiting request to another lane. Standing, once won, is kept.
    pub(crate) fn reroute(&mut self, id: RequestId, route: Route) {
        let Some(mut waiting) = self.waiting.swap_remove(&id) else {
            return;
        };
        let rank = waiting.route.rank.min(route.rank);
        let route = Route { rank, ..route };
        if route != waiting.route {
            self.step_out(&waiting);
            waiting.route = route;
            self.line_up(&waiting);
        }
        self.waiting.insert(id, waiting);
    }

    /// The waiting requests of a workflow, in order of arrival.
    pub(crate) fn of_workflow(&self, workflow: Workflow) -> impl Iterator<Item = RequestId> {
        let from = (workflow, 0, RequestId(0));
        let to = (workflow, u64::MAX, RequestId(u64::MAX));
        self.by_workflow.range(from..=to).map(|(_, _, id)| *id)
    }

    pub(crate) fn has_workflow(&self, workflow: Workflow) -> bool {
        self.of_workflow(workflow).next().is_some()
    }

    /// A request whose patience ended.
    pub(crate) fn impatient(&self, now: Time) -> Option<RequestId> {
        self.patience
            .first()
            .filter(|(until, ..)| *until <= now)
            .map(|(.., id)| *id)
    }

    /// When the next patience ends.
    pub(crate) fn next_impatient(&self) -> Option<Time> {
        self.patience.first().map(|(until, ..)| *until)
    }

    /// The first in order among the lanes that `serves` accepts.
    pub(crate) fn first(&self, now: Time, mut serves: impl FnMut(Lane) -> bool) -> Option<RequestId> {
        let heads = self
            .lines
            .iter()
            .filter(|(lane, _)| serves(**lane))
            .filter_map(|(_, line)| line.head(now));
        heads.min().map(|(_, id)| id)
    }

    /// Each lane with its oldest request.
    pub(crate) fn oldest(&self) -> impl Iterator<Item = (Lane, &Waiting)> {
        self.lines.iter().filter_map(|(lane, line)| {
            let (_, id) = line.arrivals.first()?;
            Some((*lane, self.waiting.get(id)?))
        })
    }

    /// The request that arrived last.
    pub(crate) fn newest(&self) -> Option<RequestId> {
        let newest = self.lines.values().filter_map(|line| line.arrivals.last());
        newest.max().map(|(_, id)| *id)
    }

    fn line_up(&mut self, waiting: &Waiting) {
        let line = self.lines.entry(waiting.route.lane).or_default();
        let id = waiting.request.id;
        line.order.insert(waiting.key());
        line.deadlines.insert((waiting.deadline(), waiting.seq, id));
        line.arrivals.insert((waiting.seq, id));
        if let Some(until) = waiting.route.patient_until {
            self.patience.insert((until, waiting.seq, id));
        }
    }

    fn step_out(&mut self, waiting: &Waiting) {
        let id = waiting.request.id;
        if let Some(line) = self.lines.get_mut(&waiting.route.lane) {
            line.order.remove(&waiting.key());
            line.deadlines.remove(&(waiting.deadline(), waiting.seq, id));
            line.arrivals.remove(&(waiting.seq, id));
            if line.arrivals.is_empty() {
                self.lines.remove(&waiting.route.lane);
            }
        }
        if let Some(until) = waiting.route.patient_until {
            self.patience.remove(&(until, waiting.seq, id));
        }
    }
}

/// The request's workflow, when it has affinity.
pub(crate) fn affine(request: &Request) -> Option<Workflow> {
    request.workflow.filter(|_| request.affinity != Affinity::None)
}
