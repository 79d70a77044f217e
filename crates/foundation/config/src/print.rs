//! The effective config as text.
//!
//! In: a [`Config`]. Out: YAML that the parser takes back, every default filled in.
//! Promise: [`Secret`](crate::Secret)s are masked; a `$` that would be read as a
//! reference is escaped.

use serde_json::Value as Json;

use crate::{Config, tree};

/// The effective config as YAML, every default filled in, secrets masked.
pub fn to_yaml(config: &Config) -> String {
    // Both serialise only texts, numbers, lists and maps with text keys, which cannot fail.
    let Ok(mut tree) = serde_json::to_value(config) else { return String::new() };
    escape(&mut tree);
    serde_saphyr::to_string(&tree).unwrap_or_default()
}

fn escape(value: &mut Json) {
    match value {
        Json::String(text) => {
            if let std::borrow::Cow::Owned(escaped) = tree::escape(text) {
                *text = escaped;
            }
        }
        Json::Array(items) => items.iter_mut().for_each(escape),
        Json::Object(members) => members.values_mut().for_each(escape),
        _ => {}
    }
}
