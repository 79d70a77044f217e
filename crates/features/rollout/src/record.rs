//! What is noted in a pod of its own way to another image, in one annotation.
//!
//! Promise: it is written together with what it tells of, in one change to the pod, so that they never differ.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::moment::Moment;
use crate::pod::Traffic;

/// The annotation.
pub const ANNOTATION: &str = "outrigger.dev/rollout";

/// A pod's part in a rollout.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The UID of the rollout.
    pub rollout: String,
    /// Its name, for people.
    pub name: String,
    /// How far it is.
    pub stage: Stage,
    /// The image before.
    pub from: String,
    /// The image of the rollout.
    pub to: String,
    /// Whether it is on its way back to `from`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub back: bool,
    /// In which of the rollout's attempts.
    #[serde(default)]
    pub attempt: u32,
    /// Since when it is at this stage.
    pub at: Moment,
    /// The ephemeral container that holds the sockets meanwhile; none where that cannot be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<String>,
    /// The sidecar's container when its image was changed.
    #[serde(default)]
    pub container: String,
    /// The sidecar's restarts then.
    #[serde(default)]
    pub restarts: u32,
    /// The restarts of the application's containers then.
    #[serde(default)]
    pub others: BTreeMap<String, u32>,
    /// Whether the sidecar did not run then, and the kubelet told why; it may tell so for a moment longer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waiting: bool,
    /// Whether the pod was ready then.
    #[serde(default)]
    pub ready: bool,
    /// What its sidecar had carried until then, where that could be learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Its turn has come; a keeper is added.
    Claimed,
    /// Its image was changed.
    Changed,
    /// The next sidecar is well.
    Done,
}

impl Record {
    /// The image that the pod is to have.
    pub fn goal(&self) -> &str {
        if self.back { &self.from } else { &self.to }
    }

    /// Whether it is on its way.
    pub fn is_under_way(&self) -> bool {
        self.stage != Stage::Done
    }
}
