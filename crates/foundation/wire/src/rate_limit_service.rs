//! The messages of Envoy's rate limit service ([rls.proto], v3).
//!
//! In: a request's descriptors, or a service's answer. Out: a `RateLimitRequest`, or what the service decided. Promise:
//! text that is not UTF-8 is made so; an answer that cannot be read is none, and of a long one no more is kept than told.
//!
//! [rls.proto]: https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/ratelimit/v3/rls.proto

use std::borrow::Cow;

use crate::protobuf::{Value, fields, put_bytes, put_number};

/// Where a service is asked.
pub const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// Statuses and headers of an answer that are looked at; a service sends one status for each descriptor.
const MOST_PARTS: usize = 32;

/// One entry of a descriptor: its key and its value.
pub type Entry<'a> = (Cow<'a, str>, Cow<'a, [u8]>);

/// Writes a `RateLimitRequest` for one hit.
pub fn write_request(domain: &str, descriptors: &[Vec<Entry<'_>>], out: &mut Vec<u8>) {
    put_bytes(out, 1, domain.as_bytes());
    let (mut one, mut entry) = (Vec::new(), Vec::new());
    for entries in descriptors {
        one.clear();
        for (key, value) in entries {
            entry.clear();
            put_bytes(&mut entry, 1, key.as_bytes());
            match str::from_utf8(value) {
                Ok(_) => put_bytes(&mut entry, 2, value),
                Err(_) => put_bytes(&mut entry, 2, String::from_utf8_lossy(value).as_bytes()),
            }
            put_bytes(&mut one, 1, &entry);
        }
        put_bytes(out, 2, &one);
    }
    put_number(out, 3, 1);
}

/// What a service decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The request may go on.
    Ok,
    /// It may not.
    OverLimit,
}

/// What a service says of one descriptor that has a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// So many requests.
    pub requests: u32,
    /// In so many seconds; 0 when the service does not say.
    pub window: u32,
    /// The limit's name, or nothing.
    pub name: String,
    /// Requests that are left.
    pub remaining: u32,
    /// Seconds until they are back.
    pub reset: u64,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether the request may go on.
    pub code: Code,
    /// Of the descriptors that have a limit.
    pub statuses: Vec<Status>,
    /// For the client's answer.
    pub response_headers: Vec<(String, Vec<u8>)>,
    /// For the request, when it goes on.
    pub request_headers: Vec<(String, Vec<u8>)>,
    /// What the client is told when it may not; empty means that the service leaves it to us.
    pub body: Vec<u8>,
}

/// Reads a `RateLimitResponse`; `None` when it says neither yes nor no.
pub fn read_response(message: &[u8]) -> Option<Answer> {
    let mut code = None;
    let (mut statuses, mut response_headers, mut request_headers) = (Vec::new(), Vec::new(), Vec::new());
    let mut body = &[][..];
    for (field, value) in fields(message) {
        match (field, value) {
            (1, Value::Number(1)) => code = Some(Code::Ok),
            (1, Value::Number(2)) => code = Some(Code::OverLimit),
            (1, Value::Number(_)) => code = None,
            (2, Value::Bytes(status)) if statuses.len() < MOST_PARTS => statuses.extend(read_status(status)),
            (3, Value::Bytes(header)) if response_headers.len() < MOST_PARTS => {
                response_headers.extend(read_header(header));
            }
            (4, Value::Bytes(header)) if request_headers.len() < MOST_PARTS => {
                request_headers.extend(read_header(header));
            }
            (5, Value::Bytes(raw)) => body = raw,
            _ => {}
        }
    }
    Some(Answer { code: code?, statuses, response_headers, request_headers, body: body.to_vec() })
}

/// Of a `DescriptorStatus`, when it has a limit.
fn read_status(message: &[u8]) -> Option<Status> {
    let mut status = Status { requests: 0, window: 0, name: String::new(), remaining: 0, reset: 0 };
    let mut limited = false;
    for (field, value) in fields(message) {
        match (field, value) {
            (2, Value::Bytes(limit)) => {
                limited = true;
                for (field, value) in fields(limit) {
                    match (field, value) {
                        (1, Value::Number(requests)) => status.requests = saturated(requests),
                        (2, Value::Number(unit)) => status.window = seconds(unit),
                        (3, Value::Bytes(name)) => status.name = String::from_utf8_lossy(name).into_owned(),
                        _ => {}
                    }
                }
            }
            (3, Value::Number(remaining)) => status.remaining = saturated(remaining),
            (4, Value::Bytes(reset)) => {
                let told = fields(reset).find_map(|field| match field {
                    (1, Value::Number(seconds)) => Some(seconds),
                    _ => None,
                });
                // A negative time is a large number here.
                status.reset = told.filter(|seconds| i64::try_from(*seconds).is_ok()).unwrap_or(0);
            }
            _ => {}
        }
    }
    limited.then_some(status)
}

