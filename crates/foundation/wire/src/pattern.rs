//! Regular expressions over the bytes of a message.
//!
//! In: an expression of an operator. Out: whether a text matches, all of it. Promise: the
//! expression is compiled whole into a table of bounded size, so a match is one look per
//! byte, whoever wrote the text; it allocates nothing, locks nothing and is shared by all
//! threads. An expression that would need a larger table is refused when it is compiled.

use regex_automata::dfa::Automaton;
use regex_automata::dfa::dense::{self, DFA};
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, MatchKind};

/// Bytes of the longest expression.
pub const MOST_BYTES: usize = 1024;
/// Bytes of the largest table.
const MOST_TABLE: usize = 512 << 10;
/// Memory for its making.
const MOST_MAKING: usize = 4 << 20;

/// A compiled expression.
#[derive(Clone)]
pub struct Pattern {
    text: Box<str>,
    table: DFA<Vec<u32>>,
    start: StateID,
}

/// Why an expression is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is longer than [`MOST_BYTES`].
    #[error("it is longer than {MOST_BYTES} bytes")]
    TooLong,
    /// It breaks the syntax.
    #[error("{0}")]
    Syntax(String),
    /// Its table would be too large.
    #[error("its table would be larger than {} KiB", MOST_TABLE >> 10)]
    TooLarge,
}

impl Pattern {
    /// Compiles an expression. Classes such as `\w` stand for ASCII; `.` is any byte but a line feed.
    ///
    /// # Errors
    /// What breaks the syntax, and what would need too much memory.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        if text.len() > MOST_BYTES {
            return Err(PatternError::TooLong);
        }
        let bytes = syntax::Config::new().unicode(false).utf8(false).nest_limit(64);
        // All alternatives are followed to the end, so that the whole text decides and not the first that fits.
        let config = dense::Config::new()
            .start_kind(regex_automata::dfa::StartKind::Anchored)
            .match_kind(MatchKind::All)
            .dfa_size_limit(Some(MOST_TABLE))
            .determinize_size_limit(Some(MOST_MAKING));
        let table = dense::Builder::new()
            .configure(config)
            .syntax(bytes)
            .thompson(thompson::Config::new().utf8(false).nfa_size_limit(Some(MOST_MAKING)))
            .build(text)
            .map_err(|error| refusal(&error))?;
        let start = table.start_state(&start::Config::new().anchored(Anchored::Yes));
        let start = start.map_err(|error| PatternError::Syntax(error.to_string()))?;
        Ok(Self { text: text.into(), table, start })
    }

    /// The expression as it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether all of the text matches.
    pub fn is_match(&self, text: impl IntoIterator<Item = u8>) -> bool {
        let mut state = self.start;
        for byte in text {
            state = self.table.next_state(state, byte);
            if self.table.is_special_state(state)
                && (self.table.is_dead_state(state) || self.table.is_quit_state(state))
            {
                return false;
            }
        }
        self.table.is_match_state(self.table.next_eoi_state(state))
    }

    /// Bytes of its table.
    pub fn size(&self) -> usize {
        self.table.memory_usage()
    }
}

impl std::fmt::Debug for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pattern").field(&self.text).finish()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

fn refusal(error: &dense::BuildError) -> PatternError {
    if error.is_size_limit_exceeded() {
        return PatternError::TooLarge;
    }
    // The cause shows the expression with a mark below; its last line says what is wrong.
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text = cause.to_string();
    let last = text.lines().next_back().unwrap_or_default();
    if text.contains("exceeded") || text.contains("exceeds") {
        return PatternError::TooLarge;
    }
    PatternError::Syntax(last.strip_prefix("error: ").unwrap_or(last).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern).unwrap().is_match(text.bytes())
    }

    #[test]
    fn the_whole_text_must_match() {
        for (pattern, text, expected) in [
            ("/v[0-9]+/items", "/v12/items", true),
            ("/v[0-9]+/items", "/v12/items/3", false),
            ("/v[0-9]+/items", "x/v1/items", false),
            ("/a|/ab", "/ab", true),
            ("/ab|/a", "/a", true),
            ("/a.*?", "/abc", true),
            ("a)|(b", "a", false),
            ("(?i)/shop", "/SHOP", true),
            ("^/x$", "/x", true),
            (r"\d{3}", "123", true),
            (r"\bfoo\b", "foo", true),
            ("", "", true),
            ("", "a", false),
            ("/é", "/é", true),
            (".*", "\u{fffd}\u{1}", true),
            ("(?x) /a # a comment", "/a", true),
        ] {
            if pattern.starts_with("a)") {
                assert!(matches!(Pattern::new(pattern), Err(PatternError::Syntax(_))), "{pattern}");
            } else {
                assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
            }
        }
        assert!(Pattern::new(".*").unwrap().is_match([0xff, 0x80]));
    }

    #[test]
    fn what_would_explode_is_refused_and_what_is_broken_says_why() {
        for pattern in ["(a|b)*a(a|b){18}", "(.{0,1000}x){1,100}", "((a{100}){100}){100}", "(?s:.)*a.{20}"] {
            assert_eq!(Pattern::new(pattern).unwrap_err(), PatternError::TooLarge, "{pattern}");
        }
        assert_eq!(Pattern::new(&"a".repeat(1025)).unwrap_err(), PatternError::TooLong);
        for (pattern, why) in [
            ("(", "unclosed group"),
            ("[a", "unclosed"),
            ("*", "repetition"),
            (r"\1", "backreferences"),
            (r"(?=a)", "look-around"),
        ] {
            let error = Pattern::new(pattern).unwrap_err().to_string();
            assert!(error.contains(why), "{pattern}: {error}");
        }
    }

    #[test]
    fn usual_ones_are_small() {
        for pattern in ["/v[0-9]+/items/.*", r"/api/(users|orders)/\d+(/.*)?", r".*\.(png|jpe?g|css)", "[^/]{1,63}"] {
            let size = Pattern::new(pattern).unwrap().size();
            assert!(size < 32 << 10, "{pattern}: {size}");
        }
    }
}
