//! From a file to a [`Config`]: read, parse, check, deserialise, judge.
//!
//! In: a path, or a text and the environment. Out: a [`Loaded`] config that can be run,
//! or [`Diagnostics`] with every mistake at once. Promise: nothing of a refused file is
//! used, and no input makes it panic or take unbounded time or memory.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::Value as Json;

use crate::check::{self, Checked};
use crate::diagnostic::{Diagnostics, Problem, Severity};
use crate::judge;
use crate::path::Positions;
use crate::schema::{copied_schema, model_schema};
use crate::tree::{self, Environment, MAX_BYTES, Node, Span, Value};
use crate::{Config, ConfigPath};

/// A config that can be run, and where its values stand in the file.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The config.
    pub config: Config,
    /// Where its values stand, for errors of a later hour.
    pub positions: Positions,
    /// What is accepted but deserves a look.
    pub warnings: Diagnostics,
}

/// Reads, interpolates, parses and validates a config file. Blocks on the file system.
///
/// # Errors
/// [`Diagnostics`] with every mistake of the file.
pub fn load(path: &Path) -> Result<Loaded, Diagnostics> {
    let file = path.display().to_string();
    let text = read(path).map_err(|problem| Diagnostics::whole(&file, *problem))?;
    parse_by(evaluate, &file, text, &|name| std::env::var(name).ok())
}

