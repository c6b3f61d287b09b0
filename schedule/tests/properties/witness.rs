//! A second bookkeeper: makes random but legal events out of numbers, keeps its own simple account of the pool, and
//! holds every effect against it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use weir_schedule::{
    Affinity, Class, Decision, Effect, EndpointId, Event, Outcome, Pool, Request, RequestId, Settings,
    ShedReason, Snapshot, Time, Workflow,
};

use crate::dice::Dice;

pub(crate) fn settings() -> Settings {
    Settings {
        max_waiting: 12,
        max_waiting_bytes: 1_000,
        hold_timeout: Duration::from_secs(20),
        wakes: true,
        suspended: false,
        max_workflows: 4,
        first_batch: 2,
    }
}

pub(crate) fn request(id: u64) -> Request {
    Request {
        id: RequestId(id),
        workflow: None,
        class: Class::Standard,
        weight: 1,
        max_wait: None,
        affinity: Affinity::Preferred {
            max_wait: Duration::from_secs(2),
        },
        idle_ttl: Duration::from_secs(60),
        max_age: Duration::from_secs(100),
        tool_pause: Duration::from_secs(10),
        tool_pause_blocks_zero: true,
        prompt_tokens: None,
        bytes: 10,
        not_on: None,
    }
}

#[derive(Default)]
struct Shadow {
    ready: bool,
    draining: bool,
    concurrency: u32,
    in_flight: u32,
    ejected_until: Option<Time>,
}

/// The bookkeeper and its pool.
pub(crate) struct Witness {
    pub(crate) pool: Pool,
    pub(crate) now: Time,
    /// Every event with its time, when they are wanted, and every effect, in order.
    pub(crate) events: Option<Vec<(Event, Time)>>,
    pub(crate) effects: Vec<Effect>,
    /// Requests that arrived, and those that ended in a dispatch, a shed or a cancel.
    pub(crate) arrived: u64,
    pub(crate) ended: u64,
    settings: Settings,
    endpoints: BTreeMap<EndpointId, Shadow>,
    waiting: BTreeMap<RequestId, (Request, Time)>,
    flying: BTreeMap<RequestId, (Request, EndpointId)>,
    fence: Option<Time>,
    was_held: bool,
    ids: u64,
    endpoint_ids: u32,
}

impl Witness {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            pool: Pool::new(settings.clone()),
            now: Time::default(),
            events: None,
            effects: Vec::new(),
            arrived: 0,
            ended: 0,
            settings,
            endpoints: BTreeMap::new(),
            waiting: BTreeMap::new(),
            flying: BTreeMap::new(),
            fence: None,
            was_held: false,
            ids: 0,
            endpoint_ids: 0,
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn flying(&self) -> Vec<RequestId> {
        self.flying.keys().copied().collect()
    }

    /// One random step: time may pass, then something happens.
    pub(crate) fn step(&mut self, seed: u64) {
        let mut dice = Dice(seed);
        let passed = dice.pick(&[0, 0, 0, 1, 50, 400, 1_000, 2_500, 9_000, 31_000]);
        if dice.below(8) > 0 {
            self.pass(Duration::from_millis(passed));
        } else {
            // A shell that is late: the next event comes before the ticks that were due.
            self.now = self.now.plus(Duration::from_millis(passed));
        }
        if let Some(event) = self.invent(&mut dice) {
            self.send(event);
        }
    }

