//! Reads exposition text: Prometheus 0.0.4 and OpenMetrics 1.0.
//!
//! In: bytes from an application or another exporter. Out: families with samples. Promise:
//! time and memory grow with the input and no faster, the input is bounded, nothing in it
//! can panic us, and an error says line and column. What the format forbids is refused,
//! except that a series may stand twice: whoever merges expositions must look for that.

mod cursor;
mod reader;

use crate::Format;
use reader::Reader;

/// Bounds on what is read.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the whole text.
    pub max_bytes: usize,
    /// Bytes of one line.
    pub max_line: usize,
    /// Samples in all, and families in all.
    pub max_samples: usize,
    /// Labels of one sample.
    pub max_labels: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 16 << 20, max_line: 64 << 10, max_samples: 100_000, max_labels: 64 }
    }
}

/// Why a text cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// Line, counted from 1.
    pub line: usize,
    /// Byte in the line, counted from 1.
    pub column: usize,
    /// What is wrong there.
    pub message: String,
}

/// The type of a family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FamilyType {
    /// Grows only.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
    /// Quantiles, sum and count.
    Summary,
    /// OpenMetrics `info`.
    Info,
    /// OpenMetrics `stateset`.
    StateSet,
    /// OpenMetrics `gaugehistogram`.
    GaugeHistogram,
    /// Nothing was said (`untyped` or `unknown`).
    #[default]
    Untyped,
}

impl FamilyType {
    fn parse(text: &str, format: Format) -> Option<Self> {
        Some(match text {
            "counter" => Self::Counter,
            "gauge" => Self::Gauge,
            "histogram" => Self::Histogram,
            "summary" => Self::Summary,
            "untyped" if format == Format::Text => Self::Untyped,
            "unknown" if format == Format::OpenMetrics => Self::Untyped,
            "info" if format == Format::OpenMetrics => Self::Info,
            "stateset" if format == Format::OpenMetrics => Self::StateSet,
            "gaugehistogram" if format == Format::OpenMetrics => Self::GaugeHistogram,
            _ => return None,
        })
    }

    /// Its name, as `# TYPE` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
            Self::Info => "info",
            Self::StateSet => "stateset",
            Self::GaugeHistogram => "gaugehistogram",
            Self::Untyped => "untyped",
        }
    }

    /// Whether a sample of this type may have this suffix behind the family's name; in text the counter's is part of
    /// the family's name, and nothing says when something was created.
    fn takes(self, suffix: &str, format: Format) -> bool {
        let openmetrics = format == Format::OpenMetrics;
        match suffix {
            "" => match self {
                Self::Counter => !openmetrics,
                Self::Histogram | Self::GaugeHistogram | Self::Info => false,
                Self::Gauge | Self::Summary | Self::StateSet | Self::Untyped => true,
            },
            "_total" => openmetrics && self == Self::Counter,
            "_created" => openmetrics && matches!(self, Self::Counter | Self::Histogram | Self::Summary),
            "_bucket" => matches!(self, Self::Histogram | Self::GaugeHistogram),
            "_sum" | "_count" => matches!(self, Self::Histogram | Self::Summary),
            "_gsum" | "_gcount" => self == Self::GaugeHistogram,
            "_info" => self == Self::Info,
            _ => false,
        }
    }
}

/// One line of values.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The name as it stands, with its suffix.
    pub name: String,
    /// Labels in their order.
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: f64,
    /// The time, in seconds since the epoch (the text format's milliseconds are converted).
    pub timestamp: Option<f64>,
    /// An example of what was counted (OpenMetrics).
    pub exemplar: Option<Exemplar>,
}

/// An example of what a bucket or a counter counted, such as one request's trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Exemplar {
    /// Labels in their order.
    pub labels: Vec<(String, String)>,
    /// The value that was observed.
    pub value: f64,
    /// The time, in seconds since the epoch.
    pub timestamp: Option<f64>,
}

impl Sample {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str())
    }
}

/// All samples of one name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Family {
    /// The name from `# TYPE`, or the sample's own.
    pub name: String,
    /// Its type.
    pub kind: FamilyType,
    /// Its help.
    pub help: String,
    /// Its unit (OpenMetrics).
    pub unit: String,
    /// Its samples in their order.
    pub samples: Vec<Sample>,
}

/// What a text holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exposition {
    /// Families in order of appearance.
    pub families: Vec<Family>,
}

impl Exposition {
    /// The family of a name.
    pub fn family(&self, name: &str) -> Option<&Family> {
        self.families.iter().find(|family| family.name == name)
    }
}

