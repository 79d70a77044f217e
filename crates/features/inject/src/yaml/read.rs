//! Reads one document.
//!
//! In: text. Out: a value, or the first mistake with its line and column. Promise: memory and
//! depth are bounded, whatever anchors and aliases ask for.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, Span, StrInput};
use serde_json::{Map, Number, Value};

/// The deepest nesting. CRDs reach 30.
const MAX_DEPTH: usize = 96;
/// The most values, aliases followed.
const MAX_VALUES: usize = 1_000_000;
/// The most values that aliases repeat.
const MAX_REPEATED: usize = 100_000;

/// How scalars without quotes are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// As kubectl does (YAML 1.1 in Go's reading): `yes` is true, `0644` octal.
    Kubernetes,
    /// Only what JSON writes alike is a number; `0400` stays the text it is, for our config reads it itself.
    Config,
}

/// Why a document cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub(crate) struct Mistake {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) problem: String,
}

/// The value of a document; null for an empty one.
pub(crate) fn read(text: &str, dialect: Dialect) -> Result<Value, Mistake> {
    let options = granit_parser::options! {
        emit_comments: false,
        emit_unresolved_aliases: true,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let events = Parser::new_from_str_with_options(text, options);
    let mut reader = Reader { events, dialect, anchors: HashMap::new(), values: 0, repeated: 0 };
    let mut root = Value::Null;
    let mut documents = 0;
    loop {
        match reader.next()? {
            (Event::StreamEnd, _) => return Ok(root),
            (Event::DocumentStart(..), at) => {
                documents += 1;
                if documents > 1 {
                    return Err(mistake(&at, "a second document begins here"));
                }
                let (event, at) = reader.next()?;
                root = reader.value(event, &at, 0)?;
            }
            _ => {}
        }
    }
}

struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    dialect: Dialect,
    /// Anchored values, and how many values each holds.
    anchors: HashMap<usize, (Value, usize)>,
    values: usize,
    repeated: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Mistake> {
        match self.events.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => {
                let at = error.marker();
                Err(Mistake { line: at.line(), column: at.col() + 1, problem: error.info().to_string() })
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn value(&mut self, event: Event<'a>, at: &Span, depth: usize) -> Result<Value, Mistake> {
        self.values += 1;
        if self.values > MAX_VALUES || depth > MAX_DEPTH {
            return Err(mistake(at, "the document is too large or too deep"));
        }
        let before = self.values;
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = match tag {
                    None => scalar(&text, style, self.dialect),
                    Some(tag) if tag.suffix() == "str" => Value::String(text.into_owned()),
                    Some(tag) if self.dialect == Dialect::Kubernetes => tagged(tag.suffix(), &text)
                        .ok_or_else(|| mistake(at, "what has the tag `!!binary` is no base64, or no text"))?,
                    // `!!str 5`, and nothing else is in use.
                    Some(_) => {
                        return Err(mistake(at, "tags such as `!!int` are not understood; write the plain value"));
                    }
                };
                (anchor, value)
            }
            Event::SequenceStart(_, anchor, _) => (anchor, self.sequence(depth)?),
            Event::MappingStart(_, anchor, _) => (anchor, self.mapping(depth)?),
            Event::Alias(id) => {
                let Some((value, size)) = self.anchors.get(&id) else {
                    return Err(mistake(at, "an alias refers to the value that it is part of"));
                };
                // Looked at before the copy is made. Copies count as values, so that anchors around them are as large.
                self.repeated += size;
                self.values += size;
                if self.repeated > MAX_REPEATED {
                    return Err(mistake(at, "aliases repeat too much"));
                }
                return Ok(value.clone());
            }
            Event::UnresolvedAlias(name) => {
                return Err(mistake(
                    at,
                    &format!("the alias `*{name}` refers to an anchor that is not defined above it"),
                ));
            }
            _ => (0, Value::Null),
        };
        if anchor > 0 {
            let size = self.values - before + 1;
            self.repeated += size;
            if self.repeated > MAX_REPEATED {
                return Err(mistake(at, "anchors and aliases repeat too much"));
            }
            self.anchors.insert(anchor, (value.clone(), size));
        }
        Ok(value)
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, Mistake> {
        let mut items = Vec::new();
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(Value::Array(items));
            }
            items.push(self.value(event, &at, depth + 1)?);
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, Mistake> {
        let mut map = Map::new();
        let mut merged = Vec::new();
        loop {
            let (event, at) = self.next()?;
            let (key, plain) = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ScalarStyle::Plain, ..) => (plain_key(&text, self.dialect), true),
                Event::Scalar(text, ..) => (text.into_owned(), false),
                _ => return Err(mistake(&at, "a key is a list or a map; it must be a text")),
            };
            let (event, value_at) = self.next()?;
            let value = self.value(event, &value_at, depth + 1)?;
            if plain && key == "<<" {
                match value {
                    Value::Array(all) => merged.extend(all),
                    one => merged.push(one),
                }
            } else if map.contains_key(&key) {
                return Err(mistake(&at, &format!("the key `{key}` is given twice")));
            } else {
                map.insert(key, value);
            }
        }
        for from in merged {
            for (key, value) in from.as_object().into_iter().flatten() {
                map.entry(key.as_str()).or_insert_with(|| value.clone());
            }
        }
        Ok(Value::Object(map))
    }
}

