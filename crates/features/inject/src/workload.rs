//! Where pods stand in objects.
//!
//! In: an object of any kind. Out: what it is called, and its pod template, to be changed in place.

use serde_json::Value;

use crate::json;

/// What an object is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectName {
    /// `Deployment`.
    pub kind: String,
    /// Its name, or `generateName` and an asterisk.
    pub name: String,
    /// Its namespace, if it says one.
    pub namespace: Option<String>,
}

impl ObjectName {
    pub(crate) fn of(object: &Value, list: Option<(&str, &str)>) -> Self {
        let metadata = object.get("metadata").unwrap_or(&Value::Null);
        let name = match (json::name(metadata), json::text(metadata, "generateName")) {
            ("", "") => String::new(),
            ("", generated) => format!("{generated}*"),
            (name, _) => name.to_owned(),
        };
        let namespace = Some(json::text(metadata, "namespace")).filter(|text| !text.is_empty()).map(str::to_owned);
        Self { kind: kind(object, list).1.to_owned(), name, namespace }
    }
}

/// What kind an object is of; one in a list such as a `PodList` need not say so itself.
pub(crate) fn kind<'a>(object: &'a Value, of: Option<(&'a str, &'a str)>) -> (&'a str, &'a str) {
    let own = (json::text(object, "apiVersion"), json::text(object, "kind"));
    match of {
        Some((version, list)) if own.1.is_empty() => (version, list.strip_suffix("List").unwrap_or_default()),
        _ => own,
    }
}

/// The way to the pod in an object of this version and kind; `None` when it makes no pods, as far as is known here.
pub(crate) fn pod_path((version, kind): (&str, &str)) -> Option<&'static [&'static str]> {
    let group = version.split_once('/').map_or("", |(group, _)| group);
    match (group, kind) {
        ("", "Pod") => Some(&[]),
        ("", "PodTemplate") => Some(&["template"]),
        ("", "ReplicationController")
        | ("apps" | "extensions", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job") => Some(&["spec", "template"]),
        ("batch", "CronJob") => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

pub(crate) fn at_mut<'a>(object: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    path.iter().try_fold(object, |value, step| value.get_mut(*step))
}

/// Whether an object that is none of those has a pod template all the same, as others' kinds have.
pub(crate) fn looks_like_a_workload(object: &Value) -> bool {
    object.pointer("/spec/template/spec/containers").is_some_and(Value::is_array)
}

/// Whether an object is a list of objects.
pub(crate) fn is_list(object: &Value) -> bool {
    json::text(object, "kind").ends_with("List") && object.get("items").is_some_and(Value::is_array)
}
