//! The rules between values: what each value alone cannot tell.
//!
//! In: a config that has the right form, and where its values stand. Out: every broken
//! rule, at the value that breaks it. Promise: a value that the file does not hold as it
//! is seen here (a stand-in for a mistake reported already) is not judged again.

mod authority;
mod controller;
mod discovery;
mod logs;
mod proxy;
mod runtime;
mod secrets;
mod sockets;
mod tests;

pub use proxy::is_untouched_field;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;

use crate::check::{Checked, list_of, nearest};
use crate::diagnostic::Problem;
use crate::tree::{Node, Span, Value};
use crate::{Config, ConfigPath, Duration};

/// Applies every rule.
pub(crate) fn judge(config: &Config, root: &Node, checked: &Checked) -> Judgement {
    let unknown = Cell::new(false);
    let mut judge = Judge { checked, places: Places { root, unknown: &unknown }, problems: Vec::new() };
    runtime::rules(config, &mut judge);
    proxy::rules(config, &mut judge);
    logs::rules(config, &mut judge);
    secrets::rules(config, &mut judge);
    authority::rules(config, &mut judge);
    controller::rules(config, &mut judge);
    discovery::rules(config, &mut judge);
    sockets::rules(config, &mut judge);
    tests::rules(config, &mut judge);
    Judgement { problems: judge.problems, misses_places: unknown.get() }
}

/// What the rules have to say.
pub(crate) struct Judgement {
    pub(crate) problems: Vec<Problem>,
    /// Something was looked for in a list that was read apart, so its place in the file could not be told.
    pub(crate) misses_places: bool,
}

/// Where the values of a tree stand. They are looked for when somebody asks: a large file has very many, and few are asked
/// for.
#[derive(Clone, Copy)]
pub(crate) struct Places<'t> {
    root: &'t Node,
    /// See [`Judgement::misses_places`].
    unknown: &'t Cell<bool>,
}

/// Where one value stands.
#[derive(Clone, Copy)]
struct Place<'t> {
    key: Option<Span>,
    node: &'t Node,
}

impl<'t> Places<'t> {
    /// The value at a path, as [`ConfigPath`] writes it.
    fn get(self, path: &ConfigPath) -> Option<Place<'t>> {
        let mut place = Place { key: None, node: self.root };
        let mut rest = path.as_str();
        while !rest.is_empty() {
            (place, rest) = match &place.node.value {
                Value::Scalar(_) => return None,
                Value::Endpoints(_) => {
                    self.unknown.set(true);
                    return None;
                }
                Value::Sequence(items) => {
                    let (index, rest) = rest.strip_prefix('[')?.split_once(']')?;
                    (Place { key: None, node: items.get(index.parse::<usize>().ok()?)? }, rest)
                }
                // Of a key that is given twice the last one counts here.
                Value::Mapping(entries) => entries.iter().rev().find_map(|entry| {
                    let rest = behind(rest, &entry.key)?;
                    Some((Place { key: Some(entry.key_span), node: &entry.value }, rest))
                })?,
            };
        }
        Some(place)
    }
}

/// What of a path is behind a key with which it begins.
fn behind<'p>(path: &'p str, key: &str) -> Option<&'p str> {
    if let Some(rest) = path.strip_prefix('.').unwrap_or(path).strip_prefix(key) {
        return Some(rest).filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    }
    path.strip_prefix(ConfigPath::root().key(key).as_str()).filter(|_| path.starts_with('['))
}

/// Calls `visit` with each value of a tree, its path and its key.
pub(crate) fn walk<'t>(root: &'t Node, visit: &mut impl FnMut(&ConfigPath, Option<Span>, &'t Node)) {
    fn below<'t>(
        node: &'t Node,
        key: Option<Span>,
        path: &ConfigPath,
        visit: &mut impl FnMut(&ConfigPath, Option<Span>, &'t Node),
    ) {
        visit(path, key, node);
        match &node.value {
            Value::Scalar(_) | Value::Endpoints(_) => {}
            Value::Sequence(items) => {
                for (index, item) in items.iter().enumerate() {
                    below(item, None, &path.index(index), visit);
                }
            }
            Value::Mapping(entries) => {
                for entry in entries {
                    below(&entry.value, Some(entry.key_span), &path.key(&entry.key), visit);
                }
            }
        }
    }
    below(root, None, &ConfigPath::root(), visit);
}

pub(crate) struct Judge<'a> {
    checked: &'a Checked,
    places: Places<'a>,
    problems: Vec<Problem>,
}