fn mistake(at: &Span, problem: &str) -> Mistake {
    Mistake { line: at.start.line(), column: at.start.col() + 1, problem: problem.to_owned() }
}

fn scalar(text: &str, style: ScalarStyle, dialect: Dialect) -> Value {
    if style == ScalarStyle::Plain { resolve(text, dialect) } else { Value::String(text.to_owned()) }
}

/// A key without quotes: what it stands for, as a text.
fn plain_key(text: &str, dialect: Dialect) -> String {
    match resolve(text, dialect) {
        Value::Bool(is) if dialect == Dialect::Kubernetes => is.to_string(),
        Value::Number(number) if dialect == Dialect::Kubernetes && !number.is_f64() => number.to_string(),
        _ => text.to_owned(),
    }
}

/// What a scalar with a tag stands for, as kubectl has it: of a tag that nobody knows, its text.
fn tagged(tag: &str, text: &str) -> Option<Value> {
    match tag {
        "int" | "float" | "bool" | "null" => Some(resolve(text, Dialect::Kubernetes)),
        "binary" => {
            use base64::Engine;
            let plain: String = text.split_whitespace().collect();
            let bytes = base64::engine::general_purpose::STANDARD.decode(plain).ok()?;
            String::from_utf8(bytes).ok().map(Value::String)
        }
        _ => Some(Value::String(text.to_owned())),
    }
}

/// What a scalar without quotes stands for.
pub(super) fn resolve(text: &str, dialect: Dialect) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    if dialect == Dialect::Config {
        return json_number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number);
    }
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Value::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Value::Bool(false),
        _ => {}
    }
    go_number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

/// A number as JSON writes it, and that comes out as it went in.
fn json_number(text: &str) -> Option<Number> {
    if !text.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
        return None;
    }
    let whole = || text.parse::<u64>().map(Number::from).or_else(|_| text.parse::<i64>().map(Number::from)).ok();
    // Rust's own, for serde_json's floats may differ in the last bit.
    let number = whole().or_else(|| text.parse().ok().and_then(Number::from_f64))?;
    (number.to_string() == text).then_some(number)
}

