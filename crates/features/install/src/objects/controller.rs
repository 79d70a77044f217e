//! The controllers: their config, their pods, and where these are reached.
//!
//! In: settings. Out: ConfigMap, Service, Deployment, PodDisruptionBudget. Promise: the pods pass Pod Security's level
//! `restricted`; one node, or one drained node, does not take all of them away.

use serde_json::{Map, Value, json};

use super::{Object, labels, metadata, selector};
use crate::settings::{PullPolicy, Resources, Settings, WebhookCertificate};
use crate::yaml;
use outrigger_kubernetes::names;

/// Where the config is mounted.
const CONFIG_FOLDER: &str = "/etc/outrigger";
/// Where an authority's secret is mounted.
const AUTHORITY_FOLDER: &str = "/var/run/secrets/outrigger/authority";
/// Where cert-manager's secret is mounted.
const WEBHOOK_FOLDER: &str = "/var/run/secrets/outrigger/webhook";
/// User and group of the image.
const USER: u32 = 65_532;

pub(super) fn config(settings: &Settings) -> Object {
    let all = serde_json::to_value(settings).unwrap_or_default();
    let value = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(settings),
        "data": {
            "outrigger.yaml": yaml::text(&controller(settings)),
            "profile.yaml": yaml::text(&profile(settings)),
            names::SETTINGS_KEY: yaml::text(&without_nulls(all)),
        },
    });
    Object::new("What the controllers and the sidecars are told. A change reaches them without a restart.", value)
        .remark(
            "/data/outrigger.yaml",
            "The controllers' own config (`outrigger schema --format markdown` describes it).",
        )
        .remark("/data/profile.yaml", "What is put into pods (`outrigger inject --profile`).")
        .remark(
            "/data/install.yaml",
            "What this was made with; `outrigger check` compares what it finds with what that gives.",
        )
}

/// The config of the process.
fn controller(settings: &Settings) -> Value {
    let mut authority = Map::new();
    authority.insert("trustDomain".to_owned(), json!(settings.trust_domain.as_str()));
    let service = |suffix: &str| format!("{}.{}{suffix}", names::CONTROLLER, settings.namespace);
    authority.insert("names".to_owned(), json!([service(".svc"), service("")]));
    match &settings.authority_secret {
        Some(_) => authority.insert(
            "issuer".to_owned(),
            json!({
                "certificate": format!("{AUTHORITY_FOLDER}/tls.crt"),
                "key": format!("{AUTHORITY_FOLDER}/tls.key"),
                "trustBundle": format!("{AUTHORITY_FOLDER}/ca.crt"),
            }),
        ),
        None => authority.insert(
            "roots".to_owned(),
            json!({ "secret": { "namespace": settings.namespace, "name": names::ROOTS_SECRET } }),
        ),
    };
    authority.insert("trustBundles".to_owned(), json!({ "configMap": names::TRUST_BUNDLE }));
    let mut webhook = Map::new();
    webhook.insert("profile".to_owned(), json!(format!("{CONFIG_FOLDER}/profile.yaml")));
    if settings.webhook_certificate == WebhookCertificate::CertManager {
        webhook.insert("certificate".to_owned(), json!({ "directory": WEBHOOK_FOLDER }));
    }
    json!({
        "controller": {
            "namespace": settings.namespace,
            "webhook": webhook,
            "profiles": {},
            "repair": { "action": settings.repair },
        },
        "authority": authority,
        "identity": {
            "trustDomain": settings.trust_domain.as_str(),
            "ownAuthority": { "namespace": settings.namespace, "serviceAccount": names::CONTROLLER },
        },
        "discovery": { "kubernetes": {} },
        "metrics": {},
        "telemetry": { "log": { "format": "json", "level": settings.log_level } },
    })
}

