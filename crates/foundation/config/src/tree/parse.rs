//! From text to a tree of nodes, within limits.
//!
//! In: a file's text and the environment. Out: the root [`Node`] and the mistakes met on
//! the way that do not end the parse (duplicate keys, unset variables, unknown anchors,
//! tags). A syntax error ends it, for what follows cannot be read. Promise: time and
//! memory are bounded by the limits below, whatever the anchors and variables expand to.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, Span as Mark, StrInput, StructureStyle, Tag};

use super::interpolate::{self, Environment};
use super::lists::{List, Shortened};
use super::{Entry, Node, Scalar, Span, Value, syntax};
use crate::ConfigPath;
use crate::diagnostic::Problem;

/// The largest file: a hundred clusters of a thousand endpoints each take a third of it.
pub(crate) const MAX_BYTES: usize = 16 << 20;
/// The most values of a file, anchors expanded.
const MAX_NODES: usize = 1_000_000;
/// The most values that anchors keep and aliases repeat: a few lines could ask for any number.
const MAX_REPEATED: usize = 50_000;
/// The deepest nesting, anchors expanded; the model needs 10.
const MAX_DEPTH: usize = 32;
/// The most keys of one mapping.
const MAX_KEYS: usize = 1_000;
/// The longest key in bytes.
const MAX_KEY_BYTES: usize = 256;
/// The most mistakes noted; a file with so many is something else.
const MAX_PROBLEMS: usize = 500;
/// The most bytes that variables may fill in.
const MAX_FILLED: usize = 4 << 20;

/// What was read.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) root: Node,
    pub(crate) problems: Vec<Problem>,
    /// Places whose value could not be read and holds a stand-in.
    pub(crate) unread: Vec<ConfigPath>,
}

/// Parses the one document of a file; an empty file is an empty mapping.
pub(crate) fn parse(text: &str, environment: Environment<'_>) -> Result<Parsed, Box<Problem>> {
    let mut builder = Builder::new(text, text, environment);
    let root = builder.document()?;
    Ok(Parsed { root, problems: builder.problems, unread: builder.unread })
}

/// The same for a file without a mistake, with long lists of endpoints read apart; `None` when there are none, or when
/// anything at all is to be said or is not sure: [`parse`] is then to be asked.
pub(crate) fn parse_shortened(text: &str, environment: Environment<'_>) -> Option<Parsed> {
    let shortened = Shortened::of(text)?;
    let mut builder = Builder { shortened: Some(&shortened), ..Builder::new(text, &shortened.text, environment) };
    let root = builder.document().ok()?;
    let all_came_back = builder.lists_read == shortened.lists.len();
    let nothing_to_say = builder.problems.is_empty() && builder.unread.is_empty() && builder.anchors.is_empty();
    (all_came_back && nothing_to_say).then_some(Parsed { root, problems: Vec::new(), unread: Vec::new() })
}

/// An anchored node, kept for its aliases.
struct Anchor {
    node: Node,
    nodes: usize,
    depth: usize,
}

struct Builder<'a> {
    /// The whole file.
    text: &'a str,
    /// What the events are of, where it is not the whole file.
    shortened: Option<&'a Shortened>,
    /// Lists of it that were met.
    lists_read: usize,
    environment: Environment<'a>,
    events: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Anchor>,
    nodes: usize,
    repeated: usize,
    filled: usize,
    problems: Vec<Problem>,
    unread: Vec<ConfigPath>,
}

impl<'a> Builder<'a> {
    /// Reads the events of `source` as such of `text`.
    fn new(text: &'a str, source: &'a str, environment: Environment<'a>) -> Self {
        let options = granit_parser::options! {
            emit_comments: false,
            emit_unresolved_aliases: true,
            flow_nesting_limit: MAX_DEPTH,
            block_nesting_limit: MAX_DEPTH,
        };
        Builder {
            text,
            shortened: None,
            lists_read: 0,
            environment,
            events: Parser::new_from_str_with_options(source, options),
            anchors: HashMap::new(),
            nodes: 0,
            repeated: 0,
            filled: 0,
            problems: Vec::new(),
            unread: Vec::new(),
        }
    }

