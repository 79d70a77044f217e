//! Which requests an access log tells: an expression over what is known at a request's end.
//!
//! In: a text such as `response.code >= 500 || request.duration > 1s`. Out: its tree, with
//! types that fit. Promise: what compares a number with a text, or names what nobody knows,
//! is refused with its place; depth and length are bounded; asking it allocates nothing.
//!
//! Names are Envoy's [attributes] where it has one, operators and functions CEL's.
//!
//! [attributes]: https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/advanced/attributes

use std::fmt;
use std::str::FromStr;

use super::{InvalidScalar, string_scalar};

const MOST_BYTES: usize = 4096;
const MOST_DEPTH: usize = 32;

/// An expression that is true or false of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct LogFilter {
    text: String,
    root: Expression,
}

/// What can be asked of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// `request.method`
    Method,
    /// `request.path`: without the query.
    Path,
    /// `request.host`
    Host,
    /// `request.useragent`
    UserAgent,
    /// `request.id`
    RequestId,
    /// `request.protocol`
    Protocol,
    /// `request.headers['name']`, in lower case.
    RequestHeader(String),
    /// `response.headers['name']`, in lower case.
    ResponseHeader(String),
    /// `response.flags`
    Flags,
    /// `route`, `cluster`, `listener`, `direction`, `peer`
    Route,
    /// The cluster's name.
    Cluster,
    /// The listener's name.
    Listener,
    /// `inbound` or `outbound`.
    Direction,
    /// The other side's SPIFFE ID.
    Peer,
    /// `response.code`
    Code,
    /// `response.grpc_status`
    GrpcStatus,
    /// `request.size`: bytes of the body.
    RequestSize,
    /// `response.size`: bytes of the body.
    ResponseSize,
    /// `attempts`
    Attempts,
    /// `request.duration`
    Duration,
}

/// What an attribute has for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact<'a> {
    /// Nothing: no comparison holds but `!=`.
    Unknown,
    /// A text.
    Text(&'a [u8]),
    /// A number; durations in microseconds.
    Number(u64),
}

/// Whoever knows what an expression asks.
pub trait Facts {
    /// What an attribute has.
    fn fact(&self, attribute: &Attribute) -> Fact<'_>;
    /// A random number from 0 up to, without, 1.
    fn chance(&self) -> f64;
}

