//! A place in one line, and the words that can stand there.
//!
//! Promise: each step costs as much as what it reads.

pub(super) struct Cursor<'a> {
    line: &'a str,
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(line: &'a str) -> Self {
        Self { line, position: 0 }
    }

    /// The byte in the line, counted from 1.
    pub(super) fn column(&self) -> usize {
        self.position + 1
    }

    pub(super) fn rest(&self) -> &'a str {
        &self.line[self.position..]
    }

    /// Everything up to the end of the line.
    pub(super) fn take_rest(&mut self) -> &'a str {
        let rest = self.rest();
        self.position = self.line.len();
        rest
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub(super) fn advance(&mut self) {
        self.position += self.peek().map_or(0, char::len_utf8);
    }

    pub(super) fn skip_blanks(&mut self) {
        self.position += self.rest().bytes().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    }

    pub(super) fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.peek() != Some(wanted) {
            return Err(format!("`{wanted}` must stand here"));
        }
        self.advance();
        Ok(())
    }

    /// What stands before the next blank.
    pub(super) fn until_blank(&mut self) -> &'a str {
        let word = self.rest().split([' ', '\t']).next().unwrap_or_default();
        self.position += word.len();
        word
    }

    /// A metric name (with colons) or a label name (without).
    pub(super) fn word(&mut self, colons: bool) -> Option<&'a str> {
        let rest = self.rest();
        let part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || (colons && *byte == b':');
        let length = rest.as_bytes().iter().take_while(|byte| part(byte)).count();
        if length == 0 || rest.as_bytes()[0].is_ascii_digit() {
            return None;
        }
        self.position += length;
        Some(&rest[..length])
    }

    /// A number as Prometheus reads it: decimal, `NaN`, and infinity with or without a sign, in any case.
    pub(super) fn number(&mut self) -> Result<f64, String> {
        let start = self.position;
        let word = self.until_blank();
        number(word).ok_or_else(|| {
            self.position = start;
            if word.is_empty() {
                "a number is missing here".to_owned()
            } else {
                format!("`{}` is not a number", shorten(word))
            }
        })
    }

    /// A text in quotes, in which `\n`, `\"` and `\\` are escapes. Another backslash stays: Prometheus keeps it, too.
    pub(super) fn quoted(&mut self) -> Result<String, String> {
        self.expect('"')?;
        let rest = self.rest();
        let mut escaped = false;
        let end = rest.bytes().position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        });
        let Some(end) = end else {
            self.position = self.line.len();
            return Err("the closing quote is missing".to_owned());
        };
        self.position += end + 1;
        Ok(unescape(&rest[..end], true))
    }
}

pub(super) fn number(word: &str) -> Option<f64> {
    let (negative, magnitude) = match word.as_bytes().first()? {
        b'-' => (true, &word[1..]),
        b'+' => (false, &word[1..]),
        _ => (false, word),
    };
    if magnitude.eq_ignore_ascii_case("inf") || magnitude.eq_ignore_ascii_case("infinity") {
        return Some(if negative { f64::NEG_INFINITY } else { f64::INFINITY });
    }
    if word.eq_ignore_ascii_case("nan") {
        return Some(f64::NAN);
    }
    let decimal = word.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E'));
    word.parse().ok().filter(|_| decimal)
}

/// Resolves `\n`, `\\`, and `\"` where that is one.
pub(super) fn unescape(text: &str, quotes: bool) -> String {
    if !text.contains('\\') {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some('\\') => out.push('\\'),
                Some('"') if quotes => out.push('"'),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            },
            other => out.push(other),
        }
    }
    out
}

/// What of a text is shown in an error.
pub(super) fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}
