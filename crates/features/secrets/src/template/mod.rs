//! Templates in consul-template's language.
//!
//! In: a template's text, and the secrets known so far. Out: the rendered text, or the paths
//! of the secrets it needs besides. Promise: a syntax error or an unknown function is found
//! when the template is compiled; a missing field is an error that tells the names there are,
//! never `<no value>` in a file; no error holds a value.

mod balance;
mod binary;
mod convert;
mod functions;
mod lookup;
mod strict;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use gotmpl::{TemplateError, Value};
use zeroize::Zeroizing;

pub(crate) use convert::to_value;

/// What the secrets at these paths hold, as templates see it.
pub(crate) type Secrets = BTreeMap<String, Value>;

/// A compiled template.
pub(crate) struct Template {
    program: gotmpl::Template,
    scene: Arc<Mutex<Scene>>,
}

/// What came of rendering a template.
pub(crate) enum Rendered {
    /// The whole text, and the paths it was made from.
    Whole { content: Zeroizing<Vec<u8>>, used: BTreeSet<String> },
    /// Secrets it needs first.
    Needs(BTreeSet<String>),
    /// What is wrong with what it was given, and the paths that came from.
    Flawed { flaw: Flaw, used: BTreeSet<String> },
}

/// Where a template is wrong, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flaw {
    /// Counted from 1, within the template.
    pub(crate) line: usize,
    pub(crate) message: String,
}

/// What the functions of a template see and leave behind while it is rendered.
#[derive(Default)]
struct Scene {
    secrets: Arc<Secrets>,
    used: BTreeSet<String>,
    missing: BTreeSet<String>,
    line: usize,
    /// Bytes that are no text are among the output, in disguise.
    binary: bool,
    /// What the last field was that is not there.
    absent: Option<String>,
}

/// A template that produces more is refused: it is a mistake, and would fill the memory.
const MOST_OUTPUT: usize = 4 << 20;
/// Turns of all `range` loops together; more would hold up everything else on the main thread.
const MOST_LOOPS: u64 = 1_000_000;

impl Template {
    /// Parses a template and checks the functions and templates it calls.
    pub(crate) fn compile(text: &str) -> Result<Self, Flaw> {
        let scene = Arc::new(Mutex::new(Scene::default()));
        let functions = functions::all(&scene);
        let parsed = gotmpl::Template::new(strict::MAIN).parse(text).map_err(syntax_flaw)?;
        balance::check(text)?;
        let trees = strict::trees(text, &parsed, &functions)?;
        let mut program = gotmpl::Template::new(strict::ROOT).funcs(functions).max_range_iters(MOST_LOOPS);
        for (name, tree) in trees {
            program = program.add_parse_tree(&name, tree);
        }
        Ok(Self { program, scene })
    }

    /// Renders it from the secrets known so far. Call it again with those it needs.
    pub(crate) fn render(&self, secrets: &Arc<Secrets>) -> Rendered {
        *lock(&self.scene) = Scene { secrets: secrets.clone(), line: 1, ..Scene::default() };
        let mut output = Output(Zeroizing::new(String::new()));
        let result = self.program.execute_template_fmt(&mut output, strict::MAIN, &Value::Nil);
        let scene = std::mem::take(&mut *lock(&self.scene));
        if !scene.missing.is_empty() {
            return Rendered::Needs(scene.missing);
        }
        match result {
            Ok(()) => {
                let content = if scene.binary {
                    binary::bared(&output.0)
                } else {
                    Zeroizing::new(std::mem::take(&mut *output.0).into_bytes())
                };
                Rendered::Whole { content, used: scene.used }
            }
            Err(error) => Rendered::Flawed {
                flaw: Flaw { line: scene.line, message: execution_message(&error) },
                used: scene.used,
            },
        }
    }
}

fn lock(scene: &Mutex<Scene>) -> std::sync::MutexGuard<'_, Scene> {
    scene.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Collects output; each buffer it grows out of is zeroed.
struct Output(Zeroizing<String>);

impl std::fmt::Write for Output {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let needed = self.0.len() + text.len();
        if needed > MOST_OUTPUT {
            return Err(std::fmt::Error);
        }
        if needed > self.0.capacity() {
            let mut larger = Zeroizing::new(String::with_capacity(needed.next_power_of_two().max(256)));
            larger.push_str(&self.0);
            self.0 = larger;
        }
        self.0.push_str(text);
        Ok(())
    }
}

fn syntax_flaw(error: TemplateError) -> Flaw {
    match error {
        TemplateError::Parse { line, message, .. } | TemplateError::Lex { line, message, .. } => {
            Flaw { line: line.max(1), message: with_remedy(message) }
        }
        other => Flaw { line: 1, message: other.to_string() },
    }
}

/// Adds to the parser's message what the commonest mistakes behind it want instead.
fn with_remedy(message: String) -> String {
    let remedy = match message.as_str() {
        "unexpected character: '-'" | "unexpected character: '['" => {
            "a field with such a name is read by `index .Data.data \"api-key\"`"
        }
        "unexpected character: '/'" => "put the path into double quotes",
        "unterminated character literal" => "put texts into double quotes",
        _ => return message,
    };
    format!("{message}; {remedy}")
}

/// Begins the messages of our own functions, which are made to be shown.
const OURS: &str = "\u{1}";

/// An error of our own functions.
fn fault(message: impl std::fmt::Display) -> TemplateError {
    TemplateError::Exec(format!("{OURS}{message}"))
}

/// What may be shown of an error: the engine's own texts may quote the value they stumbled over.
fn execution_message(error: &TemplateError) -> String {
    match error {
        TemplateError::Exec(text) => {
            const HARMLESS: [&str; 7] = [
                "can't give argument to non-function",
                "can't evaluate field",
                "incompatible types for comparison",
                "non-comparable type",
                "nil is not a command",
                "unexpected break",
                "unexpected continue",
            ];
            match text.strip_prefix(OURS) {
                Some(ours) => ours.to_owned(),
                None if HARMLESS.iter().any(|start| text.starts_with(start)) => text.clone(),
                None => "a function does not accept the value it is given (the value is not shown)".to_owned(),
            }
        }
        TemplateError::IndexOutOfRange { .. } => "an index is out of range".to_owned(),
        TemplateError::FuncPanic { name, .. } => format!("the function `{name}` failed"),
        TemplateError::Write => format!("the output is larger than {MOST_OUTPUT} bytes"),
        TemplateError::NotIterable(kind) => format!("`range` cannot go over a {kind}"),
        TemplateError::MissingKey { .. } => "a field is missing".to_owned(),
        TemplateError::TypeMismatch { .. }
        | TemplateError::RecursionLimit
        | TemplateError::RangeIterLimit
        | TemplateError::UndefinedTemplate(_)
        | TemplateError::UndefinedFunction(_)
        | TemplateError::UndefinedVariable(_)
        | TemplateError::ArgCount { .. } => error.to_string(),
        _ => "the template cannot be executed".to_owned(),
    }
}

#[cfg(test)]
mod tests;
