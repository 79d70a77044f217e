//! A JSON Schema as Kubernetes takes it: a [structural schema].
//!
//! In: the config's schema, with definitions that refer to one another. Out: one schema without references, whose every place has
//! one type or any. Promise: nothing that the config takes is refused by it: where Kubernetes cannot say what is meant it says less.
//!
//! [structural schema]: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema

use serde_json::{Map, Value, json};

/// Keys are described down to this depth; below, the reference of the config tells. All of them would be two thirds of the text.
const WORDS_TO: usize = 4;

/// Keeps what is not known, for the webhook to tell of.
const OPEN: &str = "x-kubernetes-preserve-unknown-fields";

/// The schema without references.
pub(super) fn of(schema: &Value) -> Value {
    Builder { definitions: schema.get("$defs").unwrap_or(&Value::Null), within: Vec::new() }.place(schema, 0)
}

struct Builder<'a> {
    definitions: &'a Value,
    /// Definitions on the way here, for one may lead to itself.
    within: Vec<&'a str>,
}

impl<'a> Builder<'a> {
    fn place(&mut self, schema: &'a Value, depth: usize) -> Value {
        let mut out = self.meaning(schema, depth);
        if let (Some(words), true) = (schema.get("description").filter(|_| depth > 0), depth <= WORDS_TO) {
            out.insert("description".to_owned(), words.clone());
        }
        Value::Object(out)
    }

    fn meaning(&mut self, schema: &'a Value, depth: usize) -> Map<String, Value> {
        if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next()) {
            let known = self.definitions.get(name).filter(|_| !self.within.contains(&name));
            let Some(definition) = known else { return any() };
            self.within.push(name);
            let meant = self.place(definition, depth);
            self.within.pop();
            return into_map(meant);
        }
        let options = ["anyOf", "oneOf"].into_iter().find_map(|key| schema.get(key)?.as_array());
        if let Some(options) = options {
            let real: Vec<&Value> =
                options.iter().filter(|option| option.get("type") != Some(&json!("null"))).collect();
            return match real.as_slice() {
                [one] => into_map(self.place(one, depth)),
                // Words, and a text with a variable in it.
                several if several.iter().all(|one| one.get("type") == Some(&json!("string"))) => typed("string"),
                _ => any(),
            };
        }
        let kinds: Vec<&str> = match schema.get("type") {
            Some(Value::String(kind)) => vec![kind],
            Some(Value::Array(kinds)) => {
                kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect()
            }
            _ => Vec::new(),
        };
        match kinds.as_slice() {
            ["object"] => self.object(schema, depth),
            ["array"] => match schema.get("items") {
                Some(items) => {
                    let mut out = typed("array");
                    out.insert("items".to_owned(), self.place(items, depth + 1));
                    out
                }
                None => any(),
            },
            ["string"] => typed("string"),
            // With variables: `${PORT}`.
            ["integer", "string"] | ["string", "integer"] => {
                let mut out = Map::new();
                out.insert("x-kubernetes-int-or-string".to_owned(), json!(true));
                out
            }
            _ => any(),
        }
    }

    fn object(&mut self, schema: &'a Value, depth: usize) -> Map<String, Value> {
        let mut out = typed("object");
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            let properties = properties.iter().map(|(key, property)| (key.clone(), self.place(property, depth + 1)));
            let properties: Map<String, Value> = properties.collect();
            out.insert("properties".to_owned(), Value::Object(properties));
            out.insert(OPEN.to_owned(), json!(true));
            return out;
        }
        match schema.get("additionalProperties").filter(|values| values.is_object()) {
            Some(values) => out.insert("additionalProperties".to_owned(), self.place(values, depth + 1)),
            None => out.insert(OPEN.to_owned(), json!(true)),
        };
        out
    }
}

fn typed(kind: &str) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("type".to_owned(), json!(kind));
    out
}

fn any() -> Map<String, Value> {
    let mut out = Map::new();
    out.insert(OPEN.to_owned(), json!(true));
    out
}

fn into_map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => any(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_types_and_choices_become_what_kubernetes_takes() {
        let schema = json!({
            "type": "object", "description": "all",
            "properties": {
                "port": { "type": ["integer", "string"], "description": "a port" },
                "on": { "type": ["boolean", "string"] },
                "maybe": { "anyOf": [{ "$ref": "#/$defs/Part" }, { "type": "null" }] },
                "word": { "oneOf": [{ "type": "string", "const": "a" }, { "type": "string", "pattern": "x" }] },
                "either": { "oneOf": [{ "type": "string" }, { "$ref": "#/$defs/Part" }] },
                "all": { "type": "array", "items": { "$ref": "#/$defs/Part" } },
                "by": { "type": "object", "additionalProperties": { "type": "string" } },
            },
            "$defs": { "Part": { "type": "object", "description": "a part", "additionalProperties": false, "properties": { "inner": { "$ref": "#/$defs/Part" } } } },
        });
        let part = |words: &str| json!({ "type": "object", "properties": { "inner": { OPEN: true } }, OPEN: true, "description": words });
        let expected = json!({
            "type": "object",
            "properties": {
                "port": { "x-kubernetes-int-or-string": true, "description": "a port" },
                "on": { OPEN: true },
                "maybe": part("a part"),
                "word": { "type": "string" },
                "either": { OPEN: true },
                "all": { "type": "array", "items": part("a part") },
                "by": { "type": "object", "additionalProperties": { "type": "string" } },
            },
            OPEN: true,
        });
        assert_eq!(of(&schema), expected);
    }
}
