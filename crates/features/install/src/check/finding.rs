//! What is said of one thing.

use serde::Serialize;

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It could not be looked at.
    Unknown,
    /// It works, but not as it should, or not for long.
    Warning,
    /// It does not work.
    Failed,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// How it is.
    pub state: State,
    /// What was found.
    pub told: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    pub(crate) fn ok(what: &str, told: impl Into<String>) -> Self {
        Self { what: what.to_owned(), state: State::Ok, told: told.into(), mend: None }
    }

    pub(crate) fn bad(what: &str, state: State, told: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what: what.to_owned(), state, told: told.into(), mend: Some(mend.into()) }
    }

    pub(crate) fn failed(what: &str, told: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::bad(what, State::Failed, told, mend)
    }

    pub(crate) fn warning(what: &str, told: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::bad(what, State::Warning, told, mend)
    }

    /// What the API server did not tell.
    pub(crate) fn unknown(what: &str, why: &str) -> Self {
        Self::bad(what, State::Unknown, why, "ask as a user who may read it, or have the right given to you")
    }
}

/// All lines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order in which they are read best.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst of all states.
    pub fn worst(&self) -> State {
        self.findings.iter().map(|finding| finding.state).max().unwrap_or(State::Ok)
    }
}

/// At most so many names stand in a line; the rest is counted.
const NAMES: usize = 5;

/// `a, b, c and 4 more`.
pub(crate) fn some_of<T: AsRef<str>>(names: &[T]) -> String {
    let shown: Vec<&str> = names.iter().take(NAMES).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(NAMES) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// `1 pod`, `2 pods`.
pub(crate) fn count(number: usize, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}