/// Reads a text within the default limits. It is OpenMetrics if it ends with `# EOF`, and text 0.0.4 otherwise.
///
/// # Errors
/// At the first line that is not of the format, with its place.
pub fn parse(text: &[u8]) -> Result<Exposition, ParseError> {
    parse_within(text, Limits::default())
}

/// Reads a text within given limits. The format is found as by [`parse`].
///
/// # Errors
/// As [`parse`], and when a limit is exceeded.
pub fn parse_within(text: &[u8], limits: Limits) -> Result<Exposition, ParseError> {
    let last = text.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    parse_as(text, if last == b"# EOF" { Format::OpenMetrics } else { Format::Text }, limits)
}

/// Reads a text whose format is known, as from its `Content-Type`.
///
/// # Errors
/// As [`parse_within`]; an OpenMetrics text that does not end with `# EOF` was cut off on its way.
pub fn parse_as(text: &[u8], format: Format, limits: Limits) -> Result<Exposition, ParseError> {
    let at = |line, column, message: String| ParseError { line, column, message };
    if text.len() > limits.max_bytes {
        let message = format!("the text has {} bytes, more than the limit of {}", text.len(), limits.max_bytes);
        return Err(at(1, 1, message));
    }
    let text = std::str::from_utf8(text).map_err(|error| {
        let before = &text[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        at(line, column, "not valid UTF-8".to_owned())
    })?;
    let mut reader = Reader::new(format, limits);
    let mut lines = 0;
    for (index, line) in text.strip_suffix('\n').unwrap_or(text).split('\n').enumerate() {
        lines = index + 1;
        if line.len() > limits.max_line {
            return Err(at(lines, 1, format!("the line is longer than {} bytes", limits.max_line)));
        }
        reader.line(line).map_err(|(column, message)| at(lines, column, message))?;
    }
    reader.finish().map_err(|message| at(lines, 1, message))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Buckets, Format, Registry};

    #[test]
    fn the_formats_own_example_is_read() {
        let text = b"# HELP http_requests_total The total number of HTTP requests.\n# TYPE http_requests_total counter\n\
            http_requests_total{method=\"post\",code=\"200\"} 1027 1395066363000\n\
            # Escaping in label values:\nmsdos_file_access_time_seconds{path=\"C:\\\\DIR\\\\FILE.TXT\",error=\"Cannot find file:\\n\\\"FILE.TXT\\\"\"} 1.458255915e9\n\
            metric_without_timestamp_and_labels 12.47\nsomething_weird{problem=\"division by zero\"} +Inf -3982045\n\
            # TYPE rpc_duration_seconds summary\nrpc_duration_seconds{quantile=\"0.01\"} 3102\nrpc_duration_seconds_sum 1.7560473e+07\n";
        let read = parse(text).unwrap();
        let requests = read.family("http_requests_total").unwrap();
        assert_eq!((requests.kind, requests.samples[0].value), (FamilyType::Counter, 1027.0));
        assert_eq!(requests.samples[0].timestamp, Some(1_395_066_363.0));
        let dos = &read.family("msdos_file_access_time_seconds").unwrap().samples[0];
        assert_eq!(dos.label("path"), Some("C:\\DIR\\FILE.TXT"));
        assert_eq!(dos.label("error"), Some("Cannot find file:\n\"FILE.TXT\""));
        assert_eq!(read.family("rpc_duration_seconds").unwrap().samples.len(), 2);
    }

    #[test]
    fn mistakes_are_placed() {
        for (name, text, line, column, message) in [
            ("no value", "a 1\nb{x=\"1\"}", 2, 9, "number is missing"),
            ("bad value", "a one", 1, 3, "`one` is not a number"),
            ("hexadecimal", "a 0x1p-2", 1, 3, "not a number"),
            ("underscore", "a 1_000", 1, 3, "not a number"),
            ("open quote", "a{x=\"1", 1, 7, "closing quote"),
            ("escaped quote", "a{x=\"1\\\"} 1", 1, 12, "closing quote"),
            ("bad type", "# TYPE a counters", 1, 10, "not a metric type"),
            ("type of the other format", "# TYPE a info", 1, 10, "not a metric type"),
            ("two types", "# TYPE a gauge\n# TYPE a gauge", 2, 10, "second `TYPE`"),
            ("two helps", "# HELP a x\n# HELP a x", 2, 10, "second `HELP`"),
            ("late type", "a 1\n# TYPE a gauge", 2, 10, "behind its samples"),
            ("label twice", "a{x=\"1\",x=\"2\"} 1", 1, 10, "stands twice"),
            ("digit first", "9a 1", 1, 1, "metric name"),
            ("rubbish", "a 1 2 3", 1, 7, "nothing may follow"),
            ("carriage return", "a 1\r", 1, 3, "not a number"),
            ("time is no whole number", "a 1 2.5", 1, 5, "milliseconds"),
            ("exemplar in text", "a_total 1 # {} 1", 1, 11, "nothing may follow"),
            ("bucket without bound", "# TYPE h histogram\nh_bucket 1\n# EOF", 2, 10, "`le` is missing"),
            ("bound is no number", "# TYPE h histogram\nh_bucket{le=\"x\"} 1", 2, 17, "not a number"),
            ("quantile is missing", "# TYPE s summary\ns 1\n# EOF", 2, 3, "`quantile` is missing"),
            ("behind eof", "a 1\n# EOF\nb 1\n# EOF", 3, 1, "behind"),
            ("empty line", "a 1\n\n# EOF\n", 2, 1, "no empty lines"),
            ("comment", "# hello\na 1\n# EOF\n", 1, 3, "no comments"),
            ("counter without suffix", "# TYPE c counter\nc 1\n# EOF\n", 2, 2, "needs a suffix"),
            ("apart", "# TYPE c counter\nc_total 1\na 1\nc_total 2\n# EOF\n", 4, 8, "together"),
            ("unit", "# TYPE a gauge\n# UNIT a seconds\n# EOF\n", 2, 10, "does not end with the unit"),
            ("infinite time", "a 1 +Inf\n# EOF\n", 1, 5, "finite"),
            ("exemplar of a gauge", "# TYPE a gauge\na 1 # {} 1\n# EOF\n", 2, 5, "nothing may follow"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert_eq!((error.line, error.column), (line, column), "{name}: {error}");
            assert!(error.message.contains(message), "{name}: {error}");
        }
        let cut = parse_as(b"a 1\n", Format::OpenMetrics, Limits::default()).unwrap_err();
        assert!(cut.message.contains("cut off"), "{cut}");
        let long = format!("# TYPE c counter\nc_total 1 # {{t=\"{}\"}} 1\n# EOF\n", "x".repeat(128));
        assert!(parse(long.as_bytes()).unwrap_err().message.contains("128 characters"));
        assert_eq!(parse(b"a 1\n\xff").unwrap_err().to_string(), "line 2, column 1: not valid UTF-8");
    }

    #[test]
    fn what_prometheus_reads_is_read() {
        let nan = |text: &str| parse(text.as_bytes()).unwrap().families[0].samples[0].value.is_nan();
        for (text, value) in [
            ("a 1.", 1.0),
            ("a .5e1", 5.0),
            ("a inf", f64::INFINITY),
            ("a -Infinity", f64::NEG_INFINITY),
            ("\ta\t{ x = \"1\" , }\t+1 \t7 ", 1.0),
            ("#HELP\n# EOF not at the end\n#\n\na 3", 3.0),
            ("# TYPE a untyped\n\n# HELP a\na 3", 3.0),
            ("# TYPE h histogram\nh 3", 3.0),
            ("# TYPE s summary\ns 3", 3.0),
        ] {
            let text = text.strip_prefix("#HELP\n").unwrap_or(text);
            let read = parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(read.families[0].samples[0].value, value, "{text}");
        }
        assert!(nan("a nan") && nan("a NaN"));
        // In text a counter's suffix is a part of its name.
        let read = parse(b"# TYPE c counter\nc_total 1\n").unwrap();
        assert_eq!((read.families.len(), read.family("c_total").unwrap().kind), (2, FamilyType::Untyped));
        // A backslash before a quote is one in OpenMetrics' help, and two characters in text.
        for (text, help) in [("# HELP a \\\"\\n", "\\\"\n"), ("# HELP a \\\"\n# EOF\n", "\"")] {
            assert_eq!(parse(text.as_bytes()).unwrap().families[0].help, help, "{text}");
        }
    }

    #[test]
    fn time_grows_with_the_length_alone() {
        let hostile = [
            format!("{} 1\n", "_".repeat(60_000)).repeat(200),
            format!("a{{x=\"{}\"}} 1\n", "\\".repeat(60_000)).repeat(200),
            format!("a {}\n", "1".repeat(60_000)).repeat(200),
            (0..100_000).map(|n| format!("# TYPE f{n} histogram\n")).collect(),
            format!("a{{{}}} 1\n", (0..64).map(|n| format!("l{n}=\"\",")).collect::<String>()).repeat(20_000),
        ];
        let began = std::time::Instant::now();
        for text in hostile {
            assert!(parse(text.as_bytes()).is_ok());
        }
        // A quadratic parser takes minutes, this one well under a second when optimised.
        assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
    }

    #[test]
    fn limits_hold() {
        let limits = Limits { max_bytes: 100, max_line: 20, max_samples: 2, max_labels: 1 };
        for (name, text, message) in [
            ("bytes", "a 1\n".repeat(50), "more than the limit"),
            ("line", format!("a{} 1", "b".repeat(30)), "longer than"),
            ("samples", "a 1\n".repeat(3), "more than 2 samples"),
            ("families", "# HELP a\n# HELP b\n# HELP c\n".to_owned(), "more than 2 families"),
            ("labels", "a{x=\"1\",y=\"2\"} 1".to_owned(), "more than 1 labels"),
        ] {
            let error = parse_within(text.as_bytes(), limits).unwrap_err();
            assert!(error.message.contains(message), "{name}: {error}");
        }
    }

    #[test]
    fn exemplars_are_read() {
        let text = b"# TYPE h histogram\nh_bucket{le=\"1.0\"} 3 1520879700.5 # {trace_id=\"ab\"} 0.67 1520879607.789\nh_count 3\nh_sum 2\n# EOF\n";
        let read = parse(text).unwrap();
        let sample = &read.families[0].samples[0];
        assert_eq!(sample.timestamp, Some(1_520_879_700.5));
        let labels = vec![("trace_id".to_owned(), "ab".to_owned())];
        let exemplar = Exemplar { labels, value: 0.67, timestamp: Some(1_520_879_607.789) };
        assert_eq!(sample.exemplar.as_ref(), Some(&exemplar));
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn nothing_that_looks_right_panics(text in "(# (TYPE|HELP|UNIT) )?[a-c_:]{0,3}(\\{[a-c]?=?\"?[a-z\\\\]{0,3}\"?,?\\})?[ \t]{0,2}[-+0-9.eInfNa]{0,5}( [0-9#{} ]{0,9})?\n?") {
            let _ = parse(text.as_bytes());
        }

        #[test]
        fn what_we_write_we_read(
            counters in prop::collection::btree_map("[^\\x00]{0,20}", any::<u64>(), 1..5),
            help in "[^ \t][\\PC\n\\\\\"]{0,20}",
            gauge in any::<f64>(),
            seen in prop::collection::vec(-10.0f64..10.0, 0..20),
        ) {
            let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 1);
            let family = registry.counter("c_total", help.clone(), &["l"]);
            for (label, value) in &counters {
                family.with(&[label]).add(*value);
            }
            registry.gauge("g", "G", &[]).with(&[]).set(gauge);
            let classic = registry.histogram("h_seconds", "H", &["l"], Buckets::Classic(vec![0.5, 2.0])).with(&["x"]);
            let native = registry.histogram("n", "N", &[], Buckets::Native { schema: 2, max_buckets: 10 }).with(&[]);
            for value in &seen {
                classic.observe(*value);
                native.observe(*value);
            }
            for format in [Format::Text, Format::OpenMetrics] {
                let mut text = Vec::new();
                registry.encode(format, &mut text);
                let read = parse(&text).unwrap();
                let family = read.family(if format == Format::Text { "c_total" } else { "c" }).unwrap();
                prop_assert_eq!((family.kind, family.help.as_str()), (FamilyType::Counter, help.as_str()));
                let read_counters = family.samples.iter().filter(|sample| sample.name == "c_total");
                let read_counters = read_counters.map(|sample| (sample.label("l").unwrap_or_default(), sample.value));
                let written = counters.iter().map(|(label, value)| (label.as_str(), *value as f64));
                prop_assert_eq!(read_counters.collect::<Vec<_>>(), written.collect::<Vec<_>>());
                let read_gauge = read.family("g").unwrap().samples[0].value;
                prop_assert!(read_gauge == gauge || (read_gauge.is_nan() && gauge.is_nan()));
                for name in ["h_seconds", "n"] {
                    let family = read.family(name).unwrap();
                    prop_assert_eq!(family.kind, FamilyType::Histogram);
                    let infinite = family.samples.iter().find(|sample| sample.label("le") == Some("+Inf")).unwrap();
                    prop_assert_eq!(infinite.value, seen.len() as f64);
                    let buckets: Vec<f64> =
                        family.samples.iter().filter(|sample| sample.name.ends_with("_bucket")).map(|s| s.value).collect();
                    prop_assert!(buckets.is_sorted());
                }
                prop_assert_eq!(read.family("h_seconds").unwrap().unit.is_empty(), format == Format::Text);
            }
        }
    }
}
