//! The containers that are added.
//!
//! In: settings, and what follows from the pod. Out: the sidecar and, if connections are to be
//! redirected, the init container that does it. Promise: neither has a privilege it does not
//! need; without redirection the pod passes Pod Security's level `restricted`.

use serde_json::{Map, Value, json};

use crate::config::VARIABLES;
use crate::settings::{Interception, PullPolicy, Resources, Settings};
use crate::{INIT, SIDECAR};

/// Where the executable is in the image.
const EXECUTABLE: &str = "/outrigger";
/// Where the config is mounted, labels and annotations of the pod beside it.
pub(crate) const CONFIG_FOLDER: &str = "/etc/outrigger";

/// Redirects, and ends. Root, for capabilities reach nobody else in a container.
pub(crate) fn init(settings: &Settings) -> Value {
    let mut container = base(INIT, settings);
    container.insert("args".to_owned(), json!(redirecting(settings)));
    container.insert(
        "resources".to_owned(),
        json!({ "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": "64Mi" } }),
    );
    container.insert(
        "securityContext".to_owned(),
        json!({
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        }),
    );
    Value::Object(container)
}

fn redirecting(settings: &Settings) -> Vec<String> {
    let mut args = vec!["init".to_owned(), format!("--proxy-uid={}", settings.run_as_user)];
    args.extend(settings.redirect.flags());
    args
}

/// The sidecar; `probes` is what it asks the application for the kubelet, `mounts` what it sees.
pub(crate) fn sidecar(settings: &Settings, probes: &Map<String, Value>, mounts: Vec<Value>) -> Value {
    let mut container = base(SIDECAR, settings);
    let own = settings.interception == Interception::Own;
    // `init -- run`: makes the rules, becomes the user, gives every capability up, goes on.
    let mut args = if own { redirecting(settings) } else { Vec::new() };
    args.extend(own.then(|| "--".to_owned()));
    args.extend(["run".to_owned(), "-c".to_owned(), format!("{CONFIG_FOLDER}/outrigger.yaml")]);
    container.insert("args".to_owned(), json!(args));
    if settings.native_sidecars {
        container.insert("restartPolicy".to_owned(), json!("Always"));
    }
    let field = |(name, path, _): &(&str, &str, &str)| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut env: Vec<Value> = VARIABLES.iter().map(field).collect();
    if !probes.is_empty() {
        let text = Value::Object(probes.clone()).to_string();
        // Kubernetes fills in `$(NAME)`; `$$` stands for one `$`.
        env.push(json!({ "name": PROBES, "value": text.replace('$', "$$") }));
    }
    container.insert("env".to_owned(), json!(env));
    container.insert("resources".to_owned(), resources(&settings.resources));
    container.insert(
        "readinessProbe".to_owned(),
        json!({ "httpGet": { "path": "/readyz", "port": crate::probes::PORT }, "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 3 }),
    );
    if settings.hold_application {
        // The kubelet starts no later container before this has ended: it costs less than a startup probe.
        let timeout = format!("--timeout={}s", settings.start_timeout_seconds);
        container.insert(
            "lifecycle".to_owned(),
            json!({ "postStart": { "exec": { "command": [EXECUTABLE, "wait", timeout] } } }),
        );
    }
    container.insert(
        "securityContext".to_owned(),
        json!({
            "runAsUser": if own { 0 } else { settings.run_as_user },
            "runAsGroup": settings.run_as_group,
            "runAsNonRoot": !own,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": if own {
                json!({ "drop": ["ALL"], "add": ["NET_ADMIN", "SETUID", "SETPCAP"] })
            } else {
                json!({ "drop": ["ALL"] })
            },
            "seccompProfile": { "type": "RuntimeDefault" },
        }),
    );
    container.insert("volumeMounts".to_owned(), Value::Array(mounts));
    container.insert("terminationMessagePolicy".to_owned(), json!("FallbackToLogsOnError"));
    Value::Object(container)
}

/// The variable that holds what to ask.
const PROBES: &str = "OUTRIGGER_PROBES";

fn base(name: &str, settings: &Settings) -> Map<String, Value> {
    let mut container = Map::new();
    container.insert("name".to_owned(), json!(name));
    container.insert("image".to_owned(), json!(settings.image));
    let policy = settings.image_pull_policy.map(|policy| match policy {
        PullPolicy::Always => "Always",
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Never => "Never",
    });
    if let Some(policy) = policy {
        container.insert("imagePullPolicy".to_owned(), json!(policy));
    }
    container
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

/// Keeps what others added to a container of ours since: variables, and mounts of volumes that are there.
pub(crate) fn carry_over(fresh: &mut Value, before: &Value, volumes: &[Value]) {
    let has = |list: &[Value], key: &str, item: &Value| list.iter().any(|one| one[key] == item[key]);
    for (list, key) in [("env", "name"), ("volumeMounts", "mountPath")] {
        let foreign = crate::json::items(before, list).iter().filter(|item| match list {
            "env" => !crate::json::name(item).starts_with("OUTRIGGER_"),
            _ => has(volumes, "name", item) && !crate::json::name(item).starts_with("outrigger-"),
        });
        let foreign: Vec<Value> =
            foreign.filter(|item| !has(crate::json::items(fresh, list), key, item)).cloned().collect();
        if !foreign.is_empty()
            && let Some(own) = crate::json::list_at(fresh, list)
        {
            own.extend(foreign);
        }
    }
}
