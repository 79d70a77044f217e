//! Profiles that are objects of a cluster: `SidecarProfile` and `ClusterSidecarProfile`.
//!
//! In: objects as the API server has them, a pod, its namespace, the installation's profile. Out: settings for that pod; or what
//! is wrong with a profile, by its path. Promise: pure; several profiles have one order, that of [`Profile::rank`], whatever order
//! they come in; a profile that cannot be read is never passed over for pods that it may mean.

use std::cmp::Ordering;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::{self, merged};
use crate::decide::Namespace;
use crate::inject::{Outcome, inject};
use crate::layers::Layer;
use crate::settings::Settings;
use crate::yaml::{self, Dialect};
use crate::{decide, json};

/// The version of their API.
pub const API_VERSION: &str = "outrigger.dev/v1alpha1";
/// Sections of the config that are no sidecar's.
const FOREIGN: [&str; 3] = ["controller", "authority", "discovery"];
/// Settings of a profile file that are the installation's alone.
const OF_THE_INSTALLATION: [&str; 4] = ["config", "namespaces", "excludedNamespaces", "mesh"];

/// Which of the two kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProfileKind {
    /// `ClusterSidecarProfile`.
    Cluster,
    /// `SidecarProfile`.
    Namespaced,
}

impl ProfileKind {
    /// As it is written in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cluster => "ClusterSidecarProfile",
            Self::Namespaced => "SidecarProfile",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [Self::Cluster, Self::Namespaced].into_iter().find(|kind| kind.name() == name)
    }
}

/// A mistake, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Such as `spec.config.proxy.listeners[0].protocol`.
    pub path: String,
    /// What is wrong, and how to mend it.
    pub problem: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}

/// A profile, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Its kind.
    pub kind: ProfileKind,
    /// Where it lives; empty for a cluster's.
    pub namespace: String,
    /// Its name.
    pub name: String,
    spec: Result<Spec, Vec<Mistake>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Spec {
    selector: Selector,
    namespaces: Selector,
    priority: i32,
    injection: Map<String, Value>,
    config: Option<Arc<Value>>,
}

/// What labels have to be.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Selector {
    match_labels: std::collections::BTreeMap<String, String>,
    match_expressions: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Requirement {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// What keeps labels from being selected.
    fn mismatch<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
        for (key, wanted) in &self.match_labels {
            match label(key) {
                Some(value) if value == wanted => {}
                Some(value) => return Some(format!("label `{key}` is `{value}`, not `{wanted}`")),
                None => return Some(format!("it has no label `{key}`, which has to be `{wanted}`")),
            }
        }
        for Requirement { key, operator, values } in &self.match_expressions {
            let value = label(key);
            let among = value.is_some_and(|value| values.iter().any(|one| one == value));
            let holds = match operator {
                Operator::In => among,
                Operator::NotIn => !among,
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            };
            if !holds {
                let found = value.map_or_else(|| "absent".to_owned(), |value| format!("`{value}`"));
                let wanted = match operator {
                    Operator::In => format!("one of {}", values.join(", ")),
                    Operator::NotIn => format!("none of {}", values.join(", ")),
                    Operator::Exists => "there".to_owned(),
                    Operator::DoesNotExist => "absent".to_owned(),
                };
                return Some(format!("label `{key}` is {found}, and has to be {wanted}"));
            }
        }
        None
    }
}

impl Profile {
    /// Reads an object; `None` when it is of another kind. What is wrong with it is kept, for the pods that it means.
    pub fn read(object: &Value) -> Option<Self> {
        let kind =
            ProfileKind::of(json::text(object, "kind")).filter(|_| json::text(object, "apiVersion") == API_VERSION)?;
        Some(Self::of(kind, object))
    }

    /// Reads an object of this kind; lists of objects do not name it.
    pub fn of(kind: ProfileKind, object: &Value) -> Self {
        let metadata = object.get("metadata").unwrap_or(&Value::Null);
        let namespace = match kind {
            ProfileKind::Cluster => String::new(),
            ProfileKind::Namespaced => json::text(metadata, "namespace").to_owned(),
        };
        Self { kind, namespace, name: json::name(metadata).to_owned(), spec: Spec::read(kind, object.get("spec")) }
    }

