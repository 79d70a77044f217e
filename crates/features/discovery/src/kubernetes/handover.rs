//! Whether a pod's sidecar is being replaced, while its keeper holds the sockets.
//!
//! In: a pod. Out: the hand-over that it is in, if any. Promise: only a pod whose application goes on is in one. Kubernetes counts
//! such a pod as unready as soon as its sidecar ends, though whoever connects to it is served: by the next sidecar, in a moment.
//! How long that is believed is the index's to say. No I/O.

use outrigger_kubernetes::names::{KEEPER, SIDECAR};
use serde_json::Value;

use super::projection::list;

/// A hand-over of sockets from one sidecar to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HandOver {
    /// Which one: the number of its keeper.
    pub(crate) keeper: u32,
    /// How far it is.
    pub(crate) stage: Stage,
    /// How the application is.
    pub(crate) application: Application,
}

/// How far a hand-over is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A keeper is there: the sidecar is about to end, or has ended.
    Kept,
    /// The next sidecar has taken the sockets, and said that it is ready.
    Taken,
}

/// How the application of a pod in a hand-over is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Application {
    /// All of its containers are ready.
    Ready,
    /// They run, but some count as unready, perhaps for their probes go through the sidecar.
    Unsure,
    /// It does not serve, or somebody says so.
    Away,
}

impl HandOver {
    /// The hand-over that a pod is in, or was in last.
    pub(crate) fn of(pod: &Value) -> Option<Self> {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        if !pod["metadata"]["deletionTimestamp"].is_null() || status["phase"] != "Running" {
            return None;
        }
        let number = |one: &Value| one["name"].as_str()?.strip_prefix(KEEPER)?.parse::<u32>().ok();
        let keepers = list(&status["ephemeralContainerStatuses"]).iter().filter_map(|one| Some((number(one)?, one)));
        let (keeper, last) = keepers.max_by_key(|(number, _)| *number)?;
        let ended = &last["state"]["terminated"];
        let stage = match () {
            () if last["state"]["running"].is_object() => Stage::Kept,
            // Any other code says that the sockets are nobody's.
            () if ended["exitCode"] == 0 => Stage::Taken,
            () => return None,
        };
        let application = application(spec, status, stage).unwrap_or(Application::Away);
        Some(Self { keeper, stage, application })
    }
}

/// How the application is; `None` when something is not told of it.
fn application(spec: &Value, status: &Value, stage: Stage) -> Option<Application> {
    let sidecar = find(status, SIDECAR)?;
    let runs = |one: &Value| one["state"]["running"].is_object();
    let others: Vec<&Value> = applications(spec).map(|name| find(status, name)).collect::<Option<_>>()?;
    let lost = stage == Stage::Taken && !runs(sidecar);
    if lost || !others.iter().all(|one| runs(one)) || !gates_are_open(spec, status) {
        return Some(Application::Away);
    }
    if others.iter().all(|one| one["ready"] == true) {
        return Some(Application::Ready);
    }
    // While the sidecar is well, what probes say is so.
    let unsure = stage == Stage::Taken || sidecar["ready"] != true;
    Some(if unsure { Application::Unsure } else { Application::Away })
}

/// Containers that go on while the sidecar is replaced.
fn applications(spec: &Value) -> impl Iterator<Item = &str> {
    let stays = |one: &&Value| one["restartPolicy"] == "Always";
    let all = list(&spec["initContainers"]).iter().filter(stays).chain(list(&spec["containers"]));
    all.filter_map(|one| one["name"].as_str()).filter(|name| *name != SIDECAR)
}

/// What the kubelet tells of a container.
fn find<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let all = ["initContainerStatuses", "containerStatuses"].into_iter().flat_map(|lists| list(&status[lists]));
    all.into_iter().find(|one| one["name"] == name)
}

