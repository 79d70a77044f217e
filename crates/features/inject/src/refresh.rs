//! What a running sidecar is to be told, after profiles have changed.
//!
//! In: an injected pod, its namespace, the installation's profile, profiles. Out: the annotations that are to change, its config among
//! them, or why it can only have it made anew. Promise: pure; nothing is told to a pod that lacks the volumes, the containers or the
//! redirection for it; what others send to the pod changes in steps ([`crate::transition`]).

use std::collections::BTreeSet;

use serde_json::Value;

use crate::annotations::{EFFECTIVE, MTLS, STATUS};
use crate::config;
use crate::decide::Namespace;
use crate::inject::Outcome;
use crate::profile::{Profile, inject_with};
use crate::record::Record;
use crate::settings::{Mtls, Settings};
use crate::transition::{self, Ways, When};
use crate::yaml::{self, Dialect};
use crate::{INIT, SIDECAR, json};

/// Which ports the sidecar sees is written on the pod together with its `mtls`.
const PORTS: [&str; 2] = ["outrigger.dev/exclude-inbound-ports", "outrigger.dev/include-inbound-ports"];

/// What is to become of a running pod's config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refresh {
    /// It has no sidecar of ours, or one that reads a ConfigMap.
    None,
    /// It is as it should be.
    Current,
    /// It should be told this.
    Tell(Telling),
    /// What it should be takes a pod that is made anew: why.
    Anew(String),
    /// No pod may be so: why.
    Refused(String),
}

/// What a running pod is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telling {
    /// Annotations that change, and to what; `None` where one goes.
    pub annotations: Vec<(&'static str, Option<String>)>,
    /// The sidecar's config with them.
    pub config: String,
    /// What has to be waited for.
    pub when: When,
    /// Whether the pod then is as it should be; otherwise there is another step.
    pub last: bool,
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
    let read = |text: &str| yaml::read(text, Dialect::Config).unwrap_or_default();
    let (config, wanted) = (read(has), read(wants));
    let told = changing(pod, &fresh, true);
    if config == wanted && told.is_empty() {
        return Refresh::Current;
    }
    if let Some(why) = lacking(pod, &fresh) {
        return Refresh::Anew(why);
    }
    let ways = |config: &Value, pod| Ways { takes: config::mtls(config), told: sent_to(pod) };
    let (before, after) = (ways(&config, pod), ways(&wanted, &fresh));
    if before.told.is_some() != after.told.is_some() && redirection(pod) != redirection(&fresh) {
        return Refresh::Anew("its `mtls` is another, and its connections are redirected otherwise".to_owned());
    }
    let (step, when) = transition::next(before, after);
    let last = step == after;
    let text = match (last, before.takes == step.takes) {
        (true, _) => Some(wants.to_owned()),
        (false, true) => Some(has.to_owned()),
        (false, false) => config::taking_both(if before.takes.is_some() { &config } else { &wanted }),
    };
    let Some(text) = text else {
        return Refresh::Anew("there is no config for the time in which both plain text and mTLS come".to_owned());
    };
    let mut annotations = if last || step.told != before.told { told } else { changing(pod, &fresh, false) };
    if text != has {
        annotations.push((EFFECTIVE, Some(text.clone())));
    }
    Refresh::Tell(Telling { annotations, config: text, when, last })
}

/// What others send to a pod.
fn sent_to(pod: &Value) -> Option<Mtls> {
    match json::annotation(pod, MTLS)? {
        "permissive" => Some(Mtls::Permissive),
        "strict" => Some(Mtls::Strict),
        _ => None,
    }
}

/// Annotations that follow from profiles and that others read, as far as they change, and with them our own note of them.
fn changing(pod: &Value, fresh: &Value, with_mtls: bool) -> Vec<(&'static str, Option<String>)> {
    let turns = with_mtls && sent_to(pod).is_some() != sent_to(fresh).is_some();
    let keys = ["prometheus.io/port", "prometheus.io/path", "prometheus.io/scheme"].into_iter();
    let keys = keys.chain(with_mtls.then_some(MTLS)).chain(PORTS.into_iter().filter(|_| turns));
    let differs = |key: &&str| json::annotation(pod, key) != json::annotation(fresh, key);
    let mut all: Vec<(&'static str, Option<String>)> =
        keys.filter(differs).map(|key| (key, json::annotation(fresh, key).map(str::to_owned))).collect();
    if !all.is_empty() {
        let (mut has, wants) = (record(pod), record(fresh));
        for (key, _) in &all {
            match wants.annotations.get(*key) {
                Some(change) => drop(has.annotations.insert((*key).to_owned(), change.clone())),
                None => drop(has.annotations.shift_remove(*key)),
            }
        }
        // It is made of texts, and so can be written.
        all.push((STATUS, serde_json::to_string(&has).ok()));
    }
    all
}

fn record(pod: &Value) -> Record {
    serde_json::from_str(json::annotation(pod, STATUS).unwrap_or_default()).unwrap_or_default()
}

/// How connections come to the sidecar.
fn redirection(pod: &Value) -> Vec<&Value> {
    let ours = json::all_containers(pod).filter(|one| [INIT, SIDECAR].contains(&json::name(one)));
    ours.map(|one| one.get("args").unwrap_or(&Value::Null)).collect()
}

/// What a pod lacks, or has too much of, for the config of one that is made now.
fn lacking(pod: &Value, fresh: &Value) -> Option<String> {
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
