//! What the API server told: objects as they came, or why there are none.

use serde_json::Value;

/// What could be learned, or why not.
pub(crate) type Seen<T> = Result<T, String>;

/// What there is before an installation, and beside one.
#[derive(Debug, Clone)]
pub(crate) struct Before {
    /// `/version`.
    pub(crate) version: Seen<Value>,
    /// The group versions that are served, such as `apps/v1`.
    pub(crate) groups: Seen<Vec<String>>,
    pub(crate) nodes: Seen<Vec<Value>>,
    pub(crate) namespaces: Seen<Vec<Value>>,
    /// All mutating webhook configurations.
    pub(crate) webhooks: Seen<Vec<Value>>,
    /// What the user was found not to be allowed, and how many rights were asked about.
    pub(crate) rights: Seen<(Vec<String>, usize)>,
    /// The ConfigMap of an installation.
    pub(crate) installed: Seen<Option<Value>>,
}

/// What there is of an installation.
#[derive(Debug, Clone)]
pub(crate) struct After {
    /// The objects that there should be, with what is there.
    pub(crate) objects: Vec<(crate::Object, Seen<Option<Value>>)>,
    /// The controllers' pods.
    pub(crate) controllers: Seen<Vec<Value>>,
    /// Endpoints behind the Service.
    pub(crate) slices: Seen<Vec<Value>>,
    pub(crate) lease: Seen<Option<Value>>,
    /// The Secret with the roots.
    pub(crate) roots: Seen<Option<Value>>,
    /// The ConfigMaps with the trust bundle.
    pub(crate) bundles: Seen<Vec<Value>>,
    pub(crate) namespaces: Seen<Vec<Value>>,
    /// Pods of namespaces that opted in.
    pub(crate) pods: Seen<Vec<Value>>,
    /// Pods that were made for trial, as they would have become, each with its namespace.
    pub(crate) trials: Vec<(String, Trial)>,
    /// A profile that was made for trial.
    pub(crate) judged: Trial,
    /// Seconds since the epoch.
    pub(crate) now: i64,
}

/// What became of an object that was made for trial.
#[derive(Debug, Clone)]
pub(crate) enum Trial {
    /// What came back, and whether somebody who does not answer would have been noticed by an error.
    Made(Value),
    /// The API server refused it, in these words.
    Refused(String),
    /// The user may not try.
    NotAllowed(String),
}

/// A text at a path; empty when there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A label.
pub(crate) fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("labels")?.get(key)?.as_str()
}

/// An annotation.
pub(crate) fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

/// The items of a list; none when it is absent.
pub(crate) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(crate) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// Whether a namespace opted in; `None` when its label has a word that means nothing.
pub(crate) fn opted_in(namespace: &Value) -> Option<bool> {
    match label(namespace, outrigger_kubernetes::names::INJECT_LABEL) {
        Some("enabled" | "true") => Some(true),
        None | Some("disabled" | "false") => Some(false),
        Some(_) => None,
    }
}

/// What a Secret holds.
pub(crate) fn base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}
