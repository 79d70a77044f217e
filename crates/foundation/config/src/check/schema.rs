//! Reads the parts of JSON Schema that our own generator writes.
//!
//! In: the generated schema. Out: [`Shape`]s, one for each place of the config, with
//! references and the `null` of optional values resolved.

use std::cell::RefCell;
use std::collections::HashMap;

use serde_json::{Map, Value as Json};

use super::formats;
use crate::tree::{Entry, Node, Scalar, Span, Value};

pub(super) struct Schema<'s> {
    root: &'s Json,
    definitions: Option<&'s Map<String, Json>>,
    /// Shapes that were worked out, by where the schema says them.
    known: RefCell<HashMap<*const Json, Shape<'s>>>,
}

/// What a value must look like.
#[derive(Clone, Copy)]
pub(super) struct Shape<'s> {
    pub(super) kind: Kind<'s>,
    /// The schema that says so.
    pub(super) json: &'s Json,
    /// Whether the value may be left out by writing `null`.
    pub(super) nullable: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Kind<'s> {
    Object {
        properties: &'s Map<String, Json>,
    },
    Map {
        values: &'s Json,
    },
    List {
        items: &'s Json,
    },
    Choice,
    Boolean,
    Integer,
    Number,
    Text,
    /// A text, or a whole number.
    Size,
    /// A text, or a mapping that says more.
    Short {
        text: &'s Json,
        full: &'s Json,
    },
    Any,
}

impl<'s> Schema<'s> {
    pub(super) fn new(root: &'s Json) -> Self {
        let definitions = root.get("$defs").and_then(Json::as_object);
        Self { root, definitions, known: RefCell::default() }
    }

