//! What the controllers may do: as little as what they do, and why.
//!
//! In: settings. Out: the service account, its roles and what binds them. Promise: no right is for more objects or verbs than
//! somebody here uses; what may be named is named.

use serde_json::{Value, json};

use super::{Object, cluster_metadata, metadata};
use crate::settings::{Repair, Settings, WebhookCertificate};
use outrigger_kubernetes::names;

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
    let watch = &["get", "list", "watch"];
    let mut rules = vec![
        (
            "The authority has the API server judge the token that a sidecar shows.",
            rule("authentication.k8s.io", &["tokenreviews"], &[], &["create"]),
        ),
        (
            "The authority looks whether the token's pod is there; the repair finds pods that missed their sidecar; discovery \
             tells whose pods speak mTLS.",
            rule("", &["pods"], &[], watch),
        ),
        ("Whether a pod's namespace opted in.", rule("", &["namespaces"], &[], watch)),
        (
            "Whom sidecars are to trust at first stands in a ConfigMap of each namespace that opted in. No other one can be \
             read, made or changed: by server-side apply `create` can be tied to a name.",
            rule("", &["configmaps"], &[names::TRUST_BUNDLE], &["get", "list", "watch", "create", "patch", "delete"]),
        ),
        ("Sidecars are told of services and their endpoints.", rule("", &["services"], &[], &["list", "watch"])),
        ("", rule("discovery.k8s.io", &["endpointslices"], &[], &["list", "watch"])),
        (
            "What was refused, and which pods missed their sidecar, is told at the objects that own them: the Deployment behind \
             a ReplicaSet, the CronJob behind a Job.",
            rule("events.k8s.io", &["events"], &[], &["create", "patch"]),
        ),
        ("", rule("apps", &["replicasets"], &[], &["get"])),
        ("", rule("batch", &["jobs"], &[], &["get"])),
    ];
    rules.push((
        "Which profiles there are.",
        rule("outrigger.dev", &["sidecarprofiles", "clustersidecarprofiles"], &[], watch),
    ));
    rules.push((
        "How many pods have what a profile says.",
        rule("outrigger.dev", &["sidecarprofiles/status", "clustersidecarprofiles/status"], &[], &["patch"]),
    ));
    rules.extend([
        ("Rollouts, and how they go.", rule("outrigger.dev", &["sidecarrollouts"], &[], watch)),
        ("", rule("outrigger.dev", &["sidecarrollouts/status"], &[], &["patch"])),
        (
            "Running sidecars are told of changed profiles by the annotation that their config comes from; a rollout changes their \
             image, and notes in an annotation how far the pod is. Kubernetes lets nobody change \
             more of a running pod than that, and cannot tie the right to pods of ours.",
            rule("", &["pods"], &[], &["patch"]),
        ),
        (
            "Beside the sidecar that is replaced a keeper holds its sockets.",
            rule("", &["pods/ephemeralcontainers"], &[], &["patch"]),
        ),
    ]);
    if settings.repair == Repair::Evict {
        rules.push((
            "Pods that missed their sidecar are made anew, as their disruption budgets allow (`repair: evict`).",
            rule("", &["pods/eviction"], &[], &["create"]),
        ));
    }
    let configuration = |verbs| {
        rule("admissionregistration.k8s.io", &["mutatingwebhookconfigurations"], &[names::WEBHOOK_CONFIGURATION], verbs)
    };
    let judging = |verbs| {
        let name = outrigger_kubernetes::names::PROFILE_CONFIGURATION;
        rule("admissionregistration.k8s.io", &["validatingwebhookconfigurations"], &[name], verbs)
    };
    let own = settings.webhook_certificate == WebhookCertificate::Own;
    let verbs: &[&str] = if own { &["get", "list", "watch", "patch"] } else { watch };
    rules.push(("The same where profiles are judged.", judging(verbs)));
    rules.push(match settings.webhook_certificate {
        WebhookCertificate::Own => (
            "The webhook's certificate is made here, so the API server is told here whom to trust. This one alone.",
            configuration(&["get", "list", "watch", "patch"]),
        ),
        WebhookCertificate::CertManager => {
            ("Whether the API server trusts the certificate that cert-manager made.", configuration(watch))
        }
    });
    rules
}

fn at_home(settings: &Settings) -> Vec<Rule> {
    let own_certificate = settings.webhook_certificate == WebhookCertificate::Own;
    let own_roots = settings.authority_secret.is_none();
    let mut rules = Vec::new();
    if own_certificate || own_roots {
        rules.push((
            "What the controllers share: keys and certificates of their own. Kubernetes cannot tie `create` to a name.",
            rule("", &["secrets"], &[], &["create"]),
        ));
    }
    if own_certificate {
        rules.push((
            "The webhook's authorities, and none of anybody else's secrets.",
            rule("", &["secrets"], &[names::WEBHOOK_SECRET], &["get", "list", "watch", "update"]),
        ));
    }
    if own_roots {
        rules
            .push(("The roots of all identities.", rule("", &["secrets"], &[names::ROOTS_SECRET], &["get", "update"])));
    }
    rules.push((
        "One of the controllers does what is done once; the lease says which.",
        rule("coordination.k8s.io", &["leases"], &[], &["create"]),
    ));
    rules.push(("", rule("coordination.k8s.io", &["leases"], &[names::CONTROLLER], &["get", "update"])));
    rules
}
