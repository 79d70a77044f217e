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
use crate::native::{MAX_SCHEMA, MIN_SCHEMA};
use crate::series::{Buckets, Kind};
use crate::snapshot::FamilySnapshot;

/// The largest classic histogram; a series must fit a chunk of cells.
const MAX_CLASSIC_BUCKETS: usize = 256;

/// Why a family was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The name is none that Prometheus takes.
    #[error("`{0}` is not a metric name; use letters, digits, `_` and `:`, not beginning with a digit")]
    Name(String),
    /// A label's name is none that Prometheus takes.
    #[error(
        "`{label}` is not a label name for `{family}`; use letters, digits and `_`, each name once, not `__…`, `le` or `quantile`"
    )]
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
    /// Bounds must be finite, ascending, and few; a native schema within its range.
    #[error("the buckets of `{0}` must be at most 256 finite numbers in ascending order, a native schema from -4 to 8")]
    Buckets(String),
    /// The budget of series, which bounds families too, is used up.
    #[error("no room for the family `{0}`: the registry's `maxSeries` is used up")]
    Full(String),
}

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

/// The family whose lines would be mixed up with those of a new one, in either format: `x_count` beside a histogram
/// `x`, a gauge `x` or a counter `x` beside a counter `x_total`, `x_created` beside any of them.
fn clash<'a>(
    families: &'a BTreeMap<Cow<'static, str>, Arc<Family>>,
    name: &str,
    kind: &Kind,
) -> Option<&'a Cow<'static, str>> {
    let owner = |name: &str| families.get_key_value(name).map(|(owner, family)| (owner, &*family.kind));
    // What the new one would add to the exposition, and what others add that is called like the new one.
    for suffix in SUFFIXES {
        if let Some((owner, of)) = name.strip_suffix(suffix).and_then(owner)
            && has_suffix(of, suffix)
        {
            return Some(owner);
        }
        if has_suffix(kind, suffix)
            && let Some((owner, _)) = owner(&format!("{}{suffix}", base(name, kind)))
            && **owner != *name
        {
            return Some(owner);
        }
    }
    // Counters lose their suffix in OpenMetrics, or get it there.
    let counter = |(owner, of): (&'a Cow<'static, str>, &Kind)| is_counter(of).then_some(owner);
    let with_total = format!("{name}_total");
    let with_total = owner(&with_total).and_then(counter);
    let created = name.strip_suffix("_created").and_then(|base| owner(&format!("{base}_total")).and_then(counter));
    let stripped = (base(name, kind) != name).then(|| owner(base(name, kind))).flatten();
    with_total.or(created).or(stripped.map(|(owner, _)| owner))
}

const SUFFIXES: [&str; 5] = ["_bucket", "_count", "_sum", "_created", "_total"];

/// Whether a family has lines with this suffix behind its name, in one format or the other.
fn has_suffix(kind: &Kind, suffix: &str) -> bool {
    match kind {
        Kind::Histogram(_) => suffix != "_total",
        Kind::Counter | Kind::FloatCounter => matches!(suffix, "_total" | "_created"),
        Kind::Gauge => false,
    }
}

fn is_counter(kind: &Kind) -> bool {
    matches!(kind, Kind::Counter | Kind::FloatCounter)
}