    pub(super) fn root(&self) -> Shape<'s> {
        self.shape(self.root)
    }

    /// What a part of the schema says. It is worked out once: a large file has very many values of the same shape.
    pub(super) fn shape(&self, json: &'s Json) -> Shape<'s> {
        let place = std::ptr::from_ref(json);
        let known = self.known.borrow().get(&place).copied();
        known.unwrap_or_else(|| {
            let shape = self.work_out(json);
            self.known.borrow_mut().insert(place, shape);
            shape
        })
    }

    fn work_out(&self, json: &'s Json) -> Shape<'s> {
        if let Some(reference) = json.get("$ref").and_then(Json::as_str) {
            let name = reference.rsplit('/').next().unwrap_or_default();
            let target = self.definitions.and_then(|definitions| definitions.get(name));
            return target.map_or(Shape { kind: Kind::Any, json, nullable: false }, |target| self.shape(target));
        }
        if let Some(options) = json.get("anyOf").and_then(Json::as_array) {
            let is_null = |option: &Json| option.get("type").and_then(Json::as_str) == Some("null");
            let mut others = options.iter().filter(|option| !is_null(option));
            match (others.next(), others.next(), others.next()) {
                (Some(only), None, None) => return Shape { nullable: true, ..self.shape(only) },
                (Some(full), Some(text), None) => {
                    return Shape { kind: Kind::Short { text, full }, json, nullable: false };
                }
                _ => {}
            }
        }
        let types = types(json);
        let has = |name: &str| types.contains(&name);
        let kind = if json.get("oneOf").is_some() || json.get("enum").is_some() || json.get("const").is_some() {
            Kind::Choice
        } else if has("object") {
            match (json.get("properties").and_then(Json::as_object), json.get("additionalProperties")) {
                (Some(properties), _) => Kind::Object { properties },
                (None, Some(values)) if values.is_object() => Kind::Map { values },
                _ => Kind::Object { properties: no_properties() },
            }
        } else if has("array") {
            json.get("items").map_or(Kind::Any, |items| Kind::List { items })
        } else if has("string") {
            if has("integer") { Kind::Size } else { Kind::Text }
        } else if has("integer") {
            Kind::Integer
        } else if has("number") {
            Kind::Number
        } else if has("boolean") {
            Kind::Boolean
        } else {
            Kind::Any
        };
        Shape { kind, json, nullable: has("null") }
    }

    /// The shape of the member `key`, if it is known.
    pub(super) fn member(&self, shape: Shape<'s>, key: &str) -> Option<Shape<'s>> {
        match shape.kind {
            Kind::Object { properties } => properties.get(key).map(|json| self.shape(json)),
            _ => None,
        }
    }

    /// The keys known in a mapping, in the model's order.
    pub(super) fn members(&self, shape: Shape<'s>) -> impl Iterator<Item = &'s str> + use<'s> {
        let properties = match shape.kind {
            Kind::Object { properties } => properties,
            _ => no_properties(),
        };
        properties.keys().map(String::as_str)
    }

    /// The keys that must be given.
    pub(super) fn required(&self, shape: Shape<'s>) -> impl Iterator<Item = &'s str> + use<'s> {
        let keys = shape.json.get("required").and_then(Json::as_array);
        keys.into_iter().flatten().filter_map(Json::as_str)
    }

    /// The one place of the model where `key` is known, such as `proxy.listeners[]`.
    pub(super) fn home_of(&self, key: &str) -> Option<String> {
        let mut homes = Vec::new();
        self.find_homes(self.root(), key, &mut String::new(), &mut homes);
        if homes.len() == 1 { homes.pop() } else { None }
    }

    fn find_homes(&self, shape: Shape<'s>, key: &str, path: &mut String, homes: &mut Vec<String>) {
        match shape.kind {
            Kind::Object { properties } => {
                if !path.is_empty() && properties.contains_key(key) {
                    homes.push(path.clone());
                }
                for (name, json) in properties {
                    let length = path.len();
                    if length > 0 {
                        path.push('.');
                    }
                    path.push_str(name);
                    self.find_homes(self.shape(json), key, path, homes);
                    path.truncate(length);
                }
            }
            Kind::Short { full, .. } => self.find_homes(self.shape(full), key, path, homes),
            Kind::List { items } => {
                path.push_str("[]");
                self.find_homes(self.shape(items), key, path, homes);
                path.truncate(path.len() - 2);
            }
            _ => {}
        }
    }

    /// Whether a secret may stand in a value of this shape.
    pub(super) fn holds_secret(&self, shape: Shape<'s>) -> bool {
        match shape.kind {
            Kind::Object { properties } => properties.values().any(|json| self.holds_secret(self.shape(json))),
            Kind::Map { values } => self.holds_secret(self.shape(values)),
            Kind::List { items } => self.holds_secret(self.shape(items)),
            Kind::Short { full, .. } => self.holds_secret(self.shape(full)),
            _ => shape.format() == Some("password"),
        }
    }

    /// A value that can be deserialised in place of one that cannot.
    pub(super) fn stand_in(&self, shape: Shape<'s>, span: Span) -> Node {
        if let Kind::Short { text, .. } = shape.kind {
            return self.stand_in(self.shape(text), span);
        }
        let plain = |text: String| Scalar { text, written: None, plain: true };
        let value = match shape.kind {
            Kind::Object { .. } => Value::Mapping(
                self.required(shape)
                    .filter_map(|key| Some((key, self.member(shape, key)?)))
                    .map(|(key, member)| Entry {
                        key: key.to_owned(),
                        key_span: span,
                        value: self.stand_in(member, span),
                        duplicate: false,
                    })
                    .collect(),
            ),
            Kind::Map { .. } => Value::Mapping(Vec::new()),
            Kind::List { .. } => Value::Sequence(Vec::new()),
            Kind::Choice => Value::Scalar(Scalar::quoted(shape.choices().first().copied().unwrap_or_default())),
            Kind::Boolean => Value::Scalar(plain("false".to_owned())),
            Kind::Integer | Kind::Number => {
                Value::Scalar(plain(shape.bound("minimum").unwrap_or(0).max(1).to_string()))
            }
            Kind::Text => Value::Scalar(Scalar::quoted(formats::stand_in(shape.format()))),
            Kind::Size => Value::Scalar(Scalar::quoted("1MiB")),
            Kind::Any | Kind::Short { .. } => Value::Scalar(Scalar::quoted("")),
        };
        Node { span, value }
    }
}

impl<'s> Shape<'s> {
    pub(super) fn format(&self) -> Option<&'s str> {
        self.json.get("format").and_then(Json::as_str)
    }

    /// The texts allowed, of a [`Kind::Choice`].
    pub(super) fn choices(&self) -> Vec<&'s str> {
        let one_of = self.json.get("oneOf").and_then(Json::as_array).into_iter().flatten();
        let listed = self.json.get("enum").and_then(Json::as_array).into_iter().flatten();
        let nested = one_of.flat_map(|option| {
            let listed = option.get("enum").and_then(Json::as_array).into_iter().flatten();
            option.get("const").into_iter().chain(listed)
        });
        self.json.get("const").into_iter().chain(listed).chain(nested).filter_map(Json::as_str).collect()
    }

    /// `minimum` or `maximum` of a number.
    pub(super) fn bound(&self, which: &str) -> Option<i128> {
        let bound = self.json.get(which)?;
        bound.as_i64().map(i128::from).or_else(|| bound.as_u64().map(i128::from))
    }
}

fn types(json: &Json) -> Vec<&str> {
    match json.get("type") {
        Some(Json::String(one)) => vec![one],
        Some(Json::Array(several)) => several.iter().filter_map(Json::as_str).collect(),
        _ => Vec::new(),
    }
}

fn no_properties() -> &'static Map<String, Json> {
    static NONE: std::sync::LazyLock<Map<String, Json>> = std::sync::LazyLock::new(Map::new);
    &NONE
}
