//! What the controllers may do: as little as what they do, and why.
//!
//! In: settings. Out: the service account, its roles and what binds them. Promise: no right is for more objects or verbs than
//! somebody here uses; what may be named is named.

use serde_json::{Value, json};

use super::{Object, cluster_metadata, metadata};
use crate::names;
use crate::settings::{Settings, WebhookCertificate};

/// A rule, and why it is there.
type Rule = (&'static str, Value);

pub(super) fn objects(settings: &Settings) -> Vec<Object> {
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(settings) });
    let subject = json!([{ "kind": "ServiceAccount", "name": names::CONTROLLER, "namespace": settings.namespace }]);
    let binding = |kind: &str, role: &str, metadata: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": kind,
            "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": names::CONTROLLER },
            "subjects": subject,
        })
    };
    vec![
        Object::new("Who the controllers are to the API server.", account),
        role("What they may do in all namespaces.", "ClusterRole", cluster_metadata(), everywhere(settings)),
        Object::new("", binding("ClusterRoleBinding", "ClusterRole", cluster_metadata())),
        role("What they may do in their own namespace.", "Role", metadata(settings), at_home(settings)),
        Object::new("", binding("RoleBinding", "Role", metadata(settings))),
    ]
}

fn role(about: &'static str, kind: &str, metadata: Value, rules: Vec<Rule>) -> Object {
    let values: Vec<&Value> = rules.iter().map(|(_, rule)| rule).collect();
    let value = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": metadata,
        "rules": values,
    });
    let object = Object::new(about, value);
    rules.iter().enumerate().fold(object, |object, (at, (why, _))| object.remark(&format!("/rules/{at}"), why))
}

fn rule(group: &str, resources: &[&str], names: &[&str], verbs: &[&str]) -> Value {
    let mut rule = json!({ "apiGroups": [group], "resources": resources });
    if !names.is_empty() {
        rule["resourceNames"] = json!(names);
    }
    rule["verbs"] = json!(verbs);
    rule
}

fn everywhere(settings: &Settings) -> Vec<Rule> {
    let mut rules = vec![
        (
            "The authority has the API server judge the token that a sidecar shows.",
            rule("authentication.k8s.io", &["tokenreviews"], &[], &["create"]),
        ),
        (
            "The authority looks whether the token's pod is there; the repair loop finds pods that missed their sidecar.",
            rule("", &["pods"], &[], &["get", "list", "watch"]),
        ),
        ("Whether a pod's namespace opted in.", rule("", &["namespaces"], &[], &["get", "list", "watch"])),
        (
            "What was refused, and which pods missed their sidecar, is told at the objects that own them.",
            rule("", &["events"], &[], &["create", "patch"]),
        ),
    ];
    if settings.webhook_certificate == WebhookCertificate::Own {
        rules.push((
            "The webhook's certificate is made here, so the API server is told here whom to trust. This one alone.",
            rule(
                "admissionregistration.k8s.io",
                &["mutatingwebhookconfigurations"],
                &[names::WEBHOOK_CONFIGURATION],
                &["get", "list", "watch", "patch"],
            ),
        ));
    }
    rules
}

fn at_home(settings: &Settings) -> Vec<Rule> {
    let mut secrets = Vec::new();
    if settings.webhook_certificate == WebhookCertificate::Own {
        secrets.push(names::WEBHOOK_SECRET);
    }
    if settings.authority_secret.is_none() {
        secrets.push(names::ROOTS_SECRET);
    }
    let mut rules = Vec::new();
    if !secrets.is_empty() {
        rules.push((
            "What the controllers share: keys and certificates of their own. Kubernetes cannot tie `create` to a name.",
            rule("", &["secrets"], &[], &["create"]),
        ));
        rules.push(("These alone, and none of anybody else's.", rule("", &["secrets"], &secrets, &["get", "update"])));
    }
    rules.push((
        "One of the controllers does what is done once; the lease says which.",
        rule("coordination.k8s.io", &["leases"], &[], &["create"]),
    ));
    rules.push(("", rule("coordination.k8s.io", &["leases"], &[names::CONTROLLER], &["get", "update"])));
    rules
}
