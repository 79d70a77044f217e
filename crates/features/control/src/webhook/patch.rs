//! What has to be done to one JSON value to make it another, as a JSON Patch ([RFC 6902]).
//!
//! In: two values. Out: operations. Promise: done in their order, they make the second of the first; what both have is in no
//! operation, also when things were put before it in a list of things with names.
//!
//! [RFC 6902]: https://www.rfc-editor.org/rfc/rfc6902

use std::borrow::Cow;

use serde_json::{Value, json};

/// The operations that make `to` of `from`.
pub fn difference(from: &Value, to: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    walk(&mut String::new(), from, to, &mut operations);
    operations
}

fn walk(path: &mut String, from: &Value, to: &Value, out: &mut Vec<Value>) {
    match (from, to) {
        // Lists and maps are gone through once, not compared as a whole at each depth.
        (Value::Object(before), Value::Object(after)) => {
            for key in before.keys().filter(|key| !after.contains_key(*key)) {
                below(path, &escaped(key), |path| out.push(json!({ "op": "remove", "path": path })));
            }
            for (key, value) in after {
                below(path, &escaped(key), |path| match before.get(key) {
                    Some(old) => walk(path, old, value, out),
                    None => out.push(json!({ "op": "add", "path": path, "value": value })),
                });
            }
        }
        (Value::Array(before), Value::Array(after)) => list(path, before, after, out),
        _ if from == to => {}
        _ => out.push(json!({ "op": "replace", "path": path, "value": to })),
    }
}

fn list(path: &mut String, before: &[Value], after: &[Value], out: &mut Vec<Value>) {
    let same = |(one, other): &(&Value, &Value)| one == other;
    let front = before.iter().zip(after).take_while(same).count();
    let (before, after) = (&before[front..], &after[front..]);
    let back = before.iter().rev().zip(after.iter().rev()).take_while(same).count();
    let (before, after) = (&before[..before.len() - back], &after[..after.len() - back]);
    if let Some(shift) = shift(before, after) {
        // Things were put before and behind those that were there.
        for (at, value) in after[..shift].iter().enumerate() {
            below(path, &(front + at).to_string(), |path| {
                out.push(json!({ "op": "add", "path": path, "value": value }))
            });
        }
        for (at, (old, new)) in before.iter().zip(&after[shift..]).enumerate() {
            below(path, &(front + shift + at).to_string(), |path| walk(path, old, new, out));
        }
        for (at, value) in after.iter().enumerate().skip(shift + before.len()) {
            below(path, &(front + at).to_string(), |path| {
                out.push(json!({ "op": "add", "path": path, "value": value }))
            });
        }
        return;
    }
    for at in (0..before.len()).rev() {
        below(path, &(front + at).to_string(), |path| out.push(json!({ "op": "remove", "path": path })));
    }
    for (at, value) in after.iter().enumerate() {
        below(path, &(front + at).to_string(), |path| out.push(json!({ "op": "add", "path": path, "value": value })));
    }
}

/// How far what was there has moved back, if it is there in one piece, by its names.
fn shift(before: &[Value], after: &[Value]) -> Option<usize> {
    let alike = |(one, other): (&Value, &Value)| match (&one["name"], &other["name"]) {
        (Value::String(one), Value::String(other)) => one == other,
        _ => one == other,
    };
    let most = after.len().checked_sub(before.len())?;
    (0..=most).find(|shift| before.iter().zip(&after[*shift..]).all(alike))
}

fn below<T>(path: &mut String, segment: &str, work: impl FnOnce(&mut String) -> T) -> T {
    let length = path.len();
    path.push('/');
    path.push_str(segment);
    let result = work(path);
    path.truncate(length);
    result
}

/// A key as a JSON Pointer ([RFC 6901]) has it.
///
/// [RFC 6901]: https://www.rfc-editor.org/rfc/rfc6901
fn escaped(key: &str) -> Cow<'_, str> {
    if key.contains(['~', '/']) { key.replace('~', "~0").replace('/', "~1").into() } else { key.into() }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Does what a patch says, strictly.
    pub(crate) fn apply(mut value: Value, operations: &[Value]) -> Value {
        for operation in operations {
            let path = operation["path"].as_str().unwrap();
            if path.is_empty() {
                value = operation["value"].clone();
                continue;
            }
            let (parent, last) = path.rsplit_once('/').unwrap();
            let last = last.replace("~1", "/").replace("~0", "~");
            let parent = value.pointer_mut(parent).unwrap_or_else(|| panic!("{path} has no parent"));
            match (operation["op"].as_str().unwrap(), parent) {
                ("add", Value::Object(map)) => drop(map.insert(last, operation["value"].clone())),
                ("add", Value::Array(items)) => items.insert(last.parse().unwrap(), operation["value"].clone()),
                ("replace", Value::Object(map)) => *map.get_mut(&last).unwrap() = operation["value"].clone(),
                ("replace", Value::Array(items)) => items[last.parse::<usize>().unwrap()] = operation["value"].clone(),
                ("remove", Value::Object(map)) => drop(map.remove(&last).unwrap()),
                ("remove", Value::Array(items)) => drop(items.remove(last.parse().unwrap())),
                other => panic!("{other:?}"),
            }
        }
        value
    }

    #[test]
    fn what_is_put_before_others_leaves_them_alone() {
        let from = json!({ "c": [{ "name": "app", "env": [] }, { "name": "log" }], "a/b": { "~": 1 } });
        let to =
            json!({ "c": [{ "name": "new" }, { "name": "app", "env": [1] }, { "name": "log" }], "a/b": { "~": 2 } });
        let operations = difference(&from, &to);
        assert_eq!(
            operations,
            [
                json!({ "op": "add", "path": "/c/0", "value": { "name": "new" } }),
                json!({ "op": "add", "path": "/c/1/env/0", "value": 1 }),
                json!({ "op": "replace", "path": "/a~1b/~0", "value": 2 }),
            ]
        );
        assert_eq!(apply(from, &operations), to);
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3i64).prop_map(Value::from),
            "[ab]".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("(name|a|b/|~c)", inner, 0..4).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_patch_makes_the_one_of_the_other(from in values(), to in values()) {
            let operations = difference(&from, &to);
            prop_assert_eq!(operations.is_empty(), from == to);
            prop_assert_eq!(apply(from, &operations), to);
        }
    }
}
