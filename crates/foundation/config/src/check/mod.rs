//! Checks a file's tree against the config's own JSON Schema, and repairs it.
//!
//! In: the tree as read. Out: every unknown key, wrong type, bad scalar and missing key,
//! and a tree that can be deserialised: unknown keys are cut out, values that cannot be
//! used are replaced by stand-ins. Promise: [`Checked::is_blurred`] knows each stand-in,
//! so that the rules between values, which come next, do not judge what nobody wrote.

mod formats;
mod schema;
mod words;

pub(crate) use formats::http_path;
pub(crate) use words::{is_sensitive, list_of, nearest};

use std::collections::HashSet;

use serde_json::Value as Json;

use crate::ConfigPath;
use crate::diagnostic::Problem;
use crate::tree::{Entry, Node, Resolved, Scalar, Span, Value};
use schema::{Kind, Schema, Shape};

/// What a check found.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    pub(crate) problems: Vec<Problem>,
    /// Places of the text that hold a secret, or might.
    pub(crate) secrets: Vec<Span>,
    /// Places that hold a stand-in, or that a mistyped key was meant for.
    blurred: Vec<ConfigPath>,
}

impl Checked {
    /// Whether the value at `path` is not what the file says, as a whole.
    pub(crate) fn is_blurred(&self, path: &ConfigPath) -> bool {
        self.blurred.iter().any(|place| path.is_within(place))
    }

    /// Whether anything at or below `path` is not what the file says.
    pub(crate) fn is_blurred_within(&self, path: &ConfigPath) -> bool {
        self.blurred.iter().any(|place| path.is_within(place) || place.is_within(path))
    }

    /// Whether a member of the mapping at `path` is not what the file says, as a whole.
    pub(crate) fn has_blurred_member(&self, path: &ConfigPath) -> bool {
        self.is_blurred(path) || self.blurred.iter().any(|place| place.parent().as_ref() == Some(path))
    }
}

/// Checks `root` and repairs it. `unread` are places that hold a stand-in already.
pub(crate) fn check(schema: &Json, root: &mut Node, text: &str, unread: Vec<ConfigPath>) -> Checked {
    let schema = Schema::new(schema);
    let checked = Checked { blurred: unread, ..Checked::default() };
    let mut checker = Checker { schema, text, checked };
    let place = Place { path: ConfigPath::root(), span: Span::new(0, 0) };
    checker.node(checker.schema.root(), root, &place);
    checker.checked
}

/// The most mistakes looked for; a file with so many is something else.
const MAX_PROBLEMS: usize = 500;

/// Where a value stands: its path, and what to underline when it as a whole is meant.
struct Place {
    path: ConfigPath,
    span: Span,
}

struct Checker<'s> {
    schema: Schema<'s>,
    text: &'s str,
    checked: Checked,
}

impl<'s> Checker<'s> {
    fn node(&mut self, shape: Shape<'s>, node: &mut Node, place: &Place) {
        if self.checked.problems.len() >= MAX_PROBLEMS {
            self.blur(ConfigPath::root());
        }
        if self.checked.is_blurred(&place.path) {
            if self.schema.holds_secret(shape) {
                self.note_misplaced_secrets(node);
            }
            *node = self.schema.stand_in(shape, node.span);
            return;
        }
        if let Kind::Short { text, full } = shape.kind {
            let chosen = if matches!(node.value, Value::Mapping(_)) { full } else { text };
            return self.node(self.schema.shape(chosen), node, place);
        }
        let fits = match (&shape.kind, &mut node.value) {
            (Kind::Object { .. }, Value::Mapping(entries)) => {
                self.object(shape, entries, place);
                true
            }
            (Kind::Map { values }, Value::Mapping(entries)) => {
                self.map(values, entries, place);
                true
            }
            (Kind::List { items, .. }, Value::Sequence(nodes)) => {
                self.list(shape, items, nodes, place);
                true
            }
            // Read apart, for it is right.
            (Kind::List { .. }, Value::Endpoints(_)) | (Kind::Any, _) => true,
            (_, Value::Scalar(scalar)) => {
                let verdict = words::scalar(shape, scalar);
                self.note_secret(shape, node);
                match verdict {
                    Ok(()) => true,
                    Err((message, help)) => {
                        let span = if node.span.start == node.span.end { place.span } else { node.span };
                        let code = words::code(shape, node);
                        self.report(Problem::error(code, span, place.path.clone(), message).help(help));
                        false
                    }
                }
            }
            _ => {
                let (message, help) = words::wrong_kind(shape, node);
                if self.schema.holds_secret(shape) {
                    self.note_misplaced_secrets(node);
                }
                self.report(Problem::error("type", place.span, place.path.clone(), message).help(help));
                false
            }
        };
        if !fits {
            self.blur(place.path.clone());
            *node = self.schema.stand_in(shape, node.span);
        }
    }

