//! Manifests in, manifests out.
//!
//! In: YAML documents or JSON objects as people keep them in files. Out: the same with sidecars,
//! and what became of each object. Promise: a document in which nothing changes comes out byte for
//! byte; nothing comes out when any document cannot be read.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::decide::Namespace;
use crate::inject::{Injected, Outcome, uninject};
use crate::json;
use crate::profile::{Profile, inject_with};
use crate::settings::Settings;
use crate::workload::{self, ObjectName};
use crate::yaml::{self, Dialect};

/// The largest input. What a cluster takes is 3 MiB an object.
const MOST_BYTES: usize = 64 << 20;

/// What to do with each pod.
#[derive(Debug, Clone, Copy)]
pub enum Action<'a> {
    /// Put the sidecar in, as these settings say, and the profiles that mean the pod.
    Inject(&'a Settings, &'a [Profile]),
    /// Take it out.
    Uninject,
}

/// What became of an object that makes pods.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The document it stands in, from 1.
    pub document: usize,
    /// What it is called.
    pub object: ObjectName,
    /// Where in the document, when that is a list.
    pub item: Option<usize>,
    /// What became of it.
    pub outcome: Outcome,
}

/// Manifests that were worked through.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifests {
    /// All documents.
    pub text: String,
    /// Objects that make pods, in their order.
    pub reports: Vec<Report>,
    /// Documents whose comments are gone, for they were written anew.
    pub comments_lost: Vec<usize>,
}

/// Why an input cannot be worked through.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{source_name}: document {document}{}{}: {problem}", at(.line, .column), object)]
pub struct ManifestError {
    source_name: String,
    document: usize,
    /// In the whole input; 0 when unknown.
    line: usize,
    column: usize,
    /// ` (KIND/NAME)`, or nothing.
    object: String,
    problem: String,
}

fn at(line: &usize, column: &usize) -> String {
    if *line > 0 { format!(" (line {line}, column {column})") } else { String::new() }
}

/// One document as it came.
struct Document<'a> {
    /// With the separator before it.
    raw: &'a str,
    /// Where its content begins in `raw`.
    body: usize,
    /// Lines before it.
    lines: usize,
    json: bool,
}

