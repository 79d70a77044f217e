//! A pod, as far as a rollout needs it.
//!
//! In: a Pod as JSON. Out: the few facts that are decided by. Promise: of pods without the sidecar, and of those that have
//! ended, nothing is kept.

use std::collections::BTreeMap;

use outrigger_kubernetes::names::{KEEPER, SIDECAR};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::moment::Moment;
use crate::record::{ANNOTATION, Record};

/// What the injector did.
const INJECTED: &str = "outrigger.dev/status";

/// A pod with a sidecar.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The version of the object that this was read from.
    pub version: String,
    /// When it was made.
    pub created: Moment,
    /// What it is one of: such as `Deployment/web`, or itself.
    pub workload: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is about to go.
    pub leaving: bool,
    /// Whether its containers were started.
    pub running: bool,
    /// Whether it is ready.
    pub ready: bool,
    /// Its address.
    pub ip: String,
    /// The sidecar.
    pub sidecar: Sidecar,
    /// Restarts of all other containers that stay.
    pub others: BTreeMap<String, u32>,
    /// All keepers that it ever had.
    pub keepers: Vec<Keeper>,
    /// The socket where keepers meet the sidecar; none where they cannot.
    pub socket: Option<String>,
    /// Its part in a rollout.
    pub record: Option<Record>,
    /// What the sidecar that runs now has carried, where that was asked. Not in the pod itself.
    pub traffic: Option<Traffic>,
    /// Why the API server would not take a change of it, since we lead. Not in the pod itself.
    pub refused: Option<String>,
}

/// The sidecar in a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Sidecar {
    /// Where it stands in the spec, such as `/spec/initContainers/0`.
    pub place: String,
    /// Its image by the spec.
    pub image: String,
    /// Its pull policy.
    pub pull_policy: String,
    /// The user it runs as.
    pub user: Option<u64>,
    /// The group it runs as.
    pub group: Option<u64>,
    /// The volume in which the hand-over's socket is, and where it is mounted.
    pub volume: Option<(String, String)>,
    /// What the kubelet tells of it.
    pub state: SidecarState,
}

/// What the kubelet tells of a sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SidecarState {
    /// Its container's ID; empty when there is none.
    pub container: String,
    /// Since when it runs.
    pub running: Option<Moment>,
    /// Whether it is ready.
    pub ready: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// Why it does not run: a word such as `ImagePullBackOff`, and more.
    pub waiting: Option<(String, String)>,
}

/// An ephemeral container that holds sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keeper {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// How it is.
    pub state: KeeperState,
}

/// How a keeper is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeeperState {
    /// It was not started yet: a word such as `ErrImagePull`, and more.
    Waiting(String, String),
    /// It runs since then.
    Running(Moment),
    /// It ended, with this exit code.
    Ended(i64),
}

/// What a sidecar has carried since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub struct Traffic {
    /// Requests.
    pub requests: u64,
    /// Those that ended with a status from 500 on.
    pub errors: u64,
}

impl Traffic {
    /// As the sidecar's metrics tell it, in Prometheus' text format.
    pub fn read(metrics: &str) -> Self {
        let mut traffic = Self { requests: 0, errors: 0 };
        for line in metrics.lines() {
            let Some(rest) = line.strip_prefix("outrigger_http_requests_total{") else { continue };
            let Some((labels, value)) = rest.rsplit_once("} ") else { continue };
            let count = value.split(' ').next().and_then(|value| value.parse().ok()).unwrap_or(0);
            traffic.requests += count;
            let code = labels.split("code=\"").nth(1);
            if code.is_some_and(|code| code.starts_with('5')) {
                traffic.errors += count;
            }
        }
        traffic
    }
}

