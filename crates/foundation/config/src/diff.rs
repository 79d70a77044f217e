//! What a reload changes.
//!
//! In: two configs. Out: the places that differ, with their old and new values. Promise:
//! a secret shows only that it changed; items of a list are matched by their name, so
//! that a new item at the front is one change and not many; long lists are told by what
//! came and went, and what stays of clusters and their endpoints takes no memory here.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Serialize;
use serde_json::Value as Json;

use crate::{Cluster, Config, ConfigPath, Endpoint, Endpoints, MASK, secret};

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

/// What differs between two configs, in the model's order, long lists of endpoints behind; empty when nothing does.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    let (mut old, mut new) = without_same_clusters(old, new);
    let endpoints = take_long_lists(&mut old, &mut new);
    // Masked, two secrets look the same; marked, they differ when their values do.
    let (before, after) = secret::marked(|| (serde_json::to_value(&old), serde_json::to_value(&new)));
    if let (Ok(before), Ok(after)) = (before, after) {
        compare(&ConfigPath::root(), &before, &after, &mut changes);
    }
    changes.extend(endpoints);
    changes
}

/// Lists of up to so many items are shown whole; of longer ones so many as examples.
const WHOLE: usize = 16;
const EXAMPLES: usize = 3;

/// Copies that lack the clusters which both have alike: there may be thousands of endpoints in them. When the order of
/// clusters changed all are there, so that it is told.
fn without_same_clusters(old: &Config, new: &Config) -> (Config, Config) {
    let (mut old, mut new) = (old.clone(), new.clone());
    if let (Some(before), Some(after)) = (&mut old.proxy, &mut new.proxy) {
        let known: HashMap<&str, &Cluster> =
            after.clusters.iter().map(|cluster| (cluster.name.as_str(), cluster)).collect();
        let is_same = |cluster: &Cluster| known.get(cluster.name.as_str()).is_some_and(|other| *other == cluster);
        let same: HashSet<String> =
            before.clusters.iter().filter(|one| is_same(one)).map(|one| one.name.to_string()).collect();
        let order = |clusters: &[Cluster]| -> Vec<String> {
            clusters.iter().map(|one| one.name.to_string()).filter(|name| same.contains(name)).collect()
        };
        if order(&before.clusters) == order(&after.clusters) {
            before.clusters.retain(|cluster| !same.contains(cluster.name.as_str()));
            after.clusters.retain(|cluster| !same.contains(cluster.name.as_str()));
        }
    }
    (old, new)
}

/// Takes long lists of endpoints out of clusters that both have; what differs between them. As text they would take many
/// times their memory.
fn take_long_lists(old: &mut Config, new: &mut Config) -> Vec<Change> {
    let (Some(before), Some(after)) = (&mut old.proxy, &mut new.proxy) else { return Vec::new() };
    let mut others: HashMap<String, &mut Cluster> =
        after.clusters.iter_mut().map(|cluster| (cluster.name.to_string(), cluster)).collect();
    let mut changes = Vec::new();
    for cluster in &mut before.clusters {
        let Some(other) = others.get_mut(cluster.name.as_str()) else { continue };
        if cluster.endpoints.len().min(other.endpoints.len()) <= WHOLE {
            continue;
        }
        let (these, those) = (std::mem::take(&mut cluster.endpoints), std::mem::take(&mut other.endpoints));
        if these != those {
            let path = ConfigPath::from("proxy.clusters").item(&cluster.name).key("endpoints");
            let [gone, came] = apart(&these, &those);
            changes.push(long_list(path, [these.len(), those.len()], gone, came));
        }
    }
    changes
}

