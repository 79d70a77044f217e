//! Asks the API server for what the checks judge.
//!
//! In: a client, settings. Out: a report. Promise: nothing is changed (what is made for trial is a dry run); what may not be read
//! is told so, line by line; only a server that gives no answer at all is an error.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_kubernetes::resources::{
    self, ACCESS_REVIEWS, CLUSTER_SIDECAR_PROFILES, CONFIG_MAPS, ENDPOINT_SLICES, LEASES, MUTATING_WEBHOOKS,
    NAMESPACES, NODES, PODS, SECRETS,
};
use outrigger_kubernetes::{ApiError, Client, Path, Resource, Selection, Write};
use serde_json::{Map, Value, json};

use super::facts::{After, Before, Seen, Trial, label, name, opted_in};
use super::finding::{Finding, Report};
use super::{after, before};
use crate::objects::{Object, ObjectRef, objects};
use crate::settings::Settings;
use outrigger_kubernetes::names;

/// What is checked.
#[derive(Debug, Clone)]
pub enum Check {
    /// Whether a cluster can take an installation of these settings.
    Before(Settings),
    /// An installation in this namespace, beside the settings that it was made with, or these.
    After {
        /// The controllers' namespace.
        namespace: String,
        /// What it should be; absent means what the installation says of itself.
        settings: Option<Settings>,
    },
}

/// Asks and judges.
///
/// # Errors
/// When the API server cannot be asked at all.
pub async fn look(client: &Client, check: &Check) -> Result<Report, ApiError> {
    let version = client.version().await;
    if let Err(error @ (ApiError::Access(_) | ApiError::Unreachable(_))) = version {
        return Err(error);
    }
    let findings = match check {
        Check::Before(settings) => before::findings(&facts_before(client, settings, seen(version)).await, settings),
        Check::After { namespace, settings } => installation(client, namespace, settings.as_ref()).await,
    };
    Ok(Report { findings })
}

async fn installation(client: &Client, namespace: &str, given: Option<&Settings>) -> Vec<Finding> {
    const WHAT: &str = "installation";
    let config = match seen(client.find(CONFIG_MAPS.named(namespace, names::CONTROLLER)).await) {
        Ok(Some(config)) => config,
        Ok(None) => {
            return vec![Finding::failed(
                WHAT,
                format!("there is none in the namespace `{namespace}`"),
                "`outrigger install | kubectl apply -f -`, or name its namespace (`--namespace`)",
            )];
        }
        Err(why) => return vec![Finding::unknown(WHAT, &why)],
    };
    let recorded = config["data"][names::SETTINGS_KEY].as_str().map(Settings::from_yaml);
    let version = label(&config, "app.kubernetes.io/version").unwrap_or_default();
    let settings = match (given, recorded) {
        (Some(given), _) => given.clone(),
        (None, Some(Ok(recorded))) => recorded,
        (None, other) => {
            let why = match other {
                Some(Err(problem)) => problem,
                _ => format!("the ConfigMap `{}` has no `{}`", names::CONTROLLER, names::SETTINGS_KEY),
            };
            return vec![Finding::failed(
                WHAT,
                format!("its settings cannot be read: {why}"),
                "give the values file that it was made with (`-f`), or apply it again",
            )];
        }
    };
    after::findings(&facts_after(client, &settings).await, &settings, version)
}

/// What was told, or why not.
fn seen<T>(result: Result<T, ApiError>) -> Seen<T> {
    result.map_err(|error| error.to_string())
}

async fn facts_before(client: &Client, settings: &Settings, version: Seen<Value>) -> Before {
    let all = Selection::default();
    Before {
        version,
        groups: seen(client.api_versions().await),
        nodes: seen(client.list(NODES.all(), &all).await),
        namespaces: seen(client.list(NAMESPACES.all(), &all).await),
        webhooks: seen(client.list(MUTATING_WEBHOOKS.all(), &all).await),
        rights: rights(client, settings).await,
        installed: seen(client.find(CONFIG_MAPS.named(&settings.namespace, names::CONTROLLER)).await),
    }
}

