//! The wording of what the check finds: messages that say what is wrong, helps that mend it.

use serde_json::Value as Json;

use super::formats;
use super::schema::{Kind, Schema, Shape};
use crate::tree::{Node, Resolved, Scalar, Value};

/// Whether a scalar fits, else the message and the help.
pub(super) fn scalar(shape: Shape<'_>, scalar: &Scalar) -> Result<(), (String, String)> {
    let shown = scalar.shown();
    match shape.kind {
        Kind::Choice => choice(shape, scalar),
        Kind::Boolean => match scalar.resolve() {
            Resolved::Boolean(_) => Ok(()),
            _ => Err((format!("`{shown}` is neither `true` nor `false`"), boolean_help(&scalar.text))),
        },
        Kind::Integer => integer(shape, scalar),
        Kind::Number => match scalar.resolve() {
            Resolved::Integer(_) => Ok(()),
            Resolved::Float(n) if n.is_finite() => Ok(()),
            _ => Err((format!("`{shown}` is not a number"), number_help(scalar, "write a number such as `0.25`"))),
        },
        Kind::Size => match scalar.resolve() {
            Resolved::Integer(n) if u64::try_from(n).is_ok() => Ok(()),
            _ => text(shape, scalar),
        },
        Kind::Text => text(shape, scalar),
        // The caller has chosen one of the two already.
        Kind::Any | Kind::Short { .. } => Ok(()),
        Kind::Object { .. } | Kind::Map { .. } | Kind::List { .. } => {
            let (expected, mut help) = expectation(shape);
            let literal = scalar.written.is_none() && !scalar.text.is_empty() && scalar.text.len() < 80;
            match shape.kind {
                Kind::List { .. } if literal => help = format!("write a list: `[{}]`", scalar.text),
                Kind::Object { properties } if literal => {
                    let (word, rest) =
                        scalar.text.split_at(scalar.text.find([':', ' ', '=']).unwrap_or(scalar.text.len()));
                    if properties.contains_key(word) && !rest.is_empty() {
                        help = format!("`{word}` needs a colon and a space behind it: `{word}: …`");
                    }
                }
                _ => {}
            }
            let found = if scalar.text.is_empty() { "nothing" } else { "a single value" };
            Err((format!("expected {expected}, found {found}"), help))
        }
    }
}

