//! Which requests a tap wants to be told of.
//!
//! In: a query, as `outrigger tap` and curl send it, and what is known of a request at its end.
//! Out: whether it is wanted. Promise: what is not understood is refused and named, patterns
//! are bounded, and a request is looked at without allocating.

use std::ops::RangeInclusive;
use std::time::Duration;

use outrigger_wire::head::Head;

/// Bytes of a query, and of one value in it.
const MOST_QUERY: usize = 8 * 1024;
const MOST_VALUE: usize = 512;
/// Bytes of a body that are told.
const MOST_BODY: usize = 64 * 1024;
/// Alternatives of one kind.
const MOST_VALUES: usize = 32;

/// What a tap asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct TapQuery {
    /// Which requests.
    pub filter: Filter,
    /// Which share of these, above 0 and at most 1.
    pub share: f64,
    /// It ends after so many.
    pub most: Option<u64>,
    /// It ends after so long.
    pub duration: Option<Duration>,
    /// The heads of request and response are told too.
    pub headers: bool,
    /// So many bytes of both bodies are told too.
    pub bodies: usize,
}

/// Which requests are wanted: all kinds of conditions must hold; of one kind any alternative, but all `headers`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    routes: Vec<Glob>,
    clusters: Vec<Glob>,
    listeners: Vec<Glob>,
    directions: Vec<String>,
    paths: Vec<Glob>,
    methods: Vec<String>,
    statuses: Vec<RangeInclusive<u16>>,
    grpc_statuses: Vec<RangeInclusive<u16>>,
    min_latency: Duration,
    peers: Vec<Glob>,
    flags: Vec<String>,
    reasons: Vec<String>,
    headers: Vec<(String, Option<Glob>)>,
}

/// What is known of a request at its end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Told<'a> {
    /// The route's name.
    pub route: &'a str,
    /// The cluster's name.
    pub cluster: &'a str,
    /// The listener's name.
    pub listener: &'a str,
    /// `inbound` or `outbound`.
    pub direction: &'a str,
    /// The path without the query.
    pub path: &'a str,
    /// The method.
    pub method: &'a str,
    /// The status; 0 when the client got none.
    pub status: u16,
    /// The status of a gRPC call.
    pub grpc_status: Option<u8>,
    /// How long it took.
    pub duration: Duration,
    /// The peer's SPIFFE ID, or nothing.
    pub peer: &'a str,
    /// Its response flags, or nothing.
    pub flags: [&'a str; 2],
    /// Why it failed, or nothing.
    pub reason: &'a str,
    /// Its head, when that was kept.
    pub head: Option<&'a Head>,
}

