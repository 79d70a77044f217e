//! The JSON Schema of the config.

use crate::Config;

/// The JSON Schema (draft 2020-12) of the config file.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(Config).to_value()
}
