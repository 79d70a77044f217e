//! What is wrong with a config file, for people and for machines.
//!
//! In: mistakes, each with its place in the text. Out: one report, in the order of the
//! file, as text (plain or coloured) or JSON. Promise: no secret of the file and no value
//! of an environment variable is shown.

use std::fmt;

use crate::ConfigPath;

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

/// One mistake.
#[derive(Debug, Clone)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The config path; the root when the file as a whole is meant.
    pub path: ConfigPath,
    /// The line, from 1; 0 when the file could not be read.
    pub line: usize,
    /// The column, from 1, in characters; 0 when the file could not be read.
    pub column: usize,
    /// What is wrong, in one line.
    pub message: String,
    /// How to mend it.
    pub help: Option<String>,
}

/// Everything wrong with a config file, sorted by position. Never empty when it is an `Err`.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics {
    file: String,
    items: Vec<Diagnostic>,
}

impl Diagnostics {
    pub(crate) fn new(file: &str, items: Vec<Diagnostic>) -> Self {
        Self { file: file.to_owned(), items }
    }

    /// The file, as named by the caller.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Each mistake, in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.items.iter()
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The report as text for a terminal, with colours or without.
    pub fn render(&self, _color: bool) -> String {
        let mut out = String::new();
        for item in &self.items {
            out += &format!(
                "{}: {}\n --> {}:{}:{}\n",
                item.severity.as_str(),
                item.message,
                self.file,
                item.line,
                item.column
            );
        }
        out
    }

    /// The report for machines.
    pub fn to_json(&self) -> serde_json::Value {
        let items = self.items.iter().map(|item| {
            serde_json::json!({
                "severity": item.severity.as_str(), "file": self.file, "line": item.line, "column": item.column,
                "path": item.path.as_str(), "message": item.message, "help": item.help,
            })
        });
        serde_json::json!({ "file": self.file, "diagnostics": items.collect::<Vec<_>>() })
    }
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
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for Diagnostics {}
