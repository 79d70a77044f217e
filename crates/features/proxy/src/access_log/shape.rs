//! Lines in the operator's own format: Envoy's operators, as text or as members of a JSON object.
//!
//! In: what is known of a request, and the compiled format. Out: one line. Promise: whatever a
//! client sent, a text has no line break of its own making and an object stays one object.

use std::io::Write;

use outrigger_config::log_line::{LogField, LogOperator, LogPiece, TimePiece};
use outrigger_config::{AccessLog, LogFormat};
use time::OffsetDateTime;

use super::entry::{Entry, escaped};

/// How a line looks.
pub(super) enum Shape {
    /// All that is known, as JSON.
    Whole,
    Text(Vec<Piece>),
    Members(Vec<(String, Vec<Piece>)>),
}

/// A piece of a format, with everything looked up that is the same for all lines.
pub(super) enum Piece {
    Text(Vec<u8>),
    Operator { operator: LogOperator, most: usize, places: [Option<usize>; 2] },
}

/// What an operator stands for in a line.
enum Value<'a> {
    Unknown,
    Text(&'a [u8]),
    Number(u64),
}

/// Names of the request's and of the response's fields that the format and the filter need.
pub(super) fn fields(config: &AccessLog) -> (Vec<String>, Vec<String>) {
    let formats = || config.text.iter().chain(config.json.values());
    let filter = config.filter.as_ref();
    let request =
        formats().flat_map(LogFormat::request_fields).chain(filter.into_iter().flat_map(|one| one.request_fields()));
    let response =
        formats().flat_map(LogFormat::response_fields).chain(filter.into_iter().flat_map(|one| one.response_fields()));
    (once(request), once(response))
}

fn once<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl Shape {
    pub(super) fn new(config: &AccessLog, request: &[String], response: &[String]) -> Self {
        let compile =
            |format: &LogFormat| format.pieces.iter().map(|piece| compile(piece, request, response)).collect();
        if let Some(text) = &config.text {
            return Self::Text(compile(text));
        }
        if config.json.is_empty() {
            return Self::Whole;
        }
        Self::Members(config.json.iter().map(|(key, format)| (key.clone(), compile(format))).collect())
    }

    /// Writes one line, with its line feed.
    pub(super) fn write(&self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Whole => entry.write(out),
            Self::Text(pieces) => {
                for piece in pieces {
                    write_text(piece, entry, out);
                }
                if out.last() != Some(&b'\n') {
                    out.push(b'\n');
                }
            }
            Self::Members(members) => {
                out.push(b'{');
                for (index, (key, pieces)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    out.push(b'"');
                    escaped(out, key);
                    out.extend_from_slice(b"\":");
                    write_member(pieces, entry, out);
                }
                out.extend_from_slice(b"}\n");
            }
        }
    }
}

fn compile(piece: &LogPiece, request: &[String], response: &[String]) -> Piece {
    match piece {
        LogPiece::Text(text) => Piece::Text(text.clone().into_bytes()),
        LogPiece::Operator { operator, most } => {
            let most = most.unwrap_or(usize::MAX);
            let mut places = [None; 2];
            let fixed = match operator {
                LogOperator::Hostname => Some(rustix::system::uname().nodename().to_bytes().to_vec()),
                LogOperator::Environment(name) => {
                    Some(std::env::var(name).map_or_else(|_| b"-".to_vec(), String::into_bytes))
                }
                LogOperator::Request(field) => {
                    places = look_up(field, request, 0);
                    None
                }
                LogOperator::Response(field) => {
                    places = look_up(field, response, request.len());
                    None
                }
                _ => None,
            };
            match fixed {
                Some(mut text) => {
                    text.truncate(most);
                    Piece::Text(text)
                }
                None => Piece::Operator { operator: operator.clone(), most, places },
            }
        }
    }
}

fn look_up(field: &LogField, names: &[String], from: usize) -> [Option<usize>; 2] {
    let place = |name: &String| names.iter().position(|known| known == name).map(|index| from + index);
    [place(&field.name), field.otherwise.as_ref().and_then(place)]
}

fn write_text(piece: &Piece, entry: &Entry<'_>, out: &mut Vec<u8>) {
    let (operator, most, places) = match piece {
        Piece::Text(text) => return out.extend_from_slice(text),
        Piece::Operator { operator, most, places } => (operator, *most, places),
    };
    let begin = out.len();
    match value(operator, *places, entry, out) {
        Value::Unknown if out.len() == begin => out.push(b'-'),
        Value::Unknown => {}
        Value::Number(number) => out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
        Value::Text(text) => {
            // Control characters would let a client write lines of its own.
            let cut = &text[..text.len().min(most)];
            out.extend(cut.iter().map(|byte| if byte.is_ascii_control() { b' ' } else { *byte }));
        }
    }
    out.truncate(begin.saturating_add(most).min(out.len()));
}

