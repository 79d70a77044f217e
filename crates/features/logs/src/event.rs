//! A line becomes an event: one JSON object on one line.
//!
//! In: the bytes of a line and where it stood. Out: `{"message":…,"timestamp":…,"source":…,
//! "file":…,"offset":…,"id":…}`; behind a `json` transform the line's own members, then
//! `"outrigger":{"timestamp":…,"source":…,"file":…,"offset":…,"id":…}`. `timestamp` is when the
//! line was read; `id` names the file's content, over renames, and the line's first byte: who
//! gets an event twice knows it by that. A line that was cut has `"truncated":true` there.
//! Promise: a member named `outrigger` in the line is replaced by ours, the bytes of the
//! others are kept, and the line is not parsed into a tree for it.

use std::borrow::Cow;
use std::fmt::Write;

use outrigger_config::OnParseError;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use time::OffsetDateTime;

/// The member that tells where an event came from.
const METADATA: &str = "outrigger";

/// A line and where it stood.
pub(crate) struct Line<'a> {
    pub(crate) text: &'a str,
    pub(crate) truncated: bool,
    /// Byte of the file at which the line begins.
    pub(crate) offset: u64,
    pub(crate) source: &'a str,
    pub(crate) file: &'a str,
    /// The file's content.
    pub(crate) key: u64,
    pub(crate) now: &'a Timestamp,
}

/// When lines were read, written out once for many: RFC 3339, with milliseconds.
pub(crate) struct Timestamp(String);

impl Timestamp {
    pub(crate) fn now() -> Self {
        let at = OffsetDateTime::now_utc();
        let (hour, minute, second) = at.to_hms();
        let (year, month, day, millisecond) = (at.year(), u8::from(at.month()), at.day(), at.millisecond());
        Self(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z"))
    }
}

/// What a chain of transforms made of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Written,
    /// Written, but not as the transform wanted.
    Kept,
    Dropped,
}

/// Appends the event of a line, with a line feed; nothing when it is dropped.
pub(crate) fn write(line: &Line<'_>, parse_json: Option<OnParseError>, out: &mut String) -> Outcome {
    let Some(on_error) = parse_json else {
        plain(line, out);
        return Outcome::Written;
    };
    match (members(line.text), on_error) {
        (Some(members), _) => {
            structured(line, members, out);
            Outcome::Written
        }
        (None, OnParseError::Keep) => {
            plain(line, out);
            Outcome::Kept
        }
        (None, OnParseError::Drop) => Outcome::Dropped,
    }
}

/// The members of a line that is one JSON object: the text between its braces, and whether one is named as ours.
fn members(text: &str) -> Option<Members<'_>> {
    let text = text.trim_matches([' ', '\t', '\r']);
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let check: ObjectCheck = serde_json::from_str(text).ok()?;
    let others = if check.has_metadata { Some(serde_json::from_str(text).ok()?) } else { None };
    Some(Members { inner: inner.trim(), others })
}

struct Members<'a> {
    inner: &'a str,
    /// All but ours, when one is named as ours.
    others: Option<Others<'a>>,
}

/// Reads a JSON object without keeping anything of it.
struct ObjectCheck {
    has_metadata: bool,
}

impl<'de> Deserialize<'de> for ObjectCheck {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = ObjectCheck;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ObjectCheck, A::Error> {
                let mut has_metadata = false;
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    has_metadata |= key == METADATA;
                    map.next_value::<IgnoredAny>()?;
                }
                Ok(ObjectCheck { has_metadata })
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// The members of a JSON object that are not named as ours, as they are written: a number of any size, and members
/// nested to any depth, stay what they are.
struct Others<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Others<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Others<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Others<'de>, A::Error> {
                let mut others = Vec::new();
                while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                    let name: Cow<'_, str> = serde_json::from_str(key.get()).map_err(serde::de::Error::custom)?;
                    if name != METADATA {
                        others.push((key, value));
                    }
                }
                Ok(Others(others))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

fn structured(line: &Line<'_>, members: Members<'_>, out: &mut String) {
    out.push('{');
    match members.others {
        None if members.inner.is_empty() => {}
        None => {
            out.push_str(members.inner);
            out.push(',');
        }
        Some(Others(others)) => {
            for (key, value) in others {
                out.push_str(key.get());
                out.push(':');
                out.push_str(value.get());
                out.push(',');
            }
        }
    }
    let _ = write!(out, "\"{METADATA}\":{{");
    place(line, out);
    out.push_str("}}\n");
}

fn plain(line: &Line<'_>, out: &mut String) {
    out.push_str("{\"message\":");
    string(line.text, out);
    out.push(',');
    place(line, out);
    out.push_str("}\n");
}