/// Works through an input. `namespace` is where objects live that do not say.
///
/// # Errors
/// When a document cannot be read, or is too large.
pub fn process(source: &str, text: &str, namespace: &str, action: Action<'_>) -> Result<Manifests, ManifestError> {
    let error = |document, problem: String| ManifestError {
        source_name: source.to_owned(),
        document,
        line: 0,
        column: 0,
        object: String::new(),
        problem,
    };
    if text.len() > MOST_BYTES {
        return Err(error(1, format!("the input has more than {MOST_BYTES} bytes; split it")));
    }
    let documents = if text.trim_start_matches('\u{feff}').trim_start().starts_with('{') {
        match split_json(text) {
            Ok(documents) => documents,
            // A map in braces is YAML, too.
            Err(_) if is_yaml(text) => split_yaml(text),
            Err((document, problem)) => return Err(error(document, problem)),
        }
    } else {
        split_yaml(text)
    };
    let mut values = Vec::with_capacity(documents.len());
    for (index, document) in documents.iter().enumerate() {
        let body = &document.raw[document.body..];
        let value = if document.json {
            serde_json::from_str(body).map_err(|problem| ManifestError {
                line: document.lines + problem.line(),
                column: problem.column(),
                ..error(index + 1, format!("this is no JSON: {problem}"))
            })?
        } else {
            yaml::read(body, Dialect::Kubernetes).map_err(|mistake| ManifestError {
                line: document.lines + mistake.line,
                column: mistake.column,
                ..error(index + 1, mistake.problem)
            })?
        };
        values.push(value);
    }
    let namespaces = namespaces(&values);
    let mut out = Manifests::default();
    for (index, (document, mut value)) in documents.iter().zip(values).enumerate() {
        let mut changed = false;
        let mut each = |object: &mut Value,
                        of: Option<(&str, &str)>,
                        item: Option<usize>|
         -> Result<(), ManifestError> {
            let name = ObjectName::of(object, of);
            let Some(path) = workload::pod_path(workload::kind(object, of)) else {
                if workload::looks_like_a_workload(object) {
                    let why = "it is of a kind that is not known here; if it makes pods, these are injected as they are made, by the webhook";
                    let outcome = Outcome::Left(why.to_owned());
                    out.reports.push(Report { document: index + 1, object: name, item, outcome });
                }
                return Ok(());
            };
            let problem = |problem: String| ManifestError {
                object: format!(" ({}/{})", name.kind, name.name),
                ..error(index + 1, problem)
            };
            let Some(pod) = workload::at_mut(object, path) else {
                return Err(problem(format!("it has no pod template at `{}`", path.join("."))));
            };
            let lives = name.namespace.as_deref().unwrap_or(namespace);
            let lives = namespaces.get(lives).cloned().unwrap_or_else(|| Namespace::named(lives));
            let outcome = match action {
                Action::Inject(settings, profiles) => inject_with(pod, &lives, settings, profiles),
                Action::Uninject => match uninject(pod).map_err(problem)? {
                    Some(pod) => {
                        let (reasons, warnings, layers) = Default::default();
                        Outcome::Injected(Box::new(Injected { pod, reasons, warnings, layers }))
                    }
                    None => Outcome::Left("it has no sidecar of ours".to_owned()),
                },
            };
            if let Outcome::Injected(injected) = &outcome
                && injected.pod != *pod
            {
                *pod = injected.pod.clone();
                changed = true;
            }
            out.reports.push(Report { document: index + 1, object: name, item, outcome });
            Ok(())
        };
        for_each(&mut value, None, None, &mut each)?;
        if changed {
            document.rewrite(&value, &mut out.text);
            if document.has_comments() {
                out.comments_lost.push(index + 1);
            }
        } else {
            out.text.push_str(document.raw);
        }
    }
    Ok(out)
}

/// An object, or each in a list, which may be one of lists: what it is of, if it does not say so itself, and where it stands in the outermost.
fn for_each<E>(
    object: &mut Value,
    of: Option<(&str, &str)>,
    item: Option<usize>,
    each: &mut impl FnMut(&mut Value, Option<(&str, &str)>, Option<usize>) -> Result<(), E>,
) -> Result<(), E> {
    if !workload::is_list(object) {
        return each(object, of, item);
    }
    let (version, kind) = (json::text(object, "apiVersion").to_owned(), json::text(object, "kind").to_owned());
    let items = object.get_mut("items").and_then(Value::as_array_mut);
    for (at, one) in items.into_iter().flatten().enumerate() {
        for_each(one, Some((&version, &kind)), item.or(Some(at)), each)?;
    }
    Ok(())
}

/// Whether all of an input is YAML.
fn is_yaml(text: &str) -> bool {
    split_yaml(text).iter().all(|document| yaml::read(&document.raw[document.body..], Dialect::Kubernetes).is_ok())
}

/// Namespaces that the input itself describes.
fn namespaces(values: &[Value]) -> BTreeMap<String, Namespace> {
    let lists = values.iter().filter(|value| workload::is_list(value)).flat_map(|list| json::items(list, "items"));
    let all = values
        .iter()
        .chain(lists)
        .filter(|value| json::text(value, "kind") == "Namespace" && json::text(value, "apiVersion") == "v1");
    all.map(|value| {
        let name = ObjectName::of(value, None).name;
        let labels = value["metadata"]["labels"].as_object().into_iter().flatten();
        let labels = labels.filter_map(|(key, label)| Some((key.clone(), label.as_str()?.to_owned())));
        (name.clone(), Namespace { name, labels: labels.collect() })
    })
    .collect()
}

