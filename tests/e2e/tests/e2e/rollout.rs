//! Rollouts before a real API server: what it takes, what the controller does to pods, and what the commands tell.
//!
//! No kubelet runs here: a thread of the test writes the pods' statuses, as one would.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use outrigger_e2e::{ApiServer, Outrigger, eventually_within, outrigger_command, start_outrigger};
use outrigger_http::Resolver;
use outrigger_kubernetes::resources::PODS;
use outrigger_kubernetes::{Access, Client, Options, Patch, Selection, Write, definitions};
use serde_json::{Value, json};

/// Long enough for a rollout on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PODS_OF_IT: usize = 3;

fn pod(number: usize) -> String {
    let sidecar = json!({
        "name": "outrigger", "image": "outrigger:1", "restartPolicy": "Always", "args": ["run"],
        "securityContext": { "runAsUser": 15000, "runAsGroup": 15000 },
        "volumeMounts": [{ "name": "outrigger-handover", "mountPath": "/run/outrigger" }],
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("web-{number}"), "namespace": "default", "labels": { "app": "web" },
            "annotations": { "outrigger.dev/status": "{\"version\":\"0.1.0\",\"containers\":[\"outrigger\"],\"volumes\":[],\"handover\":\"/run/outrigger/keeper.sock\"}" },
        },
        "spec": {
            "initContainers": [sidecar],
            "containers": [{ "name": "app", "image": "app:1" }],
            "volumes": [{ "name": "outrigger-handover", "emptyDir": { "medium": "Memory" } }],
        },
    });
    format!("{pod}\n---\n")
}

/// Writes pods' statuses until it is told to stop.
fn kubelet(api: &ApiServer, stop: &AtomicBool) {
    let access = Access::find(Some(&api.kubeconfig()), None).unwrap();
    let client = Client::new(access, Resolver::from_system(), Options::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // By pod: the image that runs, and the restarts.
    let mut runs: BTreeMap<String, (String, u64)> = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let _ = runtime.block_on(async {
            for pod in client.list(PODS.within("default"), &Selection::default()).await? {
                let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                let status = status(&pod, runs.entry(name.to_owned()).or_default());
                if differs(&pod["status"], &status) {
                    let path = PODS.named("default", name).part("status");
                    client.patch(path, Patch::Merge, &json!({ "status": status }), Write::Real).await?;
                }
            }
            Ok::<_, outrigger_kubernetes::ApiError>(())
        });
        thread::sleep(Duration::from_millis(100));
    }
}

fn differs(before: &Value, after: &Value) -> bool {
    let lists = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];
    let state = |status: &Value, list: &str| {
        let all = status[list].as_array().cloned().unwrap_or_default();
        all.iter()
            .map(|one| format!("{}{}{}", one["containerID"], one["restartCount"], one["state"]))
            .collect::<Vec<_>>()
    };
    lists.iter().any(|list| state(before, list) != state(after, list))
}

