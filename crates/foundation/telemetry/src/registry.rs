//! The one registry: every metric of the process.
//!
//! In: names, labels, and writes through handles. Out: exposition text. Promise: memory is
//! bounded whatever labels arrive, an idle series is forgotten, and neither a scrape nor a
//! new series ever makes a writer wait.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use outrigger_config::MetricsRegistry;
use parking_lot::{Mutex, RwLock};

use crate::cells::Cells;
use crate::encode::{self, Format};
use crate::family::{Budget, CounterFamily, Family, FloatCounterFamily, GaugeFamily, HistogramFamily};
use crate::names::{RegistryError, check, clash};
use crate::series::{Buckets, Kind};
use crate::snapshot::FamilySnapshot;

type Collector = Arc<dyn Fn(&Registry) + Send + Sync>;

/// Conflicts that are logged; there is one for each mistaken name in our own code.
const MAX_CONFLICTS_TOLD: usize = 64;

/// The registry; a cheap handle.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    families: Mutex<BTreeMap<Cow<'static, str>, Arc<Family>>>,
    collectors: RwLock<Vec<Collector>>,
    budget: Arc<Budget>,
    /// `outrigger_metrics_conflicts_total`, once it exists.
    conflicts: OnceLock<CounterFamily>,
    conflicts_told: Mutex<BTreeSet<Cow<'static, str>>>,
}

impl Registry {
    /// A registry with `shards` writers: the main thread and each worker.
    pub fn new(limits: &MetricsRegistry, shards: usize) -> Self {
        let shards = shards.max(1);
        let budget = Arc::new(Budget {
            limits: RwLock::new(limits.clone()),
            cells: Arc::new(Cells::new(shards)),
            shards,
            population: Arc::new(AtomicUsize::new(0)),
            overflows: OnceLock::new(),
        });
        let registry = Self {
            inner: Arc::new(Inner {
                families: Mutex::default(),
                collectors: RwLock::default(),
                budget,
                conflicts: OnceLock::new(),
                conflicts_told: Mutex::default(),
            }),
        };
        registry.report_itself();
        registry
    }

    /// Applies new limits; series that exist stay.
    pub fn set_limits(&self, limits: &MetricsRegistry) {
        *self.inner.budget.limits.write() = limits.clone();
    }

    /// A family of counters; its name ends in `_total`. A conflict is logged, and gives a family nobody reads.
    pub fn counter(
        &self,
        name: impl Into<Cow<'static, str>>,
        help: impl Into<Cow<'static, str>>,
        labels: &[&str],
    ) -> CounterFamily {
        CounterFamily(self.family_or_detached(name.into(), help.into(), Kind::Counter, labels))
    }

    /// A family of gauges. A conflict is logged, and gives a family nobody reads.
    pub fn gauge(
        &self,
        name: impl Into<Cow<'static, str>>,
        help: impl Into<Cow<'static, str>>,
        labels: &[&str],
    ) -> GaugeFamily {
        GaugeFamily(self.family_or_detached(name.into(), help.into(), Kind::Gauge, labels))
    }

    /// A family of histograms. A conflict is logged, and gives a family nobody reads.
    pub fn histogram(
        &self,
        name: impl Into<Cow<'static, str>>,
        help: impl Into<Cow<'static, str>>,
        labels: &[&str],
        buckets: Buckets,
    ) -> HistogramFamily {
        HistogramFamily(self.family_or_detached(name.into(), help.into(), Kind::Histogram(buckets), labels))
    }

    /// A counter of floats that is set from a value kept elsewhere.
    pub(crate) fn float_counter(&self, name: &'static str, help: &'static str) -> GaugeFamily {
        GaugeFamily(self.family_or_detached(name.into(), help.into(), Kind::FloatCounter, &[]))
    }

    /// A family of counters whose name comes from outside.
    ///
    /// # Errors
    /// When name or labels are invalid, or the name is taken by something else.
    pub fn try_counter(
        &self,
        name: impl Into<Cow<'static, str>>,
        help: impl Into<Cow<'static, str>>,
        labels: &[&str],
    ) -> Result<CounterFamily, RegistryError> {
        self.family(name.into(), help.into(), Kind::Counter, labels).map(CounterFamily)
    }

    /// A family of counters that grow by fractions, whose name comes from outside.
    ///
    /// # Errors
    /// As [`Registry::try_counter`].
    pub fn try_float_counter(
        &self,
        name: impl Into<Cow<'static, str>>,
        help: impl Into<Cow<'static, str>>,
        labels: &[&str],
    ) -> Result<FloatCounterFamily, RegistryError> {
        self.family(name.into(), help.into(), Kind::FloatCounter, labels).map(FloatCounterFamily)
    }

    /// A family of gauges whose name comes from outside.
    ///
    /// # Errors
    /// As [`Registry::try_counter`].
    pub fn try_gauge(
        &self,
        name: impl Into<Cow<'static, str>>,
        help: impl Into<Cow<'static, str>>,
        labels: &[&str],
    ) -> Result<GaugeFamily, RegistryError> {
        self.family(name.into(), help.into(), Kind::Gauge, labels).map(GaugeFamily)
    }

