//! What a reload changes.

use std::fmt;

use serde_json::Value;

use crate::{Config, ConfigPath};

/// One changed place. Values are shown as they are printed in YAML; secrets are masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The place.
    pub path: ConfigPath,
    /// The old value; `None` when the place is new.
    pub old: Option<String>,
    /// The new value; `None` when the place is gone.
    pub new: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.old, &self.new) {
            (Some(old), Some(new)) => write!(f, "{}: {old} -> {new}", self.path),
            (None, Some(new)) => write!(f, "{}: added {new}", self.path),
            (Some(old), None) => write!(f, "{}: removed {old}", self.path),
            (None, None) => write!(f, "{}: unchanged", self.path),
        }
    }
}

/// What differs between two configs, in the model's order.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let (old, new) = (serde_json::to_value(old), serde_json::to_value(new));
    let mut changes = Vec::new();
    if let (Ok(old), Ok(new)) = (old, new) {
        compare(&ConfigPath::root(), &old, &new, &mut changes);
    }
    changes
}

fn compare(path: &ConfigPath, old: &Value, new: &Value, changes: &mut Vec<Change>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in old {
                compare(&path.key(key), value, new.get(key).unwrap_or(&Value::Null), changes);
            }
            for (key, value) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
                compare(&path.key(key), &Value::Null, value, changes);
            }
        }
        _ if old != new => {
            let show = |value: &Value| (!value.is_null()).then(|| value.to_string());
            changes.push(Change { path: path.clone(), old: show(old), new: show(new) });
        }
        _ => {}
    }
}
