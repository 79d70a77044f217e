//! Writes the registry as text.
//!
//! In: families. Out: Prometheus text 0.0.4 ([text]) or OpenMetrics 1.0 ([openmetrics]).
//! Promise: families and series come in a stable order, names and values are escaped as
//! each format asks, and a label without a value is left out, for it means the same.
//!
//! [text]: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
//! [openmetrics]: https://prometheus.io/docs/specs/om/open_metrics_spec/

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use crate::family::Family;
use crate::series::{Exemplar, Kind, Series};

/// An exposition format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// Chooses by an `Accept` header ([RFC 9110], section 12.5.1): the format with the higher `q`. When equal, OpenMetrics
    /// if it was asked for by name; text otherwise, and also when neither is accepted.
    ///
    /// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110
    pub fn negotiate(accept: Option<&str>) -> Self {
        // The most specific range that fits a format decides about it: how specific, and its quality.
        let (mut openmetrics, mut text) = ((0, 0.0), (0, 0.0));
        for range in accept.unwrap_or_default().split(',').take(32) {
            let (media, version, quality) = media_range(range);
            let (specific, of_openmetrics, of_text) = match (media.as_str(), version) {
                ("application/openmetrics-text", None | Some("1.0.0" | "0.0.1")) => (3, true, false),
                ("text/plain", None | Some("0.0.4")) => (3, false, true),
                ("application/*", _) => (2, true, false),
                ("text/*", _) => (2, false, true),
                ("*/*", _) => (1, true, true),
                _ => continue,
            };
            for (fits, best) in [(of_openmetrics, &mut openmetrics), (of_text, &mut text)] {
                // The same format in two versions: the better of both counts.
                if fits && (specific > best.0 || (specific == best.0 && quality > best.1)) {
                    *best = (specific, quality);
                }
            }
        }
        let named = openmetrics.0 == 3;
        if openmetrics.1 > text.1 || (named && openmetrics.1 > 0.0 && openmetrics.1 == text.1) {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    /// The `Content-Type` of the format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Media type in lower case, version and quality of a media range.
fn media_range(range: &str) -> (String, Option<&str>, f32) {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default().to_ascii_lowercase();
    let (mut quality, mut version) = (1.0_f32, None);
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        if name.trim().eq_ignore_ascii_case("q") {
            quality = value.trim().parse().ok().filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0);
        } else if name.trim().eq_ignore_ascii_case("version") {
            version = Some(value.trim().trim_matches('"'));
        }
    }
    (media, version, quality)
}

/// Appends all families.
pub(crate) fn encode(families: &[Arc<Family>], format: Format, out: &mut Vec<u8>) {
    let mut labels = Vec::new();
    for family in families {
        let series = family.sorted();
        if !series.is_empty() {
            // Asked for after the series: their labels are among these.
            let names = family.labels();
            FamilyEncoder { family, names: &names, labels: &mut labels, format, out }.encode(&series);
        }
    }
    if format == Format::OpenMetrics {
        out.extend_from_slice(b"# EOF\n");
    }
}

struct FamilyEncoder<'a> {
    family: &'a Family,
    names: &'a [Box<str>],
    /// The labels of the series being written, without braces: a histogram shows them many times.
    labels: &'a mut Vec<u8>,
    format: Format,
    out: &'a mut Vec<u8>,
}