/// A number as Go reads it: with underscores, signs, `0x`, `0o`, `0b` and a leading zero for octal.
fn go_number(text: &str) -> Option<Number> {
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return None;
    }
    let plain = text.replace('_', "");
    let (negative, digits) = match plain.as_bytes().first()? {
        b'-' => (true, &plain[1..]),
        b'+' => (false, &plain[1..]),
        _ => (false, plain.as_str()),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, body) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest)
    } else if lower.len() > 1 && lower.starts_with('0') && lower.bytes().all(|b| b.is_ascii_digit()) {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    if !body.starts_with(['+', '-'])
        && let Ok(value) = u64::from_str_radix(body, base)
    {
        return match (negative, i64::try_from(value)) {
            (false, _) => Some(value.into()),
            (true, Ok(value)) => Some((-value).into()),
            (true, Err(_)) => None,
        };
    }
    // Only digits, a point and an exponent: Rust would also take `inf` and `nan`.
    let shape = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-');
    let decimal = plain.bytes().all(shape) && plain.bytes().any(|byte| byte.is_ascii_digit());
    decimal.then(|| plain.parse::<f64>().ok()).flatten().and_then(Number::from_f64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scalars_mean_what_kubectl_takes_them_for() {
        for (text, kubernetes, config) in [
            ("0644", json!(420), json!("0644")),
            ("0x1F", json!(31), json!("0x1F")),
            ("1_000", json!(1000), json!("1_000")),
            ("-5", json!(-5), json!(-5)),
            ("08", json!(8.0), json!("08")),
            ("1.5", json!(1.5), json!(1.5)),
            ("1e3", json!(1000.0), json!("1e3")),
            ("yes", json!(true), json!("yes")),
            ("off", json!(false), json!("off")),
            ("true", json!(true), json!(true)),
            ("~", json!(null), json!(null)),
            ("12:30", json!("12:30"), json!("12:30")),
            ("10m", json!("10m"), json!("10m")),
            ("1.2.3", json!("1.2.3"), json!("1.2.3")),
            (".inf", json!(".inf"), json!(".inf")),
            ("--", json!("--"), json!("--")),
            ("+-1", json!("+-1"), json!("+-1")),
            ("infinity", json!("infinity"), json!("infinity")),
        ] {
            assert_eq!(read(text, Dialect::Kubernetes).unwrap(), kubernetes, "{text}");
            assert_eq!(read(text, Dialect::Config).unwrap(), config, "{text}");
        }
        assert_eq!(read("a: '0644'", Dialect::Kubernetes).unwrap(), json!({ "a": "0644" }));
        for (text, expected) in [
            ("{yes: 1, 010: 2, '010': 3, 1.5: 4}", json!({ "true": 1, "8": 2, "010": 3, "1.5": 4 })),
            ("[!!int '5', !!binary aGk=, !Ref a, !!null '', !!str 7]", json!([5, "hi", "a", null, "7"])),
        ] {
            assert_eq!(read(text, Dialect::Kubernetes).unwrap(), expected, "{text}");
        }
        assert!(read("a: !!binary '%'", Dialect::Kubernetes).unwrap_err().problem.contains("base64"));
        assert!(read("a: !!int '5'", Dialect::Config).is_err());
    }

    #[test]
    fn anchors_are_followed_within_bounds() {
        let text = "a: &x {b: 1, c: 2}\nd: *x\ne: {<<: *x, c: 3}\n";
        let expected = json!({ "a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 2}, "e": {"c": 3, "b": 1} });
        assert_eq!(read(text, Dialect::Kubernetes).unwrap(), expected);
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let before = format!("*a{}, ", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{before}]\n"));
        }
        assert!(read(&bomb, Dialect::Kubernetes).unwrap_err().problem.contains("repeat too much"));
        assert!(read(&"[".repeat(5000), Dialect::Kubernetes).is_err());
    }

    #[test]
    fn mistakes_have_their_place() {
        for (text, line, part) in [
            ("a: 1\nb: 2\na: 3\n", 3, "given twice"),
            ("a: *b\n", 1, "not defined"),
            ("a: [1\nb: 2\n", 2, ""),
            ("a: 1\n---\nb: 1\n", 2, "second document"),
            ("? [1]\n: 2\n", 1, "must be a text"),
        ] {
            let found = read(text, Dialect::Kubernetes).unwrap_err();
            assert!(found.problem.contains(part) && found.line >= line, "{text}: {found}");
        }
    }
}
