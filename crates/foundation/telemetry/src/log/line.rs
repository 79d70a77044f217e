//! The form of a line: text for people, JSON for machines.
//!
//! Promise: a value cannot end its line or imitate a field; an error shows its causes; a
//! line is never longer than [`MAX_LINE`] and still whole JSON then, because values are
//! shortened (they end with `…`) before the line is written.

use std::error::Error;
use std::fmt::{self, Write};
use std::time::SystemTime;

use time::OffsetDateTime;
use tracing::Level;
use tracing::field::{Field, Visit};

use super::limit::Sum;
use super::writer::MAX_LINE;

/// The most a value keeps; longer ones are cut while they are formatted.
const MAX_VALUE: usize = 2048;
/// How short values are made, before whole fields are left out.
const MIN_VALUE: usize = 64;
/// Causes of an error that are shown.
const MAX_CAUSES: usize = 16;

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
            name => self.others.push((name.strip_prefix("r#").unwrap_or(name), value, literal)),
        }
    }

    /// Cuts every value.
    fn shorten(&mut self, length: usize) {
        let texts = self.others.iter_mut().map(|(_, value, _)| value);
        for text in texts.chain([&mut self.message]).chain(&mut self.component).filter(|text| text.len() > length) {
            text.truncate(text.floor_char_boundary(length));
            text.push('…');
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, capped(format_args!("{value:?}")), false);
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, capped(format_args!("{value}")), false);
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
        self.take(field, capped(format_args!("{}", Chain(value))), false);
    }
}

/// An error with its causes, each behind a colon.
pub(super) struct Chain<'a>(pub(super) &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = capped(format_args!("{}", self.0));
        f.write_str(&last)?;
        let mut cause = self.0.source();
        for _ in 0..MAX_CAUSES {
            let Some(error) = cause else { break };
            let text = capped(format_args!("{error}"));
            // Some errors repeat their cause in their own text.
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        Ok(())
    }
}

/// Formats at most [`MAX_VALUE`] bytes; what formats itself endlessly is stopped.
fn capped(arguments: fmt::Arguments<'_>) -> String {
    struct Capped(String);
    impl Write for Capped {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = MAX_VALUE - self.0.len().min(MAX_VALUE);
            if text.len() <= room {
                self.0.push_str(text);
                return Ok(());
            }
            self.0.push_str(&text[..text.floor_char_boundary(room)]);
            self.0.push('…');
            Err(fmt::Error)
        }
    }
    let mut text = Capped(String::new());
    let _ = text.write_fmt(arguments);
    text.0
}

/// Writes an event as one line.
pub(super) fn format(style: Style, at: SystemTime, level: Level, target: &str, mut fields: Fields) -> Vec<u8> {
    if fields.component.is_none() {
        // Our crates are named after their pillar; where the event does not say, the crate does.
        let module = target.split("::").next().unwrap_or(target);
        fields.component = Some(module.strip_prefix("outrigger_").unwrap_or(module).to_owned());
    }
    let mut length = MAX_VALUE;
    loop {
        let line = match style {
            Style::Json => json(at, level, &fields),
            Style::Text { colour } => text(at, level, &fields, colour),
        };
        if line.len() <= MAX_LINE {
            return line.into_bytes();
        }
        if length > MIN_VALUE {
            length /= 2;
            fields.shorten(length);
        } else if fields.others.pop().is_none() {
            // 64 bytes each of message and component always fit, escaped or not.
            return Vec::new();
        }
    }
}

/// Writes what a rate limit held back.
pub(super) fn suppressed(style: Style, at: SystemTime, sum: &Sum) -> Vec<u8> {
    let place = sum.line.map_or_else(|| sum.target.to_owned(), |line| format!("{}:{line}", sum.target));
    let fields = Fields {
        message: "events like the last ones from this place were held back".to_owned(),
        component: None,
        others: vec![("suppressed", sum.suppressed.to_string(), true), ("place", place, false)],
    };
    format(style, at, sum.level, sum.target, fields)
}

fn text(at: SystemTime, level: Level, fields: &Fields, colour: bool) -> String {
    let (paint, dim, end) = match (colour, level) {
        (false, _) => ("", "", ""),
        (true, Level::ERROR) => ("\x1b[31m", "\x1b[2m", "\x1b[0m"),
        (true, Level::WARN) => ("\x1b[33m", "\x1b[2m", "\x1b[0m"),
        (true, Level::INFO) => ("\x1b[32m", "\x1b[2m", "\x1b[0m"),
        (true, _) => ("\x1b[34m", "\x1b[2m", "\x1b[0m"),
    };
    let mut line = format!("{dim}{}{end} {paint}{level:>5}{end} ", timestamp(at));
    escape_controls(fields.component.as_deref().unwrap_or_default(), &mut line);
    line.push_str(": ");
    escape_controls(&fields.message, &mut line);
    for (name, value, _) in &fields.others {
        let _ = write!(line, " {dim}{name}={end}");
        let plain = |c: char| !c.is_whitespace() && !is_hidden(c) && !matches!(c, '"' | '=' | '\\');
        if !value.is_empty() && value.chars().all(plain) {
            line.push_str(value);
        } else {
            json_string(value, &mut line);
        }
    }
    line.push('\n');
    line
}