/// What the injector puts into pods.
fn profile(settings: &Settings) -> Value {
    let mut profile = Map::new();
    profile.insert("image".to_owned(), json!(settings.image));
    profile.extend(settings.image_pull_policy.map(|policy| ("imagePullPolicy".to_owned(), json!(policy))));
    profile.insert("interception".to_owned(), json!(settings.interception));
    let (service, domain) = (format!("{}.{}.svc", names::CONTROLLER, settings.namespace), &settings.trust_domain);
    let mesh = json!({
        "trustDomain": domain.as_str(),
        "authority": format!("{service}:{}", names::AUTHORITY_PORT),
        "trustBundle": names::TRUST_BUNDLE,
        "discovery": {
            "server": format!("{service}:{}", names::DISCOVERY_PORT),
            "spiffeId": format!("spiffe://{domain}/ns/{}/sa/{}", settings.namespace, names::CONTROLLER),
        },
    });
    profile.insert("mesh".to_owned(), mesh);
    profile.insert("mtls".to_owned(), json!(settings.mtls));
    profile.insert("namespaces".to_owned(), json!("enabled"));
    profile.insert("excludedNamespaces".to_owned(), json!([settings.namespace]));
    for (key, value) in settings.profile.iter().filter_map(Value::as_object).flatten() {
        profile.insert(key.clone(), value.clone());
    }
    Value::Object(profile)
}

pub(super) fn service(settings: &Settings) -> Object {
    let port = |name: &str, port: u16, target: &str| json!({ "name": name, "port": port, "targetPort": target, "protocol": "TCP" });
    let value = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(settings),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(),
            "ports": [
                port("https-webhook", names::WEBHOOK_SERVICE_PORT, "webhook"),
                port("grpc-discovery", names::DISCOVERY_PORT, "discovery"),
                port("grpc-authority", names::AUTHORITY_PORT, "authority"),
            ],
        },
    });
    Object::new("Where the API server (webhook) and sidecars (services, certificates) find the controllers.", value)
}

pub(super) fn deployment(settings: &Settings) -> Object {
    let mut pod_labels = labels();
    pod_labels.insert("app.kubernetes.io/component".to_owned(), json!("controller"));
    pod_labels.insert(names::INJECT_LABEL.to_owned(), json!("disabled"));
    let value = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(settings),
        "spec": {
            "replicas": settings.replicas,
            "selector": { "matchLabels": selector() },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } },
            "template": {
                "metadata": {
                    "labels": pod_labels,
                    "annotations": {
                        "prometheus.io/scrape": "true",
                        "prometheus.io/port": names::METRICS_PORT.to_string(),
                        "prometheus.io/path": "/metrics",
                    },
                },
                "spec": pod(settings),
            },
        },
    });
    Object::new("The controllers: webhook, authority, discovery and what looks after the pods.", value)
        .remark("/spec/strategy", "A new one answers before an old one goes.")
        .remark("/spec/template/spec/topologySpreadConstraints", "One node's end leaves others.")
}

fn pod(settings: &Settings) -> Value {
    let mut spec = Map::new();
    spec.insert("serviceAccountName".to_owned(), json!(names::CONTROLLER));
    if !settings.image_pull_secrets.is_empty() {
        let secrets: Vec<Value> = settings.image_pull_secrets.iter().map(|name| json!({ "name": name })).collect();
        spec.insert("imagePullSecrets".to_owned(), json!(secrets));
    }
    spec.extend(settings.priority_class_name.as_ref().map(|name| ("priorityClassName".to_owned(), json!(name))));
    spec.insert(
        "securityContext".to_owned(),
        json!({
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
        }),
    );
    if !settings.node_selector.is_empty() {
        spec.insert("nodeSelector".to_owned(), json!(settings.node_selector));
    }
    if !settings.tolerations.is_empty() {
        spec.insert("tolerations".to_owned(), json!(settings.tolerations));
    }
    spec.insert(
        "topologySpreadConstraints".to_owned(),
        json!([{
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": { "matchLabels": selector() },
        }]),
    );
    let mut volumes = vec![json!({ "name": "config", "configMap": { "name": names::CONTROLLER } })];
    let mut mounts = vec![json!({ "name": "config", "mountPath": CONFIG_FOLDER, "readOnly": true })];
    let mut secret = |name: &str, secret: &str, folder: &str, keys: &[&str]| {
        let keys: Vec<Value> = keys.iter().map(|key| json!({ "key": key, "path": key })).collect();
        // Readable by the group that `fsGroup` names.
        volumes.push(json!({ "name": name, "secret": { "secretName": secret, "defaultMode": 0o440, "items": keys } }));
        mounts.push(json!({ "name": name, "mountPath": folder, "readOnly": true }));
    };
    if let Some(name) = &settings.authority_secret {
        secret("authority", name, AUTHORITY_FOLDER, &["tls.crt", "tls.key", "ca.crt"]);
    }
    if settings.webhook_certificate == WebhookCertificate::CertManager {
        // Without `ca.crt`, for cert-manager itself tells the API server whom to trust.
        secret("webhook", names::WEBHOOK_SECRET, WEBHOOK_FOLDER, &["tls.crt", "tls.key"]);
    }
    spec.insert("containers".to_owned(), json!([container(settings, &mounts)]));
    spec.insert("volumes".to_owned(), json!(volumes));
    Value::Object(spec)
}

