//! What the pool looks like from outside.

use crate::{
    endpoint::Endpoint,
    pool::Pool,
    types::{EndpointId, EndpointSnapshot, Snapshot, Time},
};

impl Pool {
    /// The pool at `now`, which is not before the last event. What has lapsed by then is not counted, even if no
    /// [`crate::Event::Tick`] said so yet.
    #[must_use]
    pub fn snapshot(&self, now: Time) -> Snapshot {
        let now = now.max(self.now);
        let fenced = self.fence.is_some_and(|fence| fence.until > now);
        let waiting = count(self.queue.len());
        let holds = fenced || !self.endpoints.any_present();
        let (queued, held) = if holds { (0, waiting) } else { (waiting, 0) };
        let oldest = self.queue.oldest().map(|(_, waiting)| waiting.arrived).min();
        let (paused, pause_ends) = self.leases.running(now);
        Snapshot {
            in_flight: count(self.flights.len()),
            queued,
            held,
            waiting_bytes: self.queue.bytes(),
            oldest_held: oldest.filter(|_| holds).map(|arrived| now.since(arrived)),
            open_workflows: count(self.bindings.open(now)),
            paused_workflows: count(paused),
            pause_ends,
            fenced,
            last_activity: self.last_activity,
            endpoints: self
                .endpoints
                .iter()
                .map(|(id, endpoint)| self.show(id, endpoint, now))
                .collect(),
        }
    }

    fn show(&self, id: EndpointId, endpoint: &Endpoint, now: Time) -> EndpointSnapshot {
        let load = self.bindings.open_load(id, now);
        EndpointSnapshot {
            id,
            eligible: endpoint.eligible(now),
            draining: endpoint.draining(),
            ready: endpoint.ready(),
            in_flight: endpoint.in_flight(),
            workflows: load.workflows,
            kv_tokens: load.kv_tokens,
            concurrency: endpoint.concurrency(),
            ready_to_first_dispatch: endpoint.first_dispatch(),
        }
    }
}

fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}
