//! The task that drives one pool's scheduler: turns commands into events and effects into answers, keeps the clock, and
//! publishes the pool's state.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use weir_schedule::{Effect, EndpointId, Event, Pool, Request, RequestId, ShedReason, Snapshot, Time};
use weir_wire::control::{EndpointState, Order, OrderAnswer, PoolState};

use super::{
    Admission, Command, Endpoint, EngineLoad, OrderError, Permit, PoolStart, Record, Shed, ledger::Ledger,
};

/// Between two publications of changes that are not urgent.
const COALESCE: Duration = Duration::from_secs(1);
/// Between two publications at all.
const LEAST_GAP: Duration = Duration::from_millis(20);
/// Between two looks at idle connections.
const SWEEP: Duration = Duration::from_secs(2);
/// Commands taken in one go.
const BATCH: usize = 128;

pub(super) struct Driver {
    name: String,
    uid: String,
    pool: Pool,
    origin: Instant,
    effects: Vec<Effect>,
    waiting: HashMap<RequestId, Waiter>,
    endpoints: HashMap<EndpointId, Arc<Endpoint>>,
    loads: HashMap<EndpointId, EngineLoad>,
    /// Draining orders in force, and when they lapse.
    drains: HashMap<EndpointId, Time>,
    commands: mpsc::WeakUnboundedSender<Command>,
    ledger: Ledger,
    epoch: u64,
    closed: bool,
    state: watch::Sender<Arc<PoolState>>,
    /// Something changed since the last publication.
    dirty: bool,
    /// Something changed that the operator is to hear at once.
    urgent: bool,
    published: Option<Time>,
    sweep_at: Option<Time>,
}

/// Whoever waits for an admission.
struct Waiter {
    reply: oneshot::Sender<Result<Admission, Shed>>,
    /// It is a second attempt: the request's arrival is in the books.
    again: bool,
}

impl Driver {
    pub(super) fn new(
        start: &PoolStart,
        state: watch::Sender<Arc<PoolState>>,
        commands: mpsc::WeakUnboundedSender<Command>,
    ) -> Self {
        Self {
            name: start.name.clone(),
            uid: start.uid.clone(),
            pool: Pool::new(start.settings.clone()),
            origin: instant(),
            effects: Vec::new(),
            waiting: HashMap::new(),
            endpoints: HashMap::new(),
            loads: HashMap::new(),
            drains: HashMap::new(),
            commands,
            ledger: Ledger::new(Arc::clone(&start.metrics)),
            epoch: 0,
            closed: false,
            state,
            dirty: false,
            urgent: false,
            published: None,
            sweep_at: None,
        }
    }

