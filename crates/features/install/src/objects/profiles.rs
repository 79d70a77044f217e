//! What a cluster needs for profiles that are objects: their definitions, and the webhook that judges them.
//!
//! In: settings, the config's schema. Out: two CustomResourceDefinitions and a ValidatingWebhookConfiguration. Promise: the
//! schema of `config` is that of the file, as far as Kubernetes can say it; what it cannot say, and keys that nobody knows, the
//! webhook tells by their path. No default is filled in: each layer holds what its author wrote, or it would hide the one below.

mod structural;

use serde_json::{Map, Value, json};

use super::{Object, labels};
use crate::settings::{Settings, WebhookCertificate};
use outrigger_kubernetes::definitions::{Column, Definition};
use outrigger_kubernetes::names;

/// Sections of a config that are a controller's, or for `outrigger test`.
const NOT_A_SIDECARS: [&str; 4] = ["authority", "discovery", "controller", "tests"];

/// The definitions, which come before everything else.
pub(super) fn definitions() -> Vec<Object> {
    let config = config_schema();
    let one = |cluster: bool, about: &'static str| {
        Object::new(about, definition(cluster, &config)).remark(
            "/spec/versions/0/schema/openAPIV3Schema",
            "Made of the config's own schema; `kubectl explain` shows it.",
        )
    };
    vec![
        one(true, "ClusterSidecarProfile: what sidecars of the whole cluster are told."),
        one(false, "SidecarProfile: what sidecars of a namespace, or some of its pods, are told."),
    ]
}

fn definition(cluster: bool, config: &Value) -> Value {
    let (kind, plural, short) = if cluster {
        ("ClusterSidecarProfile", "clustersidecarprofiles", "csp")
    } else {
        ("SidecarProfile", "sidecarprofiles", "sp")
    };
    let definition = Definition {
        kind,
        plural,
        short,
        namespaced: !cluster,
        columns: &[
            Column::always("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status"),
            Column::always("Programmed", "integer", ".status.programmed"),
            Column::always("Pods", "integer", ".status.pods"),
            Column::wide("Priority", "integer", ".spec.priority"),
            Column::wide("Image", "string", ".spec.injection.image"),
            Column::always("Age", "date", ".metadata.creationTimestamp"),
        ],
    };
    let mut value = definition.value(&schema(cluster, config));
    value["metadata"]["labels"] = json!({ "app.kubernetes.io/name": names::APPLICATION });
    value
}

fn schema(cluster: bool, config: &Value) -> Value {
    let mut spec = Map::new();
    if cluster {
        spec.insert(
            "namespaceSelector".to_owned(),
            selector("Labels that a pod's namespace must have. Empty: all namespaces."),
        );
    }
    spec.insert("selector".to_owned(), selector("Labels that a pod must have. Empty: all pods."));
    spec.insert(
        "priority".to_owned(),
        json!({
            "description": "Among profiles of one kind that both select pods, or both do not, the one with the higher priority counts more; \
                among equals the one whose name comes later.",
            "type": "integer", "format": "int32",
        }),
    );
    spec.insert("injection".to_owned(), injection());
    spec.insert("config".to_owned(), config.clone());
    json!({
        "type": "object",
        "description": "Refines what sidecars are told, and what is injected, for the pods that it selects.",
        "required": ["spec"],
        "properties": {
            "apiVersion": { "type": "string" },
            "kind": { "type": "string" },
            "metadata": { "type": "object" },
            "spec": {
                "type": "object",
                "properties": spec,
                "x-kubernetes-validations": [{
                    "rule": "!(has(self.config) && has(self.injection) && has(self.injection.configMap))",
                    "message": "`config` and `injection.configMap` exclude one another; keep one of them",
                    "fieldPath": ".config",
                }],
            },
            "status": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": true,
                "properties": {
                    "observedGeneration": { "type": "integer", "format": "int64" },
                    "pods": { "type": "integer", "description": "Running pods that it means." },
                    "programmed": { "type": "integer", "description": "Those of them whose sidecar has taken over what holds now." },
                },
            },
        },
    })
}

fn selector(about: &str) -> Value {
    json!({
        "description": about,
        "type": "object",
        "properties": {
            "matchLabels": { "type": "object", "maxProperties": 64, "additionalProperties": { "type": "string", "maxLength": 63 } },
            "matchExpressions": {
                "type": "array",
                "maxItems": 64,
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": { "type": "string", "minLength": 1, "maxLength": 317 },
                        "operator": { "type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"] },
                        "values": { "type": "array", "maxItems": 256, "items": { "type": "string", "maxLength": 63 } },
                    },
                    "x-kubernetes-validations": [{
                        "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
                        "message": "`In` and `NotIn` take `values`, `Exists` and `DoesNotExist` take none",
                    }],
                },
            },
        },
    })
}

