//! Where a value stands: its place in the config, and its place in the file.
//!
//! In: the text of a file. Out: [`ConfigPath`], the name of a place as an operator would
//! write it, and [`Positions`], which finds its line and column again, so that errors of a
//! later hour (a port in use, a missing certificate) still point at the file.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use crate::judge;
use crate::source::Source;
use crate::tree::{self, Value};

/// A place in the config, such as `proxy.listeners[0].routes[1].backendRefs[0].name`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConfigPath(String);

impl ConfigPath {
    /// The whole config.
    pub const fn root() -> Self {
        Self(String::new())
    }

    /// The member `key` of this place.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        match (plain, self.0.is_empty()) {
            (true, true) => Self(key.to_owned()),
            // Each value of a large file has one: `format!` would find its length by trying.
            (true, false) => {
                let mut text = String::with_capacity(self.0.len() + 1 + key.len());
                text.extend([&self.0, ".", key]);
                Self(text)
            }
            (false, _) => Self(format!("{}[{key:?}]", self.0)),
        }
    }

    /// The item `index` of the list at this place, counted from 0.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        const MOST_DIGITS: usize = 20;
        let mut text = String::with_capacity(self.0.len() + 2 + MOST_DIGITS);
        text.push_str(&self.0);
        // Writing to a text never fails.
        let _ = write!(text, "[{index}]");
        Self(text)
    }

    /// The item of that name of the list at this place, where the index would say too little.
    #[must_use]
    pub fn item(&self, name: &str) -> Self {
        let plain = name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'[' | b']'));
        Self(if plain { format!("{}[{name}]", self.0) } else { format!("{}[{name:?}]", self.0) })
    }

    /// The path as text; empty for the whole config.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The place around this one; `None` for the whole config.
    pub fn parent(&self) -> Option<Self> {
        if self.0.is_empty() {
            return None;
        }
        // A key in brackets is quoted and may hold any character, escaped.
        let quoted = self.0.strip_suffix("\"]").and_then(|_| self.0.rfind("[\""));
        Some(Self(self.0[..quoted.or_else(|| self.0.rfind(['.', '['])).unwrap_or(0)].to_owned()))
    }

    /// Whether this place is `ancestor` or lies within it.
    pub fn is_within(&self, ancestor: &Self) -> bool {
        self.0
            .strip_prefix(&ancestor.0)
            .is_some_and(|rest| ancestor.0.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
    }
}

impl fmt::Display for ConfigPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for ConfigPath {
    /// Takes a path already in its written form.
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// A line and a column, both counted from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

/// Where each value of a config stands in its file. Few ask, and a large file has very many: it is read again for that.
#[derive(Clone, Default, PartialEq)]
pub struct Positions {
    file: String,
    /// As it was read; variables are not filled in.
    text: String,
}

impl Positions {
    pub(crate) fn new(file: &str, text: String) -> Self {
        Self { file: file.to_owned(), text }
    }

    fn places(&self) -> BTreeMap<String, Position> {
        let mut places = BTreeMap::new();
        // What stands where does not depend on variables: they fill in single values.
        let Ok(parsed) = tree::parse(&self.text, &|_| None) else { return places };
        let source = Source::new(&self.text, &[]);
        judge::walk(&parsed.root, &mut |path, key, node| {
            let span = match (&node.value, key) {
                (Value::Scalar(_), _) | (_, None) => node.span,
                (_, Some(key)) => key,
            };
            let (line, column) = source.position(span.start);
            let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            places.insert(path.0.clone(), Position { line: number(line), column: number(column) });
        });
        places
    }

    /// The file the config was read from.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Where the value at `path` stands; `None` when the file does not give it (a default).
    pub fn get(&self, path: &ConfigPath) -> Option<Position> {
        self.places().get(&path.0).copied()
    }

    /// `FILE:LINE:COLUMN` of the value at `path`, or of the nearest place around it that the file gives.
    pub fn locate(&self, path: &ConfigPath) -> String {
        let (mut place, places) = (path.0.as_str(), self.places());
        loop {
            if let Some(at) = places.get(place) {
                return format!("{}:{}:{}", self.file, at.line, at.column);
            }
            match place.rfind(['.', '[']) {
                Some(cut) => place = &place[..cut],
                None if place.is_empty() => return self.file.clone(),
                None => place = "",
            }
        }
    }
}

impl fmt::Debug for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text may hold secrets.
        f.debug_struct("Positions").field("file", &self.file).finish_non_exhaustive()
    }
}