/// Interpolates, parses and validates the text of a config file. `file` is its name in messages, `env` looks up variables.
///
/// # Errors
/// [`Diagnostics`] with every mistake of the text.
pub fn parse(file: &str, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Diagnostics> {
    parse_by(evaluate, file, text.to_owned(), env)
}

/// The same, with all of the text read by the YAML library: what [`parse`] is held to in tests.
///
/// # Errors
/// [`Diagnostics`] with every mistake of the text.
#[doc(hidden)]
pub fn parse_whole(file: &str, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Diagnostics> {
    parse_by(evaluate_whole, file, text.to_owned(), env)
}

type Evaluate = fn(&str, Environment<'_>, Option<Json>) -> Result<Outcome, Box<Problem>>;

fn parse_by(evaluate: Evaluate, file: &str, mut text: String, env: Environment<'_>) -> Result<Loaded, Diagnostics> {
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    if text.len() > MAX_BYTES {
        return Err(Diagnostics::whole(file, too_large()));
    }
    let Outcome { config, problems, secrets } = evaluate(&text, env, copied_schema()).map_err(|problem| {
        let secrets = likely_secrets(&text);
        Diagnostics::new(file, &text, vec![*problem], &secrets)
    })?;
    let report = Diagnostics::new(file, &text, problems, &secrets);
    match config {
        Some(config) if !report.has_errors() => {
            Ok(Loaded { config, positions: Positions::new(file, text), warnings: report })
        }
        _ => Err(report),
    }
}

struct Outcome {
    config: Option<Config>,
    problems: Vec<Problem>,
    secrets: Vec<Span>,
}

/// Everything that can be said about a text; an error only for one that cannot be read on.
fn evaluate(text: &str, env: Environment<'_>, copy: Option<Json>) -> Result<Outcome, Box<Problem>> {
    let quick = tree::parse_shortened(text, env).and_then(|parsed| match &copy {
        Some(copy) => flawless(parsed, text, copy),
        None => flawless(parsed, text, &model_schema()),
    });
    quick.map_or_else(|| evaluate_whole(text, env, copy), Ok)
}

fn evaluate_whole(text: &str, env: Environment<'_>, copy: Option<Json>) -> Result<Outcome, Box<Problem>> {
    let mut parsed = tree::parse(text, env)?;
    let copied = copy.is_some();
    let schema = copy.unwrap_or_else(model_schema);
    let mut checked = check::check(&schema, &mut parsed.root, text, std::mem::take(&mut parsed.unread));
    // What a copy of the schema finds wrong the model itself must find, too. A check repairs the tree, so it is read again.
    if copied && !checked.problems.is_empty() {
        parsed = tree::parse(text, env)?;
        checked = check::check(&model_schema(), &mut parsed.root, text, std::mem::take(&mut parsed.unread));
    }
    Ok(conclude(parsed, checked).0)
}

/// The outcome for a tree of which long lists were read apart; `None` when the whole tree is needed for it: to say what is
/// wrong with the file, or where in such a list something stands.
fn flawless(mut parsed: tree::Parsed, text: &str, schema: &Json) -> Option<Outcome> {
    let checked = check::check(schema, &mut parsed.root, text, Vec::new());
    if !checked.problems.is_empty() {
        return None;
    }
    let (outcome, misses_places) = conclude(parsed, checked);
    let wrong = outcome.problems.iter().any(|problem| problem.severity == Severity::Error);
    (outcome.config.is_some() && !wrong && !misses_places).then_some(outcome)
}

/// From a checked tree to the config and what the rules say; and whether places were missing for that.
fn conclude(parsed: tree::Parsed, mut checked: Checked) -> (Outcome, bool) {
    let tree::Parsed { root, mut problems, .. } = parsed;
    problems.append(&mut checked.problems);
    let (config, misses_places) = match tree::from_node::<Config>(&root) {
        Ok(mut config) => {
            tree::fill_in(&mut config, &root);
            let judgement = judge::judge(&config, &root, &checked);
            problems.extend(judgement.problems);
            (Some(config), judgement.misses_places)
        }
        Err(refusal) => {
            problems.extend(unforeseen(&refusal, &root, &problems));
            (None, false)
        }
    };
    let Checked { secrets, .. } = checked;
    (Outcome { config, problems, secrets }, misses_places)
}

/// What serde refuses although the check let it pass; said only when nothing else is.
fn unforeseen(refusal: &tree::Refusal, root: &Node, problems: &[Problem]) -> Option<Problem> {
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        return None;
    }
    let span = refusal.span.unwrap_or_default();
    let mut place = ConfigPath::root();
    let mut from_variable = false;
    judge::walk(root, &mut |path, _, node| {
        if node.span == span {
            place = path.clone();
            from_variable |= matches!(&node.value, Value::Scalar(scalar) if scalar.written.is_some());
        }
    });
    // The message may quote the value, which must not be shown when it is a variable's.
    let message = if from_variable { "this value is not accepted" } else { refusal.message.as_str() };
    Some(Problem::error("value", span, place, message))
}

fn read(path: &Path) -> Result<String, Box<Problem>> {
    let unreadable = |message: String, help: &str| Box::new(Problem::whole("file", message).help(help));
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => unreadable(
            "the file does not exist".to_owned(),
            "check the path, or create the file; an empty file means all defaults",
        ),
        ErrorKind::PermissionDenied => unreadable(
            "no permission to read the file".to_owned(),
            "let the user that Outrigger runs as read it, and enter each folder above it",
        ),
        ErrorKind::IsADirectory => unreadable("the path is a folder, not a file".to_owned(), "name the file in it"),
        _ => unreadable(format!("the file cannot be read: {error}"), "check the path and the volume it is on"),
    };
    let file = File::open(path).map_err(failed)?;
    // Room for the whole of it, and for a look at its end: to grow takes twice as much.
    let length = file.metadata().map_or(0, |metadata| metadata.len()).min(MAX_BYTES as u64);
    let mut bytes = Vec::with_capacity(length as usize + 1);
    file.take(MAX_BYTES as u64 + 4).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_BYTES + 3 {
        return Err(Box::new(too_large()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let bytes = error.as_bytes();
        let valid = &bytes[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|b| **b == b'\n').count() + 1;
        if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
            return unreadable("the file is UTF-16, not UTF-8".to_owned(), "save it as UTF-8");
        }
        unreadable(format!("line {line} holds a byte that is not UTF-8"), "save the file as UTF-8")
    })
}

fn too_large() -> Problem {
    Problem::whole("limit", format!("the file is larger than {} KiB", MAX_BYTES >> 10))
        .help("make it smaller; large values belong into files of their own")
}

/// What may be secret in a text that cannot be parsed: what follows a key that tells so, and credentials in URLs.
fn likely_secrets(text: &str) -> Vec<Span> {
    let mut secrets = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let end = start + line.trim_end().len();
        for (colon, _) in line.match_indices(':') {
            let value = &line[colon + 1..];
            let from = start + line.len() - value.trim_start().len();
            let value = value.trim();
            let key = line[..colon].trim_end_matches([' ', '"', '\'']);
            let key = key.rsplit(|c: char| !(c.is_alphanumeric() || matches!(c, '-' | '_'))).next().unwrap_or_default();
            if let Some((user, _)) = value.strip_prefix("//").and_then(|rest| rest.split_once('@')) {
                secrets.push(Span::new(from + 2, from + 2 + user.len()));
            }
            let told = check::is_sensitive(key) || (key == "value" && !value.starts_with('/'));
            if told && from < end && !value.starts_with("${") {
                secrets.push(Span::new(from, end));
                break;
            }
        }
        start += line.len();
    }
    secrets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_a_copy_of_the_schema_the_same_is_said_even_with_an_old_one() {
        let current = serde_json::from_str(include_str!("../schema/structure.json")).unwrap();
        let old = serde_json::json!({ "type": "object", "additionalProperties": false, "properties": {} });
        for copy in [None, Some(current), Some(old)] {
            let said = |text| {
                let outcome = evaluate(text, &|_| None, copy.clone()).unwrap();
                (outcome.config.unwrap().runtime.workers, outcome.problems.len())
            };
            assert_eq!(said("runtime: { workers: 2 }"), (Some(2), 0));
            assert_eq!(said("runtime: { wrkers: 2 }"), (None, 1));
        }
    }

    #[test]
    fn secrets_of_broken_files_are_found_by_their_keys() {
        let rows: &[(&str, &[&str])] = &[
            ("  value: s.abc\n", &["s.abc"]),
            ("- \"X-Api-Key\" : abc", &["abc"]),
            ("auth: { token: { value: s.abc }\r\n", &["{ value: s.abc }"]),
            ("path: { type: Exact, value: /x", &[]),
            ("value: ${TOKEN}", &[]),
            ("url: http://user:pw@host/x\nname: x", &["user:pw"]),
            ("secrets:\n  files: []\n", &[]),
            ("password:é", &["é"]),
        ];
        for (text, expected) in rows {
            let found: Vec<_> = likely_secrets(text).into_iter().map(|span| &text[span.range()]).collect();
            assert_eq!(found, *expected, "{text}");
        }
    }
}
