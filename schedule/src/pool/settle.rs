//! What follows from the state of the pool, whatever the event was: dispatch what fits, shed what must not wait on, and
//! wake.

use std::time::Duration;

use crate::{
    place::{Ask, Lane, Verdict, decide},
    pool::{Flight, Pool},
    queue::{Waiting, affine},
    types::{Decision, Effect, EndpointId, HomeUse, RequestId, Settings, ShedReason, Time},
};

impl Pool {
    /// Does all that is possible or necessary now. Nothing of it makes more of it possible.
    pub(super) fn settle(&mut self, vanished: bool, now: Time, effects: &mut Vec<Effect>) {
        self.endpoints.note(now);
        self.dispatch(now, effects);
        let at_zero = !self.endpoints.any_present();
        self.shed(now, effects);
        self.pace.note(at_zero && !self.queue.is_empty(), now);
        self.bindings.trim();
        self.bindings.expire(now);
        let held = !self.queue.is_empty() && (at_zero || self.fence.is_some());
        if held {
            self.held_below = self.queue.next_seq();
            if vanished || !self.was_held {
                effects.push(Effect::Wake);
            }
        }
        self.was_held = held;
    }

    fn dispatch(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.fence.is_some() || self.settings.suspended {
            return;
        }
        while let Some(ask) = self.next_ask(now)
            && let Verdict::Place(endpoint) = decide(&ask, &self.endpoints, &self.bindings, now)
        {
            self.reserve(&ask, endpoint, now, effects);
        }
    }

    /// The first in order of the requests that an endpoint with room may serve.
    fn next_ask(&self, now: Time) -> Option<Ask> {
        self.endpoints.with_room().next()?;
        let id = self
            .queue
            .first(now, |lane| lane.reaches_room(&self.endpoints, now))?;
        let waiting = self.queue.get(id)?;
        let workflow = affine(&waiting.request);
        let home = workflow.and_then(|workflow| self.bindings.home(workflow));
        Some(Ask {
            id,
            lane: waiting.route.lane,
            workflow,
            home,
        })
    }

    fn reserve(&mut self, ask: &Ask, endpoint: EndpointId, now: Time, effects: &mut Vec<Effect>) {
        let Some(waiting) = self.queue.remove(ask.id) else {
            return;
        };
        let place = self.endpoints.reserve(endpoint, now);
        let home = match (ask.workflow, ask.home) {
            (None, _) => HomeUse::None,
            (Some(_), None) => HomeUse::New,
            (Some(_), Some(home)) if home == endpoint => HomeUse::Kept,
            (Some(_), Some(_)) => HomeUse::Moved,
        };
        let claim = ask
            .workflow
            .and_then(|workflow| self.bindings.claim(workflow, endpoint, &waiting.request, now));
        if let (HomeUse::New | HomeUse::Moved, Some(claim)) = (home, claim) {
            self.reroute_workflow(claim.workflow, now);
        }
        self.pace.dispatched(now, !self.queue.is_empty());
        let decision = Decision {
            endpoint,
            home,
            waited: now.since(waiting.arrived),
            held: waiting.seq < self.held_below,
            overdue: waiting.deadline() <= now,
        };
        let request = waiting.request;
        let lease = if request.tool_pause_blocks_zero {
            request.tool_pause
        } else {
            Duration::ZERO
        };
        self.flights.insert(
            ask.id,
            Flight {
                place,
                claim,
                workflow: request.workflow,
                lease,
            },
        );
        effects.push(Effect::Dispatch(ask.id, decision));
    }

    fn shed(&mut self, now: Time, effects: &mut Vec<Effect>) {
        while let Some((request, reason)) = self.doomed(now) {
            let retry_after = match reason {
                ShedReason::NoCapacity | ShedReason::Suspended => None,
                ShedReason::QueueFull | ShedReason::ColdStartTimeout => {
                    self.pace.retry_after(self.queue.len(), now)
                }
            };
            self.leave(request);
            effects.push(Effect::Shed {
                request,
                reason,
                retry_after,
            });
        }
    }

    /// A waiting request that must not wait on. Past a bound it is the one that arrived last.
    fn doomed(&self, now: Time) -> Option<(RequestId, ShedReason)> {
        let Settings {
            suspended,
            wakes,
            max_waiting,
            max_waiting_bytes,
            ..
        } = self.settings;
        for (lane, oldest) in self.queue.oldest() {
            if suspended {
                return Some((oldest.request.id, ShedReason::Suspended));
            }
            if lane.hopeless(&self.endpoints, wakes, now) {
                return Some((oldest.request.id, ShedReason::NoCapacity));
            }
            if self.hold_ends(lane, oldest).is_some_and(|end| end <= now) {
                return Some((oldest.request.id, ShedReason::ColdStartTimeout));
            }
        }
        let full = self.queue.len() > max_waiting as usize || self.queue.bytes() > max_waiting_bytes;
        let newest = self.queue.newest().filter(|_| full)?;
        Some((newest, ShedReason::QueueFull))
    }

    /// When the request has been held for too long; `None` while an endpoint that it may go to is in rotation.
    pub(super) fn hold_ends(&self, lane: Lane, waiting: &Waiting) -> Option<Time> {
        let closed = lane.closed_since(&self.endpoints, self.now);
        let fenced = self.fence.map(|fence| fence.since);
        let since = closed.into_iter().chain(fenced).min()?;
        Some(waiting.arrived.max(since).plus(self.settings.hold_timeout))
    }
}