/// The name that suffixes are put behind.
fn base<'a>(name: &'a str, kind: &Kind) -> &'a str {
    name.strip_suffix("_total").filter(|_| is_counter(kind)).unwrap_or(name)
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
    for (index, label) in labels.iter().enumerate() {
        check_label(name, label)?;
        if labels[..index].contains(label) {
            return Err(RegistryError::Label { family: name.to_owned(), label: (*label).to_owned() });
        }
    }
    let Kind::Histogram(buckets) = kind else { return Ok(()) };
    let bounds = buckets.classic().unwrap_or_default();
    let fit = bounds.len() <= MAX_CLASSIC_BUCKETS
        && bounds.iter().all(|bound| bound.is_finite())
        && bounds.windows(2).all(|pair| pair[0] < pair[1])
        && buckets.native().is_none_or(|(schema, _)| (MIN_SCHEMA..=MAX_SCHEMA).contains(&schema));
    if fit { Ok(()) } else { Err(RegistryError::Buckets(name.to_owned())) }
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
    fn a_family_whose_labels_grew_is_still_the_one_that_was_registered() {
        let registry = registry(1000, 1000);
        registry.try_gauge("g", "G", &["a"]).unwrap().add_labels(&["b"]).unwrap();
        let again = registry.try_gauge("g", "G", &["a"]).unwrap();
        again.with(&["1", "2"]).set(3.0);
        assert!(text(&registry).contains("g{a=\"1\",b=\"2\"} 3\n"));
        assert!(registry.try_gauge("g", "G", &["a", "b"]).is_err());
    }

    #[test]
    fn a_gauge_shows_what_was_set_whoever_set_it() {
        let registry = registry(1000, 1000);
        let gauge = registry.gauge("g", "G", &[]).with(&[]);
        for value in [f64::NAN, 1e300, 0.1, f64::INFINITY, 0.3] {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    crate::set_shard(1);
                    gauge.set(value);
                });
            });
            assert_eq!(gauge.value().to_bits(), value.to_bits());
        }
        gauge.dec();
        assert_eq!(gauge.value(), 0.3 - 1.0);
    }

    #[test]
    fn a_handle_keeps_its_series_and_the_time_begins_when_it_goes() {
        let registry = registry(1000, 1000);
        let family = registry.gauge("g", "G", &["k"]);
        let held = family.with(&["a"]);
        let at = |hours: u64| Instant::now() + Duration::from_secs(3600 * hours + 5);
        registry.expire_at(at(9));
        drop(held);
        registry.expire_at(at(9) + Duration::from_secs(60));
        assert!(text(&registry).contains("g{k=\"a\"} 0\n"));
        registry.expire_at(at(11));
        assert!(!text(&registry).contains("k=\"a\""));
    }

    #[test]
    fn a_collector_may_add_another() {
        let registry = registry(1000, 1000);
        registry.on_scrape(Box::new(|registry| registry.on_scrape(Box::new(|_| {}))));
        text(&registry);
        text(&registry);
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
    fn idle_series_go_and_held_ones_stay() {
        let registry = registry(1000, 1000);
        let family = registry.counter("c_total", "C", &["k"]);
        let held = family.with(&["held"]);
        family.with(&["idle"]).inc();
        let created = family.with(&["idle"]).0.created;
        let start = Instant::now();
        registry.expire_at(start + Duration::from_secs(3590));
        assert!(text(&registry).contains("c_total{k=\"idle\"} 1\n"));
        registry.expire_at(start + Duration::from_secs(3610));
        let text = text(&registry);
        assert!(!text.contains("idle") && text.contains("c_total{k=\"held\"} 0"), "{text}");
        held.inc();
        assert_eq!(family.with(&["held"]).value(), 1);
        assert_eq!(family.with(&["idle"]).value(), 0, "a series that comes back begins at zero");
        assert!(family.with(&["idle"]).0.created > created, "and says since when");
    }

    #[test]
    fn conflicts_and_bad_names_are_refused() {
        let registry = registry(1000, 1000);
        let _ = registry.counter("a_total", "A", &["x"]);
        let _ = registry.histogram("h", "H", &[], Buckets::Classic(vec![1.0]));
        let _ = registry.gauge("s_sum", "S", &[]);
        let _ = registry.counter("bare", "B", &[]);
        for (name, outcome) in [
            ("other type", registry.try_gauge("a_total", "A", &["x"]).err()),
            ("other labels", registry.try_counter("a_total", "A", &["y"]).err()),
            ("other buckets", registry.try_histogram("h", "H", &[], Buckets::Classic(vec![2.0])).err()),
            ("part of a histogram", registry.try_counter("h_count", "H", &[]).err()),
            ("base of a counter", registry.try_gauge("a", "A", &[]).err()),
            ("name", registry.try_gauge("9a", "A", &[]).err()),
            ("bare counter beside its full name", registry.try_counter("a", "A", &[]).err()),
            ("created of a counter", registry.try_gauge("a_created", "A", &[]).err()),
            ("created of a histogram", registry.try_gauge("h_created", "A", &[]).err()),
            ("histogram over a sum", registry.try_histogram("s", "A", &[], Buckets::request_seconds()).err()),
            ("counter over a gauge", registry.try_counter("s_sum_total", "A", &[]).err()),
            ("full name beside a bare counter", registry.try_counter("bare_total", "A", &[]).err()),
            ("label", registry.try_gauge("b", "A", &["le"]).err()),
            ("label twice", registry.try_gauge("b", "A", &["x", "y", "x"]).err()),
            ("schema", registry.try_histogram("i", "I", &[], Buckets::Native { schema: 9, max_buckets: 160 }).err()),
            ("buckets", registry.try_histogram("i", "I", &[], Buckets::Classic(vec![2.0, 1.0])).err()),
        ] {
            assert!(outcome.is_some(), "{name}");
        }
        assert!(registry.try_counter("a_total", "A", &["x"]).is_ok());
        // A conflict in our own code must not take the process down, and must not be seen.
        registry.gauge("a_total", "A", &["x"]).with(&["1"]).set(5.0);
        let text = text(&registry);
        assert!(!text.contains("} 5"), "{text}");
        assert!(text.contains("outrigger_metrics_conflicts_total{family=\"a_total\"} 1\n"), "{text}");
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
            ["outrigger_build_info{version=\"1.2.3\",arch=\"", "process_resident_memory_bytes ", "process_open_fds "]
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
        assert!(
            text.contains("n_seconds_bucket{le=\"1\"} 2\nn_seconds_bucket{le=\"2\"} 2\nn_seconds_bucket{le=\"4\"} 3\n"),
            "{text}"
        );
        assert_eq!(family.with(&[]).native().positive.len(), 2);
    }
}
