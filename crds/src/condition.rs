//! Condition types and reasons, and the merge that writes a new condition list only when something other than time
//! changed.

use std::fmt;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// Longest message of a condition in bytes; longer ones are cut.
pub const MAX_MESSAGE: usize = 1_024;

macro_rules! names {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name as objects carry it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names! {
    /// What a condition is about.
    ConditionType {
        /// LLMPool: requests are being served, or will be as soon as they come. False while starting or unusable.
        Ready,
        /// LLMPool: the pool is on its way to another number of endpoints or another template.
        Progressing,
        /// LLMPool: every pod that was asked for has a node.
        CapacityAvailable,
        /// LLMPool: nobody else writes the replicas of the engine Deployment.
        ScalingOwned,
        /// LLMPool: every gateway replica and every ready endpoint says what it is doing.
        MetricsAvailable,
        /// LLMPool: the gateways run with the policies that match the pool.
        PolicyProgrammed,
        /// WorkflowPolicy: the policy is usable.
        Accepted,
        /// WorkflowPolicy: the gateways run with it.
        Programmed,
    }
}

names! {
    /// Why a condition has its status.
    Reason {
        /// Ready: endpoints answer.
        Serving,
        /// Ready: no endpoint runs; the next request starts one.
        AtZero,
        /// Not ready: an endpoint starts because requests wait.
        Waking,
        /// Not ready: the first endpoints start.
        Starting,
        /// Not ready: the pool is on its way to zero.
        Draining,
        /// Not ready: `spec.suspend` is set.
        Suspended,
        /// Not ready: the start took longer than `spec.startup.deadline`.
        StartTimeout,
        /// Not ready: engine pods end as soon as they have started.
        EngineFailing,
        /// Not ready: the image cannot be pulled.
        ImageUnavailable,
        /// Not ready: the API server makes no engine pods: a quota, Pod Security, a class that does not exist.
        PodsRefused,
        /// Not ready: the gateway does not run yet.
        GatewayNotReady,
        /// Not accepted: the spec contradicts itself or names what does not exist.
        Invalid,
        /// Not ready: an older pool of the same gateway serves a model of this name.
        ModelConflict,
        /// Not ready: an object that the pool needs belongs to someone else.
        ObjectConflict,
        /// Not ready or not accepted: a Secret, volume claim or pool that the spec names is missing.
        ReferenceMissing,
        /// More endpoints are starting.
        ScalingUp,
        /// Endpoints are being drained and removed.
        ScalingDown,
        /// Endpoints are being replaced by a new template.
        RollingOut,
        /// Nothing is under way.
        Stable,
        /// Every pod has a node.
        Scheduled,
        /// A pod waits for a node.
        Unschedulable,
        /// Only the operator writes replicas.
        OperatorOnly,
        /// Someone else wrote replicas; the operator wrote them back.
        ReplicasChanged,
        /// All sources answer.
        AllReporting,
        /// A gateway replica or a sidecar does not answer: its load is unknown, and unknown is not idle.
        SourceSilent,
        /// An engine works although the router sends it nothing: someone goes round the router.
        TrafficBypassesRouter,
        /// The gateways run with the newest configuration.
        InForce,
        /// The gateways have not taken the newest configuration yet.
        Pending,
        /// The policy can be used.
        Valid,
        /// The policy names or selects no pool.
        NoPools,
        /// Another policy that is more specific, older, or first by name holds for some of its pools.
        Overlapped,
        /// The operator failed to write an object; it tries again.
        ApplyFailed,
    }
}

/// The three states of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Not known now.
    Unknown,
}

impl State {
    /// As objects carry it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for State {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// A condition as it should be, without a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What it is about.
    pub condition: ConditionType,
    /// Whether it holds.
    pub state: State,
    /// Why.
    pub reason: Reason,
    /// A sentence for people, with what to change where something should be changed.
    pub message: String,
    /// `metadata.generation` of the object it was derived from.
    pub observed_generation: Option<i64>,
}