impl FamilyEncoder<'_> {
    fn encode(&mut self, series: &[Arc<Series>]) {
        self.head();
        for series in series {
            self.take_labels(series);
            match &*series.kind {
                Kind::Counter => self.counter(series, Number::Whole(series.whole())),
                Kind::FloatCounter => self.counter(series, Number::Float(series.float())),
                Kind::Gauge => self.sample("", None, Number::Float(series.float())),
                Kind::Histogram(_) => self.histogram(series),
            }
        }
    }

    /// The family's name: OpenMetrics names a counter without its suffix.
    fn base_name(&self) -> &str {
        let name = &*self.family.name;
        match (&*self.family.kind, self.format) {
            (Kind::Counter | Kind::FloatCounter, Format::OpenMetrics) => name.strip_suffix("_total").unwrap_or(name),
            _ => name,
        }
    }

    fn head(&mut self) {
        let base = self.base_name().to_owned();
        let unit = ["_seconds", "_bytes", "_ratio", "_volts", "_celsius"].into_iter().find(|unit| base.ends_with(unit));
        self.push(&["# TYPE ", &base, " ", self.family.kind.as_str(), "\n"]);
        if let (Some(unit), Format::OpenMetrics) = (unit, self.format) {
            self.push(&["# UNIT ", &base, " ", &unit[1..], "\n"]);
        }
        self.push(&["# HELP ", &base, " "]);
        let quotes = self.format == Format::OpenMetrics;
        escape(&self.family.help, quotes, self.out);
        self.out.push(b'\n');
    }

    fn counter(&mut self, series: &Series, value: Number) {
        // A counter registered without the suffix still gets it where the format demands it.
        let suffix = if self.family.name.ends_with("_total") { "" } else { "_total" };
        let suffix = if self.format == Format::OpenMetrics { suffix } else { "" };
        self.sample(suffix, None, value);
        self.created(series);
    }

    fn histogram(&mut self, series: &Series) {
        let (buckets, sum, count) = series.histogram();
        // A sum of negative numbers too may fall; OpenMetrics allows neither it nor the count then.
        let falls = self.format == Format::OpenMetrics && buckets.first().is_some_and(|(bound, _)| *bound < 0.0);
        let all = buckets.into_iter().chain([(f64::INFINITY, count)]);
        for (index, (bound, cumulative)) in all.enumerate() {
            self.bucket(bound, cumulative, series.exemplar(index));
        }
        if !falls {
            self.sample("_sum", None, Number::Float(sum));
            self.sample("_count", None, Number::Whole(count));
        }
        self.created(series);
    }

    /// A bucket, in OpenMetrics with its exemplar.
    fn bucket(&mut self, bound: f64, cumulative: u64, exemplar: Option<Exemplar>) {
        self.push(&[&self.family.name, "_bucket"]);
        self.braces(Some(bound));
        self.out.extend_from_slice(itoa::Buffer::new().format(cumulative).as_bytes());
        if let (Some(exemplar), Format::OpenMetrics) = (exemplar, self.format) {
            self.out.extend_from_slice(b" # {trace_id=\"");
            self.out.extend_from_slice(&exemplar.trace.to_hex());
            self.out.extend_from_slice(b"\"} ");
            float(exemplar.value, self.out);
            self.out.push(b' ');
            let at = exemplar.at.duration_since(UNIX_EPOCH).unwrap_or_default();
            float((at.as_millis() as f64) / 1e3, self.out);
        }
        self.out.push(b'\n');
    }

    fn created(&mut self, series: &Series) {
        if self.format == Format::OpenMetrics {
            let at = series.created.duration_since(UNIX_EPOCH).unwrap_or_default();
            let at = (at.as_millis() as f64) / 1e3;
            let base = self.base_name().to_owned();
            self.push(&[&base, "_created"]);
            self.braces(None);
            self.value(Number::Float(at));
        }
    }

    fn sample(&mut self, suffix: &str, le: Option<f64>, value: Number) {
        self.push(&[&self.family.name, suffix]);
        self.braces(le);
        self.value(value);
    }

    fn take_labels(&mut self, series: &Series) {
        self.labels.clear();
        for (name, value) in self.names.iter().zip(series.key.split('\0')).filter(|(_, value)| !value.is_empty()) {
            if !self.labels.is_empty() {
                self.labels.push(b',');
            }
            self.labels.extend_from_slice(name.as_bytes());
            self.labels.extend_from_slice(b"=\"");
            escape(value, true, self.labels);
            self.labels.push(b'"');
        }
    }

    /// The labels in braces, if there are any, and the blank behind them.
    fn braces(&mut self, le: Option<f64>) {
        if !self.labels.is_empty() || le.is_some() {
            self.out.push(b'{');
            self.out.extend_from_slice(self.labels);
            if let Some(bound) = le {
                self.push(&[if self.labels.is_empty() { "le=\"" } else { ",le=\"" }]);
                bucket_bound(bound, self.format, self.out);
                self.out.push(b'"');
            }
            self.out.push(b'}');
        }
        self.out.push(b' ');
    }

    fn value(&mut self, value: Number) {
        match value {
            Number::Whole(number) => self.out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
            Number::Float(number) => float(number, self.out),
        }
        self.out.push(b'\n');
    }

    fn push(&mut self, parts: &[&str]) {
        for part in parts {
            self.out.extend_from_slice(part.as_bytes());
        }
    }
}