fn container(settings: &Settings, mounts: &[Value]) -> Value {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let port = |name: &str, port: u16| json!({ "name": name, "containerPort": port, "protocol": "TCP" });
    let probe = |path: &str, period: u32| {
        json!({
            "httpGet": { "path": path, "port": "health" },
            "periodSeconds": period,
            "timeoutSeconds": 3,
            "failureThreshold": 3,
        })
    };
    let mut container = Map::new();
    container.insert("name".to_owned(), json!("controller"));
    container.insert("image".to_owned(), json!(settings.image));
    container
        .extend(settings.image_pull_policy.map(|policy: PullPolicy| ("imagePullPolicy".to_owned(), json!(policy))));
    container.insert("args".to_owned(), json!(["controller", "-c", format!("{CONFIG_FOLDER}/outrigger.yaml")]));
    container.insert(
        "env".to_owned(),
        json!([field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace")]),
    );
    container.insert(
        "ports".to_owned(),
        json!([
            port("webhook", names::WEBHOOK_PORT),
            port("discovery", names::DISCOVERY_PORT),
            port("authority", names::AUTHORITY_PORT),
            port("metrics", names::METRICS_PORT),
            port("health", names::HEALTH_PORT),
        ]),
    );
    container.insert("readinessProbe".to_owned(), probe("/readyz", 5));
    container.insert("livenessProbe".to_owned(), probe("/livez", 10));
    container.insert("resources".to_owned(), resources(&settings.resources));
    container.insert(
        "securityContext".to_owned(),
        json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        }),
    );
    container.insert("terminationMessagePolicy".to_owned(), json!("FallbackToLogsOnError"));
    container.insert("volumeMounts".to_owned(), json!(mounts));
    Value::Object(container)
}

fn resources(resources: &Resources) -> Value {
    let mut all = Map::new();
    for (kind, cpu, memory) in [
        ("requests", &resources.cpu_request, &resources.memory_request),
        ("limits", &resources.cpu_limit, &resources.memory_limit),
    ] {
        let mut map = Map::new();
        map.extend(cpu.as_ref().map(|cpu| ("cpu".to_owned(), json!(cpu))));
        map.extend(memory.as_ref().map(|memory| ("memory".to_owned(), json!(memory))));
        if !map.is_empty() {
            all.insert(kind.to_owned(), Value::Object(map));
        }
    }
    Value::Object(all)
}

pub(super) fn disruption_budget(settings: &Settings) -> Object {
    let value = json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(settings),
        // Not `minAvailable: 1`: with a single controller no node could ever be drained.
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": { "matchLabels": selector() },
        },
    });
    Object::new("Nodes are drained one controller at a time.", value)
}

/// Without settings that are absent anyway.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(map.into_iter().filter(|(_, value)| !value.is_null()).collect()),
        other => other,
    }
}
