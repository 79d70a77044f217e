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
    // As the sidecar's: what lets that in (a LimitRange, a ResourceQuota) lets this in, and it ends before that begins.
    container.insert("resources".to_owned(), resources(&settings.resources));
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

const KINDS: [&str; 2] = ["requests", "limits"];
const PULL: &str = "imagePullPolicy";

/// What we say of a container that admission plugins of the API server say where nobody does.
pub(crate) fn given(container: &Value) -> Vec<String> {
    let keys = |kind: &'static str| {
        container["resources"][kind].as_object().into_iter().flatten().map(move |(key, _)| format!("{kind}.{key}"))
    };
    let policy = container.get(PULL).map(|_| PULL.to_owned());
    KINDS.into_iter().flat_map(keys).chain(policy).collect()
}

/// Keeps what admission plugins said of a container (LimitRanger, AlwaysPullImages): they are not asked again after us.
pub(crate) fn carry_over_defaults(fresh: &mut Value, before: &Value, given_before: &[String]) {
    let ours = |key: &str| given_before.iter().any(|given| given == key);
    for kind in KINDS {
        let all = before["resources"][kind].as_object().into_iter().flatten();
        for (key, value) in all.filter(|(key, _)| !ours(&format!("{kind}.{key}"))) {
            let resources = crate::json::map_at(fresh, "resources").is_some().then(|| &mut fresh["resources"]);
            if let Some(map) = resources.and_then(|resources| crate::json::map_at(resources, kind)) {
                map.entry(key.as_str()).or_insert_with(|| value.clone());
            }
        }
    }
    let policy = before.get(PULL).filter(|_| !ours(PULL));
    if let (Some(policy), Some(container)) = (policy, fresh.as_object_mut()) {
        container.entry(PULL).or_insert_with(|| policy.clone());
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_admission_plugins_said_stays_and_what_we_said_does_not() {
        let fresh = || json!({ "name": "outrigger", "resources": { "requests": { "cpu": "10m" } } });
        let before = json!({
            "resources": { "requests": { "cpu": "20m", "memory": "1Mi" }, "limits": { "cpu": "1", "memory": "2Mi" } },
            "imagePullPolicy": "Always",
        });
        let expected = json!({ "requests": { "cpu": "10m" }, "limits": { "cpu": "1" } });
        let given = ["requests.cpu", "requests.memory", "limits.memory"].map(str::to_owned);
        let mut container = fresh();
        carry_over_defaults(&mut container, &before, &given);
        assert_eq!((&container["resources"], &container["imagePullPolicy"]), (&expected, &json!("Always")));
        let mut container = fresh();
        carry_over_defaults(&mut container, &before, &super::given(&before));
        assert_eq!(container, fresh(), "all of it was ours");
    }
}
