//! The form of a line: text for people, JSON for machines.
//!
//! Promise: a value cannot end its line or imitate a field; an error shows its causes.

use std::error::Error;
use std::fmt::{self, Write};
use std::time::SystemTime;

use time::OffsetDateTime;
use tracing::Level;
use tracing::field::{Field, Visit};

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Text { colour: bool },
    Json,
}

/// The fields of one event.
#[derive(Default)]
pub(super) struct Fields {
    message: String,
    component: Option<String>,
    /// Name, value, and whether the value is a JSON literal.
    others: Vec<(&'static str, String, bool)>,
}

impl Fields {
    fn take(&mut self, field: &Field, value: String, literal: bool) {
        match field.name() {
            "message" => self.message = value,
            "component" => self.component = Some(value),
            name => self.others.push((name, value, literal)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, format!("{value:?}"), false);
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.to_owned(), false);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.take(field, value.to_string(), true);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.take(field, value.to_string(), true);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.take(field, value.to_string(), true);
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.take(field, value.to_string(), value.is_finite());
    }
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        self.take(field, text, false);
    }
}

/// Writes an event as one line.
pub(super) fn format(style: Style, at: SystemTime, level: Level, target: &str, fields: &Fields) -> Vec<u8> {
    // Our crates are named after their pillar; where the event does not say, the crate does.
    let module = target.split("::").next().unwrap_or(target);
    let component = fields.component.as_deref().unwrap_or_else(|| module.trim_start_matches("outrigger_"));
    match style {
        Style::Json => json(at, level, component, fields),
        Style::Text { colour } => text(at, level, component, fields, colour),
    }
    .into_bytes()
}

/// Writes what a rate limit held back.
pub(super) fn suppressed(style: Style, at: SystemTime, level: Level, target: String, count: u64) -> Vec<u8> {
    let fields = Fields {
        message: "events like the last ones were held back".to_owned(),
        component: None,
        others: vec![("suppressed", count.to_string(), true)],
    };
    format(style, at, level, &target, &fields)
}

fn text(at: SystemTime, level: Level, component: &str, fields: &Fields, colour: bool) -> String {
    let (paint, dim, end) = match (colour, level) {
        (false, _) => ("", "", ""),
        (true, Level::ERROR) => ("\x1b[31m", "\x1b[2m", "\x1b[0m"),
        (true, Level::WARN) => ("\x1b[33m", "\x1b[2m", "\x1b[0m"),
        (true, Level::INFO) => ("\x1b[32m", "\x1b[2m", "\x1b[0m"),
        (true, _) => ("\x1b[34m", "\x1b[2m", "\x1b[0m"),
    };
    let mut line = format!("{dim}{}{end} {paint}{level:>5}{end} {component}: ", timestamp(at));
    escape_controls(&fields.message, &mut line);
    for (name, value, _) in &fields.others {
        let _ = write!(line, " {dim}{name}={end}");
        let plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '=' | '\\');
        if !value.is_empty() && value.chars().all(plain) {
            line.push_str(value);
        } else {
            json_string(value, &mut line);
        }
    }
    line.push('\n');
    line
}

fn json(at: SystemTime, level: Level, component: &str, fields: &Fields) -> String {
    let mut line = format!(r#"{{"time":"{}","level":"{}","component":"#, timestamp(at), level.as_str().to_lowercase());
    json_string(component, &mut line);
    line.push_str(r#","message":"#);
    json_string(&fields.message, &mut line);
    for (name, value, literal) in &fields.others {
        let _ = write!(line, r#","{name}":"#);
        if *literal { line.push_str(value) } else { json_string(value, &mut line) }
    }
    line.push_str("}\n");
    line
}

/// RFC 3339 in UTC with milliseconds.
fn timestamp(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = at.to_hms();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", at.millisecond())
}

fn escape_controls(text: &str, out: &mut String) {
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
}

fn json_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            // C1 controls too: some terminals obey them.
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    fn event(message: &str, value: &str) -> Fields {
        Fields {
            message: message.to_owned(),
            component: Some("logs".to_owned()),
            others: vec![("path", value.to_owned(), false), ("count", "3".to_owned(), true)],
        }
    }

    fn line(style: Style, fields: &Fields) -> String {
        let at = UNIX_EPOCH + Duration::from_millis(1_767_323_045_678);
        String::from_utf8(format(style, at, Level::INFO, "outrigger_logs::tail", fields)).unwrap()
    }

    #[test]
    fn lines_have_the_documented_form() {
        let plain = Style::Text { colour: false };
        for (name, style, value, expected) in [
            ("text", plain, "/a", "2026-01-02T03:04:05.678Z  INFO logs: file opened path=/a count=3\n"),
            ("quoted", plain, "/a b", "2026-01-02T03:04:05.678Z  INFO logs: file opened path=\"/a b\" count=3\n"),
            (
                "json",
                Style::Json,
                "/a\"b",
                "{\"time\":\"2026-01-02T03:04:05.678Z\",\"level\":\"info\",\"component\":\"logs\",\"message\":\"file opened\",\"path\":\"/a\\\"b\",\"count\":3}\n",
            ),
        ] {
            assert_eq!(line(style, &event("file opened", value)), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_line_is_one_line_and_json_is_json(message in "\\PC*|[\\x00-\\x20\\x7f-\\x9f\"\\\\]*", value in any::<String>()) {
            let fields = event(&message, &value);
            for style in [Style::Json, Style::Text { colour: false }] {
                let line = line(style, &fields);
                prop_assert!(line.ends_with('\n') && !line[..line.len() - 1].chars().any(char::is_control));
                if style == Style::Json {
                    let read: serde_json::Value = serde_json::from_str(&line).unwrap();
                    prop_assert_eq!(read["message"].as_str().unwrap(), &message);
                    prop_assert_eq!(read["path"].as_str().unwrap(), &value);
                }
            }
        }
    }
}
