//! How a rollout stands, as its status tells it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::moment::Moment;

/// No more pods than these are named.
pub(crate) const MOST_NAMED: usize = 10;

/// The status of a `SidecarRollout`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Where it is.
    pub phase: Phase,
    /// The same, for people.
    pub message: String,
    /// The generation of the spec that this follows.
    pub observed_generation: i64,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Moment>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Moment>,
    /// Whether the canaries were well.
    pub canary_passed: bool,
    /// The pod that failed, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Pods with a sidecar that are meant.
    pub total: u32,
    /// Of them: those with the image.
    pub updated: u32,
    /// Those on their way.
    pub rolling: u32,
    /// Those that wait for their turn.
    pub waiting: u32,
    /// Those that were changed and have their former image again.
    pub rolled_back: u32,
    /// Those that are passed over.
    pub skipped: u32,
    /// Those on their way, and some that are passed over.
    pub pods: Vec<Told>,
}

/// What is told of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it waits for, or why it is passed over.
    pub about: String,
}

/// The pod that failed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
    /// When that was seen.
    pub at: Moment,
    /// In which of the attempts.
    #[serde(default)]
    pub attempt: u32,
}

/// Where a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
pub enum Phase {
    /// Nothing was changed yet.
    #[default]
    Pending,
    /// The first share of pods is on its way.
    Canary,
    /// All others are.
    Rolling,
    /// No further pods: somebody asked for that, or one failed.
    Paused,
    /// What was changed goes back.
    RollingBack,
    /// All pods have the image.
    Completed,
    /// All pods that were changed have their former image again.
    RolledBack,
    /// A pod could not be brought back.
    Failed,
}

impl Phase {
    /// Whether nothing happens any more by itself.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::RolledBack | Self::Failed)
    }

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Canary => "Canary",
            Self::Rolling => "Rolling",
            Self::Paused => "Paused",
            Self::RollingBack => "RollingBack",
            Self::Completed => "Completed",
            Self::RolledBack => "RolledBack",
            Self::Failed => "Failed",
        }
    }
}

impl Status {
    /// The status as it is written: with conditions, for `kubectl wait`, whose times follow those of `before`.
    pub fn written(&self, before: &Value, now: Moment) -> Value {
        let mut written = serde_json::to_value(self).unwrap_or_default();
        let reached = |phase: &[Phase]| if phase.contains(&self.phase) { "True" } else { "False" };
        let conditions = [
            ("Complete", reached(&[Phase::Completed])),
            ("Failed", reached(&[Phase::Failed, Phase::RolledBack])),
            ("Paused", reached(&[Phase::Paused])),
        ];
        let known = before["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let condition = |(kind, status): &(&str, &str)| {
            let same = known.iter().find(|one| one["type"] == *kind && one["status"] == *status);
            let since = same.map_or_else(|| json!(now), |one| one["lastTransitionTime"].clone());
            json!({
                "type": kind, "status": status, "reason": self.phase.name(), "message": self.message,
                "lastTransitionTime": since, "observedGeneration": self.observed_generation,
            })
        };
        written["conditions"] = conditions.iter().map(condition).collect();
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_while_it_does_not_change() {
        let rolling = Status { phase: Phase::Rolling, ..Status::default() };
        let first = rolling.written(&Value::Null, Moment(10));
        assert_eq!(first["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:10Z");
        let second = Status { message: "more".to_owned(), ..rolling }.written(&first, Moment(20));
        assert_eq!(second["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:10Z");
        let done = Status { phase: Phase::Completed, ..Status::default() }.written(&second, Moment(30));
        assert_eq!(
            (&done["conditions"][0]["status"], &done["conditions"][0]["lastTransitionTime"]),
            (&json!("True"), &json!("1970-01-01T00:00:30Z"))
        );
        assert_eq!(serde_json::from_value::<Status>(done).unwrap().phase, Phase::Completed);
    }
}
