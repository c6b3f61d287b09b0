//! Which endpoint is home of which workflow: where its KV cache (probably) is. Bounded by count, idle time and age.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use indexmap::IndexMap;

use crate::types::{EndpointId, Request, Time, Workflow};

/// Idle life of a binding that an endpoint remembered, until a request brings its policy's.
const REMEMBERED_TTL: Duration = Duration::from_secs(3_600);
/// Age of a binding that an endpoint remembered, until a request brings its policy's.
const REMEMBERED_AGE: Duration = Duration::from_secs(86_400);

/// Microseconds since the origin; negative for uses before this machine began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Stamp(i64);

impl Stamp {
    fn before(now: Time, age: Duration) -> Self {
        let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        Self(micros(now.0).saturating_sub(micros(age)))
    }
}

#[derive(Debug)]
struct Binding {
    home: EndpointId,
    /// Names this binding, so that the end of a request counted in a forgotten one changes nothing.
    generation: u64,
    created: Time,
    last_use: Stamp,
    /// As `last_use`, saturated at the origin.
    last_use_at: Time,
    idle_ttl: Duration,
    max_age: Duration,
    tokens: Option<u64>,
    in_flight: u32,
    last_move: Option<Time>,
    /// When it is forgotten; `None` while in use.
    expires: Option<Time>,
}

/// What an endpoint's workflows amount to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HomeLoad {
    pub(crate) workflows: u32,
    pub(crate) kv_tokens: u64,
}

/// A dispatched request's claim on its workflow's binding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    pub(crate) workflow: Workflow,
    generation: u64,
}

/// The table. A binding is *in use* while a turn of its workflow is in flight or waits, and *at rest* otherwise; only
/// one at rest expires or makes room for others.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    table: IndexMap<Workflow, Binding>,
    loads: BTreeMap<EndpointId, HomeLoad>,
    resting: BTreeSet<(Stamp, Workflow)>,
    expiries: BTreeSet<(Time, Workflow)>,
    generations: u64,
    /// Most bindings kept.
    most: u32,
}

impl Bindings {
    pub(crate) const fn set_most(&mut self, most: u32) {
        self.most = most;
    }

    pub(crate) fn home(&self, workflow: Workflow) -> Option<EndpointId> {
        self.table.get(&workflow).map(|binding| binding.home)
    }

    pub(crate) fn last_move(&self, workflow: Workflow) -> Option<Time> {
        self.table.get(&workflow)?.last_move
    }

    pub(crate) fn load(&self, endpoint: EndpointId) -> HomeLoad {
        self.loads.get(&endpoint).copied().unwrap_or_default()
    }

    /// Bindings that have not expired at `now`.
    pub(crate) fn open(&self, now: Time) -> usize {
        self.table.len() - self.lapsed(now).count()
    }

    /// The endpoint's load without bindings that have expired at `now`.
    pub(crate) fn open_load(&self, endpoint: EndpointId, now: Time) -> HomeLoad {
        let lapsed = self.lapsed(now).filter(|binding| binding.home == endpoint);
        lapsed.fold(self.load(endpoint), |load, binding| HomeLoad {
            workflows: load.workflows.saturating_sub(1),
            kv_tokens: load.kv_tokens.saturating_sub(binding.tokens.unwrap_or(0)),
        })
    }

    /// Bindings that expired by `now` and are not forgotten yet.
    fn lapsed(&self, now: Time) -> impl Iterator<Item = &Binding> {
        let lapsed = self.expiries.iter().take_while(move |(at, _)| *at <= now);
        lapsed.filter_map(|(_, workflow)| self.table.get(workflow))
    }

    /// A turn arrived: the binding is in use and takes on its policy.
    pub(crate) fn touch(&mut self, workflow: Workflow, request: &Request, now: Time) {
        self.rouse(workflow);
        if let Some(binding) = self.table.get_mut(&workflow) {
            binding.idle_ttl = request.idle_ttl;
            binding.max_age = request.max_age;
            binding.used(now);
        }
    }

    /// A turn is dispatched to `endpoint`, which is its home from now on. `None` when the table is full of bindings
    /// in use: the workflow then has no home.
    pub(crate) fn claim(
        &mut self,
        workflow: Workflow,
        endpoint: EndpointId,
        request: &Request,
        now: Time,
    ) -> Option<Claim> {
        if !self.table.contains_key(&workflow) {
            if !self.make_room(None) {
                return None;
            }
            let binding = self.fresh(endpoint, request.idle_ttl, request.max_age, now);
            self.insert(workflow, binding);
        }
        self.rouse(workflow);
        self.unload(workflow);
        let binding = self.table.get_mut(&workflow)?;
        if binding.home != endpoint {
            binding.home = endpoint;
            binding.last_move = Some(now);
            binding.tokens = None;
        }
        binding.in_flight += 1;
        binding.used(now);
        let generation = binding.generation;
        self.reload(workflow);
        Some(Claim { workflow, generation })
    }

    /// A dispatched turn ended. `footprint` is known when it was answered by `endpoint`.
    pub(crate) fn release(&mut self, claim: Claim, endpoint: EndpointId, footprint: Option<u64>, now: Time) {
        self.unload(claim.workflow);
        if let Some(binding) = self.table.get_mut(&claim.workflow)
            && binding.generation == claim.generation
        {
            binding.in_flight = binding.in_flight.saturating_sub(1);
            binding.used(now);
            if footprint.is_some() && binding.home == endpoint {
                binding.tokens = footprint;
            }
        }
        self.reload(claim.workflow);
    }