    /// A family of histograms whose name comes from outside.
    ///
    /// # Errors
    /// As [`Registry::try_counter`], and when the buckets do not ascend.
    pub fn try_histogram(
        &self,
        name: impl Into<Cow<'static, str>>,
        help: impl Into<Cow<'static, str>>,
        labels: &[&str],
        buckets: Buckets,
    ) -> Result<HistogramFamily, RegistryError> {
        self.family(name.into(), help.into(), Kind::Histogram(buckets), labels).map(HistogramFamily)
    }

    /// Calls `collector` before each encode, for values that are read when asked for.
    pub fn on_scrape(&self, collector: Box<dyn Fn(&Registry) + Send + Sync>) {
        self.inner.collectors.write().push(Arc::from(collector));
    }

    /// Appends everything in a format.
    pub fn encode(&self, format: Format, out: &mut Vec<u8>) {
        encode::encode(&self.collect(), format, out);
    }

    /// Everything as values, for formats that are not text.
    pub fn snapshot(&self) -> Vec<FamilySnapshot> {
        self.collect().iter().map(|family| FamilySnapshot::of(family)).collect()
    }

    /// Refreshes what is read when asked for; all families in the order of their names.
    fn collect(&self) -> Vec<Arc<Family>> {
        // Not called under the lock: a collector may itself add one.
        let collectors = self.inner.collectors.read().clone();
        for collector in collectors {
            collector(self);
        }
        self.inner.families.lock().values().cloned().collect()
    }

    /// Forgets series that nobody holds and nobody wrote to for `seriesTtl`, and families left empty by it.
    pub fn expire(&self) {
        self.expire_at(Instant::now());
    }

    fn expire_at(&self, now: Instant) {
        let ttl = self.inner.budget.limits.read().series_ttl.0;
        let families: Vec<_> = self.inner.families.lock().values().cloned().collect();
        for family in &families {
            family.expire(now, ttl);
        }
        drop(families);
        // A family that nobody holds and that has no series came from outside and went again.
        self.inner.families.lock().retain(|_, family| Arc::strong_count(family) > 1 || !family.is_empty());
    }

    fn family_or_detached(
        &self,
        name: Cow<'static, str>,
        help: Cow<'static, str>,
        kind: Kind,
        labels: &[&str],
    ) -> Arc<Family> {
        self.family(name.clone(), help.clone(), kind.clone(), labels).unwrap_or_else(|error| {
            if let Some(conflicts) = self.inner.conflicts.get() {
                conflicts.with(&[&name]).inc();
            }
            let mut told = self.inner.conflicts_told.lock();
            let first = told.len() < MAX_CONFLICTS_TOLD && told.insert(name.clone());
            drop(told);
            if first {
                tracing::error!(component = "telemetry", %error, "metric refused");
            }
            Arc::new(Family::new(name, help, kind, labels, Arc::clone(&self.inner.budget)))
        })
    }

    fn family(
        &self,
        name: Cow<'static, str>,
        help: Cow<'static, str>,
        kind: Kind,
        labels: &[&str],
    ) -> Result<Arc<Family>, RegistryError> {
        check(&name, &kind, labels)?;
        let mut families = self.inner.families.lock();
        if let Some(family) = families.get(&name) {
            let existing = || format!("{} with the labels {:?}", family.kind.as_str(), family.labels());
            return if *family.kind == kind && family.has_first_labels(labels) {
                Ok(Arc::clone(family))
            } else {
                Err(RegistryError::Conflict { family: name.into_owned(), existing: existing() })
            };
        }
        if let Some(owner) = clash(&families, &name, &kind) {
            return Err(RegistryError::Conflict { family: name.into_owned(), existing: format!("part of `{owner}`") });
        }
        if families.len() >= self.inner.budget.limits.read().max_series as usize {
            return Err(RegistryError::Full(name.into_owned()));
        }
        let family = Arc::new(Family::new(name.clone(), help, kind, labels, Arc::clone(&self.inner.budget)));
        families.insert(name, Arc::clone(&family));
        Ok(family)
    }

    fn report_itself(&self) {
        let overflows = self.counter(
            "outrigger_metrics_overflow_total",
            "Times a new label set got the overflow series because the budget was used up.",
            &["family"],
        );
        let _ = self.inner.budget.overflows.set(overflows);
        let conflicts = self.counter(
            "outrigger_metrics_conflicts_total",
            "Times a metric was registered that contradicts an existing one, and is not exposed.",
            &["family"],
        );
        let _ = self.inner.conflicts.set(conflicts);
        let series = self.gauge("outrigger_metrics_series", "Series in the registry.", &[]).with(&[]);
        let limit = self.gauge("outrigger_metrics_series_limit", "The budget of series, `maxSeries`.", &[]).with(&[]);
        self.on_scrape(Box::new(move |registry| {
            series.set(registry.inner.budget.population.load(Relaxed) as f64);
            limit.set(f64::from(registry.inner.budget.limits.read().max_series));
        }));
    }
}

#[cfg(test)]
mod tests;