    fn document(&mut self) -> Result<Node, Box<Problem>> {
        let mut root = None;
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => break,
                (Event::DocumentStart(..), at) if root.is_some() => {
                    let span = self.span(&at);
                    let message = "the file holds a second document";
                    let problem = Problem::error("syntax", span, ConfigPath::root(), message);
                    return Err(
                        problem.fatal("a config is one document: remove the `---` and what follows, or split the file")
                    );
                }
                (Event::DocumentStart(..), _) => {
                    let (event, at) = self.next()?;
                    root = Some(self.node(event, &at, &ConfigPath::root(), 0)?.0);
                }
                _ => {}
            }
        }
        Ok(match root {
            Some(root) if !root.is_null() => root,
            _ => Node { span: Span::default(), value: Value::Mapping(Vec::new()) },
        })
    }

    fn next(&mut self) -> Result<(Event<'a>, Mark), Box<Problem>> {
        match self.events.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => Err(Box::new(syntax::explain(self.text, &error))),
            None => Ok((Event::StreamEnd, Mark::default())),
        }
    }

    /// Builds the node that `event` begins; with it, how deep it is.
    fn node(
        &mut self,
        event: Event<'a>,
        at: &Mark,
        path: &ConfigPath,
        depth: usize,
    ) -> Result<(Node, usize), Box<Problem>> {
        let span = self.span(at);
        let nodes_before = self.nodes;
        self.count(1, span)?;
        if depth > MAX_DEPTH {
            let problem =
                Problem::error("limit", span, path.clone(), format!("values are nested more than {MAX_DEPTH} deep"));
            return Err(problem.fatal("no part of the config is that deep; look for a bracket or an anchor too many"));
        }
        let (anchor, node, height) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                (anchor, self.scalar(&text, style, tag.as_deref(), span, path), 0)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse_tag(tag.as_deref(), "seq", at, path);
                let (node, height) = self.sequence(span, path, depth)?;
                (anchor, node, height)
            }
            Event::MappingStart(style, anchor, tag) => {
                self.refuse_tag(tag.as_deref(), "map", at, path);
                let (node, height) = self.mapping(style, span, path, depth)?;
                (anchor, node, height)
            }
            Event::Alias(id) => return self.alias(id, span, path, depth),
            Event::UnresolvedAlias(name) => {
                let message = format!("the alias `*{name}` refers to an anchor that is not defined above it");
                let help = format!(
                    "define it with `&{name}` before its first use, or quote the text if a literal `*` is meant"
                );
                self.report(Problem::error("reference", span, path.clone(), message).help(help));
                (0, self.stand_in(span, path), 0)
            }
            _ => (0, self.stand_in(span, path), 0),
        };
        if anchor > 0 {
            let nodes = self.nodes - nodes_before;
            self.repeat(nodes, span)?;
            let copy = Anchor { node: node.clone(), nodes, depth: height };
            self.anchors.insert(anchor, copy);
        }
        Ok((node, height))
    }

    fn sequence(&mut self, mut span: Span, path: &ConfigPath, depth: usize) -> Result<(Node, usize), Box<Problem>> {
        let (mut items, mut height) = (Vec::new(), 0);
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                span.end = self.end(span, &at, items.last().map(|node: &Node| node.span));
                return Ok((Node { span, value: Value::Sequence(items) }, height));
            }
            let (item, below) = self.node(event, &at, &path.index(items.len()), depth + 1)?;
            height = height.max(below + 1);
            items.push(item);
        }
    }

    fn mapping(
        &mut self,
        style: StructureStyle,
        mut span: Span,
        path: &ConfigPath,
        depth: usize,
    ) -> Result<(Node, usize), Box<Problem>> {
        let (mut entries, mut merged, mut height, mut bad_keys) = (Vec::<Entry>::new(), Vec::new(), 0, false);
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                span.end = self.end(span, &at, entries.last().map(|entry| entry.value.span));
                merge(&mut entries, merged);
                if bad_keys && entries.is_empty() {
                    self.unread(path); // Not meant as a mapping: a template without quotes.
                }
                return Ok((Node { span, value: Value::Mapping(entries) }, height));
            }
            let key_span = self.span(&at);
            let plain = matches!(&event, Event::Scalar(_, ScalarStyle::Plain, ..));
            let key = self.key(event, &at, path, depth)?;
            let place = key.as_ref().map_or_else(|| path.clone(), |key| path.key(key));
            let (event, at) = self.next()?;
            let list = self.list(&at).filter(|_| style == StructureStyle::Block && is_endpoints(&place));
            let (value, below) = match list {
                Some(list) => (self.take(list)?, 2),
                None => self.node(event, &at, &place, depth + 1)?,
            };
            height = height.max(below + 1);
            let Some(key) = key else {
                bad_keys = true;
                continue;
            };
            if plain && key == "<<" {
                self.merged(value, key_span, path, &mut merged);
                continue;
            }
            if entries.len() >= MAX_KEYS {
                let problem =
                    Problem::error("limit", key_span, place, format!("a mapping has more than {MAX_KEYS} keys"));
                return Err(problem.fatal("make it smaller"));
            }
            let first = entries.iter().find(|entry| entry.key == key).map(|entry| entry.key_span);
            if let Some(first) = first {
                let message = format!("`{key}` is given twice");
                let problem = Problem::error("duplicate", key_span, place, message).help("keep one of them");
                self.report(problem.related(first, "first given here"));
            }
            entries.push(Entry { key, key_span, value, duplicate: first.is_some() });
        }
    }

    /// The list whose marker a value is.
    fn list(&self, at: &Mark) -> Option<&'a List> {
        let next = self.shortened?.lists.get(self.lists_read)?;
        at.byte_range().is_some_and(|range| range.start == next.marker).then_some(next)
    }

    fn take(&mut self, list: &List) -> Result<Node, Box<Problem>> {
        self.lists_read += 1;
        self.count(list.nodes, list.span)?;
        Ok(Node { span: list.span, value: Value::Endpoints(list.endpoints.clone()) })
    }

    /// The text of a mapping's key; keys are never interpolated.
    fn key(
        &mut self,
        event: Event<'a>,
        at: &Mark,
        path: &ConfigPath,
        depth: usize,
    ) -> Result<Option<String>, Box<Problem>> {
        if let Event::Scalar(text, _, 0, None) = &event
            && !text.is_empty()
        {
            let span = self.span(at);
            self.count(1, span)?;
            if text.len() > MAX_KEY_BYTES {
                let message = format!("a key is longer than {MAX_KEY_BYTES} bytes");
                return Err(Problem::error("limit", span, path.clone(), message)
                    .fatal("look for a missing quote or line break"));
            }
            return Ok(Some(text.clone().into_owned()));
        }
        let span = self.span(at);
        let template = matches!(event, Event::MappingStart(..));
        let alias = matches!(event, Event::Alias(_) | Event::UnresolvedAlias(_));
        self.skip(event, at, path, depth)?;
        let message = if template { "a mapping stands here in place of a key" } else { "a key must be a plain text" };
        let help = match (template, alias) {
            (true, _) => "if `{{ … }}` is meant as a template, put quotes around it: '{{ … }}'",
            (_, true) => "write the key out; an alias can stand only for a value",
            _ => "write `key: value`, the key as plain text",
        };
        self.report(Problem::error("type", span, path.clone(), message).help(help));
        self.unread(&path.key("?"));
        Ok(None)
    }

    /// Reads over a node in the place of a key.
    fn skip(&mut self, event: Event<'a>, at: &Mark, path: &ConfigPath, depth: usize) -> Result<(), Box<Problem>> {
        let (problems, unread) = (self.problems.len(), self.unread.len());
        self.node(event, at, path, depth + 1)?;
        self.problems.truncate(problems);
        self.unread.truncate(unread);
        Ok(())
    }

    fn alias(&mut self, id: usize, span: Span, path: &ConfigPath, depth: usize) -> Result<(Node, usize), Box<Problem>> {
        let Some(anchor) = self.anchors.get(&id) else {
            let problem = Problem::error("reference", span, path.clone(), "an alias refers to the value it stands in");
            self.report(problem.help("a value cannot contain itself; write it out"));
            return Ok((self.stand_in(span, path), 0));
        };
        let (node, nodes, height) = (anchor.node.clone(), anchor.nodes, anchor.depth);
        self.repeat(nodes, span)?;
        if depth + height > MAX_DEPTH {
            let problem =
                Problem::error("limit", span, path.clone(), format!("aliases nest values more than {MAX_DEPTH} deep"));
            return Err(problem.fatal("write the values out instead"));
        }
        Ok((node, height))
    }

    /// Takes the value of a merge key `<<`: a mapping, or a list of mappings, the first of which wins.
    fn merged(&mut self, value: Node, key_span: Span, path: &ConfigPath, into: &mut Vec<Entry>) {
        let sources = match value.value {
            Value::Sequence(items) => items,
            _ => vec![value],
        };
        for source in sources {
            match source.value {
                Value::Mapping(entries) => merge(into, entries),
                _ => {
                    let problem =
                        Problem::error("type", key_span, path.key("<<"), "the merge key `<<` needs a mapping");
                    self.report(problem.help("write `<<: *name`, where `&name` marks a mapping above"));
                    self.unread(&path.key("<<"));
                }
            }
        }
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span, path: &ConfigPath) -> Node {
        let mut plain = matches!(style, ScalarStyle::Plain);
        match tag.map(|tag| (tag, tag.core_suffix())) {
            None => {}
            Some((_, Some("str"))) => plain = false,
            Some((_, Some("int" | "float" | "bool" | "null"))) => plain = true,
            Some((tag, _)) if tag.original() == "!" => plain = false,
            Some((tag, _)) => self.report(unknown_tag(tag, span, path)),
        }
        // The parser writes `~` for a value that is not there.
        let text = if plain && span.start == span.end { "" } else { text };
        match interpolate::fill(text, self.environment) {
            Ok(None) => Node::scalar(span, Scalar { text: text.to_owned(), written: None, plain }),
            Ok(Some(filled)) => {
                self.filled += filled.text.len();
                if self.filled > MAX_FILLED {
                    let message = format!("variables fill in more than {} MiB", MAX_FILLED >> 20);
                    let problem = Problem::error("limit", span, path.clone(), message);
                    self.report(problem.help("put large values into files"));
                    return self.stand_in(span, path);
                }
                let written = filled.from_variable.then(|| text.to_owned());
                Node::scalar(span, Scalar { text: filled.text, written, plain })
            }
            Err(mistakes) => {
                let mut from = span.range().start;
                for mistake in mistakes {
                    let found = self.text.get(from..span.range().end).and_then(|rest| rest.find(&mistake.fragment));
                    let at = found.map_or(span, |at| Span::new(from + at, from + at + mistake.fragment.len()));
                    from = if found.is_some() { at.range().end } else { from };
                    let problem = Problem::error("environment", at, path.clone(), mistake.message);
                    self.report(problem.help(mistake.help));
                }
                self.stand_in(span, path)
            }
        }
    }

    /// Holds the place of a value that could not be read, so that the rest can be checked.
    fn stand_in(&mut self, span: Span, path: &ConfigPath) -> Node {
        self.unread(path);
        Node::scalar(span, Scalar::quoted(""))
    }

    fn report(&mut self, problem: Problem) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }

    fn unread(&mut self, path: &ConfigPath) {
        // Beyond the bound nothing more is judged.
        let place = if self.unread.len() < MAX_PROBLEMS { path.clone() } else { ConfigPath::root() };
        if self.unread.last() != Some(&place) {
            self.unread.push(place);
        }
    }

    fn refuse_tag(&mut self, tag: Option<&Tag>, allowed: &str, at: &Mark, path: &ConfigPath) {
        if let Some(tag) = tag
            && tag.core_suffix() != Some(allowed)
            && tag.original() != "!"
        {
            let span = at.tag_span().map_or_else(|| self.span(at), |span| self.span(&span));
            self.report(unknown_tag(tag, span, path));
        }
    }

    fn count(&mut self, nodes: usize, span: Span) -> Result<(), Box<Problem>> {
        self.nodes += nodes;
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        let message = format!("the config has more than {MAX_NODES} values, those that aliases repeat included");
        Err(Problem::error("limit", span, ConfigPath::root(), message).fatal("make it smaller"))
    }

    fn repeat(&mut self, nodes: usize, span: Span) -> Result<(), Box<Problem>> {
        self.repeated += nodes;
        if self.repeated <= MAX_REPEATED {
            return self.count(nodes, span);
        }
        let message = format!("anchors and aliases repeat more than {MAX_REPEATED} values");
        Err(Problem::error("limit", span, ConfigPath::root(), message)
            .fatal("write some of them out; look for aliases of aliases"))
    }

    fn span(&self, at: &Mark) -> Span {
        let range = at.byte_range().unwrap_or_default();
        let range = self.shortened.map_or(range.clone(), |of| of.original(range.start)..of.original(range.end));
        Span::new(range.start.min(self.text.len()), range.end.min(self.text.len()))
    }

    /// Where a collection ends: at its bracket, or with its last item.
    fn end(&self, start: Span, end: &Mark, last: Option<Span>) -> u32 {
        let end = self.span(end);
        let bracket = matches!(self.text.get(end.range()), Some("]" | "}"));
        if bracket { end.end } else { last.map_or(start.end, |last| last.end.max(start.end)) }
    }
}

/// Whether it is a cluster's list of endpoints.
fn is_endpoints(path: &ConfigPath) -> bool {
    let index = path.as_str().strip_prefix("proxy.clusters[").and_then(|rest| rest.strip_suffix("].endpoints"));
    index.is_some_and(|index| index.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Adds what is not there yet.
fn merge(entries: &mut Vec<Entry>, more: Vec<Entry>) {
    for entry in more {
        if !entries.iter().any(|have| have.key == entry.key) {
            entries.push(entry);
        }
    }
}

fn unknown_tag(tag: &Tag, span: Span, path: &ConfigPath) -> Problem {
    let message = format!("the tag `{}` means nothing here", tag.original());
    Problem::error("type", span, path.clone(), message).help("remove it, or quote the text if a literal `!` is meant")
}