/// What the user may not, of all that `kubectl apply` does.
async fn rights(client: &Client, settings: &Settings) -> Seen<(Vec<String>, usize)> {
    let mut asked = BTreeSet::new();
    let mut missing = Vec::new();
    for object in objects(settings) {
        let reference = object.reference();
        let Some(resource) = resource(&reference) else { continue };
        for verb in ["get", "create", "patch"] {
            if !asked.insert((resource.group, resource.plural, verb)) {
                continue;
            }
            let mut attributes = Map::new();
            attributes.insert("verb".to_owned(), json!(verb));
            attributes.insert("group".to_owned(), json!(resource.group));
            attributes.insert("resource".to_owned(), json!(resource.plural));
            attributes.extend(reference.namespace.as_ref().map(|namespace| ("namespace".to_owned(), json!(namespace))));
            let review = json!({
                "apiVersion": ACCESS_REVIEWS.api_version(),
                "kind": ACCESS_REVIEWS.kind,
                "spec": { "resourceAttributes": attributes },
            });
            let answer = seen(client.create(ACCESS_REVIEWS.all(), &review, Write::Real).await)?;
            if answer["status"]["allowed"] != true {
                let place =
                    reference.namespace.as_ref().map(|namespace| format!(" in {namespace}")).unwrap_or_default();
                missing.push(format!("{verb} {}{place}", resource.plural));
            }
        }
    }
    Ok((missing, asked.len()))
}

/// cert-manager's, which the client does not know.
const CERTIFICATES: Resource =
    Resource { group: "cert-manager.io", version: "v1", plural: "certificates", kind: "Certificate", namespaced: true };
/// cert-manager's, which the client does not know.
const ISSUERS: Resource =
    Resource { group: "cert-manager.io", version: "v1", plural: "issuers", kind: "Issuer", namespaced: true };

fn resource(reference: &ObjectRef) -> Option<Resource> {
    let ours = [CERTIFICATES, ISSUERS];
    let mut known = resources::ALL.iter().chain(&ours);
    known.find(|one| one.kind == reference.kind && one.api_version() == reference.api_version).copied()
}

fn path<'a>(resource: Resource, reference: &'a ObjectRef) -> Path<'a> {
    match &reference.namespace {
        Some(namespace) => resource.named(namespace, &reference.name),
        None => resource.global(&reference.name),
    }
}

async fn facts_after(client: &Client, settings: &Settings) -> After {
    let mut all: Vec<(Object, Seen<Option<Value>>)> = Vec::new();
    for object in objects(settings) {
        let reference = object.reference();
        let found = match resource(&reference) {
            Some(resource) => seen(client.find(path(resource, &reference)).await),
            None => Err(format!("nobody here knows how to ask for {reference}")),
        };
        all.push((object, found));
    }
    let home = settings.namespace.as_str();
    let ours = Selection::labels(format!(
        "app.kubernetes.io/name={},app.kubernetes.io/component=controller",
        names::APPLICATION
    ));
    let behind = Selection::labels(format!("kubernetes.io/service-name={}", names::CONTROLLER));
    let bundles = Selection::fields(format!("metadata.name={}", names::TRUST_BUNDLE));
    // Nothing can be made in one that is on its way out, and what is missing there is nobody's fault.
    let namespaces = seen(client.list(NAMESPACES.all(), &Selection::default()).await).map(those_that_stay);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    After {
        objects: all,
        controllers: seen(client.list(PODS.within(home), &ours).await).map(those_that_stay),
        slices: seen(client.list(ENDPOINT_SLICES.within(home), &behind).await),
        lease: seen(client.find(LEASES.named(home, names::CONTROLLER)).await),
        roots: seen(client.find(SECRETS.named(home, names::ROOTS_SECRET)).await),
        bundles: seen(client.list(CONFIG_MAPS.all(), &bundles).await),
        pods: pods(client, &namespaces).await,
        trials: trials(client, &namespaces).await,
        judged: judged(client).await,
        namespaces,
        now: i64::try_from(now).unwrap_or(i64::MAX),
    }
}

