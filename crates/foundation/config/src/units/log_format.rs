//! The format of an access log's line, in Envoy's [operators].
//!
//! In: a text such as `%START_TIME% %RESPONSE_CODE%`. Out: its pieces. Promise: an operator
//! that is not known, or an argument that it does not take, is refused with its place; what
//! is accepted is written whole.
//!
//! [operators]: https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage

use std::fmt;
use std::str::FromStr;

use super::{InvalidScalar, string_scalar};

/// Bytes of the longest format.
const MOST_BYTES: usize = 8192;
/// The longest `:N`.
const MOST_LENGTH: usize = 65_536;

/// The format of a line, or of one value of a JSON line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFormat {
    text: String,
    /// What it is made of.
    pub pieces: Vec<LogPiece>,
}

/// A piece of a format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPiece {
    /// Written as it is.
    Text(String),
    /// Replaced by what it stands for.
    Operator {
        /// What it stands for.
        operator: LogOperator,
        /// Bytes beyond which the value is cut (`:N`).
        most: Option<usize>,
    },
}

/// What an operator stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogOperator {
    /// `%START_TIME%`, `%START_TIME(FORMAT)%`: when the request came.
    StartTime(Vec<TimePiece>),
    /// `%REQ(NAME?OTHER)%`: a field of the request as it came; `:METHOD`, `:PATH` (with the query), `:AUTHORITY`, `:SCHEME`.
    Request(LogField),
    /// `%RESP(NAME?OTHER)%`: a field of the response as it went.
    Response(LogField),
    /// `%PATH%`: the path without the query.
    Path,
    /// `%PROTOCOL%`
    Protocol,
    /// `%RESPONSE_CODE%`
    ResponseCode,
    /// `%RESPONSE_CODE_DETAILS%`: why the answer is ours, in words.
    ResponseCodeDetails,
    /// `%RESPONSE_FLAGS%`
    ResponseFlags,
    /// `%GRPC_STATUS%`: by name.
    GrpcStatus,
    /// `%GRPC_STATUS_NUMBER%`
    GrpcStatusNumber,
    /// `%BYTES_RECEIVED%`: of the request's body.
    BytesReceived,
    /// `%BYTES_SENT%`: of the response's body.
    BytesSent,
    /// `%DURATION%`: milliseconds to the last byte.
    Duration,
    /// `%RESPONSE_DURATION%`: milliseconds from the request's sending to the response's head.
    ResponseDuration,
    /// `%UPSTREAM_HOST%`: the endpoint.
    UpstreamHost,
    /// `%UPSTREAM_CLUSTER%`
    UpstreamCluster,
    /// `%UPSTREAM_REQUEST_ATTEMPT_COUNT%`
    UpstreamRequestAttemptCount,
    /// `%UPSTREAM_PEER_URI_SAN%`, `%DOWNSTREAM_PEER_URI_SAN%`: the other side's SPIFFE ID.
    PeerUriSan,
    /// `%ROUTE_NAME%`
    RouteName,
    /// `%LISTENER_NAME%`, which is ours.
    ListenerName,
    /// `%TRAFFIC_DIRECTION%`: `inbound` or `outbound`; ours.
    TrafficDirection,
    /// `%DOWNSTREAM_REMOTE_ADDRESS%`
    DownstreamRemoteAddress,
    /// `%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%`
    DownstreamRemoteAddressWithoutPort,
    /// `%DOWNSTREAM_REMOTE_PORT%`
    DownstreamRemotePort,
    /// `%TRACE_ID%`
    TraceId,
    /// `%HOSTNAME%`
    Hostname,
    /// `%ENVIRONMENT(NAME)%`
    Environment(String),
}

/// A header field, or another where it is absent. Names are in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogField {
    /// The field.
    pub name: String,
    /// The one instead.
    pub otherwise: Option<String>,
}

/// A piece of a time's format, in the letters of strftime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimePiece {
    /// Any other character.
    Text(char),
    /// `%Y`
    Year,
    /// `%m`
    Month,
    /// `%b`
    MonthName,
    /// `%d`
    Day,
    /// `%H`
    Hour,
    /// `%M`
    Minute,
    /// `%S`
    Second,
    /// `%s`: seconds since 1970.
    UnixSeconds,
    /// `%f` and `%1f` to `%9f`: so many digits of the second's fraction.
    Fraction(u8),
    /// `%z`: always `+0000`.
    Zone,
}

impl LogFormat {
    /// Names of request fields that it needs, in lower case.
    pub fn request_fields(&self) -> impl Iterator<Item = &str> {
        self.fields(|operator| if let LogOperator::Request(field) = operator { Some(field) } else { None })
    }

    /// Names of response fields that it needs, in lower case.
    pub fn response_fields(&self) -> impl Iterator<Item = &str> {
        self.fields(|operator| if let LogOperator::Response(field) = operator { Some(field) } else { None })
    }

