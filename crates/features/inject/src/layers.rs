//! Configs in layers, and which of them each value is of.
//!
//! In: layers, the later ones counting more. Out: one config, and a row for each of its values with its origin. Promise: a
//! pure function, whose values are those of `config::merged` whatever the layers are (a property test holds the two together).

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::config::named;

/// A part of a config, and who says so.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Such as `SidecarProfile shop/web`.
    pub origin: Arc<str>,
    /// What it says.
    pub value: Arc<Value>,
}

impl Layer {
    /// A layer.
    pub fn new(origin: impl Into<Arc<str>>, value: Value) -> Self {
        Self { origin: origin.into(), value: Arc::new(value) }
    }
}

/// One step of the way to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A member of a map.
    Key(String),
    /// An item of a list, by its `name`.
    Item(String),
}

/// A value, and where it is from.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Where it stands.
    pub path: Vec<Step>,
    /// What stands there: no map, and no list of things with a `name`, unless it is empty.
    pub value: Value,
    /// Which layer says so.
    pub origin: Arc<str>,
}

impl Row {
    /// The path as an operator writes it, such as `proxy.listeners[inbound].address`.
    pub fn place(&self) -> String {
        let mut at = outrigger_config::ConfigPath::root();
        for step in &self.path {
            at = match step {
                Step::Key(key) => at.key(key),
                Step::Item(name) => at.item(name),
            };
        }
        at.to_string()
    }
}

/// The values of all layers together, in the order in which they stand there.
pub fn rows(layers: &[Layer]) -> Vec<Row> {
    let all = layers.iter().fold(None, |all: Option<Traced>, layer| {
        Some(match all {
            Some(all) => all.under(&layer.value, &layer.origin),
            None => Traced::of(&layer.value, &layer.origin),
        })
    });
    let mut rows = Vec::new();
    if let Some(all) = all {
        all.tell(&mut Vec::new(), &mut rows);
    }
    rows
}

/// A config whose values know their layer.
enum Traced {
    Leaf(Value, Arc<str>),
    Map(Vec<(String, Self)>, Arc<str>),
    /// A list of things with a `name`.
    List(Vec<(String, Self)>, Arc<str>),
}

impl Traced {
    fn of(value: &Value, origin: &Arc<str>) -> Self {
        match value {
            Value::Object(map) => {
                let members = map.iter().map(|(key, value)| (key.clone(), Self::of(value, origin)));
                Self::Map(members.collect(), Arc::clone(origin))
            }
            Value::Array(items) if named(items) => {
                let items = items.iter().map(|item| (name(item), Self::of(item, origin)));
                Self::List(items.collect(), Arc::clone(origin))
            }
            other => Self::Leaf(other.clone(), Arc::clone(origin)),
        }
    }

    /// With a further layer over it.
    fn under(self, over: &Value, origin: &Arc<str>) -> Self {
        match (self, over) {
            (Self::Map(mut members, first), Value::Object(over)) => {
                let over = over.iter().map(|(key, value)| (key.clone(), value));
                over.for_each(|(key, value)| put(&mut members, key, value, origin));
                Self::Map(members, first)
            }
            (Self::List(mut items, first), Value::Array(over)) if named(over) => {
                over.iter().for_each(|item| put(&mut items, name(item), item, origin));
                Self::List(items, first)
            }
            (_, over) => Self::of(over, origin),
        }
    }

    fn tell(self, at: &mut Vec<Step>, rows: &mut Vec<Row>) {
        let (members, step): (_, fn(String) -> Step) = match self {
            Self::Map(members, origin) if members.is_empty() => {
                return rows.push(Row { path: at.clone(), value: Value::Object(Map::new()), origin });
            }
            Self::Leaf(value, origin) => return rows.push(Row { path: at.clone(), value, origin }),
            Self::Map(members, _) => (members, Step::Key),
            Self::List(items, _) => (items, Step::Item),
        };
        for (key, value) in members {
            at.push(step(key));
            value.tell(at, rows);
            at.pop();
        }
    }
}

fn name(item: &Value) -> String {
    item["name"].as_str().unwrap_or_default().to_owned()
}

