//! Reads long lists of endpoints in place of the YAML library, which takes far longer for them.
//!
//! In: a file's text. Out: the lists of which every item has one of a few plain forms, typed already, and the text
//! without them: a marker stands for each. Promise: what YAML is, and what is wrong with a file, is for the library
//! alone to say. A list with anything that is not plain stays in the text; and whoever reads the text takes it whole,
//! unless each marker comes back as the value of a cluster's `endpoints`. What stands before a list leads the library
//! to the same place with the marker and without, and a list ends where a line begins that can belong only to what is
//! around it.

use super::{Resolved, Span, resolve};
use crate::{Endpoint, Endpoints, HostPort, Name};

/// Shorter lists are left to the library.
const SHORTEST: usize = 8;
/// The longest line: a key of YAML, such as an item may begin with, has a bound, too.
const LONGEST_LINE: usize = 512;
const KEY: &str = "endpoints:";
/// What stands for a list: a text in quotes, which no line below it could belong to.
const MARKER: &str = " \"-\"";

/// A text without its lists.
pub(super) struct Shortened {
    pub(super) text: String,
    pub(super) lists: Vec<List>,
}

/// A list that was read.
pub(super) struct List {
    /// Where its marker's value begins, in the shortened text.
    pub(super) marker: usize,
    /// Where its lines end in the file, and its marker in the shortened text.
    ends: (usize, usize),
    pub(super) span: Span,
    pub(super) endpoints: Endpoints,
    /// Values in it, keys and itself included.
    pub(super) nodes: usize,
}

impl Shortened {
    /// `None` when there is no list to be taken out.
    pub(super) fn of(file: &str) -> Option<Self> {
        let (mut text, mut lists, mut copied, mut from) = (String::new(), Vec::new(), 0, 0);
        while let Some(found) = file[from..].find(KEY) {
            let key = from + found;
            let behind = key + KEY.len();
            from = behind;
            let Some(column) = column_of_key(file, key) else { continue };
            let mut lines = Lines { text: file.as_bytes(), at: behind };
            // Lists of a file are often of one length, and room for that is not copied into more.
            let room = lists.last().map_or(0, |list: &List| list.endpoints.len());
            let Some(Rows { endpoints, span, nodes, end }) = lines.rows(file, column, room) else { continue };
            if endpoints.len() < SHORTEST {
                continue;
            }
            text.push_str(&file[copied..behind]);
            let marker = text.len() + 1;
            text.push_str(MARKER);
            lists.push(List { marker, ends: (end, text.len()), span, endpoints: endpoints.into(), nodes });
            (copied, from) = (end, end);
        }
        if lists.is_empty() {
            return None;
        }
        text.push_str(&file[copied..]);
        Some(Self { text, lists })
    }

    /// Where a place of the shortened text is in the file.
    pub(super) fn original(&self, at: usize) -> usize {
        let before = self.lists.partition_point(|list| list.ends.1 <= at);
        let ends = before.checked_sub(1).map_or((0, 0), |index| self.lists[index].ends);
        at - ends.1 + ends.0
    }
}

/// The column of a key that begins its line, or the line's item of a list.
fn column_of_key(file: &str, key: usize) -> Option<usize> {
    let before = &file.as_bytes()[key.saturating_sub(LONGEST_LINE)..key];
    let line = before.iter().rposition(|byte| *byte == b'\n').map_or(before, |newline| &before[newline + 1..]);
    if line.len() == LONGEST_LINE {
        return None;
    }
    let spaces = line.iter().take_while(|byte| **byte == b' ').count();
    match &line[spaces..] {
        [] => Some(line.len()),
        [b'-', rest @ ..] if !rest.is_empty() && rest.iter().all(|byte| *byte == b' ') => Some(line.len()),
        _ => None,
    }
}

/// The items of a list.
struct Rows {
    endpoints: Vec<Endpoint>,
    span: Span,
    nodes: usize,
    /// Where the last of its lines ends.
    end: usize,
}

/// A place in the text.
struct Lines<'t> {
    text: &'t [u8],
    at: usize,
}

impl<'t> Lines<'t> {
    /// The rows below a key in `column`, from behind the key on, perhaps as many as there is to be `room` for; `None` when any
    /// of them is not plain.
    fn rows(&mut self, file: &'t str, column: usize, room: usize) -> Option<Rows> {
        self.end_of_line()?;
        let mut rows = Rows { endpoints: Vec::with_capacity(room), span: Span::default(), nodes: 1, end: 0 };
        let (mut start, mut last, mut own_column) = (None, 0, None);
        loop {
            let line = self.at;
            let indent = self.spaces();
            match self.peek() {
                Some(b'\n') => self.at += 1,
                Some(b'#') => self.comment()?,
                Some(b'-') if indent >= column && own_column.is_none_or(|own| own == indent) => {
                    own_column = Some(indent);
                    let dash = self.at;
                    self.at += 1;
                    if self.spaces() == 0 {
                        return None;
                    }
                    // To the library a list in its key's own column begins with the first item's value.
                    start.get_or_insert(if indent == column { self.at } else { dash });
                    let (endpoint, nodes, end) = self.row(file, line)?;
                    rows.endpoints.push(endpoint);
                    rows.nodes += nodes;
                    // Without the line's end: the marker's line ends there.
                    rows.end = if self.text.get(self.at - 1) == Some(&b'\n') { self.at - 1 } else { self.at };
                    last = end;
                }
                Some(b'\t' | b'\r') => return None,
                // A line of what is around the list. An item in the key's own column would be one of this list.
                Some(byte) if indent < column || (indent == column && byte != b'-') => break,
                None => break,
                Some(_) => return None,
            }
        }
        rows.span = Span::new(start?, last);
        Some(rows)
    }

