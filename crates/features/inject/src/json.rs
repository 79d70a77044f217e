//! Small typed views of Kubernetes objects that stay JSON.
//!
//! In: an object as it came. Out: the few fields that matter here, and ways to change them.
//! Promise: fields that nobody here knows, those of a newer Kubernetes among them, survive.

use serde_json::{Map, Value};

/// The items of a list; none when it is absent or something else.
pub(crate) fn items<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    object.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A text; empty when it is absent or something else.
pub(crate) fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    text(object, "name")
}

pub(crate) fn annotation<'a>(pod: &'a Value, key: &str) -> Option<&'a str> {
    pod.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

pub(crate) fn label<'a>(pod: &'a Value, key: &str) -> Option<&'a str> {
    pod.get("metadata")?.get("labels")?.get(key)?.as_str()
}

pub(crate) fn annotations(pod: &Value) -> impl Iterator<Item = (&str, &str)> {
    let all = pod.get("metadata").and_then(|metadata| metadata.get("annotations")).and_then(Value::as_object);
    all.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

pub(crate) fn spec(pod: &Value) -> &Value {
    pod.get("spec").unwrap_or(&Value::Null)
}

/// Init containers, then containers.
pub(crate) fn all_containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let spec = spec(pod);
    items(spec, "initContainers").iter().chain(items(spec, "containers"))
}

/// Init containers, then containers, to be changed.
pub(crate) fn all_containers_mut(pod: &mut Value) -> impl Iterator<Item = &mut Value> {
    let spec = pod.get_mut("spec").and_then(Value::as_object_mut);
    let lists = spec.into_iter().flat_map(Map::iter_mut);
    let lists = lists.filter(|(key, _)| *key == "initContainers" || *key == "containers");
    lists.filter_map(|(_, list)| list.as_array_mut()).flatten()
}

/// The map at `key`, made when it is absent or null; `None` when something else stands there.
pub(crate) fn map_at<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Map<String, Value>> {
    let slot = object.as_object_mut()?.entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut()
}

/// The list at `key`, made when it is absent or null; `None` when something else stands there.
pub(crate) fn list_at<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Vec<Value>> {
    let slot = object.as_object_mut()?.entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Array(Vec::new());
    }
    slot.as_array_mut()
}

/// What stands at `key` of an object, if it is neither a `wanted` nor absent.
pub(crate) fn misshapen(object: &Value, key: &str, wanted: fn(&Value) -> bool) -> bool {
    object.get(key).is_some_and(|value| !value.is_null() && !wanted(value))
}
