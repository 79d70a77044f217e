//! What is wrong with a config file, for people and for machines.
//!
//! In: [`Problem`]s, each with its place in the text. Out: [`Diagnostics`], one report in
//! the order of the file, as text (plain or coloured) or JSON. Promise: no secret of the
//! file and no value of an environment variable is shown; the report is of bounded length.

use std::fmt;

use serde_json::{Value, json};

use crate::ConfigPath;
use crate::render::{self, Excerpt};
use crate::source::Source;
use crate::tree::Span;

/// The most mistakes that one report lists.
const MAX_LISTED: usize = 100;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The config is refused.
    Error,
    /// The config is accepted; someone should look.
    Warning,
}

impl Severity {
    /// `error` or `warning`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// A mistake and its place, before the report is made.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) severity: Severity,
    pub(crate) code: &'static str,
    pub(crate) span: Option<Span>,
    pub(crate) path: ConfigPath,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
    pub(crate) related: Vec<(Span, String)>,
}

impl Problem {
    pub(crate) fn error(code: &'static str, span: Span, path: ConfigPath, message: impl Into<String>) -> Self {
        let (severity, message) = (Severity::Error, message.into());
        Self { severity, code, span: Some(span), path, message, help: None, related: Vec::new() }
    }

    /// A mistake of the file as a whole, such as that it cannot be read.
    pub(crate) fn whole(code: &'static str, message: impl Into<String>) -> Self {
        Self { span: None, ..Self::error(code, Span::default(), ConfigPath::root(), message) }
    }

    pub(crate) fn warning(self) -> Self {
        Self { severity: Severity::Warning, ..self }
    }

    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// A mistake that ends the parse; boxed, for it is the rare case of a result.
    pub(crate) fn fatal(self, help: &str) -> Box<Self> {
        Box::new(self.help(help))
    }

    pub(crate) fn related(mut self, span: Span, label: impl Into<String>) -> Self {
        self.related.push((span, label.into()));
        self
    }
}

/// One mistake.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The kind of mistake, stable for machines: `syntax`, `unknown-key`, `type`, `value`, `missing`, `duplicate`,
    /// `environment`, `reference`, `conflict`, `limit`, `unused`, `risk` or `file`.
    pub code: &'static str,
    /// The config path; the root when the file as a whole is meant.
    pub path: ConfigPath,
    /// The line, from 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// The column, from 1, in characters; 0 when the file as a whole is meant.
    pub column: usize,
    /// The column behind the last character of the offending text, on the same line.
    pub end_column: usize,
    /// What is wrong, in one line.
    pub message: String,
    /// How to mend it.
    pub help: Option<String>,
    /// Other places that belong to it.
    pub related: Vec<Related>,
    excerpt: Option<Excerpt>,
}

/// Another place that belongs to a mistake, such as the first of two duplicates.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Related {
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// What stands there.
    pub message: String,
}

/// Everything wrong with a config file, sorted by position. Never empty when it is an `Err`.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics {
    file: String,
    items: Vec<Diagnostic>,
    omitted: usize,
}

impl Diagnostics {
    /// Makes the report. `secrets` are the places of the text that must not be shown.
    pub(crate) fn new(file: &str, text: &str, mut problems: Vec<Problem>, secrets: &[Span]) -> Self {
        if problems.is_empty() {
            // Nothing of the text is to be shown; a copy of it would be made ready for that.
            return Self { file: file.to_owned(), ..Self::default() };
        }
        problems.sort_by(|a, b| (a.span, a.severity, &a.path).cmp(&(b.span, b.severity, &b.path)));
        problems.dedup_by(|a, b| a.span == b.span && a.message == b.message);
        let omitted = problems.len().saturating_sub(MAX_LISTED);
        let source = Source::new(text, secrets);
        let items = problems.into_iter().take(MAX_LISTED).map(|problem| diagnostic(&source, problem)).collect();
        Self { file: file.to_owned(), items, omitted }
    }

    /// A report of one mistake of the file as a whole.
    pub(crate) fn whole(file: &str, problem: Problem) -> Self {
        Self::new(file, "", vec![problem], &[])
    }

    /// The file, as named by the caller.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Each mistake, in the order of the file; at most 100.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.items.iter()
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether any of them is an error.
    pub fn has_errors(&self) -> bool {
        self.items.iter().any(|item| item.severity == Severity::Error)
    }

    /// The report as text for a terminal, with colours or without; empty when there is nothing to say.
    pub fn render(&self, color: bool) -> String {
        let mut out = String::new();
        for item in &self.items {
            out += &render::diagnostic(&self.file, item, item.excerpt.as_ref(), color);
            out += "\n\n";
        }
        if !self.items.is_empty() {
            out += &format!("{}: {}", sanitize(&self.file), self.summary());
        }
        out
    }

    /// `2 errors, 1 warning`.
    fn summary(&self) -> String {
        let count = |severity: Severity| {
            let n = self.items.iter().filter(|item| item.severity == severity).count();
            (n > 0).then(|| format!("{n} {}{}", severity.as_str(), if n == 1 { "" } else { "s" }))
        };
        let mut parts: Vec<_> = [count(Severity::Error), count(Severity::Warning)].into_iter().flatten().collect();
        if self.omitted > 0 {
            parts.push(format!("and {} more not listed", self.omitted));
        }
        parts.join(", ")
    }

    /// The report for machines: an object with `file`, `valid`, `omitted` and `diagnostics`.
    pub fn to_json(&self) -> Value {
        let items = self.items.iter().map(|item| {
            let related = item.related.iter();
            json!({
                "severity": item.severity.as_str(),
                "code": item.code,
                "file": self.file,
                "line": item.line,
                "column": item.column,
                "endColumn": item.end_column,
                "path": item.path.as_str(),
                "message": item.message,
                "help": item.help,
                "related": related
                    .map(|at| json!({ "line": at.line, "column": at.column, "message": at.message }))
                    .collect::<Vec<_>>(),
            })
        });
        let items: Vec<_> = items.collect();
        json!({ "file": self.file, "valid": !self.has_errors(), "omitted": self.omitted, "diagnostics": items })
    }
}

fn diagnostic(source: &Source<'_>, problem: Problem) -> Diagnostic {
    let span = problem.span.map(|span| source.first_line(span));
    let (start, end) = span.map_or(((0, 0), (0, 0)), |span| (source.position(span.start), source.position(span.end)));
    let related = problem.related.iter().map(|(span, message)| {
        let (line, column) = source.position(span.start);
        Related { line, column, message: sanitize(message) }
    });
    Diagnostic {
        severity: problem.severity,
        code: problem.code,
        line: start.0,
        column: start.1,
        end_column: end.1,
        message: sanitize(&problem.message),
        help: problem.help.as_deref().map(sanitize),
        related: related.collect(),
        excerpt: span.and_then(|span| Excerpt::new(source, span, &problem.related)),
        path: ConfigPath::from(sanitize(problem.path.as_str()).as_str()),
    }
}

/// Keeps a text from a file on one line and free of terminal escapes, and not too long.
fn sanitize(text: &str) -> String {
    const MAX: usize = 600;
    let mut clean = String::with_capacity(text.len().min(MAX));
    for c in text.chars() {
        if clean.len() >= MAX {
            clean.push('…');
            break;
        }
        if c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}
