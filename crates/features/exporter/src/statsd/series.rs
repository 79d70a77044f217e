//! From samples to series of the registry.
//!
//! In: datagrams. Out: families under Prometheus names, whose labels grow as new tags
//! appear; what cannot be taken is counted with its reason. Promise: what is known here
//! is bounded by the registry's `maxSeries`, a series that nobody sends is forgotten
//! after its time to live, and a metric seen before costs one look-up.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::{MetricsRegistry, Statsd};
use outrigger_telemetry::{
    Buckets, Counter, CounterFamily, FloatCounter, FloatCounterFamily, Gauge, GaugeFamily, Histogram, HistogramFamily,
    Registry, RegistryError,
};

use super::drops::KernelDrops;
use super::name::{self, Kind};
use super::parse::{Sample, Tags, Value, parse_datagram};

/// Labels of one family: all the tags its samples ever had.
const MAX_LABELS: usize = 32;

/// The longest name or tag key.
const MAX_NAME: usize = 200;

/// Spellings (name and tags as sent) that lead to a series without further work, and the longest one kept.
const MAX_SPELLINGS: usize = 8192;
const MAX_SPELLING: usize = 1024;

/// Names that belong to the process itself; the application's must not mix with them.
const OWN_PREFIX: &str = "outrigger_";
const OWN_NAMES: [&str; 7] = [
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
    "process_virtual_memory_bytes",
];

/// Everything that StatsD has told.
pub(crate) struct Series {
    registry: Registry,
    settings: Settings,
    own: Own,
    families: HashMap<Arc<str>, Family>,
    /// Where each series of `entries` is, by family and label values.
    index: HashMap<(Arc<str>, Vec<String>), usize>,
    entries: Vec<Option<Entry>>,
    vacant: Vec<usize>,
    /// Kind, name and tags as sent, and the entry they lead to.
    spellings: HashMap<Box<[u8]>, usize>,
    /// Scratch for the key of `spellings`.
    spelling: Vec<u8>,
}

/// What the config says.
#[derive(Default)]
struct Settings {
    prefix: String,
    buckets: Vec<f64>,
    ttl: Duration,
    max_series: usize,
}

/// Metrics about StatsD itself.
struct Own {
    datagrams: Counter,
    samples: [Counter; 4],
    errors: CounterFamily,
    drops: KernelDrops,
}

/// All series of one name.
struct Family {
    kind: Kind,
    handle: Handle,
    labels: Vec<String>,
    /// How many of `entries` are its.
    series: usize,
}

enum Handle {
    Counter(FloatCounterFamily),
    Gauge(GaugeFamily),
    Histogram(HistogramFamily),
}

/// One series.
struct Entry {
    family: Arc<str>,
    values: Vec<String>,
    metric: Metric,
    /// The part of an observation that sampled timers have told beyond whole ones.
    rest: f64,
    seen: Instant,
}

enum Metric {
    Counter(FloatCounter),
    Gauge(Gauge),
    Histogram(Histogram),
}

impl Series {
    pub(crate) fn new(registry: &Registry) -> Self {
        let samples = registry.counter("outrigger_statsd_samples_total", "StatsD samples taken, by type.", &["type"]);
        let kinds = [Kind::Counter, Kind::Gauge, Kind::Timer, Kind::Distribution];
        let own = Own {
            datagrams: registry
                .counter("outrigger_statsd_datagrams_total", "StatsD datagrams received.", &[])
                .with(&[]),
            samples: kinds.map(|kind| samples.with(&[kind.label()])),
            errors: registry.counter(
                "outrigger_statsd_errors_total",
                "StatsD lines, values or series that were refused, by reason.",
                &["reason"],
            ),
            drops: KernelDrops::new(registry),
        };
        Self {
            registry: registry.clone(),
            settings: Settings::default(),
            own,
            families: HashMap::new(),
            index: HashMap::new(),
            entries: Vec::new(),
            vacant: Vec::new(),
            spellings: HashMap::new(),
            spelling: Vec::new(),
        }
    }