    /// Runs until every handle and permit is gone.
    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut timer = std::pin::pin!(sleep_until(self.origin));
        loop {
            let deadline = self.next_deadline();
            // A timer that fires too early costs one idle turn; moving it with every request would cost more.
            if let Some(deadline) = deadline.map(|deadline| self.origin + deadline.0)
                && (timer.deadline() > deadline || timer.is_elapsed())
            {
                timer.as_mut().reset(deadline);
            }
            tokio::select! {
                biased;
                taken = commands.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        return;
                    }
                }
                () = timer.as_mut(), if deadline.is_some() => {}
            }
            let now = self.now();
            for command in batch.drain(..) {
                self.take(command, now);
            }
            self.pass_time(now);
            self.publish(now);
        }
    }

    fn now(&self) -> Time {
        Time(instant().duration_since(self.origin))
    }

    fn next_deadline(&self) -> Option<Time> {
        let publish = self
            .published
            .map(|at| at.plus(if self.urgent { LEAST_GAP } else { COALESCE }));
        [
            self.pool.next_deadline(),
            self.drains.values().min().copied(),
            self.sweep_at,
            publish.filter(|_| self.dirty),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn take(&mut self, command: Command, now: Time) {
        self.dirty |= match &command {
            Command::Look(_) => false,
            // Closing an idle pool changes nothing that anyone has to hear.
            Command::Close => !self.waiting.is_empty(),
            _ => true,
        };
        match command {
            Command::Submit {
                request,
                again,
                reply,
            } => self.submit(request, Waiter { reply, again }, now),
            Command::Event(event) => self.event(event, now),
            Command::Finished(id, outcome, record) => {
                self.ledger.record(record, now);
                self.sweep_at.get_or_insert(now.plus(SWEEP));
                self.on(Event::Finished(id, outcome), now);
            }
            Command::Tally(record) => self.ledger.record(record, now),
            Command::SetEndpoint(endpoint) => {
                let id = endpoint.id;
                // The one known under this id is reached in another way from now on; what it is does not change.
                if self.endpoints.insert(id, endpoint).is_none() {
                    self.event(Event::EndpointNotReady(id), now);
                }
            }
            Command::RemoveEndpoint(id) => {
                self.urgent = true;
                self.loads.remove(&id);
                self.drains.remove(&id);
                self.on(Event::EndpointGone(id), now);
                self.endpoints.remove(&id);
            }
            Command::EngineFigures(id, load) => {
                match load {
                    Some(load) => self.loads.insert(id, load),
                    None => self.loads.remove(&id),
                };
            }
            Command::Order(epoch, order, reply) => {
                let answer = self.order(epoch, order, now);
                // The operator may have hung up; the order holds all the same.
                let _ = reply.send(answer);
            }
            Command::Look(reply) => {
                // Whoever asked may have gone.
                let _ = reply.send(self.snapshot(now));
            }
            Command::Close => self.close(now),
        }
    }

    fn submit(&mut self, request: Request, waiter: Waiter, now: Time) {
        if !waiter.again {
            self.ledger.arrived();
        }
        if self.closed {
            self.shed(waiter, ShedReason::NoCapacity, None);
            return;
        }
        self.waiting.insert(request.id, waiter);
        self.on(Event::Arrived(request), now);
    }

    fn event(&mut self, event: Event, now: Time) {
        match &event {
            Event::Cancel(id) => {
                if self.waiting.remove(id).is_some() {
                    self.ledger.record(Record::Cancelled, now);
                }
            }
            Event::EndpointReady { .. }
            | Event::EndpointNotReady(_)
            | Event::EndpointDraining(..)
            | Event::EndpointGone(_)
            | Event::Fence { .. }
            | Event::Unfence
            | Event::Settings(_) => self.urgent = true,
            Event::Arrived(_)
            | Event::FirstByte(_)
            | Event::Finished(..)
            | Event::Remembered { .. }
            | Event::Tick => {}
        }
        self.on(event, now);
    }

    /// Feeds the machine and does what it says. Ends dispatched-and-abandoned requests come back as commands, so
    /// this does not recurse.
    fn on(&mut self, event: Event, now: Time) {
        let mut effects = std::mem::take(&mut self.effects);
        self.pool.on(event, now, &mut effects);
        for effect in effects.drain(..) {
            self.perform(&effect);
        }
        self.effects = effects;
    }

    fn perform(&mut self, effect: &Effect) {
        match *effect {
            Effect::Dispatch(id, decision) => {
                self.ledger.dispatched(&decision);
                let permit = Permit {
                    id,
                    commands: self.commands.upgrade(),
                };
                let (Some(waiter), Some(endpoint)) =
                    (self.waiting.remove(&id), self.endpoints.get(&decision.endpoint))
                else {
                    tracing::error!(
                        request = id.0,
                        "dispatch of an unknown request or to an unknown endpoint"
                    );
                    return;
                };
                // A client that left in this instant takes the admission down with it, and that ends the request.
                let _ = waiter.reply.send(Ok(Admission {
                    endpoint: Arc::clone(endpoint),
                    decision,
                    permit,
                }));
            }
            Effect::Shed {
                request,
                reason,
                retry_after,
            } => {
                if let Some(waiter) = self.waiting.remove(&request) {
                    self.shed(waiter, reason, retry_after);
                }
            }
            Effect::Wake => {
                tracing::info!(pool = %self.name, "wake");
                self.urgent = true;
            }
            Effect::Fenced(_) => self.urgent = true,
            Effect::Ejected(endpoint, _) => {
                self.ledger.ejected();
                self.urgent = true;
                if let Some(endpoint) = self.endpoints.get(&endpoint) {
                    tracing::warn!(pool = %self.name, endpoint = %endpoint.info.name, "endpoint ejected");
                }
            }
        }
    }

    fn shed(&mut self, waiter: Waiter, reason: ShedReason, retry_after: Option<Duration>) {
        if !waiter.again {
            self.ledger.shed(reason);
        }
        let _ = waiter.reply.send(Err(Shed { reason, retry_after }));
    }

    fn order(&mut self, epoch: u64, order: Order, now: Time) -> Result<OrderAnswer, OrderError> {
        if epoch < self.epoch {
            return Err(OrderError::Stale { seen: self.epoch });
        }
        self.epoch = epoch;
        self.urgent = true;
        let lasting = |lease_ms: u64| now.plus(Duration::from_millis(lease_ms));
        let done = match order {
            Order::Fence { lease_ms } => self.fence(lasting(lease_ms.clamp(1, 60_000)), now),
            Order::Unfence => {
                self.on(Event::Unfence, now);
                true
            }
            Order::Drain { uid, lease_ms } => {
                let until = lasting(lease_ms.clamp(1, 3_600_000));
                let id = self.endpoint_of(&uid);
                if let Some(id) = id {
                    self.drains.insert(id, until);
                    self.on(Event::EndpointDraining(id, true), now);
                }
                id.is_some()
            }
            Order::Undrain { uid } => {
                let id = self.endpoint_of(&uid);
                if let Some(id) = id {
                    self.drains.remove(&id);
                    self.on(Event::EndpointDraining(id, false), now);
                }
                id.is_some()
            }
        };
        let state = self.snapshot(now);
        Ok(OrderAnswer { done, state })
    }

    fn fence(&mut self, until: Time, now: Time) -> bool {
        let mut effects = Vec::new();
        self.pool.on(Event::Fence { until }, now, &mut effects);
        let fenced = effects.contains(&Effect::Fenced(true));
        for effect in &effects {
            self.perform(effect);
        }
        fenced
    }

    fn endpoint_of(&self, uid: &str) -> Option<EndpointId> {
        let found = self.endpoints.values().find(|endpoint| endpoint.info.uid == uid);
        found.map(|endpoint| endpoint.id)
    }

    fn close(&mut self, now: Time) {
        self.closed = true;
        let waiting: Vec<_> = self.waiting.drain().collect();
        for (id, waiter) in waiting {
            self.on(Event::Cancel(id), now);
            self.shed(waiter, ShedReason::NoCapacity, None);
        }
    }

    /// Everything that is due because of the time alone.
    fn pass_time(&mut self, now: Time) {
        if self.pool.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.dirty = true;
            self.on(Event::Tick, now);
        }
        let lapsed: Vec<_> = self
            .drains
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in lapsed {
            self.dirty = true;
            self.drains.remove(&id);
            self.on(Event::EndpointDraining(id, false), now);
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.endpoints
                .values()
                .for_each(|endpoint| endpoint.upstream.sweep());
            let idle = self
                .endpoints
                .values()
                .any(|endpoint| endpoint.upstream.idle() > 0);
            self.sweep_at = idle.then(|| now.plus(SWEEP));
        }
    }

    fn publish(&mut self, now: Time) {
        let since = self.published.map(|at| now.since(at));
        let due = match since {
            None => true,
            Some(since) => since >= COALESCE || (self.urgent && since >= LEAST_GAP),
        };
        if !self.dirty || !due {
            return;
        }
        (self.dirty, self.urgent) = (false, false);
        self.published = Some(now);
        self.state.send_replace(Arc::new(self.snapshot(now)));
    }

    fn snapshot(&self, now: Time) -> PoolState {
        let Snapshot {
            in_flight,
            queued,
            held,
            waiting_bytes,
            oldest_held,
            open_workflows,
            paused_workflows,
            pause_ends,
            fenced,
            last_activity,
            endpoints,
        } = self.pool.snapshot(now);
        PoolState {
            pool: self.name.clone(),
            uid: self.uid.clone(),
            epoch: self.epoch,
            fenced,
            in_flight,
            queued,
            held,
            waiting_bytes,
            oldest_held_age_ms: oldest_held.map(millis),
            open_workflows,
            paused_workflows,
            pause_ends_in_ms: pause_ends.map(|at| millis(at.since(now))),
            last_activity_age_ms: last_activity.map(|at| millis(now.since(at))),
            totals: self.ledger.totals,
            recent: self.ledger.recent.told(),
            prefill_tokens_per_s: self.ledger.prefill.tokens_per_s(),
            endpoints: endpoints
                .into_iter()
                .filter_map(|it| {
                    let known = self.endpoints.get(&it.id)?;
                    let load = self.loads.get(&it.id);
                    Some(EndpointState {
                        name: known.info.name.clone(),
                        uid: known.info.uid.clone(),
                        eligible: it.eligible,
                        draining: it.draining,
                        in_flight: it.in_flight,
                        concurrency: (it.concurrency > 0).then_some(it.concurrency),
                        workflows: it.workflows,
                        kv_tokens: it.kv_tokens,
                        engine_busy: load.map(|load| load.busy),
                        kv_usage: load.and_then(|load| load.kv_usage),
                        kv_capacity_tokens: load.and_then(|load| load.kv_capacity_tokens),
                        ready_to_dispatch_ms: it.ready_to_first_dispatch.map(millis),
                    })
                })
                .collect(),
        }
    }
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the task is the scheduler's shell: time enters the machine here"
)]
fn instant() -> Instant {
    Instant::now()
}
