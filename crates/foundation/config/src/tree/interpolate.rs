//! Fills `${NAME}` and `${NAME:-default}` into a scalar; `$$` stands for one `$`.
//!
//! In: a scalar's text and a look-up. Out: the text with values in place of references,
//! or each reference that cannot be filled in. Promise: only scalars are touched, after
//! YAML was parsed, so that a value can never become structure. A `$` before anything
//! but `$` and `{` stays, and so does `${{`, which templates and other tools use.

use std::borrow::Cow;

/// Looks up a variable.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A text after interpolation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filled {
    pub(super) text: String,
    /// Whether a variable or its default was filled in (not only `$$`).
    pub(super) from_variable: bool,
}

/// A reference that cannot be filled in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfilled {
    /// The reference as written.
    pub(super) fragment: String,
    pub(super) message: String,
    pub(super) help: String,
}

/// Fills in every reference; `None` when there is none.
pub(super) fn fill(text: &str, environment: Environment<'_>) -> Result<Option<Filled>, Vec<Unfilled>> {
    if !text.contains("$$") && !text.contains("${") {
        return Ok(None);
    }
    let mut filled = Filled { text: String::with_capacity(text.len()), from_variable: false };
    let mut mistakes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        filled.text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            filled.text.push('$');
            rest = after;
        } else if rest.starts_with("${") && !rest.starts_with("${{") {
            let length = rest.find('}').map_or(rest.len(), |end| end + 1);
            match look_up(&rest[..length], environment) {
                Ok(value) => filled.text.push_str(&value),
                Err(mistake) => mistakes.push(mistake),
            }
            filled.from_variable = true;
            rest = &rest[length..];
        } else {
            filled.text.push('$');
            rest = &rest[1..];
        }
    }
    filled.text.push_str(rest);
    if mistakes.is_empty() { Ok(Some(filled)) } else { Err(mistakes) }
}

/// The value of one reference, `${…}` as written.
fn look_up<'a>(fragment: &'a str, environment: Environment<'_>) -> Result<Cow<'a, str>, Unfilled> {
    let refuse =
        |message: String, help: &str| Unfilled { fragment: fragment.to_owned(), message, help: help.to_owned() };
    let Some(inner) = fragment.strip_prefix("${").and_then(|inner| inner.strip_suffix('}')) else {
        let fragment: String = fragment.chars().take_while(|c| !c.is_whitespace()).collect();
        let message = format!("the variable reference `{fragment}` has no closing `}}`");
        return Err(Unfilled {
            fragment,
            message,
            help: "close it with `}`, or write `$${` for a literal `${`".to_owned(),
        });
    };
    let name_length = inner.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
    let (name, rest) = inner.split_at(name_length);
    if !is_variable_name(name) {
        return Err(refuse(
            format!("`{fragment}` does not name an environment variable"),
            "a name has letters, digits and `_`, and begins with no digit; write `$${` for a literal `${`",
        ));
    }
    let default = match rest.strip_prefix(":-") {
        Some(default) if default.contains("${") => {
            return Err(refuse(
                format!("the default of `${{{name}:-…}}` holds another reference"),
                "a default is taken as it stands; references cannot be nested",
            ));
        }
        Some(default) => Some(default),
        None if rest.is_empty() => None,
        None => {
            return Err(refuse(
                format!("`{fragment}` is not a form of reference known here"),
                "write `${NAME}`, or `${NAME:-default}` with a value for when NAME is unset or empty",
            ));
        }
    };
    match (environment(name), default) {
        (Some(value), Some(default)) if value.is_empty() => Ok(Cow::Borrowed(default)),
        (Some(value), _) => Ok(Cow::Owned(value)),
        (None, Some(default)) => Ok(Cow::Borrowed(default)),
        (None, None) => Err(refuse(
            format!("the environment variable `{name}` is not set"),
            &format!("set it, or give a default: `${{{name}:-…}}`"),
        )),
    }
}

/// Whether it is `[A-Za-z_][A-Za-z0-9_]*`.
pub(crate) fn is_variable_name(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && name.starts_with(|c: char| !c.is_ascii_digit())
}

/// Writes a text so that [`fill`] gives it back: the reverse of interpolation.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains("$$") && !text.contains("${") {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 4);
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        escaped.push(c);
        if c == '$' && matches!(characters.peek(), Some('$' | '{')) {
            escaped.push('$');
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "PORT" => Some("8080".to_owned()),
            "EMPTY" => Some(String::new()),
            "TRICKY" => Some("${PORT}: {a: b}\n- x".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn references() {
        let rows = [
            ("plain", None),
            ("cost $5", None),
            ("^a$", None),
            ("${PORT}", Some("8080")),
            ("127.0.0.1:${PORT:-1}", Some("127.0.0.1:8080")),
            ("${NONE:-9090}", Some("9090")),
            ("${NONE:-}", Some("")),
            ("${EMPTY:-x}", Some("x")),
            ("<${EMPTY}>", Some("<>")),
            ("${NONE:-a:-b}", Some("a:-b")),
            ("$$", Some("$")),
            ("$${PORT}", Some("${PORT}")),
            ("$$${PORT}", Some("$8080")),
            ("${TRICKY}", Some("${PORT}: {a: b}\n- x")),
            ("p${{ .Data }}", Some("p${{ .Data }}")),
            ("é${PORT}é", Some("é8080é")),
        ];
        for (text, expected) in rows {
            let filled = fill(text, &environment).unwrap();
            assert_eq!(filled.map(|filled| filled.text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn mistakes() {
        let rows = [
            ("${NONE}", "the environment variable `NONE` is not set"),
            ("${PORT", "has no closing `}`"),
            ("${}", "does not name"),
            ("${1A}", "does not name"),
            ("${A-B}", "is not a form of reference"),
            ("${A:?no}", "is not a form of reference"),
            ("${A:-${B}}", "holds another reference"),
        ];
        for (text, expected) in rows {
            let mistakes = fill(text, &environment).unwrap_err();
            assert!(mistakes[0].message.contains(expected), "{text}: {mistakes:?}");
        }
        assert_eq!(fill("${X} ${Y}", &environment).unwrap_err().len(), 2);
    }

    proptest::proptest! {
        #[test]
        fn escaped_text_comes_back(text in "[a${}:-]{0,20}") {
            let escaped = escape(&text);
            let filled = fill(&escaped, &|_| None).unwrap();
            proptest::prop_assert_eq!(filled.map_or(escaped.clone().into_owned(), |filled| filled.text), text);
        }
    }
}
