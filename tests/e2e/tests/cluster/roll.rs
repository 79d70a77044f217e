//! A sidecar's image replaced under a running application that is called all the time.

use anyhow::{Context, ensure};
use outrigger_e2e::KubeNamespace;
use serde_json::{Value, json};

use crate::manifest::{Interception, REDIRECTED, app, config, pod, requests, server, spec, taken};

const SOCKET: &str = "/run/outrigger/keeper.sock";
/// Requests before the roll, and after it.
const ENOUGH: u64 = 300;

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

    // They call the pod itself: a Service has no other, and takes this one from its endpoints while the kubelet starts the next
    // sidecar and so counts the pod as unready.
    let url = format!("http://{}:8080/", namespace.get("pod/web", "{.status.podIP}").expect("it has an address"));
    let calls = namespace.calls("client", &url, 200);
    roll(&namespace, &mount, &next);
    let counts = calls.end().expect("the client tells its counts");
    assert!(counts.failed == 0 && counts.answered >= 2 * ENOUGH, "{counts:?}");
    assert!(taken(&namespace, "web", "in").expect("it runs") > 0, "through the new sidecar");
}

/// Adds the keeper, changes the sidecar's image, and waits until the next one carries the load.
#[track_caller]
fn roll(namespace: &KubeNamespace, mount: &Value, next: &str) {
    let enough = || {
        namespace.eventually(&format!("{ENOUGH} requests through the sidecar"), || {
            let count = requests(namespace, "web")?;
            ensure!(count >= ENOUGH, "{count} so far");
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
