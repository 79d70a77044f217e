//! Splits one file into lines.
//!
//! In: an open file and an offset. Out: whole lines with the offset behind each. Promise:
//! never more than `max_line` bytes and one chunk in memory; a rest without a line feed is
//! held back until the feed comes, or until it is asked for.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memchr::memchr;

/// Read at once.
const CHUNK: usize = 64 * 1024;
/// Lines handed over at once: as an event, an empty line takes two hundred bytes.
const MOST_LINES: usize = 2048;

/// A line as it stood in the file.
pub(crate) struct RawLine<'a> {
    pub(crate) text: Cow<'a, str>,
    /// Cut to `max_line`.
    pub(crate) truncated: bool,
    /// It held bytes that are no UTF-8.
    pub(crate) repaired: bool,
    /// Where it begins.
    pub(crate) start: u64,
    /// Where the next one begins.
    pub(crate) end: u64,
}

/// Reads a file line by line from an offset.
pub(crate) struct Lines {
    /// Where the next read begins.
    position: u64,
    /// Where the line in `rest` begins.
    line_start: u64,
    /// The beginning of a line whose feed has not come.
    rest: Vec<u8>,
    /// The line in `rest` is longer than `max_line`; what follows is skipped up to its feed.
    cut: bool,
    max_line: usize,
    chunk: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(offset: u64, max_line: usize) -> Self {
        Self { position: offset, line_start: offset, rest: Vec::new(), cut: false, max_line, chunk: Vec::new() }
    }

    /// How far the file was read, lines held back included.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Whether a line without its feed is held back.
    pub(crate) fn holds_rest(&self) -> bool {
        self.position > self.line_start
    }

    /// Reads one chunk and hands each whole line to `take`. Gives the bytes read; 0 at the end of the file.
    pub(crate) fn read(&mut self, file: &File, mut take: impl FnMut(RawLine<'_>)) -> io::Result<usize> {
        self.chunk.resize(CHUNK, 0);
        let read = loop {
            match file.read_at(&mut self.chunk, self.position) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        let chunk = std::mem::take(&mut self.chunk);
        let (mut from, mut count, mut read) = (0, 0, read);
        while let Some(feed) = memchr(b'\n', &chunk[from..read]) {
            let piece = &chunk[from..from + feed];
            let piece = piece.strip_suffix(b"\r").unwrap_or(piece);
            from += feed + 1;
            let end = self.position + from as u64;
            if self.rest.is_empty() && !self.cut && piece.len() <= self.max_line {
                take(raw_line(piece, false, self.line_start, end));
            } else {
                if feed == 0 && !self.cut && self.rest.last() == Some(&b'\r') {
                    self.rest.pop();
                }
                self.hold(piece);
                take(raw_line(&self.rest, self.cut, self.line_start, end));
                self.rest.clear();
                self.cut = false;
            }
            self.line_start = end;
            count += 1;
            if count == MOST_LINES {
                // What follows is read again.
                read = from;
            }
        }
        self.hold(&chunk[from..read]);
        self.position += read as u64;
        // An idle source keeps no chunk.
        if read > 0 {
            self.chunk = chunk;
        }
        Ok(read)
    }

    /// Gives the line that is held back as it is, as at the end of a stop or of a rotated file.
    pub(crate) fn take_rest(&mut self, take: impl FnOnce(RawLine<'_>)) {
        if self.holds_rest() {
            take(raw_line(&self.rest, self.cut, self.line_start, self.position));
            self.line_start = self.position;
            self.rest = Vec::new();
            self.cut = false;
        }
    }

    fn hold(&mut self, piece: &[u8]) {
        let room = self.max_line.saturating_sub(self.rest.len());
        self.cut |= piece.len() > room;
        self.rest.extend_from_slice(&piece[..piece.len().min(room)]);
    }
}

fn raw_line(bytes: &[u8], truncated: bool, start: u64, end: u64) -> RawLine<'_> {
    let text = String::from_utf8_lossy(bytes);
    let repaired = matches!(text, Cow::Owned(_));
    RawLine { text, truncated, repaired, start, end }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn all(lines: &mut Lines, file: &File) -> Vec<(String, u64, u64, bool)> {
        let mut out = Vec::new();
        while lines.read(file, |line| out.push((line.text.into_owned(), line.start, line.end, line.truncated))).unwrap()
            > 0
        {}
        out
    }

    #[test]
    fn lines_end_at_feeds_and_long_ones_are_cut() {
        let mut file = tempfile::tempfile().unwrap();
        let mut lines = Lines::new(0, 5);
        file.write_all(b"ab\r\n\nabcdefgh\nrest").unwrap();
        let read = all(&mut lines, &file);
        assert_eq!(read, [("ab".into(), 0, 4, false), (String::new(), 4, 5, false), ("abcde".into(), 5, 14, true)]);
        assert!(lines.holds_rest());
        file.write_all(b"!\n").unwrap();
        assert_eq!(all(&mut lines, &file), [("rest!".into(), 14, 20, false)]);
        file.write_all(b"end").unwrap();
        assert!(all(&mut lines, &file).is_empty());
        let mut last = String::new();
        lines.take_rest(|line| last = format!("{} {}-{}", line.text, line.start, line.end));
        assert_eq!(last, "end 20-23");
        // What follows later is a line of its own: neither glued nor sent twice.
        file.write_all(b"ing\n").unwrap();
        assert_eq!(all(&mut lines, &file), [("ing".into(), 23, 27, false)]);
    }

    proptest! {
        #[test]
        fn every_line_comes_once_however_it_is_written(
            pieces in prop::collection::vec("[ab\n]{0,40}", 0..20), max in 1usize..50,
        ) {
            let mut file = tempfile::tempfile().unwrap();
            let mut lines = Lines::new(0, max);
            let mut read = Vec::new();
            for piece in &pieces {
                file.write_all(piece.as_bytes()).unwrap();
                read.extend(all(&mut lines, &file));
                prop_assert!(lines.rest.len() <= max);
            }
            let whole = pieces.concat();
            let cut = |line: &str| line.chars().take(max).collect::<String>();
            let expected: Vec<String> = whole.split_inclusive('\n').filter(|l| l.ends_with('\n')).map(|l| cut(l.trim_end_matches('\n'))).collect();
            prop_assert_eq!(read.iter().map(|line| line.0.clone()).collect::<Vec<_>>(), expected);
            // Offsets are seamless.
            let mut at = 0;
            for line in &read {
                prop_assert_eq!(line.1, at);
                at = line.2;
            }
        }
    }
}