    /// What is wrong with it by itself.
    ///
    /// # Errors
    /// Each mistake.
    pub fn check(&self) -> Result<(), &[Mistake]> {
        self.spec.as_ref().map(drop).map_err(Vec::as_slice)
    }

    /// What it is called, as the origin of what it says.
    pub fn origin(&self) -> String {
        match self.kind {
            ProfileKind::Cluster => format!("{} {}", self.kind.name(), self.name),
            ProfileKind::Namespaced => format!("{} {}/{}", self.kind.name(), self.namespace, self.name),
        }
    }

    /// The order in which profiles refine one another: a cluster's before a namespace's, one for all pods before one that
    /// selects some, a low `priority` before a high one, and then by name.
    pub fn rank(&self, other: &Self) -> Ordering {
        let key = |one: &Self| {
            let spec = one.spec.as_ref().ok();
            (one.kind, spec.is_some_and(|spec| !spec.selector.is_empty()), spec.map_or(0, |spec| spec.priority))
        };
        key(self).cmp(&key(other)).then_with(|| (&self.name, &self.namespace).cmp(&(&other.name, &other.namespace)))
    }

    /// Why it does not count for a pod; `None` when it does.
    pub fn mismatch(&self, pod: &Value, namespace: &Namespace) -> Option<String> {
        if self.kind == ProfileKind::Namespaced && self.namespace != namespace.name {
            return Some(format!("it is of the namespace `{}`", self.namespace));
        }
        let spec = self.spec.as_ref().ok()?;
        let of_namespace = spec.namespaces.mismatch(|key| namespace.labels.get(key).map(String::as_str));
        if let Some(why) = of_namespace {
            return Some(format!("its `namespaceSelector` does not mean the namespace: {why}"));
        }
        spec.selector
            .mismatch(|key| json::label(pod, key))
            .map(|why| format!("its `selector` does not mean the pod: {why}"))
    }
}

impl Spec {
    fn read(kind: ProfileKind, spec: Option<&Value>) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut wrong = |path: &str, problem: String| mistakes.push(Mistake { path: path.to_owned(), problem });
        let empty = Map::new();
        let members = match spec {
            Some(Value::Object(members)) => members,
            None | Some(Value::Null) => &empty,
            Some(_) => {
                wrong("spec", "it is no map".to_owned());
                &empty
            }
        };
        let known: &[&str] = match kind {
            ProfileKind::Cluster => &["namespaceSelector", "selector", "priority", "injection", "config"],
            ProfileKind::Namespaced => &["selector", "priority", "injection", "config"],
        };
        for key in members.keys().filter(|key| !known.contains(&key.as_str())) {
            wrong(&format!("spec.{key}"), format!("unknown; known are {}", known.join(", ")));
        }
        let mut selector =
            |key: &str| match members.get(key).filter(|value| !value.is_null()).map(Selector::deserialize) {
                None => Selector::default(),
                Some(Ok(selector)) => {
                    for (at, Requirement { operator, values, .. }) in selector.match_expressions.iter().enumerate() {
                        let takes = matches!(operator, Operator::In | Operator::NotIn);
                        if takes == values.is_empty() {
                            let problem = if takes {
                                "`In` and `NotIn` take `values`"
                            } else {
                                "`Exists` and `DoesNotExist` take no `values`"
                            };
                            wrong(&format!("spec.{key}.matchExpressions[{at}].values"), problem.to_owned());
                        }
                    }
                    selector
                }
                Some(Err(error)) => {
                    wrong(&format!("spec.{key}"), error.to_string());
                    Selector::default()
                }
            };
        let (pods, namespaces) = (selector("selector"), selector("namespaceSelector"));
        let priority = match members.get("priority").filter(|value| !value.is_null()).map(i32::deserialize) {
            None => 0,
            Some(Ok(priority)) => priority,
            Some(Err(error)) => {
                wrong("spec.priority", error.to_string());
                0
            }
        };
        let mut injection = Map::new();
        match members.get("injection") {
            None | Some(Value::Null) => {}
            Some(Value::Object(given)) => {
                for (key, value) in given {
                    let place = format!("spec.injection.{key}");
                    if OF_THE_INSTALLATION.contains(&key.as_str()) {
                        wrong(&place, "only the installation's profile says so; leave it out".to_owned());
                        continue;
                    }
                    // One by one, so that each mistake is told with its place.
                    match serde_json::from_value::<Settings>(json!({ key.as_str(): value }))
                        .map_err(|error| error.to_string())
                    {
                        Ok(settings) => match settings.check() {
                            Ok(()) => drop(injection.insert(key.clone(), value.clone())),
                            Err(problem) => wrong(&place, problem),
                        },
                        Err(error) => wrong(&place, error),
                    }
                }
            }
            Some(_) => wrong("spec.injection", "it is no map".to_owned()),
        }
        let config = match members.get("config") {
            None | Some(Value::Null) => None,
            Some(Value::Object(sections)) => {
                for section in FOREIGN.into_iter().filter(|section| sections.contains_key(*section)) {
                    wrong(
                        &format!("spec.config.{section}"),
                        "the section is a controller's, not a sidecar's; leave it out".to_owned(),
                    );
                }
                if injection.contains_key("configMap") {
                    wrong(
                        "spec.config",
                        "`config` and `injection.configMap` exclude one another; keep one of them".to_owned(),
                    );
                }
                Some(Arc::new(Value::Object(sections.clone())))
            }
            Some(_) => {
                wrong("spec.config", "it is no map of sections such as `proxy:`".to_owned());
                None
            }
        };
        if mistakes.is_empty() {
            Ok(Self { selector: pods, namespaces, priority, injection, config })
        } else {
            Err(mistakes)
        }
    }
}

