//! The objects of an installation, from its settings.
//!
//! In: settings. Out: objects in the order in which they are applied.
//! Promise: a pure function; the same settings give the same objects, so that applying them again changes nothing; what
//! holds up pods comes last, and goes first when all is removed.

mod certificates;
mod controller;
mod definitions;
mod profiles;
mod rights;
mod webhook;

use serde_json::{Map, Value, json};

use crate::settings::{Settings, WebhookCertificate};
use outrigger_kubernetes::names;

/// One object, with what a reader should know of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// What it is for.
    pub about: &'static str,
    /// The object.
    pub value: Value,
    /// Remarks at places in it, by JSON pointer.
    pub remarks: Vec<(String, &'static str)>,
}

/// Which object is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRef {
    /// `apps/v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// Absent for what belongs to no namespace.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

impl Object {
    pub(crate) fn new(about: &'static str, value: Value) -> Self {
        Self { about, value, remarks: Vec::new() }
    }

    /// Adds a remark above a place.
    pub(crate) fn remark(mut self, at: &str, text: &'static str) -> Self {
        self.remarks.push((at.to_owned(), text));
        self
    }

    /// Which one it is.
    pub fn reference(&self) -> ObjectRef {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let metadata = &self.value["metadata"];
        ObjectRef {
            api_version: text(&self.value["apiVersion"]).unwrap_or_default(),
            kind: text(&self.value["kind"]).unwrap_or_default(),
            namespace: text(&metadata["namespace"]),
            name: text(&metadata["name"]).unwrap_or_default(),
        }
    }
}

/// All objects, in the order in which they are applied.
pub fn objects(settings: &Settings) -> Vec<Object> {
    let mut all = profiles::definitions();
    all.extend(settings.create_namespace.then(|| namespace(settings)));
    all.extend(definitions::objects());
    all.extend(rights::objects(settings));
    all.push(controller::config(settings));
    if settings.webhook_certificate == WebhookCertificate::CertManager {
        all.extend(certificates::objects(settings));
    }
    all.push(controller::service(settings));
    all.push(controller::deployment(settings));
    all.push(controller::disruption_budget(settings));
    all.push(profiles::judging(settings));
    all.push(webhook::object(settings));
    all
}

/// The definitions of our own resources, as the chart has them.
#[cfg(test)]
pub(crate) fn chart_definitions() -> String {
    format!("# Generated from the code (`cargo xtask bless`).\n{}", crate::yaml::write(&definitions::objects()))
}

/// What to delete, in this order, so that nothing waits for what has gone already: the objects' names alone. Secrets and
/// leases that the controllers made go with their namespace; where that stays, they are named, too.
pub fn removal(settings: &Settings) -> Vec<Object> {
    let mut all: Vec<Object> = objects(settings)
        .iter()
        .rev()
        .map(|object| {
            let reference = object.reference();
            named(object.about, &reference)
        })
        .collect();
    if !settings.create_namespace {
        let made = [("v1", "Secret", names::WEBHOOK_SECRET), ("v1", "Secret", names::ROOTS_SECRET)];
        let lease = ("coordination.k8s.io/v1", "Lease", names::CONTROLLER);
        all.extend(made.into_iter().chain([lease]).map(|(api_version, kind, name)| {
            let reference = ObjectRef {
                api_version: api_version.to_owned(),
                kind: kind.to_owned(),
                namespace: Some(settings.namespace.clone()),
                name: name.to_owned(),
            };
            named("Made by the controllers.", &reference)
        }));
    }
    all
}

fn named(about: &'static str, reference: &ObjectRef) -> Object {
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(reference.name));
    metadata.extend(reference.namespace.as_ref().map(|namespace| ("namespace".to_owned(), json!(namespace))));
    let value = json!({ "apiVersion": reference.api_version, "kind": reference.kind, "metadata": metadata });
    Object::new(about, value)
}

fn namespace(settings: &Settings) -> Object {
    let mut labels = labels();
    labels.insert(names::INJECT_LABEL.to_owned(), json!("disabled"));
    for mode in ["enforce", "audit", "warn"] {
        labels.insert(format!("pod-security.kubernetes.io/{mode}"), json!("restricted"));
    }
    let value = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": settings.namespace, "labels": labels },
    });
    Object::new("Where the controllers run. They need no privilege, so nothing here gets one.", value)
        .remark("/metadata/labels/outrigger.dev~1inject", "What makes sidecars cannot wait for one.")
}

/// The labels of all objects.
fn labels() -> Map<String, Value> {
    let mut labels = Map::new();
    labels.insert("app.kubernetes.io/name".to_owned(), json!(names::APPLICATION));
    labels.insert("app.kubernetes.io/version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
    labels
}

/// What selects the controllers' pods.
fn selector() -> Value {
    json!({ "app.kubernetes.io/name": names::APPLICATION, "app.kubernetes.io/component": "controller" })
}

/// An object's metadata.
fn metadata(settings: &Settings) -> Value {
    json!({ "name": names::CONTROLLER, "namespace": settings.namespace, "labels": labels() })
}

/// The metadata of an object that belongs to no namespace.
fn cluster_metadata() -> Value {
    json!({ "name": names::CONTROLLER, "labels": labels() })
}