/// The code of a diagnostic about a scalar that does not fit.
pub(super) fn code(shape: Shape<'_>, node: &Node) -> &'static str {
    let typed = match &node.value {
        Value::Scalar(scalar) => scalar.resolve() != Resolved::Text,
        _ => true,
    };
    match shape.kind {
        Kind::Object { .. } | Kind::Map { .. } | Kind::List { .. } => "type",
        Kind::Text if typed => "type",
        Kind::Integer | Kind::Number | Kind::Boolean if !typed => "type",
        _ => "value",
    }
}

/// A list where a mapping is expected, and the like.
pub(super) fn wrong_kind(shape: Shape<'_>, node: &Node) -> (String, String) {
    let found = match node.value {
        Value::Sequence(_) | Value::Endpoints(_) => "a list",
        Value::Mapping(_) => "a mapping",
        Value::Scalar(_) => "a single value",
    };
    let (expected, mut help) = expectation(shape);
    match (&shape.kind, &node.value) {
        (Kind::Object { .. } | Kind::Map { .. }, Value::Sequence(_)) => {
            help = format!("remove the `- ` or the brackets; {help}");
        }
        (Kind::List { .. }, Value::Mapping(_)) => "put `- ` before the first key of each item".clone_into(&mut help),
        (_, Value::Mapping(_)) if braces(node) => "put quotes around a text that begins with `{`".clone_into(&mut help),
        _ => {}
    }
    (format!("expected {expected}, found {found}"), help)
}

/// What is expected, and an example.
fn expectation(shape: Shape<'_>) -> (String, String) {
    let example = shape.format().and_then(formats::example);
    let such_as = |what: &str| {
        example.map_or_else(|| format!("write {what}"), |example| format!("write {what} such as `{example}`"))
    };
    match shape.kind {
        Kind::Object { properties } => {
            let keys: Vec<_> = properties.keys().map(String::as_str).collect();
            let help =
                if keys.is_empty() { "write `{}`".to_owned() } else { format!("its keys are {}", list_of(&keys)) };
            ("a mapping".to_owned(), help)
        }
        Kind::Map { .. } => ("a mapping".to_owned(), "write `name: value` lines below it".to_owned()),
        Kind::List { .. } => ("a list".to_owned(), "write `- ` before each item, or put them in `[…]`".to_owned()),
        Kind::Choice => ("a word".to_owned(), allowed_are(&shape.choices())),
        Kind::Boolean => ("`true` or `false`".to_owned(), "write `true` or `false`".to_owned()),
        Kind::Integer => (
            "a whole number".to_owned(),
            range_of(shape).map_or_else(|| "write a whole number".to_owned(), |range| format!("it must be {range}")),
        ),
        Kind::Number => ("a number".to_owned(), "write a number such as `0.25`".to_owned()),
        Kind::Size => ("a size".to_owned(), such_as("a size")),
        Kind::Text | Kind::Any | Kind::Short { .. } => match shape.format() {
            Some("go-duration") => ("a duration".to_owned(), such_as("a duration")),
            _ => ("a text".to_owned(), such_as("a text")),
        },
    }
}

fn choice(shape: Shape<'_>, scalar: &Scalar) -> Result<(), (String, String)> {
    let allowed = shape.choices();
    if allowed.contains(&scalar.text.as_str()) {
        return Ok(());
    }
    let fold = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let meant = allowed.iter().copied().find(|word| fold(word) == fold(&scalar.text));
    let meant = meant.or_else(|| nearest(&scalar.text, allowed.iter().copied()));
    // A hint would give a variable's value away.
    let help = match meant.filter(|_| scalar.written.is_none()) {
        Some(meant) => format!("did you mean `{meant}`? ({})", allowed_are(&allowed)),
        None => allowed_are(&allowed),
    };
    Err((format!("`{}` is not allowed here", scalar.shown()), help))
}

fn integer(shape: Shape<'_>, scalar: &Scalar) -> Result<(), (String, String)> {
    let shown = scalar.shown();
    let range = range_of(shape);
    let help =
        || range.as_ref().map_or_else(|| "write a whole number".to_owned(), |range| format!("it must be {range}"));
    let digits = scalar.text.trim_start_matches(['+', '-']);
    match scalar.resolve() {
        Resolved::Integer(_)
            if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()) =>
        {
            let plain = digits.trim_start_matches('0');
            let help = if scalar.written.is_some() {
                "remove the leading zeros".to_owned()
            } else {
                format!("write `{plain}`, or `0o{plain}` if octal is meant")
            };
            Err((format!("`{shown}` has a leading zero, which some read as octal"), help))
        }
        Resolved::Integer(n) => {
            if shape.bound("minimum").is_some_and(|minimum| n < minimum) {
                return Err((format!("`{shown}` is too small"), help()));
            }
            let widest = match shape.format() {
                Some("uint8") => i128::from(u8::MAX),
                Some("uint16") => i128::from(u16::MAX),
                Some("uint32") => i128::from(u32::MAX),
                Some("int32") => i128::from(i32::MAX),
                Some("int64") => i128::from(i64::MAX),
                _ => i128::from(u64::MAX),
            };
            if n > shape.bound("maximum").map_or(widest, |maximum| maximum.min(widest)) {
                let help =
                    if shape.bound("maximum").is_some() { help() } else { format!("it must be at most {widest}") };
                return Err((format!("`{shown}` is too large"), help));
            }
            Ok(())
        }
        _ => Err((format!("`{shown}` is not a whole number"), number_help(scalar, &help()))),
    }
}

fn text(shape: Shape<'_>, scalar: &Scalar) -> Result<(), (String, String)> {
    let secret = shape.format() == Some("password");
    let example = if secret { "\"…\"".to_owned() } else { format!("\"{}\"", scalar.shown()) };
    if let Some(Err(refusal)) = shape.format().map(|format| formats::check(format, &scalar.text)) {
        // The help may be made of the text, which must not be shown when it is a variable's.
        let generic = shape.format().and_then(formats::example).filter(|_| scalar.written.is_some());
        let help = generic.map_or(refusal.help, |example| format!("give it a value such as `{example}`"));
        let quoted = refusal.text == scalar.text;
        let text = if quoted { format!("`{}`", scalar.shown()) } else { refusal.text };
        let text = if quoted && scalar.shown().is_empty() { "an empty text".to_owned() } else { text };
        return Err((format!("{text} {}", refusal.problem), help));
    }
    let zero = shape.format() == Some("go-duration");
    let what = match scalar.resolve() {
        // What a variable holds is taken as text where a text is expected.
        _ if scalar.written.is_some() || zero => return Ok(()),
        Resolved::Text => return length(shape, scalar),
        Resolved::Null => {
            return Err((format!("expected {}, found nothing", expectation(shape).0), expectation(shape).1));
        }
        Resolved::Boolean(_) => "a boolean",
        Resolved::Integer(_) | Resolved::Float(_) => "a number",
    };
    let subject = if secret { "this value".to_owned() } else { format!("`{}`", scalar.shown()) };
    Err((format!("{subject} is {what} in YAML, but a text is expected"), format!("put it in quotes: {example}")))
}

fn length(shape: Shape<'_>, scalar: &Scalar) -> Result<(), (String, String)> {
    let minimum = shape.json.get("minLength").and_then(Json::as_u64).unwrap_or(0);
    if (scalar.text.chars().count() as u64) < minimum {
        return Err(("the text is empty".to_owned(), "give it a value".to_owned()));
    }
    Ok(())
}