impl Settings {
    /// Refined by one more profile.
    fn under(mut self, profile: &Profile) -> Result<Self, String> {
        let spec = match &profile.spec {
            Ok(spec) => spec,
            Err(mistakes) => return Err(wrong(profile, mistakes)),
        };
        if !spec.injection.is_empty() {
            let (config, layers) = (self.config.take(), std::mem::take(&mut self.layers));
            let known_good = self.known_good.clone();
            let base = serde_json::to_value(&self).map_err(|error| error.to_string())?;
            let all = merged(base, &Value::Object(spec.injection.clone()));
            self = serde_json::from_value(all).map_err(|error| format!("{}: {error}", profile.origin()))?;
            self.known_good = known_good;
            if !spec.injection.contains_key("configMap") {
                (self.config, self.layers) = (config, layers);
            }
        }
        if let Some(config) = &spec.config {
            self.config_map = None;
            self.layers.push(Layer { origin: profile.origin().into(), value: Arc::clone(config) });
        }
        Ok(self)
    }
}

fn wrong(profile: &Profile, mistakes: &[Mistake]) -> String {
    let told: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
    format!("{} is wrong, and means this pod: {}", profile.origin(), told.join("; "))
}

/// Those that count for a pod, in their order.
pub(crate) fn selected<'a>(
    profiles: impl IntoIterator<Item = &'a Profile>,
    pod: &Value,
    namespace: &Namespace,
) -> Vec<&'a Profile> {
    let mut all: Vec<&Profile> = profiles.into_iter().filter(|one| one.mismatch(pod, namespace).is_none()).collect();
    all.sort_by(|one, other| one.rank(other));
    all
}

/// Settings for a pod: the installation's, refined by the profiles that mean it.
///
/// # Errors
/// Which profile is wrong.
pub fn settings_for<'a>(
    settings: &Settings,
    profiles: impl IntoIterator<Item = &'a Profile>,
    pod: &Value,
    namespace: &Namespace,
) -> Result<Settings, String> {
    selected(profiles, pod, namespace).into_iter().try_fold(settings.clone(), Settings::under)
}

/// Puts the sidecar into a pod as the installation and the profiles that mean it say.
pub fn inject_with<'a>(
    pod: &Value,
    namespace: &Namespace,
    settings: &Settings,
    profiles: impl IntoIterator<Item = &'a Profile>,
) -> Outcome {
    let mut profiles = profiles.into_iter().peekable();
    if profiles.peek().is_none() {
        return inject(pod, namespace, settings);
    }
    match settings_for(settings, profiles, pod, namespace) {
        Ok(settings) => inject(pod, namespace, &settings),
        // A pod that is none of ours is none of a profile's either.
        Err(problem) => match decide::decide(pod, namespace, settings) {
            decide::Decision::Leave(why) => Outcome::Left(why),
            _ => Outcome::Refused(vec![problem]),
        },
    }
}