/// What a kubelet would tell of a pod.
fn status(pod: &Value, runs: &mut (String, u64)) -> Value {
    let image = pod["spec"]["initContainers"][0]["image"].as_str().unwrap_or_default();
    let running = || json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } });
    let waiting = || json!({ "waiting": { "reason": "ErrImagePull", "message": "not found" } });
    let changed = !runs.0.is_empty() && runs.0 != image;
    if changed || runs.0.is_empty() {
        runs.1 += u64::from(changed);
        image.clone_into(&mut runs.0);
    }
    let container = |name: &str, image: &str, count: u64, state: Value| {
        json!({
            "name": name, "image": image, "imageID": image, "containerID": format!("test://{name}-{image}-{count}"),
            "ready": true, "started": true, "restartCount": count, "state": state,
        })
    };
    let before = pod["status"]["ephemeralContainerStatuses"].as_array().cloned().unwrap_or_default();
    let keepers = pod["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default();
    let keepers: Vec<Value> = keepers.iter().map(|keeper| {
        let (name, of) = (keeper["name"].as_str().unwrap_or_default(), keeper["image"].as_str().unwrap_or_default());
        let known = before.iter().find(|one| one["name"] == name);
        let state = match known {
            // It has handed over when the next sidecar is there.
            Some(known) if known["state"]["running"].is_object() && changed => {
                json!({ "terminated": { "exitCode": 0, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:00Z" } })
            }
            Some(known) if !known["state"]["waiting"].is_object() => known["state"].clone(),
            _ if of.contains("missing") => waiting(),
            _ => json!({ "running": { "startedAt": now() } }),
        };
        container(name, of, 0, state)
    }).collect();
    json!({
        "phase": "Running",
        "conditions": [{ "type": "Ready", "status": "True" }],
        "initContainerStatuses": [container("outrigger", image, runs.1, running())],
        "containerStatuses": [container("app", "app:1", 0, running())],
        "ephemeralContainerStatuses": keepers,
    })
}

fn now() -> String {
    outrigger_e2e::run(outrigger_e2e::tool("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])).unwrap().trim().to_owned()
}

/// A command beside a kubeconfig: its exit code, and all it said.
fn outrigger(api: &ApiServer, arguments: &[&str]) -> (i32, String) {
    let mut command: Command = outrigger_command();
    let done = command.args(arguments).env("KUBECONFIG", api.kubeconfig()).output().unwrap();
    let said = [done.stdout, done.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (done.status.code().unwrap_or(-1), said)
}

fn controller(api: &ApiServer, folder: &Path) -> Outrigger {
    let config = format!(
        "controller:\n  namespace: default\n  kubernetes: {{ kubeconfig: {} }}\n  \
         election: {{ duration: 3s, renewDeadline: 2s, retry: 300ms }}\n  repair: {{ action: \"off\" }}\n",
        api.kubeconfig().display()
    );
    start_outrigger(folder, &config)
}

fn images(api: &ApiServer) -> Vec<String> {
    let path = "--output=jsonpath={range .items[*]}{.spec.initContainers[0].image}{\"\\n\"}{end}";
    api.kubectl(&["get", "pods", path]).unwrap().lines().map(str::to_owned).collect()
}

fn keepers(api: &ApiServer, image: &str) -> usize {
    let path = "--output=jsonpath={range .items[*].spec.ephemeralContainers[*]}{.image}{\"\\n\"}{end}";
    api.kubectl(&["get", "pods", path]).unwrap().lines().filter(|line| *line == image).count()
}

/// The last of the objects that `--format json` tells.
fn last(said: &str) -> Value {
    let lines: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    lines.last().cloned().unwrap_or_else(|| panic!("no JSON in {said}"))
}

const QUICK: [&str; 8] = ["-n", "default", "--canary-time", "0s", "--min-ready", "0s", "--canary", "1"];

#[test]
fn pods_change_their_sidecars_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let api = ApiServer::start(folder.path());

    // Nobody knows of rollouts yet.
    let (code, said) = outrigger(&api, &["upgrade", "--image", "outrigger:2"]);
    assert!(code == 1 && said.contains("outrigger install … | kubectl apply"), "{said}");
    api.apply(&definitions::rollouts().to_string());
    eventually_within(PATIENCE, "the definition", || api.kubectl(&["get", "sidecarrollouts"]));
    the_schema_refuses_what_is_wrong(&api);
    let (code, said) = outrigger(&api, &["upgrade", "status"]);
    assert!(code == 1 && said.contains("there is no rollout"), "{said}");

    api.apply(&(0..PODS_OF_IT).map(pod).collect::<String>());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| kubelet(&api, &stop));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rolls(&api, folder.path())));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            eprintln!("{}", api.kubectl(&["get", "sidecarrollouts", "--output=yaml"]).unwrap_or_default());
            std::panic::resume_unwind(panic);
        }
    });
}

fn the_schema_refuses_what_is_wrong(api: &ApiServer) {
    let rollout = |spec: &str| {
        format!("apiVersion: outrigger.dev/v1alpha1\nkind: SidecarRollout\nmetadata: {{ name: trial }}\nspec: {spec}\n")
    };
    let taken = api.dry_run(&rollout("{ image: \"a:1\", canary: 3, maxUnavailable: \"25%\" }")).unwrap();
    let taken: Value = serde_json::from_str(&taken).unwrap();
    assert_eq!(
        (&taken["spec"]["progressDeadlineSeconds"], &taken["spec"]["onFailure"]),
        (&json!(120), &json!("RollBack"))
    );
    for (spec, expected) in [
        ("{}", "spec.image"),
        ("{ image: \"a 1\" }", "an image has no blanks"),
        ("{ image: a, canary: half }", "write a number such as 2"),
        ("{ image: a, canary: \"101%\" }", "write a number such as 2"),
        ("{ image: a, maxUnavailable: -1 }", "write a number such as 2"),
        ("{ image: a, onFailure: Hope }", "spec.onFailure"),
        ("{ image: a, minReadySeconds: -1 }", "spec.minReadySeconds"),
    ] {
        let refused = format!("{:#}", api.dry_run(&rollout(spec)).unwrap_err());
        assert!(refused.contains(expected), "{spec}: {refused}");
    }
    api.apply(&rollout("{ image: \"a:1\", paused: true }"));
    let change = |patch: &str| api.kubectl(&["patch", "sidecarrollout", "trial", "--type=merge", "--patch", patch]);
    let refused = format!("{:#}", change("{\"spec\":{\"image\":\"a:2\"}}").unwrap_err());
    assert!(refused.contains("a rollout keeps its image"), "{refused}");
    change("{\"spec\":{\"paused\":false}}").unwrap();
    api.kubectl(&["delete", "sidecarrollout", "trial"]).unwrap();
}

