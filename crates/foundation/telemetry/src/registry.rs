//! The one registry: every metric of the process.
//!
//! In: names, labels, and writes through handles. Out: exposition text. Promise: memory is
//! bounded whatever labels arrive, an idle series is forgotten, and neither a scrape nor a
//! new series ever makes a writer wait.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use outrigger_config::MetricsRegistry;
use parking_lot::{Mutex, RwLock};

use crate::cells::Cells;
use crate::encode::{self, Format};
use crate::family::{Budget, CounterFamily, Family, FloatCounterFamily, GaugeFamily, HistogramFamily};
use crate::series::{Buckets, Kind};

/// The largest classic histogram; a series must fit a chunk of cells.
const MAX_CLASSIC_BUCKETS: usize = 256;
/// Cells per series the memory is laid out for: twice a histogram of request durations.
const CELLS_PER_SERIES: usize = 32;

/// Why a family was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The name is none that Prometheus takes.
    #[error("`{0}` is not a metric name; use letters, digits, `_` and `:`, not beginning with a digit")]
    Name(String),
    /// A label's name is none that Prometheus takes.
    #[error("`{label}` is not a label name for `{family}`; use letters, digits and `_`, not `__`, `le` or `quantile`")]
    Label {
        /// The family.
        family: String,
        /// Its label.
        label: String,
    },
    /// The name is taken by a family of another type, other labels or other buckets.
    #[error("`{family}` exists already as a {existing}")]
    Conflict {
        /// The family.
        family: String,
        /// What it is.
        existing: String,
    },
    /// Bounds must be finite, ascending, and few.
    #[error("the buckets of `{0}` must be at most 256 finite numbers in ascending order")]
    Buckets(String),
    /// The budget of series, which bounds families too, is used up.
    #[error("no room for the family `{0}`: the registry's `maxSeries` is used up")]
    Full(String),
}

type Collector = Box<dyn Fn(&Registry) + Send + Sync>;

/// The registry; a cheap handle.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    families: Mutex<BTreeMap<Cow<'static, str>, Arc<Family>>>,
    collectors: RwLock<Vec<Collector>>,
    budget: Arc<Budget>,
}

impl Registry {
    /// A registry with `shards` writers: the main thread and each worker.
    pub fn new(limits: &MetricsRegistry, shards: usize) -> Self {
        let shards = shards.max(1);
        // The limits may be raised by a reload, and the rows of chunk pointers cannot grow: they are laid out
        // for a generous ceiling, eight bytes per 512 cells.
        let ceiling = (limits.max_series as usize).max(20_000) * CELLS_PER_SERIES;
        let budget = Arc::new(Budget {
            limits: RwLock::new(limits.clone()),
            cells: Arc::new(Cells::new(shards, ceiling)),
            shards,
            population: Arc::new(AtomicUsize::new(0)),
            overflows: OnceLock::new(),
        });
        let registry =
            Self { inner: Arc::new(Inner { families: Mutex::default(), collectors: RwLock::default(), budget }) };
        let overflows = registry.counter(
            "outrigger_metrics_overflow_total",
            "Label sets that shared an overflow series because the budget was used up.",
            &["family"],
        );
        let _ = registry.inner.budget.overflows.set(overflows);
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
        self.inner.collectors.write().push(collector);
    }

    /// Appends everything in a format.
    pub fn encode(&self, format: Format, out: &mut Vec<u8>) {
        for collector in self.inner.collectors.read().iter() {
            collector(self);
        }
        let families: Vec<_> = self.inner.families.lock().values().cloned().collect();
        encode::encode(&families, format, out);
    }

    /// Forgets series that nobody holds and nobody wrote to for `seriesTtl`, and families left empty by it.
    pub fn expire(&self) {
        self.expire_at(SystemTime::now());
    }