/// The new list: exactly the wanted conditions, in their order. A condition whose state is as before keeps its
/// transition time, so that merging the same again gives the same list.
#[must_use]
pub fn merge(current: &[Condition], wanted: &[Wanted], now: Timestamp) -> Vec<Condition> {
    wanted
        .iter()
        .map(|wanted| merge_one(current, wanted, now))
        .collect()
}

fn merge_one(current: &[Condition], wanted: &Wanted, now: Timestamp) -> Condition {
    let before = current
        .iter()
        .find(|before| before.type_ == wanted.condition.as_str() && before.status == wanted.state.as_str());
    // The API server keeps whole seconds; a finer time would read back changed.
    let whole = Timestamp::from_second(now.as_second()).unwrap_or(now);
    Condition {
        last_transition_time: before.map_or(Time(whole), |before| before.last_transition_time.clone()),
        message: cut(&wanted.message).to_owned(),
        observed_generation: wanted.observed_generation,
        reason: wanted.reason.as_str().to_owned(),
        status: wanted.state.as_str().to_owned(),
        type_: wanted.condition.as_str().to_owned(),
    }
}

fn cut(message: &str) -> &str {
    let end = message.floor_char_boundary(MAX_MESSAGE);
    &message[..end]
}

/// The condition of a type, if the list has it.
#[must_use]
pub fn find(conditions: &[Condition], condition: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|found| found.type_ == condition.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(state: State, reason: Reason, message: &str) -> Wanted {
        Wanted {
            condition: ConditionType::Ready,
            state,
            reason,
            message: message.to_owned(),
            observed_generation: Some(1),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millisecond(second * 1_000 + 123).unwrap()
    }

    #[test]
    fn time_moves_only_when_the_state_does() {
        let first = merge(&[], &[ready(State::False, Reason::Waking, "a")], at(10));
        assert_eq!(first[0].last_transition_time.0.as_second(), 10);
        let same = merge(&first, &[ready(State::False, Reason::Starting, "b")], at(20));
        assert_eq!(same[0].last_transition_time.0.as_second(), 10);
        assert_eq!(
            (same[0].reason.as_str(), same[0].message.as_str()),
            ("Starting", "b")
        );
        let other = merge(&same, &[ready(State::True, Reason::Serving, "")], at(30));
        assert_eq!(other[0].last_transition_time.0.as_second(), 30);
    }

    #[test]
    fn merging_twice_is_merging_once_even_through_json() {
        let wanted = [
            ready(State::True, Reason::Serving, "all well"),
            Wanted {
                condition: ConditionType::Progressing,
                ..ready(State::False, Reason::Stable, "")
            },
        ];
        let once = merge(&[], &wanted, at(10));
        let stored: Vec<Condition> = serde_json::from_value(serde_json::to_value(&once).unwrap()).unwrap();
        assert_eq!(merge(&stored, &wanted, at(99)), once);
    }

    #[test]
    fn what_is_not_wanted_goes_and_order_is_as_wanted() {
        let two = merge(
            &[],
            &[
                ready(State::True, Reason::Serving, ""),
                Wanted {
                    condition: ConditionType::Progressing,
                    ..ready(State::False, Reason::Stable, "")
                },
            ],
            at(1),
        );
        let one = merge(
            &two,
            &[Wanted {
                condition: ConditionType::Progressing,
                ..ready(State::False, Reason::Stable, "")
            }],
            at(2),
        );
        assert_eq!(one.len(), 1);
        assert_eq!(find(&one, ConditionType::Progressing), Some(&one[0]));
        assert_eq!(find(&one, ConditionType::Ready), None);
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let merged = merge(
            &[],
            &[ready(State::True, Reason::Serving, &"ä".repeat(MAX_MESSAGE))],
            at(1),
        );
        assert_eq!(merged[0].message.len(), MAX_MESSAGE);
    }

    #[test]
    fn names_are_as_kubernetes_wants_them() {
        for name in Reason::ALL
            .iter()
            .map(|r| r.as_str())
            .chain(ConditionType::ALL.iter().map(|t| t.as_str()))
        {
            assert!(name.starts_with(|c: char| c.is_ascii_uppercase()), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric()), "{name}");
        }
    }
}
