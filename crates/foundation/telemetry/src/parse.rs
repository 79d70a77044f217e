//! Reads exposition text: Prometheus 0.0.4 and OpenMetrics 1.0.
//!
//! In: bytes from an application or another exporter. Out: families with samples. Promise:
//! time and memory grow with the input and no faster, the input is bounded, nothing in it
//! can panic us, and an error says line and column.

use std::collections::HashMap;

/// Bounds on what is read.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the whole text.
    pub max_bytes: usize,
    /// Bytes of one line.
    pub max_line: usize,
    /// Samples in all.
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
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "counter" => Self::Counter,
            "gauge" => Self::Gauge,
            "histogram" => Self::Histogram,
            "summary" => Self::Summary,
            "info" => Self::Info,
            "stateset" => Self::StateSet,
            "gaugehistogram" => Self::GaugeHistogram,
            "untyped" | "unknown" => Self::Untyped,
            _ => return None,
        })
    }

    /// Suffixes that a sample of this type may have behind the family's name.
    fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Counter => &["_total", "_created"],
            Self::Histogram => &["_bucket", "_sum", "_count", "_created"],
            Self::GaugeHistogram => &["_bucket", "_gsum", "_gcount"],
            Self::Summary => &["_sum", "_count", "_created"],
            Self::Info => &["_info"],
            Self::Gauge | Self::StateSet | Self::Untyped => &[],
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
    /// OpenMetrics exemplar: labels and value.
    pub exemplar: Option<(Vec<(String, String)>, f64)>,
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

/// Reads a text within the default limits.
///
/// # Errors
/// At the first line that is not of the format, with its place.
pub fn parse(text: &[u8]) -> Result<Exposition, ParseError> {
    parse_within(text, Limits::default())
}