fn place(line: &Line<'_>, out: &mut String) {
    out.push_str("\"timestamp\":\"");
    out.push_str(&line.now.0);
    out.push_str("\",\"source\":");
    string(line.source, out);
    out.push_str(",\"file\":");
    string(line.file, out);
    out.push_str(",\"offset\":");
    number(line.offset, out);
    out.push_str(",\"id\":\"");
    for shift in (0..16).rev() {
        let digit = (line.key >> (shift * 4)) & 0xf;
        out.push(char::from(b"0123456789abcdef"[digit as usize]));
    }
    out.push('-');
    number(line.offset, out);
    out.push('"');
    if line.truncated {
        out.push_str(",\"truncated\":true");
    }
}

/// Twice as fast as `write!`, and there are two of them in every event.
fn number(mut number: u64, out: &mut String) {
    let mut digits = [b'0'; 20];
    let mut from = digits.len();
    loop {
        from -= 1;
        digits[from] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    digits[from..].iter().for_each(|digit| out.push(char::from(*digit)));
}

fn string(text: &str, out: &mut String) {
    out.push('"');
    let mut clean = 0;
    for (index, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.push_str(&text[clean..index]);
        clean = index + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\t' => out.push_str("\\t"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            other => {
                let _ = write!(out, "\\u{other:04x}");
            }
        }
    }
    out.push_str(&text[clean..]);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    static NOW: std::sync::LazyLock<Timestamp> = std::sync::LazyLock::new(|| Timestamp("T".to_owned()));

    fn line(text: &str) -> Line<'_> {
        Line { text, truncated: false, offset: 7, source: "app", file: "/var/log/a.log", key: 0xabc, now: &NOW }
    }

    fn event(text: &str, parse: Option<OnParseError>) -> (Outcome, String) {
        let mut out = String::new();
        let outcome = write(&line(text), parse, &mut out);
        (outcome, out)
    }

    #[test]
    fn members_stand_beside_where_they_came_from() {
        let place = r#""outrigger":{"timestamp":"T","source":"app","file":"/var/log/a.log","offset":7,"id":"0000000000000abc-7"}"#;
        for (name, text, expected) in [
            ("object", r#"{"a":1,"b":"x"}"#, format!("{{\"a\":1,\"b\":\"x\",{place}}}\n")),
            ("empty", "{ }", format!("{{{place}}}\n")),
            ("ours is replaced", r#"{"outrigger":"forged","a":{}}"#, format!("{{\"a\":{{}},{place}}}\n")),
            ("ours is replaced, escaped", r#"{"\u006futrigger":1}"#, format!("{{{place}}}\n")),
            (
                "others keep their bytes and order",
                r#"{"z":1e999,"\u0061":12345678901234567890123, "outrigger":{}, "a":1.10}"#,
                format!("{{\"z\":1e999,\"\\u0061\":12345678901234567890123,\"a\":1.10,{place}}}\n"),
            ),
        ] {
            assert_eq!(event(text, Some(OnParseError::Keep)), (Outcome::Written, expected), "{name}");
        }
    }

    #[test]
    fn depth_costs_no_member() {
        let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
        let (outcome, written) = event(&format!("{{\"outrigger\":{deep},\"a\":{deep}}}"), Some(OnParseError::Drop));
        assert_eq!(outcome, Outcome::Written);
        assert!(written.starts_with(&format!("{{\"a\":{deep},\"outrigger\":{{\"timestamp\"")), "{written}");
    }

    #[test]
    fn what_is_no_object_is_kept_or_dropped() {
        for text in ["plain", "[1]", "{\"a\":}", "{\"a\":1} x", "{", "\"{}\"", ""] {
            let (outcome, written) = event(text, Some(OnParseError::Keep));
            let read: serde_json::Value = serde_json::from_str(&written).unwrap();
            assert_eq!((outcome, read["message"].as_str()), (Outcome::Kept, Some(text)));
            assert_eq!(event(text, Some(OnParseError::Drop)), (Outcome::Dropped, String::new()));
        }
    }

    proptest! {
        #[test]
        fn an_event_is_one_line_of_json(text in any::<String>()) {
            for parse in [None, Some(OnParseError::Keep)] {
                let (_, written) = event(&text, parse);
                prop_assert_eq!(written.matches('\n').count(), 1);
                let read: serde_json::Value = serde_json::from_str(&written).unwrap();
                prop_assert!(read["message"] == text.as_str() || read["outrigger"]["offset"] == 7);
            }
        }
    }
}
