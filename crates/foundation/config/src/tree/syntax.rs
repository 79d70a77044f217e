//! Explains a YAML syntax error: what the scanner says, in the words of a config's author.
//!
//! In: the text and the scanner's error. Out: a [`Problem`] at the error's place. The
//! common slips (tabs, a template without quotes, a colon in a text) get their own remedy.

use granit_parser::{ErrorKind, ScanError};

use super::Span;
use crate::ConfigPath;
use crate::diagnostic::Problem;

pub(super) fn explain(text: &str, error: &ScanError) -> Problem {
    let at = place(text, error);
    let line = line_around(text, at.range().start);
    let (message, help) = match error.kind() {
        ErrorKind::TabInIndentation
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabNotAllowed
        | ErrorKind::TabAtBlockScalarStart
        | ErrorKind::TabInPlainScalar => {
            ("a tab is not allowed here".to_owned(), "YAML is indented with spaces; replace the tab")
        }
        ErrorKind::RecursionLimitExceeded => {
            ("values are nested too deep".to_owned(), "no part of the config is that deep; look for a bracket too many")
        }
        _ if value_of(line).is_some_and(|value| value.starts_with("{{")) => (
            "a value that begins with `{{` is not a text in YAML".to_owned(),
            "put quotes around the template: '{{ … }}', or write it as a block below `|`",
        ),
        ErrorKind::UnexpectedCharacter { character } => {
            (format!("a value cannot begin with `{}`", character.escape_debug()), "put quotes around the value")
        }
        ErrorKind::UnclosedQuotedScalar => ("a quote is not closed".to_owned(), "add the closing quote"),
        ErrorKind::UnclosedFlowCollection { open } => {
            (format!("the bracket `{open}` is not closed"), "add the closing bracket")
        }
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => {
            (format!("the bracket `{open}` is closed by `{close}`"), "close it with the bracket that fits")
        }
        ErrorKind::MisplacedFlowCollectionEnd => {
            ("a closing bracket has no opening one".to_owned(), "remove it, or put quotes around the value")
        }
        ErrorKind::MappingValueNotAllowed | ErrorKind::InvalidColonPlacement => (
            "a `: ` is not allowed here".to_owned(),
            "put quotes around a text that holds `: `; else check the indentation of this line and the one before",
        ),
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => (
            "this line is no `key: value`".to_owned(),
            "add the `:` and a space behind the key, or indent the line so that it belongs to the value above",
        ),
        ErrorKind::ExpectedBlockMappingKey
        | ErrorKind::ExpectedBlockSequenceEntry
        | ErrorKind::BlockSequenceEntryNotAllowed
        | ErrorKind::InvalidIndentation
        | ErrorKind::MappingKeyNotAllowed => (
            "this line does not fit the lines above it".to_owned(),
            "check the indentation: keys of one mapping and `-` of one list stand in one column",
        ),
        ErrorKind::ExpectedFlowMappingSeparator
        | ErrorKind::ExpectedFlowSequenceSeparator
        | ErrorKind::UnexpectedEofFlowMapping
        | ErrorKind::UnexpectedEofFlowSequence => (
            "a `,` or the closing bracket is missing".to_owned(),
            "inside brackets, put quotes around texts that hold `{`, `}`, `[`, `]`, `,` or `${…}`",
        ),
        ErrorKind::UnknownQuotedScalarEscape => {
            ("an unknown escape follows the backslash".to_owned(), "double the backslash, or use single quotes")
        }
        ErrorKind::CommentNotSeparated => {
            ("a comment needs a space before its `#`".to_owned(), "add the space, or put quotes around the value")
        }
        ErrorKind::BomInsideDocument => ("a byte-order mark stands inside the file".to_owned(), "remove it"),
        other => (other.to_string(), "see https://yaml.org/spec/1.2.2 for the rules, or put quotes around the value"),
    };
    Problem::error("syntax", at, ConfigPath::root(), message).help(help)
}

/// The character at the error; the last one of the text when the error is its end.
fn place(text: &str, error: &ScanError) -> Span {
    let mark = error.marker();
    let by_characters = || text.char_indices().nth(mark.index()).map_or(text.len(), |(at, _)| at);
    let mut start = mark.byte_offset().unwrap_or_else(by_characters).min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    if text[start..].trim().is_empty() {
        let end = text.trim_end().len();
        let last = text[..end].chars().next_back().map_or(0, char::len_utf8);
        return Span::new(end - last, end);
    }
    let length = text[start..].chars().next().map_or(0, char::len_utf8);
    Span::new(start, start + length)
}

fn line_around(text: &str, at: usize) -> &str {
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    text[start..].lines().next().unwrap_or_default()
}

/// What follows the key on a line.
fn value_of(line: &str) -> Option<&str> {
    line.split_once(": ").map(|(_, value)| value.trim_start())
}