#[derive(Debug, Clone, PartialEq)]
enum Expression {
    Or(Vec<Expression>),
    And(Vec<Expression>),
    Not(Box<Expression>),
    Compare(Attribute, Comparison, Constant),
    In(Attribute, Vec<Constant>),
    Text(Attribute, TextTest, String),
    Sample(f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    Unequal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextTest {
    StartsWith,
    EndsWith,
    Contains,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Constant {
    Text(String),
    Number(u64),
    Duration(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Text,
    Number,
    Duration,
}

impl Type {
    fn told(self) -> &'static str {
        match self {
            Self::Text => "a text such as 'GET'",
            Self::Number => "a number such as 500",
            Self::Duration => "a duration such as 250ms",
        }
    }
}

impl LogFilter {
    /// Whether it is true of a request.
    pub fn holds(&self, facts: &impl Facts) -> bool {
        self.root.holds(facts)
    }

    /// Names of request fields that it asks, in lower case.
    pub fn request_fields(&self) -> Vec<&str> {
        self.fields(|attribute| if let Attribute::RequestHeader(name) = attribute { Some(name) } else { None })
    }

    /// Names of response fields that it asks, in lower case.
    pub fn response_fields(&self) -> Vec<&str> {
        self.fields(|attribute| if let Attribute::ResponseHeader(name) = attribute { Some(name) } else { None })
    }

    fn fields<'a>(&'a self, of: impl Fn(&'a Attribute) -> Option<&'a String>) -> Vec<&'a str> {
        let mut found = Vec::new();
        self.root.visit(&mut |attribute| found.extend(of(attribute).map(String::as_str)));
        found
    }
}

impl Expression {
    fn holds(&self, facts: &impl Facts) -> bool {
        match self {
            Self::Or(any) => any.iter().any(|one| one.holds(facts)),
            Self::And(all) => all.iter().all(|one| one.holds(facts)),
            Self::Not(one) => !one.holds(facts),
            Self::Compare(attribute, comparison, constant) => compare(facts.fact(attribute), *comparison, constant),
            Self::In(attribute, constants) => {
                let fact = facts.fact(attribute);
                constants.iter().any(|constant| compare(fact, Comparison::Equal, constant))
            }
            Self::Text(attribute, test, text) => match (facts.fact(attribute), test) {
                (Fact::Text(value), TextTest::StartsWith) => value.starts_with(text.as_bytes()),
                (Fact::Text(value), TextTest::EndsWith) => value.ends_with(text.as_bytes()),
                (Fact::Text(value), TextTest::Contains) => {
                    text.is_empty() || value.windows(text.len()).any(|window| window == text.as_bytes())
                }
                _ => false,
            },
            Self::Sample(share) => facts.chance() < *share,
        }
    }

    fn visit<'a>(&'a self, see: &mut impl FnMut(&'a Attribute)) {
        match self {
            Self::Or(all) | Self::And(all) => all.iter().for_each(|one| one.visit(see)),
            Self::Not(one) => one.visit(see),
            Self::Compare(attribute, ..) | Self::In(attribute, _) | Self::Text(attribute, ..) => see(attribute),
            Self::Sample(_) => {}
        }
    }
}

fn compare(fact: Fact<'_>, comparison: Comparison, constant: &Constant) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let order = match (fact, constant) {
        (Fact::Text(value), Constant::Text(text)) => value.cmp(text.as_bytes()),
        (Fact::Number(value), Constant::Number(number) | Constant::Duration(number)) => value.cmp(number),
        _ => return comparison == Comparison::Unequal,
    };
    match comparison {
        Comparison::Equal => order == Equal,
        Comparison::Unequal => order != Equal,
        Comparison::Less => order == Less,
        Comparison::LessEqual => order != Greater,
        Comparison::Greater => order == Greater,
        Comparison::GreaterEqual => order != Less,
    }
}

impl FromStr for LogFilter {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        let refuse = |problem: String| {
            let help = "write an expression such as `response.code >= 500 || request.duration > 1s`";
            InvalidScalar::new(text, problem, help)
        };
        if text.len() > MOST_BYTES {
            return Err(refuse(format!("is longer than {MOST_BYTES} bytes")));
        }
        let mut reader = Reader { text, at: 0, depth: 0 };
        let root = reader.any().and_then(|root| {
            reader.blanks();
            if reader.at < text.len() { Err("expected `&&`, `||` or the end".to_owned()) } else { Ok(root) }
        });
        let root = root.map_err(|problem| refuse(format!("is wrong at character {}: {problem}", reader.place())))?;
        Ok(Self { text: text.to_owned(), root })
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

string_scalar!(
    LogFilter,
    "log-filter",
    "^",
    "An expression over a request's end: `response.code >= 500 || request.duration > 1s`."
);

/// Reads an expression; an error leaves it where the mistake is.
struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Reader<'_> {
    fn any(&mut self) -> Result<Expression, String> {
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return Err(format!("it is nested deeper than {MOST_DEPTH}"));
        }
        let mut any = vec![self.all()?];
        while self.takes("||") {
            any.push(self.all()?);
        }
        self.depth -= 1;
        Ok(if any.len() == 1 { any.swap_remove(0) } else { Expression::Or(any) })
    }

    fn all(&mut self) -> Result<Expression, String> {
        let mut all = vec![self.one()?];
        while self.takes("&&") {
            all.push(self.one()?);
        }
        Ok(if all.len() == 1 { all.swap_remove(0) } else { Expression::And(all) })
    }