    /// Lets time pass, with a tick at every deadline.
    pub(crate) fn pass(&mut self, span: Duration) {
        let end = self.now.plus(span);
        while let Some(deadline) = self.pool.next_deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.send(Event::Tick);
        }
        self.now = end;
    }

    fn invent(&mut self, dice: &mut Dice) -> Option<Event> {
        let endpoints: Vec<_> = self.endpoints.keys().copied().collect();
        let some_endpoint = (!endpoints.is_empty()).then(|| dice.pick(&endpoints));
        let flying = self.flying();
        let waiting: Vec<_> = self.waiting.keys().copied().collect();
        Some(match dice.below(32) {
            0..=9 => Event::Arrived(self.invent_request(dice, some_endpoint)),
            10..=12 => Event::Cancel((!waiting.is_empty()).then(|| dice.pick(&waiting))?),
            13..=18 => {
                let outcome = dice.pick(&[
                    Outcome::Completed {
                        footprint_tokens: Some(50),
                        tool_call: false,
                    },
                    Outcome::Completed {
                        footprint_tokens: None,
                        tool_call: true,
                    },
                    Outcome::Cancelled,
                    Outcome::ConnectFailed,
                    Outcome::Failed,
                ]);
                Event::Finished((!flying.is_empty()).then(|| dice.pick(&flying))?, outcome)
            }
            19..=20 => Event::FirstByte((!flying.is_empty()).then(|| dice.pick(&flying))?),
            21..=23 => {
                let fresh = endpoints.len() < 2 || (endpoints.len() < 4 && dice.below(3) == 0);
                self.endpoint_ids += u32::from(fresh);
                let endpoint = if fresh {
                    EndpointId(self.endpoint_ids)
                } else {
                    some_endpoint?
                };
                Event::EndpointReady {
                    endpoint,
                    concurrency: dice.pick(&[1, 1, 2, 5]),
                }
            }
            24 => Event::EndpointNotReady(some_endpoint?),
            25 => Event::EndpointDraining(some_endpoint?, dice.below(3) == 0),
            26 => Event::EndpointGone(some_endpoint?),
            27 => Event::Fence {
                until: self.now.plus(Duration::from_millis(dice.below(20_000))),
            },
            28 => Event::Unfence,
            29 => Event::Settings(Settings {
                suspended: dice.below(6) == 0,
                wakes: dice.below(5) > 0,
                max_waiting: dice.pick(&[12, 12, 12, 3]),
                max_workflows: dice.pick(&[4, 4, 1]),
                ..settings()
            }),
            30 => Event::Remembered {
                endpoint: some_endpoint?,
                homes: (0..3)
                    .map(|_| (workflow(dice.below(6)), Some(9), Duration::from_secs(5)))
                    .collect(),
            },
            _ => Event::Tick,
        })
    }

    fn invent_request(&mut self, dice: &mut Dice, endpoint: Option<EndpointId>) -> Request {
        self.ids += 1;
        let patience = Duration::from_millis(dice.pick(&[0, 500, 2_000, 50_000]));
        Request {
            workflow: (dice.below(3) > 0).then(|| workflow(dice.below(6))),
            class: dice.pick(&[Class::Interactive, Class::Standard, Class::Batch]),
            weight: dice.pick(&[1, 1, 2, 64]),
            max_wait: dice.pick(&[None, Some(Duration::from_secs(3))]),
            affinity: dice.pick(&[
                Affinity::Preferred { max_wait: patience },
                Affinity::Preferred { max_wait: patience },
                Affinity::Required,
                Affinity::None,
            ]),
            tool_pause_blocks_zero: dice.below(2) == 0,
            bytes: dice.pick(&[0, 10, 300]),
            not_on: endpoint.filter(|_| dice.below(6) == 0),
            ..request(self.ids)
        }
    }

    /// Sends one event, and checks what comes of it.
    pub(crate) fn send(&mut self, event: Event) {
        if let Some(events) = &mut self.events {
            events.push((event.clone(), self.now));
        }
        let mut effects = Vec::new();
        self.fence = self.fence.filter(|until| *until > self.now);
        let gone = matches!(event, Event::EndpointGone(_));
        let until = if let Event::Fence { until } = event {
            Some(until)
        } else {
            None
        };
        self.book(&event);
        self.pool.on(event, self.now, &mut effects);
        let mut fullest = self.waiting.len();
        let mut wakes = 0;
        for effect in &effects {
            match effect {
                Effect::Dispatch(id, decision) => self.book_dispatch(*id, decision),
                Effect::Shed {
                    request,
                    reason,
                    retry_after,
                } => {
                    assert!(retry_after.is_none_or(|after| after >= Duration::from_secs(1)));
                    self.book_shed(*request, *reason, fullest);
                    fullest -= 1;
                }
                Effect::Wake => wakes += 1,
                Effect::Fenced(done) => self.book_fence(until, *done),
                Effect::Ejected(endpoint, until) => {
                    assert!(*until > self.now && *until <= self.now.plus(Duration::from_secs(30)));
                    self.shadow(*endpoint).ejected_until = Some(*until);
                }
            }
        }
        let held = !self.waiting.is_empty() && (self.fence.is_some() || !self.any_present());
        let expected = u32::from(held && !self.was_held);
        assert!(
            wakes == expected || (held && gone && wakes == 1),
            "{wakes} wakes, held: {held}"
        );
        self.was_held = held;
        assert!(
            self.pool
                .next_deadline()
                .is_none_or(|deadline| deadline > self.now),
            "deadline passed"
        );
        self.nobody_waits_in_vain();
        self.effects.append(&mut effects);
    }

    fn book(&mut self, event: &Event) {
        match event {
            Event::Arrived(request) => {
                self.arrived += 1;
                self.waiting.insert(request.id, (request.clone(), self.now));
            }
            Event::Cancel(id) => self.ended += u64::from(self.waiting.remove(id).is_some()),
            Event::Finished(id, _) => {
                if let Some((_, endpoint)) = self.flying.remove(id)
                    && let Some(shadow) = self.endpoints.get_mut(&endpoint)
                {
                    shadow.in_flight -= 1;
                }
            }
            Event::EndpointReady {
                endpoint,
                concurrency,
            } => {
                let shadow = self.shadow(*endpoint);
                shadow.ready = true;
                shadow.concurrency = *concurrency;
            }
            Event::EndpointNotReady(endpoint) => {
                let shadow = self.shadow(*endpoint);
                shadow.ready = false;
                shadow.ejected_until = None;
            }
            Event::EndpointDraining(endpoint, draining) => self.shadow(*endpoint).draining = *draining,
            Event::EndpointGone(endpoint) => drop(self.endpoints.remove(endpoint)),
            Event::Unfence => self.fence = None,
            Event::Settings(settings) => self.settings = settings.clone(),
            Event::FirstByte(_) | Event::Fence { .. } | Event::Remembered { .. } | Event::Tick => {}
        }
    }

    fn book_fence(&mut self, until: Option<Time>, done: bool) {
        assert!(until.is_some(), "an answer to no question");
        if done {
            assert!(
                self.waiting.is_empty() && self.flying.is_empty(),
                "fenced, but not idle"
            );
            self.fence = self.fence.max(until);
        }
    }

    /// Never to an endpoint that is not ready, draining, ejected, gone, full, or the one that failed the request.
    fn book_dispatch(&mut self, id: RequestId, decision: &Decision) {
        let (request, arrived) = self.waiting.remove(&id).expect("dispatched what waits");
        self.ended += 1;
        assert!(
            self.fence.is_none() && !self.settings.suspended,
            "dispatched from a closed pool"
        );
        let now = self.now;
        let shadow = self
            .endpoints
            .get_mut(&decision.endpoint)
            .expect("dispatched to what exists");
        assert!(shadow.ready && !shadow.draining, "not ready or draining");
        assert!(shadow.ejected_until.is_none_or(|until| until <= now), "ejected");
        assert!(shadow.in_flight < shadow.concurrency, "full");
        assert_ne!(request.not_on, Some(decision.endpoint), "failed it before");
        shadow.in_flight += 1;
        assert_eq!(decision.waited, now.since(arrived));
        assert_eq!(decision.overdue, overdue(&request, arrived, now));
        self.nobody_overtaken(&request, arrived, decision);
        self.flying.insert(id, (request, decision.endpoint));
    }

    /// Nothing that waits without ties, and could have gone there, comes before what did.
    fn nobody_overtaken(&self, request: &Request, arrived: Time, decision: &Decision) {
        for (other, since) in self.waiting.values() {
            if !untied(other) || other.not_on.is_some() {
                continue;
            }
            let late = overdue(other, *since, self.now);
            assert!(!late || decision.overdue, "an overdue request was overtaken");
            if untied(request) && request.not_on.is_none() && !late && !decision.overdue {
                let urgency = |request: &Request, arrived| {
                    let age = Duration::from_secs(60) + self.now.since(arrived);
                    u128::from(request.weight) * age.as_nanos()
                };
                let (mine, theirs) = (urgency(request, arrived), urgency(other, *since));
                assert!(
                    request.class < other.class || (request.class == other.class && mine >= theirs),
                    "a higher class or a more urgent request was overtaken"
                );
            }
        }
    }

    fn book_shed(&mut self, id: RequestId, reason: ShedReason, waiting: usize) {
        let bytes: u64 = self.waiting.values().map(|(request, _)| request.bytes).sum();
        let (request, arrived) = self.waiting.remove(&id).expect("shed what waits");
        self.ended += 1;
        match reason {
            ShedReason::QueueFull => assert!(
                waiting > self.settings.max_waiting as usize || bytes > self.settings.max_waiting_bytes
            ),
            ShedReason::Suspended => assert!(self.settings.suspended),
            ShedReason::NoCapacity => {
                assert!(request.not_on.is_some() || (!self.settings.wakes && !self.any_present()));
            }
            ShedReason::ColdStartTimeout => {
                assert!(self.now.since(arrived) >= self.settings.hold_timeout);
            }
        }
    }

    /// An untied request does not wait while an endpoint that may serve it has nothing to do.
    fn nobody_waits_in_vain(&self) {
        if self.fence.is_some() {
            return;
        }
        for (request, _) in self.waiting.values().filter(|(request, _)| untied(request)) {
            for (id, shadow) in &self.endpoints {
                let ejected = shadow.ejected_until.is_some_and(|until| until > self.now);
                let idle = shadow.ready && !shadow.draining && !ejected && shadow.in_flight == 0;
                assert!(
                    !idle || request.not_on == Some(*id),
                    "{request:?} waits although {id:?} is idle"
                );
            }
        }
    }

    /// The pool's own account agrees.
    pub(crate) fn audit(&self) {
        let snapshot = self.pool.snapshot(self.now);
        assert_eq!(snapshot.in_flight as usize, self.flying.len());
        assert_eq!((snapshot.queued + snapshot.held) as usize, self.waiting.len());
        let bytes: u64 = self.waiting.values().map(|(request, _)| request.bytes).sum();
        assert_eq!(snapshot.waiting_bytes, bytes);
        assert_eq!(snapshot.fenced, self.fence.is_some_and(|until| until > self.now));
        assert_eq!(snapshot.endpoints.len(), self.endpoints.len());
        for shown in &snapshot.endpoints {
            let shadow = &self.endpoints[&shown.id];
            assert_eq!((shown.in_flight, shown.ready), (shadow.in_flight, shadow.ready));
            assert_eq!(shown.draining, shadow.draining);
        }
        // Until the next deadline, only ages change.
        if let Some(deadline) = self.pool.next_deadline() {
            let before = Time(deadline.0 - Duration::from_nanos(1)).max(self.now);
            let later = self.pool.snapshot(before);
            assert_eq!(
                Snapshot {
                    oldest_held: snapshot.oldest_held,
                    ..later
                },
                snapshot
            );
        }
        let homes: u32 = snapshot.endpoints.iter().map(|endpoint| endpoint.workflows).sum();
        assert_eq!(homes, snapshot.open_workflows, "every binding has a living home");
    }

    /// Opens the pool wide, lets everything end, and checks that no place and no request is left behind.
    pub(crate) fn close(&mut self) {
        self.send(Event::Settings(settings()));
        self.send(Event::Unfence);
        let old: BTreeSet<_> = self.endpoints.keys().copied().collect();
        let endpoint = EndpointId(self.endpoint_ids + 1);
        self.send(Event::EndpointReady {
            endpoint,
            concurrency: 100,
        });
        for endpoint in old {
            self.send(Event::EndpointNotReady(endpoint));
            self.send(Event::EndpointDraining(endpoint, false));
            self.send(Event::EndpointReady {
                endpoint,
                concurrency: 100,
            });
        }
        for _ in 0..50 {
            for id in self.flying() {
                self.send(Event::Finished(
                    id,
                    Outcome::Completed {
                        footprint_tokens: None,
                        tool_call: false,
                    },
                ));
            }
        }
        assert_eq!(self.waiting.len() + self.flying.len(), 0, "stranded");
        assert_eq!(self.arrived, self.ended);
        self.audit();
        self.pass(Duration::from_secs(3_700));
        self.audit();
        assert_eq!(self.pool.next_deadline(), None, "nothing is left to wait for");
        let snapshot = self.pool.snapshot(self.now);
        assert!(snapshot.is_idle() && snapshot.open_workflows == 0);
    }

    fn shadow(&mut self, endpoint: EndpointId) -> &mut Shadow {
        self.endpoints.entry(endpoint).or_default()
    }

    fn any_present(&self) -> bool {
        self.endpoints
            .values()
            .any(|shadow| shadow.ready && !shadow.draining)
    }
}

fn workflow(number: u64) -> Workflow {
    Workflow(u128::from(number).to_le_bytes())
}

fn untied(request: &Request) -> bool {
    request.workflow.is_none() || request.affinity == Affinity::None
}

fn overdue(request: &Request, arrived: Time, now: Time) -> bool {
    now.since(arrived) >= request.max_wait.unwrap_or(request.class.bound())
}