impl Judge<'_> {
    /// Reports a broken rule at a value, unless the value is not what the file says.
    fn error(&mut self, code: &'static str, at: &ConfigPath, message: impl Into<String>, help: impl Into<String>) {
        let span = self.span(at);
        self.report(Problem::error(code, span, at.clone(), message).help(help));
    }

    /// The same, for what is accepted but deserves a look.
    fn warning(&mut self, code: &'static str, at: &ConfigPath, message: impl Into<String>, help: impl Into<String>) {
        let span = self.span(at);
        self.report(Problem::error(code, span, at.clone(), message).help(help).warning());
    }

    fn report(&mut self, problem: Problem) {
        if !self.checked.is_blurred(&problem.path) {
            self.problems.push(problem);
        }
    }

    /// What to underline: a scalar itself, else its key, else the nearest place around it.
    fn span(&self, at: &ConfigPath) -> Span {
        let mut path = Some(at.clone());
        while let Some(here) = path {
            if let Some(place) = self.places.get(&here) {
                return match (&place.node.value, place.key) {
                    (Value::Scalar(_), _) => place.node.span,
                    (_, Some(key)) => key,
                    (Value::Mapping(entries), None) => entries.first().map_or(place.node.span, |entry| Span {
                        start: entry.key_span.start,
                        end: entry.value.span.end.max(entry.key_span.end),
                    }),
                    (Value::Sequence(_) | Value::Endpoints(_), None) => place.node.span,
                };
            }
            path = here.parent();
        }
        Span::default()
    }

    /// The key of a member, to underline the member as a whole.
    fn key_span(&self, at: &ConfigPath) -> Span {
        self.places.get(at).and_then(|place| place.key).unwrap_or_else(|| self.span(at))
    }

    /// Whether the file gives this value.
    fn is_given(&self, at: &ConfigPath) -> bool {
        self.places.get(at).is_some()
    }

    /// The first of these places that the file gives; the last one when it gives none.
    fn given_of<'p>(&self, places: [&'p ConfigPath; 2]) -> &'p ConfigPath {
        if self.is_given(places[0]) { places[0] } else { places[1] }
    }

    /// A value as it may be shown: what the file says, never a variable's value.
    fn shown(&self, at: &ConfigPath, value: &dyn Display) -> String {
        match self.places.get(at).map(|place| &place.node.value) {
            Some(Value::Scalar(scalar)) => scalar.shown().to_owned(),
            _ => value.to_string(),
        }
    }

    /// Whether the file writes the value out, with no variable in it.
    fn is_literal(&self, at: &ConfigPath) -> bool {
        match self.places.get(at).map(|place| &place.node.value) {
            Some(Value::Scalar(scalar)) => scalar.written.is_none(),
            _ => false,
        }
    }

    /// Exactly one of these members must be given.
    fn exactly_one(&mut self, at: &ConfigPath, members: &[(&str, bool)]) {
        let names: Vec<_> = members.iter().map(|(name, _)| *name).collect();
        let given: Vec<_> = members.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        match given.as_slice() {
            [] if self.checked.has_blurred_member(at) => {}
            [] if names.len() == 1 => {
                let message = format!("`{at}` lacks the key `{}`", names[0]);
                self.error("missing", at, message, format!("add `{}:`", names[0]));
            }
            [] => {
                let message = format!("`{at}` says neither {}", list_of(&names).replace(" and ", " nor "));
                self.error("missing", at, message, format!("give exactly one of {}", list_of(&names)));
            }
            [_] => {}
            [first, others @ ..] => {
                for other in others {
                    let path = at.key(other);
                    let message = format!("`{other}` and `{first}` exclude each other");
                    let problem = Problem::error("conflict", self.key_span(&path), path, message);
                    let problem = problem.help(format!("keep exactly one of {}", list_of(&names)));
                    self.report(problem.related(self.key_span(&at.key(first)), "also given"));
                }
            }
        }
    }

    /// No two of these values may be the same; `what` names what they are.
    fn unique<T: Eq + Hash>(&mut self, what: &str, help: &str, values: impl IntoIterator<Item = (ConfigPath, T)>) {
        let mut seen = HashMap::new();
        for (path, value) in values {
            if self.checked.is_blurred(&path) {
                continue;
            }
            let Some(first) = seen.get(&value) else {
                seen.insert(value, path);
                continue;
            };
            let (first_span, shown) = (self.span(first), self.shown(&path, &""));
            // A mapping has no text to be shown.
            let message = match shown.is_empty() {
                true => format!("the {what} is given twice"),
                false => format!("the {what} `{shown}` is given twice"),
            };
            let problem = Problem::error("duplicate", self.span(&path), path, message);
            // An alias or a merge key repeats a value that stands in the file once.
            let problem = match problem.span == Some(first_span) {
                true => problem.help(format!("it comes from an alias; {help}")),
                false => problem.help(help).related(first_span, "first given here"),
            };
            self.report(problem);
        }
    }

    /// `at` must name one of `known`, which stand under `home`.
    fn known(
        &mut self,
        what: &str,
        at: &ConfigPath,
        name: &str,
        known: &[(ConfigPath, &str)],
        home: &ConfigPath,
    ) -> bool {
        if known.iter().any(|(_, candidate)| *candidate == name) {
            return true;
        }
        let unsure = self.checked.is_blurred(home) || known.iter().any(|(path, _)| self.checked.is_blurred(path));
        if !unsure && !self.checked.is_blurred(at) {
            let names: Vec<_> = known.iter().map(|(path, name)| self.shown(path, name)).collect();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let meant = if self.is_literal(at) { nearest(name, names.iter().copied()) } else { None };
            let help = match meant {
                _ if names.is_empty() => format!("add it under `{home}`"),
                Some(meant) => format!("did you mean `{meant}`? Else add it under `{home}`"),
                None => format!("known are {}; else add it under `{home}`", list_of(&names)),
            };
            let message = format!("there is no {what} `{}`", self.shown(at, &name));
            self.error("reference", at, message, help);
        }
        false
    }

    /// A time that must not be zero.
    fn not_zero(&mut self, at: &ConfigPath, value: Duration) {
        if value.is_zero() {
            let message = format!("`{}` must be longer than zero", last_key(at));
            self.error("value", at, message, "write a duration such as `5s`");
        }
    }
}

/// The last key of a path, for messages.
fn last_key(at: &ConfigPath) -> &str {
    at.as_str().rsplit('.').next().unwrap_or_default()
}

/// Those reached from `start` by following `next`, without `start` itself unless it is reached again.
fn reached<'n>(start: &'n str, next: &HashMap<&'n str, Vec<&'n str>>) -> HashSet<&'n str> {
    let (mut found, mut open) = (HashSet::new(), vec![start]);
    while let Some(here) = open.pop() {
        for there in next.get(here).into_iter().flatten() {
            if found.insert(*there) {
                open.push(there);
            }
        }
    }
    found
}