    fn one(&mut self) -> Result<Expression, String> {
        if self.takes("!") {
            self.depth += 1;
            if self.depth > MOST_DEPTH {
                return Err(format!("it is nested deeper than {MOST_DEPTH}"));
            }
            let one = self.one()?;
            self.depth -= 1;
            return Ok(Expression::Not(Box::new(one)));
        }
        if self.takes("(") {
            let inner = self.any()?;
            self.expect(")")?;
            return Ok(inner);
        }
        self.blanks();
        let begin = self.at;
        let name = self.name();
        if name == "sample" {
            self.expect("(")?;
            let share = self.share()?;
            self.expect(")")?;
            return Ok(Expression::Sample(share));
        }
        let (name, test) = match name.rsplit_once('.') {
            Some((name, "startsWith")) => (name.to_owned(), Some(TextTest::StartsWith)),
            Some((name, "endsWith")) => (name.to_owned(), Some(TextTest::EndsWith)),
            Some((name, "contains")) => (name.to_owned(), Some(TextTest::Contains)),
            _ => (name, None),
        };
        let (attribute, kind) = self.attribute(&name, begin)?;
        let test = match test {
            None if matches!(attribute, Attribute::RequestHeader(_) | Attribute::ResponseHeader(_)) => self.method(),
            test => test,
        };
        if let Some(test) = test {
            if kind != Type::Text {
                self.at = begin;
                return Err(format!("`{name}` is not a text"));
            }
            self.expect("(")?;
            let text = self.string()?;
            self.expect(")")?;
            return Ok(Expression::Text(attribute, test, text));
        }
        self.comparison(attribute, kind)
    }

    fn comparison(&mut self, attribute: Attribute, kind: Type) -> Result<Expression, String> {
        self.blanks();
        if self.rest().starts_with("in") && !self.rest()[2..].starts_with(is_word) {
            self.at += 2;
            self.expect("[")?;
            let mut constants = vec![self.constant(kind)?];
            while self.takes(",") {
                constants.push(self.constant(kind)?);
            }
            self.expect("]")?;
            return Ok(Expression::In(attribute, constants));
        }
        use Comparison as C;
        // The longer ones first.
        let signs = [
            ("==", C::Equal),
            ("!=", C::Unequal),
            ("<=", C::LessEqual),
            (">=", C::GreaterEqual),
            ("<", C::Less),
            (">", C::Greater),
        ];
        let Some(comparison) = signs.into_iter().find_map(|(sign, comparison)| self.takes(sign).then_some(comparison))
        else {
            return Err("expected a comparison (`==`, `!=`, `<`, `<=`, `>`, `>=`, `in [...]`)".to_owned());
        };
        if kind == Type::Text && !matches!(comparison, C::Equal | C::Unequal) {
            return Err("texts are compared by `==`, `!=`, `in`, `startsWith`, `endsWith` and `contains`".to_owned());
        }
        Ok(Expression::Compare(attribute, comparison, self.constant(kind)?))
    }

    fn attribute(&mut self, name: &str, begin: usize) -> Result<(Attribute, Type), String> {
        use Attribute as A;
        Ok(match name {
            "request.method" => (A::Method, Type::Text),
            "request.path" | "request.url_path" => (A::Path, Type::Text),
            "request.host" => (A::Host, Type::Text),
            "request.useragent" => (A::UserAgent, Type::Text),
            "request.id" => (A::RequestId, Type::Text),
            "request.protocol" => (A::Protocol, Type::Text),
            "request.headers" => (A::RequestHeader(self.index()?), Type::Text),
            "response.headers" => (A::ResponseHeader(self.index()?), Type::Text),
            "response.flags" => (A::Flags, Type::Text),
            "route" => (A::Route, Type::Text),
            "cluster" => (A::Cluster, Type::Text),
            "listener" => (A::Listener, Type::Text),
            "direction" => (A::Direction, Type::Text),
            "peer" => (A::Peer, Type::Text),
            "response.code" => (A::Code, Type::Number),
            "response.grpc_status" => (A::GrpcStatus, Type::Number),
            "request.size" => (A::RequestSize, Type::Number),
            "response.size" => (A::ResponseSize, Type::Number),
            "attempts" => (A::Attempts, Type::Number),
            "request.duration" => (A::Duration, Type::Duration),
            "" => return Err("expected what is asked, such as `response.code`".to_owned()),
            _ => {
                self.at = begin;
                return Err(format!("`{name}` is not known; docs/observability.md lists what is"));
            }
        })
    }