fn json(at: SystemTime, level: Level, fields: &Fields) -> String {
    let mut line = format!(r#"{{"time":"{}","level":"{}","component":"#, timestamp(at), level.as_str().to_lowercase());
    json_string(fields.component.as_deref().unwrap_or_default(), &mut line);
    line.push_str(r#","message":"#);
    json_string(&fields.message, &mut line);
    for (index, (name, value, literal)) in fields.others.iter().enumerate() {
        // A key that stood twice would be read by one program so and by another otherwise.
        if fields.others[..index].iter().any(|(earlier, ..)| earlier == name) {
            continue;
        }
        line.push(',');
        match *name {
            "time" | "level" => json_string(&format!("field_{name}"), &mut line),
            name => json_string(name, &mut line),
        }
        line.push(':');
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

/// Characters that a terminal obeys or that show a line otherwise than it is: controls (C1 too), separators of lines,
/// marks that turn the direction of writing, and the byte order mark.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn escape_controls(text: &str, out: &mut String) {
    for c in text.chars() {
        if is_hidden(c) {
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
            c if is_hidden(c) => {
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

    fn line(style: Style, fields: Fields) -> String {
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
            assert_eq!(line(style, event("file opened", value)), expected, "{name}");
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Failure(&'static str, #[source] Option<Box<Failure>>);

    #[test]
    fn an_error_shows_its_causes_once() {
        let cause = |text, cause| Some(Box::new(Failure(text, cause)));
        for (name, error, expected) in [
            ("alone", Failure("refused", None), "refused"),
            (
                "causes",
                Failure("cannot start", cause("no file", cause("ENOENT", None))),
                "cannot start: no file: ENOENT",
            ),
            ("repeated", Failure("send: closed", cause("closed", cause("EPIPE", None))), "send: closed: EPIPE"),
        ] {
            assert_eq!(Chain(&error).to_string(), expected, "{name}");
        }
    }

    #[test]
    fn what_is_too_long_is_cut_and_stays_whole() {
        let long = |name, length| (name, "\u{1}".repeat(length), false);
        for (name, message, others) in [
            ("message", "é".repeat(5000), vec![]),
            ("escaped", "\u{1}".repeat(5000), vec![long("a", 5000)]),
            ("many fields", "m".to_owned(), (0..200).map(|_| long("a", 100)).collect()),
        ] {
            let fields = || Fields { message: message.clone(), component: None, others: others.clone() };
            for style in [Style::Json, Style::Text { colour: true }] {
                let line = line(style, fields());
                assert!((100..=MAX_LINE).contains(&line.len()) && line.ends_with('\n'), "{name}: {}", line.len());
                if style == Style::Json {
                    let read: serde_json::Value = serde_json::from_str(&line).unwrap();
                    assert_eq!(read["message"].as_str().unwrap().chars().next(), message.chars().next(), "{name}");
                }
            }
        }
        struct Endless;
        impl fmt::Debug for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                loop {
                    f.write_str("x")?;
                }
            }
        }
        assert_eq!(capped(format_args!("{Endless:?}")).len(), MAX_VALUE + '…'.len_utf8());
    }

    #[test]
    fn fields_cannot_take_the_place_of_ours() {
        let others = vec![("level", "9".to_owned(), true), ("a", "1".to_owned(), true), ("a", "2".to_owned(), true)];
        let line = line(Style::Json, Fields { message: "m".to_owned(), component: None, others });
        assert!(
            line.ends_with(
                r#""component":"logs","message":"m","field_level":9,"a":1}
"#
            ),
            "{line}"
        );
    }

    proptest! {
        #[test]
        fn a_line_is_one_line_and_json_is_json(message in "\\PC*|\u{202e}\u{2028}|[\\x00-\\x20\\x7f-\\x9f\"\\\\]*", value in any::<String>()) {
            for style in [Style::Json, Style::Text { colour: false }] {
                let line = line(style, event(&message, &value));
                prop_assert!(line.ends_with('\n') && !line[..line.len() - 1].chars().any(is_hidden));
                if style == Style::Json {
                    let read: serde_json::Value = serde_json::from_str(&line).unwrap();
                    prop_assert_eq!(read["message"].as_str().unwrap(), &message);
                    prop_assert_eq!(read["path"].as_str().unwrap(), &value);
                }
            }
        }
    }
}