    fn expire_at(&self, now: SystemTime) {
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
            tracing::error!(component = "telemetry", %error, "metric refused");
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
            let known = family.labels();
            let same = *family.kind == kind && known.iter().map(|label| &**label).eq(labels.iter().copied());
            let existing = || format!("{} with the labels {known:?}", family.kind.as_str());
            return if same {
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
        let series = self.gauge("outrigger_metrics_series", "Series in the registry.", &[]).with(&[]);
        let limit = self.gauge("outrigger_metrics_series_limit", "The budget of series, `maxSeries`.", &[]).with(&[]);
        self.on_scrape(Box::new(move |registry| {
            series.set(registry.inner.budget.population.load(Relaxed) as f64);
            limit.set(f64::from(registry.inner.budget.limits.read().max_series));
        }));
    }
}

/// A name that would appear in the exposition twice: `x_count` beside a histogram `x`, or a gauge `x` beside a counter `x_total`.
fn clash<'a>(
    families: &'a BTreeMap<Cow<'static, str>, Arc<Family>>,
    name: &str,
    kind: &Kind,
) -> Option<&'a Cow<'static, str>> {
    let histogram = |kind: &Kind| matches!(kind, Kind::Histogram(_));
    for suffix in ["_bucket", "_count", "_sum"] {
        if let Some((owner, family)) = name.strip_suffix(suffix).and_then(|base| families.get_key_value(base))
            && histogram(&family.kind)
        {
            return Some(owner);
        }
        if histogram(kind)
            && let Some((owner, _)) = families.get_key_value(format!("{name}{suffix}").as_str())
        {
            return Some(owner);
        }
    }
    let counter_of = |name: &str| families.get_key_value(format!("{name}_total").as_str());
    match kind {
        Kind::Counter | Kind::FloatCounter => name.strip_suffix("_total").and_then(|base| families.get_key_value(base)),
        _ => counter_of(name),
    }
    .map(|(owner, _)| owner)
}

fn is_word(text: &str, extra: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
}

/// Whether a family may have a label of this name.
pub(crate) fn check_label(family: &str, label: &str) -> Result<(), RegistryError> {
    if is_word(label, "_") && !label.starts_with("__") && !matches!(label, "le" | "quantile") {
        return Ok(());
    }
    Err(RegistryError::Label { family: family.to_owned(), label: label.chars().take(255).collect() })
}