/// One operator alone has its own type; anything else is a text.
fn write_member(pieces: &[Piece], entry: &Entry<'_>, out: &mut Vec<u8>) {
    let mut whole = Vec::new();
    if let [Piece::Operator { operator, places, .. }] = pieces {
        match value(operator, *places, entry, &mut whole) {
            Value::Number(number) => return out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
            Value::Unknown if whole.is_empty() => return out.extend_from_slice(b"null"),
            _ => whole.clear(),
        }
    }
    for piece in pieces {
        write_text(piece, entry, &mut whole);
    }
    out.push(b'"');
    escaped(out, &String::from_utf8_lossy(&whole));
    out.push(b'"');
}

/// What an operator stands for. What must be put together is written to `out`, and nothing is returned.
fn value<'a>(operator: &LogOperator, places: [Option<usize>; 2], entry: &Entry<'a>, out: &mut Vec<u8>) -> Value<'a> {
    use LogOperator as O;
    let known = |text: &'a [u8]| if text.is_empty() { Value::Unknown } else { Value::Text(text) };
    let put = |out: &mut Vec<u8>, text: std::fmt::Arguments<'_>| {
        let _ = out.write_fmt(text);
        Value::Unknown
    };
    match operator {
        O::StartTime(pieces) => {
            time(pieces, entry.started.into(), out);
            Value::Unknown
        }
        O::Request(_) | O::Response(_) => {
            let mut kept = places.into_iter().flatten().filter_map(|place| entry.kept.get(place)?.get());
            kept.next().map_or(Value::Unknown, Value::Text)
        }
        O::Path => known(entry.path.as_bytes()),
        O::Protocol => known(entry.protocol.as_bytes()),
        O::ResponseCode => Value::Number(entry.code.into()),
        O::ResponseCodeDetails => match entry.reason {
            Some(reason) => put(out, format_args!("{reason}")),
            None => Value::Unknown,
        },
        O::ResponseFlags => known(entry.flags_text().as_bytes()),
        O::GrpcStatus => match entry.grpc_status.map(|status| GRPC_NAMES.get(usize::from(status))) {
            Some(Some(name)) => Value::Text(name.as_bytes()),
            Some(None) => Value::Text(b"Unknown"),
            None => Value::Unknown,
        },
        O::GrpcStatusNumber => entry.grpc_status.map_or(Value::Unknown, |status| Value::Number(status.into())),
        O::BytesReceived => Value::Number(entry.bytes_received),
        O::BytesSent => Value::Number(entry.bytes_sent),
        O::Duration => Value::Number(millis(entry.duration)),
        O::ResponseDuration => entry.upstream.map_or(Value::Unknown, |upstream| Value::Number(millis(upstream))),
        O::UpstreamHost => match entry.endpoint {
            Some(endpoint) => put(out, format_args!("{endpoint}")),
            None => Value::Unknown,
        },
        O::UpstreamCluster => known(entry.cluster.as_bytes()),
        O::UpstreamRequestAttemptCount => Value::Number(entry.attempts.max(u32::from(entry.endpoint.is_some())).into()),
        O::PeerUriSan => known(entry.peer.as_bytes()),
        O::RouteName => known(entry.route.as_bytes()),
        O::ListenerName => known(entry.listener.as_bytes()),
        O::TrafficDirection => known(entry.direction.as_bytes()),
        O::DownstreamRemoteAddress => put(out, format_args!("{}", entry.downstream)),
        O::DownstreamRemoteAddressWithoutPort => put(out, format_args!("{}", entry.downstream.ip())),
        O::DownstreamRemotePort => Value::Number(entry.downstream.port().into()),
        O::TraceId => match entry.trace {
            Some(trace) => {
                out.extend_from_slice(&trace.to_hex());
                Value::Unknown
            }
            None => Value::Unknown,
        },
        // They were looked up when the format was compiled.
        O::Hostname | O::Environment(_) => Value::Unknown,
    }
}

