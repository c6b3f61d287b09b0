//! The machine: one `match` over events, then one `settle` that dispatches, sheds and wakes whatever the event made
//! possible or necessary.

use std::time::Duration;

use indexmap::IndexMap;

use crate::{
    binding::{Bindings, Claim, Memory},
    endpoint::{Endpoints, Place},
    lease::Leases,
    pace::Pace,
    place::{Lane, Tie},
    queue::{Queue, Rank, Route, affine},
    types::{Affinity, Effect, EndpointId, Event, Outcome, Request, RequestId, Settings, Time, Workflow},
};

mod settle;
mod snapshot;
#[cfg(test)]
mod tests;

/// A workflow that has moved stays this long before load moves it again.
const SETTLING: Duration = Duration::from_secs(30);

/// The scheduler of one pool. Time never runs backwards inside: an earlier `now` counts as the latest one seen.
#[derive(Debug)]
pub struct Pool {
    settings: Settings,
    now: Time,
    endpoints: Endpoints,
    bindings: Bindings,
    leases: Leases,
    queue: Queue,
    flights: IndexMap<RequestId, Flight>,
    fence: Option<Fence>,
    pace: Pace,
    last_activity: Option<Time>,
    /// Requests were held at the end of the last step.
    was_held: bool,
    /// Waiting requests with a smaller sequence number have been held.
    held_below: u64,
}

#[derive(Debug, Clone, Copy)]
struct Fence {
    since: Time,
    until: Time,
}

/// A dispatched request that has not finished.
#[derive(Debug)]
struct Flight {
    place: Place,
    claim: Option<Claim>,
    workflow: Option<Workflow>,
    /// Length of the lease that a tool call starts; zero for none.
    lease: Duration,
}

