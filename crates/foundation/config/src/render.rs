//! Draws one mistake: its line of the file with the offending text underlined.
//!
//! In: a [`Diagnostic`] and its [`Excerpt`]. Out: text for a terminal, coloured or plain.

use std::ops::Range;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::diagnostic::{Diagnostic, Severity};
use crate::source::Source;
use crate::tree::Span;

/// The lines of the file that a mistake is shown with.
#[derive(Debug, Clone)]
pub(crate) struct Excerpt {
    text: String,
    first_line: usize,
    primary: Range<usize>,
    related: Vec<(Range<usize>, String)>,
}

/// The most bytes of an excerpt; a longer line is named by its number only.
const MAX_BYTES: usize = 16 << 10;

impl Excerpt {
    /// The lines of the mistake and of what is related; without the latter when that would be too much to show.
    pub(crate) fn new(source: &Source<'_>, span: Span, related: &[(Span, String)]) -> Option<Self> {
        let with = |related| Some(Self::with(source, span, related)).filter(|excerpt| excerpt.text.len() <= MAX_BYTES);
        with(related).or_else(|| with(&[]))
    }

    fn with(source: &Source<'_>, span: Span, related: &[(Span, String)]) -> Self {
        let others = related.iter().map(|(other, _)| source.first_line(*other));
        let (text, first_line, mut ranges) = source.excerpt(std::iter::once(span).chain(others));
        let primary = ranges.remove(0);
        let related = ranges.into_iter().zip(related.iter().map(|(_, label)| label.clone())).collect();
        Self { text, first_line, primary, related }
    }
}

pub(crate) fn diagnostic(file: &str, item: &Diagnostic, excerpt: Option<&Excerpt>, color: bool) -> String {
    let level = match item.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut group = level.primary_title(item.message.as_str()).elements(excerpt.map(|excerpt| snippet(file, excerpt)));
    if excerpt.is_none() {
        group = group.element(annotate_snippets::Origin::path(file));
    }
    if !item.path.as_str().is_empty() {
        group = group.element(Level::NOTE.with_name("at").message(item.path.as_str()));
    }
    if let Some(help) = &item.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    renderer.decor_style(DecorStyle::Ascii).render(&[group])
}

fn snippet<'a>(file: &'a str, excerpt: &'a Excerpt) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let primary = AnnotationKind::Primary.span(excerpt.primary.clone());
    let related = excerpt.related.iter();
    let related = related.map(|(range, label)| AnnotationKind::Context.span(range.clone()).label(label.as_str()));
    Snippet::source(excerpt.text.as_str())
        .line_start(excerpt.first_line)
        .path(file)
        .annotation(primary)
        .annotations(related)
}
