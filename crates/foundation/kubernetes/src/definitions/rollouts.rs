//! The definition of `SidecarRollout`.
//!
//! Promise: what its schema takes, the feature that follows rollouts reads, with the same defaults (a test there compares them);
//! a rollout's image never changes, for half of the pods might have the former one.

use serde_json::{Value, json};

use super::{Column, Definition};
use crate::object::Resource;

const KIND: &str = "SidecarRollout";
const PLURAL: &str = "sidecarrollouts";

/// Rollouts of another image of the sidecar.
pub const ROLLOUTS: Resource =
    Resource { group: "outrigger.dev", version: "v1alpha1", plural: PLURAL, kind: KIND, namespaced: false };

/// The definition, to be given to an API server.
pub fn rollouts() -> Value {
    Definition {
        kind: KIND,
        plural: PLURAL,
        short: "rollout",
        namespaced: false,
        columns: &[
            Column::always("Image", "string", ".spec.image"),
            Column::always("Phase", "string", ".status.phase"),
            Column::always("Updated", "integer", ".status.updated"),
            Column::always("Total", "integer", ".status.total"),
            Column::wide("Rolling", "integer", ".status.rolling"),
            Column::wide("Skipped", "integer", ".status.skipped"),
            Column::wide("Message", "string", ".status.message"),
            Column::always("Age", "date", ".metadata.creationTimestamp"),
        ],
    }
    .value(&schema())
}

fn schema() -> Value {
    json!({
        "type": "object",
        "description": "Takes running pods to another image of the sidecar, in waves, while their applications go on.",
        "required": ["spec"],
        "properties": {
            "apiVersion": { "type": "string" },
            "kind": { "type": "string" },
            "metadata": { "type": "object" },
            "spec": rollouts_spec(),
            "status": { "type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "phase": { "type": "string" }, "message": { "type": "string" },
                "updated": { "type": "integer" }, "total": { "type": "integer" }, "rolling": { "type": "integer" },
                "skipped": { "type": "integer" }, "waiting": { "type": "integer" }, "rolledBack": { "type": "integer" },
            } },
        },
    })
}

/// The schema of its spec.
pub fn rollouts_spec() -> Value {
    let default = json!({
        "canary": "5%", "canarySeconds": 30, "maxUnavailable": 1, "parallel": 10, "handOver": "Required",
        "progressDeadlineSeconds": 120, "minReadySeconds": 5, "maxErrorIncrease": 5, "onFailure": "RollBack",
        "paused": false, "rollback": false, "attempt": 0,
    });
    let share = |about: &str, key: &str| {
        json!({
            "description": about, "default": default[key], "x-kubernetes-int-or-string": true,
            "anyOf": [{ "type": "integer" }, { "type": "string" }],
            "x-kubernetes-validations": [{
                "rule": "type(self) == int ? int(self) >= 0 && int(self) <= 100000 : string(self).matches('^(100|[0-9]{1,2})%$')",
                "message": "write a number such as 2, or a share such as \"5%\"",
            }],
        })
    };
    let number = |about: &str, key: &str, least: u32, most: u32| {
        json!({
            "description": about, "type": "integer", "format": "int32", "minimum": least, "maximum": most,
            "default": default[key],
        })
    };
    let word = |about: &str, key: &str, words: [&str; 2]| json!({ "description": about, "type": "string", "enum": words, "default": default[key] });
    let switch = |about: &str, key: &str| json!({ "description": about, "type": "boolean", "default": default[key] });
    let name = json!({ "type": "string", "minLength": 1, "maxLength": 63 });
    json!({
        "type": "object",
        "required": ["image"],
        "x-kubernetes-validations": [
            { "rule": "self.image == oldSelf.image", "message": "a rollout keeps its image; make another one" },
            { "rule": "!oldSelf.rollback || self.rollback", "message": "a rollout that rolls back goes on doing so; make another one" },
        ],
        "properties": {
            "image": { "description": "The sidecar's next image.", "type": "string", "minLength": 1, "maxLength": 512,
                "x-kubernetes-validations": [{ "rule": "!self.matches('\\\\s')", "message": "an image has no blanks" }] },
            "canary": share("How many pods come before all others: a share of all, rounded up, or a number.", "canary"),
            "canarySeconds": number("How long the last of them must have been well before the others follow.", "canarySeconds", 0, 86_400),
            "maxUnavailable": share("How many pods of a workload may be on their way, or not ready, at once; at least one is.", "maxUnavailable"),
            "parallel": number("How many pods are on their way at once, of all workloads.", "parallel", 1, 1000),
            "namespaces": { "description": "The namespaces, in this order, one after the other. Empty: all, by name.",
                "type": "array", "items": name, "maxItems": 1000, "default": [] },
            "selector": { "description": "Labels that pods must have.", "type": "object",
                "additionalProperties": { "type": "string", "maxLength": 63 }, "maxProperties": 32, "default": {} },
            "handOver": word("What becomes of pods whose sidecar cannot hand its sockets over: they are passed over, or changed all the same, and refuse connections meanwhile.", "handOver", ["Required", "IfPossible"]),
            "progressDeadlineSeconds": number("Time for a pod's keeper to start, and for its next sidecar to be ready.", "progressDeadlineSeconds", 10, 3600),
            "minReadySeconds": number("How long the next sidecar must have run before it counts as well.", "minReadySeconds", 0, 3600),
            "maxErrorIncrease": number("How much more of its requests, of a hundred, may end in errors of a server than before.", "maxErrorIncrease", 0, 100),
            "onFailure": word("What becomes of everything when one pod fails.", "onFailure", ["RollBack", "Pause"]),
            "paused": switch("No further pods.", "paused"),
            "rollback": switch("All pods back to the images they had.", "rollback"),
            "attempt": number("Raised to try again after a failure that paused.", "attempt", 0, 1_000_000),
        },
    })
}
