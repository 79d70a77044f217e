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
use crate::series::{Kind, Series};

/// An exposition format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// Chooses by an `Accept` header: the one with the highest `q`; OpenMetrics when equal, text when nothing fits.
    pub fn negotiate(accept: Option<&str>) -> Self {
        let mut best = (0.0_f32, Self::Text);
        for range in accept.unwrap_or_default().split(',').take(32) {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let (mut quality, mut version) = (1.0_f32, None);
            for parameter in parts {
                match parameter.split_once('=') {
                    Some(("q", value)) => quality = value.parse().unwrap_or(0.0),
                    Some(("version", value)) => version = Some(value.trim_matches('"')),
                    _ => {}
                }
            }
            let format = match (media, version) {
                ("application/openmetrics-text", None | Some("1.0.0" | "0.0.1")) => Self::OpenMetrics,
                ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => Self::Text,
                _ => continue,
            };
            let better = quality > best.0 || (quality == best.0 && quality > 0.0 && format == Self::OpenMetrics);
            if better {
                best = (quality, format);
            }
        }
        best.1
    }

    /// The `Content-Type` of the format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Appends all families.
pub(crate) fn encode(families: &[Arc<Family>], format: Format, out: &mut Vec<u8>) {
    for family in families {
        let series = family.sorted();
        if !series.is_empty() {
            FamilyEncoder { family, format, out }.encode(&series);
        }
    }
    if format == Format::OpenMetrics {
        out.extend_from_slice(b"# EOF\n");
    }
}

struct FamilyEncoder<'a> {
    family: &'a Family,
    format: Format,
    out: &'a mut Vec<u8>,
}

impl FamilyEncoder<'_> {
    fn encode(&mut self, series: &[Arc<Series>]) {
        self.head();
        for series in series {
            match &*series.kind {
                Kind::Counter => self.counter(series, Number::Whole(series.whole())),
                Kind::FloatCounter => self.counter(series, Number::Float(series.float())),
                Kind::Gauge => self.sample("", series, None, Number::Float(series.float())),
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
        self.sample(suffix, series, None, value);
        self.created(series);
    }

    fn histogram(&mut self, series: &Series) {
        let (buckets, sum, count) = series.histogram();
        for (bound, cumulative) in buckets {
            self.sample("_bucket", series, Some(bound), Number::Whole(cumulative));
        }
        self.sample("_bucket", series, Some(f64::INFINITY), Number::Whole(count));
        self.sample("_sum", series, None, Number::Float(sum));
        self.sample("_count", series, None, Number::Whole(count));
        self.created(series);
    }

    fn created(&mut self, series: &Series) {
        if self.format == Format::OpenMetrics {
            let at = series.created.duration_since(UNIX_EPOCH).unwrap_or_default();
            let at = (at.as_millis() as f64) / 1e3;
            let base = self.base_name().to_owned();
            self.push(&[&base, "_created"]);
            self.labels(series, None);
            self.value(Number::Float(at));
        }
    }

    fn sample(&mut self, suffix: &str, series: &Series, le: Option<f64>, value: Number) {
        self.push(&[&self.family.name, suffix]);
        self.labels(series, le);
        self.value(value);
    }

    fn labels(&mut self, series: &Series, le: Option<f64>) {
        let mut separator = b'{';
        for (name, value) in self.family.labels().iter().zip(series.key.split('\0')) {
            if value.is_empty() {
                continue;
            }
            self.out.push(separator);
            separator = b',';
            self.push(&[name, "=\""]);
            escape(value, true, self.out);
            self.out.push(b'"');
        }
        if let Some(bound) = le {
            self.out.push(separator);
            separator = b',';
            self.push(&["le=\""]);
            // OpenMetrics wants floats in `le` to look like floats, so that `1` and `1.0` are one bucket.
            float(bound, self.out, self.format == Format::OpenMetrics);
            self.out.push(b'"');
        }
        if separator == b',' {
            self.out.push(b'}');
        }
        self.out.push(b' ');
    }

    fn value(&mut self, value: Number) {
        match value {
            Number::Whole(number) => self.out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
            Number::Float(number) => float(number, self.out, false),
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

/// Writes a float; whole numbers without a fraction unless one is asked for.
fn float(value: f64, out: &mut Vec<u8>, with_fraction: bool) {
    if value.is_nan() {
        out.extend_from_slice(b"NaN");
    } else if value.is_infinite() {
        out.extend_from_slice(if value > 0.0 { b"+Inf" } else { b"-Inf" });
    } else if !with_fraction && value.fract() == 0.0 && value.abs() < 1e15 {
        out.extend_from_slice(itoa::Buffer::new().format(value as i64).as_bytes());
    } else {
        out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes());
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
        ] {
            assert_eq!(Format::negotiate(accept), expected, "{name}");
        }
    }
}
