//! Reads StatsD datagrams.
//!
//! In: the bytes of one datagram, as [StatsD] and [DogStatsD] describe them. Out: each
//! sample, or why a line was refused. Promise: a pure function that borrows from the
//! datagram, allocates nothing, and cannot panic whatever the bytes are.
//!
//! [StatsD]: https://github.com/statsd/statsd/blob/master/docs/metric_types.md
//! [DogStatsD]: https://docs.datadoghq.com/developers/dogstatsd/datagram_shell/

/// One value that the application reported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample<'a> {
    /// The metric's name as it was sent; any bytes but `:` and `|`.
    pub name: &'a [u8],
    /// What kind of metric it is, and the value.
    pub value: Value,
    /// `key:value,…`, as sent.
    pub tags: Tags<'a>,
    /// The share of events that the client reports, above 0 and at most 1.
    pub rate: f64,
}

/// A sample's kind and value; always a finite number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// `c`: so many more; never negative.
    Counter(f64),
    /// `g`: it is this now.
    Gauge(f64),
    /// `g` with a sign: it is so much more or less.
    GaugeDelta(f64),
    /// `ms`: it took so long, in milliseconds.
    Timer(f64),
    /// `h` or `d`: one more value of a distribution, in its own unit.
    Distribution(f64),
}

/// Why a line, or one value of it, was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not `name:value|type`.
    MalformedLine,
    /// Not a finite number.
    InvalidValue,
    /// A counter can only grow.
    NegativeCounter,
    /// Not a number above 0 and at most 1.
    InvalidSampleRate,
    /// A set, or a type that neither protocol has.
    UnsupportedType,
    /// DogStatsD's `_e{…}`.
    UnsupportedEvent,
    /// DogStatsD's `_sc|…`.
    UnsupportedServiceCheck,
}

impl Refusal {
    /// As the metric's `reason` label shows it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::MalformedLine => "malformed_line",
            Self::InvalidValue => "invalid_value",
            Self::NegativeCounter => "negative_counter",
            Self::InvalidSampleRate => "invalid_sample_rate",
            Self::UnsupportedType => "unsupported_type",
            Self::UnsupportedEvent => "unsupported_event",
            Self::UnsupportedServiceCheck => "unsupported_service_check",
        }
    }
}

/// A DogStatsD tag list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tags<'a>(&'a [u8]);

impl<'a> Tags<'a> {
    /// Each tag's key and value; a tag without a value says `true`, as Telegraf reads it.
    pub fn iter(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let tags = self.0.split(|byte| *byte == b',');
        tags.map(|tag| split_once(tag, b':').unwrap_or((tag, b"true"))).filter(|(key, _)| !key.is_empty())
    }

    /// The list as sent.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

/// Hands each sample of a datagram, and each refusal, to `take`.
pub fn parse_datagram<'a>(datagram: &'a [u8], mut take: impl FnMut(Result<Sample<'a>, Refusal>)) {
    for line in datagram.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if !line.is_empty() {
            parse_line(line, &mut take);
        }
    }
}

fn parse_line<'a>(line: &'a [u8], take: &mut impl FnMut(Result<Sample<'a>, Refusal>)) {
    if line.starts_with(b"_e{") {
        return take(Err(Refusal::UnsupportedEvent));
    }
    if line.starts_with(b"_sc|") {
        return take(Err(Refusal::UnsupportedServiceCheck));
    }
    let Some((name, mut rest)) = split_once(line, b':') else { return take(Err(Refusal::MalformedLine)) };
    if name.is_empty() || name.contains(&b'|') {
        return take(Err(Refusal::MalformedLine));
    }
    // `name:1|c:2|ms`: StatsD lets further samples of one name follow after a colon.
    loop {
        match parse_sample(rest) {
            Ok(parsed) => {
                parsed.values(name, take);
                match parsed.next {
                    Some(next) => rest = next,
                    None => return,
                }
            }
            Err(refusal) => return take(Err(refusal)),
        }
    }
}