impl Pod {
    /// What matters of a pod; `None` when it has no sidecar, or has ended.
    pub fn read(pod: &Value) -> Option<Self> {
        let (metadata, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
        let injected = metadata["annotations"][INJECTED].as_str()?;
        if matches!(status["phase"].as_str(), Some("Succeeded" | "Failed")) {
            return None;
        }
        let socket = serde_json::from_str::<Value>(injected).ok();
        let socket = socket.and_then(|record| record["handover"].as_str().map(str::to_owned));
        let sidecar = sidecar(spec, status, socket.as_deref())?;
        let record = metadata["annotations"][ANNOTATION].as_str();
        let is_ready = |one: &Value| one["type"] == "Ready" && one["status"] == "True";
        Some(Self {
            namespace: text(&metadata["namespace"]),
            name: text(&metadata["name"]),
            uid: text(&metadata["uid"]),
            version: text(&metadata["resourceVersion"]),
            created: moment(&metadata["creationTimestamp"]).unwrap_or_default(),
            workload: workload(metadata),
            labels: strings(&metadata["labels"]),
            leaving: metadata["deletionTimestamp"].is_string(),
            running: status["phase"] == "Running",
            ready: list(&status["conditions"]).iter().any(is_ready),
            ip: text(&status["podIP"]),
            others: others(spec, status),
            keepers: keepers(spec, status),
            // A keeper needs the socket's folder.
            socket: socket.filter(|_| sidecar.volume.is_some()),
            sidecar,
            record: record.and_then(|text| serde_json::from_str(text).ok()),
            traffic: None,
            refused: None,
        })
    }

    /// A name for the next keeper: each roll needs a fresh one, for ephemeral containers stay.
    pub(crate) fn next_keeper(&self) -> String {
        let number = |keeper: &Keeper| keeper.name.strip_prefix(KEEPER)?.parse::<u32>().ok();
        let most = self.keepers.iter().filter_map(number).max().unwrap_or(0);
        format!("{KEEPER}{}", most.saturating_add(1))
    }
}

fn sidecar(spec: &Value, status: &Value, socket: Option<&str>) -> Option<Sidecar> {
    let lists = [("initContainers", "initContainerStatuses"), ("containers", "containerStatuses")];
    let (place, container, statuses) = lists.iter().find_map(|(name, statuses)| {
        let (at, container) = list(&spec[*name]).iter().enumerate().find(|(_, one)| one["name"] == SIDECAR)?;
        Some((format!("/spec/{name}/{at}"), container, &status[*statuses]))
    })?;
    let told = list(statuses).iter().find(|one| one["name"] == SIDECAR);
    let context = &container["securityContext"];
    // One that makes the rules itself begins as root, and goes on as the user that its first arguments name.
    let argument = |one: &Value| one.as_str()?.strip_prefix("--proxy-uid=")?.parse().ok();
    let becomes = list(&container["args"]).iter().take_while(|one| *one != "--").find_map(argument);
    let volume = socket.and_then(|socket| {
        let mounts = list(&container["volumeMounts"]).iter().filter_map(|mount| {
            let path = mount["mountPath"].as_str()?;
            let within = socket.strip_prefix(path.trim_end_matches('/'))?.starts_with('/');
            (within && mount["subPath"].is_null()).then(|| (text(&mount["name"]), path.to_owned()))
        });
        mounts.max_by_key(|(_, path)| path.len())
    });
    Some(Sidecar {
        place,
        image: text(&container["image"]),
        pull_policy: text(&container["imagePullPolicy"]),
        user: becomes.or_else(|| context["runAsUser"].as_u64()),
        group: context["runAsGroup"].as_u64(),
        volume,
        state: told.map(sidecar_state).unwrap_or_default(),
    })
}

fn sidecar_state(told: &Value) -> SidecarState {
    let waiting = &told["state"]["waiting"];
    SidecarState {
        container: text(&told["containerID"]),
        running: moment(&told["state"]["running"]["startedAt"]),
        ready: told["ready"] == true,
        restarts: count(&told["restartCount"]),
        waiting: waiting.is_object().then(|| (text(&waiting["reason"]), text(&waiting["message"]))),
    }
}

fn others(spec: &Value, status: &Value) -> BTreeMap<String, u32> {
    let stays = |one: &&Value| one["restartPolicy"] == "Always";
    let names = list(&spec["initContainers"]).iter().filter(stays).chain(list(&spec["containers"]));
    let statuses = list(&status["initContainerStatuses"]).iter().chain(list(&status["containerStatuses"]));
    let statuses: Vec<&Value> = statuses.collect();
    let restarts = |name: &str| statuses.iter().find(|one| one["name"] == name).map(|one| count(&one["restartCount"]));
    names
        .filter_map(|one| one["name"].as_str())
        .filter(|name| *name != SIDECAR)
        .map(|name| (name.to_owned(), restarts(name).unwrap_or(0)))
        .collect()
}

fn keepers(spec: &Value, status: &Value) -> Vec<Keeper> {
    let ours = |one: &&Value| one["name"].as_str().is_some_and(|name| name.starts_with(KEEPER));
    let told = list(&status["ephemeralContainerStatuses"]);
    let keeper = |one: &Value| {
        let state = told.iter().find(|told| told["name"] == one["name"]).map(|told| &told["state"]);
        let state = match state {
            Some(state) if state["running"].is_object() => {
                KeeperState::Running(moment(&state["running"]["startedAt"]).unwrap_or_default())
            }
            Some(state) if state["terminated"].is_object() => {
                KeeperState::Ended(state["terminated"]["exitCode"].as_i64().unwrap_or(-1))
            }
            Some(state) => KeeperState::Waiting(text(&state["waiting"]["reason"]), text(&state["waiting"]["message"])),
            None => KeeperState::Waiting(String::new(), String::new()),
        };
        Keeper { name: text(&one["name"]), image: text(&one["image"]), state }
    };
    list(&spec["ephemeralContainers"]).iter().filter(ours).map(keeper).collect()
}

/// Pods of one Deployment belong together, whichever of its ReplicaSets they are of.
fn workload(metadata: &Value) -> String {
    let owner = list(&metadata["ownerReferences"]).iter().find(|one| one["controller"] == true);
    let Some(owner) = owner else { return format!("Pod/{}", text(&metadata["name"])) };
    let (kind, name) = (text(&owner["kind"]), text(&owner["name"]));
    let hash = metadata["labels"]["pod-template-hash"].as_str();
    match hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-')) {
        Some(deployment) if kind == "ReplicaSet" => format!("Deployment/{deployment}"),
        _ => format!("{kind}/{name}"),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn count(value: &Value) -> u32 {
    value.as_u64().and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
}

fn moment(value: &Value) -> Option<Moment> {
    Moment::read(value.as_str()?)
}

fn strings(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({
            "metadata": {
                "namespace": "shop", "name": "web-5d9-x", "uid": "u", "resourceVersion": "7",
                "labels": { "pod-template-hash": "5d9" },
                "annotations": { INJECTED: "{\"handover\":\"/run/outrigger/keeper.sock\"}" },
                "ownerReferences": [{ "kind": "ReplicaSet", "name": "web-5d9", "controller": true }],
            },
            "spec": {
                "initContainers": [
                    { "name": "setup" },
                    { "name": "outrigger", "image": "o:1", "args": ["init", "--proxy-uid=15000", "--", "run"],
                      "restartPolicy": "Always", "securityContext": { "runAsUser": 0, "runAsGroup": 15000 },
                      "volumeMounts": [{ "name": "h", "mountPath": "/run/outrigger" }, { "name": "c", "mountPath": "/run/out" }] },
                    { "name": "helper", "restartPolicy": "Always" },
                ],
                "containers": [{ "name": "app" }],
                "ephemeralContainers": [{ "name": "outrigger-keeper-2", "image": "o:2" }, { "name": "debug" }],
            },
            "status": {
                "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }],
                "initContainerStatuses": [{ "name": "outrigger", "containerID": "c://1", "ready": true, "restartCount": 3,
                    "state": { "running": { "startedAt": "1970-01-01T00:00:10Z" } } }],
                "containerStatuses": [{ "name": "app", "restartCount": 1 }],
                "ephemeralContainerStatuses": [{ "name": "outrigger-keeper-2", "state": { "terminated": { "exitCode": 4 } } }],
            },
        })
    }

    #[test]
    fn what_matters_of_a_pod() {
        let read = Pod::read(&pod()).unwrap();
        assert_eq!((read.workload.as_str(), read.ready, read.running), ("Deployment/web", true, true));
        let sidecar = &read.sidecar;
        assert_eq!(
            (sidecar.place.as_str(), sidecar.user, sidecar.group),
            ("/spec/initContainers/1", Some(15000), Some(15000))
        );
        assert_eq!(sidecar.volume, Some(("h".to_owned(), "/run/outrigger".to_owned())));
        assert_eq!((sidecar.state.restarts, sidecar.state.running), (3, Some(Moment(10))));
        assert_eq!(read.others, BTreeMap::from([("app".to_owned(), 1), ("helper".to_owned(), 0)]));
        assert_eq!(read.keepers.len(), 1, "others' ephemeral containers are none of ours");
        assert_eq!(
            (&read.keepers[0].state, read.next_keeper().as_str()),
            (&KeeperState::Ended(4), "outrigger-keeper-3")
        );
        assert_eq!(read.socket.as_deref(), Some("/run/outrigger/keeper.sock"));
    }

    #[test]
    fn what_is_no_pod_of_ours() {
        let mut plain = pod();
        plain["metadata"]["annotations"] = Value::Null;
        let mut ended = pod();
        ended["status"]["phase"] = "Succeeded".into();
        let mut gone = pod();
        gone["spec"]["initContainers"] = json!([]);
        for (name, pod) in [("not injected", plain), ("ended", ended), ("no sidecar", gone), ("nothing", Value::Null)] {
            assert_eq!(Pod::read(&pod), None, "{name}");
        }
        let mut nowhere = pod();
        nowhere["spec"]["initContainers"][1]["volumeMounts"] = json!([]);
        assert_eq!(Pod::read(&nowhere).unwrap().socket, None, "a keeper could not reach the socket");
    }

    #[test]
    fn requests_are_counted() {
        let text = "# TYPE x\noutrigger_http_requests_total{direction=\"inbound\",code=\"200\"} 7\n\
                    outrigger_http_requests_total{code=\"503\",route=\"a\"} 3\noutrigger_http_requests_total{code=\"404\"} 1 170\nother 4\n";
        assert_eq!(Traffic::read(text), Traffic { requests: 11, errors: 3 });
    }
}