/// As Envoy names them.
const GRPC_NAMES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn time(pieces: &[TimePiece], at: OffsetDateTime, out: &mut Vec<u8>) {
    let digits = |out: &mut Vec<u8>, value: u32, count: u32| {
        out.extend((0..count).rev().map(|place| b'0' + (value / 10_u32.pow(place) % 10) as u8));
    };
    for piece in pieces {
        match piece {
            TimePiece::Text(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            TimePiece::Year => digits(out, at.year().unsigned_abs(), 4),
            TimePiece::Month => digits(out, u8::from(at.month()).into(), 2),
            TimePiece::MonthName => out.extend_from_slice(MONTHS[usize::from(u8::from(at.month())) - 1].as_bytes()),
            TimePiece::Day => digits(out, at.day().into(), 2),
            TimePiece::Hour => digits(out, at.hour().into(), 2),
            TimePiece::Minute => digits(out, at.minute().into(), 2),
            TimePiece::Second => digits(out, at.second().into(), 2),
            TimePiece::UnixSeconds => out.extend_from_slice(itoa::Buffer::new().format(at.unix_timestamp()).as_bytes()),
            TimePiece::Fraction(count) => {
                let count = u32::from(*count).clamp(1, 9);
                digits(out, at.nanosecond() / 10_u32.pow(9 - count), count);
            }
            TimePiece::Zone => out.extend_from_slice(b"+0000"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::super::entry::Kept;
    use super::*;
    use crate::error::Reason;

    fn config(text: Option<&str>, json: &[(&str, &str)], filter: Option<&str>) -> AccessLog {
        AccessLog {
            path: None,
            buffer: outrigger_config::ByteSize::kib(64),
            filter: filter.map(|filter| filter.parse().unwrap()),
            text: text.map(|text| text.parse().unwrap()),
            json: json.iter().map(|(key, format)| ((*key).to_owned(), format.parse().unwrap())).collect(),
        }
    }

    /// A line, with `user-agent` as it is given and `x-version: 7` in the response.
    fn line(config: &AccessLog, agent: &[u8]) -> String {
        let (request, response) = fields(config);
        let shape = Shape::new(config, &request, &response);
        let kept: Vec<Kept> = request
            .iter()
            .chain(&response)
            .map(|name| {
                let mut kept = Kept::default();
                kept.set(match name.as_str() {
                    "user-agent" => Some(agent),
                    ":path" => Some(b"/a?b=c"),
                    "x-version" => Some(b"7"),
                    _ => None,
                });
                kept
            })
            .collect();
        let entry = Entry {
            started: UNIX_EPOCH + Duration::from_millis(1_767_323_045_678),
            duration: Duration::from_micros(12_999),
            method: "GET",
            path: "/a",
            protocol: "HTTP/1.1",
            code: 503,
            reason: Some(Reason::ConnectFailure),
            cluster: "shop",
            endpoint: Some(([10, 0, 0, 7], 80).into()),
            grpc_status: Some(14),
            kept: &kept,
            names: (&request, &response),
            ..Entry::of(([127, 0, 0, 1], 9).into())
        };
        let mut out = Vec::new();
        shape.write(&entry, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn text_lines_say_what_their_operators_stand_for() {
        for (format, told) in [
            ("%START_TIME% %START_TIME(%d/%b/%Y:%T %z)%", "2026-01-02T03:04:05.678Z 02/Jan/2026:03:04:05 +0000"),
            ("%START_TIME(%s.%6f)%", "1767323045.678000"),
            ("%REQ(:PATH)% %PATH% %PROTOCOL%", "/a?b=c /a HTTP/1.1"),
            ("%RESPONSE_CODE% %RESPONSE_FLAGS% %DURATION% %RESPONSE_DURATION%", "503 UF 12 -"),
            ("%RESPONSE_CODE_DETAILS%", "cannot connect to the endpoint"),
            ("%REQ(X-NONE?USER-AGENT)% %REQ(USER-AGENT):3% %RESP(X-VERSION)% %RESP(x)%", "curl/8 cur 7 -"),
            ("%UPSTREAM_HOST% %UPSTREAM_HOST:4% %UPSTREAM_CLUSTER%", "10.0.0.7:80 10.0 shop"),
            ("%GRPC_STATUS% %GRPC_STATUS_NUMBER% %ROUTE_NAME%", "Unavailable 14 -"),
            (
                "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT%",
                "127.0.0.1:9 127.0.0.1 9",
            ),
            ("100%%\n", "100%"),
        ] {
            assert_eq!(line(&config(Some(format), &[], None), b"curl/8"), format!("{told}\n"), "{format}");
        }
        let forged = line(&config(Some("%REQ(USER-AGENT)%"), &[], None), b"a\nforged\x1b[31m");
        assert_eq!(forged, "a forged [31m\n", "a client writes no lines");
    }

    #[test]
    fn members_have_their_own_types() {
        let members = [
            ("code", "%RESPONSE_CODE%"),
            ("agent", "%REQ(USER-AGENT)%"),
            ("none", "%ROUTE_NAME%"),
            ("at", "%START_TIME(%Y)%"),
            ("both", "%PROTOCOL% %ROUTE_NAME%"),
        ];
        let line = line(&config(None, &members, None), b"x\"\n\xff");
        assert_eq!(line.matches('\n').count(), 1);
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            read,
            serde_json::json!({
                "code": 503, "agent": "x\" \u{fffd}", "none": null, "at": "2026", "both": "HTTP/1.1 -",
            })
        );
    }

    #[test]
    fn fields_of_formats_and_filters_are_kept_once() {
        let filter = "request.headers['b'] == 'x' && response.headers['c'] != ''";
        let (request, response) = fields(&config(Some("%REQ(B?A)% %RESP(C)%"), &[], Some(filter)));
        assert_eq!((request, response), (vec!["a".to_owned(), "b".to_owned()], vec!["c".to_owned()]));
    }
}
