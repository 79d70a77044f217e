//! What is done to a pod, as patches of it.
//!
//! Promise: each patch names the version of the pod that was looked at, so that one who looked at an old one changes
//! nothing; an image and what is noted of it are changed together; a keeper has no privilege, and runs as the sidecar does.

use outrigger_kubernetes::names::{KEEPER_IDLE, KEEPER_WAIT, SIDECAR};
use serde_json::{Value, json};

use crate::pod::Pod;
use crate::record::{ANNOTATION, Record};

/// A change to one pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Action {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// What is done.
    pub what: Do,
}

/// What is done to a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Do {
    /// Its part in the rollout is noted; with none it has no part any more.
    Note(Option<Box<Record>>),
    /// A keeper is added.
    Keeper {
        /// Its name.
        name: String,
        /// Its image.
        image: String,
    },
    /// Its sidecar's image becomes the goal of what is noted.
    Image(Box<Record>),
}

impl Do {
    /// As a JSON merge patch of the pod, for notes.
    fn note(pod: &Pod, record: Option<&Record>) -> Value {
        let text = record.map(|record| serde_json::to_string(record).unwrap_or_default());
        json!({ "metadata": { "resourceVersion": pod.version, "uid": pod.uid, "annotations": { ANNOTATION: text } } })
    }

    /// The patch of the pod: its content type's name in the API, the subresource, and the patch.
    pub fn patch(&self, pod: &Pod) -> (PatchKind, &'static str, Value) {
        match self {
            Self::Note(record) => (PatchKind::Merge, "", Self::note(pod, record.as_deref())),
            Self::Keeper { name, image } => {
                let keepers = json!({ "spec": { "ephemeralContainers": [keeper(pod, name, image)] } });
                (PatchKind::Strategic, "ephemeralcontainers", keepers)
            }
            Self::Image(record) => (PatchKind::Json, "", image(pod, record)),
        }
    }
}

/// How a patch is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// JSON merge patch.
    Merge,
    /// JSON Patch.
    Json,
    /// Kubernetes' strategic merge.
    Strategic,
}

/// The image and the note, if the pod still is as it was seen.
fn image(pod: &Pod, record: &Record) -> Value {
    let place = &pod.sidecar.place;
    let note = serde_json::to_string(record).unwrap_or_default();
    let key = ANNOTATION.replace('/', "~1");
    json!([
        { "op": "test", "path": "/metadata/uid", "value": pod.uid },
        // Of an older one it is a conflict.
        { "op": "replace", "path": "/metadata/resourceVersion", "value": pod.version },
        { "op": "test", "path": format!("{place}/name"), "value": SIDECAR },
        { "op": "replace", "path": format!("{place}/image"), "value": record.goal() },
        { "op": "add", "path": format!("/metadata/annotations/{key}"), "value": note },
    ])
}

/// The keeper as an ephemeral container.
fn keeper(pod: &Pod, name: &str, image: &str) -> Value {
    let sidecar = &pod.sidecar;
    let mut context = json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    // The sidecar trusts a keeper of its own user alone.
    for (key, value) in [("runAsUser", sidecar.user), ("runAsGroup", sidecar.group)] {
        if let Some(value) = value {
            context[key] = json!(value);
        }
    }
    if sidecar.user.is_some_and(|user| user != 0) {
        context["runAsNonRoot"] = json!(true);
    }
    let mut container = json!({
        "name": name,
        "image": image,
        "args": [
            "keeper",
            format!("--socket={}", pod.socket.as_deref().unwrap_or_default()),
            format!("--idle={KEEPER_IDLE}s"),
            format!("--wait={KEEPER_WAIT}s"),
        ],
        "securityContext": context,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if !sidecar.pull_policy.is_empty() {
        container["imagePullPolicy"] = json!(sidecar.pull_policy);
    }
    if let Some((volume, path)) = &sidecar.volume {
        container["volumeMounts"] = json!([{ "name": volume, "mountPath": path }]);
    }
    container
}
