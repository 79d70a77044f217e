//! The settings, told: as a table for people, as JSON Schema, and as the chart's `values.yaml`.
//!
//! Promise: all three come from the model and its comments, so none can say something else than the others.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::settings::Settings;
use crate::yaml;

/// JSON Schema of the values, as Helm reads it.
pub fn values_schema() -> Value {
    let generator = schemars::generate::SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = generator.into_generator().into_root_schema_for::<Settings>().to_value();
    schema["title"] = json!("Values of Outrigger's chart, and of `outrigger install -f`");
    // Helm adds this key to the values of each chart.
    schema["properties"]["global"] = json!({ "type": "object" });
    // What only the chart knows has the chart's defaults.
    schema["properties"]["createNamespace"]["default"] = json!(false);
    schema["properties"]["namespace"]["type"] = json!(["string", "null"]);
    schema
}

/// The table of docs/reference/install.md.
pub fn markdown_reference() -> String {
    let mut text = String::from(
        "# Settings of an installation\n\nGenerated from the code (`cargo xtask bless`). What they do together: [installation](../install.md).\n\n\
         Keys of the file for `outrigger install -f FILE` and `helm install -f FILE`; unknown ones are errors.\n\n\
         | key | default | |\n|---|---|---|\n",
    );
    let schema = values_schema();
    rows("", &schema, &serde_json::to_value(Settings::default()).unwrap_or_default(), &mut text);
    text
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten().filter(|(key, _)| *key != "global")
}

fn rows(path: &str, schema: &Value, defaults: &Value, text: &mut String) {
    for (key, property) in properties(schema) {
        let path = format!("{path}{key}");
        let default = match &defaults[key] {
            Value::Null => "—".to_owned(),
            Value::Object(map) if !map.is_empty() => {
                rows(&format!("{path}."), property, &defaults[key], text);
                continue;
            }
            Value::String(word) => format!("`{word}`"),
            other => format!("`{other}`"),
        };
        // The version changes with each release, the table need not.
        let default = default.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        let _ = writeln!(text, "| `{path}` | {default} | {} |", about(property));
    }
}

fn about(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The chart's `values.yaml`: each key with what it does and its default.
pub fn chart_values() -> String {
    let mut text = String::from(
        "# Values of Outrigger's chart; `outrigger install -f` takes the same file.\n\
         # Generated from the code (`cargo xtask bless`).\n",
    );
    let schema = values_schema();
    let mut defaults = serde_json::to_value(Settings::default()).unwrap_or_default();
    // Helm says where, by `--namespace`, and makes no namespace of its own accord.
    defaults["namespace"] = Value::Null;
    defaults["createNamespace"] = json!(false);
    for (key, property) in properties(&schema) {
        text.push('\n');
        yaml::comment(&about(property), 0, &mut text);
        if key == "namespace" {
            text.push_str("# Absent means the release's.\n");
        }
        text.push_str(&yaml::text(&json!({ key: defaults[key] })));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Holds a generated file to what the code gives, or rewrites it.
    fn hold(path: &str, text: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(path);
        if std::env::var_os("OUTRIGGER_BLESS").is_some() {
            std::fs::write(&path, text).unwrap();
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(there, text, "{}: `cargo xtask bless outrigger-install` rewrites it", path.display());
    }

    #[test]
    fn what_is_generated_is_up_to_date() {
        hold("docs/reference/install.md", &markdown_reference());
        hold("deploy/chart/values.yaml", &chart_values());
        // They depend on no value.
        hold("deploy/chart/templates/definitions.yaml", &crate::objects::chart_definitions());
        hold("deploy/chart/values.schema.json", &format!("{:#}\n", values_schema()));
    }

    #[test]
    fn every_setting_is_told() {
        let table = markdown_reference();
        for (key, property) in properties(&values_schema()) {
            assert!(!about(property).is_empty() || key == "resources", "{key}");
            assert!(table.contains(&format!("| `{key}")), "{key}");
        }
    }
}
