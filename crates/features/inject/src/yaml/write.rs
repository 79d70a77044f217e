//! Writes a document in block style.
//!
//! Promise: what is written reads back as the same value, in YAML 1.1 and in 1.2: a text that
//! either could take for something else is quoted.

use std::fmt::Write;

use serde_json::Value;

use super::read::{Dialect, resolve};

/// The document, ending in a line feed.
pub(crate) fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(value, 0, &mut out),
        Value::Array(items) if !items.is_empty() => block(value, 0, &mut out),
        Value::String(text) => {
            string(text, 0, &mut out);
            out.push('\n');
        }
        other => {
            let _ = writeln!(out, "{other}");
        }
    }
    out
}

/// A map or list that holds something, each entry on lines of its own.
fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) => {
            for (at, (key, value)) in map.iter().enumerate() {
                // The first entry of a map in a list stands behind the dash.
                if at > 0 || out.is_empty() || out.ends_with('\n') {
                    pad(indent, out);
                }
                plain_or_quoted(key, out);
                out.push(':');
                entry(value, indent, out);
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                if at > 0 || out.is_empty() || out.ends_with('\n') {
                    pad(indent, out);
                }
                out.push('-');
                match item {
                    Value::Object(map) if !map.is_empty() => {
                        out.push(' ');
                        block(item, indent + 2, out);
                    }
                    Value::Array(inner) if !inner.is_empty() => {
                        out.push(' ');
                        block(item, indent + 2, out);
                    }
                    other => entry(other, indent, out),
                }
            }
        }
        _ => {}
    }
}

/// What stands behind a colon or a dash.
fn entry(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            block(value, indent + 2, out);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            // As kubectl writes them: dashes under their key.
            block(value, indent, out);
        }
        Value::String(text) => {
            out.push(' ');
            string(text, indent + 2, out);
            out.push('\n');
        }
        other => {
            let _ = writeln!(out, " {other}");
        }
    }
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

/// A text, over several lines when it has some.
fn string(text: &str, indent: usize, out: &mut String) {
    if !suits_block(text) {
        return plain_or_quoted(text, out);
    }
    out.push_str(match text.strip_suffix('\n') {
        None => "|-",
        Some(rest) if rest.ends_with('\n') => "|+",
        Some(_) => "|",
    });
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        out.push('\n');
        if !line.is_empty() {
            pad(indent.max(2), out);
            out.push_str(line);
        }
    }
}

/// Whether every reader takes a literal block for what it is.
fn suits_block(text: &str) -> bool {
    text.contains('\n') && !text.starts_with(['\n', ' ', '\t', '#']) && !text.chars().any(|c| c != '\n' && strange(c))
}

/// Characters that must be escaped, or that some readers take for a line's end.
fn strange(c: char) -> bool {
    c.is_control() || matches!(c, '\u{feff}' | '\u{2028}' | '\u{2029}' | '\u{fffe}' | '\u{ffff}')
}

fn plain_or_quoted(text: &str, out: &mut String) {
    if is_plain(text) {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if strange(c) => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Whether a text needs no quotes.
fn is_plain(text: &str) -> bool {
    let begins = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '.' | '$' | '(');
    let within = |c: char| {
        begins(c) || matches!(c, ' ' | '-' | ':' | '@' | ',' | '=' | '+' | ')' | '%' | ';' | '\'' | '{' | '}')
    };
    if !text.starts_with(begins) || !text.chars().all(within) || text.ends_with([' ', ':']) || text.contains(": ") {
        return false;
    }
    // Numbers, dates, times by 60, and whatever looks like one.
    if text.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && (text.contains(':') || !text.contains(|c: char| c.is_ascii_alphabetic()) || text.contains('_'))
    {
        return text.contains('/') && !text.contains(':');
    }
    resolve(text, Dialect::Kubernetes).is_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Number};

    use super::*;
    use crate::yaml::read;

    #[test]
    fn texts_that_look_like_something_else_are_quoted() {
        for text in [
            "0644",
            "yes",
            "n",
            "1.10",
            "2024-01-01",
            "12:30",
            "",
            "~",
            "null",
            "a: b",
            "a:",
            "- a",
            "1e3",
            "0o7",
            "1_0",
        ] {
            assert!(!is_plain(text), "{text}");
        }
        for text in
            ["10m", "/var/log/app", "outrigger:0.1.0", "a.b/c", "64Mi", "10.0.0.0/8", "--proxy".trim_start_matches('-')]
        {
            assert!(is_plain(text), "{text}");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            any::<String>(),
            "[a-z0-9 :#'\"{}\\[\\],&*!|>%@`\n\t.+-]{0,16}",
            "(0x?|[+-])?[0-9_.:e-]{0,6}",
            Just("yes".to_owned()),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(|n| Value::Number(n.into())),
            (-1.0e6..1.0e6_f64).prop_map(|n| Number::from_f64(n).map_or(Value::Null, Value::Number)),
            text.clone().prop_map(Value::String),
        ];
        leaf.prop_recursive(4, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
                prop::collection::vec((text.clone(), inner), 0..5)
                    .prop_map(|all| Value::Object(all.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(value in value()) {
            let text = write(&value);
            prop_assert_eq!(read(&text, Dialect::Kubernetes).map_err(|error| format!("{error}\n{text}")), Ok(value.clone()), "{}", text);
            prop_assert_eq!(read(&text, Dialect::Config).map_err(|error| format!("{error}\n{text}")), Ok(value), "{}", text);
        }
    }
}
