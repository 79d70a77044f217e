//! Values between JSON and templates.
//!
//! In: JSON. Out: the values of the template engine, and back. Promise: texts are zeroed on
//! the JSON side once they have been taken over.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::Value;
use serde_json::{Map, Number, Value as Json};
use zeroize::Zeroize;

/// A template's value from JSON.
pub(crate) fn to_value(json: Json) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(value) => Value::Bool(value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::Int(value),
            (None, Some(value)) => Value::Uint(value),
            (None, None) => Value::Float(number.as_f64().unwrap_or_default()),
        },
        Json::String(mut text) => {
            let value = Value::String(Arc::from(text.as_str()));
            text.zeroize();
            value
        }
        Json::Array(items) => Value::List(items.into_iter().map(to_value).collect()),
        Json::Object(members) => {
            let members: BTreeMap<Arc<str>, Value> =
                members.into_iter().map(|(name, value)| (Arc::from(name), to_value(value))).collect();
            Value::Map(Arc::new(members))
        }
    }
}

/// Whether a number is what the JSON said. A whole number beyond 64 bits is not: its last digits are lost.
pub(super) fn is_exact(number: f64) -> bool {
    number.is_finite() && number.abs() < 18_446_744_073_709_551_616.0
}

/// JSON from a template's value; `None` for a function, or a number that is not what it was.
pub(super) fn to_json(value: &Value) -> Option<Json> {
    Some(match value {
        Value::Nil => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(value) => Json::Number((*value).into()),
        Value::Uint(value) => Json::Number((*value).into()),
        Value::Float(value) if !is_exact(*value) => return None,
        Value::Float(value) => Number::from_f64(*value).map_or(Json::Null, Json::Number),
        Value::String(text) => Json::String(text.to_string()),
        Value::List(items) => Json::Array(items.iter().map(to_json).collect::<Option<_>>()?),
        Value::Map(members) => {
            let members = members.iter().map(|(name, value)| Some((name.to_string(), to_json(value)?)));
            Json::Object(members.collect::<Option<Map<_, _>>>()?)
        }
        _ => return None,
    })
}