    /// No turn waits any more: if none is in flight either, the binding is at rest, and expires at the earlier of
    /// last use + idle TTL and creation + greatest age.
    pub(crate) fn rest(&mut self, workflow: Workflow) {
        let Some(binding) = self.table.get_mut(&workflow) else {
            return;
        };
        if binding.in_flight > 0 || binding.expires.is_some() {
            return;
        }
        let idle = binding.last_use_at.plus(binding.idle_ttl);
        let expires = idle.min(binding.created.plus(binding.max_age));
        binding.expires = Some(expires);
        self.resting.insert((binding.last_use, workflow));
        self.expiries.insert((expires, workflow));
    }

    /// Forgets what expired.
    pub(crate) fn expire(&mut self, now: Time) {
        while let Some((at, workflow)) = self.expiries.first().copied()
            && at <= now
        {
            self.forget(workflow);
        }
    }

    pub(crate) fn next_expiry(&self) -> Option<Time> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// Forgets bindings at rest, least recently used first, until no more are kept than may be.
    pub(crate) fn trim(&mut self) {
        while self.table.len() > self.most as usize && self.forget_least_recent(None) {}
    }

    /// The endpoint is gone: forgets its bindings and returns their workflows.
    pub(crate) fn forget_home(&mut self, endpoint: EndpointId) -> Vec<Workflow> {
        let homeless = self.table.iter().filter(|(_, binding)| binding.home == endpoint);
        let homeless: Vec<_> = homeless.map(|(workflow, _)| *workflow).collect();
        for workflow in &homeless {
            self.forget(*workflow);
        }
        homeless
    }

    /// An endpoint remembers a workflow, last used `age` ago. A binding in use wins, then the more recent use.
    /// Whether the workflow's home is `endpoint` by this. Idle life is [`REMEMBERED_TTL`] until its next turn.
    pub(crate) fn remember(&mut self, workflow: Workflow, memory: &Memory, in_use: bool, now: Time) -> bool {
        let last_use = Stamp::before(now, memory.age);
        let Some(left) = REMEMBERED_TTL
            .checked_sub(memory.age)
            .filter(|left| !left.is_zero())
        else {
            return false;
        };
        if let Some(known) = self.table.get(&workflow) {
            if in_use || known.in_flight > 0 || known.last_use >= last_use {
                return false;
            }
            self.forget(workflow);
        } else if !self.make_room(Some(last_use)) {
            return false;
        }
        let mut binding = self.fresh(memory.endpoint, REMEMBERED_TTL, REMEMBERED_AGE, now);
        binding.tokens = memory.tokens;
        binding.last_use = last_use;
        if !in_use {
            let expires = now.plus(left);
            binding.expires = Some(expires);
            self.resting.insert((last_use, workflow));
            self.expiries.insert((expires, workflow));
        }
        self.insert(workflow, binding);
        true
    }

    fn fresh(&mut self, home: EndpointId, idle_ttl: Duration, max_age: Duration, now: Time) -> Binding {
        self.generations += 1;
        Binding {
            home,
            generation: self.generations,
            created: now,
            last_use: Stamp::before(now, Duration::ZERO),
            last_use_at: now,
            idle_ttl,
            max_age,
            tokens: None,
            in_flight: 0,
            last_move: None,
            expires: None,
        }
    }

    fn insert(&mut self, workflow: Workflow, binding: Binding) {
        self.table.insert(workflow, binding);
        self.reload(workflow);
    }

    /// Makes room for one more. With `newer_than`, only by forgetting a binding used before that.
    fn make_room(&mut self, newer_than: Option<Stamp>) -> bool {
        self.table.len() < self.most as usize || (self.most > 0 && self.forget_least_recent(newer_than))
    }

    fn forget_least_recent(&mut self, newer_than: Option<Stamp>) -> bool {
        match self.resting.first().copied() {
            Some((last_use, workflow)) if newer_than.is_none_or(|newer| last_use < newer) => {
                self.forget(workflow);
                true
            }
            _ => false,
        }
    }

    fn forget(&mut self, workflow: Workflow) {
        self.rouse(workflow);
        self.unload(workflow);
        self.table.swap_remove(&workflow);
    }

    /// Takes the binding out of rest.
    fn rouse(&mut self, workflow: Workflow) {
        if let Some(binding) = self.table.get_mut(&workflow)
            && let Some(expires) = binding.expires.take()
        {
            self.resting.remove(&(binding.last_use, workflow));
            self.expiries.remove(&(expires, workflow));
        }
    }

    /// Takes the binding out of its home's load.
    fn unload(&mut self, workflow: Workflow) {
        let Some(binding) = self.table.get(&workflow) else {
            return;
        };
        if let Some(load) = self.loads.get_mut(&binding.home) {
            load.workflows = load.workflows.saturating_sub(1);
            load.kv_tokens = load.kv_tokens.saturating_sub(binding.tokens.unwrap_or(0));
            if load.workflows == 0 {
                self.loads.remove(&binding.home);
            }
        }
    }

    /// Adds the binding to its home's load.
    fn reload(&mut self, workflow: Workflow) {
        let Some(binding) = self.table.get(&workflow) else {
            return;
        };
        let load = self.loads.entry(binding.home).or_default();
        load.workflows += 1;
        load.kv_tokens = load.kv_tokens.saturating_add(binding.tokens.unwrap_or(0));
    }
}

impl Binding {
    fn used(&mut self, now: Time) {
        self.last_use = Stamp::before(now, Duration::ZERO);
        self.last_use_at = now;
    }
}

/// What an endpoint remembers of a workflow.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) endpoint: EndpointId,
    pub(crate) tokens: Option<u64>,
    pub(crate) age: Duration,
}