fn number_help(scalar: &Scalar, usual: &str) -> String {
    if scalar.written.is_some() {
        return if scalar.plain { usual.to_owned() } else { "remove the quotes around it".to_owned() };
    }
    let bare = Scalar { plain: true, ..scalar.clone() };
    let is_number = |resolved| matches!(resolved, Resolved::Integer(_) | Resolved::Float(_));
    if !scalar.plain && is_number(bare.resolve()) {
        return format!("remove the quotes: `{}`", scalar.text);
    }
    let without = scalar.text.replace(['_', ','], "");
    let squeezed = Scalar { text: without, written: None, plain: true };
    if squeezed.text != scalar.text && matches!(squeezed.resolve(), Resolved::Integer(_)) {
        return format!("write it without separators: `{}`", squeezed.text);
    }
    usual.to_owned()
}

fn boolean_help(text: &str) -> String {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "on" | "y" | "1" => "write `true`".to_owned(),
        "no" | "off" | "n" | "0" => "write `false`".to_owned(),
        _ => "write `true` or `false`, without quotes".to_owned(),
    }
}

fn allowed_are(words: &[&str]) -> String {
    match words {
        [only] => format!("only `{only}` is allowed"),
        several => format!("allowed are {}", list_of(several)),
    }
}

/// `between 1 and 64`, of a number with bounds.
fn range_of(shape: Shape<'_>) -> Option<String> {
    match (shape.bound("minimum"), shape.bound("maximum")) {
        (Some(least), Some(most)) => Some(format!("a whole number between {least} and {most}")),
        (Some(0), None) => Some("a whole number, 0 or greater".to_owned()),
        (Some(least), None) => Some(format!("a whole number, at least {least}")),
        (None, Some(most)) => Some(format!("a whole number, at most {most}")),
        (None, None) => None,
    }
}

pub(super) fn explain_missing(key: &str, member: Shape<'_>) -> String {
    match (member.kind, member.format().and_then(formats::example)) {
        (Kind::Choice, _) => {
            format!("add `{key}: {}`; {}", member.choices().first().unwrap_or(&"…"), allowed_are(&member.choices()))
        }
        (Kind::Integer | Kind::Number, _) => format!("add `{key}: {}`", member.bound("minimum").unwrap_or(1).max(1)),
        (_, Some(example)) => format!("add `{key}: …`, such as `{key}: {example}`"),
        (Kind::List { .. }, _) => format!("add `{key}:` with at least one `- ` item below it"),
        (Kind::Object { .. }, _) => {
            let (_, keys) = expectation(member);
            format!("add `{key}:`; {keys}")
        }
        _ => format!("add `{key}: …`"),
    }
}

pub(super) fn explain_empty<'s>(key: &str, schema: &Schema<'s>, member: Shape<'s>) -> String {
    let required: Vec<_> = schema.required(member).collect();
    if required.is_empty() {
        format!("write `{key}: {{}}` to turn it on with its defaults, or remove the key")
    } else {
        format!("give it at least {}, or remove the key", list_of(&required))
    }
}

pub(super) fn explain_items(item: Shape<'_>) -> String {
    match item.kind {
        Kind::Object { properties } => {
            let keys: Vec<_> = properties.keys().map(String::as_str).collect();
            format!("give it at least one item; an item's keys are {}", list_of(&keys))
        }
        _ => "give it at least one item".to_owned(),
    }
}

/// The known word that an unknown one was probably meant to be.
pub(crate) fn nearest<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    if word.len() > 64 {
        return None;
    }
    let fold = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let folded = fold(word);
    let scored = known.into_iter().map(|candidate| {
        let target = fold(candidate);
        let distance = strsim::damerau_levenshtein(&folded, &target);
        // A plural or a part of the word is meant more often than the distance says.
        let contained =
            target.len() >= 4 && folded.len() >= 4 && (folded.starts_with(&target) || target.starts_with(&folded));
        let allowed = (target.chars().count().max(folded.chars().count()) / 3).max(1);
        (distance, candidate, distance <= allowed || contained)
    });
    scored.filter(|(.., close)| *close).min_by_key(|(distance, ..)| *distance).map(|(_, candidate, _)| candidate)
}

/// `` `a`, `b` and `c` ``
pub(crate) fn list_of(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        None => "nothing".to_owned(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// Whether a node looks like `{{ template }}` without quotes.
fn braces(node: &Node) -> bool {
    matches!(&node.value, Value::Mapping(entries) if entries.iter().all(|entry| entry.value.is_null()))
}

/// Whether a key by its name holds a secret.
pub(crate) fn is_sensitive(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let words = ["token", "secret", "passw", "credential", "authorization", "api-key", "apikey", "api_key", "private"];
    words.iter().any(|word| key.contains(word))
}
