//! The webhook's certificate, where cert-manager makes it.

use serde_json::{Value, json};

use super::{Object, labels, metadata};
use crate::settings::Settings;
use outrigger_kubernetes::names;

/// An issuer, unless there is one, and the certificate.
pub(super) fn objects(settings: &Settings) -> Vec<Object> {
    let service = format!("{}.{}.svc", names::CONTROLLER, settings.namespace);
    let issuer = match &settings.cert_manager_issuer {
        Some(issuer) => json!({ "kind": issuer.kind, "name": issuer.name }),
        None => json!({ "kind": "Issuer", "name": names::CONTROLLER }),
    };
    let certificate = json!({
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": { "name": names::WEBHOOK_SECRET, "namespace": settings.namespace, "labels": labels() },
        "spec": {
            "secretName": names::WEBHOOK_SECRET,
            "issuerRef": issuer,
            "dnsNames": [service],
            "usages": ["server auth"],
            "privateKey": { "algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always" },
        },
    });
    let mut all = Vec::new();
    if settings.cert_manager_issuer.is_none() {
        let value: Value = json!({
            "apiVersion": "cert-manager.io/v1",
            "kind": "Issuer",
            "metadata": metadata(settings),
            "spec": { "selfSigned": {} },
        });
        all.push(Object::new("Signs the webhook's certificate with itself.", value));
    }
    all.push(Object::new("The certificate that the controllers show to the API server.", certificate));
    all
}