fn rolls(api: &ApiServer, folder: &Path) {
    let mut first = controller(api, folder);
    eventually_within(PATIENCE, "pods that run", || {
        let phases = api.kubectl(&["get", "pods", "--output=jsonpath={.items[*].status.phase}"])?;
        ensure!(phases == ["Running"; PODS_OF_IT].join(" "), "{phases}");
        Ok(())
    });

    let upgrade = |image: &str, more: &[&str]| {
        outrigger(api, &[&["upgrade", "--image", image, "--format", "json"], &QUICK[..], more].concat())
    };
    let (code, said) = upgrade("outrigger:2", &["--wait"]);
    assert_eq!(code, 0, "{said}");
    let told = last(&said);
    assert_eq!((&told["status"]["phase"], &told["status"]["updated"]), (&json!("Completed"), &json!(PODS_OF_IT)));
    assert_eq!(images(api), ["outrigger:2"; PODS_OF_IT]);
    assert_eq!(keepers(api, "outrigger:2"), PODS_OF_IT, "each had a keeper of the next version");
    let shown = api.kubectl(&["get", "sidecarrollouts"]).unwrap();
    assert!(shown.contains("PHASE") && shown.contains("Completed"), "{shown}");
    let name = told["name"].as_str().unwrap();
    api.kubectl(&["wait", &format!("sidecarrollout/{name}"), "--for=condition=Complete", "--timeout=5s"]).unwrap();

    // An image that is not there: the first pod's keeper finds out, and no sidecar was touched.
    let (code, said) = upgrade("missing:3", &["--wait"]);
    assert_eq!(code, 4, "{said}");
    assert!(last(&said)["status"]["message"].as_str().unwrap().contains("ErrImagePull"), "{said}");
    assert_eq!(images(api), ["outrigger:2"; PODS_OF_IT]);
    assert_eq!(keepers(api, "missing:3"), 1);

    // The controller is killed in the middle, and the next one goes on.
    let (code, said) = upgrade("outrigger:4", &[]);
    assert_eq!(code, 0, "{said}");
    eventually_within(PATIENCE, "the first pod to be on its way", || {
        ensure!(keepers(api, "outrigger:4") > 0, "none yet");
        Ok(())
    });
    first.process.kill();
    let (code, said) = upgrade("outrigger:5", &[]);
    assert!(code == 1 && said.contains("has not ended"), "{said}");
    let second = controller(api, folder);
    let (code, said) = outrigger(api, &["upgrade", "status", "--wait"]);
    assert!(code == 0 && said.contains("Completed"), "{said}");
    assert_eq!(images(api), ["outrigger:4"; PODS_OF_IT]);

    let (code, said) = outrigger(api, &["fleet", "-n", "default", "--quick", "--format", "json"]);
    assert_eq!(code, 0, "{said}");
    let fleet: Value = serde_json::from_str(&said).unwrap();
    let one = &fleet["sidecars"][1];
    assert_eq!(
        (&one["pod"], &one["image"], &one["restarts"], &one["version"]),
        (&json!("web-1"), &json!("outrigger:4"), &json!(2), &Value::Null)
    );
    let (code, said) = outrigger(api, &["fleet", "-n", "kube-system"]);
    assert!(code == 0 && said.contains("no pod has a sidecar here"), "{said}");

    // What is through can be taken back.
    let (code, said) = outrigger(api, &["upgrade", "rollback", "--wait"]);
    assert!(code == 0 && said.contains("RolledBack"), "{said}");
    assert_eq!(images(api), ["outrigger:2"; PODS_OF_IT]);
    let (code, said) = outrigger(api, &["upgrade", "pause"]);
    assert!(code == 1 && said.contains("has ended"), "{said}");
    drop(second);
}