fn check(name: &str, kind: &Kind, labels: &[&str]) -> Result<(), RegistryError> {
    if !is_word(name, "_:") {
        return Err(RegistryError::Name(name.chars().take(255).collect()));
    }
    labels.iter().try_for_each(|label| check_label(name, label))?;
    if let Kind::Histogram(Buckets::Classic(bounds)) = kind
        && !(bounds.len() <= MAX_CLASSIC_BUCKETS
            && bounds.iter().all(|bound| bound.is_finite())
            && bounds.windows(2).all(|pair| pair[0] < pair[1]))
    {
        return Err(RegistryError::Buckets(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn registry(max_series: u32, per_family: u32) -> Registry {
        let limits = MetricsRegistry { max_series, max_series_per_family: per_family, ..MetricsRegistry::default() };
        Registry::new(&limits, 2)
    }

    fn text(registry: &Registry) -> String {
        let mut out = Vec::new();
        registry.encode(Format::Text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn label_sets_beyond_the_budget_share_one_series() {
        let registry = registry(1000, 3);
        let family = registry.counter("c_total", "C", &["k"]);
        for value in 0..100 {
            family.with(&[&value.to_string()]).inc();
        }
        let text = text(&registry);
        assert!(text.contains("c_total{k=\"overflow\"} 97\n"), "{text}");
        assert!(text.contains("outrigger_metrics_overflow_total{family=\"c_total\"} 97\n"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("c_total{")).count(), 4);
    }

    #[test]
    fn labels_may_be_added_and_old_series_stay_the_same() {
        let registry = registry(1000, 1000);
        let family = registry.try_float_counter("c_total", "C", &[]).unwrap();
        family.with(&[]).add(0.5);
        family.add_labels(&["a"]).unwrap();
        family.with(&["1"]).add(1.0);
        family.add_labels(&["b", "a"]).unwrap();
        for (values, value) in
            [(&[][..], 1.0), (&["1"], 2.0), (&["1", ""], 4.0), (&["1", "2"], 8.0), (&["", "2"], 16.0)]
        {
            family.with(values).add(value);
        }
        assert!(family.add_labels(&["le"]).is_err() && family.add_labels(&["c", "__d"]).is_err());
        let text = text(&registry);
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("c_total")).collect();
        assert_eq!(lines, ["c_total 1.5", "c_total{b=\"2\"} 16", "c_total{a=\"1\"} 7", "c_total{a=\"1\",b=\"2\"} 8"]);
    }

    #[test]
    fn an_overflow_series_is_never_shown_twice() {
        let registry = registry(10, 1000);
        let other = registry.counter("a_total", "A", &["k"]);
        (0..20).for_each(|n| other.with(&[&n.to_string()]).inc());
        let family = registry.counter("b_total", "B", &[]);
        family.with(&[]).inc();
        (0..20).for_each(|n| other.remove(&[&n.to_string()]));
        family.with(&[]).inc();
        other.with(&["overflow"]).inc();
        let text = text(&registry);
        assert_eq!(text.lines().filter(|line| line.starts_with("b_total")).collect::<Vec<_>>(), ["b_total 2"]);
        assert_eq!(text.matches("a_total{k=\"overflow\"}").count(), 1);
    }

    #[test]
    fn one_value_may_be_observed_many_times() {
        let registry = registry(1000, 1000);
        for (name, buckets) in
            [("c", Buckets::Classic(vec![1.0])), ("n", Buckets::Native { schema: 0, max_buckets: 20 })]
        {
            let histogram = registry.histogram(name, "H", &[], buckets).with(&[]);
            histogram.observe_n(0.5, 3);
            histogram.observe_n(0.5, 0);
            assert_eq!((histogram.count(), histogram.sum()), (3, 1.5));
        }
    }

    #[test]
    fn the_total_budget_holds_over_families() {
        let registry = registry(20, 1000);
        for family in 0..15 {
            let family = registry.gauge(format!("g{family}"), "G", &["k"]);
            for value in 0..15 {
                family.with(&[&value.to_string()]).set(1.0);
            }
        }
        let own = text(&registry).lines().filter(|line| line.starts_with('g') && !line.contains("overflow")).count();
        assert!(own <= 20, "{own}");
    }

    #[test]
    fn idle_series_go_and_held_or_written_ones_stay() {
        let registry = registry(1000, 1000);
        let family = registry.counter("c_total", "C", &["k"]);
        let held = family.with(&["held"]);
        family.with(&["idle"]).inc();
        family.with(&["busy"]).inc();
        let start = SystemTime::now();
        let later = |hours: u64| start + Duration::from_secs(3600 * hours + 60);
        registry.expire_at(later(0));
        registry.expire_at(later(1) - Duration::from_secs(120));
        family.with(&["busy"]).inc();
        registry.expire_at(later(1) + Duration::from_secs(1));
        let text = text(&registry);
        assert!(!text.contains("idle"), "{text}");
        assert!(text.contains("c_total{k=\"busy\"} 2") && text.contains("c_total{k=\"held\"} 0"), "{text}");
        held.inc();
        assert_eq!(family.with(&["held"]).value(), 1);
        assert_eq!(family.with(&["idle"]).value(), 0, "a series that comes back begins at zero");
    }

    #[test]
    fn conflicts_and_bad_names_are_refused() {
        let registry = registry(1000, 1000);
        let _ = registry.counter("a_total", "A", &["x"]);
        let _ = registry.histogram("h", "H", &[], Buckets::Classic(vec![1.0]));
        for (name, outcome) in [
            ("other type", registry.try_gauge("a_total", "A", &["x"]).err()),
            ("other labels", registry.try_counter("a_total", "A", &["y"]).err()),
            ("other buckets", registry.try_histogram("h", "H", &[], Buckets::Classic(vec![2.0])).err()),
            ("part of a histogram", registry.try_counter("h_count", "H", &[]).err()),
            ("base of a counter", registry.try_gauge("a", "A", &[]).err()),
            ("name", registry.try_gauge("9a", "A", &[]).err()),
            ("label", registry.try_gauge("b", "A", &["le"]).err()),
            ("buckets", registry.try_histogram("i", "I", &[], Buckets::Classic(vec![2.0, 1.0])).err()),
        ] {
            assert!(outcome.is_some(), "{name}");
        }
        assert!(registry.try_counter("a_total", "A", &["x"]).is_ok());
        // A conflict in our own code must not take the process down, and must not be seen.
        registry.gauge("a_total", "A", &["x"]).with(&["1"]).set(5.0);
        assert!(!text(&registry).contains("} 5"));
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        let registry = registry(1000, 1000);
        registry.counter("c_total", "C", &["k"]).with(&[&"é".repeat(300)]).inc();
        assert!(text(&registry).contains(&format!("\"{}\"", "é".repeat(128))));
    }

    #[test]
    fn values_are_asked_for_when_scraped() {
        let registry = registry(1000, 1000);
        crate::register_build_info(&registry, "1.2.3");
        crate::register_process_metrics(&registry);
        let text = text(&registry);
        for expected in
            ["outrigger_build_info{version=\"1.2.3\"} 1\n", "process_resident_memory_bytes ", "process_open_fds "]
        {
            assert!(text.contains(expected), "{expected} not in {text}");
        }
        assert!(!text.contains("process_threads 0\n"));
    }

    #[test]
    fn native_histograms_are_exposed_as_classic_ones() {
        let registry = registry(1000, 1000);
        let family = registry.histogram("n_seconds", "N", &[], Buckets::Native { schema: 0, max_buckets: 20 });
        for value in [0.0, 1.0, 3.0] {
            family.with(&[]).observe(value);
        }
        let text = text(&registry);
        assert!(text.contains("n_seconds_bucket{le=\"1\"} 2\nn_seconds_bucket{le=\"4\"} 3\n"), "{text}");
        assert_eq!(family.with(&[]).native().positive.len(), 2);
    }
}