    fn fields<'a>(&'a self, of: impl Fn(&'a LogOperator) -> Option<&'a LogField>) -> impl Iterator<Item = &'a str> {
        let operators = self.pieces.iter().filter_map(move |piece| match piece {
            LogPiece::Operator { operator, .. } => of(operator),
            LogPiece::Text(_) => None,
        });
        operators.flat_map(|field| [Some(field.name.as_str()), field.otherwise.as_deref()]).flatten()
    }
}

impl FromStr for LogFormat {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        let refuse = |problem: String, help: &str| InvalidScalar::new(text, problem, help);
        if text.len() > MOST_BYTES {
            return Err(refuse(format!("is longer than {MOST_BYTES} bytes"), "write a shorter format"));
        }
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            plain.push_str(&rest[..at]);
            let place = text.len() - rest.len() + at + 1;
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                plain.push('%');
                rest = after;
                continue;
            }
            let end = end_of(rest).ok_or_else(|| {
                refuse(format!("has a `%` at character {place} that is not closed"), "write `%%` for a percent sign")
            })?;
            let operator = one(&rest[..end]).map_err(|problem| {
                let help = "the operators are listed in docs/observability.md";
                refuse(format!("is wrong at character {place}: {problem}"), help)
            })?;
            if !plain.is_empty() {
                pieces.push(LogPiece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(operator);
            rest = &rest[end + 1..];
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(LogPiece::Text(plain));
        }
        Ok(Self { text: text.to_owned(), pieces })
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

string_scalar!(
    LogFormat,
    "log-format",
    "^",
    "A line, or a value, in Envoy's operators: `%START_TIME% %REQ(:METHOD)% %RESPONSE_CODE%`."
);

/// Where the operator's closing `%` is; those within parentheses are an argument's.
fn end_of(rest: &str) -> Option<usize> {
    let mut inside = false;
    rest.char_indices().find_map(|(at, c)| {
        match c {
            '(' => inside = true,
            ')' => inside = false,
            '%' if !inside => return Some(at),
            _ => {}
        }
        None
    })
}

/// `NAME`, `NAME(ARGUMENT)`, `NAME:N`, `NAME(ARGUMENT):N`.
fn one(text: &str) -> Result<LogPiece, String> {
    let (text, most) = match text.rsplit_once(':') {
        // A colon within the parentheses is a name's.
        Some((before, most)) if !most.contains(')') && !most.is_empty() && most.bytes().all(|b| b.is_ascii_digit()) => {
            let most = most.parse().ok().filter(|most| (1..=MOST_LENGTH).contains(most));
            (before, Some(most.ok_or_else(|| format!("a length is from 1 to {MOST_LENGTH}"))?))
        }
        _ => (text, None),
    };
    let (name, argument) = match text.split_once('(') {
        Some((name, argument)) => {
            let argument =
                argument.strip_suffix(')').ok_or("its parenthesis is not closed, or something follows it")?;
            (name, Some(argument))
        }
        None => (text, None),
    };
    use LogOperator as O;
    let operator = match (name, argument) {
        ("START_TIME", None) => O::StartTime(time_format("%Y-%m-%dT%H:%M:%S.%3fZ")?),
        ("START_TIME", Some(argument)) => O::StartTime(time_format(argument)?),
        ("REQ", Some(argument)) => O::Request(field(argument, true)?),
        ("RESP", Some(argument)) => O::Response(field(argument, false)?),
        ("ENVIRONMENT", Some(name)) if !name.is_empty() => O::Environment(name.to_owned()),
        ("REQ" | "RESP" | "ENVIRONMENT", _) => return Err(format!("`{name}` needs an argument in parentheses")),
        (name, Some(_)) => return Err(format!("`{name}` takes no argument")),
        ("PATH", None) => O::Path,
        ("PROTOCOL", None) => O::Protocol,
        ("RESPONSE_CODE", None) => O::ResponseCode,
        ("RESPONSE_CODE_DETAILS", None) => O::ResponseCodeDetails,
        ("RESPONSE_FLAGS", None) => O::ResponseFlags,
        ("GRPC_STATUS", None) => O::GrpcStatus,
        ("GRPC_STATUS_NUMBER", None) => O::GrpcStatusNumber,
        ("BYTES_RECEIVED", None) => O::BytesReceived,
        ("BYTES_SENT", None) => O::BytesSent,
        ("DURATION", None) => O::Duration,
        ("RESPONSE_DURATION", None) => O::ResponseDuration,
        ("UPSTREAM_HOST", None) => O::UpstreamHost,
        ("UPSTREAM_CLUSTER", None) => O::UpstreamCluster,
        ("UPSTREAM_REQUEST_ATTEMPT_COUNT", None) => O::UpstreamRequestAttemptCount,
        ("DOWNSTREAM_PEER_URI_SAN" | "UPSTREAM_PEER_URI_SAN", None) => O::PeerUriSan,
        ("ROUTE_NAME", None) => O::RouteName,
        ("LISTENER_NAME", None) => O::ListenerName,
        ("TRAFFIC_DIRECTION", None) => O::TrafficDirection,
        ("DOWNSTREAM_REMOTE_ADDRESS", None) => O::DownstreamRemoteAddress,
        ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", None) => O::DownstreamRemoteAddressWithoutPort,
        ("DOWNSTREAM_REMOTE_PORT", None) => O::DownstreamRemotePort,
        ("TRACE_ID", None) => O::TraceId,
        ("HOSTNAME", None) => O::Hostname,
        _ => return Err(format!("`{name}` is not an operator")),
    };
    Ok(LogPiece::Operator { operator, most })
}

fn field(argument: &str, request: bool) -> Result<LogField, String> {
    let valid = |name: &str| {
        let pseudo = request && [":method", ":path", ":authority", ":scheme"].contains(&name);
        if pseudo || outrigger_wire::h1::is_field_name(name.as_bytes()) {
            return Ok(name.to_owned());
        }
        Err(format!("`{name}` is not the name of a field"))
    };
    let argument = argument.to_ascii_lowercase();
    let (name, otherwise) = match argument.split_once('?') {
        Some((name, otherwise)) => (name, Some(valid(otherwise)?)),
        None => (argument.as_str(), None),
    };
    Ok(LogField { name: valid(name)?, otherwise })
}

fn time_format(text: &str) -> Result<Vec<TimePiece>, String> {
    let mut pieces = Vec::new();
    let mut letters = text.chars();
    while let Some(c) = letters.next() {
        if c != '%' {
            pieces.push(TimePiece::Text(c));
            continue;
        }
        pieces.push(match letters.next() {
            Some('%') => TimePiece::Text('%'),
            Some('Y') => TimePiece::Year,
            Some('m') => TimePiece::Month,
            Some('b') => TimePiece::MonthName,
            Some('d') => TimePiece::Day,
            Some('H') => TimePiece::Hour,
            Some('M') => TimePiece::Minute,
            Some('S') => TimePiece::Second,
            Some('s') => TimePiece::UnixSeconds,
            Some('z') => TimePiece::Zone,
            Some('f') => TimePiece::Fraction(9),
            Some(digit @ '1'..='9') if letters.next() == Some('f') => TimePiece::Fraction(digit as u8 - b'0'),
            Some('F') => {
                pieces.extend(time_format("%Y-%m-%d")?);
                continue;
            }
            Some('T') => {
                pieces.extend(time_format("%H:%M:%S")?);
                continue;
            }
            Some(other) => return Err(format!("`%{other}` is not known in a time's format")),
            None => return Err("a time's format ends in `%`".to_owned()),
        });
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn envoys_own_default_is_understood() {
        let text = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
                    %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \"%REQ(X-FORWARDED-FOR)%\" \
                    \"%REQ(USER-AGENT):20%\" \"%UPSTREAM_HOST%\" 100%% %START_TIME(%s.%3f %b)%\n";
        let format: LogFormat = text.parse().unwrap();
        assert_eq!(format.to_string(), text);
        let fields: Vec<_> = format.request_fields().collect();
        assert_eq!(fields, [":method", "x-envoy-original-path", ":path", "x-forwarded-for", "user-agent"]);
        let cut = format.pieces.iter().find_map(|piece| match piece {
            LogPiece::Operator { operator: LogOperator::Request(field), most: Some(most) } => {
                Some((field.name.as_str(), *most))
            }
            _ => None,
        });
        assert_eq!(cut, Some(("user-agent", 20)));
        let last = format.pieces.iter().rev().find_map(|piece| match piece {
            LogPiece::Operator { operator: LogOperator::StartTime(time), .. } => Some(time.clone()),
            _ => None,
        });
        use TimePiece::{Fraction, MonthName, Text, UnixSeconds};
        assert_eq!(last.unwrap(), [UnixSeconds, Text('.'), Fraction(3), Text(' '), MonthName]);
        assert!(format.pieces.contains(&LogPiece::Text("\" 100% ".to_owned())));
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (text, told) in [
            ("a %RESPONSE_COD%", "at character 3: `RESPONSE_COD` is not an operator"),
            ("%REQ%", "`REQ` needs an argument"),
            ("%REQ()%", "`` is not the name of a field"),
            ("%REQ(a b)%", "`a b` is not the name"),
            ("%RESP(:METHOD)%", "`:method` is not the name"),
            ("%PROTOCOL(x)%", "`PROTOCOL` takes no argument"),
            ("%REQ(x):0%", "a length is from 1"),
            ("%REQ(x)y%", "something follows"),
            ("100%", "not closed"),
            ("%START_TIME(%Q)%", "`%Q` is not known"),
        ] {
            let error = text.parse::<LogFormat>().unwrap_err();
            assert!(error.problem.contains(told), "{text}: {}", error.problem);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}|(%[A-Z_]{0,8}(\\([%a-zA-Z?:-]{0,6}\\))?(:[0-9]{0,3})?%?){0,4}") {
            if let Ok(format) = text.parse::<LogFormat>() {
                prop_assert_eq!(format.to_string(), text);
            }
        }
    }
}
