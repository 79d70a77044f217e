//! How secrets are, for an operator who asks (`/secrets`): ages and ends, never a value.
//!
//! In: the outputs and entries of a keeper. Out: JSON. Promise: names and paths as the config
//! writes them, times, versions and errors; a path that a template made is not shown, for it may
//! hold what was read.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use outrigger_config::SecretProvider;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::entry::Entry;
use crate::keeper::Report;
use crate::output::{Output, Target};
use crate::provider::LIST;

/// What a keeper tells of its outputs and of what they are made from.
#[derive(Default)]
pub(crate) struct Told {
    outputs: Vec<Value>,
    paths: Vec<Value>,
}

impl Told {
    pub(crate) fn of(outputs: &[Output], entries: &BTreeMap<String, Entry>) -> Self {
        let now = (Instant::now(), SystemTime::now());
        Self {
            outputs: outputs.iter().map(output).collect(),
            paths: entries.iter().map(|(path, entry)| self::path(path, entry, outputs, now)).collect(),
        }
    }
}

/// One provider as the page and scripts read it; without a report nothing was read yet.
pub(crate) fn provider(config: &SecretProvider, report: Option<&Report>) -> Value {
    let kind = if config.vault.is_some() { "vault" } else { "file" };
    json!({
        "name": config.name.as_str(),
        "kind": kind,
        "settled": report.is_some_and(|report| report.settled),
        "troubles": report.map_or(&[][..], |report| &report.troubles),
        "outputs": report.map_or(&[][..], |report| &report.told.outputs),
        "paths": report.map_or(&[][..], |report| &report.told.paths),
    })
}

fn output(output: &Output) -> Value {
    let (kind, name) = match &output.spec.target {
        Target::File(file) => ("file", file.path.display().to_string()),
        Target::Variable(name) => ("variable", name.clone()),
    };
    json!({
        "kind": kind,
        "name": name,
        "at": output.spec.at,
        "done": output.done,
        "version": output.version,
        "changedAt": output.changed.map(seconds),
        "renderedAt": output.rendered.map(seconds),
        "trouble": output.trouble.as_ref().map(ToString::to_string),
    })
}

fn path(path: &str, entry: &Entry, outputs: &[Output], (now, clock): (Instant, SystemTime)) -> Value {
    let written = path.strip_suffix(LIST).unwrap_or(path).trim_end_matches('/');
    let shown = outputs.iter().any(|output| output.spec.template.contains(written)).then_some(path);
    let used_by = outputs.iter().filter(|output| output.used.contains_key(path)).map(|output| output.spec.label());
    // A secret's error names its path.
    let trouble = entry.trouble.as_ref().map(|error| match shown {
        Some(_) => error.to_string(),
        None => "it cannot be read; the log says why".to_owned(),
    });
    let lease = entry.lease.as_ref().map(|lease| {
        json!({
            "seconds": lease.duration.as_secs(),
            "renewable": lease.renewable,
            "endsAt": seconds(entry.at + lease.duration),
        })
    });
    json!({
        "path": shown,
        "usedBy": used_by.collect::<Vec<_>>(),
        "version": entry.version,
        "readAt": seconds(entry.at),
        "nextAt": entry.due.map(|due| seconds(clock + due.saturating_duration_since(now))),
        "lease": lease,
        "trouble": trouble,
    })
}

/// Seconds since 1970, to the millisecond.
fn seconds(at: SystemTime) -> f64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    (since.as_secs_f64() * 1e3).round() / 1e3
}
