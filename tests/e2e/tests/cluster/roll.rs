//! A sidecar's image replaced under a running application that is called all the time.

use std::thread;

use anyhow::{Context, ensure};
use outrigger_e2e::KubeNamespace;
use serde_json::{Value, json};

use crate::manifest::{Interception, REDIRECTED, app, config, pod, server, spec, taken};

const SOCKET: &str = "/run/outrigger/keeper.sock";
/// Requests before the roll, and after it.
const ENOUGH: u64 = 300;

/// How many requests have gone through the sidecar that runs now.
fn requests(namespace: &KubeNamespace) -> anyhow::Result<u64> {
    let text = namespace.exec("web -c app", &["wget", "-q", "-O", "-", "http://127.0.0.1:15000/metrics"])?;
    let counts = text.lines().filter(|line| line.starts_with("outrigger_http_requests_total{"));
    Ok(counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum())
}

#[test]
fn a_sidecar_is_replaced_without_a_failed_request() {
    let namespace = KubeNamespace::new("");
    config(
        &namespace,
        "outrigger",
        &REDIRECTED.replace("runtime: {", &format!("runtime: {{ handover: {{ socket: {SOCKET} }},")),
    );
    let mount = json!({ "name": "outrigger-run", "mountPath": "/run/outrigger" });
    let mut web = spec(Interception::Own, "outrigger", vec![server("web")]);
    web["initContainers"][0]["volumeMounts"].as_array_mut().expect("it has mounts").push(mount.clone());
    let volume = json!({ "name": "outrigger-run", "emptyDir": { "medium": "Memory" } });
    web["volumes"].as_array_mut().expect("it has volumes").push(volume);
    namespace.apply(&pod("web", &web));
    let mut client = app("app", &[]);
    client["command"] = json!(["sleep", "600"]);
    namespace.apply(&pod("client", &json!({ "terminationGracePeriodSeconds": 1, "containers": [client] })));
    for name in ["pod/web", "pod/client"] {
        namespace.wait_for(name, "Ready");
    }
    let next = namespace.next_image();

    let counts = thread::scope(|scope| {
        let load = scope.spawn(|| load(&namespace));
        roll(&namespace, &mount, &next);
        namespace.exec("client", &["killall", "-TERM", "app"]).expect("the client runs");
        load.join().expect("no panic").expect("the client tells its counts")
    });
    let counts: Value = serde_json::from_str(&counts).expect("they are JSON");
    assert_eq!((&counts["failed"], &counts["reasons"]), (&json!(0), &json!({})), "{counts}");
    assert!(counts["ok"].as_u64() >= Some(2 * ENOUGH), "{counts}");
    assert!(taken(&namespace, "web", "in").expect("it runs") > 0, "through the new sidecar");
}

/// 20 clients at once. They call the pod itself: a Service has no other, and takes this one from its endpoints while the
/// kubelet starts the next sidecar and so counts the pod as unready. It ends by itself when the test cannot end it.
fn load(namespace: &KubeNamespace) -> anyhow::Result<String> {
    let url = format!("http://{}:8080/", namespace.get("pod/web", "{.status.podIP}")?);
    let load = ["timeout", "-s", "TERM", "120", "/app", "load", "-rate", "200", "-workers", "20", "-url", &url];
    namespace.exec("client", &load)
}

/// Adds the keeper, changes the sidecar's image, and waits until the next one carries the load.
#[track_caller]
fn roll(namespace: &KubeNamespace, mount: &Value, next: &str) {
    let enough = || {
        namespace.eventually("requests through the sidecar", || {
            let count = requests(namespace)?;
            ensure!(count >= ENOUGH, "{count} requests");
            Ok(())
        });
    };
    enough();
    let before = namespace.kubectl(&["get", "pod", "web", "--output=json"]).expect("the pod is there");
    let mut object: Value = serde_json::from_str(&before).expect("it is JSON");
    let context = json!({
        "runAsUser": 65532, "runAsGroup": 65532, "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
    });
    object["spec"]["ephemeralContainers"] = json!([{
        "name": "outrigger-keeper-1", "image": next, "imagePullPolicy": "Never",
        "args": ["keeper", "--socket", SOCKET], "volumeMounts": [mount], "securityContext": context,
    }]);
    namespace.replace("pods/web/ephemeralcontainers", &object.to_string()).expect("the keeper is taken");
    let keeper = "{.status.ephemeralContainerStatuses[0].state}";
    namespace.eventually("the keeper to run", || {
        let state = namespace.get("pod/web", keeper)?;
        state.contains("running").then_some(()).with_context(|| state)
    });
    let image = json!([{ "op": "replace", "path": "/spec/initContainers/0/image", "value": next }]);
    namespace.kubectl(&["patch", "pod", "web", "--type=json", "--patch", &image.to_string()]).expect("it is taken");
    namespace.eventually("the next sidecar, and the keeper's end", || {
        let keeper = namespace.get("pod/web", keeper)?;
        ensure!(keeper.contains("\"exitCode\":0"), "the keeper: {keeper}");
        let sidecar = "{.status.initContainerStatuses[0].ready} {.status.initContainerStatuses[0].restartCount} \
                       {.status.containerStatuses[0].restartCount}";
        let sidecar = namespace.get("pod/web", sidecar)?;
        ensure!(sidecar == "true 1 0", "ready, restarts of sidecar and application: {sidecar}");
        Ok(())
    });
    enough();
}
