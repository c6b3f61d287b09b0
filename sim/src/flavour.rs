//! Which engine the simulator speaks like.

/// An engine's manners: routes, shapes, metrics, shutdown. The step loop behind them is the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Flavour {
    /// vLLM 0.32.
    #[default]
    Vllm,
    /// SGLang 0.5.23.
    Sglang(Sglang),
}

/// Switches that only SGLang has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sglang {
    /// `--enable-metrics`: without it there is no `/metrics`.
    pub metrics: bool,
    /// `--schedule-low-priority-values-first`; otherwise the higher value runs first.
    pub low_values_first: bool,
    /// `--default-priority-value`; without it a request that names no priority comes last.
    pub default_priority: Option<i64>,
    /// `--abort-on-priority-when-disabled`.
    pub abort_on_priority: bool,
}

impl Flavour {
    /// SGLang's switches; `None` for vLLM.
    pub fn sglang(self) -> Option<Sglang> {
        match self {
            Self::Vllm => None,
            Self::Sglang(switches) => Some(switches),
        }
    }
}
