//! The JSON Schema of the config, generated from the model, and the reference made of it.
//!
//! Out: `docs/reference/outrigger.schema.json` for editors and `docs/reference/config.md`
//! for readers. Promise: both say what the parser does, for the parser checks against
//! this very schema; a test fails when a committed copy drifts.

use std::collections::HashMap;
use std::fmt::Write;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value as Json, json};

use crate::Config;

const ID: &str = "https://outrigger.dev/schema/outrigger.schema.json";

/// The JSON Schema (draft 2020-12) of the config file, with descriptions, defaults, units and bounds.
///
/// It describes the file before interpolation, so each scalar may also be a text with a `${…}` in it.
pub fn json_schema() -> Json {
    let mut schema = model_schema();
    admit_references(&mut schema);
    schema
}

/// What a text with a reference looks like, as a pattern.
const REFERENCE: &str = r"\$\{[A-Za-z_]";

fn admit_references(schema: &mut Json) {
    match schema {
        Json::Array(items) => items.iter_mut().for_each(admit_references),
        Json::Object(members) => {
            for (key, value) in members.iter_mut().filter(|(key, _)| *key != "default") {
                match (key.as_str(), value) {
                    ("pattern", Json::String(pattern)) => *pattern = format!("{pattern}|{REFERENCE}"),
                    ("oneOf", Json::Array(options)) => options.push(json!({ "type": "string", "pattern": REFERENCE })),
                    (_, value) => admit_references(value),
                }
            }
            let numeric = |kind: &Json| matches!(kind.as_str(), Some("integer" | "number" | "boolean"));
            let kinds = match members.get("type") {
                Some(Json::Array(kinds)) => kinds.clone(),
                Some(kind @ Json::String(_)) => vec![kind.clone()],
                _ => Vec::new(),
            };
            if kinds.iter().any(numeric) && !kinds.contains(&json!("string")) {
                let kinds: Vec<_> = kinds.into_iter().chain([json!("string")]).collect();
                members.insert("type".to_owned(), Json::Array(kinds));
                members.insert("pattern".to_owned(), json!(REFERENCE));
            }
        }
        _ => {}
    }
}

/// The schema of the values, after interpolation: what the parser checks against.
pub(crate) fn model_schema() -> Json {
    let generated = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Config>().to_value();
    let Json::Object(generated) = generated else { return generated };
    let mut schema = Map::new();
    schema.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("$id".to_owned(), json!(ID));
    schema.insert("title".to_owned(), json!("Outrigger configuration"));
    for (key, value) in generated {
        schema.entry(key).or_insert(value);
    }
    Json::Object(schema)
}

/// The schema without its words, as a release has it. To make it of the model takes as long as the rest of a start, and
/// frees a megabyte afterwards. A test holds the copy to the model; development builds do without it.
pub(crate) fn copied_schema() -> Option<Json> {
    let copied = || serde_json::from_str(include_str!("../schema/structure.json")).ok();
    if cfg!(debug_assertions) { None } else { copied() }
}

/// The config reference as Markdown: every key with its type, default and description.
pub fn markdown_reference() -> String {
    let schema = model_schema();
    let mut out = String::from(concat!(
        "# Configuration reference\n\n",
        "<!-- Generated from the config model by `cargo xtask bless`; edit the model's comments instead. -->\n\n",
        "One YAML file, read by `outrigger run -c FILE` and checked by `outrigger validate -c FILE`. ",
        "An absent pillar is off; an empty file is valid.\n\n",
        "- Unknown keys are errors. Every mistake of a file is reported at once, with line and column.\n",
        "- `${NAME}` in a value is the environment variable NAME, `${NAME:-default}` has a value for when it is unset or empty, ",
        "and `$$` is one `$`. An unset variable without a default is an error. Keys are never filled in, ",
        "and a variable's value never becomes structure. `${{` is left as it is.\n",
        "- Anchors, aliases and merge keys (`<<`) work as in YAML; a file has one document and at most 16 MiB.\n",
        "- A file mode is octal and in quotes: `\"0400\"`.\n",
    ));
    out.push_str("\n## Forms of values\n\n| Type | Form |\n|---|---|\n");
    let definitions = schema.get("$defs").and_then(Json::as_object);
    for (name, definition) in definitions.into_iter().flatten() {
        if definition.get("type").and_then(Json::as_str) != Some("object") && definition.get("oneOf").is_none() {
            let _ = writeln!(out, "| {name} | {} |", cell(description(definition)));
        }
    }
    Reference { schema: &schema, out: &mut out, told: HashMap::new() }.section("", &schema, 0);
    out
}

