//! Whether a pod is injected.
//!
//! In: a pod, its namespace, settings. Out: yes, or why not. Promise: a pod that asked for it and
//! cannot have it is refused; one that did not ask is left alone, and the reason is given.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::annotations::{INJECT, switch};
use crate::json;
use crate::settings::{Namespaces, Settings};

/// Where a pod lives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Namespace {
    /// A namespace of which no more than the name is known.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), labels: BTreeMap::new() }
    }
}

pub(crate) enum Decision {
    Inject,
    Leave(String),
    Refuse(Vec<String>),
}

const SYSTEM: &[&str] = &["kube-system", "kube-public", "kube-node-lease"];

/// Before a word of its annotations is read.
pub(crate) fn decide(pod: &Value, namespace: &Namespace, settings: &Settings) -> Decision {
    if SYSTEM.contains(&namespace.name.as_str()) || settings.excluded_namespaces.contains(&namespace.name) {
        return Decision::Leave(format!("the namespace `{}` is never injected", namespace.name));
    }
    let word = json::label(pod, INJECT).or_else(|| json::annotation(pod, INJECT));
    let asked = match word.map(|word| (word, switch(word))) {
        None => None,
        Some((_, Ok(asked))) => Some(asked),
        Some((word, Err(_))) => {
            return Decision::Refuse(vec![format!(
                "`{INJECT}` of the pod has the value `{word}`; allowed: `enabled` or `disabled`"
            )]);
        }
    };
    if asked == Some(false) {
        return Decision::Leave(format!("the pod opts out (`{INJECT}`)"));
    }
    let of_namespace = namespace.labels.get(INJECT).map(|word| switch(word));
    match (asked, of_namespace, settings.namespaces) {
        (None, Some(Ok(false)), _) => {
            return Decision::Leave(format!("the namespace `{}` opts out (`{INJECT}`)", namespace.name));
        }
        (None, Some(Err(_)), _) => {
            return Decision::Leave(format!(
                "the label `{INJECT}` of the namespace `{}` is neither `enabled` nor `disabled`",
                namespace.name
            ));
        }
        (None, None, Namespaces::Enabled) => {
            return Decision::Leave(format!(
                "neither the pod nor the namespace `{}` opts in (`{INJECT}`)",
                namespace.name
            ));
        }
        _ => {}
    }
    if let Some(why) = unsuited(pod) {
        // Who asked is told; who just lives in the namespace is not kept from running.
        return if asked == Some(true) { Decision::Refuse(vec![why]) } else { Decision::Leave(why) };
    }
    let problems = conflicts(pod, namespace);
    if problems.is_empty() { Decision::Inject } else { Decision::Refuse(problems) }
}

/// Why no sidecar can be in this pod.
fn unsuited(pod: &Value) -> Option<String> {
    let spec = json::spec(pod);
    if spec.get("hostNetwork").and_then(Value::as_bool) == Some(true) {
        return Some(
            "the pod uses the node's network (`hostNetwork`); redirecting it would redirect the node's".to_owned(),
        );
    }
    if spec["os"]["name"] == "windows" {
        return Some("the pod runs on Windows".to_owned());
    }
    if json::annotation(pod, "kubernetes.io/config.mirror").is_some() {
        return Some("the pod is the mirror of a static pod, which cannot be changed".to_owned());
    }
    for (container, mesh) in [
        ("istio-proxy", "Istio"),
        ("linkerd-proxy", "Linkerd"),
        ("kuma-sidecar", "Kuma"),
        ("consul-dataplane", "Consul"),
    ] {
        if json::all_containers(pod).any(|one| json::name(one) == container) {
            return Some(format!("the pod has the sidecar of {mesh} already (container `{container}`)"));
        }
    }
    None
}

/// Others that would inject, too.
fn conflicts(pod: &Value, namespace: &Namespace) -> Vec<String> {
    let mut problems = Vec::new();
    let istio =
        json::label(pod, "sidecar.istio.io/inject").or_else(|| json::annotation(pod, "sidecar.istio.io/inject"));
    let label = |key: &str| namespace.labels.get(key).map(String::as_str);
    if istio == Some("true") || (istio != Some("false") && label("istio-injection") == Some("enabled")) {
        problems.push("Istio would inject the pod, too (`sidecar.istio.io/inject` of the pod or `istio-injection` of the namespace); turn one of them off".to_owned());
    }
    let linkerd = json::annotation(pod, "linkerd.io/inject");
    if linkerd.is_some_and(|word| word == "enabled" || word == "ingress") {
        problems.push("Linkerd would inject the pod, too (`linkerd.io/inject`); turn one of them off".to_owned());
    }
    problems
}

