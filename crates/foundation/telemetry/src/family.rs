//! A family: all series of one name.
//!
//! In: label values. Out: handles. Promise: a family never has more series than its budget
//! and the registry's allow; label sets beyond it share one series whose values all read
//! `overflow`, and each is counted.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use outrigger_config::MetricsRegistry;
use parking_lot::{Mutex, RwLock};

use crate::cells::Cells;
use crate::names::{self, RegistryError};
use crate::series::{Counter, FloatCounter, Gauge, Histogram, Kind, Series};

/// What all families of a registry share.
pub(crate) struct Budget {
    pub(crate) limits: RwLock<MetricsRegistry>,
    pub(crate) cells: Arc<Cells>,
    pub(crate) shards: usize,
    pub(crate) population: Arc<AtomicUsize>,
    /// `outrigger_metrics_overflow_total`, once it exists.
    pub(crate) overflows: OnceLock<CounterFamily>,
}

/// All series of one name.
pub(crate) struct Family {
    pub(crate) name: Cow<'static, str>,
    pub(crate) help: Cow<'static, str>,
    pub(crate) kind: Arc<Kind>,
    /// They only grow.
    labels: RwLock<Arc<[Box<str>]>>,
    /// The labels it was registered with.
    first_labels: usize,
    series: Mutex<HashMap<Box<str>, Arc<Series>>>,
    overflow: OnceLock<Arc<Series>>,
    overflow_told: AtomicBool,
    budget: Arc<Budget>,
}

impl Family {
    pub(crate) fn new(
        name: Cow<'static, str>,
        help: Cow<'static, str>,
        kind: Kind,
        labels: &[&str],
        budget: Arc<Budget>,
    ) -> Self {
        Self {
            name,
            help,
            kind: Arc::new(kind),
            labels: RwLock::new(labels.iter().map(|label| (*label).into()).collect()),
            first_labels: labels.len(),
            series: Mutex::default(),
            overflow: OnceLock::new(),
            overflow_told: AtomicBool::new(false),
            budget,
        }
    }

    /// The names of the labels.
    pub(crate) fn labels(&self) -> Arc<[Box<str>]> {
        Arc::clone(&self.labels.read())
    }

    /// Whether it was registered with these labels.
    pub(crate) fn has_first_labels(&self, labels: &[&str]) -> bool {
        self.labels.read()[..self.first_labels].iter().map(|label| &**label).eq(labels.iter().copied())
    }

    /// Appends labels; series that exist have no values for them, which means the same as not having them.
    fn add_labels(&self, fresh: &[&str]) -> Result<(), RegistryError> {
        fresh.iter().try_for_each(|label| names::check_label(&self.name, label))?;
        let mut labels = self.labels.write();
        let mut all = labels.to_vec();
        for label in fresh {
            if !all.iter().any(|known| **known == **label) {
                all.push((*label).into());
            }
        }
        *labels = all.into();
        Ok(())
    }

    /// The series of these label values, made when it is new.
    pub(crate) fn with(&self, values: &[&str]) -> Arc<Series> {
        let (max_label, per_family, total) = {
            let limits = self.budget.limits.read();
            (limits.max_label_bytes.as_usize(), limits.max_series_per_family as usize, limits.max_series as usize)
        };
        let key = key(&self.labels(), values, max_label);
        let mut series = self.series.lock();
        if let Some(found) = series.get(key.as_str()) {
            found.touch(Instant::now());
            return Arc::clone(found);
        }
        if let Some(overflow) = self.overflow.get()
            && *overflow.key == *key
        {
            // The family has no labels, or the values are what the overflow series has: it must not appear twice.
            return Arc::clone(overflow);
        }
        if series.len() < per_family
            && self.budget.population.load(Relaxed) < total
            && let Some(fresh) = self.make(&key)
        {
            let fresh = Arc::new(fresh);
            series.insert(fresh.key.clone(), Arc::clone(&fresh));
            return fresh;
        }
        drop(series);
        self.overflow()
    }

    /// Forgets a series; handles that still exist write to nothing that is seen.
    pub(crate) fn remove(&self, values: &[&str]) {
        let max_label = self.budget.limits.read().max_label_bytes.as_usize();
        self.series.lock().remove(key(&self.labels(), values, max_label).as_str());
    }