/// Endpoints that only the old list has, and those that only the new one has. Most stand where they stood, and none is in a
/// list twice: only the rest of both are looked at.
fn apart<'e>(old: &'e Endpoints, new: &'e Endpoints) -> [Vec<impl Serialize + use<'e>>; 2] {
    let (mut gone, mut came): (Vec<&Endpoint>, Vec<&Endpoint>) = (Vec::new(), Vec::new());
    for (before, after) in old.iter().zip(new.iter()).filter(|(before, after)| !before.is_same(after)) {
        gone.push(before);
        came.push(after);
    }
    let both = old.len().min(new.len());
    gone.extend(&old[both..]);
    came.extend(&new[both..]);
    let only = |these: &[&'e Endpoint], others: &[&'e Endpoint]| {
        let others: HashSet<&Endpoint> = others.iter().copied().collect();
        these.iter().copied().filter(|one| !others.contains(one)).map(Endpoint::written).collect()
    };
    [only(&gone, &came), only(&came, &gone)]
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
        (Json::Array(before), Json::Array(after)) if before != after && before.len().max(after.len()) > WHOLE => {
            let only = |these: &'_ [Json], others: &'_ [Json]| -> Vec<Json> {
                let others: HashSet<String> = others.iter().map(Json::to_string).collect();
                these.iter().filter(|item| !others.contains(&item.to_string())).map(masked).collect()
            };
            let (gone, came) = (only(before, after), only(after, before));
            changes.push(long_list(path.clone(), [before.len(), after.len()], gone, came));
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

/// What came to a long list and what went; the lengths are those before and after.
fn long_list<T: Serialize>(path: ConfigPath, lengths: [usize; 2], gone: Vec<T>, came: Vec<T>) -> Change {
    let mut new = format!("{} items", lengths[1]);
    for (items, word) in [(&gone, "gone"), (&came, "new")].into_iter().filter(|(items, _)| !items.is_empty()) {
        let shown = items.iter().take(EXAMPLES).map(|item| serde_json::to_string(item).unwrap_or_default());
        let (count, shown) = (items.len(), shown.collect::<Vec<_>>().join(", "));
        new.push_str(&format!(", {count} {word}: {shown}"));
        if count > EXAMPLES {
            new.push_str(&format!(" and {} more", count - EXAMPLES));
        }
    }
    if gone.is_empty() && came.is_empty() {
        new.push_str(" in another order");
    }
    Change { path, old: Some(format!("{} items", lengths[0])), new: Some(new) }
}

/// A value as it may be shown.
fn masked(value: &Json) -> Json {
    match value {
        Json::String(text) if secret::is_mark(text) => Json::from(MASK),
        Json::Array(items) if items.len() > WHOLE => {
            let more = Json::from(format!("… {} more", items.len() - EXAMPLES));
            items.iter().take(EXAMPLES).map(masked).chain([more]).collect()
        }
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

    #[test]
    fn long_lists_are_told_by_what_came_and_went() {
        let config = |ports: &[u16], more: &str| {
            let endpoints: Vec<_> = ports.iter().map(|port| format!("\"10.0.0.1:{port}\"")).collect();
            format!(
                "proxy:\n  listeners: [{{ name: in, direction: inbound, address: \"127.0.0.1:1\", routes: [{{ name: all, backendRefs: \
                 [{{ name: big }}, {{ name: other }}] }}] }}]\n  clusters:\n  - {{ name: big, endpoints: [{}] }}\n  - {{ name: other, \
                 endpoints: [\"10.0.0.2:1\"]{more} }}\n",
                endpoints.join(", ")
            )
        };
        let many: Vec<u16> = (1..=1000).collect();
        let fewer: Vec<u16> = (6..=1001).collect();
        let expected = "proxy.clusters[big].endpoints: 1000 items -> 996 items, 5 gone: \"10.0.0.1:1\", \"10.0.0.1:2\", \
                        \"10.0.0.1:3\" and 2 more, 1 new: \"10.0.0.1:1001\"";
        assert_eq!(changes(&config(&many, ""), &config(&fewer, "")), [expected]);
        let turned: Vec<u16> = many.iter().copied().rev().collect();
        let told = changes(&config(&many, ""), &config(&turned, ""));
        assert_eq!(told, ["proxy.clusters[big].endpoints: 1000 items -> 1000 items in another order"]);
        let told = changes(&config(&many, ""), &config(&many, ", connectTimeout: 3s"));
        assert_eq!(told, ["proxy.clusters[other].connectTimeout: \"2s\" -> \"3s\""], "the others are not looked at");
        let told = changes("", &config(&many, "")).join("");
        assert!(told.contains("\"10.0.0.1:3\",\"… 997 more\"") && told.len() < 4000, "{} bytes: {told}", told.len());
    }
}
