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
    pub(crate) fn of(object: &Value) -> Self {
        let metadata = object.get("metadata").unwrap_or(&Value::Null);
        let name = match (json::name(metadata), json::text(metadata, "generateName")) {
            ("", "") => String::new(),
            ("", generated) => format!("{generated}*"),
            (name, _) => name.to_owned(),
        };
        let namespace = Some(json::text(metadata, "namespace")).filter(|text| !text.is_empty()).map(str::to_owned);
        Self { kind: json::text(object, "kind").to_owned(), name, namespace }
    }
}

/// The way to the pod in an object of this kind; `None` when it makes no pods.
pub(crate) fn pod_path(object: &Value) -> Option<&'static [&'static str]> {
    let version = json::text(object, "apiVersion");
    let group = version.split_once('/').map_or("", |(group, _)| group);
    match (group, json::text(object, "kind")) {
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

/// Whether an object is a list of objects.
pub(crate) fn is_list(object: &Value) -> bool {
    json::text(object, "kind").ends_with("List") && object.get("items").is_some_and(Value::is_array)
}
