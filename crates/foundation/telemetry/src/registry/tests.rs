//! What the registry promises, seen from its exposition.

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
    for (values, value) in [(&[][..], 1.0), (&["1"], 2.0), (&["1", ""], 4.0), (&["1", "2"], 8.0), (&["", "2"], 16.0)] {
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
    for (name, buckets) in [("c", Buckets::Classic(vec![1.0])), ("n", Buckets::Native { schema: 0, max_buckets: 20 })] {
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

#[test]
fn exemplars_stand_behind_their_bucket_in_openmetrics_alone() {
    let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 2);
    let histogram = registry.histogram("h_seconds", "H", &["a"], Buckets::Classic(vec![0.1, 1.0])).with(&["x"]);
    let trace = crate::trace::TraceId::random();
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(1_500);
    for value in [0.5, 7.0, 0.6] {
        histogram.observe(value);
        histogram.exemplar(value, trace, at);
    }
    let text = |format| {
        let mut out = Vec::new();
        registry.encode(format, &mut out);
        String::from_utf8(out).unwrap()
    };
    let (openmetrics, plain) = (text(Format::OpenMetrics), text(Format::Text));
    let id = String::from_utf8(trace.to_hex().to_vec()).unwrap();
    for line in [
        format!("h_seconds_bucket{{a=\"x\",le=\"1.0\"}} 2 # {{trace_id=\"{id}\"}} 0.6 1.5"),
        format!("h_seconds_bucket{{a=\"x\",le=\"+Inf\"}} 3 # {{trace_id=\"{id}\"}} 7 1.5"),
        "h_seconds_bucket{a=\"x\",le=\"0.1\"} 0".to_owned(),
    ] {
        assert!(openmetrics.lines().any(|other| other == line), "{line} is not in\n{openmetrics}");
    }
    assert!(plain.contains("h_seconds_bucket{") && !plain.contains("trace_id"), "{plain}");
}
