//! The closed sets of label values.

/// Declares an enum whose values are label texts.
macro_rules! labels {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant),+ }

        impl $name {
            /// The label's text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

labels!(
    /// What the process is.
    Role {
        /// In front of pools.
        Gateway = "gateway",
        /// In front of one engine.
        Sidecar = "sidecar",
    }
);
labels!(
    /// A listening port.
    Port {
        /// Model traffic.
        Traffic = "traffic",
        /// Probes, metrics, control.
        Admin = "admin",
    }
);
labels!(
    /// How a request ended.
    Outcome {
        /// Answered in full by an engine, its 4xx included.
        Completed = "completed",
        /// Ended in an error that was not the client's.
        Failed = "failed",
        /// Refused by a bound.
        Shed = "shed",
        /// Refused because the request was wrong.
        Rejected = "rejected",
        /// The client left.
        Cancelled = "cancelled",
    }
);
labels!(
    /// How a request kept what its policy promises.
    Promise {
        /// All objectives were met.
        Met = "met",
        /// One was missed, or the request failed.
        Missed = "missed",
    }
);
labels!(
    /// How a workflow's home was used.
    Home {
        /// No workflow, or no affinity.
        None = "none",
        /// A home was chosen.
        New = "new",
        /// The turn went home.
        Kept = "kept",
        /// The turn went elsewhere, and that is the home now.
        Moved = "moved",
    }
);
labels!(
    /// Which tokens.
    TokenKind {
        /// Of the prompt, cached ones included.
        Prompt = "prompt",
        /// Of the prompt, found in the engine's prefix cache.
        Cached = "cached",
        /// Of the answer.
        Completion = "completion",
    }
);
labels!(
    /// How an endpoint failed an attempt.
    UpstreamFailure {
        /// No connection.
        Connect = "connect",
        /// A connection that broke before the answer began.
        Reset = "reset",
        /// An error status that another endpoint may not have.
        Status = "status",
        /// No first byte in time.
        FirstTokenTimeout = "first_token_timeout",
        /// A pause between two chunks that was too long.
        IdleTimeout = "idle_timeout",
        /// An answer that ended before it was complete.
        Cut = "cut",
        /// An error event inside a stream that began with success.
        Event = "event",
    }
);
labels!(
    /// What became of a configuration that was read.
    ConfigResult {
        /// It is in force.
        Applied = "applied",
        /// It equals the one in force.
        Unchanged = "unchanged",
        /// It is wrong; the last good one stays.
        Refused = "refused",
    }
);
labels!(
    /// What is watched in the Kubernetes API.
    Watched {
        /// Engine pods.
        Pods = "pods",
        /// The gateway's configuration.
        ConfigMap = "configmap",
    }
);
labels!(
    /// How a poll of a sidecar ended.
    PollResult {
        /// With a state.
        Answered = "answered",
        /// Nothing listens there.
        Refused = "refused",
        /// No answer in time.
        Timeout = "timeout",
        /// With anything else.
        Failed = "failed",
    }
);
labels!(
    /// What became of an order.
    OrderResult {
        /// Carried out.
        Done = "done",
        /// Understood, and not possible now (a fence on a pool that is not idle).
        NotDone = "not_done",
        /// Of a lower epoch than one obeyed.
        Stale = "stale",
        /// For a pool that is not here.
        UnknownPool = "unknown_pool",
        /// Not an order.
        Invalid = "invalid",
    }
);
labels!(
    /// Why a sidecar answered itself.
    SidecarRefusal {
        /// All places and the queue are taken.
        Saturated = "saturated",
        /// A path that is not served from outside the pod.
        Path = "path",
        /// The engine could not be reached or broke off.
        Engine = "engine",
        /// The request could not be read.
        Request = "request",
    }
);
labels!(
    /// What was asked of the engine.
    EngineProbe {
        /// Its health endpoint.
        Health = "health",
        /// Its metrics.
        Metrics = "metrics",
    }
);
labels!(
    /// How a probe of the engine ended.
    ProbeResult {
        /// With what was asked for.
        Answered = "answered",
        /// Nothing listens there.
        Refused = "refused",
        /// With anything else, or not in time.
        Missed = "missed",
    }
);

impl From<weir_schedule::HomeUse> for Home {
    fn from(used: weir_schedule::HomeUse) -> Self {
        match used {
            weir_schedule::HomeUse::None => Self::None,
            weir_schedule::HomeUse::New => Self::New,
            weir_schedule::HomeUse::Kept => Self::Kept,
            weir_schedule::HomeUse::Moved => Self::Moved,
        }
    }
}