impl Pool {
    /// A pool without endpoints.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let mut endpoints = Endpoints::default();
        endpoints.set_first_batch(settings.first_batch);
        let mut bindings = Bindings::default();
        bindings.set_most(settings.max_workflows);
        Self {
            settings,
            now: Time::default(),
            endpoints,
            bindings,
            leases: Leases::default(),
            queue: Queue::default(),
            flights: IndexMap::new(),
            fence: None,
            pace: Pace::default(),
            last_activity: None,
            was_held: false,
            held_below: 0,
        }
    }

    /// Takes in one event and appends what the shell must do, in order.
    pub fn on(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
        let now = now.max(self.now);
        self.now = now;
        self.expire(now);
        let mut vanished = false;
        match event {
            Event::Arrived(request) => self.arrive(request, now),
            Event::Cancel(id) => self.leave(id),
            Event::FirstByte(id) => {
                if let Some(flight) = self.flights.get(&id) {
                    self.endpoints.answered(flight.place);
                }
            }
            Event::Finished(id, outcome) => self.finish(id, outcome, now, effects),
            Event::EndpointReady {
                endpoint,
                concurrency,
            } => {
                self.endpoints
                    .set_ready(endpoint, concurrency, !self.queue.is_empty(), now);
            }
            Event::EndpointNotReady(endpoint) => self.endpoints.set_not_ready(endpoint, now),
            Event::EndpointDraining(endpoint, draining) => {
                self.endpoints.set_draining(endpoint, draining, now);
            }
            Event::EndpointGone(endpoint) => {
                vanished = self.endpoints.remove(endpoint);
                for workflow in self.bindings.forget_home(endpoint) {
                    self.reroute_workflow(workflow, now);
                }
            }
            Event::Remembered { endpoint, homes } => self.remember(endpoint, homes, now),
            Event::Fence { until } => effects.push(Effect::Fenced(self.raise_fence(until, now))),
            Event::Unfence => self.fence = None,
            Event::Settings(settings) => {
                self.endpoints.set_first_batch(settings.first_batch);
                self.bindings.set_most(settings.max_workflows);
                self.settings = settings;
            }
            Event::Tick => {}
        }
        self.settle(vanished, now, effects);
    }

    /// When [`Event::Tick`] is due: the earliest instant at which time alone changes anything. Always later than the
    /// last event. Requests that become overdue are not among them: that changes an order, never whether one fits.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let holds = self
            .queue
            .oldest()
            .filter_map(|(lane, waiting)| self.hold_ends(lane, waiting));
        [
            self.fence.map(|fence| fence.until),
            self.endpoints.next_expiry(),
            self.queue.next_impatient(),
            self.leases.next_expiry(),
            self.bindings.next_expiry(),
            holds.min(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What time alone changes.
    fn expire(&mut self, now: Time) {
        self.fence = self.fence.filter(|fence| fence.until > now);
        self.endpoints.expire(now);
        self.leases.expire(now);
        self.bindings.expire(now);
        while let Some(id) = self.queue.impatient(now) {
            let Some(route) = self.queue.get(id).map(|waiting| waiting.route) else {
                return;
            };
            let tie = match route.lane.tie {
                Tie::Patient(home) => Tie::Roaming(home),
                other => other,
            };
            let lane = Lane { tie, ..route.lane };
            self.queue.reroute(
                id,
                Route {
                    lane,
                    patient_until: None,
                    ..route
                },
            );
        }
    }

    fn arrive(&mut self, request: Request, now: Time) {
        if self.queue.get(request.id).is_some() || self.flights.contains_key(&request.id) {
            return;
        }
        self.last_activity = Some(now);
        if let Some(workflow) = request.workflow {
            self.leases.end(workflow);
        }
        if let Some(workflow) = affine(&request) {
            self.bindings.touch(workflow, &request, now);
        }
        let route = self.route(&request, now);
        self.queue.push(request, route, now);
    }

    /// Where a request waits that comes to wait now.
    fn route(&self, request: &Request, now: Time) -> Route {
        let home = affine(request).and_then(|workflow| Some((workflow, self.bindings.home(workflow)?)));
        let mut patient_until = None;
        let tie = match (home, request.affinity) {
            (Some((_, home)), Affinity::Required) => Tie::Pinned(home),
            (Some((workflow, home)), Affinity::Preferred { max_wait }) if request.not_on != Some(home) => {
                let settled = self
                    .bindings
                    .last_move(workflow)
                    .map(|moved| moved.plus(SETTLING));
                let until = Some(now.plus(max_wait)).max(settled);
                patient_until = until.filter(|until| *until > now);
                if patient_until.is_some() {
                    Tie::Patient(home)
                } else {
                    Tie::Roaming(home)
                }
            }
            _ => Tie::Free,
        };
        let returning = home.is_some() || request.not_on.is_some();
        let rank = if returning { Rank::Returning } else { Rank::New };
        Route {
            lane: Lane {
                tie,
                not_on: request.not_on,
            },
            rank,
            patient_until,
        }
    }

    /// The workflow's home changed: its waiting requests wait for the new one, from now.
    fn reroute_workflow(&mut self, workflow: Workflow, now: Time) {
        let waiting: Vec<_> = self.queue.of_workflow(workflow).collect();
        for id in waiting {
            if let Some(route) = self
                .queue
                .get(id)
                .map(|waiting| self.route(&waiting.request, now))
            {
                self.queue.reroute(id, route);
            }
        }
    }

    /// Takes a request out of the queue.
    fn leave(&mut self, id: RequestId) {
        if let Some(waiting) = self.queue.remove(id) {
            self.rest(affine(&waiting.request));
        }
    }

    /// A turn left the queue or ended: the binding is at rest when it was the last.
    fn rest(&mut self, workflow: Option<Workflow>) {
        if let Some(workflow) = workflow.filter(|workflow| !self.queue.has_workflow(*workflow)) {
            self.bindings.rest(workflow);
        }
    }

    fn finish(&mut self, id: RequestId, outcome: Outcome, now: Time, effects: &mut Vec<Effect>) {
        let Some(flight) = self.flights.swap_remove(&id) else {
            return;
        };
        self.last_activity = Some(now);
        let endpoint = flight.place.endpoint;
        let mut footprint = None;
        match outcome {
            Outcome::Completed {
                footprint_tokens,
                tool_call,
            } => {
                self.endpoints.answered(flight.place);
                footprint = footprint_tokens;
                if let Some(workflow) = flight.workflow.filter(|_| tool_call && !flight.lease.is_zero()) {
                    self.leases
                        .start(workflow, now.plus(flight.lease), self.settings.max_workflows);
                }
            }
            Outcome::ConnectFailed => {
                if let Some(until) = self.endpoints.eject(endpoint, now) {
                    effects.push(Effect::Ejected(endpoint, until));
                }
            }
            Outcome::Cancelled | Outcome::Failed => {}
        }
        self.endpoints.release(flight.place);
        if let Some(claim) = flight.claim {
            self.bindings.release(claim, endpoint, footprint, now);
            self.rest(Some(claim.workflow));
        }
    }

    fn remember(&mut self, endpoint: EndpointId, homes: Vec<(Workflow, Option<u64>, Duration)>, now: Time) {
        if !self.endpoints.introduce(endpoint, now) {
            return;
        }
        for (workflow, tokens, age) in homes {
            let waits = self.queue.has_workflow(workflow);
            let memory = Memory {
                endpoint,
                tokens,
                age,
            };
            if self.bindings.remember(workflow, &memory, waits, now) {
                self.reroute_workflow(workflow, now);
            }
        }
    }

    /// Whether the pool was idle and is fenced now.
    fn raise_fence(&mut self, until: Time, now: Time) -> bool {
        let idle = self.flights.is_empty() && self.queue.is_empty() && self.leases.is_empty();
        if !idle || until <= now {
            return false;
        }
        let running = self.fence.unwrap_or(Fence { since: now, until });
        self.fence = Some(Fence {
            until: running.until.max(until),
            ..running
        });
        true
    }
}
