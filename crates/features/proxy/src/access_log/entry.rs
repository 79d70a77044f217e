//! What is known of a request at its end, and the line that tells all of it.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use outrigger_config::log_line::{Attribute, Fact, Facts};
use outrigger_telemetry::trace::TraceId;
use outrigger_traffic::Withheld;
use time::OffsetDateTime;

use crate::error::Reason;

/// The flag of a request that failed and would have been sent again, had it been allowed.
const RETRIES_EXHAUSTED: &str = "URX";
/// Envoy's flag for one that was not sent again because too many others were.
const OVERFLOW: &str = "UO";

/// What a line says. Fields from the client are bytes as they came.
pub(crate) struct Entry<'a> {
    pub(crate) started: SystemTime,
    pub(crate) duration: Duration,
    /// From the request's sending to the response's headers.
    pub(crate) upstream: Option<Duration>,
    pub(crate) direction: &'a str,
    pub(crate) listener: &'a str,
    pub(crate) method: &'a str,
    pub(crate) host: &'a [u8],
    pub(crate) path: &'a str,
    pub(crate) protocol: &'a str,
    pub(crate) code: u16,
    pub(crate) reason: Option<Reason>,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) route: &'a str,
    pub(crate) cluster: &'a str,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) peer: &'a str,
    pub(crate) downstream: SocketAddr,
    pub(crate) request_id: &'a [u8],
    pub(crate) user_agent: &'a [u8],
    pub(crate) retried: bool,
    /// Tries, where the route asks for more than one.
    pub(crate) attempts: u32,
    /// Why another one was not made.
    pub(crate) withheld: Option<Withheld>,
    pub(crate) trace: Option<TraceId>,
    pub(crate) grpc_status: Option<u8>,
    /// Fields that the log's format or filter needs.
    pub(crate) kept: &'a [Kept],
    /// The names of `kept`: the request's, then the response's.
    pub(crate) names: (&'a [String], &'a [String]),
    /// Any number, for lines that are told by chance.
    pub(crate) chance: u32,
}

/// A header field's value as it came, or that there was none.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) is_there: bool,
    pub(crate) value: Vec<u8>,
}

impl Kept {
    pub(crate) fn set(&mut self, value: Option<&[u8]>) {
        self.is_there = value.is_some();
        self.value.clear();
        self.value.extend_from_slice(value.unwrap_or_default());
    }

    pub(crate) fn get(&self) -> Option<&[u8]> {
        self.is_there.then_some(&self.value)
    }
}