    /// All series in a stable order.
    pub(crate) fn sorted(&self) -> Vec<Arc<Series>> {
        let mut all: Vec<_> = self.series.lock().values().cloned().collect();
        all.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        // It may be one of them: see `overflow`.
        all.extend(self.overflow.get().filter(|overflow| all.iter().all(|series| series.key != overflow.key)).cloned());
        all
    }

    /// Whether nobody would miss it: no series, and nobody writes to the overflow series.
    pub(crate) fn is_empty(&self) -> bool {
        self.series.lock().is_empty() && self.overflow.get().is_none_or(|overflow| Arc::strong_count(overflow) == 1)
    }

    /// Drops series that nobody holds and nobody wrote to for `ttl`.
    pub(crate) fn expire(&self, now: Instant, ttl: Duration) {
        self.series.lock().retain(|_, series| {
            // A handle counts as use: the time begins when the last one goes.
            let held = Arc::strong_count(series) > 1;
            if held {
                series.touch(now);
            }
            held || !series.is_idle(now, ttl)
        });
    }

    fn make(&self, key: &str) -> Option<Series> {
        Series::new(&self.budget.cells, &self.kind, key, self.budget.shards, &self.budget.population)
    }

    fn overflow(&self) -> Arc<Series> {
        if let Some(overflows) = self.budget.overflows.get() {
            // Its own family is within the budget from the start, and never asks for itself here.
            if *self.name != *overflows.0.name {
                overflows.with(&[&self.name]).inc();
            }
        }
        if !self.overflow_told.swap(true, Relaxed) {
            tracing::warn!(component = "telemetry", family = %self.name, "series budget used up, new label sets share one series");
        }
        let series = self.overflow.get_or_init(|| {
            let labels = self.labels();
            let key = key(&labels, &vec!["overflow"; labels.len()], usize::MAX);
            if let Some(series) = self.series.lock().get(key.as_str()) {
                return Arc::clone(series);
            }
            // Should even this one find no memory, writes go to a private registry that nobody reads.
            let fresh = self.make(&key).or_else(|| {
                let cells = Arc::new(Cells::new(1));
                Series::new(&cells, &self.kind, &key, 1, &self.budget.population)
            });
            Arc::new(fresh.expect("a fresh chunk holds any one series"))
        });
        Arc::clone(series)
    }
}

/// Label values, cut to their limit, with a NUL between; absent ones at the end are left out, so that a family's labels may grow.
fn key(labels: &[Box<str>], values: &[&str], max_label: usize) -> String {
    debug_assert!(values.len() <= labels.len(), "no value without a label");
    let mut key = String::with_capacity(values.iter().map(|value| value.len() + 1).sum());
    for value in values.iter().take(labels.len()) {
        let value = &value[..value.floor_char_boundary(max_label)];
        if value.contains('\0') {
            key.push_str(&value.replace('\0', "\u{fffd}"));
        } else {
            key.push_str(value);
        }
        key.push('\0');
    }
    key.truncate(key.trim_end_matches('\0').len());
    key
}

macro_rules! family {
    ($(#[$doc:meta])* $family:ident, $handle:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $family(pub(crate) Arc<Family>);

        impl $family {
            /// The series of these label values, in the order of the labels; those left out at the end are empty. Takes a
            /// lock: keep the handle.
            pub fn with(&self, values: &[&str]) -> $handle {
                $handle(self.0.with(values))
            }

            /// Appends labels that the family does not have yet, for families whose label sets vary (StatsD). Existing
            /// series have no values for them, which Prometheus takes as not having them.
            ///
            /// # Errors
            /// When a name is invalid; then none is added.
            pub fn add_labels(&self, labels: &[&str]) -> Result<(), RegistryError> {
                self.0.add_labels(labels)
            }

            /// Forgets a series.
            pub fn remove(&self, values: &[&str]) {
                self.0.remove(values);
            }
        }

        impl std::fmt::Debug for $family {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($family), "({})"), self.0.name)
            }
        }
    };
}

family! {
    /// All counters of one name.
    CounterFamily, Counter
}
family! {
    /// All counters of one name that grow by fractions.
    FloatCounterFamily, FloatCounter
}
family! {
    /// All gauges of one name.
    GaugeFamily, Gauge
}
family! {
    /// All histograms of one name.
    HistogramFamily, Histogram
}