/// What is to be said of a profile before it is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    /// Why it cannot be taken.
    pub mistakes: Vec<Mistake>,
    /// What its author should know.
    pub warnings: Vec<Mistake>,
}

/// Judges a profile as `outrigger validate` judges a config: over what the installation's profile says. What it refers to and does
/// not have may come of another profile, so that is no more than a warning.
pub fn judge(profile: &Profile, installation: &Settings) -> Judged {
    let spec = match &profile.spec {
        Ok(spec) => spec,
        Err(mistakes) => return Judged { mistakes: mistakes.clone(), warnings: Vec::new() },
    };
    let mut judged = Judged::default();
    let settings = match installation.clone().under(profile) {
        Ok(settings) => settings,
        Err(problem) => {
            judged.mistakes.push(Mistake { path: "spec.injection".to_owned(), problem });
            return judged;
        }
    };
    let Some(own) = &spec.config else { return judged };
    let value = settings.config.iter().fold(config::foundation(&settings, None), merged);
    let value = settings.layers.iter().fold(value, |value, layer| merged(value, &layer.value));
    let (diagnostics, unheard) = config::diagnostics(&value, &settings);
    let listeners = |problem| Mistake { path: "spec.config.proxy.listeners".to_owned(), problem };
    judged.mistakes.extend(unheard.into_iter().map(listeners));
    for one in diagnostics.iter() {
        let (path, is_own) = own_place(&one.path.to_string(), &value, own);
        let help = one.help.as_ref().map(|help| format!("; {help}")).unwrap_or_default();
        let mistake = Mistake { path, problem: format!("{}{help}", one.message) };
        let elsewhere =
            matches!(one.code, "reference" | "missing") || one.severity == outrigger_config::Severity::Warning;
        match (elsewhere, is_own) {
            (false, _) => judged.mistakes.push(mistake),
            (true, true) => judged.warnings.push(mistake),
            (true, false) => {}
        }
    }
    judged
}

/// Where a place of the whole config stands in the profile's own part, whose lists may be shorter; and whether it does.
fn own_place(path: &str, whole: &Value, own: &Value) -> (String, bool) {
    let (mut whole, mut own, mut out) = (whole, Some(own), "spec.config".to_owned());
    let mut rest = path;
    while !rest.is_empty() {
        let end = rest[1..].find(['.', '[']).map_or(rest.len(), |at| at + 1);
        let (step, behind) = rest.split_at(end);
        rest = behind;
        let index =
            step.strip_prefix('[').and_then(|step| step.strip_suffix(']')).and_then(|step| step.parse::<usize>().ok());
        match index {
            Some(index) => {
                let item = &whole[index];
                let list = own.and_then(Value::as_array);
                let there = match item["name"].as_str() {
                    Some(name) => list
                        .and_then(|list| list.iter().position(|one| one["name"] == name))
                        .ok_or_else(|| name.to_owned()),
                    None => Ok(index),
                };
                match &there {
                    Ok(index) => out.push_str(&format!("[{index}]")),
                    Err(name) => out.push_str(&format!("[{name}]")),
                }
                own = there.ok().and_then(|index| list?.get(index));
                whole = item;
            }
            None => {
                let key = step.trim_start_matches('.');
                if !step.starts_with('[') {
                    out.push('.');
                }
                out.push_str(key);
                own = own.and_then(|own| own.get(key));
                whole = &whole[key];
            }
        }
    }
    (out, own.is_some())
}

/// Reads profiles of a file of manifests; what else stands there is passed over.
///
/// # Errors
/// What is wrong with the file.
pub fn read_manifests(text: &str) -> Result<Vec<Profile>, String> {
    let mut all = Vec::new();
    for document in crate::manifests::documents(text) {
        let value = yaml::read(document, Dialect::Kubernetes).map_err(|mistake| mistake.to_string())?;
        let items =
            if crate::workload::is_list(&value) { json::items(&value, "items") } else { std::slice::from_ref(&value) };
        all.extend(items.iter().filter_map(Profile::read));
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
