//! What a reload changes.
//!
//! In: two configs. Out: the places that differ, with their old and new values. Promise:
//! a secret shows only that it changed; items of a list are matched by their name, so
//! that a new item at the front is one change and not many.

use std::fmt;

use serde_json::Value as Json;

use crate::{Config, ConfigPath, MASK, secret};

/// One changed place. Values are shown as JSON on one line; secrets are masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The place; a named item of a list is shown by its name: `proxy.listeners[inbound].address`.
    pub path: ConfigPath,
    /// The old value; `None` when the place is new.
    pub old: Option<String>,
    /// The new value; `None` when the place is gone.
    pub new: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.old, &self.new) {
            (Some(old), Some(new)) if old == new => write!(f, "{}: (changed)", self.path),
            (Some(old), Some(new)) => write!(f, "{}: {old} -> {new}", self.path),
            (None, Some(new)) => write!(f, "{}: added {new}", self.path),
            (Some(old), None) => write!(f, "{}: removed {old}", self.path),
            (None, None) => write!(f, "{}: (changed)", self.path),
        }
    }
}

/// What differs between two configs, in the model's order; empty when nothing does.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    // Masked, two secrets look the same; marked, they differ when their values do.
    let (before, after) = secret::marked(|| (serde_json::to_value(old), serde_json::to_value(new)));
    if let (Ok(before), Ok(after)) = (before, after) {
        compare(&ConfigPath::root(), &before, &after, &mut changes);
    }
    changes
}

fn compare(path: &ConfigPath, old: &Json, new: &Json, changes: &mut Vec<Change>) {
    match (old, new) {
        (Json::Object(old), Json::Object(new)) => {
            for (key, value) in old {
                compare(&path.key(key), value, new.get(key).unwrap_or(&Json::Null), changes);
            }
            for (key, value) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
                compare(&path.key(key), &Json::Null, value, changes);
            }
        }
        (Json::Array(before), Json::Array(after)) if is_named(before) && is_named(after) => {
            named_items(path, before, after, changes);
        }
        _ if old != new => {
            let show = |value: &Json| (!value.is_null()).then(|| masked(value).to_string());
            changes.push(Change { path: path.clone(), old: show(old), new: show(new) });
        }
        _ => {}
    }
}

/// Compares lists whose items have names; a mere change of order is one change.
fn named_items(path: &ConfigPath, old: &[Json], new: &[Json], changes: &mut Vec<Change>) {
    let find = |items: &'_ [Json], name: &str| items.iter().position(|item| name_of(item) == Some(name));
    for item in old {
        let Some(name) = name_of(item) else { continue };
        let other = find(new, name).map_or(&Json::Null, |index| &new[index]);
        compare(&path.item(name), item, other, changes);
    }
    for item in new {
        let Some(name) = name_of(item) else { continue };
        if find(old, name).is_none() {
            compare(&path.item(name), &Json::Null, item, changes);
        }
    }
    let order = |items: &[Json], others: &[Json]| -> Vec<String> {
        let names = items.iter().filter_map(name_of).filter(|name| find(others, name).is_some());
        names.map(str::to_owned).collect()
    };
    let (before, after) = (order(old, new), order(new, old));
    if before != after {
        let show = |names: Vec<String>| Some(format!("order {}", names.join(", ")));
        changes.push(Change { path: path.clone(), old: show(before), new: show(after) });
    }
}

/// A value as it may be shown.
fn masked(value: &Json) -> Json {
    match value {
        Json::String(text) if secret::is_mark(text) => Json::from(MASK),
        Json::Array(items) => items.iter().map(masked).collect(),
        Json::Object(members) => members.iter().map(|(key, value)| (key.clone(), masked(value))).collect(),
        other => other.clone(),
    }
}

/// Whether every item has a name of its own: its `name`, or the `path` of a secret file.
fn is_named(items: &[Json]) -> bool {
    let names: std::collections::HashSet<_> = items.iter().filter_map(name_of).collect();
    names.len() == items.len()
}

fn name_of(item: &Json) -> Option<&str> {
    item.get("name").or_else(|| item.get("path")).and_then(Json::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        crate::parse("test.yaml", text, &|_| None).unwrap_or_else(|errors| panic!("{errors}")).config
    }

    fn changes(old: &str, new: &str) -> Vec<String> {
        diff(&config(old), &config(new)).iter().map(ToString::to_string).collect()
    }

    fn sinks(sinks: &str) -> String {
        format!("logs:\n  stateDirectory: /s\n  sources:\n  - {{ name: app, file: {{ path: /a }} }}\n  sinks:\n{sinks}")
    }

    const STDOUT: &str = "  - { name: out, inputs: [app], stdout: {} }\n";

    fn http(token: &str) -> String {
        format!("  - name: loki\n    inputs: [app]\n    http: {{ url: 'http://l', headers: {{ X-Key: '{token}' }} }}\n")
    }

    #[test]
    fn values() {
        assert_eq!(changes("", ""), [""; 0]);
        assert_eq!(changes("", "runtime: { workers: 2 }"), ["runtime.workers: added 2"]);
        assert_eq!(
            changes("telemetry: { log: { level: debug } }", "telemetry: { log: { level: warn } }"),
            ["telemetry.log.level: \"debug\" -> \"warn\""]
        );
        assert_eq!(
            changes("metrics: { listen: '127.0.0.1:1' }", ""),
            ["metrics: removed {\"listen\":\"127.0.0.1:1\"}"]
        );
    }

    #[test]
    fn items_are_matched_by_name() {
        let (one, other) = (sinks(&(http("t") + STDOUT)), sinks(&(STDOUT.to_owned() + &http("t"))));
        assert_eq!(changes(&one, &other), ["logs.sinks: order loki, out -> order out, loki"]);
        let added = changes(&sinks(STDOUT), &other);
        assert_eq!(added.len(), 1, "{added:?}");
        assert!(added[0].starts_with("logs.sinks[loki]: added {"), "{added:?}");
        let slower = other.replace("url: 'http://l'", "url: 'http://l', timeout: 3s");
        assert_eq!(changes(&other, &slower), ["logs.sinks[loki].http.timeout: \"10s\" -> \"3s\""]);
    }

    #[test]
    fn secrets_show_only_that_they_changed() {
        let (one, other) = (sinks(&http("hunter1")), sinks(&http("hunter2")));
        assert_eq!(changes(&one, &one), [""; 0]);
        assert_eq!(changes(&one, &other), ["logs.sinks[loki].http.headers.X-Key: (changed)"]);
        let all = format!("{:?}", [changes("", &one), changes(&one, ""), changes(&sinks(STDOUT), &one)]);
        assert!(all.contains(MASK) && !all.contains("hunter"), "{all}");
    }
}
