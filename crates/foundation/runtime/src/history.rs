//! What became of the last reloads, for an operator who asks (`/config/reloads`).
//!
//! In: the outcome of each reload, with what it changed or why it was refused. Out: JSON, the
//! newest first. Promise: bounded in number and size; secrets show only that they changed, for
//! the config's own diff is all that is kept.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_config::{Change, Diagnostics, Severity};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::admin::timestamp;
use crate::reload::Outcome;

/// Reloads that are remembered.
const MOST_RELOADS: usize = 10;
/// Changes, and reasons of a refusal, that are remembered of each.
const MOST_LINES: usize = 100;
/// Characters of a value, or of a reason.
const LONGEST: usize = 300;

/// The last reloads. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct History(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    /// When the file was last read, and what came of it.
    last: Option<(SystemTime, Outcome)>,
    /// The mark of the config that runs, and of the file if it was refused.
    marks: (String, String),
    /// The newest last; those that changed nothing are not among them.
    reloads: VecDeque<Value>,
}

/// Why a reload was refused.
pub(crate) enum Refusal {
    /// The file is no good config.
    Config(Diagnostics),
    /// A component cannot use it.
    Component(&'static str, String),
}

impl History {
    /// Notes a config that was applied.
    pub(crate) fn applied(&self, generation: u64, changes: &[Change], next_start: &[&str]) {
        let shown: Vec<Value> = changes
            .iter()
            .take(MOST_LINES)
            .map(|change| {
                json!({
                    "path": change.path.as_str(),
                    "old": change.old.as_deref().map(cut),
                    "new": change.new.as_deref().map(cut),
                })
            })
            .collect();
        self.keep(
            Outcome::Applied,
            json!({
                "generation": generation, "changes": shown, "notShown": changes.len().saturating_sub(MOST_LINES),
                "nextStart": next_start,
            }),
        );
    }

    /// Notes a config that was refused.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        let (reasons, more) = match refusal {
            Refusal::Component(component, why) => (vec![json!({ "component": component, "message": cut(why) })], 0),
            Refusal::Config(diagnostics) => {
                let errors: Vec<_> = diagnostics.iter().filter(|one| one.severity == Severity::Error).collect();
                let shown = errors.iter().take(MOST_LINES).map(|one| {
                    json!({
                        "line": one.line, "column": one.column, "path": one.path.as_str(),
                        "message": cut(&one.message), "help": one.help.as_deref().map(cut),
                    })
                });
                (shown.collect(), errors.len().saturating_sub(MOST_LINES))
            }
        };
        self.keep(Outcome::Refused, json!({ "reasons": reasons, "notShown": more }));
    }

    /// Notes of which file the config that runs is.
    pub(crate) fn runs(&self, mark: String) {
        self.0.lock().marks = (mark, String::new());
    }

    /// Notes which file was refused.
    pub(crate) fn does_not_run(&self, mark: String) {
        self.0.lock().marks.1 = mark;
    }

    /// Both marks, as a header tells them; `None` when there is none.
    pub(crate) fn marks(&self) -> Option<String> {
        let kept = self.0.lock();
        match &kept.marks {
            (runs, _) if runs.is_empty() => None,
            (runs, refused) if refused.is_empty() => Some(runs.clone()),
            (runs, refused) => Some(format!("{runs}; refused={refused}")),
        }
    }

    /// Notes that the file was read, and says what ran already.
    pub(crate) fn unchanged(&self) {
        self.0.lock().last = Some((SystemTime::now(), Outcome::Unchanged));
    }

    fn keep(&self, outcome: Outcome, mut reload: Value) {
        let now = SystemTime::now();
        reload["at"] = timestamp(now).into();
        reload["outcome"] = outcome.as_str().into();
        let mut kept = self.0.lock();
        kept.last = Some((now, outcome));
        if kept.reloads.len() == MOST_RELOADS {
            kept.reloads.pop_front();
        }
        kept.reloads.push_back(reload);
    }

    /// All that is known, as JSON.
    pub(crate) fn tell(&self, path: &Path) -> Value {
        let kept = self.0.lock();
        let last = kept.last.map(|(at, outcome)| json!({ "at": timestamp(at), "outcome": outcome.as_str() }));
        json!({
            "path": path.display().to_string(),
            "last": last,
            "reloads": kept.reloads.iter().rev().cloned().collect::<Value>(),
        })
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::{diff, parse};

    use super::*;

    fn config(text: &str) -> Result<outrigger_config::Config, Diagnostics> {
        parse("test.yaml", text, &|_| None).map(|loaded| loaded.config)
    }

    #[test]
    fn the_newest_are_kept_and_no_secret_is() {
        let sink = |token: &str| {
            format!(
                "logs:\n  stateDirectory: /s\n  sources: [{{ name: app, file: {{ path: /a }} }}]\n  sinks:\n  \
                 - {{ name: loki, inputs: [app], http: {{ url: 'http://l', headers: {{ X-Key: '{token}' }} }} }}\n"
            )
        };
        let (old, new) = (config(&sink("hunter1")).unwrap(), config(&sink("hunter2")).unwrap());
        let history = History::default();
        assert_eq!(history.tell(Path::new("/c"))["last"], Value::Null);
        (0..MOST_RELOADS as u64 + 5).for_each(|generation| history.applied(generation, &diff(&old, &new), &[]));
        history.refused(&Refusal::Config(config("lgos: {}\n").unwrap_err()));
        history.unchanged();
        let told = history.tell(Path::new("/c"));
        let reloads = told["reloads"].as_array().unwrap();
        assert_eq!((reloads.len(), &told["last"]["outcome"]), (MOST_RELOADS, &json!("unchanged")));
        assert_eq!((&reloads[0]["outcome"], &reloads[0]["reasons"][0]["line"]), (&json!("refused"), &json!(1)));
        assert!(reloads[0]["reasons"][0]["message"].as_str().unwrap().contains("lgos"), "{told:#}");
        assert_eq!(reloads[1]["generation"], MOST_RELOADS as u64 + 4);
        assert_eq!(reloads[1]["changes"][0]["path"], "logs.sinks[loki].http.headers.X-Key");
        assert!(!told.to_string().contains("hunter"), "{told:#}");
    }

    #[test]
    fn long_ones_are_cut() {
        let long = format!("telemetry: {{ tracing: {{ otlp: {{ endpoint: 'http://{}' }} }} }}\n", "ä".repeat(2000));
        let many: String = (0..150).map(|n| format!("wrong{n}: 1\n")).collect();
        let history = History::default();
        if let (Ok(old), Ok(new)) = (config(""), config(&long)) {
            history.applied(2, &diff(&old, &new), &["admin.listen"]);
        }
        history.refused(&Refusal::Config(config(&many).unwrap_err()));
        history.refused(&Refusal::Component("logs", "x".repeat(5000)));
        let told = history.tell(Path::new("/c"));
        assert!(told.to_string().len() < 60_000, "{}", told.to_string().len());
        assert_eq!(told["reloads"][0]["reasons"][0]["message"].as_str().unwrap().chars().count(), LONGEST + 1);
    }
}
