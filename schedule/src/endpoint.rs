//! The pool's endpoints: who may get work, and how much. Breaker states are *in rotation*, *ejected*, *probation*.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::types::{EndpointId, Time};

/// First ejection after a failed connect; doubles with every further one.
const FIRST_EJECTION: Duration = Duration::from_secs(1);
/// Longest ejection.
const LONGEST_EJECTION: Duration = Duration::from_secs(30);
/// Ids of gone endpoints remembered, so that a late word about one does not bring it back.
const MAX_GONE: usize = 4_096;

/// How far an endpoint is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rotation {
    /// Fully.
    In,
    /// Became ready with requests waiting: a first batch only, until one of them is answered.
    Cold,
    /// A connect failed: no work until then.
    Ejected { until: Time },
    /// An ejection lapsed: one request at a time, until one is answered.
    Probation,
}

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    ready: bool,
    draining: bool,
    concurrency: u32,
    in_flight: u32,
    rotation: Rotation,
    /// Failed connects since the last answer.
    failures: u32,
    /// Names the current cold or probation phase, so that answers of an earlier one do not count.
    trial: u32,
    /// Dispatched in this phase and not finished.
    on_trial: u32,
    /// Since when it is not in rotation; `None` while it is.
    out_since: Option<Time>,
    /// When it was first ready and not draining.
    first_usable: Option<Time>,
    first_dispatch: Option<Duration>,
}

impl Endpoint {
    fn new(now: Time) -> Self {
        Self {
            ready: false,
            draining: false,
            concurrency: 0,
            in_flight: 0,
            rotation: Rotation::In,
            failures: 0,
            trial: 0,
            on_trial: 0,
            out_since: Some(now),
            first_usable: None,
            first_dispatch: None,
        }
    }

    pub(crate) const fn ready(&self) -> bool {
        self.ready
    }

    pub(crate) const fn draining(&self) -> bool {
        self.draining
    }

    pub(crate) const fn concurrency(&self) -> u32 {
        self.concurrency
    }

    pub(crate) const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub(crate) const fn first_dispatch(&self) -> Option<Duration> {
        self.first_dispatch
    }

    /// Ready and not draining, ejected or not: while one is, waiting requests are queued and not held.
    pub(crate) const fn present(&self) -> bool {
        self.ready && !self.draining
    }

    /// May get work as soon as it has room.
    pub(crate) fn eligible(&self, now: Time) -> bool {
        self.present() && !matches!(self.rotation, Rotation::Ejected { until } if until > now)
    }

    /// Trusted with work: the time a request may wait for the pool to come back does not run.
    pub(crate) const fn in_rotation(&self) -> bool {
        self.present() && matches!(self.rotation, Rotation::In | Rotation::Cold)
    }

    /// Since when it is not in rotation; `None` while it is.
    pub(crate) const fn out_since(&self) -> Option<Time> {
        self.out_since
    }

    /// Requests that fit now.
    fn room(&self, first_batch: u32) -> u32 {
        if !self.present() {
            return 0;
        }
        let free = self.concurrency.saturating_sub(self.in_flight);
        match self.rotation {
            Rotation::In => free,
            Rotation::Cold => free.min(first_batch.max(1).saturating_sub(self.on_trial)),
            Rotation::Probation => free.min(1_u32.saturating_sub(self.on_trial)),
            Rotation::Ejected { .. } => 0,
        }
    }

    const fn begin_trial(&mut self, rotation: Rotation) {
        self.rotation = rotation;
        self.trial = self.trial.wrapping_add(1);
        self.on_trial = 0;
    }

    const fn current_trial(&self) -> Option<u32> {
        match self.rotation {
            Rotation::Cold | Rotation::Probation => Some(self.trial),
            Rotation::In | Rotation::Ejected { .. } => None,
        }
    }

    fn note(&mut self, now: Time) {
        if self.in_rotation() {
            self.out_since = None;
        } else {
            self.out_since.get_or_insert(now);
        }
        if self.present() {
            self.first_usable.get_or_insert(now);
        }
    }
}

/// A place taken at an endpoint, given back with [`Endpoints::release`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) endpoint: EndpointId,
    trial: Option<u32>,
}

/// All endpoints that are not gone.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    table: BTreeMap<EndpointId, Endpoint>,
    gone: BTreeSet<EndpointId>,
    first_batch: u32,
    /// Since when none is in rotation; `None` while one is.
    closed_since: Option<Time>,
}

impl Endpoints {
    pub(crate) const fn set_first_batch(&mut self, first_batch: u32) {
        self.first_batch = first_batch;
    }

