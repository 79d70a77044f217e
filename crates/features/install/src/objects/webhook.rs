//! When the API server asks the controllers about a pod.
//!
//! In: settings. Out: the webhook configuration. Promise: pods of namespaces that did not opt in never wait for us, nor do
//! those of the system or our own; whoever is left alone anyway is not asked about.

use serde_json::{Map, Value, json};

use super::{Object, labels};
use crate::settings::{FailurePolicy, Settings, WebhookCertificate};
use outrigger_kubernetes::names;

pub(super) fn object(settings: &Settings) -> Object {
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(names::WEBHOOK_CONFIGURATION));
    metadata.insert("labels".to_owned(), Value::Object(labels()));
    if settings.webhook_certificate == WebhookCertificate::CertManager {
        let certificate = format!("{}/{}", settings.namespace, names::WEBHOOK_SECRET);
        metadata.insert("annotations".to_owned(), json!({ "cert-manager.io/inject-ca-from": certificate }));
    }
    let named =
        |operator: &str, values: &[&str]| json!({ "key": names::INJECT_LABEL, "operator": operator, "values": values });
    let asks = named("In", &["enabled", "true"]);
    let declines = named("NotIn", &["disabled", "false"]);
    let silent = named("NotIn", &["enabled", "true"]);
    let of_namespaces = webhook(settings, names::NAMESPACE_WEBHOOK, settings.failure_policy, &asks, &declines);
    let of_pods = webhook(settings, names::POD_WEBHOOK, FailurePolicy::Ignore, &silent, &asks);
    let value = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": metadata,
        "webhooks": [of_namespaces, of_pods],
    });
    Object::new(
        "When the API server asks the controllers about a pod. Whom to trust (`caBundle`) is filled in later, by the \
         controllers or cert-manager; applying this again leaves it.",
        value,
    )
    .remark("/webhooks/0", "All pods of namespaces that opted in, but for pods that opt out.")
    .remark(
        "/webhooks/1",
        "Pods that opt in by a label of their own, in namespaces that do not. They never wait for us.",
    )
    .remark(
        "/webhooks/0/matchConditions",
        "Pods that would be left alone anyway. Whoever asks for a sidecar is told why there is none.",
    )
    .remark("/webhooks/0/reinvocationPolicy", "Containers that other webhooks add later are served, too.")
}

fn webhook(settings: &Settings, name: &str, policy: FailurePolicy, of_namespace: &Value, of_pod: &Value) -> Value {
    let mut excluded: Vec<&str> = names::SYSTEM_NAMESPACES.to_vec();
    excluded.push(&settings.namespace);
    let not_these = json!({ "key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": excluded });
    json!({
        "name": name,
        "admissionReviewVersions": ["v1"],
        "clientConfig": {
            "service": {
                "name": names::CONTROLLER,
                "namespace": settings.namespace,
                "path": names::WEBHOOK_PATH,
                "port": names::WEBHOOK_SERVICE_PORT,
            },
        },
        "rules": [{
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["pods"],
            "scope": "Namespaced",
        }],
        "namespaceSelector": { "matchExpressions": [of_namespace, not_these] },
        "objectSelector": { "matchExpressions": [of_pod] },
        "matchConditions": conditions(),
        "matchPolicy": "Equivalent",
        "failurePolicy": match policy {
            FailurePolicy::Fail => "Fail",
            FailurePolicy::Ignore => "Ignore",
        },
        "reinvocationPolicy": "IfNeeded",
        "sideEffects": "NoneOnDryRun",
        "timeoutSeconds": settings.webhook_timeout_seconds,
    })
}

/// Expressions that all must hold for the API server to ask; each is one reason to leave a pod alone.
fn conditions() -> Value {
    const WORD: &str = "'outrigger.dev/inject'";
    let annotated = format!("has(object.metadata.annotations) && {WORD} in object.metadata.annotations");
    let labelled = format!("has(object.metadata.labels) && {WORD} in object.metadata.labels");
    json!([
        {
            "name": "not-opted-out-by-annotation",
            "expression": format!(
                "({labelled}) || !({annotated} && object.metadata.annotations[{WORD}] in ['disabled', 'false'])"
            ),
        },
        {
            "name": "not-on-the-network-of-its-node",
            "expression": format!(
                "!(has(object.spec.hostNetwork) && object.spec.hostNetwork) || ({labelled}) || ({annotated})"
            ),
        },
        {
            "name": "not-the-mirror-of-a-static-pod",
            "expression":
                "!(has(object.metadata.annotations) && 'kubernetes.io/config.mirror' in object.metadata.annotations)",
        },
    ])
}