/// What follows a name: `value[:value]…|type[|@rate][|#tags]`, and other fields, which are ignored.
struct Parsed<'a> {
    values: &'a [u8],
    kind: &'a [u8],
    rate: f64,
    tags: Tags<'a>,
    next: Option<&'a [u8]>,
}

fn parse_sample(text: &[u8]) -> Result<Parsed<'_>, Refusal> {
    let (values, rest) = split_once(text, b'|').ok_or(Refusal::MalformedLine)?;
    let (kind, mut rest, mut next) = field(rest);
    if kind.is_empty() {
        return Err(Refusal::MalformedLine);
    }
    let (mut rate, mut tags) = (1.0, Tags::default());
    while let Some(current) = rest {
        match current.first() {
            Some(b'@') => {
                let (text, after, another) = field(&current[1..]);
                rate = number(text).filter(|rate| *rate > 0.0 && *rate <= 1.0).ok_or(Refusal::InvalidSampleRate)?;
                (rest, next) = (after, another);
            }
            // These may hold colons of their own, so they never lead to a next sample.
            Some(marker) => {
                let (text, after) = match split_once(current, b'|') {
                    Some((text, after)) => (text, Some(after)),
                    None => (current, None),
                };
                if *marker == b'#' {
                    tags = Tags(&text[1..]);
                }
                rest = after;
            }
            None => break,
        }
    }
    Ok(Parsed { values, kind, rate, tags, next })
}

/// A field up to `|` or `:`, then the further fields of this sample, or else the next sample.
fn field(text: &[u8]) -> (&[u8], Option<&[u8]>, Option<&[u8]>) {
    match text.iter().position(|byte| matches!(byte, b'|' | b':')) {
        Some(at) if text[at] == b'|' => (&text[..at], Some(&text[at + 1..]), None),
        Some(at) => (&text[..at], None, Some(&text[at + 1..])),
        None => (text, None, None),
    }
}

impl<'a> Parsed<'a> {
    /// DogStatsD packs several values of one metric: `name:1:2:3|ms`.
    fn values(&self, name: &'a [u8], take: &mut impl FnMut(Result<Sample<'a>, Refusal>)) {
        for text in self.values.split(|byte| *byte == b':') {
            let sample = |value| Sample { name, value, tags: self.tags, rate: self.rate };
            take(value(text, self.kind).map(sample));
        }
    }
}

fn value(text: &[u8], kind: &[u8]) -> Result<Value, Refusal> {
    let make: fn(f64) -> Value = match kind {
        b"c" => Value::Counter,
        b"g" if matches!(text.first(), Some(b'+' | b'-')) => Value::GaugeDelta,
        b"g" => Value::Gauge,
        b"ms" => Value::Timer,
        b"h" | b"d" => Value::Distribution,
        _ => return Err(Refusal::UnsupportedType),
    };
    match make(number(text).ok_or(Refusal::InvalidValue)?) {
        Value::Counter(by) if by < 0.0 => Err(Refusal::NegativeCounter),
        value => Ok(value),
    }
}

fn number(text: &[u8]) -> Option<f64> {
    // Rust also reads `inf`, `nan` and their kin, which are not finite and so refused.
    std::str::from_utf8(text).ok()?.parse().ok().filter(|number: &f64| number.is_finite())
}

