//! Writes objects for people to read and `kubectl apply` to take.
//!
//! In: objects with remarks at some of their places. Out: YAML documents, each remark as a comment above its place. Promise:
//! the same objects give the same text; whatever a reader of YAML 1.1 or 1.2 could take for something else is quoted.

use std::fmt::Write;

use serde_json::Value;

use crate::objects::Object;

/// The longest line of a comment.
const WIDTH: usize = 118;

/// All objects, as one file.
pub fn write(objects: &[Object]) -> String {
    let mut out = String::new();
    for object in objects {
        out.push_str("---\n");
        comment(object.about, 0, &mut out);
        Writer { object, out: &mut out }.block(&object.value, 0, &mut String::new());
    }
    out
}

/// One value, as the text of a file.
pub(crate) fn text(value: &Value) -> String {
    let mut out = String::new();
    let object = Object::new("", Value::Null);
    Writer { object: &object, out: &mut out }.block(value, 0, &mut String::new());
    out
}

struct Writer<'a> {
    object: &'a Object,
    out: &'a mut String,
}

impl Writer<'_> {
    /// A map or list that holds something, each entry on lines of its own. `path` is a JSON pointer to it.
    fn block(&mut self, value: &Value, indent: usize, path: &mut String) {
        let begins = path.len();
        match value {
            Value::Object(map) => {
                for (at, (key, value)) in map.iter().enumerate() {
                    let _ = write!(path, "/{}", key.replace('~', "~0").replace('/', "~1"));
                    self.begin(at == 0, indent, path);
                    scalar(key, self.out);
                    self.out.push(':');
                    self.entry(value, indent, path);
                    path.truncate(begins);
                }
            }
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    let _ = write!(path, "/{at}");
                    self.begin(at == 0, indent, path);
                    self.out.push('-');
                    match item {
                        Value::Object(inner) if !inner.is_empty() => {
                            self.out.push(' ');
                            self.block(item, indent + 2, path);
                        }
                        Value::Array(inner) if !inner.is_empty() => {
                            self.out.push('\n');
                            self.block(item, indent + 2, path);
                        }
                        other => self.entry(other, indent, path),
                    }
                    path.truncate(begins);
                }
            }
            _ => {}
        }
    }

    /// The start of an entry's line; the first of a map in a list stands behind the dash.
    fn begin(&mut self, first: bool, indent: usize, path: &str) {
        if first && self.out.ends_with("- ") {
            return;
        }
        if let Some((_, remark)) = self.object.remarks.iter().find(|(at, _)| at == path) {
            comment(remark, indent, self.out);
        }
        self.out.extend(std::iter::repeat_n(' ', indent));
    }

    /// What stands behind a colon or a dash.
    fn entry(&mut self, value: &Value, indent: usize, path: &mut String) {
        match value {
            // Thousands of lines that nobody reads; JSON is YAML.
            Value::Object(_) if path.ends_with("/openAPIV3Schema") => {
                let _ = writeln!(self.out, " {value}");
            }
            Value::Object(map) if !map.is_empty() => {
                self.out.push('\n');
                self.block(value, indent + 2, path);
            }
            Value::Array(items) if !items.is_empty() => {
                if let Some(words) = words(items) {
                    let _ = writeln!(self.out, " [{words}]");
                    return;
                }
                self.out.push('\n');
                // As kubectl writes them: dashes under their key.
                self.block(value, indent, path);
            }
            Value::String(text) if suits_block(text) => {
                self.out.push_str(" |\n");
                for line in text.lines() {
                    if !line.is_empty() {
                        self.out.extend(std::iter::repeat_n(' ', indent + 2));
                        self.out.push_str(line);
                    }
                    self.out.push('\n');
                }
            }
            Value::String(text) => {
                self.out.push(' ');
                scalar(text, self.out);
                self.out.push('\n');
            }
            other => {
                let _ = writeln!(self.out, " {other}");
            }
        }
    }
}

/// A list of a few short texts, for one line.
fn words(items: &[Value]) -> Option<String> {
    let mut out = String::new();
    for item in items {
        if !out.is_empty() {
            out.push_str(", ");
        }
        scalar(item.as_str()?, &mut out);
    }
    (out.len() <= WIDTH / 2).then_some(out)
}

/// Whether a text of several lines can stand as it is.
fn suits_block(text: &str) -> bool {
    let clean = |c: char| c == '\n' || !strange(c);
    text.trim_end().contains('\n')
        && text.ends_with('\n')
        && !text.ends_with("\n\n")
        && !text.starts_with([' ', '\n'])
        && text.chars().all(clean)
}

/// Characters that must be escaped, or that some readers take for a line's end.
fn strange(c: char) -> bool {
    c.is_control() || matches!(c, '\u{feff}' | '\u{2028}' | '\u{2029}' | '\u{fffe}' | '\u{ffff}')
}

/// A text on one line.
fn scalar(text: &str, out: &mut String) {
    if is_plain(text) {
        return out.push_str(text);
    }
    // JSON's quotes are YAML's, too, but that JSON leaves some characters as they are.
    for c in Value::from(text).to_string().chars() {
        if strange(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
}

/// Whether a text needs no quotes, wherever it stands.
fn is_plain(text: &str) -> bool {
    let within = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
    let word = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"];
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(within)
        && !word.contains(&text.to_ascii_lowercase().as_str())
}

/// A comment in lines of a length that reads well.
pub(crate) fn comment(text: &str, indent: usize, out: &mut String) {
    let mut line = String::new();
    let mut lines = Vec::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && indent + 3 + line.len() + word.len() > WIDTH {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    for line in lines.iter().filter(|line| !line.is_empty()) {
        let _ = writeln!(out, "{:indent$}# {line}", "");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, json};

    use super::*;

    #[test]
    fn remarks_stand_above_their_places() {
        let value =
            json!({ "a": { "b": [{ "c": 1 }, { "d": "yes", "e": [] }] }, "f": "x\ny\n", "g": ["v1", "v2"], "h": {} });
        let object = Object::new("What it is.", value).remark("/a/b/1", "The second.").remark("/f", "Lines.");
        assert_eq!(
            write(&[object]),
            "---\n# What it is.\na:\n  b:\n  - c: 1\n  # The second.\n  - d: \"yes\"\n    e: []\n# Lines.\nf: |\n  x\n  y\ng: [v1, v2]\nh: {}\n"
        );
    }

    fn value() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            any::<String>(),
            "[a-z0-9 :#'\"{}\\[\\],&*!|>%@`\n\t.+-]{0,16}",
            "[a-z\n ]{0,12}\n",
            "(0x?|[+-])?[0-9_.:e-]{0,6}",
            Just("yes".to_owned()),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i32>().prop_map(|n| Value::Number(n.into())),
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
            let value = json!({ "it": value });
            let text = write(&[Object::new("About it.", value.clone())]);
            let back: Value = serde_saphyr::from_str(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
            prop_assert_eq!(back, value, "{}", text);
        }
    }
}
