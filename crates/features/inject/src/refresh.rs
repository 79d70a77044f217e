//! What a running sidecar is to be told, after profiles have changed.
//!
//! In: an injected pod, its namespace, the installation's profile, profiles. Out: the config that it would get now, or why it can
//! only have it made anew. Promise: pure; nothing is told to a pod that lacks the volumes, the containers or the redirection for it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::annotations::{EFFECTIVE, STATUS};
use crate::decide::Namespace;
use crate::inject::Outcome;
use crate::profile::{Profile, inject_with};
use crate::record::Record;
use crate::settings::Settings;
use crate::yaml::{self, Dialect};
use crate::{SIDECAR, json};

/// What is to become of a running pod's config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refresh {
    /// It has no sidecar of ours, or one that reads a ConfigMap.
    None,
    /// It is as it should be.
    Current,
    /// It should be this.
    Config(String),
    /// What it should be takes a pod that is made anew: why.
    Anew(String),
    /// No pod may be so: why.
    Refused(String),
}

/// Compares what a pod's sidecar was told with what it would be told now.
pub fn refresh<'a>(
    pod: &Value,
    namespace: &Namespace,
    settings: &Settings,
    profiles: impl IntoIterator<Item = &'a Profile>,
) -> Refresh {
    let Some(has) = json::annotation(pod, EFFECTIVE).filter(|_| json::annotation(pod, STATUS).is_some()) else {
        return Refresh::None;
    };
    let fresh = match inject_with(pod, namespace, settings, profiles) {
        Outcome::Injected(injected) => injected.pod,
        Outcome::Left(_) => return Refresh::None,
        Outcome::Refused(problems) => return Refresh::Refused(problems.join("; ")),
    };
    let Some(wants) = json::annotation(&fresh, EFFECTIVE) else {
        return Refresh::Anew("its config is to come from a ConfigMap".to_owned());
    };
    let read = |text: &str| yaml::read(text, Dialect::Config).ok();
    if has == wants || read(has) == read(wants) {
        return Refresh::Current;
    }
    match lacking(pod, &fresh) {
        Some(why) => Refresh::Anew(why),
        None => Refresh::Config(wants.to_owned()),
    }
}

/// What a pod lacks, or has too much of, for the config of one that is made now.
fn lacking(pod: &Value, fresh: &Value) -> Option<String> {
    let record =
        |pod| serde_json::from_str::<Record>(json::annotation(pod, STATUS).unwrap_or_default()).unwrap_or_default();
    let (has, wants) = (record(pod), record(fresh));
    if has.containers != wants.containers {
        return Some(format!(
            "it has the containers {}, and would have {}",
            has.containers.join(", "),
            wants.containers.join(", ")
        ));
    }
    if has.handover != wants.handover {
        return Some("the socket of the hand-over is another one".to_owned());
    }
    let mounts = |pod| -> BTreeSet<String> {
        let sidecar = json::all_containers(pod).find(|one| json::name(one) == SIDECAR);
        let mounts = sidecar.map(|sidecar| json::items(sidecar, "volumeMounts")).unwrap_or_default();
        let ours = mounts.iter().filter(|mount| json::name(mount).starts_with("outrigger-"));
        ours.map(|mount| json::text(mount, "mountPath").to_owned()).collect()
    };
    let (has, wants) = (mounts(pod), mounts(fresh));
    let list = |paths: Vec<&String>| paths.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let missing: Vec<&String> = wants.difference(&has).collect();
    (!missing.is_empty()).then(|| format!("it has no volume at {}", list(missing)))
}
