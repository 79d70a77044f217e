//! A family: all series of one name.
//!
//! In: label values. Out: handles. Promise: a family never has more series than its budget
//! and the registry's allow; label sets beyond it share one series whose values all read
//! `overflow`, and each is counted.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use outrigger_config::MetricsRegistry;
use parking_lot::{Mutex, RwLock};

use crate::cells::Cells;
use crate::series::{Counter, Gauge, Histogram, Kind, Series};

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
    pub(crate) labels: Box<[Box<str>]>,
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
            labels: labels.iter().map(|label| (*label).into()).collect(),
            series: Mutex::default(),
            overflow: OnceLock::new(),
            overflow_told: AtomicBool::new(false),
            budget,
        }
    }

    /// The series of these label values, made when it is new.
    pub(crate) fn with(&self, values: &[&str]) -> Arc<Series> {
        let (max_label, per_family, total) = {
            let limits = self.budget.limits.read();
            (limits.max_label_bytes.as_usize(), limits.max_series_per_family as usize, limits.max_series as usize)
        };
        let key = key(&self.labels, values, max_label);
        let mut series = self.series.lock();
        if let Some(found) = series.get(key.as_str()) {
            found.touch(SystemTime::now());
            return Arc::clone(found);
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
        self.series.lock().remove(key(&self.labels, values, max_label).as_str());
    }

    /// All series in a stable order.
    pub(crate) fn sorted(&self) -> Vec<Arc<Series>> {
        let mut all: Vec<_> = self.series.lock().values().cloned().collect();
        all.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        all.extend(self.overflow.get().cloned());
        all
    }

    /// Drops series that nobody holds and nobody wrote to for `ttl`.
    pub(crate) fn expire(&self, now: SystemTime, ttl: Duration) {
        // `is_idle` is asked first, for it also takes the fingerprint of series that are held.
        self.series.lock().retain(|_, series| !series.is_idle(now, ttl) || Arc::strong_count(series) > 1);
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
            let values = vec!["overflow"; self.labels.len()];
            let key = key(&self.labels, &values, usize::MAX);
            // Should even this one find no memory, writes go to a private registry that nobody reads.
            let fresh = self.make(&key).or_else(|| {
                let cells = Arc::new(Cells::new(1, 512));
                Series::new(&cells, &self.kind, &key, 1, &self.budget.population)
            });
            Arc::new(fresh.expect("a fresh chunk holds any one series"))
        });
        Arc::clone(series)
    }
}

/// Label values, cut to their limit, each followed by a NUL; missing ones are empty.
fn key(labels: &[Box<str>], values: &[&str], max_label: usize) -> String {
    debug_assert_eq!(labels.len(), values.len(), "one value per label");
    let mut key = String::with_capacity(values.iter().map(|value| value.len() + 1).sum());
    for index in 0..labels.len() {
        let value = values.get(index).copied().unwrap_or_default();
        let value = &value[..value.floor_char_boundary(max_label)];
        if value.contains('\0') {
            key.push_str(&value.replace('\0', "\u{fffd}"));
        } else {
            key.push_str(value);
        }
        key.push('\0');
    }
    key
}

macro_rules! family {
    ($(#[$doc:meta])* $family:ident, $handle:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $family(pub(crate) Arc<Family>);

        impl $family {
            /// The series of these label values, in the order of the labels. Takes a lock: keep the handle.
            pub fn with(&self, values: &[&str]) -> $handle {
                $handle(self.0.with(values))
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
    /// All gauges of one name.
    GaugeFamily, Gauge
}
family! {
    /// All histograms of one name.
    HistogramFamily, Histogram
}