/// The settings of a profile file that count when a pod is made.
fn injection() -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about, "minLength": 1 });
    let absent = |about: &str| json!({ "type": "string", "description": about, "nullable": true });
    let switch = |about: &str| json!({ "type": "boolean", "description": about });
    let texts = |about: &str| json!({ "type": "array", "description": about, "items": { "type": "string" } });
    let number = |about: &str, least: u32, most: u32| json!({ "type": "integer", "format": "int64", "description": about, "minimum": least, "maximum": most });
    let word = |about: &str, words: &[&str]| json!({ "type": "string", "description": about, "enum": words });
    let object = |about: &str, properties: Value| json!({ "type": "object", "description": about, "properties": properties, "x-kubernetes-preserve-unknown-fields": true });
    let ports = "Ports and ranges.";
    object(
        "What counts when a pod is made; pods that run keep what they have.",
        json!({
            "image": text("The image of Outrigger."),
            "imagePullPolicy": word("When the kubelet fetches the image.", &["Always", "IfNotPresent", "Never"]),
            "interception": word("How connections come to Outrigger.", &["init", "self", "none"]),
            "mtls": word("What connections to the pod's ports must be, where the installation gives identities.", &["permissive", "strict", "disabled"]),
            "nativeSidecars": switch("Whether the cluster knows native sidecars."),
            "runAsUser": number("User that Outrigger runs as.", 1, u32::MAX - 1),
            "runAsGroup": number("Group that Outrigger runs as.", 1, u32::MAX - 1),
            "resources": object("What Outrigger asks for; `null` is none.", json!({
                "cpuRequest": absent("CPU that is reserved."), "cpuLimit": absent("CPU at most."),
                "memoryRequest": absent("Memory that is reserved."), "memoryLimit": absent("Memory at most."),
            })),
            "configMap": object("A ConfigMap in the pod's namespace that holds the config, instead of `config`.", json!({
                "name": text("The ConfigMap."), "key": text("The key; `outrigger.yaml` where none is given."),
            })),
            "redirect": object("What is redirected.", json!({
                "includeOutboundPorts": texts(ports), "excludeOutboundPorts": texts(ports),
                "includeOutboundCidrs": texts("Networks."), "excludeOutboundCidrs": texts("Networks."),
                "excludeOutboundUids": texts("Users."),
                "includeInboundPorts": texts(ports), "excludeInboundPorts": texts(ports),
                "redirectDns": switch("DNS over TCP, too."),
            })),
            "rewriteProbes": switch("Whether the application's probes go through Outrigger's health port."),
            "mergeMetrics": switch("Whether the application's metrics are served together with Outrigger's."),
            "holdApplication": switch("Whether containers that come after Outrigger wait until it is ready."),
            "startTimeoutSeconds": number("How long they wait.", 1, 3600),
            "logFolders": texts("Folders of log files that the application writes."),
            "secretFolders": texts("Folders that get secrets, beside those that the config names."),
            "tokens": texts("Audiences of service account tokens for Outrigger."),
            "tokenSeconds": number("How long such a token is valid.", 600, u32::MAX),
            "logLevel": word("The level of Outrigger's own log.", &["off", "error", "warn", "info", "debug", "trace"]),
            "vault": object("Where pods with annotations for vault-k8s get their secrets.", json!({
                "address": absent("Its address."), "authPath": text("Where its Kubernetes auth method is mounted."),
                "role": absent("Role."), "namespace": absent("Namespace of Vault Enterprise."), "audience": absent("Audience of the token."),
            })),
        }),
    )
}

fn config_schema() -> Value {
    let mut schema = outrigger_config::json_schema();
    if let Some(sections) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        sections.retain(|section, _| !NOT_A_SIDECARS.contains(&section.as_str()));
    }
    let mut config = structural::of(&schema);
    config["description"] = json!(
        "The sidecar's config, or a part of it: maps are merged over those of profiles that come before, lists of things with a `name` by that name, everything else is replaced."
    );
    config
}

/// The webhook that judges profiles.
pub(super) fn judging(settings: &Settings) -> Object {
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(outrigger_kubernetes::names::PROFILE_CONFIGURATION));
    metadata.insert("labels".to_owned(), Value::Object(labels()));
    if settings.webhook_certificate == WebhookCertificate::CertManager {
        let certificate = format!("{}/{}", settings.namespace, names::WEBHOOK_SECRET);
        metadata.insert("annotations".to_owned(), json!({ "cert-manager.io/inject-ca-from": certificate }));
    }
    let value = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": metadata,
        "webhooks": [{
            "name": "profiles.outrigger.dev",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {
                "service": {
                    "name": names::CONTROLLER,
                    "namespace": settings.namespace,
                    "path": outrigger_kubernetes::names::PROFILE_PATH,
                    "port": names::WEBHOOK_SERVICE_PORT,
                },
            },
            "rules": [{
                "apiGroups": ["outrigger.dev"],
                "apiVersions": ["v1alpha1"],
                "operations": ["CREATE", "UPDATE"],
                "resources": ["sidecarprofiles", "clustersidecarprofiles"],
                "scope": "*",
            }],
            "matchConditions": [{ "name": "not-being-removed", "expression": "!has(object.metadata.deletionTimestamp)" }],
            "matchPolicy": "Equivalent",
            "failurePolicy": "Fail",
            "sideEffects": "None",
            "timeoutSeconds": settings.webhook_timeout_seconds,
        }],
    });
    Object::new("Profiles are judged as they are made or changed, as `outrigger validate` judges a file.", value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_charts_copy_of_the_definitions_is_current() {
        let text = crate::write(&definitions());
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../deploy/chart/files/profiles.yaml");
        if std::env::var_os("OUTRIGGER_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        assert!(std::fs::read_to_string(&path).unwrap_or_default() == text, "run `cargo xtask bless`");
    }

    #[test]
    fn applying_a_definition_fits_into_its_own_annotation() {
        for object in definitions() {
            let bytes = object.value.to_string().len();
            assert!(bytes < 240 << 10, "{bytes} bytes, and kubectl notes what it applies in 256 KiB of annotations");
        }
    }
}
