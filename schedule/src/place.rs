//! Where a request may go, and where it goes: filter, then cost, then pick. Pure; reserving is a line of its own.
//!
//! * **Filter**: endpoints that are ready, not draining, not ejected and have room; not the one that failed the request
//!   before; its home alone, while it waits for that.
//! * **Cost** of an endpoint, smallest first: for a workflow that looks for a home (workflows at home there, requests
//!   in flight there, rendezvous hash of workflow and endpoint); for a request without one the same without the first.
//! * **Pick**: the least cost. No two endpoints tie, as the hash of different endpoints differs.

use crate::{
    binding::Bindings,
    endpoint::Endpoints,
    types::{EndpointId, RequestId, Time, Workflow},
};

/// How a waiting request is tied to its workflow's home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tie {
    /// It has none, or its home failed it.
    Free,
    /// Waits for its home while that is eligible.
    Patient(EndpointId),
    /// Has waited for its home long enough: home, or any other with room.
    Roaming(EndpointId),
    /// Waits for its home, eligible or not, unless that drains.
    Pinned(EndpointId),
}

/// Waiting requests that may go to the same endpoints wait in one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lane {
    pub(crate) tie: Tie,
    pub(crate) not_on: Option<EndpointId>,
}

/// The endpoints a lane's requests may go to at present, room or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Any,
    Only(EndpointId),
    AllBut(EndpointId),
    Nowhere,
}

/// What a placement asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) id: RequestId,
    pub(crate) lane: Lane,
    /// The workflow, when it has affinity.
    pub(crate) workflow: Option<Workflow>,
    /// Its home.
    pub(crate) home: Option<EndpointId>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Goes there.
    Place(EndpointId),
    /// Its scope has endpoints, none with room.
    Saturated,
    /// Its scope is empty.
    Nowhere,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    workflows: u32,
    in_flight: u32,
    spread: u64,
}

impl Lane {
    /// The endpoints its requests may go to at present.
    pub(crate) fn scope(self, endpoints: &Endpoints, now: Time) -> Scope {
        let tied = match self.tie {
            Tie::Free | Tie::Roaming(_) => None,
            Tie::Patient(home) => Some(home).filter(|home| {
                endpoints
                    .get(*home)
                    .is_some_and(|endpoint| endpoint.eligible(now))
            }),
            Tie::Pinned(home) => {
                Some(home).filter(|home| endpoints.get(*home).is_some_and(|endpoint| !endpoint.draining()))
            }
        };
        let barred = self.not_on.filter(|endpoint| endpoints.get(*endpoint).is_some());
        match (tied, barred) {
            (Some(home), barred) if barred == Some(home) => Scope::Nowhere,
            (Some(home), _) => Scope::Only(home),
            (None, Some(barred)) => Scope::AllBut(barred),
            (None, None) => Scope::Any,
        }
    }

    /// No endpoint can come to serve its requests: none in scope is there or starting. `wakes` says whether something
    /// can start one. A retry whose failed endpoint is the only one that is not draining is hopeless even so, because
    /// demand that an endpoint could serve starts no second one.
    pub(crate) fn hopeless(self, endpoints: &Endpoints, wakes: bool, now: Time) -> bool {
        match self.scope(endpoints, now) {
            Scope::Nowhere => true,
            Scope::Any | Scope::Only(_) => !wakes && !endpoints.any_present(),
            Scope::AllBut(barred) => {
                let mut others = endpoints
                    .iter()
                    .filter(|(id, endpoint)| *id != barred && !endpoint.draining());
                !others.any(|(_, endpoint)| wakes || endpoint.ready())
            }
        }
    }

    /// Since when no endpoint in scope is in rotation; `None` while one is. As of the last
    /// [`Endpoints::note`].
    pub(crate) fn closed_since(self, endpoints: &Endpoints, now: Time) -> Option<Time> {
        match (self.tie, self.scope(endpoints, now)) {
            (Tie::Pinned(_), Scope::Only(home)) => endpoints.get(home)?.out_since(),
            (_, Scope::AllBut(barred)) => {
                let others = endpoints.iter().filter(|(id, _)| *id != barred);
                let mut latest = None;
                for (_, endpoint) in others {
                    latest = latest.max(Some(endpoint.out_since()?));
                }
                latest
            }
            (_, Scope::Any | Scope::Only(_) | Scope::Nowhere) => endpoints.closed_since(),
        }
    }

    /// An endpoint in scope has room.
    pub(crate) fn reaches_room(self, endpoints: &Endpoints, now: Time) -> bool {
        match self.scope(endpoints, now) {
            Scope::Any => endpoints.with_room().next().is_some(),
            Scope::Only(home) => endpoints.has_room(home),
            Scope::AllBut(barred) => endpoints.with_room().any(|(id, _)| id != barred),
            Scope::Nowhere => false,
        }
    }
}

/// Chooses the endpoint for one request.
pub(crate) fn decide(ask: &Ask, endpoints: &Endpoints, bindings: &Bindings, now: Time) -> Verdict {
    let scope = ask.lane.scope(endpoints, now);
    let in_scope = |id: EndpointId| match scope {
        Scope::Any => true,
        Scope::Only(home) => id == home,
        Scope::AllBut(barred) => id != barred,
        Scope::Nowhere => false,
    };
    if scope == Scope::Nowhere {
        return Verdict::Nowhere;
    }
    let candidates = || endpoints.with_room().filter(|(id, _)| in_scope(*id));
    if let Some(home) = ask.home
        && candidates().any(|(id, _)| id == home)
    {
        return Verdict::Place(home);
    }
    let cost = |(id, in_flight): (EndpointId, u32)| Cost {
        workflows: ask.workflow.map_or(0, |_| bindings.load(id).workflows),
        in_flight,
        spread: rendezvous(ask, id),
    };
    candidates()
        .map(|(id, endpoint)| (cost((id, endpoint.in_flight())), id))
        .min()
        .map_or(Verdict::Saturated, |(_, id)| Verdict::Place(id))
}

/// Spreads ties evenly and alike on every gateway that knows the endpoints by the same ids: a hash (splitmix64's
/// finisher) over the workflow's key, or the request's id without one, and the endpoint's id.
fn rendezvous(ask: &Ask, endpoint: EndpointId) -> u64 {
    let seed = ask
        .workflow
        .map_or(u128::from(ask.id.0), |Workflow(key)| u128::from_le_bytes(key));
    let folded = (seed as u64) ^ ((seed >> 64) as u64).rotate_left(32);
    mix(mix(folded).wrapping_add(u64::from(endpoint.0)))
}

const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