    /// Applies the config; series that exist stay, but for histograms whose buckets change: those begin anew.
    pub(crate) fn configure(&mut self, statsd: &Statsd, registry: &MetricsRegistry) {
        let ttl = if statsd.ttl.0.is_zero() { registry.series_ttl } else { statsd.ttl };
        let fresh = Settings {
            prefix: statsd.prefix.clone(),
            buckets: statsd.buckets.clone(),
            ttl: ttl.into(),
            max_series: usize::try_from(registry.max_series).unwrap_or(usize::MAX),
        };
        let before = std::mem::replace(&mut self.settings, fresh);
        if before.prefix != self.settings.prefix {
            self.spellings.clear();
        }
        if before.buckets != self.settings.buckets {
            self.forget_if(|_, metric| matches!(metric, Metric::Histogram(_)));
        }
    }

    /// Follows the kernel's drops on another socket; call it while the former is still open.
    pub(crate) fn watch_drops(&self, inode: Option<u64>) {
        self.own.drops.watch(inode);
    }

    /// Takes one datagram.
    pub(crate) fn datagram(&mut self, datagram: &[u8]) {
        self.own.datagrams.inc();
        let now = Instant::now();
        parse_datagram(datagram, |result| {
            let (refused, name) = match result {
                Ok(sample) => (self.sample(&sample, now).err(), sample.name),
                Err(refusal) => (Some(refusal.reason()), &b""[..]),
            };
            if let Some(reason) = refused {
                let name = String::from_utf8_lossy(&name[..name.len().min(MAX_NAME)]);
                tracing::debug!(component = "metrics", reason, %name, "StatsD sample refused");
                self.own.errors.with(&[reason]).inc();
            }
        });
    }

    /// Forgets what nobody has sent for its time to live.
    pub(crate) fn sweep(&mut self) {
        let (now, ttl) = (Instant::now(), self.settings.ttl);
        self.forget_if(|entry, _| now.duration_since(entry) > ttl);
    }

    /// Forgets everything.
    pub(crate) fn forget(&mut self) {
        self.forget_if(|_, _| true);
    }

