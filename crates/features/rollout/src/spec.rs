//! What a `SidecarRollout` asks for.
//!
//! Promise: fields that are not known are passed over, as everywhere in Kubernetes' objects; the API server fills in the
//! same defaults, by the definition in `outrigger-kubernetes`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The spec of a `SidecarRollout`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// The sidecar's next image.
    pub image: String,
    /// How many pods come before all others: a share of all (rounded up), or a number.
    pub canary: Share,
    /// How long the last of them must have been well before the others follow.
    pub canary_seconds: u32,
    /// How many pods of a workload may be on their way, or not ready, at once: a share (rounded down, at least one) or a number.
    pub max_unavailable: Share,
    /// How many pods are on their way at once, of all workloads.
    pub parallel: u32,
    /// The namespaces, in this order, one after the other; empty for all, by name.
    pub namespaces: Vec<String>,
    /// Labels that pods must have.
    pub selector: BTreeMap<String, String>,
    /// What becomes of pods whose sidecar cannot hand its sockets over.
    pub hand_over: HandOver,
    /// Time for a pod's keeper to start, and for its next sidecar to be ready.
    pub progress_deadline_seconds: u32,
    /// How long the next sidecar must have run before it counts as well.
    pub min_ready_seconds: u32,
    /// How much more of its requests may end in errors of a server than before, of a hundred.
    pub max_error_increase: u32,
    /// What becomes of everything when one pod fails.
    pub on_failure: OnFailure,
    /// No further pods.
    pub paused: bool,
    /// All pods back to the images they had.
    pub rollback: bool,
    /// Raised to try again after a failure that paused.
    pub attempt: u32,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            image: String::new(),
            canary: Share::Percent(5),
            canary_seconds: 30,
            max_unavailable: Share::Number(1),
            parallel: 10,
            namespaces: Vec::new(),
            selector: BTreeMap::new(),
            hand_over: HandOver::Required,
            progress_deadline_seconds: 120,
            min_ready_seconds: 5,
            max_error_increase: 5,
            on_failure: OnFailure::RollBack,
            paused: false,
            rollback: false,
            attempt: 0,
        }
    }
}

/// A number, or a share of all in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// So many.
    Number(u32),
    /// Of a hundred.
    Percent(u32),
}

impl Share {
    /// Of so many, rounded up; no more than there are.
    pub fn up(self, total: usize) -> usize {
        match self {
            Self::Number(number) => (number as usize).min(total),
            Self::Percent(percent) => total.saturating_mul(percent as usize).div_ceil(100).min(total),
        }
    }

    /// Of so many, rounded down, but at least one.
    pub fn down(self, total: usize) -> usize {
        match self {
            Self::Number(number) => (number as usize).max(1),
            Self::Percent(percent) => (total.saturating_mul(percent as usize) / 100).max(1),
        }
    }
}

impl std::str::FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither a number such as `2` nor a share such as `5%` (0% to 100%)");
        let share = match text.strip_suffix('%') {
            Some(percent) => Self::Percent(percent.parse().ok().filter(|percent| *percent <= 100).ok_or_else(wrong)?),
            None => Self::Number(text.parse().map_err(|_| wrong())?),
        };
        Ok(share)
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => serializer.serialize_u32(*number),
            Self::Percent(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u32),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(number) => Ok(Self::Number(number)),
            Written::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

/// What becomes of pods whose sidecar cannot hand its sockets over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum HandOver {
    /// They are passed over.
    Required,
    /// Their image is changed all the same: connections are refused until the next sidecar listens.
    IfPossible,
}

/// What becomes of everything when one pod fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum OnFailure {
    /// All pods go back to the images they had.
    RollBack,
    /// No further pods, until somebody says.
    Pause,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        for (text, total, up, down) in [
            ("5%", 20, 1, 1),
            ("5%", 21, 2, 1),
            ("5%", 0, 0, 1),
            ("0%", 20, 0, 1),
            ("100%", 7, 7, 7),
            ("30%", 10, 3, 3),
            ("2", 10, 2, 2),
            ("2", 1, 1, 2),
            ("0", 5, 0, 1),
        ] {
            let share: Share = text.parse().unwrap();
            assert_eq!((share.up(total), share.down(total)), (up, down), "{text} of {total}");
            let json = serde_json::to_value(share).unwrap();
            assert_eq!(serde_json::from_value::<Share>(json).unwrap(), share);
        }
        for text in ["", "%", "-1", "101%", "5 %", "half"] {
            let why = text.parse::<Share>().unwrap_err();
            assert!(why.contains(&format!("`{text}`")) && why.ends_with("(0% to 100%)"), "{why}");
        }
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let spec: Spec = serde_json::from_str(r#"{"image":"a:2","ofTheFuture":1}"#).unwrap();
        assert_eq!(spec, Spec { image: "a:2".to_owned(), ..Spec::default() });
    }

    #[test]
    fn the_definition_has_each_field_and_its_default() {
        let spec = serde_json::to_value(Spec::default()).unwrap();
        let schema = outrigger_kubernetes::definitions::rollouts_spec();
        let fields = |value: &serde_json::Value| {
            let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
            names.sort();
            names
        };
        assert_eq!(fields(&spec), fields(&schema["properties"]));
        for (name, field) in schema["properties"].as_object().unwrap() {
            assert!(name == "image" || field["default"] == spec[name], "{name}");
        }
    }
}