    fn object(&mut self, shape: Shape<'s>, entries: &mut Vec<Entry>, place: &Place) {
        // Only who mistypes a key needs to know of the others.
        let mistyped = entries.iter().any(|entry| self.schema.member(shape, &entry.key).is_none());
        let given = entries.iter().filter(|_| mistyped).map(|entry| entry.key.clone());
        let given: HashSet<String> = given.collect();
        entries.retain_mut(|entry| {
            let path = place.path.key(&entry.key);
            let Some(member) = self.schema.member(shape, &entry.key) else {
                self.unknown_key(shape, entry, &given, place);
                return false;
            };
            if entry.value.is_null() && !self.checked.is_blurred(&path) {
                return self.null(member, shape, entry, path) && !entry.duplicate;
            }
            let place = Place { span: self.underlined(&entry.value, Some(entry.key_span)), path };
            self.node(member, &mut entry.value, &place);
            !entry.duplicate
        });
        for key in self.schema.required(shape) {
            if entries.iter().any(|entry| entry.key == key) {
                continue;
            }
            let path = place.path.key(key);
            let Some(member) = self.schema.member(shape, key) else { continue };
            if !self.checked.is_blurred(&path) {
                let within =
                    if place.path.as_str().is_empty() { "the config".to_owned() } else { format!("`{}`", place.path) };
                let message = format!("{within} lacks the key `{key}`");
                let problem = Problem::error("missing", place.span, path.clone(), message);
                self.report(problem.help(words::explain_missing(key, member)));
                self.blur(path);
            }
            let value = self.schema.stand_in(member, place.span);
            entries.push(Entry { key: key.to_owned(), key_span: place.span, value, duplicate: false });
        }
    }

    /// A key without a value: nothing said where there is a default, else a mistake. `false` cuts it out.
    fn null(&mut self, member: Shape<'s>, parent: Shape<'s>, entry: &mut Entry, path: ConfigPath) -> bool {
        let key = &entry.key;
        let required = self.schema.required(parent).any(|required| required == key);
        let written_out = matches!(&entry.value.value, Value::Scalar(scalar) if !scalar.text.is_empty());
        let switch = member.nullable && matches!(member.kind, Kind::Object { .. });
        if !required && (written_out || !switch) {
            return false;
        }
        let message = format!("`{key}` is empty");
        let help =
            if switch { words::explain_empty(key, &self.schema, member) } else { words::explain_missing(key, member) };
        self.report(Problem::error("missing", entry.key_span, path.clone(), message).help(help));
        self.blur(path);
        entry.value = self.schema.stand_in(member, entry.key_span);
        true
    }

    fn unknown_key(&mut self, shape: Shape<'s>, entry: &Entry, given: &HashSet<String>, place: &Place) {
        let path = place.path.key(&entry.key);
        let known: Vec<&str> = self.schema.members(shape).collect();
        let meant = nearest(&entry.key, known.iter().copied());
        let help = match (meant, self.schema.home_of(&entry.key)) {
            (Some(meant), _) => format!("did you mean `{meant}`?"),
            (None, Some(home)) if home != place.path.as_str() => {
                format!("it belongs under `{home}`; here are known: {}", list_of(&known))
            }
            _ if known.is_empty() => "there are no keys here; write `{}`".to_owned(),
            _ => format!("known here: {}", list_of(&known)),
        };
        let message = format!("unknown key `{}`", entry.key);
        // The key that was meant is not missing, unless it is given as well.
        self.blur(match meant.filter(|meant| !given.contains(*meant)) {
            Some(meant) => place.path.key(meant),
            None => path.clone(),
        });
        self.report(Problem::error("unknown-key", entry.key_span, path, message).help(help));
        let meant_secret = meant
            .and_then(|meant| self.schema.member(shape, meant))
            .is_some_and(|member| self.schema.holds_secret(member));
        let among_secrets = known
            .iter()
            .filter_map(|key| self.schema.member(shape, key))
            .any(|member| member.format() == Some("password"));
        if meant_secret || among_secrets || is_sensitive(&entry.key) {
            self.note_misplaced_secrets(&entry.value);
        }
    }