/// What in the pod is in our way, once settings are known.
pub(crate) fn clashes(pod: &Value, namespace: &Namespace, settings: &Settings) -> Vec<String> {
    let mut problems = Vec::new();
    let redirects = settings.interception.redirects();
    let ports: &[u64] = if redirects { &[15000, 15001, 15006, 15020, 15021] } else { &[15000, 15020, 15021] };
    for container in json::all_containers(pod) {
        let name = json::name(container);
        if name == crate::SIDECAR || name == crate::INIT {
            problems.push(format!("a container is named `{name}`, as Outrigger's is; rename it"));
        }
        for port in json::items(container, "ports") {
            let number = port["containerPort"].as_u64().unwrap_or_default();
            if ports.contains(&number) && port["protocol"] != "UDP" {
                problems.push(format!("container `{name}` uses port {number}, which Outrigger needs; use another"));
            }
        }
        if redirects && user(container).or_else(|| user(json::spec(pod))) == Some(u64::from(settings.run_as_user)) {
            problems.push(format!(
                "container `{name}` runs as user {0}, as Outrigger does, so that its connections could not be told apart; run it as another, or set `outrigger.dev/run-as-user`",
                settings.run_as_user
            ));
        }
    }
    for volume in json::items(json::spec(pod), "volumes") {
        if json::name(volume).starts_with("outrigger-") {
            problems.push(format!(
                "a volume is named `{}`; names that begin with `outrigger-` are Outrigger's",
                json::name(volume)
            ));
        }
    }
    let level = namespace.labels.get("pod-security.kubernetes.io/enforce").map(String::as_str);
    if let Some(level @ ("baseline" | "restricted")) = level.filter(|_| redirects) {
        problems.push(format!(
            "the namespace `{}` enforces the Pod Security level `{level}`, which forbids the capability NET_ADMIN that redirecting needs; set `outrigger.dev/interception` to `none`",
            namespace.name
        ));
    }
    let policy = json::text(json::spec(pod), "restartPolicy");
    if settings.interception == crate::Interception::Own && !settings.native_sidecars {
        problems.push("`outrigger.dev/interception: self` takes native sidecars; use `init`".to_owned());
    }
    if !settings.native_sidecars && matches!(policy, "Never" | "OnFailure") {
        problems.push(format!("the pod is to complete (`restartPolicy: {policy}`), but would not beside a sidecar that is a plain container; that takes native sidecars (Kubernetes 1.29)"));
    }
    problems
}

fn user(of: &Value) -> Option<u64> {
    of["securityContext"]["runAsUser"].as_u64()
}

/// What no API server would take, and we cannot work on.
pub(crate) fn malformed(pod: &Value) -> Option<String> {
    if !pod.is_object() || !pod.get("spec").is_some_and(Value::is_object) {
        return Some("it has no `spec`".to_owned());
    }
    if json::misshapen(pod, "metadata", Value::is_object) {
        return Some("`metadata` is no map".to_owned());
    }
    let metadata = pod.get("metadata").unwrap_or(&Value::Null);
    for key in ["annotations", "labels"] {
        if json::misshapen(metadata, key, |map| map.as_object().is_some_and(|map| map.values().all(Value::is_string))) {
            return Some(format!("`metadata.{key}` is no map of texts; quote values such as \"true\""));
        }
    }
    let spec = json::spec(pod);
    if json::items(spec, "containers").is_empty() {
        return Some("`spec.containers` is no list of containers".to_owned());
    }
    for list in ["containers", "initContainers", "volumes"] {
        let named =
            |items: &Value| items.as_array().is_some_and(|items| items.iter().all(|item| !json::name(item).is_empty()));
        if json::misshapen(spec, list, named) {
            return Some(format!("`spec.{list}` is no list of things with a `name`"));
        }
    }
    let mut names: Vec<&str> = json::all_containers(pod).map(json::name).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Some(format!("two containers are named `{}`", twice[0]));
    }
    let mounts = |one: &Value| {
        json::misshapen(one, "volumeMounts", |list| {
            list.as_array().is_some_and(|items| items.iter().all(Value::is_object))
        })
    };
    json::all_containers(pod)
        .find(|one| mounts(one))
        .map(|one| format!("`volumeMounts` of container `{}` is no list of mounts", json::name(one)))
}