enum Number {
    Whole(u64),
    Float(f64),
}

/// Writes a value; whole numbers without a fraction.
fn float(value: f64, out: &mut Vec<u8>) {
    if value.is_nan() {
        out.extend_from_slice(b"NaN");
    } else if value.is_infinite() {
        out.extend_from_slice(if value > 0.0 { b"+Inf" } else { b"-Inf" });
    } else if value.fract() == 0.0 && value.abs() < 1e15 {
        out.extend_from_slice(itoa::Buffer::new().format(value as i64).as_bytes());
    } else {
        out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes());
    }
}

/// Writes a bucket's bound. It is a label, compared as text, so it is spelled as Go's `%g` does, as everyone else's;
/// OpenMetrics puts `.0` behind what does not look like a float ([canonical numbers]).
///
/// [canonical numbers]: https://prometheus.io/docs/specs/om/open_metrics_spec/#considerations-canonical-numbers
fn bucket_bound(bound: f64, format: Format, out: &mut Vec<u8>) {
    if !bound.is_finite() {
        return float(bound, out);
    }
    let scientific = format!("{bound:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if bound != 0.0 && !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        out.extend_from_slice(format!("{mantissa}e{sign}{:02}", exponent.abs()).as_bytes());
        return;
    }
    out.extend_from_slice(format!("{bound}").as_bytes());
    if format == Format::OpenMetrics && bound.fract() == 0.0 {
        out.extend_from_slice(b".0");
    }
}