    fn map(&mut self, values: &'s Json, entries: &mut Vec<Entry>, place: &Place) {
        for entry in entries.iter_mut() {
            let path = place.path.key(&entry.key);
            let place = Place { span: self.underlined(&entry.value, Some(entry.key_span)), path };
            self.node(self.schema.shape(values), &mut entry.value, &place);
        }
        entries.retain(|entry| !entry.duplicate);
    }

    fn list(&mut self, shape: Shape<'s>, items: &'s Json, nodes: &mut [Node], place: &Place) {
        for (index, node) in nodes.iter_mut().enumerate() {
            let place = Place { path: place.path.index(index), span: self.underlined(node, None) };
            self.node(self.schema.shape(items), node, &place);
        }
        let minimum = shape.json.get("minItems").and_then(Json::as_u64).unwrap_or(0);
        if (nodes.len() as u64) < minimum {
            let message = format!("`{}` is empty", place.path);
            let help = words::explain_items(self.schema.shape(items));
            self.report(Problem::error("missing", place.span, place.path.clone(), message).help(help));
            self.blur(place.path.clone());
        }
    }

    /// What to underline for a value: a scalar itself, else the key, else the first line of a list's item.
    fn underlined(&self, node: &Node, key: Option<Span>) -> Span {
        let inline = || self.text.get(node.span.range()).is_some_and(|text| !text.is_empty() && !text.contains('\n'));
        match (&node.value, key) {
            (Value::Scalar(_), _) if inline() => node.span,
            (_, Some(key)) => key,
            (Value::Mapping(entries), None) => entries.first().map_or(node.span, |first| Span {
                start: first.key_span.start,
                end: first.value.span.end.max(first.key_span.end),
            }),
            _ => node.span,
        }
    }

    fn report(&mut self, problem: Problem) {
        self.checked.problems.push(problem);
    }

    fn blur(&mut self, path: ConfigPath) {
        self.checked.blurred.push(path);
    }

    /// Remembers a secret written out in the file; a mere `${NAME}` is none.
    fn note_secret(&mut self, shape: Shape<'s>, node: &Node) {
        let credentials = matches!(&node.value, Value::Scalar(scalar) if scalar.text.contains('@'));
        let url = matches!(shape.format(), Some("http-url" | "http-origin"));
        if self.schema.holds_secret(shape) || (url && credentials) {
            self.note_literal(node);
        }
    }

    /// Remembers what may be a secret in a place where none belongs: below a mistyped key, or instead of a mapping.
    fn note_misplaced_secrets(&mut self, node: &Node) {
        match &node.value {
            Value::Scalar(_) => self.note_literal(node),
            // Where a list was read apart and anything is wrong, the file is read again whole.
            Value::Endpoints(_) => {}
            Value::Sequence(items) => items.iter().for_each(|item| self.note_misplaced_secrets(item)),
            Value::Mapping(entries) => entries.iter().for_each(|entry| self.note_misplaced_secrets(&entry.value)),
        }
    }

    fn note_literal(&mut self, node: &Node) {
        if let Value::Scalar(Scalar { text, written, .. }) = &node.value {
            let reference = written.as_ref().is_some_and(|written| {
                written.starts_with("${") && written.find('}') == Some(written.len() - 1) && !written.contains(":-")
            });
            let harmless = matches!(resolved(node), Resolved::Null | Resolved::Boolean(_));
            if !text.is_empty() && !reference && !harmless {
                self.checked.secrets.push(node.span);
            }
        }
    }
}

fn resolved(node: &Node) -> Resolved {
    match &node.value {
        Value::Scalar(scalar) => scalar.resolve(),
        _ => Resolved::Text,
    }
}
