//! Why a pod's sidecar is as it is, or would be were the pod made now.
//!
//! In: a pod that runs, its namespace, the installation's profile, profiles. Out: each value with its origin, the profiles that
//! count and why others do not, and what the pod has otherwise. Promise: pure, and of the very code that injects; what is secret
//! is masked.

use std::sync::Arc;

use outrigger_config::MASK;
use serde_json::{Map, Value, json};

use crate::annotations::{self, EFFECTIVE, MTLS, PREFIX, STATUS};
use crate::decide::Namespace;
use crate::inject::{INSTALLATION, Outcome};
use crate::layers::{Layer, Row, Step, rows};
use crate::profile::{Profile, inject_with, selected, settings_for};
use crate::settings::Settings;
use crate::yaml::{self, Dialect};
use crate::{INIT, SIDECAR, json};

/// What there is to be said of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    /// What would become of it, were it made now.
    pub outcome: Outcome,
    /// Whether it has our sidecar.
    pub has_sidecar: bool,
    /// The profiles that count, in their order.
    pub counted: Vec<String>,
    /// Those that do not, and why.
    pub passed_over: Vec<(String, String)>,
    /// The sidecar's config, as it would be.
    pub config: Vec<Row>,
    /// What is injected, as it would be.
    pub injection: Vec<Row>,
    /// What the pod has otherwise.
    pub differences: Vec<String>,
}

/// Explains a pod.
pub fn explain(pod: &Value, namespace: &Namespace, settings: &Settings, profiles: &[Profile]) -> Explained {
    let outcome = inject_with(pod, namespace, settings, profiles);
    let has_sidecar = json::annotation(pod, STATUS).is_some();
    let (config, differences) = match &outcome {
        Outcome::Injected(injected) => {
            let text = json::annotation(&injected.pod, EFFECTIVE).unwrap_or_default();
            let mut config = rows(&injected.layers);
            mask(&mut config, &crate::config::masked(text));
            // With a ConfigMap nobody here knows what it says.
            (if text.is_empty() { Vec::new() } else { config }, differences(pod, &injected.pod, has_sidecar))
        }
        Outcome::Left(why) if has_sidecar => {
            (Vec::new(), vec![format!("it has a sidecar, and would get none now: {why}")])
        }
        Outcome::Refused(_) | Outcome::Left(_) => (Vec::new(), Vec::new()),
    };
    let mismatches = profiles.iter().filter_map(|one| Some((one.origin(), one.mismatch(pod, namespace)?)));
    Explained {
        injection: match &outcome {
            Outcome::Injected(_) => injection(pod, namespace, settings, profiles),
            _ => Vec::new(),
        },
        counted: selected(profiles, pod, namespace).iter().map(|one| one.origin()).collect(),
        passed_over: mismatches.collect(),
        outcome,
        has_sidecar,
        config,
        differences,
    }
}

/// What is injected, by who says so.
fn injection(pod: &Value, namespace: &Namespace, settings: &Settings, profiles: &[Profile]) -> Vec<Row> {
    let mut layers = vec![Layer::new("default", written(&Settings::default()))];
    let mut so_far = written(&Settings::default());
    let mut add = |origin: String, next: Value| {
        let changed = changed(&so_far, &next);
        if changed.as_object().is_some_and(|changed| !changed.is_empty()) {
            layers.push(Layer::new(origin, changed));
        }
        so_far = next;
    };
    add(INSTALLATION.to_owned(), written(settings));
    let mut known: Vec<Profile> = Vec::new();
    for profile in selected(profiles, pod, namespace) {
        known.push(profile.clone());
        if let Ok(refined) = settings_for(settings, &known, pod, namespace) {
            add(profile.origin(), written(&refined));
        }
    }
    let mut refined = settings_for(settings, &known, pod, namespace).unwrap_or_else(|_| settings.clone());
    for (annotation, value) in annotations::each(pod) {
        annotation.applied(&mut refined, value);
        add(format!("annotation {PREFIX}{}", annotation.name), written(&refined));
    }
    let told = |row: &Row| !row.value.is_null() && row.value != json!([]) && row.value != json!({});
    rows(&layers).into_iter().filter(told).collect()
}