    /// An item, from behind its `- `: the endpoint, how many values it is made of, and where it ends.
    fn row(&mut self, file: &'t str, line: usize) -> Option<(Endpoint, usize, usize)> {
        let column = self.at - line;
        let mut pairs = Pairs::default();
        let mut end;
        match self.peek()? {
            b'{' => {
                self.at += 1;
                loop {
                    self.spaces();
                    let key = self.key(file)?;
                    pairs.take(key, self.value(file)?)?;
                    self.spaces();
                    let next = self.peek()?;
                    self.at += 1;
                    match next {
                        b',' => {}
                        b'}' => break,
                        _ => return None,
                    }
                }
                end = self.at;
                self.end_of_line()?;
            }
            b'"' | b'\'' => return self.short(file),
            _ => {
                let begin = self.at;
                self.word(file)?;
                if self.peek() != Some(b':') {
                    self.at = begin;
                    return self.short(file);
                }
                self.at = begin;
                loop {
                    let key = self.key(file)?;
                    pairs.take(key, self.value(file)?)?;
                    end = self.at;
                    self.end_of_line()?;
                    let next = self.at;
                    if self.spaces() != column || !self.peek().is_some_and(|byte| byte.is_ascii_lowercase()) {
                        self.at = next;
                        break;
                    }
                }
            }
        }
        if self.at - line > 2 * LONGEST_LINE {
            return None;
        }
        Some((pairs.endpoint()?, 1 + 2 * pairs.count, end))
    }

    /// An item that is an address alone.
    fn short(&mut self, file: &'t str) -> Option<(Endpoint, usize, usize)> {
        let (text, _) = self.value(file)?;
        let end = self.at;
        self.end_of_line()?;
        Some((text.parse::<HostPort>().ok()?.into(), 1, end))
    }

    /// A key with the colon and the spaces behind it.
    fn key(&mut self, file: &'t str) -> Option<&'t str> {
        let key = self.word(file)?;
        if self.peek()? != b':' {
            return None;
        }
        self.at += 1;
        (self.spaces() > 0).then_some(key)
    }

    /// A value, and whether it stands without quotes. No character means anything to YAML there.
    fn value(&mut self, file: &'t str) -> Option<(&'t str, bool)> {
        let quote = match self.peek()? {
            quote @ (b'"' | b'\'') => quote,
            _ => return Some((self.word(file)?, true)),
        };
        let begin = self.at + 1;
        let length = self.text[begin..].iter().position(|byte| !is_quotable(*byte))?;
        self.at = begin + length;
        if self.peek()? != quote {
            return None;
        }
        self.at += 1;
        Some((&file[begin..begin + length], false))
    }

    /// A text without quotes: it begins with a letter or digit, and a `:` in it is followed by one.
    fn word(&mut self, file: &'t str) -> Option<&'t str> {
        let begin = self.at;
        if !self.peek()?.is_ascii_alphanumeric() {
            return None;
        }
        while let Some(byte) = self.peek() {
            let belongs = is_plain(byte)
                || (byte == b':' && self.text.get(self.at + 1).is_some_and(|next| next.is_ascii_alphanumeric()));
            if !belongs {
                break;
            }
            self.at += 1;
        }
        Some(&file[begin..self.at])
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Goes over spaces; how many there were.
    fn spaces(&mut self) -> usize {
        let begin = self.at;
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
        self.at - begin
    }

    /// Nothing more may stand on the line but a comment; goes to the next one.
    fn end_of_line(&mut self) -> Option<()> {
        let spaces = self.spaces();
        match self.peek() {
            None => {}
            Some(b'\n') => self.at += 1,
            Some(b'#') if spaces > 0 => self.comment()?,
            Some(_) => return None,
        }
        Some(())
    }

    /// A comment, up to the next line.
    fn comment(&mut self) -> Option<()> {
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b'\n' => break,
                b' '..=b'~' => {}
                _ => return None,
            }
        }
        Some(())
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

fn is_quotable(byte: u8) -> bool {
    is_plain(byte) || matches!(byte, b':' | b'[' | b']')
}

/// What an item says of an endpoint.
#[derive(Default)]
struct Pairs {
    address: Option<HostPort>,
    weight: Option<u32>,
    priority: Option<u32>,
    zone: Option<Name>,
    count: usize,
}

impl Pairs {
    /// `None` for whatever a check could have something to say about.
    fn take(&mut self, key: &str, (text, plain): (&str, bool)) -> Option<()> {
        let number = |most: u32| {
            let digits = text.len() <= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse::<u32>().ok().filter(|number| *number <= most)?;
            (plain && digits && (text == "0" || !text.starts_with('0'))).then_some(number)
        };
        self.count += 1;
        match key {
            // It has a colon, so it is neither a number nor a word that means something else.
            "address" if self.address.is_none() => self.address = Some(text.parse().ok()?),
            "weight" if self.weight.is_none() => self.weight = Some(number(Endpoint::MOST_WEIGHT)?),
            "priority" if self.priority.is_none() => self.priority = Some(number(Endpoint::LAST_PRIORITY)?),
            "zone" if self.zone.is_none() && (!plain || resolve(text, false) == Resolved::Text) => {
                self.zone = Some(text.parse().ok()?);
            }
            _ => return None,
        }
        Some(())
    }

    fn endpoint(&mut self) -> Option<Endpoint> {
        Some(Endpoint {
            weight: self.weight.unwrap_or(1),
            priority: self.priority.unwrap_or(0),
            zone: self.zone.take(),
            ..self.address.take()?.into()
        })
    }
}

#[cfg(test)]
mod tests;