impl Entry<'_> {
    /// An entry that knows only where the client is.
    pub(crate) fn of(downstream: SocketAddr) -> Self {
        Self {
            started: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
            upstream: None,
            direction: "",
            listener: "",
            method: "",
            host: b"",
            path: "",
            protocol: "",
            code: 0,
            reason: None,
            bytes_received: 0,
            bytes_sent: 0,
            route: "",
            cluster: "",
            endpoint: None,
            peer: "",
            downstream,
            request_id: b"",
            user_agent: b"",
            retried: false,
            attempts: 0,
            withheld: None,
            trace: None,
            grpc_status: None,
            kept: &[],
            names: (&[], &[]),
            chance: 0,
        }
    }

    /// Its response flags, or nothing.
    pub(crate) fn flags(&self) -> [&'static str; 2] {
        let withheld = match self.withheld {
            None => "",
            Some(Withheld::Overflow) => OVERFLOW,
            Some(_) => RETRIES_EXHAUSTED,
        };
        [self.reason.map_or("", Reason::flag), withheld]
    }

    /// The response flags as one text, as Envoy writes them.
    pub(super) fn flags_text(&self) -> &'static str {
        let flag = self.reason.map_or("", Reason::flag);
        match (flag, self.withheld) {
            (flag, None) => flag,
            ("", Some(Withheld::Overflow)) => OVERFLOW,
            ("UF", Some(Withheld::Overflow)) => "UF,UO",
            ("UC", Some(Withheld::Overflow)) => "UC,UO",
            ("UT", Some(Withheld::Overflow)) => "UT,UO",
            ("UR", Some(Withheld::Overflow)) => "UR,UO",
            ("UPE", Some(Withheld::Overflow)) => "UPE,UO",
            (flag, Some(Withheld::Overflow)) => flag,
            ("", Some(_)) => RETRIES_EXHAUSTED,
            ("UF", Some(_)) => "UF,URX",
            ("UC", Some(_)) => "UC,URX",
            ("UT", Some(_)) => "UT,URX",
            ("UR", Some(_)) => "UR,URX",
            ("UPE", Some(_)) => "UPE,URX",
            ("UO", Some(_)) => "UO,URX",
            ("UH", Some(_)) => "UH,URX",
            (flag, Some(_)) => flag,
        }
    }

    /// All that is known, as a JSON object.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"time\":\"");
        timestamp(out, self.started);
        out.push(b'"');
        for (name, value) in [("direction", self.direction), ("listener", self.listener)] {
            text(out, name, value.as_bytes());
        }
        for (name, value) in [
            ("method", self.method.as_bytes()),
            ("host", self.host),
            ("path", self.path.as_bytes()),
            ("protocol", self.protocol.as_bytes()),
        ] {
            text_if_any(out, name, value);
        }
        number(out, "code", u64::from(self.code));
        text_if_any(out, "flags", self.flags_text().as_bytes());
        if let Some(reason) = self.reason {
            text(out, "reason", reason.to_string().as_bytes());
        }
        number(out, "bytes_received", self.bytes_received);
        number(out, "bytes_sent", self.bytes_sent);
        milliseconds(out, "duration_ms", self.duration);
        if let Some(upstream) = self.upstream {
            milliseconds(out, "upstream_ms", upstream);
        }
        for (name, value) in [
            ("route", self.route.as_bytes()),
            ("cluster", self.cluster.as_bytes()),
            ("peer", self.peer.as_bytes()),
            ("request_id", self.request_id),
            ("user_agent", self.user_agent),
        ] {
            text_if_any(out, name, value);
        }
        if let Some(endpoint) = self.endpoint {
            let _ = write!(out, ",\"endpoint\":\"{endpoint}\"");
        }
        let _ = write!(out, ",\"downstream\":\"{}\"", self.downstream);
        if let Some(trace) = self.trace {
            text(out, "trace_id", &trace.to_hex());
        }
        if self.retried {
            out.extend_from_slice(b",\"retried\":true");
        }
        if self.attempts > 1 {
            number(out, "attempts", self.attempts.into());
        }
        if let Some(withheld) = self.withheld {
            text(out, "retry_withheld", withheld.as_str().as_bytes());
        }
        if let Some(status) = self.grpc_status {
            number(out, "grpc_status", status.into());
        }
        out.extend_from_slice(b"}\n");
    }

    fn kept(&self, names: &[String], from: usize, name: &str) -> Fact<'_> {
        let index = names.iter().position(|known| known == name);
        let value = index.and_then(|index| self.kept.get(from + index)?.get());
        value.map_or(Fact::Unknown, Fact::Text)
    }
}

impl Facts for Entry<'_> {
    fn fact(&self, attribute: &Attribute) -> Fact<'_> {
        let known = |value: &[u8]| !value.is_empty();
        let text = match attribute {
            Attribute::Method => self.method.as_bytes(),
            Attribute::Path => self.path.as_bytes(),
            Attribute::Host => self.host,
            Attribute::UserAgent => self.user_agent,
            Attribute::RequestId => self.request_id,
            Attribute::Protocol => self.protocol.as_bytes(),
            // No flag is a text of its own, so that `response.flags == ''` holds.
            Attribute::Flags => return Fact::Text(self.flags_text().as_bytes()),
            Attribute::Route => self.route.as_bytes(),
            Attribute::Cluster => self.cluster.as_bytes(),
            Attribute::Listener => self.listener.as_bytes(),
            Attribute::Direction => self.direction.as_bytes(),
            Attribute::Peer => self.peer.as_bytes(),
            Attribute::RequestHeader(name) => return self.kept(self.names.0, 0, name),
            Attribute::ResponseHeader(name) => return self.kept(self.names.1, self.names.0.len(), name),
            Attribute::Code => return Fact::Number(self.code.into()),
            Attribute::GrpcStatus => {
                return self.grpc_status.map_or(Fact::Unknown, |status| Fact::Number(status.into()));
            }
            Attribute::RequestSize => return Fact::Number(self.bytes_received),
            Attribute::ResponseSize => return Fact::Number(self.bytes_sent),
            Attribute::Attempts => return Fact::Number(self.attempts.max(1).into()),
            Attribute::Duration => {
                return Fact::Number(u64::try_from(self.duration.as_micros()).unwrap_or(u64::MAX));
            }
        };
        if known(text) { Fact::Text(text) } else { Fact::Unknown }
    }

    fn chance(&self) -> f64 {
        f64::from(self.chance) / (f64::from(u32::MAX) + 1.0)
    }
}

