//! The effective config as text.

use crate::Config;

/// The effective config as YAML, every default filled in, secrets masked.
pub fn to_yaml(config: &Config) -> String {
    serde_saphyr::to_string(config).expect("the model holds only strings, numbers, lists and maps with text keys")
}