struct Reference<'a> {
    schema: &'a Json,
    out: &'a mut String,
    /// Where a mapping was told that others have, too.
    told: HashMap<*const Json, String>,
}

impl<'a> Reference<'a> {
    /// A heading, a table of the keys, then a section for each key that has keys of its own.
    fn section(&mut self, path: &str, object: &'a Json, depth: usize) {
        let Some(properties) = object.get("properties").and_then(Json::as_object) else { return };
        let heading = if path.is_empty() { "Top level".to_owned() } else { format!("`{path}`") };
        if let Some(first) = self.told.get(&std::ptr::from_ref(object)) {
            let _ = write!(self.out, "\n{} {heading}\n\nAs `{first}`, above.\n", "#".repeat(depth.clamp(0, 2) + 2));
            return;
        }
        self.told.insert(object, path.to_owned());
        let _ = write!(self.out, "\n{} {heading}\n\n{}\n", "#".repeat(depth.clamp(0, 2) + 2), description(object));
        if properties.is_empty() {
            self.out.push_str("\nIt has no keys: write `{}`.\n");
            return;
        }
        let required = object.get("required").and_then(Json::as_array);
        let is_required = |key: &str| required.is_some_and(|keys| keys.iter().any(|required| required == key));
        self.out.push_str("\n| Key | Type | Default | Meaning |\n|---|---|---|---|\n");
        for (key, property) in properties {
            let default = match property.get("default") {
                _ if is_required(key) => "*required*".to_owned(),
                Some(Json::Object(_)) => "see below".to_owned(),
                Some(Json::Null) | None => "—".to_owned(),
                Some(Json::String(text)) if text.is_empty() => "empty".to_owned(),
                Some(Json::String(text)) => format!("`{text}`"),
                Some(other) => format!("`{other}`"),
            };
            let (kind, meaning) = (self.kind(property), self.meaning(property));
            let _ = writeln!(self.out, "| `{key}` | {kind} | {default} | {meaning} |");
        }
        for (key, property) in properties {
            let (target, list) = self.target(property);
            let dot = if path.is_empty() { "" } else { "." };
            let path = format!("{path}{dot}{key}{}", if list { "[]" } else { "" });
            self.section(&path, target, depth + 1);
        }
    }

    /// What a property refers to, and whether it is a list of it.
    fn target(&self, property: &'a Json) -> (&'a Json, bool) {
        if let Some(name) = property.get("$ref").and_then(Json::as_str).and_then(|path| path.rsplit('/').next()) {
            return self.schema.pointer(&format!("/$defs/{name}")).map_or((property, false), |found| (found, false));
        }
        if let Some(options) = property.get("anyOf").and_then(Json::as_array) {
            return options.first().map_or((property, false), |option| self.target(option));
        }
        match property.get("items") {
            Some(items) => (self.target(items).0, true),
            None => (property, false),
        }
    }

    fn kind(&self, property: &'a Json) -> String {
        // A mapping, or a text that is short for one.
        if let Some([full, short]) = property.get("anyOf").and_then(Json::as_array).map(Vec::as_slice)
            && short.get("$ref").is_some()
        {
            return format!("{} or {}", self.kind(short), self.kind(full));
        }
        let (target, list) = self.target(property);
        if list {
            return format!("list of {}", self.kind(property.get("items").unwrap_or(target)));
        }
        if let Some(name) = reference(property) {
            let is_object = target.get("properties").is_some() || target.get("oneOf").is_some();
            return if target.get("oneOf").is_some() {
                choices(target)
            } else if is_object {
                "mapping".to_owned()
            } else {
                name.to_owned()
            };
        }
        let named = |name: &str| {
            property.get("type").is_some_and(|kind| {
                kind == name || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == name))
            })
        };
        let bounds = (property.get("minimum"), property.get("maximum"));
        match property.get("format").and_then(Json::as_str) {
            Some("socket-address") => "`IP:PORT`".to_owned(),
            Some("path") => "path".to_owned(),
            Some("absolute-path") => "absolute path".to_owned(),
            Some("http-url" | "http-origin") => "URL".to_owned(),
            Some("route-hostname") => "host name".to_owned(),
            Some("variable-name") => "variable name".to_owned(),
            Some("http-path") => "URL path".to_owned(),
            _ if named("integer") => match bounds {
                (Some(least), Some(most)) => format!("integer, {least} to {most}"),
                (Some(least), None) => format!("integer, from {least}"),
                _ => "integer".to_owned(),
            },
            _ if named("number") => "number".to_owned(),
            _ if named("boolean") => "boolean".to_owned(),
            _ if named("object") => match property.get("additionalProperties") {
                Some(values) if values.is_object() => format!("mapping of names to {}", self.kind(values)),
                _ => "mapping".to_owned(),
            },
            _ => "text".to_owned(),
        }
    }

    fn meaning(&self, property: &'a Json) -> String {
        let mut text = cell(description(property));
        let (target, list) = self.target(property);
        if let (Some(options), false) = (target.get("oneOf").and_then(Json::as_array), list) {
            for option in options {
                if let Some(name) = option.get("const").and_then(Json::as_str) {
                    let _ = write!(text, "<br>`{name}`: {}", cell(description(option)));
                }
            }
        }
        text
    }
}