impl TapQuery {
    /// Reads a query: `status=5xx&path=/api*`, percent-encoded.
    ///
    /// # Errors
    /// What is wrong with which parameter.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut wanted =
            Self { filter: Filter::default(), share: 1.0, most: None, duration: None, headers: false, bodies: 0 };
        if query.len() > MOST_QUERY {
            return Err(format!("the query is longer than {MOST_QUERY} bytes"));
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value).ok_or_else(|| format!("`{name}`: the value is not percent-encoded UTF-8"))?;
            if value.len() > MOST_VALUE {
                return Err(format!("`{name}`: the value is longer than {MOST_VALUE} bytes"));
            }
            wanted.take(name, &value).map_err(|problem| format!("`{name}`: {problem}"))?;
        }
        Ok(wanted)
    }

    /// Whether a condition needs the request's head.
    pub fn needs_head(&self) -> bool {
        self.headers || self.bodies > 0 || !self.filter.headers.is_empty()
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let filter = &mut self.filter;
        match name {
            "route" => add(&mut filter.routes, value, Glob::of),
            "cluster" => add(&mut filter.clusters, value, Glob::of),
            "listener" => add(&mut filter.listeners, value, Glob::of),
            "peer" => add(&mut filter.peers, value, Glob::of),
            "path" => add(&mut filter.paths, value, Glob::prefix),
            "direction" => add(&mut filter.directions, value, |value| match value {
                "inbound" | "outbound" => Ok(value.to_owned()),
                _ => Err(format!("`{value}` is neither `inbound` nor `outbound`")),
            }),
            "method" => add(&mut filter.methods, value, |value| Ok(value.to_ascii_uppercase())),
            "status" => add(&mut filter.statuses, value, statuses),
            "grpc-status" => add(&mut filter.grpc_statuses, value, statuses),
            "flag" => add(&mut filter.flags, value, |value| Ok(value.to_ascii_uppercase())),
            "min-latency" => {
                filter.min_latency = duration(value)?;
                Ok(())
            }
            // A comma may be part of these.
            "reason" => push(&mut filter.reasons, value.to_ascii_lowercase()),
            "header" => {
                let (name, value) = match value.split_once('=') {
                    Some((name, value)) => (name, Some(Glob::of(value)?)),
                    None => (value, None),
                };
                if name.is_empty() || name.contains([' ', ':']) {
                    return Err(format!("`{name}` is not the name of a header field; write NAME or NAME=VALUE"));
                }
                push(&mut filter.headers, (name.to_ascii_lowercase(), value))
            }
            "sample" => {
                self.share = share(value)?;
                Ok(())
            }
            "max" => match value.parse() {
                Ok(most) if most > 0 => {
                    self.most = Some(most);
                    Ok(())
                }
                _ => Err(format!("`{value}` is not a number above 0")),
            },
            "duration" => {
                self.duration = Some(duration(value)?);
                Ok(())
            }
            "headers" => match value {
                "" | "true" | "1" => {
                    self.headers = true;
                    Ok(())
                }
                "false" | "0" => Ok(()),
                _ => Err(format!("`{value}` is neither `true` nor `false`")),
            },
            "bodies" => {
                let size = value.parse::<outrigger_config::ByteSize>().map_err(|error| error.to_string())?.as_usize();
                if !(1..=MOST_BODY).contains(&size) {
                    return Err(format!("`{value}` is not between 1B and 64KiB"));
                }
                self.bodies = size;
                Ok(())
            }
            _ => Err("there is no such parameter".to_owned()),
        }
    }
}

impl Filter {
    /// Whether a request is wanted.
    pub fn wants(&self, told: &Told<'_>) -> bool {
        let any = |globs: &[Glob], text: &str| globs.is_empty() || globs.iter().any(|glob| glob.fits(text.as_bytes()));
        let one = |texts: &[String], text: &str| texts.is_empty() || texts.iter().any(|wanted| wanted == text);
        told.duration >= self.min_latency
            && (self.statuses.is_empty() || self.statuses.iter().any(|range| range.contains(&told.status)))
            && (self.grpc_statuses.is_empty()
                || told
                    .grpc_status
                    .is_some_and(|status| self.grpc_statuses.iter().any(|range| range.contains(&u16::from(status)))))
            && one(&self.directions, told.direction)
            && one(&self.methods, told.method)
            && (self.flags.is_empty() || self.flags.iter().any(|flag| told.flags.contains(&flag.as_str())))
            && any(&self.listeners, told.listener)
            && any(&self.routes, told.route)
            && any(&self.clusters, told.cluster)
            && any(&self.paths, told.path)
            && any(&self.peers, told.peer)
            && (self.reasons.is_empty() || self.reasons.iter().any(|reason| has(told.reason, reason)))
            && self.headers.iter().all(|(name, value)| {
                told.head.is_some_and(|head| {
                    let mut values = head.get_all_named(name);
                    values.any(|found| value.as_ref().is_none_or(|value| value.fits(found)))
                })
            })
    }
}

/// Whether `text` holds `part`, which is in lower case.
fn has(text: &str, part: &str) -> bool {
    part.is_empty() || text.as_bytes().windows(part.len()).any(|window| window.eq_ignore_ascii_case(part.as_bytes()))
}

/// A text in which `*` stands for any run of bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Glob(Box<[u8]>);

