//! Text in columns, fit for a terminal.
//!
//! In: rows of cells, which may hold anything a client sent. Out: aligned lines. Promise: no
//! cell can move the cursor, change colours or begin a new line.

use std::borrow::Cow;
use std::fmt::Write;

/// How a column is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A table that is known as a whole.
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.into_iter().map(|cell| shown(&cell).into_owned()).collect());
    }

    /// The lines, the first with the columns' names.
    pub(crate) fn lines(&self) -> Vec<String> {
        let head: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let mut widths: Vec<usize> = head.iter().map(|name| width(name)).collect();
        for row in &self.rows {
            for (most, cell) in widths.iter_mut().zip(row) {
                *most = (*most).max(width(cell));
            }
        }
        let line = |cells: &Vec<String>| {
            let mut line = String::new();
            for ((cell, (_, align)), width) in cells.iter().zip(&self.columns).zip(&widths) {
                pad(&mut line, cell, *width, *align);
                line.push_str("  ");
            }
            line.truncate(line.trim_end().len());
            line
        };
        std::iter::once(&head).chain(&self.rows).map(line).collect()
    }

    /// The lines, each ended.
    pub(crate) fn text(&self) -> String {
        self.lines().into_iter().fold(String::new(), |text, line| text + &line + "\n")
    }
}

/// Adds a cell of a width.
pub(crate) fn pad(line: &mut String, cell: &str, wide: usize, align: Align) {
    let blanks = wide.saturating_sub(width(cell));
    let _ = match align {
        Align::Left => write!(line, "{cell}{:blanks$}", ""),
        Align::Right => write!(line, "{:blanks$}{cell}", ""),
    };
}

/// Columns that a text takes, as far as one per character is right.
pub(crate) fn width(text: &str) -> usize {
    text.chars().count()
}

/// A text without anything that a terminal would act on.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    let acts = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(acts) {
        return text.into();
    }
    let one = |c: char| if acts(c) { c.escape_unicode().to_string() } else { c.to_string() };
    text.chars().map(one).collect::<String>().into()
}

/// A time as people read it, in at most seven characters.
pub(crate) fn seconds(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "-".to_owned(),
        s if s < 0.0000995 => format!("{:.0}us", s * 1e6),
        s if s < 0.00995 => format!("{:.1}ms", s * 1e3),
        s if s < 0.9995 => format!("{:.0}ms", s * 1e3),
        s if s < 99.95 => format!("{s:.1}s"),
        s if s < 5970.0 => format!("{:.0}m", s / 60.0),
        s if s < 172_800.0 => format!("{:.0}h", s / 3600.0),
        s => format!("{:.0}d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_acts_on_the_terminal() {
        let mut table = Table::new(&[("NAME", Align::Left), ("N", Align::Right), ("LAST", Align::Left)]);
        table.row(vec!["a".into(), "10".into(), "x\x1b[31m".into()]);
        table.row(vec!["ünüberlang".into(), "7".into(), String::new()]);
        assert_eq!(table.text(), "NAME         N  LAST\na           10  x\\u{1b}[31m\nünüberlang   7\n");
        assert_eq!(shown("plain"), "plain");
        assert_eq!(shown("a\u{202e}b\r\n"), "a\\u{202e}b\\u{d}\\u{a}");
    }

    #[test]
    fn times_are_short() {
        for (time, text) in [
            (0.0000004, "0us"),
            (0.00005, "50us"),
            (0.0012, "1.2ms"),
            (0.0099999, "10ms"),
            (0.25, "250ms"),
            (1.0, "1.0s"),
            (99.97, "2m"),
            (7200.0, "2h"),
            (1e6, "12d"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(seconds(time), text, "{time}");
        }
    }
}
