//! A file's text as it may be shown: secrets masked, places still found.
//!
//! In: the text and the places of its secrets. Out: lines and columns of the text as it
//! is, and excerpts of the text as it may be shown. Promise: an excerpt holds no byte of
//! a secret, nor tells its length.

use std::ops::Range;

use crate::MASK;
use crate::tree::Span;

/// Bytes beyond which a line is one that a machine wrote.
const LONG_LINE: usize = 4 << 10;

pub(crate) struct Source<'a> {
    text: &'a str,
    /// Byte offset of each line's beginning.
    lines: Vec<usize>,
    shown: String,
    /// What was replaced: the range in `text`, and the range in `shown`.
    masked: Vec<(Range<usize>, Range<usize>)>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(text: &'a str, secrets: &[Span]) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(newlines).collect();
        let mut source = Self { text, lines, shown: String::with_capacity(text.len()), masked: Vec::new() };
        source.mask(secrets);
        source
    }

    /// Line and column, from 1, the column in characters.
    pub(crate) fn position(&self, at: u32) -> (usize, usize) {
        let at = (at as usize).min(self.text.len());
        let line = self.lines.partition_point(|start| *start <= at) - 1;
        let before = self.text.get(self.lines[line]..at).unwrap_or_default();
        // Counting characters is quadratic in a long line; there the byte is near enough.
        let column = if before.len() > LONG_LINE { before.len() } else { before.chars().count() };
        (line + 1, column + 1)
    }

    /// A place cut down to its first line, without the spaces behind it.
    pub(crate) fn first_line(&self, span: Span) -> Span {
        let text = self.text.get(span.range()).unwrap_or_default();
        let line = text.split(['\n', '\r']).next().unwrap_or_default().trim_end();
        Span::new(span.start as usize, span.start as usize + line.len())
    }

    /// The lines that hold all `spans`, as they may be shown, with the number of the first.
    pub(crate) fn excerpt(&self, spans: impl Iterator<Item = Span> + Clone) -> (String, usize, Vec<Range<usize>>) {
        let first = spans.clone().map(|span| self.position(span.start).0).min().unwrap_or(1);
        let last = spans.clone().map(|span| self.position(span.end).0).max().unwrap_or(1);
        let begin = self.moved(self.lines[first - 1]);
        let end = self.lines.get(last).map_or(self.shown.len(), |next| self.moved(*next));
        let text = self.shown.get(begin..end).unwrap_or_default();
        let within = |at: u32| self.moved(at as usize).saturating_sub(begin).min(text.len());
        let ranges = spans.map(|span| within(span.start)..within(span.end).max(within(span.start))).collect();
        (text.to_owned(), first, ranges)
    }

    /// Replaces each line of each secret; line breaks stay, so that lines keep their numbers.
    fn mask(&mut self, secrets: &[Span]) {
        let mut secrets = secrets.to_vec();
        secrets.sort();
        let mut done = 0;
        for secret in secrets {
            let Range { start, end } = secret.range();
            let start = start.max(done);
            let Some(text) = self.text.get(start..end) else { continue };
            let mut at = start;
            for line in text.split_inclusive('\n') {
                let content = line.trim();
                if !content.is_empty() {
                    let begin = at + line.len() - line.trim_start().len();
                    self.shown.push_str(&self.text[done..begin]);
                    let shown = self.shown.len();
                    self.shown.push_str(MASK);
                    done = begin + content.len();
                    self.masked.push((begin..done, shown..self.shown.len()));
                }
                at += line.len();
            }
        }
        self.shown.push_str(&self.text[done..]);
    }

    /// Where a byte of the text stands in the shown text.
    fn moved(&self, at: usize) -> usize {
        let before = self.masked.partition_point(|(was, _)| was.start < at);
        match before.checked_sub(1).map(|index| &self.masked[index]) {
            None => at,
            Some((was, is)) if at < was.end => is.end,
            Some((was, is)) => is.end + (at - was.end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_and_places_still_found() {
        let text = "a: secret1\nb: x\nc: |\n  two\n  lines\nd: y\n";
        let at = |needle: &str| {
            let start = text.find(needle).unwrap();
            Span::new(start, start + needle.len())
        };
        let source = Source::new(text, &[at("secret1"), at("|\n  two\n  lines")]);
        let (shown, first, ranges) = source.excerpt([at("secret1"), at("b"), at("y")].into_iter());
        assert_eq!(shown, "a: ********\nb: x\nc: ********\n  ********\n  ********\nd: y\n");
        assert_eq!(first, 1);
        let marked: Vec<_> = ranges.into_iter().map(|range| &shown[range]).collect();
        assert_eq!(marked, ["********", "b", "y"]);
        assert_eq!(source.position(at("y").start), (6, 4));
    }

    #[test]
    fn columns_count_characters() {
        let source = Source::new("é: x", &[]);
        assert_eq!(source.position(4), (1, 4));
        assert_eq!(source.position(99), (1, 5));
    }
}