impl Glob {
    /// Reads a pattern that the whole text must fit.
    ///
    /// # Errors
    /// When it is empty or too long.
    pub fn of(pattern: &str) -> Result<Self, String> {
        match pattern.len() {
            0 => Err("the value is empty".to_owned()),
            1..=MOST_VALUE => Ok(Self(pattern.as_bytes().into())),
            _ => Err(format!("the pattern is longer than {MOST_VALUE} bytes")),
        }
    }

    /// Reads a pattern that, without a `*`, need only begin the text.
    fn prefix(pattern: &str) -> Result<Self, String> {
        let Self(bytes) = Self::of(pattern)?;
        if bytes.contains(&b'*') { Ok(Self(bytes)) } else { Ok(Self([&*bytes, b"*"].concat().into())) }
    }

    /// Whether the whole text fits.
    pub fn fits(&self, text: &[u8]) -> bool {
        let (mut at, mut from) = (0, 0);
        // The last star, and how much of the text it stands for.
        let mut star: Option<(usize, usize)> = None;
        while from < text.len() {
            match self.0.get(at) {
                Some(b'*') => {
                    star = Some((at, from));
                    at += 1;
                }
                Some(byte) if *byte == text[from] => {
                    at += 1;
                    from += 1;
                }
                _ => match &mut star {
                    Some((place, taken)) => {
                        *taken += 1;
                        (at, from) = (*place + 1, *taken);
                    }
                    None => return false,
                },
            }
        }
        self.0[at..].iter().all(|byte| *byte == b'*')
    }
}

/// Adds each of the alternatives between commas.
fn add<T>(all: &mut Vec<T>, values: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<(), String> {
    values.split(',').try_for_each(|value| match value.trim() {
        "" => Err("the value is empty".to_owned()),
        value => push(all, read(value)?),
    })
}

fn push<T>(all: &mut Vec<T>, one: T) -> Result<(), String> {
    if all.len() == MOST_VALUES {
        return Err(format!("more than {MOST_VALUES} alternatives"));
    }
    all.push(one);
    Ok(())
}

/// `503`, `5xx` or `400-499`.
fn statuses(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || format!("`{text}` is not a status; write `503`, `5xx` or `400-499`");
    let number = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong());
    if let Some(class) = text.strip_suffix("xx").or_else(|| text.strip_suffix("XX")) {
        let class = number(class)?;
        return if (1..=9).contains(&class) { Ok(class * 100..=class * 100 + 99) } else { Err(wrong()) };
    }
    match text.split_once('-') {
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            if first <= last { Ok(first..=last) } else { Err(wrong()) }
        }
        None => number(text).map(|one| one..=one),
    }
}