/// RFC 3339 in UTC, to the millisecond.
pub(super) fn timestamp(out: &mut Vec<u8>, at: SystemTime) {
    let at = OffsetDateTime::from(at);
    let (hour, minute, second) = at.to_hms();
    let digits = |out: &mut Vec<u8>, value: u32, count: u32| {
        (0..count).rev().for_each(|place| out.push(b'0' + (value / 10_u32.pow(place) % 10) as u8));
    };
    digits(out, at.year().unsigned_abs(), 4);
    for (before, value) in
        [(b'-', u8::from(at.month())), (b'-', at.day()), (b'T', hour), (b':', minute), (b':', second)]
    {
        out.push(before);
        digits(out, u32::from(value), 2);
    }
    out.push(b'.');
    digits(out, u32::from(at.millisecond()), 3);
    out.push(b'Z');
}

fn key(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn number(out: &mut Vec<u8>, name: &str, value: u64) {
    key(out, name);
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// To the microsecond.
fn milliseconds(out: &mut Vec<u8>, name: &str, value: Duration) {
    let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
    number(out, name, micros / 1000);
    let rest = (micros % 1000) as u16;
    out.push(b'.');
    [rest / 100, rest / 10 % 10, rest % 10].iter().for_each(|digit| out.push(b'0' + *digit as u8));
}

fn text_if_any(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    if !value.is_empty() {
        text(out, name, value);
    }
}

fn text(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    key(out, name);
    quoted(out, value);
}

/// Writes a JSON string.
pub(crate) fn quoted(out: &mut Vec<u8>, value: &[u8]) {
    out.push(b'"');
    // Nearly all values are plain, and copied as they are.
    if value.iter().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')) {
        out.extend_from_slice(value);
    } else {
        escaped(out, &String::from_utf8_lossy(value));
    }
    out.push(b'"');
}

pub(super) fn escaped(out: &mut Vec<u8>, value: &str) {
    for c in value.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn entry<'a>(path: &'a str, user_agent: &'a [u8]) -> Entry<'a> {
        Entry {
            started: UNIX_EPOCH + Duration::from_millis(1_767_323_045_678),
            duration: Duration::from_micros(1_005),
            direction: "inbound",
            listener: "in",
            method: "GET",
            host: b"shop",
            path,
            code: 200,
            user_agent,
            ..Entry::of(([127, 0, 0, 1], 9).into())
        }
    }

    #[test]
    fn a_line_is_one_json_object_whatever_the_client_sent() {
        let mut out = Vec::new();
        entry("/a\"\\b", b"x\n{\"forged\":1}\xc2\x85\xff").write(&mut out);
        let line = String::from_utf8(out).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["time"], "2026-01-02T03:04:05.678Z");
        assert_eq!((read["path"].as_str(), read["code"].as_u64()), (Some("/a\"\\b"), Some(200)));
        assert_eq!(read["user_agent"], "x\n{\"forged\":1}\u{85}\u{fffd}");
        assert_eq!(read["duration_ms"], 1.005);
        assert!(read.get("request_id").is_none(), "what is not known is left out: {line}");
    }
}