/// Whether nobody else says that the pod is not ready.
fn gates_are_open(spec: &Value, status: &Value) -> bool {
    list(&spec["readinessGates"]).iter().all(|gate| {
        let told = |one: &&Value| one["type"] == gate["conditionType"] && one["status"] == "True";
        list(&status["conditions"]).iter().any(|one| told(&one))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Its sidecar ended a moment ago, and everything else is well.
    fn pod() -> Value {
        json!({
            "metadata": {},
            "spec": {
                "initContainers": [
                    { "name": "setup" },
                    { "name": "outrigger", "restartPolicy": "Always" }, { "name": "helper", "restartPolicy": "Always" },
                ],
                "containers": [{ "name": "app" }],
            },
            "status": {
                "phase": "Running",
                "initContainerStatuses": [
                    { "name": "setup", "ready": true, "state": { "terminated": { "exitCode": 0 } } },
                    { "name": "outrigger", "ready": false, "state": { "waiting": {} } },
                    { "name": "helper", "ready": true, "state": { "running": {} } },
                ],
                "containerStatuses": [{ "name": "app", "ready": true, "state": { "running": {} } }],
                "ephemeralContainerStatuses": [
                    { "name": "outrigger-keeper-9", "state": { "terminated": { "exitCode": 4 } } },
                    { "name": "outrigger-keeper-10", "state": { "running": {} } },
                    { "name": "debug", "state": { "running": {} } },
                ],
            },
        })
    }

    #[test]
    fn a_pod_is_in_a_hand_over_while_its_application_goes_on() {
        let kept = |application| Some((10, Stage::Kept, application));
        let (ready, unsure, away) = (kept(Application::Ready), kept(Application::Unsure), kept(Application::Away));
        let taken = |application| Some((10, Stage::Taken, application));
        let app = "/status/containerStatuses/0";
        let sidecar = "/status/initContainerStatuses/1";
        let keeper = "/status/ephemeralContainerStatuses/1/state";
        let (running, up) =
            (json!({ "running": {} }), json!({ "name": "outrigger", "ready": true, "state": { "running": {} } }));
        let ended = |code: u8| json!({ "terminated": { "exitCode": code } });
        let app_is = |ready: bool, state: Value| json!({ "name": "app", "ready": ready, "state": state });
        let gate = json!([{ "conditionType": "test/gate" }]);
        let open = json!([{ "type": "test/gate", "status": "True" }]);
        let rows = vec![
            ("the sidecar has ended", vec![], ready),
            ("it is about to end", vec![(sidecar, up.clone())], ready),
            ("a probe could not go through it", vec![(app, app_is(false, running.clone()))], unsure),
            ("a probe says no", vec![(sidecar, up.clone()), (app, app_is(false, running.clone()))], away),
            ("the application has ended", vec![(app, app_is(false, ended(1)))], away),
            ("of the application nothing is told", vec![("/status/containerStatuses", json!([]))], away),
            ("of the sidecar nothing is told", vec![("/status/initContainerStatuses", json!([]))], away),
            (
                "another sidecar is not ready",
                vec![("/status/initContainerStatuses/2/ready", json!(false)), (sidecar, up.clone())],
                away,
            ),
            ("the next one has taken over", vec![(keeper, ended(0)), (sidecar, up.clone())], taken(Application::Ready)),
            ("and has ended since", vec![(keeper, ended(0))], taken(Application::Away)),
            ("nobody came for the sockets", vec![(keeper, ended(3))], None),
            ("the keeper starts", vec![(keeper, json!({ "waiting": {} }))], None),
            (
                "the pod is on its way out",
                vec![("/metadata", json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" }))],
                None,
            ),
            ("it has ended", vec![("/status/phase", json!("Failed"))], None),
            ("somebody else says that it is not ready", vec![("/spec/readinessGates", gate.clone())], away),
            (
                "somebody else says that it is",
                vec![("/spec/readinessGates", gate), ("/status/conditions", open)],
                ready,
            ),
            ("there is no keeper", vec![("/status/ephemeralContainerStatuses", json!([]))], None),
        ];
        for (name, changes, expected) in rows {
            let mut pod = pod();
            for (at, value) in changes {
                let (parent, key) = at.rsplit_once('/').unwrap();
                match pod.pointer_mut(at) {
                    Some(place) => *place = value,
                    None => pod.pointer_mut(parent).unwrap()[key] = value,
                }
            }
            let found = HandOver::of(&pod).map(|one| (one.keeper, one.stage, one.application));
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(HandOver::of(&Value::Null), None);
    }
}