/// Escapes backslash and line feed, and quotes where they would end the text.
fn escape(text: &str, quotes: bool, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'"' if quotes => out.extend_from_slice(b"\\\""),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buckets, Registry};

    fn text(registry: &Registry, format: Format) -> String {
        let mut out = Vec::new();
        registry.encode(format, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn sample() -> Registry {
        let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 2);
        registry.counter("a_total", "Help with \\ and\nline.", &["x", "y"]).with(&["q\"uote", ""]).add(3);
        registry.gauge("temperature", "Half.", &[]).with(&[]).set(0.5);
        let histogram = registry.histogram("took_seconds", "Time.", &["r"], Buckets::Classic(vec![0.5, 1.0]));
        for value in [0.5, 0.7, 9.0] {
            histogram.with(&["z"]).observe(value);
        }
        registry
    }

    #[test]
    fn text_reads_as_the_format_says() {
        let text = text(&sample(), Format::Text);
        for expected in [
            "# TYPE a_total counter\n# HELP a_total Help with \\\\ and\\nline.\na_total{x=\"q\\\"uote\"} 3\n",
            "temperature 0.5\n",
            "took_seconds_bucket{r=\"z\",le=\"0.5\"} 1\ntook_seconds_bucket{r=\"z\",le=\"1\"} 2\n",
            "took_seconds_bucket{r=\"z\",le=\"+Inf\"} 3\ntook_seconds_sum{r=\"z\"} 10.2\ntook_seconds_count{r=\"z\"} 3\n",
        ] {
            assert!(text.contains(expected), "{expected}\nnot in\n{text}");
        }
        assert!(!text.contains("EOF") && !text.contains("_created"));
    }

    #[test]
    fn openmetrics_reads_as_the_format_says() {
        let text = text(&sample(), Format::OpenMetrics);
        for expected in [
            "# TYPE a counter\n",
            "a_total{x=\"q\\\"uote\"} 3\na_created{x=\"q\\\"uote\"} ",
            "# UNIT took_seconds seconds\n",
            "took_seconds_bucket{r=\"z\",le=\"1.0\"} 2\n",
        ] {
            assert!(text.contains(expected), "{expected}\nnot in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_format_is_negotiated() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (name, accept, expected) in [
            ("none", None, Format::Text),
            ("prometheus", Some(prometheus), Format::OpenMetrics),
            ("browser", Some("text/html,*/*;q=0.8"), Format::Text),
            ("text preferred", Some("application/openmetrics-text;q=0.1,text/plain"), Format::Text),
            ("refused", Some("application/openmetrics-text;q=0"), Format::Text),
            ("future version", Some("application/openmetrics-text;version=2.0.0"), Format::Text),
            (
                "Prometheus 3",
                Some(
                    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                ),
                Format::OpenMetrics,
            ),
            ("curl", Some("*/*"), Format::Text),
            ("equal", Some("text/plain, application/openmetrics-text"), Format::OpenMetrics),
            ("any case, blanks", Some("Application/OpenMetrics-Text ; Q=0.9 , text/plain; q=0.8"), Format::OpenMetrics),
            ("anything but text", Some("text/plain;q=0, */*"), Format::OpenMetrics),
            ("the specific range decides", Some("application/openmetrics-text;q=0.1, */*;q=0.9"), Format::Text),
            ("no number", Some("application/openmetrics-text;q=NaN"), Format::Text),
            ("application", Some("application/*"), Format::OpenMetrics),
            ("rubbish", Some(";;,=,q=;\u{e9}"), Format::Text),
        ] {
            assert_eq!(Format::negotiate(accept), expected, "{name}");
        }
    }

    #[test]
    fn bounds_are_spelled_as_go_does() {
        for (bound, text, openmetrics) in [
            (0.0, "0", "0.0"),
            (1.0, "1", "1.0"),
            (10.0, "10", "10.0"),
            (0.0005, "0.0005", "0.0005"),
            (0.00001, "1e-05", "1e-05"),
            (1e-10, "1e-10", "1e-10"),
            (100_000.0, "100000", "100000.0"),
            (1e6, "1e+06", "1e+06"),
            (1_234_567.5, "1.2345675e+06", "1.2345675e+06"),
            (1e10, "1e+10", "1e+10"),
            (-2.5, "-2.5", "-2.5"),
            (1e300, "1e+300", "1e+300"),
            (f64::INFINITY, "+Inf", "+Inf"),
        ] {
            for (format, expected) in [(Format::Text, text), (Format::OpenMetrics, openmetrics)] {
                let mut out = Vec::new();
                bucket_bound(bound, format, &mut out);
                assert_eq!(String::from_utf8(out).unwrap(), expected, "{format:?}");
            }
        }
    }

    #[test]
    fn values_that_are_no_ordinary_numbers_are_spelled_right() {
        for (value, expected) in [
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (-0.0, "0"),
            (-3.0, "-3"),
            (1e14, "100000000000000"),
            (1e17, "1e17"),
            (0.1 + 0.2, "0.30000000000000004"),
        ] {
            let mut out = Vec::new();
            float(value, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn a_sum_that_may_fall_is_left_out_where_it_is_forbidden() {
        let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 1);
        registry.histogram("t", "T", &[], Buckets::Classic(vec![-1.0, 1.0])).with(&[]).observe(-5.0);
        assert!(text(&registry, Format::Text).contains("t_sum -5\nt_count 1\n"));
        let openmetrics = text(&registry, Format::OpenMetrics);
        assert!(!openmetrics.contains("t_sum") && !openmetrics.contains("t_count"), "{openmetrics}");
    }
}
