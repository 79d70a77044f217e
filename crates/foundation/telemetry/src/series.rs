//! One series and the handles that write to it.
//!
//! In: increments, settings, observations. Out: values for the encoder. Promise: a handle
//! may be kept and used from any thread; a write takes no lock, allocates nothing, and
//! touches no cache line that another worker writes (setting a gauge, and opening a new
//! bucket of a native histogram, are the exceptions).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::cells::Cells;
use crate::exponential::Exponential;
use crate::native::NativeSnapshot;
use crate::trace::TraceId;

/// The buckets of a histogram.
#[derive(Debug, Clone, PartialEq)]
pub enum Buckets {
    /// Upper bounds, ascending; `+Inf` is added.
    Classic(Vec<f64>),
    /// Exponential buckets: `2^schema` for each power of two, at most `max_buckets` of them. The text formats
    /// have no form for these, so they are exposed there as classic buckets at the same bounds.
    Native {
        /// Resolution, -4 to 8; 3 makes each bucket 9 % wider than the one before.
        schema: i8,
        /// Buckets kept, 2 to 4096; beyond it the resolution is halved.
        max_buckets: usize,
    },
    /// Both: the text formats show the classic buckets, formats that can show the native ones.
    Both {
        /// As in [`Buckets::Classic`].
        classic: Vec<f64>,
        /// As in [`Buckets::Native`].
        schema: i8,
        /// As in [`Buckets::Native`].
        max_buckets: usize,
    },
}

impl Buckets {
    /// Seconds, from half a millisecond to ten seconds: what a request beside an application takes.
    pub fn request_seconds() -> Self {
        Self::Classic(vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
    }

    /// Upper bounds of the classic buckets, if there are such.
    pub(crate) fn classic(&self) -> Option<&[f64]> {
        match self {
            Self::Classic(bounds) | Self::Both { classic: bounds, .. } => Some(bounds),
            Self::Native { .. } => None,
        }
    }

    /// Schema and bound of the native buckets, if there are such.
    pub(crate) fn native(&self) -> Option<(i8, usize)> {
        match *self {
            Self::Native { schema, max_buckets } | Self::Both { schema, max_buckets, .. } => {
                Some((schema, max_buckets))
            }
            Self::Classic(_) => None,
        }
    }
}

/// What a family's series are made of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Counter,
    /// A counter that is read from elsewhere and is no whole number, such as CPU seconds.
    FloatCounter,
    Gauge,
    Histogram(Buckets),
}

impl Kind {
    /// The type's name in exposition formats.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Counter | Self::FloatCounter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }

    /// The buckets of a histogram.
    pub(crate) fn buckets(&self) -> Option<&Buckets> {
        match self {
            Self::Histogram(buckets) => Some(buckets),
            Self::Counter | Self::FloatCounter | Self::Gauge => None,
        }
    }

    /// Cells a series takes: classic histograms have one per bucket, one for `+Inf` and one for the sum.
    fn cells(&self) -> usize {
        match self {
            Self::Counter | Self::FloatCounter | Self::Gauge => 1,
            Self::Histogram(buckets) => buckets.classic().map_or(0, |bounds| bounds.len() + 2),
        }
    }
}

/// An observation that a trace tells more about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Exemplar {
    pub(crate) trace: TraceId,
    pub(crate) value: f64,
    pub(crate) at: SystemTime,
}

/// One series: cells, label values, age.
pub(crate) struct Series {
    cells: Arc<Cells>,
    start: usize,
    length: usize,
    pub(crate) kind: Arc<Kind>,
    native: Option<Exponential>,
    /// The newest of each classic bucket, `+Inf` included; made with the first.
    exemplars: OnceLock<Box<[Mutex<Option<Exemplar>>]>>,
    /// Label values with a NUL between; absent ones at the end are left out.
    pub(crate) key: Box<str>,
    pub(crate) created: SystemTime,
    /// When it was last asked for, or seen to be held; see [`seconds`].
    used: AtomicU64,
    /// Shared with the registry: how many series there are.
    population: Arc<AtomicUsize>,
}

impl Series {
    /// A series, or `None` when the registry's memory is used up.
    pub(crate) fn new(
        cells: &Arc<Cells>,
        kind: &Arc<Kind>,
        key: &str,
        shards: usize,
        population: &Arc<AtomicUsize>,
    ) -> Option<Self> {
        let length = kind.cells();
        let native = kind.buckets().and_then(Buckets::native);
        let native = native.map(|(schema, max_buckets)| Exponential::new(schema, max_buckets, shards));
        let start = if length == 0 { 0 } else { cells.take(length)? };
        population.fetch_add(1, Relaxed);
        Some(Self {
            cells: Arc::clone(cells),
            start,
            length,
            kind: Arc::clone(kind),
            native,
            exemplars: OnceLock::new(),
            key: key.into(),
            created: SystemTime::now(),
            used: AtomicU64::new(seconds(Instant::now())),
            population: Arc::clone(population),
        })
    }

    /// A counter's value.
    pub(crate) fn whole(&self) -> u64 {
        self.cells.sum(self.start)
    }

    /// A gauge's value.
    pub(crate) fn float(&self) -> f64 {
        self.cells.sum_f64(self.start)
    }