    fn sample(&mut self, sample: &Sample<'_>, now: Instant) -> Result<(), &'static str> {
        let kind = Kind::of(sample.value);
        self.spelling.clear();
        self.spelling.push(kind as u8);
        self.spelling.extend_from_slice(sample.name);
        self.spelling.push(b'|');
        self.spelling.extend_from_slice(sample.tags.as_bytes());
        let slot = match self.spellings.get(self.spelling.as_slice()) {
            Some(slot) => *slot,
            None => self.find(kind, sample, now)?,
        };
        let entry = self.entries[slot].as_mut().expect("spellings are cleared whenever an entry goes");
        entry.seen = now;
        entry.take(sample);
        self.own.samples[kind as usize].inc();
        Ok(())
    }

    /// Finds or makes the series of a sample that is spelled in a new way.
    fn find(&mut self, kind: Kind, sample: &Sample<'_>, now: Instant) -> Result<usize, &'static str> {
        let metric_name = name::metric_name(&self.settings.prefix, sample.name, kind);
        let tags = labels(sample.tags)?;
        let family = self.family(metric_name, kind)?;
        let values = self.values(&family, tags)?;
        let key = (family, values);
        let slot = match self.index.get(&key) {
            Some(slot) => *slot,
            None => self.enter(key, now)?,
        };
        if self.spelling.len() <= MAX_SPELLING {
            if self.spellings.len() >= MAX_SPELLINGS {
                self.spellings.clear();
            }
            self.spellings.insert(self.spelling.as_slice().into(), slot);
        }
        Ok(slot)
    }

    /// Finds or makes the family of a name; a name has one kind only.
    fn family(&mut self, metric_name: String, kind: Kind) -> Result<Arc<str>, &'static str> {
        if let Some((name, family)) = self.families.get_key_value(metric_name.as_str()) {
            return if family.kind == kind { Ok(Arc::clone(name)) } else { Err("type_conflict") };
        }
        if metric_name.len() > MAX_NAME {
            return Err("name_too_long");
        }
        if metric_name.starts_with(OWN_PREFIX) || OWN_NAMES.contains(&metric_name.as_str()) {
            return Err("reserved_name");
        }
        if self.families.len() >= self.settings.max_series {
            return Err("too_many_series");
        }
        let (registry, help) = (&self.registry, kind.help());
        let name: Arc<str> = metric_name.as_str().into();
        let handle = match kind {
            Kind::Counter => registry.try_float_counter(metric_name, help, &[]).map(Handle::Counter),
            Kind::Gauge => registry.try_gauge(metric_name, help, &[]).map(Handle::Gauge),
            Kind::Timer | Kind::Distribution => registry
                .try_histogram(metric_name, help, &[], Buckets::Classic(self.settings.buckets.clone()))
                .map(Handle::Histogram),
        };
        let handle = handle.map_err(|error| reason(&error))?;
        self.families.insert(Arc::clone(&name), Family { kind, handle, labels: Vec::new(), series: 0 });
        Ok(name)
    }

    /// Puts a sample's tags in the order of its family's labels, which grow when a tag is new. Trailing absent ones are left out.
    fn values(&mut self, family: &str, tags: Vec<(String, String)>) -> Result<Vec<String>, &'static str> {
        let family = self.families.get_mut(family).expect("it was found or made just now");
        let fresh: Vec<&str> = tags
            .iter()
            .map(|(key, _)| key.as_str())
            .filter(|key| !family.labels.iter().any(|label| label == key))
            .collect();
        if family.labels.len() + fresh.len() > MAX_LABELS {
            return Err("too_many_labels");
        }
        if !fresh.is_empty() {
            match &family.handle {
                Handle::Counter(counter) => counter.add_labels(&fresh),
                Handle::Gauge(gauge) => gauge.add_labels(&fresh),
                Handle::Histogram(histogram) => histogram.add_labels(&fresh),
            }
            .map_err(|error| reason(&error))?;
            family.labels.extend(fresh.into_iter().map(str::to_owned));
        }
        let mut values = vec![String::new(); family.labels.len()];
        for (key, value) in tags {
            if let Some(at) = family.labels.iter().position(|label| *label == key) {
                values[at] = value;
            }
        }
        values.truncate(values.iter().rposition(|value| !value.is_empty()).map_or(0, |last| last + 1));
        Ok(values)
    }

    /// Makes a series; beyond the registry's budget it is the family's overflow series.
    fn enter(&mut self, key: (Arc<str>, Vec<String>), now: Instant) -> Result<usize, &'static str> {
        if self.index.len() >= self.settings.max_series {
            return Err("too_many_series");
        }
        let (family, values) = (Arc::clone(&key.0), key.1.clone());
        let metric = {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let family = self.families.get_mut(&family).expect("it was found or made just now");
            family.series += 1;
            match &family.handle {
                Handle::Counter(counter) => Metric::Counter(counter.with(&values)),
                Handle::Gauge(gauge) => Metric::Gauge(gauge.with(&values)),
                Handle::Histogram(histogram) => Metric::Histogram(histogram.with(&values)),
            }
        };
        let entry = Some(Entry { family, values, metric, rest: 0.0, seen: now });
        let slot = match self.vacant.pop() {
            Some(slot) => {
                self.entries[slot] = entry;
                slot
            }
            None => {
                self.entries.push(entry);
                self.entries.len() - 1
            }
        };
        self.index.insert(key, slot);
        Ok(slot)
    }

    fn forget_if(&mut self, gone: impl Fn(Instant, &Metric) -> bool) {
        for slot in 0..self.entries.len() {
            let Some(entry) = self.entries[slot].take_if(|entry| gone(entry.seen, &entry.metric)) else { continue };
            let family = self.families.get_mut(&entry.family).expect("a family outlives its series");
            let values: Vec<&str> = entry.values.iter().map(String::as_str).collect();
            match &family.handle {
                Handle::Counter(counter) => counter.remove(&values),
                Handle::Gauge(gauge) => gauge.remove(&values),
                Handle::Histogram(histogram) => histogram.remove(&values),
            }
            family.series -= 1;
            self.index.remove(&(entry.family, entry.values));
            self.vacant.push(slot);
            self.spellings.clear();
        }
        let before = self.families.len();
        self.families.retain(|_, family| family.series > 0);
        if self.families.len() < before {
            // The registry lets go of families that are empty and that nobody holds.
            self.registry.expire();
        }
    }
}