    fn index(&mut self) -> Result<String, String> {
        self.expect("[")?;
        let name = self.string()?.to_ascii_lowercase();
        self.expect("]")?;
        if !outrigger_wire::h1::is_field_name(name.as_bytes()) {
            return Err(format!("`{name}` is not the name of a header field"));
        }
        Ok(name)
    }

    /// A test behind an index.
    fn method(&mut self) -> Option<TextTest> {
        [(".startsWith", TextTest::StartsWith), (".endsWith", TextTest::EndsWith), (".contains", TextTest::Contains)]
            .into_iter()
            .find_map(|(name, test)| self.takes(name).then_some(test))
    }

    fn constant(&mut self, kind: Type) -> Result<Constant, String> {
        self.blanks();
        let begin = self.at;
        let wrong = |reader: &mut Self| {
            reader.at = begin;
            Err(format!("expected {}", kind.told()))
        };
        match kind {
            Type::Text => match self.string() {
                Ok(text) => Ok(Constant::Text(text)),
                Err(_) => wrong(self),
            },
            Type::Number => match self.name().parse() {
                Ok(number) => Ok(Constant::Number(number)),
                Err(_) => wrong(self),
            },
            Type::Duration => {
                let quoted = self.string();
                let text = quoted.unwrap_or_else(|_| {
                    self.at = begin;
                    self.name()
                });
                match text.parse::<super::Duration>() {
                    Ok(duration) => {
                        let micros = std::time::Duration::from(duration).as_micros();
                        Ok(Constant::Duration(u64::try_from(micros).unwrap_or(u64::MAX)))
                    }
                    Err(_) => wrong(self),
                }
            }
        }
    }

    fn share(&mut self) -> Result<f64, String> {
        self.blanks();
        let begin = self.at;
        match self.name().parse::<f64>() {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
            _ => {
                self.at = begin;
                Err("expected a share from 0 to 1".to_owned())
            }
        }
    }

    /// A text in single or double quotes; a backslash takes the next character as it is.
    fn string(&mut self) -> Result<String, String> {
        self.blanks();
        let mut letters = self.rest().char_indices();
        let Some((_, quote @ ('\'' | '"'))) = letters.next() else {
            return Err("expected a text in quotes".to_owned());
        };
        let mut text = String::new();
        while let Some((at, c)) = letters.next() {
            match c {
                '\\' => text.extend(letters.next().map(|(_, c)| c)),
                c if c == quote => {
                    self.at += at + 1;
                    return Ok(text);
                }
                c => text.push(c),
            }
        }
        Err("the text's quotes are not closed".to_owned())
    }

    /// Letters, digits, dots and underscores.
    fn name(&mut self) -> String {
        let rest = self.rest();
        let end = rest.find(|c: char| !(is_word(c) || c == '.')).unwrap_or(rest.len());
        let name = rest[..end].to_owned();
        self.at += end;
        name
    }

    fn takes(&mut self, sign: &str) -> bool {
        self.blanks();
        let found = self.rest().starts_with(sign);
        if found {
            self.at += sign.len();
        }
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.takes(sign) { Ok(()) } else { Err(format!("expected `{sign}`")) }
    }

    fn blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn place(&self) -> usize {
        self.text[..self.at].chars().count() + 1
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Request {
        code: u64,
        path: &'static str,
        micros: u64,
        chance: f64,
    }

    impl Facts for Request {
        fn fact(&self, attribute: &Attribute) -> Fact<'_> {
            match attribute {
                Attribute::Code => Fact::Number(self.code),
                Attribute::Path => Fact::Text(self.path.as_bytes()),
                Attribute::Duration => Fact::Number(self.micros),
                Attribute::Method => Fact::Text(b"GET"),
                Attribute::RequestHeader(name) if name == "x-debug" => Fact::Text(b"yes"),
                _ => Fact::Unknown,
            }
        }
        fn chance(&self) -> f64 {
            self.chance
        }
    }

