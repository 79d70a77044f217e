//! What an injection did, written into the pod, so that it can be taken back.
//!
//! In: an injected pod. Out: the pod as it was. Promise: what others changed since stays; only
//! what still is as we left it goes back.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::annotations::{EFFECTIVE, STATUS};
use crate::{json, probes};

/// Kept in the annotation `outrigger.dev/status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    /// Of the injector.
    pub(crate) version: String,
    /// Containers of ours, init containers or not.
    pub(crate) containers: Vec<String>,
    /// Volumes of ours.
    pub(crate) volumes: Vec<String>,
    /// Annotations we set: before and after.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) annotations: Map<String, Value>,
    /// Probes as they were, by container and place.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) probes: Map<String, Value>,
    /// The socket where a keeper meets the sidecar, for who changes its image under the running application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) handover: Option<String>,
    /// What we said of the sidecar where admission plugins speak for who says nothing; absent in pods of versions before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) given: Option<Vec<String>>,
    /// Maps and lists that were not there at all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) created: Vec<String>,
}

/// A pod without what we added.
pub(crate) struct Undone {
    pub(crate) pod: Value,
    /// The containers of ours that were in it.
    pub(crate) removed: Vec<Value>,
    /// What we said of them; nothing when that is not known.
    pub(crate) given: Option<Vec<String>>,
}

impl Record {
    /// Notes an annotation that is about to be set.
    pub(crate) fn annotation(&mut self, key: &str, was: Option<&str>, becomes: &str) {
        self.annotations.insert(key.to_owned(), serde_json::json!({ "was": was, "is": becomes }));
    }
}

/// Takes an injection back; `None` when there was none.
pub(crate) fn undo(pod: &Value) -> Result<Option<Undone>, String> {
    let Some(status) = json::annotation(pod, STATUS) else { return Ok(None) };
    let record: Record = serde_json::from_str(status).map_err(|error| {
        format!("the annotation `{STATUS}` is broken ({error}); start from the manifest as it was before the injection")
    })?;
    let (mut pod, mut removed) = (pod.clone(), Vec::new());
    let ours = |names: &[String], item: &Value| names.iter().any(|name| name == json::name(item));
    for list in ["initContainers", "containers"] {
        let list = pod.get_mut("spec").and_then(|spec| spec.get_mut(list)).and_then(Value::as_array_mut);
        if let Some(list) = list {
            removed.extend(list.iter().filter(|item| ours(&record.containers, item)).cloned());
            list.retain(|item| !ours(&record.containers, item));
        }
    }
    if let Some(volumes) = pod.get_mut("spec").and_then(|spec| spec.get_mut("volumes")).and_then(Value::as_array_mut) {
        volumes.retain(|volume| !ours(&record.volumes, volume));
    }
    for container in json::all_containers_mut(&mut pod) {
        if let Some(mounts) = container.get_mut("volumeMounts").and_then(Value::as_array_mut) {
            mounts.retain(|mount| !ours(&record.volumes, mount));
        }
        let name = json::name(container).to_owned();
        if let Some(originals) = record.probes.get(&name).and_then(Value::as_object) {
            probes::restore(container, originals);
        }
    }
    restore_annotations(&mut pod, &record);
    // Inner ones first: they were made last.
    for place in record.created.iter().rev() {
        remove_if_empty(&mut pod, place);
    }
    Ok(Some(Undone { pod, removed, given: record.given }))
}

fn restore_annotations(pod: &mut Value, record: &Record) {
    let annotations = pod.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations"));
    let Some(annotations) = annotations.and_then(Value::as_object_mut) else { return };
    annotations.shift_remove(STATUS);
    annotations.shift_remove(EFFECTIVE);
    for (key, change) in &record.annotations {
        if annotations.get(key) != change.get("is") {
            continue;
        }
        match change.get("was").filter(|was| was.is_string()) {
            Some(was) => annotations.insert(key.clone(), was.clone()),
            None => annotations.shift_remove(key),
        };
    }
}

/// `metadata`, `metadata/annotations`, `spec/volumes`, `container/NAME/volumeMounts`.
fn remove_if_empty(pod: &mut Value, place: &str) {
    let parts: Vec<&str> = place.split('/').collect();
    let (owner, key) = match parts.as_slice() {
        [key] => (Some(pod), *key),
        [part, key] => (pod.get_mut(*part), *key),
        ["container", name, key] => (json::all_containers_mut(pod).find(|one| json::name(one) == *name), *key),
        _ => return,
    };
    let Some(owner) = owner.and_then(Value::as_object_mut) else { return };
    let empty = |value: &Value| match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    if owner.get(key).is_some_and(empty) {
        owner.shift_remove(key);
    }
}