fn reference(property: &Json) -> Option<&str> {
    let option = property.get("anyOf").and_then(Json::as_array).and_then(|options| options.first());
    option.unwrap_or(property).get("$ref")?.as_str()?.rsplit('/').next()
}

fn choices(target: &Json) -> String {
    let options = target.get("oneOf").and_then(Json::as_array).into_iter().flatten();
    let names: Vec<_> =
        options.filter_map(|option| option.get("const")?.as_str()).map(|name| format!("`{name}`")).collect();
    names.join(" or ")
}

fn description(schema: &Json) -> &str {
    schema.get("description").and_then(Json::as_str).unwrap_or_default()
}

/// A text within a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Compares with the committed copy; `OUTRIGGER_BLESS=1` rewrites it.
    fn golden(name: &str, text: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(name);
        if std::env::var_os("OUTRIGGER_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == text, "{name} has drifted from the config model; run `cargo xtask bless`");
    }

    #[test]
    fn the_committed_schema_is_current() {
        golden("docs/reference/outrigger.schema.json", &(serde_json::to_string_pretty(&json_schema()).unwrap() + "\n"));
    }

    #[test]
    fn the_committed_reference_is_current() {
        golden("docs/reference/config.md", &markdown_reference());
    }

    /// Takes the words out of a schema, but not out of what a mapping's keys are called.
    fn without_words(schema: &mut Json) {
        match schema {
            Json::Array(items) => items.iter_mut().for_each(without_words),
            Json::Object(members) => {
                members.retain(|key, _| !["description", "default", "title", "$schema", "$id"].contains(&key.as_str()));
                for (key, value) in members {
                    match (key.as_str(), value) {
                        ("properties" | "$defs", Json::Object(named)) => named.values_mut().for_each(without_words),
                        (_, value) => without_words(value),
                    }
                }
            }
            _ => {}
        }
    }

    #[test]
    fn the_parsers_copy_is_current() {
        let mut schema = model_schema();
        without_words(&mut schema);
        // A definition on each line, so that changes to two of them do not meet.
        let mut root = schema.clone();
        let definitions = root.as_object_mut().unwrap().remove("$defs").unwrap();
        let line = |(name, definition): (&String, &Json)| format!("\"{name}\": {definition}");
        let lines: Vec<_> = definitions.as_object().unwrap().iter().map(line).collect();
        let root = root.to_string();
        let text = format!("{},\n\"$defs\": {{\n{}\n}}}}\n", root.strip_suffix('}').unwrap(), lines.join(",\n"));
        assert_eq!(serde_json::from_str::<Json>(&text).unwrap(), schema);
        golden("crates/foundation/config/schema/structure.json", &text);
    }

    #[test]
    fn every_key_is_described_and_every_object_closed() {
        fn visit(at: &str, schema: &Json) {
            if let Some(properties) = schema.get("properties").and_then(Json::as_object) {
                assert_eq!(schema.get("additionalProperties"), Some(&json!(false)), "{at} takes unknown keys");
                for (key, property) in properties {
                    assert!(!description(property).is_empty(), "{at}.{key} has no description");
                }
            }
        }
        let schema = json_schema();
        visit("", &schema);
        for (name, definition) in schema["$defs"].as_object().unwrap() {
            assert!(!description(definition).is_empty(), "{name} has no description");
            visit(name, definition);
        }
    }
}