fn put(members: &mut Vec<(String, Traced)>, key: String, value: &Value, origin: &Arc<str>) {
    match members.iter().position(|(known, _)| *known == key) {
        Some(at) => {
            let before = std::mem::replace(&mut members[at].1, Traced::Leaf(Value::Null, Arc::clone(origin)));
            members[at].1 = before.under(value, origin);
        }
        None => members.push((key, Traced::of(value, origin))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::config::merged;

    #[test]
    fn each_value_knows_who_said_it_last() {
        let base =
            json!({ "a": { "x": 1, "y": [1, 2] }, "list": [{ "name": "p", "v": 1, "w": 1 }], "gone": { "z": 1 } });
        let over = json!({ "a": { "y": [3] }, "list": [{ "name": "p", "v": 2 }, { "name": "q r" }], "gone": null });
        let rows = rows(&[Layer::new("base", base), Layer::new("over", over)]);
        let told: Vec<String> =
            rows.iter().map(|row| format!("{}={} {}", row.place(), row.value, row.origin)).collect();
        assert_eq!(
            told,
            [
                "a.x=1 base",
                "a.y=[3] over",
                "list[p].name=\"p\" over",
                "list[p].v=2 over",
                "list[p].w=1 base",
                "list[\"q r\"].name=\"q r\" over",
                "gone=null over",
            ]
        );
    }

    fn values() -> impl Strategy<Value = Value> {
        let key = prop::sample::select(vec!["a", "b", "name"]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3_u8).prop_map(Value::from),
            prop::sample::select(vec!["p", "q"]).prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 3, move |inner| {
            let map = prop::collection::btree_map(key.clone(), inner.clone(), 0..3);
            // Lists of named things are what matters, and would seldom come by chance.
            let named = prop::collection::vec((prop::sample::select(vec!["p", "q", "r"]), 0..3_u8), 0..3);
            prop_oneof![
                prop::collection::vec(inner, 0..3).prop_map(Value::Array),
                map.prop_map(|map| {
                    Value::Object(map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
                }),
                named.prop_map(|items| {
                    Value::Array(items.into_iter().map(|(name, v)| json!({ "name": name, "v": v })).collect())
                }),
            ]
        })
    }

    /// Builds a value of rows again.
    fn built(rows: &[Row]) -> Value {
        fn put(into: &mut Value, path: &[Step], value: &Value) {
            match path.split_first() {
                None => *into = value.clone(),
                Some((Step::Key(key), rest)) => {
                    if !into.is_object() {
                        *into = json!({});
                    }
                    put(&mut into[key.as_str()], rest, value);
                }
                Some((Step::Item(_), _)) => unreachable!("lists are compared by their rows"),
            }
        }
        let mut out = Value::Null;
        rows.iter().for_each(|row| put(&mut out, &row.path, &row.value));
        out
    }

    proptest! {
        #[test]
        fn rows_are_the_rows_of_what_is_merged(layers in prop::collection::vec(values(), 1..5)) {
            let together = layers.iter().skip(1).fold(layers[0].clone(), merged);
            let traced = rows(&layers.iter().enumerate().map(|(at, value)| Layer::new(at.to_string(), value.clone())).collect::<Vec<_>>());
            let once = rows(&[Layer::new("all", together.clone())]);
            let bare = |rows: &[Row]| rows.iter().map(|row| (row.place(), row.value.clone())).collect::<Vec<_>>();
            prop_assert_eq!(bare(&traced), bare(&once));
            if once.iter().all(|row| row.path.iter().all(|step| matches!(step, Step::Key(_)))) {
                prop_assert_eq!(built(&traced), together);
            }
            // Each row is of a layer that says so, and no later layer says anything of it.
            for row in &traced {
                prop_assert!(row.origin.parse::<usize>().unwrap() < layers.len());
            }
        }

        #[test]
        fn refining_maps_does_not_depend_on_how_layers_are_grouped(a in values(), b in values(), c in values()) {
            let wrapped = |value: Value| json!({ "m": value });
            let (a, b, c) = (wrapped(a), wrapped(b), wrapped(c));
            let left = merged(merged(a.clone(), &b), &c);
            // What replaces replaces whole; where nothing is replaced, grouping is free.
            let keeps = |one: &Value, two: &Value| one["m"].is_object() && two["m"].is_object() && scalars(one) && scalars(two);
            if keeps(&a, &b) && keeps(&b, &c) {
                prop_assert_eq!(left, merged(a, &merged(b, &c)));
            }
        }
    }

    /// Maps of maps and scalars alone, with the same shape wherever two meet, cannot hold lists.
    fn scalars(value: &Value) -> bool {
        value["m"].as_object().is_some_and(|map| map.values().all(|value| !value.is_object() && !value.is_array()))
    }
}