    pub(crate) fn get(&self, id: EndpointId) -> Option<&Endpoint> {
        self.table.get(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (EndpointId, &Endpoint)> {
        self.table.iter().map(|(id, endpoint)| (*id, endpoint))
    }

    /// Endpoints that fit at least one request now.
    pub(crate) fn with_room(&self) -> impl Iterator<Item = (EndpointId, &Endpoint)> {
        self.iter()
            .filter(|(_, endpoint)| endpoint.room(self.first_batch) > 0)
    }

    pub(crate) fn has_room(&self, id: EndpointId) -> bool {
        self.get(id)
            .is_some_and(|endpoint| endpoint.room(self.first_batch) > 0)
    }

    pub(crate) fn any_present(&self) -> bool {
        self.table.values().any(Endpoint::present)
    }

    /// Since when none is in rotation; `None` while one is. As of the last [`Self::note`].
    pub(crate) const fn closed_since(&self) -> Option<Time> {
        self.closed_since
    }

    /// Brings the clocks of rotation up to date; called at the end of every step.
    pub(crate) fn note(&mut self, now: Time) {
        for endpoint in self.table.values_mut() {
            endpoint.note(now);
        }
        if self.table.values().any(Endpoint::in_rotation) {
            self.closed_since = None;
        } else {
            self.closed_since.get_or_insert(now);
        }
    }

    /// The endpoint, made known as not ready when it is new; `None` when it is gone for good.
    fn entry(&mut self, id: EndpointId, now: Time) -> Option<&mut Endpoint> {
        if self.gone.contains(&id) {
            return None;
        }
        Some(self.table.entry(id).or_insert_with(|| Endpoint::new(now)))
    }

    /// Makes the endpoint known, if it is new. Whether it exists then.
    pub(crate) fn introduce(&mut self, id: EndpointId, now: Time) -> bool {
        self.entry(id, now).is_some()
    }

    /// It is ready. When it was not before, an ejection ends, and with requests waiting it starts cold.
    pub(crate) fn set_ready(&mut self, id: EndpointId, concurrency: u32, waiting: bool, now: Time) {
        let Some(endpoint) = self.entry(id, now) else {
            return;
        };
        endpoint.concurrency = concurrency.max(1);
        if !endpoint.ready {
            endpoint.ready = true;
            endpoint.failures = 0;
            endpoint.begin_trial(if waiting { Rotation::Cold } else { Rotation::In });
        }
    }

    pub(crate) fn set_not_ready(&mut self, id: EndpointId, now: Time) {
        if let Some(endpoint) = self.entry(id, now) {
            endpoint.ready = false;
        }
    }

    pub(crate) fn set_draining(&mut self, id: EndpointId, draining: bool, now: Time) {
        if !draining && !self.table.contains_key(&id) {
            return;
        }
        if let Some(endpoint) = self.entry(id, now) {
            endpoint.draining = draining;
        }
    }

    /// Whether it was known.
    pub(crate) fn remove(&mut self, id: EndpointId) -> bool {
        self.gone.insert(id);
        if self.gone.len() > MAX_GONE {
            self.gone.pop_first();
        }
        self.table.remove(&id).is_some()
    }

    /// Takes a place; the caller has chosen an endpoint with room.
    pub(crate) fn reserve(&mut self, id: EndpointId, now: Time) -> Place {
        let mut trial = None;
        if let Some(endpoint) = self.table.get_mut(&id) {
            endpoint.in_flight += 1;
            trial = endpoint.current_trial();
            endpoint.on_trial += u32::from(trial.is_some());
            if endpoint.first_dispatch.is_none() {
                endpoint.first_dispatch = endpoint.first_usable.map(|usable| now.since(usable));
            }
        }
        Place { endpoint: id, trial }
    }

    /// Gives a place back.
    pub(crate) fn release(&mut self, place: Place) {
        if let Some(endpoint) = self.table.get_mut(&place.endpoint) {
            endpoint.in_flight = endpoint.in_flight.saturating_sub(1);
            if place.trial.is_some() && place.trial == endpoint.current_trial() {
                endpoint.on_trial = endpoint.on_trial.saturating_sub(1);
            }
        }
    }

    /// A request there was answered: ends a cold phase or probation that the request was part of.
    pub(crate) fn answered(&mut self, place: Place) {
        if let Some(endpoint) = self.table.get_mut(&place.endpoint)
            && place.trial.is_some()
            && place.trial == endpoint.current_trial()
        {
            endpoint.rotation = Rotation::In;
            endpoint.failures = 0;
        }
    }

    /// A connect failed: ejects for `1 s · 2^n`, at most 30 s, with `n` failures since the last answer. Returns the
    /// end; `None` when it is gone, not ready (there is nothing to take it out of), or ejected already, so that one
    /// incident counts once.
    pub(crate) fn eject(&mut self, id: EndpointId, now: Time) -> Option<Time> {
        let endpoint = self.table.get_mut(&id)?;
        if !endpoint.ready || matches!(endpoint.rotation, Rotation::Ejected { .. }) {
            return None;
        }
        let span = FIRST_EJECTION.saturating_mul(1 << endpoint.failures.min(16));
        let until = now.plus(span.min(LONGEST_EJECTION));
        endpoint.failures = endpoint.failures.saturating_add(1);
        endpoint.rotation = Rotation::Ejected { until };
        Some(until)
    }

    /// Turns lapsed ejections into probation.
    pub(crate) fn expire(&mut self, now: Time) {
        for endpoint in self.table.values_mut() {
            if matches!(endpoint.rotation, Rotation::Ejected { until } if until <= now) {
                endpoint.begin_trial(Rotation::Probation);
            }
        }
    }

    /// The earliest end of an ejection.
    pub(crate) fn next_expiry(&self) -> Option<Time> {
        let ends = self
            .table
            .values()
            .filter_map(|endpoint| match endpoint.rotation {
                Rotation::Ejected { until } => Some(until),
                Rotation::In | Rotation::Cold | Rotation::Probation => None,
            });
        ends.min()
    }
}