    const REQUEST: Request = Request { code: 503, path: "/admin/x", micros: 1_500_000, chance: 0.5 };

    #[test]
    fn expressions_hold_or_not() {
        for (text, holds) in [
            ("response.code == 503", true),
            ("response.code != 503", false),
            ("response.code >= 500 && response.code < 600", true),
            ("response.code in [200, 503]", true),
            ("response.code in [200]", false),
            ("request.duration > 1s", true),
            ("request.duration <= 250ms", false),
            ("request.duration > '1s'", true),
            ("request.path == '/admin/x'", true),
            ("request.path.startsWith('/admin')", true),
            ("request.path.endsWith(\"/y\")", false),
            ("request.path.contains('min')", true),
            ("!request.path.contains('min')", false),
            ("request.headers['X-Debug'] == 'yes'", true),
            ("request.headers['x-debug'].startsWith('y')", true),
            ("request.headers['x-other'] == ''", false),
            ("request.headers['x-other'] != 'a'", true),
            ("response.grpc_status < 5", false),
            // `&&` binds closer than `||`.
            ("response.code == 503 || response.code == 1 && request.method == 'POST'", true),
            ("(response.code == 503 || response.code == 1) && request.method == 'POST'", false),
            ("sample(0.6)", true),
            ("sample(0.5)", false),
            ("request.method in ['GET', 'HEAD']", true),
            ("request.path == '/it\\'s'", false),
        ] {
            let filter: LogFilter = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(filter.holds(&REQUEST), holds, "{text}");
            assert_eq!(filter.to_string(), text);
        }
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (text, told) in [
            ("", "at character 1: expected what is asked"),
            ("response.cod == 1", "at character 1: `response.cod` is not known"),
            ("response.code == 'x'", "at character 18: expected a number"),
            ("request.method == 5", "expected a text"),
            ("request.method > 'a'", "texts are compared by"),
            ("request.duration > 5", "expected a duration"),
            ("response.code", "expected a comparison"),
            ("response.code == 1 response.code == 2", "at character 20: expected `&&`, `||` or the end"),
            ("(response.code == 1", "expected `)`"),
            ("response.code.startsWith('5')", "is not a text"),
            ("request.headers == 'x'", "expected `[`"),
            ("request.headers['a b'] == 'x'", "is not the name of a header"),
            ("request.path == 'x", "expected a text"),
            ("sample(2)", "a share from 0 to 1"),
        ] {
            let error = text.parse::<LogFilter>().unwrap_err();
            assert!(error.problem.contains(told), "{text}: {}", error.problem);
        }
        let deep = format!("{}response.code == 1{}", "(".repeat(100), ")".repeat(100));
        assert!(deep.parse::<LogFilter>().unwrap_err().problem.contains("nested"));
        let deep = format!("{}response.code == 1", "!".repeat(100));
        assert!(deep.parse::<LogFilter>().unwrap_err().problem.contains("nested"));
    }

    #[test]
    fn the_fields_it_needs_are_known() {
        let filter: LogFilter =
            "request.headers['A'] == 'x' || !(response.headers['b'] == 'y' && request.headers['c'] != '')"
                .parse()
                .unwrap();
        assert_eq!((filter.request_fields(), filter.response_fields()), (vec!["a", "c"], vec!["b"]));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}|((response.code|request.path|!|\\(|\\)|&&|\\|\\||==| |'x'|500|1s|in|\\[|\\]|,){1}){0,12}") {
            if let Ok(filter) = text.parse::<LogFilter>() {
                filter.holds(&REQUEST);
                prop_assert_eq!(filter.to_string(), text);
            }
        }
    }
}