/// Objects without those that are on their way out.
fn those_that_stay(objects: Vec<Value>) -> Vec<Value> {
    objects.into_iter().filter(|one| one["metadata"]["deletionTimestamp"].is_null()).collect()
}

fn injected_namespaces(namespaces: &Seen<Vec<Value>>) -> impl Iterator<Item = &Value> {
    let all = namespaces.iter().flatten();
    all.filter(|one| opted_in(one) == Some(true) && !names::SYSTEM_NAMESPACES.contains(&name(one)))
}

/// Pods of namespaces that opted in, as far as they matter here.
async fn pods(client: &Client, namespaces: &Seen<Vec<Value>>) -> Seen<Vec<Value>> {
    if let Err(why) = namespaces {
        return Err(why.clone());
    }
    let mut all = Vec::new();
    for namespace in injected_namespaces(namespaces) {
        let found = seen(client.list(PODS.within(name(namespace)), &Selection::default()).await)?;
        all.extend(found.iter().map(slim));
    }
    Ok(all)
}

fn slim(pod: &Value) -> Value {
    let metadata = &pod["metadata"];
    json!({
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": metadata["labels"],
            "annotations": metadata["annotations"],
            "deletionTimestamp": metadata["deletionTimestamp"],
        },
        "spec": { "hostNetwork": pod["spec"]["hostNetwork"] },
        "status": { "phase": pod["status"]["phase"] },
    })
}

/// In so many namespaces at most a pod is made for trial.
const TRIALS: usize = 100;

/// Has the API server say what would become of a pod: in each namespace that opted in, where a webhook that fails is an error, and
/// quotas and limits may be; without such a one of a pod that opts in by itself.
async fn trials(client: &Client, namespaces: &Seen<Vec<Value>>) -> Vec<(String, Trial)> {
    let mut all = Vec::new();
    for namespace in injected_namespaces(namespaces).take(TRIALS) {
        all.push((name(namespace).to_owned(), trial(client, name(namespace)).await));
    }
    if all.is_empty() {
        all.push(("default".to_owned(), trial(client, "default").await));
    }
    all
}

/// Its own container is not to be what is refused: a quota may want it to say what it needs, a limit may not let it.
async fn trial(client: &Client, namespace: &str) -> Trial {
    let small = json!({ "cpu": "1m", "memory": "1Mi" });
    let first =
        tried(client, PODS.within(namespace), &pod(namespace, json!({ "requests": small, "limits": small }))).await;
    let Trial::Refused(why) = &first else { return first };
    match tried(client, PODS.within(namespace), &pod(namespace, json!({}))).await {
        // It says more of the trial's own container.
        Trial::Refused(other) if other.len() >= why.len() => first,
        second => second,
    }
}

fn pod(namespace: &str, resources: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "outrigger-check",
            "namespace": namespace,
            "labels": { names::INJECT_LABEL: "enabled" },
            // Passes every Pod Security level.
            "annotations": { "outrigger.dev/interception": "none" },
        },
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": { "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "trial",
                "image": "trial",
                "resources": resources,
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    })
}

/// Has the API server say what would become of a profile that says nothing.
async fn judged(client: &Client) -> Trial {
    let profile = json!({
        "apiVersion": CLUSTER_SIDECAR_PROFILES.api_version(),
        "kind": CLUSTER_SIDECAR_PROFILES.kind,
        "metadata": { "name": "outrigger-check" },
        "spec": {},
    });
    tried(client, CLUSTER_SIDECAR_PROFILES.all(), &profile).await
}

async fn tried(client: &Client, path: Path<'_>, object: &Value) -> Trial {
    match client.create(path, object, Write::DryRun).await {
        Ok(made) => Trial::Made(made),
        Err(error) if error.status().is_some_and(|status| status.forbidden().is_some()) => {
            Trial::NotAllowed(error.to_string())
        }
        Err(error) => Trial::Refused(error.status().map_or_else(|| error.to_string(), |status| status.message.clone())),
    }
}