impl Entry {
    fn take(&mut self, sample: &Sample<'_>) {
        match (&self.metric, sample.value) {
            (Metric::Counter(counter), Value::Counter(by)) => counter.add(by / sample.rate),
            (Metric::Gauge(gauge), Value::Gauge(value)) => gauge.set(value),
            (Metric::Gauge(gauge), Value::GaugeDelta(delta)) => gauge.add(delta),
            (Metric::Histogram(histogram), Value::Timer(millis)) => {
                histogram.observe_n(millis / 1e3, observations(&mut self.rest, sample.rate));
            }
            (Metric::Histogram(histogram), Value::Distribution(value)) => {
                histogram.observe_n(value, observations(&mut self.rest, sample.rate));
            }
            // A family has one kind, and an entry's metric is of its family's kind.
            _ => {}
        }
    }
}

/// How many observations a sampled one stands for; the fraction stays for the next time.
fn observations(rest: &mut f64, rate: f64) -> u64 {
    let sum = *rest + 1.0 / rate;
    // Three times 3.33… make ten, although they do not add up to it exactly.
    let units = (sum + 1e-6).floor();
    *rest = (sum - units).max(0.0);
    // A float beyond the range becomes the largest number.
    units as u64
}

/// A sample's tags as labels, each name once.
fn labels(tags: Tags<'_>) -> Result<Vec<(String, String)>, &'static str> {
    let mut labels: Vec<(String, String)> = Vec::new();
    for (key, value) in tags.iter() {
        if key.len() > MAX_NAME {
            return Err("name_too_long");
        }
        let (key, value) = (name::label_name(key), name::label_value(value));
        match labels.iter().position(|(known, _)| *known == key) {
            // Of a tag that is sent twice, the last one counts.
            Some(at) => labels[at].1 = value,
            None if labels.len() == MAX_LABELS => return Err("too_many_labels"),
            None => labels.push((key, value)),
        }
    }
    Ok(labels)
}

fn reason(error: &RegistryError) -> &'static str {
    match error {
        RegistryError::Conflict { .. } => "type_conflict",
        RegistryError::Full(_) => "too_many_series",
        RegistryError::Name(_) | RegistryError::Label { .. } => "invalid_name",
        RegistryError::Buckets(_) => "invalid_buckets",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_telemetry::Format;
    use proptest::prelude::*;

    struct Fixture {
        registry: Registry,
        series: Series,
        limits: MetricsRegistry,
        statsd: Statsd,
    }

    impl Fixture {
        fn new() -> Self {
            let limits = MetricsRegistry::default();
            Self::with_limits(limits)
        }

        fn with_limits(limits: MetricsRegistry) -> Self {
            let registry = Registry::new(&limits, 1);
            let statsd = Statsd { buckets: vec![0.1, 0.5, 1.0], ..Statsd::default() };
            let mut series = Series::new(&registry);
            series.configure(&statsd, &limits);
            Self { registry, series, limits, statsd }
        }

        fn send(&mut self, datagrams: &[&str]) -> &mut Self {
            datagrams.iter().for_each(|datagram| self.series.datagram(datagram.as_bytes()));
            self
        }

        fn configure(&mut self, change: impl FnOnce(&mut Statsd)) {
            change(&mut self.statsd);
            self.series.configure(&self.statsd, &self.limits);
        }

        fn text(&self) -> String {
            let mut text = Vec::new();
            self.registry.encode(Format::Text, &mut text);
            String::from_utf8(text).unwrap()
        }

        #[track_caller]
        fn shows(&self, lines: &[&str]) {
            let text = self.text();
            for line in lines {
                assert!(text.lines().any(|found| found == *line), "{line}\nis not in\n{text}");
            }
        }

        #[track_caller]
        fn lacks(&self, part: &str) {
            let text = self.text();
            assert!(!text.contains(part), "{part}\nis in\n{text}");
        }
    }

    #[test]
    fn each_type_becomes_its_prometheus_kind() {
        let mut fixture = Fixture::new();
        fixture.send(&[
            "orders:1|c",
            "orders:2|c|@0.1",
            "open:5|g\nopen:+2|g\nopen:-3|g",
            "query:50:320:900|ms",
            "size:7|h",
            "size:8|d",
        ]);
        fixture.shows(&[
            "# TYPE orders_total counter",
            "orders_total 21",
            "# TYPE open gauge",
            "open 4",
            "query_seconds_bucket{le=\"0.1\"} 1",
            "query_seconds_bucket{le=\"0.5\"} 2",
            "query_seconds_bucket{le=\"+Inf\"} 3",
            "query_seconds_sum 1.27",
            "size_count 2",
            "size_sum 15",
            "outrigger_statsd_datagrams_total 6",
            "outrigger_statsd_samples_total{type=\"counter\"} 2",
            "outrigger_statsd_samples_total{type=\"timer\"} 3",
        ]);
    }

    #[test]
    fn sampled_values_count_for_those_not_sent() {
        let mut fixture = Fixture::new();
        fixture.send(&["a:1|c|@0.25"; 30]).send(&["b:19.75|c"; 3]).send(&["t:250|ms|@0.3"; 3]);
        fixture.shows(&["a_total 120", "b_total 59.25", "t_seconds_count 10", "t_seconds_sum 2.5"]);
    }

    #[test]
    fn tags_may_vary_from_sample_to_sample() {
        let mut fixture = Fixture::new();
        fixture.send(&[
            "a:1|c",
            "a:2|c|#x:1",
            "a:4|c|#y:2",
            "a:8|c|#y:2,x:1",
            "a:16|c|#x:1,y:2",
            "a:32|c|#x:",
            "a:64|c|#urgent",
            "a:128|c|#x:1",
            "t:5|ms",
            "t:5|ms|#x:1",
        ]);
        fixture.shows(&[
            "a_total 33",
            "a_total{x=\"1\"} 130",
            "a_total{y=\"2\"} 4",
            "a_total{x=\"1\",y=\"2\"} 24",
            "a_total{urgent=\"true\"} 64",
            "t_seconds_count 1",
            "t_seconds_count{x=\"1\"} 1",
        ]);
        assert_eq!(fixture.text().matches("# TYPE a_total ").count(), 1);
    }

    #[test]
    fn labels_are_valid_whatever_the_tags_are() {
        let mut fixture = Fixture::new();
        fixture.send(&["a:1|g|#le:x,kube-app:y,__name__:z,1st:\"w\\\",twice:1,twice:2"]);
        let text = fixture.text();
        let line = text.lines().find(|line| line.starts_with("a{")).unwrap();
        for part in
            ["exported_le=\"x\"", "kube_app=\"y\"", "exported___name__=\"z\"", "_1st=\"\\\"w\\\\\\\"\"", "twice=\"2\""]
        {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn what_cannot_be_is_counted_with_its_reason() {
        for (reason, datagrams) in [
            ("malformed_line", vec!["nonsense"]),
            ("unsupported_type", vec!["a:1|s"]),
            ("unsupported_event", vec!["_e{1,1}:a|b"]),
            ("type_conflict", vec!["a:1|g", "a:1|h"]),
            ("type_conflict", vec!["a:1|h", "a.count:1|g"]),
            ("reserved_name", vec!["outrigger.statsd.datagrams:1|c"]),
            ("reserved_name", vec!["process_open_fds:1|g"]),
            ("name_too_long", vec![LONG]),
            ("too_many_labels", vec![MANY]),
        ] {
            let mut fixture = Fixture::new();
            fixture.send(&datagrams).send(&["fine:1|c"]);
            fixture.shows(&[&format!("outrigger_statsd_errors_total{{reason=\"{reason}\"}} 1"), "fine_total 1"]);
        }
    }

    const LONG: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\
        aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa:1|c";
    const MANY: &str =
        "a:1|c|#a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q,r,s,t,u,v,w,x,y,z,aa,ab,ac,ad,ae,af,ag,ah,ai,aj,ak,al,am,an,ao,ap";

    #[test]
    fn a_flood_of_names_and_tags_stays_within_the_budget() {
        let limits = MetricsRegistry { max_series: 200, max_series_per_family: 50, ..MetricsRegistry::default() };
        let mut fixture = Fixture::with_limits(limits);
        for n in 0..5000 {
            fixture.send(&[&format!("a:1|c|#user:{n}"), &format!("name{n}:1|c"), &format!("a:1|c|#key{n}:v")]);
        }
        let lines = fixture.text().lines().filter(|line| !line.starts_with('#')).count();
        assert!(lines <= 420, "{lines} series");
        assert!(fixture.series.index.len() <= 200 && fixture.series.families.len() <= 200);
        assert!(fixture.series.spellings.len() <= MAX_SPELLINGS);
        fixture.shows(&["a_total{user=\"7\"} 1"]);
    }

    #[test]
    fn a_series_that_nobody_sends_is_forgotten_with_its_family() {
        let mut fixture = Fixture::new();
        fixture.send(&["a:1|c|#x:1", "a:1|c|#x:2", "t:1|ms"]);
        fixture.series.sweep();
        fixture.shows(&["a_total{x=\"1\"} 1", "t_seconds_count 1"]);
        let long_ago = Instant::now().checked_sub(Duration::from_secs(90)).unwrap();
        fixture.series.entries.iter_mut().flatten().for_each(|entry| entry.seen = long_ago);
        fixture.send(&["a:1|c|#x:2"]);
        fixture.configure(|statsd| statsd.ttl = outrigger_config::Duration::from_secs(60));
        fixture.series.sweep();
        fixture.shows(&["a_total{x=\"2\"} 2"]);
        fixture.lacks("x=\"1\"");
        fixture.lacks("t_seconds");
        // The name is free for another kind.
        fixture.send(&["t_seconds:3|g", "a:1|c|#x:1"]).shows(&["t_seconds 3", "a_total{x=\"1\"} 1"]);
    }

    #[test]
    fn a_reload_applies_to_what_comes_after() {
        let mut fixture = Fixture::new();
        fixture.send(&["a:1|c", "t:400|ms"]);
        fixture.configure(|statsd| {
            statsd.prefix = "shop.".to_owned();
            statsd.buckets = vec![0.3];
        });
        fixture.send(&["a:1|c", "t:400|ms"]);
        fixture.shows(&["a_total 1", "shop_a_total 1", "shop_t_seconds_bucket{le=\"0.3\"} 0"]);
        fixture.configure(|statsd| statsd.prefix = String::new());
        fixture.send(&["a:1|c", "t:400|ms"]);
        fixture.shows(&["a_total 2", "t_seconds_bucket{le=\"0.3\"} 0", "t_seconds_count 1"]);
    }

    proptest! {
        #[test]
        fn anything_may_arrive(datagrams in proptest::collection::vec("([a-c._]{0,3}:[-+0-9.]{0,3}\\|(c|g|ms|h|d|s)(\\|@0\\.[0-9])?(\\|#[a-c]:[a-c],[a-c-])?\n?){0,4}", 0..20)) {
            let mut fixture = Fixture::new();
            for datagram in &datagrams {
                fixture.send(&[datagram]);
            }
            fixture.series.sweep();
            // What we expose is what our own parser takes.
            let text = fixture.text();
            prop_assert!(outrigger_telemetry::parse::parse(text.as_bytes()).is_ok(), "{}", text);
        }
    }
}
