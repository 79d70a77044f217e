//! How far log files and the access log are, and what holds sinks up, for an operator who asks (`/logs`).
//!
//! In: the graph that runs. Out: JSON. Promise: looked at when asked, not before; no line is
//! shown, and of a receiver's address neither credentials nor query.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use outrigger_config::Logs;
use outrigger_runtime::{AdminRoute, AdminRoutes, LineQueue};
use serde_json::{Value, json};

use crate::metrics::Metrics;
use crate::problems::Problems;
use crate::queue::TrackedFile;
use crate::source::Tracked;

/// Files of a source that are told: the newest.
const MOST_FILES: usize = 20;

/// What is shown: the graph of the config that runs, while there is one.
#[derive(Clone, Default)]
pub(crate) struct Shown(Arc<Mutex<Option<View>>>);

struct View {
    section: Logs,
    /// By the section's sources, in its order.
    tracked: Vec<(String, Arc<Tracked>)>,
    /// What the access log has for us, and how far its lines are that were taken.
    lines: LineQueue,
    fed: Vec<(String, Arc<TrackedFile>)>,
    metrics: Metrics,
    problems: Problems,
}

impl Shown {
    /// Shows another graph from here on.
    pub(crate) fn show(
        &self,
        section: &Logs,
        sources: &[(String, Arc<Tracked>)],
        (lines, fed): (LineQueue, Vec<(String, Arc<TrackedFile>)>),
        metrics: &Metrics,
        problems: &Problems,
    ) {
        let view = View {
            section: section.clone(),
            tracked: sources.to_vec(),
            lines,
            fed,
            metrics: metrics.clone(),
            problems: problems.clone(),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(view);
    }

    /// Answers `/logs` while the result lives.
    pub(crate) fn register(&self, admin: &AdminRoutes) -> AdminRoute {
        let shown = self.clone();
        let about = "log sources with their positions, sinks with what waits and what went wrong, as JSON";
        admin.register("/logs", about, move |_| {
            let view = shown.0.lock().unwrap_or_else(PoisonError::into_inner);
            let value = view.as_ref().map_or_else(|| json!({ "sources": [], "sinks": [] }), View::tell);
            Box::pin(std::future::ready(AdminRoutes::json(&value)))
        })
    }
}

impl View {
    fn tell(&self) -> Value {
        let files = self.tracked.iter().map(|(name, tracked)| self.source(name, tracked));
        let sources: Vec<Value> = files.chain(self.fed.iter().map(|(name, origin)| self.feed(name, origin))).collect();
        let sinks: Vec<Value> = self.section.sinks.iter().map(|sink| self.sink(sink)).collect();
        json!({ "stateDirectory": self.section.state_directory.display().to_string(), "sources": sources, "sinks": sinks,
                "checkpoint": self.problem("checkpoint") })
    }

    fn source(&self, name: &str, tracked: &Tracked) -> Value {
        let config = self.section.sources.iter().find(|source| source.name.as_str() == name);
        let path = config.and_then(|source| source.file.as_ref()).map(|file| file.path.display().to_string());
        let files = tracked.files.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = files.iter().map(|file| file.lag()).sum::<u64>() + tracked.reserved();
        let metrics = self.metrics.source(name);
        json!({
            "name": name,
            "kind": "file",
            "path": path,
            "missing": config.and_then(|source| source.file.as_ref()).is_some_and(|file| !file.path.exists()),
            "lines": metrics.lines.value(),
            "bytes": metrics.bytes.value(),
            "waitingBytes": waiting,
            "files": files.iter().rev().take(MOST_FILES).map(|file| tell_file(file)).collect::<Value>(),
            "problem": self.problem(&format!("source `{name}`")),
        })
    }

    /// The access log, whose lines come from no file and wait in memory.
    fn feed(&self, name: &str, origin: &TrackedFile) -> Value {
        let metrics = self.metrics.source(name);
        json!({
            "name": name,
            "kind": "accessLog",
            "path": null,
            "missing": false,
            "lines": metrics.lines.value(),
            "bytes": metrics.bytes.value(),
            "waitingBytes": origin.lag() + self.lines.bytes() as u64,
            "files": [],
            "problem": self.problem(&format!("source `{name}`")),
        })
    }

    fn sink(&self, sink: &outrigger_config::LogSink) -> Value {
        let (kind, target) = if let Some(file) = &sink.file {
            ("file", file.path.display().to_string())
        } else if let Some(http) = &sink.http {
            ("http", address(&http.url))
        } else {
            ("stdout", String::new())
        };
        let metrics = self.metrics.sink(&sink.name);
        json!({
            "name": sink.name.as_str(),
            "kind": kind,
            "target": target,
            "inputs": sink.inputs.iter().map(|input| input.as_str()).collect::<Vec<_>>(),
            "acknowledged": metrics.acknowledged.value(),
            "retries": metrics.retries.value(),
            "rejected": metrics.rejected.value(),
            "bufferBytes": self.metrics.buffer(&sink.name).value(),
            "bufferLimitBytes": sink.buffer.as_usize(),
            "problem": self.problem(&format!("sink `{}`", sink.name)),
        })
    }

    fn problem(&self, owner: &str) -> Option<Value> {
        let (text, at, lasts) = self.problems.last(owner)?;
        Some(json!({ "text": text, "at": seconds(at), "lasts": lasts }))
    }
}

fn tell_file(file: &TrackedFile) -> Value {
    json!({
        "position": file.low_mark(),
        "length": file.length.load(Relaxed).max(file.low_mark()),
        "waitingBytes": file.lag(),
        "finished": file.finished.load(Relaxed),
    })
}

/// A URL without what may be secret in it.
fn address(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    format!("{scheme}://{}{path}", authority.rsplit('@').next().unwrap_or_default())
}

/// Seconds since 1970.
fn seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_address_only_the_place_is_told() {
        for (url, told) in [
            ("https://ann:4real@loki:3100/push?key=4real#x", "https://loki:3100/push"),
            ("http://loki", "http://loki"),
            ("http://[::1]:9/a@b", "http://[::1]:9/a@b"),
        ] {
            assert_eq!(address(url), told);
        }
    }
}
