//! Pods with the sidecar, written by hand as the injector would write them.
//!
//! In: the application's containers. Out: a pod's spec. Promise: the application's containers are not changed.

use outrigger_e2e::{KubeNamespace, outrigger_image};
use serde_json::{Value, json};

/// How a pod's connections come to the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interception {
    /// By rules that an init container makes.
    Init,
    /// By rules that the sidecar makes before it gives its privileges up.
    Own,
    /// The application calls the sidecar, by address: no rules, no privilege.
    Explicit,
}

/// The sidecar's user.
pub(crate) const PROXY: u32 = 65_532;

/// A config that takes all connections that are redirected, and sends them on to where they wanted to go.
pub(crate) const REDIRECTED: &str = "\
runtime: { shutdownBudget: 3s, flushBudget: 1s }
proxy:
  listeners:
  - { name: out, direction: outbound, address: \"0.0.0.0:15001\", protocol: auto, redirected: true }
  - { name: in, direction: inbound, address: \"0.0.0.0:15006\", protocol: auto, redirected: true }
";

/// Gives the namespace a config for sidecars.
#[track_caller]
pub(crate) fn config(namespace: &KubeNamespace, name: &str, config: &str) {
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "outrigger.yaml": config },
    });
    namespace.apply(&map.to_string());
}

/// A container of the application's image.
pub(crate) fn app(name: &str, arguments: &[&str]) -> Value {
    json!({ "name": name, "image": "localhost/app:1", "imagePullPolicy": "Never", "args": arguments })
}

/// A server of the application's image.
pub(crate) fn server(name: &str) -> Value {
    app("app", &["serve", "-name", name])
}

/// A pod's spec: the application's containers, and the sidecar with a config of the namespace.
pub(crate) fn spec(interception: Interception, config: &str, containers: Vec<Value>) -> Value {
    let mut before = Vec::new();
    if interception == Interception::Init {
        let mut context = restricted(0);
        context["runAsNonRoot"] = false.into();
        context["capabilities"]["add"] = json!(["NET_ADMIN"]);
        before.push(json!({
            "name": "outrigger-init", "image": outrigger_image(), "imagePullPolicy": "Never", "args": ["init"],
            "securityContext": context,
        }));
    }
    before.push(sidecar(interception));
    json!({
        "terminationGracePeriodSeconds": 5,
        "initContainers": before,
        "containers": containers,
        "volumes": [{ "name": "outrigger-config", "configMap": { "name": config } }],
    })
}

fn sidecar(interception: Interception) -> Value {
    let run = ["run", "--config", "/etc/outrigger/outrigger.yaml"];
    let (arguments, context) = match interception {
        Interception::Own => {
            let mut context = restricted(0);
            context["runAsNonRoot"] = false.into();
            context["capabilities"]["add"] = json!(["NET_ADMIN", "SETUID", "SETPCAP"]);
            ([&["init", "--"], &run[..]].concat(), context)
        }
        Interception::Init | Interception::Explicit => (run.to_vec(), restricted(PROXY)),
    };
    json!({
        "name": "outrigger", "image": outrigger_image(), "imagePullPolicy": "Never", "restartPolicy": "Always",
        "args": arguments,
        "securityContext": context,
        // The barrier: containers behind this one start when it is ready.
        "lifecycle": { "postStart": { "exec": { "command": ["/outrigger", "wait", "--timeout", "60s"] } } },
        "readinessProbe": { "httpGet": { "path": "/readyz", "port": 15021 }, "periodSeconds": 2 },
        "volumeMounts": [{ "name": "outrigger-config", "mountPath": "/etc/outrigger" }],
    })
}

/// What the Pod Security level `restricted` asks for.
fn restricted(user: u32) -> Value {
    json!({
        "runAsUser": user, "runAsGroup": PROXY, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// A pod.
pub(crate) fn pod(name: &str, spec: &Value) -> String {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": name } }, "spec": spec,
    });
    pod.to_string()
}

/// A Service `NAME-service`, from port 80, to a pod's port.
pub(crate) fn service(name: &str, port: u16) -> String {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": format!("{name}-service") },
        "spec": { "selector": { "app": name }, "ports": [{ "port": 80, "targetPort": port }] },
    });
    service.to_string()
}

/// A pod without a sidecar, to look from outside.
#[track_caller]
pub(crate) fn plain(namespace: &KubeNamespace, name: &str) {
    let spec = json!({ "terminationGracePeriodSeconds": 1, "containers": [server(name)] });
    namespace.apply(&pod(name, &spec));
}

/// How many connections a listener of a pod's sidecar has taken so far, as the pod's application can ask.
pub(crate) fn taken(namespace: &KubeNamespace, pod: &str, listener: &str) -> anyhow::Result<u64> {
    let listener = format!("listener=\"{listener}\"");
    sum(namespace, pod, "outrigger_downstream_connections_total{", |labels| labels.contains(&listener))
}

/// How many requests the sidecar that runs now in a pod has carried.
pub(crate) fn requests(namespace: &KubeNamespace, pod: &str) -> anyhow::Result<u64> {
    sum(namespace, pod, "outrigger_http_requests_total{", |_| true)
}

fn sum(namespace: &KubeNamespace, pod: &str, family: &str, of: impl Fn(&str) -> bool) -> anyhow::Result<u64> {
    let url = "http://127.0.0.1:15000/metrics";
    let text = namespace.exec(&format!("{pod} -c app"), &["wget", "-q", "-O", "-", url])?;
    let series = text.lines().filter(|line| line.starts_with(family)).filter_map(|line| line.rsplit_once(' '));
    Ok(series.filter(|(labels, _)| of(labels)).filter_map(|(_, value)| value.parse::<u64>().ok()).sum())
}