/// `0.1` or `10%`.
fn share(text: &str) -> Result<f64, String> {
    let (number, of) = match text.strip_suffix('%') {
        Some(percent) => (percent, 100.0),
        None => (text, 1.0),
    };
    match number.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number <= of => Ok(number / of),
        _ => Err(format!("`{text}` is not a share; write `0.1` or `10%`")),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<outrigger_config::Duration>().map(Duration::from).map_err(|error| error.to_string())
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told<'a>() -> Told<'a> {
        Told {
            route: "to-cart",
            cluster: "cart",
            listener: "out",
            direction: "outbound",
            path: "/api/cart/7",
            method: "POST",
            status: 503,
            grpc_status: Some(14),
            duration: Duration::from_millis(250),
            peer: "spiffe://shop.example/ns/shop/sa/cart",
            flags: ["UF", "URX"],
            reason: "cannot connect to the endpoint",
            head: None,
        }
    }

    #[test]
    fn each_condition_decides() {
        let mut head = Head::default();
        head.push("X-Tenant", b"blue");
        head.push("x-tenant", b"green, dark");
        let told = Told { head: Some(&head), ..told() };
        for (query, wanted) in [
            ("", true),
            ("route=to-cart", true),
            ("route=other,to-*", true),
            ("route=cart", false),
            ("cluster=cart&listener=out&direction=outbound", true),
            ("cluster=cart&listener=in", false),
            ("direction=inbound", false),
            ("path=/api", true),
            ("path=/api/cart/7/more", false),
            ("path=*/cart/*", true),
            ("path=/api/*/8", false),
            ("path=%2Fapi%2fcart", true),
            ("method=get,post", true),
            ("method=GET", false),
            ("status=5xx", true),
            ("status=503", true),
            ("status=400-499", false),
            ("status=200,500-503", true),
            ("status=0", false),
            ("grpc-status=14", true),
            ("grpc-status=1-13", false),
            ("min-latency=250ms", true),
            ("min-latency=251ms", false),
            ("peer=spiffe://shop.example/ns/shop/*", true),
            ("peer=spiffe://shop.example/ns/shop", false),
            ("flag=uf", true),
            ("flag=UT,URX", true),
            ("flag=U", false),
            ("reason=CONNECT", true),
            ("reason=timeout", false),
            ("header=X-TENANT", true),
            ("header=x-tenant=blue", true),
            ("header=x-tenant=green,+dark", true),
            ("header=x-tenant=bl*e&header=x-tenant=*dark", true),
            ("header=x-tenant=red", false),
            ("header=x-other", false),
        ] {
            let tap = TapQuery::parse(query).unwrap();
            assert_eq!(tap.filter.wants(&told), wanted, "{query}");
        }
        let tap = TapQuery::parse("header=x-tenant").unwrap();
        assert!(tap.needs_head() && !tap.filter.wants(&self::told()), "whose head was not kept is not told");
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (query, part) in [
            ("rout=x", "`rout`: there is no such parameter"),
            ("status=5x", "`5x` is not a status"),
            ("status=500-400", "not a status"),
            ("status=", "empty"),
            ("route=a,,b", "empty"),
            ("min-latency=soon", "`min-latency`"),
            ("direction=up", "neither"),
            ("sample=0", "not a share"),
            ("sample=150%25", "not a share"),
            ("max=0", "above 0"),
            ("headers=maybe", "neither"),
            ("header==x", "not the name"),
            ("bodies=1MiB", "not between"),
            ("bodies=0", "not between"),
            ("bodies=much", "`bodies`"),
            ("path=%zz", "percent-encoded"),
            ("path=%ff", "percent-encoded"),
        ] {
            let problem = TapQuery::parse(query).unwrap_err();
            assert!(problem.contains(part), "{query}: {problem}");
        }
        assert!(TapQuery::parse(&"a".repeat(MOST_QUERY + 1)).is_err());
        assert!(TapQuery::parse(&format!("path={}", "a".repeat(MOST_VALUE + 1))).is_err());
        assert!(TapQuery::parse(&format!("route={}a", "a,".repeat(MOST_VALUES))).is_err());
    }

    #[test]
    fn bounds_are_read() {
        let tap = TapQuery::parse("max=5&duration=10s&sample=25%25&headers").unwrap();
        assert_eq!((tap.most, tap.duration, tap.share), (Some(5), Some(Duration::from_secs(10)), 0.25));
        assert!(tap.headers && tap.needs_head() && tap.bodies == 0);
        let tap = TapQuery::parse("bodies=1KiB").unwrap();
        assert!(!tap.headers && tap.needs_head() && tap.bodies == 1024);
    }

    proptest! {
        #[test]
        fn patterns_fit_as_a_slow_reader_says(pattern in "[ab*]{1,8}", text in "[ab]{0,10}") {
            fn slow(pattern: &[u8], text: &[u8]) -> bool {
                match pattern.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|taken| slow(rest, &text[taken..])),
                    Some((byte, rest)) => text.first() == Some(byte) && slow(rest, &text[1..]),
                }
            }
            let fits = Glob::of(&pattern).unwrap().fits(text.as_bytes());
            prop_assert_eq!(fits, slow(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn no_query_panics(query in ".{0,60}") {
            let _ = TapQuery::parse(&query);
        }
    }
}