    /// A histogram's upper bounds with cumulative counts (without `+Inf`), its sum and its count.
    pub(crate) fn histogram(&self) -> (Vec<(f64, u64)>, f64, u64) {
        if let Some(bounds) = self.kind.buckets().and_then(Buckets::classic) {
            let mut cumulative = 0;
            let buckets = bounds.iter().enumerate().map(|(index, bound)| {
                cumulative += self.cells.sum(self.start + index);
                (*bound, cumulative)
            });
            let buckets: Vec<_> = buckets.collect();
            let count = cumulative + self.cells.sum(self.start + bounds.len());
            return (buckets, self.cells.sum_f64(self.start + bounds.len() + 1), count);
        }
        let merged = self.native().unwrap_or_else(|| NativeSnapshot::new(0));
        (merged.classic(), merged.sum, merged.count)
    }

    /// The newest exemplar of a classic bucket.
    pub(crate) fn exemplar(&self, bucket: usize) -> Option<Exemplar> {
        *self.exemplars.get()?.get(bucket)?.lock()
    }

    /// A native histogram's state, all shards together.
    pub(crate) fn native(&self) -> Option<NativeSnapshot> {
        self.native.as_ref().map(Exponential::snapshot)
    }

    /// Marks the series as used now.
    pub(crate) fn touch(&self, now: Instant) {
        self.used.store(seconds(now), Relaxed);
    }

    /// Whether it was not used for longer than `ttl`. Writing needs a handle, so the writes need not be looked at.
    pub(crate) fn is_idle(&self, now: Instant, ttl: Duration) -> bool {
        seconds(now).saturating_sub(self.used.load(Relaxed)) > ttl.as_secs()
    }
}

impl Drop for Series {
    fn drop(&mut self) {
        if self.length > 0 {
            self.cells.give_back(self.start, self.length);
        }
        self.population.fetch_sub(1, Relaxed);
    }
}

/// Seconds since this was first asked, by a clock that nobody sets.
fn seconds(at: Instant) -> u64 {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    at.saturating_duration_since(*FIRST.get_or_init(Instant::now)).as_secs()
}

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(pub(crate) Arc<Series>);

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({:?})"), self.0.key)
            }
        }
    };
}

handle! {
    /// A number that only grows.
    Counter
}

impl Counter {
    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.cells.mine(self.0.start).fetch_add(n, Relaxed);
    }

    /// The value, all shards together.
    pub fn value(&self) -> u64 {
        self.0.whole()
    }
}

handle! {
    /// A number that only grows, also by fractions.
    FloatCounter
}

impl FloatCounter {
    /// Adds `n`; what is no positive number adds nothing.
    #[inline]
    pub fn add(&self, n: f64) {
        if n > 0.0 && n.is_finite() {
            self.0.cells.add_f64(self.0.start, n);
        }
    }

    /// The value, all shards together.
    pub fn value(&self) -> f64 {
        self.0.float()
    }
}

handle! {
    /// A number that goes up and down.
    Gauge
}

impl Gauge {
    /// Sets the value: exactly this one, whatever was added before. An addition made by another thread meanwhile
    /// counts as made either before or after.
    #[inline]
    pub fn set(&self, value: f64) {
        self.0.cells.set_f64(self.0.start, value);
    }

    /// Adds `delta`, which may be negative; any number of threads may do so at once.
    #[inline]
    pub fn add(&self, delta: f64) {
        self.0.cells.add_f64(self.0.start, delta);
    }

    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1.0);
    }

    /// Takes one away.
    #[inline]
    pub fn dec(&self) {
        self.add(-1.0);
    }

    /// The value, all shards together.
    pub fn value(&self) -> f64 {
        self.0.float()
    }
}

handle! {
    /// A distribution.
    Histogram
}

impl Histogram {
    /// Takes one observation.
    #[inline]
    pub fn observe(&self, value: f64) {
        self.observe_n(value, 1);
    }

    /// Takes `n` observations of one value, as a sampled one stands for.
    #[inline]
    pub fn observe_n(&self, value: f64, n: u64) {
        let series = &*self.0;
        let Kind::Histogram(buckets) = &*series.kind else { return };
        if let Some(bounds) = buckets.classic() {
            // NaN compares false with every bound; it belongs to no bucket but `+Inf`.
            let bucket = if value.is_nan() { bounds.len() } else { bounds.partition_point(|bound| *bound < value) };
            series.cells.mine(series.start + bucket).fetch_add(n, Relaxed);
            if n > 0 {
                series.cells.add_f64(series.start + bounds.len() + 1, value * n as f64);
            }
        }
        if let Some(native) = &series.native {
            native.observe(value, n);
        }
    }

    /// Takes a duration, in seconds.
    #[inline]
    pub fn observe_duration(&self, duration: Duration) {
        self.observe(duration.as_secs_f64());
    }

    /// Tells of an observation, which was taken already, that a trace tells more about. For the few that are traced: it
    /// takes a lock, but waits for nobody.
    pub fn exemplar(&self, value: f64, trace: TraceId, at: SystemTime) {
        let series = &*self.0;
        let Some(bounds) = series.kind.buckets().and_then(Buckets::classic) else { return };
        let buckets = series.exemplars.get_or_init(|| (0..=bounds.len()).map(|_| Mutex::default()).collect());
        let bucket = bounds.partition_point(|bound| *bound < value);
        if let Some(mut newest) = buckets[bucket].try_lock() {
            *newest = Some(Exemplar { trace, value, at });
        }
    }

    /// Observations so far.
    pub fn count(&self) -> u64 {
        self.0.histogram().2
    }

    /// Sum of all observations.
    pub fn sum(&self) -> f64 {
        self.0.histogram().1
    }

    /// The state of a native histogram; an empty one for classic histograms.
    pub fn native(&self) -> NativeSnapshot {
        self.0.native().unwrap_or_else(|| NativeSnapshot::new(0))
    }
}