/// Settings but for the config, which is explained by itself, and what is no pod's.
fn written(settings: &Settings) -> Value {
    let mut value = serde_json::to_value(settings).unwrap_or_default();
    for key in ["config", "namespaces", "excludedNamespaces"] {
        value.as_object_mut().and_then(|map| map.shift_remove(key));
    }
    value
}

/// The part of `next` that is other than in `before`.
fn changed(before: &Value, next: &Value) -> Value {
    let (Some(before), Some(next)) = (before.as_object(), next.as_object()) else { return next.clone() };
    let mut out = Map::new();
    for (key, value) in next.iter().filter(|(key, value)| before.get(*key) != Some(value)) {
        let part = before.get(key).map_or_else(|| value.clone(), |before| changed(before, value));
        out.insert(key.clone(), part);
    }
    Value::Object(out)
}

/// Hides what the config itself hides.
fn mask(rows: &mut [Row], masked: &Value) {
    for row in rows {
        let shown = row.path.iter().try_fold(masked, |value, step| match step {
            Step::Key(key) => value.get(key),
            Step::Item(name) => value.as_array()?.iter().find(|item| item["name"] == name.as_str()),
        });
        if let Some(shown) = shown.filter(|shown| shown.to_string().contains(MASK)) {
            row.value = shown.clone();
        }
    }
}

/// What a pod has other than it would have.
fn differences(pod: &Value, fresh: &Value, has_sidecar: bool) -> Vec<String> {
    if !has_sidecar {
        return vec!["it has no sidecar, and would get one; make it anew".to_owned()];
    }
    let mut all = Vec::new();
    for name in [INIT, SIDECAR] {
        let find = |pod| json::all_containers(pod).find(|one: &&Value| json::name(one) == name);
        match (find(pod), find(fresh)) {
            (Some(has), Some(wants)) => {
                for key in ["image", "args"] {
                    if has.get(key) != wants.get(key) {
                        all.push(format!(
                            "{key} of container {name} is {}, and would be {}",
                            shown(has.get(key)),
                            shown(wants.get(key))
                        ));
                    }
                }
            }
            (Some(_), None) => all.push(format!("it has a container {name}, and would have none")),
            (None, Some(_)) => all.push(format!("it has no container {name}, and would have one")),
            (None, None) => {}
        }
    }
    for key in [MTLS, "prometheus.io/port", "prometheus.io/path", "prometheus.io/scheme"] {
        let of = |pod| shown(json::annotation(pod, key).map(Value::from).as_ref());
        let (has, wants) = (of(pod), of(fresh));
        if has != wants {
            all.push(format!("annotation {key} is {has}, and would be {wants}"));
        }
    }
    let config =
        |pod| yaml::read(json::annotation(pod, EFFECTIVE).unwrap_or_default(), Dialect::Config).unwrap_or_default();
    let (has, wants) = (config(pod), config(fresh));
    if has != wants {
        let of = |value| rows(&[Layer { origin: Arc::from(""), value: Arc::new(value) }]);
        let (has, wants) = (of(has), of(wants));
        // Where, but not what: it may be secret.
        let places = has.iter().filter(|row| !wants.contains(row)).chain(wants.iter().filter(|row| !has.contains(row)));
        let mut places: Vec<String> = places.map(Row::place).collect();
        places.sort();
        places.dedup();
        all.push(format!("its config was made of other profiles; different now: {}", places.join(", ")));
    }
    all
}

fn shown(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => format!("`{text}`"),
        Some(other) => format!("`{other}`"),
        None => "absent".to_owned(),
    }
}