/// Reads a text within given limits.
///
/// # Errors
/// As [`parse`], and when a limit is exceeded.
pub fn parse_within(text: &[u8], limits: Limits) -> Result<Exposition, ParseError> {
    let at = |line, column, message: String| ParseError { line, column, message };
    if text.len() > limits.max_bytes {
        return Err(at(
            1,
            1,
            format!("the text has {} bytes, more than the limit of {}", text.len(), limits.max_bytes),
        ));
    }
    let text = std::str::from_utf8(text).map_err(|error| {
        let before = &text[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        at(line, column, "not valid UTF-8".to_owned())
    })?;
    let mut reader = Reader { limits, ..Reader::default() };
    for (index, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.len() > limits.max_line {
            return Err(at(index + 1, 1, format!("the line is longer than {} bytes", limits.max_line)));
        }
        if reader.ended && !line.is_empty() {
            return Err(at(index + 1, 1, "text behind `# EOF`".to_owned()));
        }
        let mut cursor = Cursor { line, position: 0 };
        reader.line(&mut cursor).map_err(|message| at(index + 1, cursor.position + 1, message))?;
    }
    Ok(Exposition { families: reader.families })
}

#[derive(Default)]
struct Reader {
    families: Vec<Family>,
    by_name: HashMap<String, usize>,
    samples: usize,
    limits: Limits,
    ended: bool,
}

impl Reader {
    fn line(&mut self, cursor: &mut Cursor<'_>) -> Result<(), String> {
        cursor.skip_blanks();
        match cursor.peek() {
            None => Ok(()),
            Some('#') => self.comment(cursor),
            Some(_) => self.sample(cursor),
        }
    }

    fn comment(&mut self, cursor: &mut Cursor<'_>) -> Result<(), String> {
        cursor.advance();
        cursor.skip_blanks();
        let rest = cursor.rest();
        if rest.trim_end() == "EOF" {
            self.ended = true;
            return Ok(());
        }
        let (keyword, _) = rest.split_once([' ', '\t']).unwrap_or((rest, ""));
        if !matches!(keyword, "HELP" | "TYPE" | "UNIT") {
            return Ok(());
        }
        cursor.position += keyword.len();
        cursor.skip_blanks();
        let name = cursor.word(true).ok_or("a metric name is missing here")?.to_owned();
        cursor.skip_blanks();
        let value = cursor.rest();
        let family = self.family(&name);
        match keyword {
            "HELP" => family.help = unescape(value),
            "UNIT" => family.unit = value.trim_end().to_owned(),
            _ => {
                let kind = FamilyType::parse(value.trim_end())
                    .ok_or_else(|| format!("`{}` is not a metric type", shorten(value)))?;
                if !family.samples.is_empty() {
                    return Err(format!("the type of `{name}` comes behind its samples"));
                }
                family.kind = kind;
            }
        }
        Ok(())
    }

    fn sample(&mut self, cursor: &mut Cursor<'_>) -> Result<(), String> {
        let name = cursor.word(true).ok_or("a metric name must stand here")?.to_owned();
        cursor.skip_blanks();
        let labels = if cursor.peek() == Some('{') { self.labels(cursor)? } else { Vec::new() };
        cursor.skip_blanks();
        let value = cursor.number()?;
        cursor.skip_blanks();
        let mut timestamp = None;
        if cursor.peek().is_some_and(|c| c != '#') {
            let written = cursor.rest().split([' ', '\t']).next().unwrap_or_default().to_owned();
            let number = cursor.number()?;
            // Text 0.0.4 writes whole milliseconds, OpenMetrics seconds; no clock has reached 10^11 seconds.
            let milliseconds = !written.contains('.') && number.abs() >= 1e11;
            timestamp = Some(if milliseconds { number / 1e3 } else { number });
            cursor.skip_blanks();
        }
        let exemplar = if cursor.peek() == Some('#') { Some(self.exemplar(cursor)?) } else { None };
        if !cursor.rest().trim_end().is_empty() {
            return Err("nothing may follow here".to_owned());
        }
        self.samples += 1;
        if self.samples > self.limits.max_samples {
            return Err(format!("more than {} samples", self.limits.max_samples));
        }
        let owner = self.owner(&name);
        self.family(&owner).samples.push(Sample { name, labels, value, timestamp, exemplar });
        Ok(())
    }

    fn exemplar(&self, cursor: &mut Cursor<'_>) -> Result<(Vec<(String, String)>, f64), String> {
        cursor.advance();
        cursor.skip_blanks();
        if cursor.peek() != Some('{') {
            return Err("an exemplar begins with its labels in braces".to_owned());
        }
        let labels = self.labels(cursor)?;
        cursor.skip_blanks();
        let value = cursor.number()?;
        cursor.skip_blanks();
        if !cursor.rest().is_empty() {
            cursor.number()?;
            cursor.skip_blanks();
        }
        Ok((labels, value))
    }

    fn labels(&self, cursor: &mut Cursor<'_>) -> Result<Vec<(String, String)>, String> {
        cursor.advance();
        let mut labels: Vec<(String, String)> = Vec::new();
        loop {
            cursor.skip_blanks();
            if cursor.peek() == Some('}') {
                cursor.advance();
                return Ok(labels);
            }
            let name = cursor.word(false).ok_or("a label name or `}` must stand here")?.to_owned();
            if labels.iter().any(|(label, _)| *label == name) {
                return Err(format!("the label `{name}` stands twice"));
            }
            if labels.len() == self.limits.max_labels {
                return Err(format!("more than {} labels", self.limits.max_labels));
            }
            cursor.skip_blanks();
            cursor.expect('=')?;
            cursor.skip_blanks();
            labels.push((name, cursor.quoted()?));
            cursor.skip_blanks();
            match cursor.peek() {
                Some(',') => cursor.advance(),
                Some('}') => {}
                _ => return Err("`,` or `}` must stand here".to_owned()),
            }
        }
    }

    /// The family a sample belongs to: the typed one whose suffix it has, or one of its own name.
    fn owner(&self, sample: &str) -> String {
        if !self.by_name.contains_key(sample) {
            for (at, _) in sample.rmatch_indices('_') {
                let (base, suffix) = sample.split_at(at);
                if let Some(index) = self.by_name.get(base)
                    && self.families[*index].kind.suffixes().contains(&suffix)
                {
                    return base.to_owned();
                }
            }
        }
        sample.to_owned()
    }

    fn family(&mut self, name: &str) -> &mut Family {
        let index = *self.by_name.entry(name.to_owned()).or_insert(self.families.len());
        if index == self.families.len() {
            self.families.push(Family { name: name.to_owned(), ..Family::default() });
        }
        &mut self.families[index]
    }
}

/// A place in one line.
struct Cursor<'a> {
    line: &'a str,
    position: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        &self.line[self.position..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn advance(&mut self) {
        self.position += self.peek().map_or(0, char::len_utf8);
    }

    fn skip_blanks(&mut self) {
        self.position += self.rest().bytes().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.peek() != Some(wanted) {
            return Err(format!("`{wanted}` must stand here"));
        }
        self.advance();
        Ok(())
    }

    /// A metric name (with colons) or a label name (without).
    fn word(&mut self, colons: bool) -> Option<&'a str> {
        let rest = self.rest();
        let part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || (colons && *byte == b':');
        let length = rest.as_bytes().iter().take_while(|byte| part(byte)).count();
        if length == 0 || rest.as_bytes()[0].is_ascii_digit() {
            return None;
        }
        self.position += length;
        Some(&rest[..length])
    }

    fn number(&mut self) -> Result<f64, String> {
        let word = self.rest().split([' ', '\t']).next().unwrap_or_default();
        let value = match word {
            "+Inf" | "Inf" => f64::INFINITY,
            "-Inf" => f64::NEG_INFINITY,
            "NaN" => f64::NAN,
            _ => {
                let digits = word.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
                match word.parse::<f64>() {
                    Ok(value) if digits => value,
                    _ if word.is_empty() => return Err("a number is missing here".to_owned()),
                    _ => return Err(format!("`{}` is not a number", shorten(word))),
                }
            }
        };
        self.position += word.len();
        Ok(value)
    }

    fn quoted(&mut self) -> Result<String, String> {
        self.expect('"')?;
        let mut text = String::new();
        loop {
            let next = self.peek().ok_or("the closing quote is missing")?;
            self.advance();
            match next {
                '"' => return Ok(text),
                '\\' => {
                    let escaped = self.peek().ok_or("the closing quote is missing")?;
                    self.advance();
                    match escaped {
                        'n' => text.push('\n'),
                        '\\' | '"' => text.push(escaped),
                        // Prometheus keeps what it does not know.
                        other => text.extend(['\\', other]),
                    }
                }
                other => text.push(other),
            }
        }
    }
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some(other @ ('\\' | '"')) => out.push(other),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            },
            other => out.push(other),
        }
    }
    out
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
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
            ("open quote", "a{x=\"1", 1, 7, "closing quote"),
            ("bad type", "# TYPE a counters", 1, 10, "not a metric type"),
            ("twice", "a{x=\"1\",x=\"2\"} 1", 1, 10, "stands twice"),
            ("digit first", "9a 1", 1, 1, "metric name"),
            ("behind eof", "a 1\n# EOF\nb 1", 3, 1, "behind"),
            ("rubbish", "a 1 2 3", 1, 7, "nothing may follow"),
            ("rust float words", "a infinity", 1, 3, "not a number"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert_eq!((error.line, error.column), (line, column), "{name}: {error}");
            assert!(error.message.contains(message), "{name}: {error}");
        }
    }

    #[test]
    fn limits_hold() {
        let limits = Limits { max_bytes: 100, max_line: 20, max_samples: 2, max_labels: 1 };
        for (name, text, message) in [
            ("bytes", "a 1\n".repeat(50), "more than the limit"),
            ("line", format!("a{} 1", "b".repeat(30)), "longer than"),
            ("samples", "a 1\n".repeat(3), "more than 2 samples"),
            ("labels", "a{x=\"1\",y=\"2\"} 1".to_owned(), "more than 1 labels"),
        ] {
            let error = parse_within(text.as_bytes(), limits).unwrap_err();
            assert!(error.message.contains(message), "{name}: {error}");
        }
    }

    #[test]
    fn exemplars_are_read() {
        let text = b"# TYPE h histogram\nh_bucket{le=\"1.0\"} 3 # {trace_id=\"ab\"} 0.67 1520879607.789\nh_count 3\nh_sum 2\n# EOF\n";
        let read = parse(text).unwrap();
        let exemplar = read.families[0].samples[0].exemplar.clone().unwrap();
        assert_eq!(exemplar, (vec![("trace_id".to_owned(), "ab".to_owned())], 0.67));
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
        fn what_we_write_we_read(value in any::<u64>(), label in "\\PC{0,20}", gauge in any::<f64>(), seen in -10.0f64..10.0) {
            let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 1);
            registry.counter("c_total", "A \\ help\n.", &["l"]).with(&[&label]).add(value);
            registry.gauge("g", "G", &[]).with(&[]).set(gauge);
            registry.histogram("h_seconds", "H", &["l"], Buckets::Classic(vec![1.0, 2.0])).with(&["x"]).observe(seen);
            for format in [Format::Text, Format::OpenMetrics] {
                let mut text = Vec::new();
                registry.encode(format, &mut text);
                let read = parse(&text).unwrap();
                let counter = read.family(if format == Format::Text { "c_total" } else { "c" }).unwrap();
                prop_assert_eq!(counter.help.as_str(), "A \\ help\n.");
                prop_assert_eq!(counter.samples[0].value, value as f64);
                prop_assert_eq!(counter.samples[0].label("l").unwrap_or_default(), label.replace('\0', "\u{fffd}"));
                let read_gauge = read.family("g").unwrap().samples[0].value;
                prop_assert!(read_gauge == gauge || (read_gauge.is_nan() && gauge.is_nan()));
                prop_assert_eq!(read.family("h_seconds").unwrap().kind, FamilyType::Histogram);
            }
        }
    }
}