impl Document<'_> {
    /// Writes it anew, with the separator and the comments at its top as they were.
    fn rewrite(&self, value: &Value, out: &mut String) {
        if self.json {
            out.push_str(&self.raw[..self.body]);
            let body = self.raw[self.body..].trim();
            let text =
                if body.contains('\n') { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
            // A value made of JSON is JSON again.
            out.push_str(&text.unwrap_or_default());
            out.push('\n');
            return;
        }
        let (head, _) = self.split_comments();
        out.push_str(head);
        if !head.is_empty() && !head.ends_with('\n') {
            out.push('\n');
        }
        out.push_str(&yaml::write(value));
        let end = self.raw.trim_end();
        if end.ends_with("\n...") {
            out.push_str("...\n");
        }
    }

    /// The separator with the comments that follow it, and the rest.
    fn split_comments(&self) -> (&str, &str) {
        let mut at = 0;
        for line in self.raw.split_inclusive('\n') {
            let bare = line.trim();
            let separator = at + 3 == self.body && line.starts_with("---") && is_bare(bare);
            if !separator && !bare.is_empty() && !bare.starts_with('#') {
                break;
            }
            at += line.len();
        }
        // `--- {a: 1}` or `--- # comment` with content behind: the separator alone.
        if at == 0 && self.body > 0 { ("---\n", self.raw) } else { self.raw.split_at(at) }
    }

    fn has_comments(&self) -> bool {
        let (_, rest) = self.split_comments();
        !self.json && rest.lines().any(|line| line.trim_start().starts_with('#') || line.contains(" #"))
    }
}

/// Whether a separator's line holds nothing else but perhaps a comment.
fn is_bare(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.trim_start().is_empty() || rest.trim_start().starts_with('#'))
}

/// The content of each document of a file of YAML.
pub(crate) fn documents(text: &str) -> impl Iterator<Item = &str> {
    split_yaml(text).into_iter().map(|document| &document.raw[document.body..])
}

/// At lines that begin with `---`; nothing else begins so in YAML.
fn split_yaml(text: &str) -> Vec<Document<'_>> {
    let mut starts = vec![];
    let (mut at, mut lines) = (0, 0);
    for line in text.split_inclusive('\n') {
        if line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
            starts.push((at, lines, 3));
        }
        at += line.len();
        lines += 1;
    }
    if starts.first().is_none_or(|(first, ..)| *first > 0) {
        let before = &text[..starts.first().map_or(text.len(), |(first, ..)| *first)];
        if starts.is_empty() || before.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            starts.insert(0, (0, 0, 0));
        } else if let Some(first) = starts.first_mut() {
            // Comments before the first separator belong to the first document.
            *first = (0, 0, first.0 + 3);
        }
    }
    let ends = starts.iter().skip(1).map(|(start, ..)| *start).chain([text.len()]);
    let documents = starts.iter().zip(ends).map(|((start, lines, body), end)| {
        let raw = &text[*start..end];
        let lines = lines + raw[..*body].matches('\n').count();
        Document { raw, body: *body, lines, json: false }
    });
    documents.collect()
}

/// One object after the other, as kubectl takes them.
fn split_json(text: &str) -> Result<Vec<Document<'_>>, (usize, String)> {
    let skip = text.len() - text.trim_start_matches('\u{feff}').len();
    let mut stream = serde_json::Deserializer::from_str(&text[skip..]).into_iter::<Value>();
    let (mut documents, mut start) = (Vec::new(), 0);
    while let Some(next) = stream.next() {
        next.map_err(|error| (documents.len() + 1, format!("this is no JSON: {error}")))?;
        let end = skip + stream.byte_offset();
        let raw = &text[start..end];
        let lines = text[..start].matches('\n').count();
        documents.push(Document {
            raw,
            body: raw.len() - raw.trim_start_matches(['\u{feff}', ' ', '\n', '\r', '\t']).len(),
            lines,
            json: true,
        });
        start = end;
    }
    // The line feed at the end is part of the last one.
    if let Some(last) = documents.last_mut() {
        let from = text.len() - last.raw.len() - (text.len() - start);
        last.raw = &text[from..];
    }
    Ok(documents)
}
