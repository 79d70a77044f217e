//! A YAML file as a tree of nodes that know where they stand.
//!
//! In: text. Out: [`Node`]s with their place in the text, variables filled in. The tree,
//! not the text, is what is checked, repaired and turned into a `Config`, so that one
//! mistake does not hide the next.

mod deserialize;
mod interpolate;
mod lists;
mod parse;
mod syntax;

pub(crate) use deserialize::{Refusal, from_node};
pub(crate) use interpolate::{Environment, escape, is_variable_name};
pub(crate) use parse::{MAX_BYTES, Parsed, parse, parse_shortened};

use crate::{Config, Endpoints};

/// A range of bytes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Span {
    /// Clamped to `u32`: a file has at most [`MAX_BYTES`].
    pub(crate) fn new(start: usize, end: usize) -> Self {
        let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Self { start: offset(start), end: offset(end.max(start)) }
    }
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Scalar(Scalar),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
    /// A cluster's list, of which there are no nodes; see [`fill_in`].
    Endpoints(Endpoints),
}

/// A member of a mapping.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) value: Node,
    /// The key stood above already; the value is checked, then dropped.
    pub(crate) duplicate: bool,
}

/// A scalar, not yet typed.
#[derive(Debug, Clone)]
pub(crate) struct Scalar {
    /// Its text, variables filled in.
    pub(crate) text: String,
    /// Its text as the file has it, when variables were filled in: the only form that may be shown.
    pub(crate) written: Option<String>,
    /// Unquoted, so that it may be a number, a boolean or null.
    pub(crate) plain: bool,
}

/// What an unquoted scalar is in YAML 1.2 (core schema).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Resolved {
    Null,
    Boolean(bool),
    Integer(i128),
    Float(f64),
    Text,
}

impl Scalar {
    /// A scalar of our own making.
    pub(crate) fn quoted(text: impl Into<String>) -> Self {
        Self { text: text.into(), written: None, plain: false }
    }

    /// The text that may be shown: never a variable's value.
    pub(crate) fn shown(&self) -> &str {
        self.written.as_deref().unwrap_or(&self.text)
    }

    /// Its type, if it is unquoted.
    pub(crate) fn resolve(&self) -> Resolved {
        if self.plain { resolve(&self.text, self.written.is_some()) } else { Resolved::Text }
    }

    pub(crate) fn is_null(&self) -> bool {
        self.resolve() == Resolved::Null
    }
}

impl Node {
    pub(crate) fn scalar(span: Span, scalar: Scalar) -> Self {
        Self { span, value: Value::Scalar(scalar) }
    }

    fn member(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
            _ => None,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.is_null())
    }
}

/// Gives the clusters of a config those lists of its tree that are typed already.
pub(crate) fn fill_in(config: &mut Config, root: &Node) {
    let clusters = root.member("proxy").and_then(|proxy| proxy.member("clusters"));
    let (Some(Node { value: Value::Sequence(nodes), .. }), Some(proxy)) = (clusters, &mut config.proxy) else { return };
    for (cluster, node) in proxy.clusters.iter_mut().zip(nodes) {
        if let Some(Node { value: Value::Endpoints(endpoints), .. }) = node.member("endpoints") {
            cluster.endpoints = endpoints.clone();
        }
    }
}

/// A variable's value is never null: an empty one is an empty text.
fn resolve(text: &str, from_variable: bool) -> Resolved {
    match text {
        "" | "~" | "null" | "Null" | "NULL" if !from_variable => return Resolved::Null,
        "true" | "True" | "TRUE" => return Resolved::Boolean(true),
        "false" | "False" | "FALSE" => return Resolved::Boolean(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Resolved::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Resolved::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Resolved::Float(f64::NAN),
        _ => {}
    }
    let based =
        |digits: &str, radix| i128::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with(['+', '-']));
    let integer = match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
        (Some(hex), _) => based(hex, 16),
        (_, Some(octal)) => based(octal, 8),
        _ => text.parse::<i128>().ok(),
    };
    if let Some(integer) = integer {
        return Resolved::Integer(integer);
    }
    // Rust's floats also have words (`inf`, `nan`, `infinity`), which YAML writes with a dot.
    let numeric = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    match text.parse::<f64>() {
        Ok(float) if numeric => Resolved::Float(float),
        _ => Resolved::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_resolve_as_in_yaml_1_2() {
        let rows: &[(&str, Resolved)] = &[
            ("", Resolved::Null),
            ("~", Resolved::Null),
            ("null", Resolved::Null),
            ("true", Resolved::Boolean(true)),
            ("no", Resolved::Text),
            ("on", Resolved::Text),
            ("12", Resolved::Integer(12)),
            ("-3", Resolved::Integer(-3)),
            ("+3", Resolved::Integer(3)),
            ("0400", Resolved::Integer(400)),
            ("0o17", Resolved::Integer(15)),
            ("0x1F", Resolved::Integer(31)),
            ("0x-1", Resolved::Text),
            ("1_000", Resolved::Text),
            ("1.5", Resolved::Float(1.5)),
            ("1e3", Resolved::Float(1000.0)),
            (".inf", Resolved::Float(f64::INFINITY)),
            ("inf", Resolved::Text),
            ("nan", Resolved::Text),
            ("1.2.3.4", Resolved::Text),
            ("10s", Resolved::Text),
        ];
        for (text, expected) in rows {
            assert_eq!(resolve(text, false), *expected, "{text}");
        }
        assert_eq!(resolve("", true), Resolved::Text);
    }
}