fn split_once(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = text.iter().position(|byte| *byte == at)?;
    Some((&text[..position], &text[position + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(datagram: &[u8]) -> Vec<Result<Sample<'_>, Refusal>> {
        let mut all = Vec::new();
        parse_datagram(datagram, |result| all.push(result));
        all
    }

    fn sample(name: &'static str, value: Value, rate: f64, tags: &'static str) -> Result<Sample<'static>, Refusal> {
        Ok(Sample { name: name.as_bytes(), value, tags: Tags(tags.as_bytes()), rate })
    }

    #[test]
    fn reads_what_the_protocols_describe() {
        use Value::*;
        for (about, datagram, expected) in [
            // StatsD: docs/metric_types.md
            ("counter", "gorets:1|c", vec![sample("gorets", Counter(1.0), 1.0, "")]),
            ("sampled counter", "gorets:1|c|@0.1", vec![sample("gorets", Counter(1.0), 0.1, "")]),
            ("timer", "glork:320|ms|@0.1", vec![sample("glork", Timer(320.0), 0.1, "")]),
            ("gauge", "gaugor:333|g", vec![sample("gaugor", Gauge(333.0), 1.0, "")]),
            ("gauge down", "gaugor:-10|g", vec![sample("gaugor", GaugeDelta(-10.0), 1.0, "")]),
            ("gauge up", "gaugor:+4|g", vec![sample("gaugor", GaugeDelta(4.0), 1.0, "")]),
            ("set", "uniques:765|s", vec![Err(Refusal::UnsupportedType)]),
            (
                "several metrics",
                "gorets:1|c\nglork:320|ms\ngaugor:333|g\nuniques:765|s",
                vec![
                    sample("gorets", Counter(1.0), 1.0, ""),
                    sample("glork", Timer(320.0), 1.0, ""),
                    sample("gaugor", Gauge(333.0), 1.0, ""),
                    Err(Refusal::UnsupportedType),
                ],
            ),
            (
                "several samples of a name",
                "a:1|c:2|ms|@0.5:3|g",
                vec![
                    sample("a", Counter(1.0), 1.0, ""),
                    sample("a", Timer(2.0), 0.5, ""),
                    sample("a", Gauge(3.0), 1.0, ""),
                ],
            ),
            // DogStatsD: datagram_shell
            ("no tags", "page.views:1|c", vec![sample("page.views", Counter(1.0), 1.0, "")]),
            ("fraction", "fuel.level:0.5|g", vec![sample("fuel.level", Gauge(0.5), 1.0, "")]),
            (
                "histogram, sampled, tagged",
                "song.length:240|h|@0.5",
                vec![sample("song.length", Distribution(240.0), 0.5, "")],
            ),
            ("distribution", "x:7|d", vec![sample("x", Distribution(7.0), 1.0, "")]),
            (
                "tags",
                "users.online:1|c|@0.5|#country:china,environment:production",
                vec![sample("users.online", Counter(1.0), 0.5, "country:china,environment:production")],
            ),
            ("tags before the rate", "a:1|c|#k:v|@0.5", vec![sample("a", Counter(1.0), 0.5, "k:v")]),
            (
                "packed values (1.1)",
                "page.views:1:2:32|d",
                vec![
                    sample("page.views", Distribution(1.0), 1.0, ""),
                    sample("page.views", Distribution(2.0), 1.0, ""),
                    sample("page.views", Distribution(32.0), 1.0, ""),
                ],
            ),
            (
                "container (1.2)",
                "page.views:1|g|#env:dev|c:83c0a99c0a54c0c187f461c7980e9b57f3f6a8b0c918c8d93df19a9de6f3fe1d",
                vec![sample("page.views", Gauge(1.0), 1.0, "env:dev")],
            ),
            (
                "timestamp (1.3)",
                "page.views:15|c|#env:dev|T1656581400",
                vec![sample("page.views", Counter(15.0), 1.0, "env:dev")],
            ),
            (
                "external data and cardinality (1.5)",
                "a:1|c|#k:v|e:it-false,cn-x|card:low",
                vec![sample("a", Counter(1.0), 1.0, "k:v")],
            ),
            (
                "event",
                "_e{21,36}:An exception occurred|Cannot parse CSV file|t:warning",
                vec![Err(Refusal::UnsupportedEvent)],
            ),
            ("service check", "_sc|Redis connection|2|#env:dev", vec![Err(Refusal::UnsupportedServiceCheck)]),
        ] {
            assert_eq!(parse(datagram.as_bytes()), expected, "{about}");
        }
    }

    #[test]
    fn refuses_what_is_wrong_and_goes_on() {
        use Refusal::*;
        for (datagram, expected) in [
            ("nonsense", MalformedLine),
            (":1|c", MalformedLine),
            ("a", MalformedLine),
            ("a:", MalformedLine),
            ("a:1", MalformedLine),
            ("a:1|", MalformedLine),
            ("a|b:1|c", MalformedLine),
            ("a:|c", InvalidValue),
            ("a:one|c", InvalidValue),
            ("a:1,5|c", InvalidValue),
            ("a:nan|g", InvalidValue),
            ("a:inf|g", InvalidValue),
            ("a:1e999|c", InvalidValue),
            ("a: 1|c", InvalidValue),
            ("a:-1|c", NegativeCounter),
            ("a:1|c|@0", InvalidSampleRate),
            ("a:1|c|@2", InvalidSampleRate),
            ("a:1|c|@-0.5", InvalidSampleRate),
            ("a:1|c|@", InvalidSampleRate),
            ("a:1|x", UnsupportedType),
            ("a:1|C", UnsupportedType),
        ] {
            let both = format!("{datagram}\nok:1|c\n");
            assert_eq!(
                parse(both.as_bytes()),
                [Err(expected), sample("ok", Value::Counter(1.0), 1.0, "")],
                "{datagram}"
            );
        }
    }

    #[test]
    fn lines_end_in_many_ways() {
        for datagram in ["a:1|c", "a:1|c\n", "a:1|c\r\n", "\n\na:1|c\n\n", "a:1|c|", "a:1|c|#"] {
            assert_eq!(parse(datagram.as_bytes()), [sample("a", Value::Counter(1.0), 1.0, "")], "{datagram:?}");
        }
        assert!(parse(b"").is_empty());
        assert!(parse(b"\n\r\n").is_empty());
    }

    #[test]
    fn one_bad_value_spares_its_neighbours() {
        assert_eq!(
            parse(b"a:1:x:3|c"),
            [
                sample("a", Value::Counter(1.0), 1.0, ""),
                Err(Refusal::InvalidValue),
                sample("a", Value::Counter(3.0), 1.0, ""),
            ]
        );
    }

    #[test]
    fn tags_come_apart() {
        let tags: Vec<_> = Tags(b"env:prod,urgent,url:http://x/,,empty:,:nameless").iter().collect();
        let expected: [(&[u8], &[u8]); 4] =
            [(b"env", b"prod"), (b"urgent", b"true"), (b"url", b"http://x/"), (b"empty", b"")];
        assert_eq!(tags, expected);
    }

    proptest! {
        #[test]
        fn never_panics_and_is_always_finite(datagram in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse_datagram(&datagram, check);
        }

        #[test]
        fn never_panics_on_what_looks_right(text in "([a-z.]{0,3}[:|@#,]?[-+0-9.e]{0,4}[:|]?(c|g|ms|h|d|s)?[|:\n]?){0,12}") {
            parse_datagram(text.as_bytes(), check);
        }

        #[test]
        fn reads_back_what_it_is_told(name in "[a-zA-Z0-9._-]{1,20}", by in 0.0..1e12f64, rate in 0.001..=1.0f64, tag in "[a-z]{1,5}:[a-z:/]{0,9}") {
            let text = format!("{name}:{by}|c|@{rate}|#{tag}");
            let expected = Sample { name: name.as_bytes(), value: Value::Counter(by), tags: Tags(tag.as_bytes()), rate };
            prop_assert_eq!(parse(text.as_bytes()), vec![Ok(expected)]);
        }
    }

    fn check(result: Result<Sample<'_>, Refusal>) {
        if let Ok(sample) = result {
            let (Value::Counter(number)
            | Value::Gauge(number)
            | Value::GaugeDelta(number)
            | Value::Timer(number)
            | Value::Distribution(number)) = sample.value;
            assert!(number.is_finite() && sample.rate > 0.0 && sample.rate <= 1.0 && !sample.name.is_empty());
            sample.tags.iter().for_each(drop);
        }
    }
}
