//! Registration of metric families.

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector,
};

use super::Role;

/// One family as the reference page shows it.
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: Vec<&'static str>,
    /// What it means.
    pub help: &'static str,
    /// The role that shows it; `None`: both.
    pub role: Option<Role>,
}

/// Makes families, registers those of its role and remembers all of them.
pub(super) struct Builder {
    registry: Registry,
    families: Vec<Family>,
    shown: Role,
    role: Option<Role>,
}

impl Builder {
    pub(super) fn new(shown: Role) -> Self {
        Self {
            registry: Registry::new(),
            families: Vec::new(),
            shown,
            role: None,
        }
    }

    /// Which role the families that follow belong to; `None`: both.
    pub(super) fn only(&mut self, role: Option<Role>) {
        self.role = role;
    }

    pub(super) fn finish(self) -> (Registry, Vec<Family>) {
        (self.registry, self.families)
    }

    fn add<C: Collector + Clone + 'static>(
        &mut self,
        made: C,
        family: (&'static str, &'static str, &[&'static str], &'static str),
    ) -> Result<C, prometheus::Error> {
        let (name, kind, labels, help) = family;
        self.families.push(Family {
            name,
            kind,
            labels: labels.to_vec(),
            help,
            role: self.role,
        });
        if self.role.is_none_or(|role| role == self.shown) {
            self.registry.register(Box::new(made.clone()))?;
        }
        Ok(made)
    }

    pub(super) fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
    ) -> Result<IntCounter, prometheus::Error> {
        self.add(IntCounter::new(name, help)?, (name, "counter", &[], help))
    }

    pub(super) fn counters(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[&'static str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.add(
            IntCounterVec::new(Opts::new(name, help), labels)?,
            (name, "counter", labels, help),
        )
    }

    pub(super) fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
    ) -> Result<IntGauge, prometheus::Error> {
        self.add(IntGauge::new(name, help)?, (name, "gauge", &[], help))
    }

    pub(super) fn gauges(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[&'static str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        self.add(
            IntGaugeVec::new(Opts::new(name, help), labels)?,
            (name, "gauge", labels, help),
        )
    }

    pub(super) fn histograms(
        &mut self,
        name: &'static str,
        help: &'static str,
        buckets: &[f64],
        labels: &[&'static str],
    ) -> Result<HistogramVec, prometheus::Error> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(
            HistogramVec::new(options, labels)?,
            (name, "histogram", labels, help),
        )
    }
}