fn saturated(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// `RateLimitResponse.RateLimit.Unit` in seconds, as Envoy counts months and years.
fn seconds(unit: u64) -> u32 {
    const DAY: u32 = 24 * 60 * 60;
    match unit {
        1 => 1,
        2 => 60,
        3 => 60 * 60,
        4 => DAY,
        5 => 30 * DAY,
        6 => 365 * DAY,
        7 => 7 * DAY,
        _ => 0,
    }
}

/// A `HeaderValue`: its value as text, or raw.
fn read_header(message: &[u8]) -> Option<(String, Vec<u8>)> {
    let (mut name, mut value) = (None, Vec::new());
    for (field, part) in fields(message) {
        match (field, part) {
            (1, Value::Bytes(key)) => name = String::from_utf8(key.to_vec()).ok(),
            (2 | 3, Value::Bytes(said)) if !said.is_empty() => value = said.to_vec(),
            _ => {}
        }
    }
    Some((name.filter(|name| !name.is_empty())?, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_written_as_envoy_writes_it() {
        let entry = |key: &'static str, value: &'static [u8]| (Cow::Borrowed(key), Cow::Borrowed(value));
        let mut message = Vec::new();
        write_request("d", &[vec![entry("k", b"v")], vec![entry("a", b"\xff"), entry("b", b"")]], &mut message);
        let first = [0x12, 8, 0x0a, 6, 0x0a, 1, b'k', 0x12, 1, b'v'];
        let second = [0x12, 17, 0x0a, 8, 0x0a, 1, b'a', 0x12, 3, 0xef, 0xbf, 0xbd, 0x0a, 5, 0x0a, 1, b'b', 0x12, 0];
        assert_eq!(message, [&[0x0a, 1, b'd'][..], &first, &second, &[0x18, 1]].concat());
    }

    #[test]
    fn an_answer_is_read() {
        let (mut limit, mut status, mut reset) = (Vec::new(), Vec::new(), Vec::new());
        put_number(&mut limit, 1, 10);
        put_number(&mut limit, 2, 2);
        put_bytes(&mut limit, 3, b"per-user");
        put_number(&mut reset, 1, 17);
        put_number(&mut status, 1, 2);
        put_bytes(&mut status, 2, &limit);
        put_number(&mut status, 3, 4);
        put_bytes(&mut status, 4, &reset);
        let (mut header, mut raw) = (Vec::new(), Vec::new());
        put_bytes(&mut header, 1, b"x-a");
        put_bytes(&mut header, 2, b"1");
        put_bytes(&mut raw, 1, b"x-b");
        put_bytes(&mut raw, 3, b"\xff");
        let mut message = Vec::new();
        put_number(&mut message, 1, 2);
        put_bytes(&mut message, 2, &status);
        put_bytes(&mut message, 2, &[0x08, 1]);
        put_bytes(&mut message, 3, &header);
        put_bytes(&mut message, 4, &raw);
        put_bytes(&mut message, 5, b"later");
        let expected = Answer {
            code: Code::OverLimit,
            statuses: vec![Status { requests: 10, window: 60, name: "per-user".to_owned(), remaining: 4, reset: 17 }],
            response_headers: vec![("x-a".to_owned(), b"1".to_vec())],
            request_headers: vec![("x-b".to_owned(), b"\xff".to_vec())],
            body: b"later".to_vec(),
        };
        assert_eq!(read_response(&message), Some(expected));
        for cut in 0..message.len() {
            read_response(&message[..cut]);
        }
    }

    #[test]
    fn what_says_nothing_is_no_answer() {
        for (name, message) in [("empty", &[][..]), ("unknown", &[0x08, 0]), ("of the future", &[0x08, 9])] {
            assert_eq!(read_response(message), None, "{name}");
        }
        assert_eq!(read_response(&[0x08, 1]).map(|answer| answer.code), Some(Code::Ok));
    }

    #[test]
    fn an_answer_does_not_fill_the_memory() {
        let mut message = vec![0x08, 1];
        for _ in 0..1000 {
            put_bytes(&mut message, 3, &[0x0a, 1, b'x']);
            put_bytes(&mut message, 2, &[0x12, 2, 0x08, 1]);
        }
        let answer = read_response(&message).unwrap();
        assert_eq!((answer.statuses.len(), answer.response_headers.len()), (MOST_PARTS, MOST_PARTS));
    }
}
