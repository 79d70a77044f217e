//! Resources of our own.
//!
//! Out: CustomResourceDefinitions, which depend on no setting.

use outrigger_kubernetes::definitions;
use serde_json::{Value, json};

use super::{Object, labels};

/// All of them.
pub(super) fn objects() -> Vec<Object> {
    vec![definition(
        "Takes running pods to another image of the sidecar (`outrigger upgrade`).",
        definitions::rollouts(),
    )]
}

fn definition(about: &'static str, mut value: Value) -> Object {
    value["metadata"]["labels"] = json!(labels());
    Object::new(about, value)
}
