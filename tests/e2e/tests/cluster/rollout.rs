//! `outrigger upgrade` with the controller, on pods that serve all the time.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use anyhow::ensure;
use outrigger_e2e::{KubeNamespace, outrigger_command, start_outrigger};
use serde_json::{Value, json};

use crate::api::the_only_controllers;
use crate::injected::inject;
use crate::manifest::{app, pod, requests, server, service};

/// Pods of the workload.
const REPLICAS: usize = 3;
/// Requests through each pod before the rollout, and after it.
const ENOUGH: u64 = 30;

fn deployment() -> String {
    let spec = json!({ "terminationGracePeriodSeconds": 6, "containers": [server("web")] });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
        "spec": {
            "replicas": REPLICAS, "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": spec },
        },
    });
    deployment.to_string()
}

/// A command beside the cluster: its exit code, and all it said.
fn outrigger(namespace: &KubeNamespace, arguments: &[&str]) -> (i32, String) {
    let mut command = outrigger_command();
    let done = command.args(arguments).env("KUBECONFIG", namespace.kubeconfig()).output().unwrap();
    let said = [done.stdout, done.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (done.status.code().unwrap_or(-1), said)
}

fn upgrade(namespace: &KubeNamespace, image: &str) -> (i32, String) {
    let quick = ["--canary", "1", "--canary-time", "1s", "--min-ready", "1s", "--wait", "--format", "json"];
    outrigger(namespace, &[&["upgrade", "--image", image, "-n", &namespace.name], &quick[..]].concat())
}

fn of_pods(namespace: &KubeNamespace, path: &str) -> Vec<String> {
    let path = format!("--output=jsonpath={{range .items[*]}}{{{path}}}{{\"\\n\"}}{{end}}");
    let told = namespace.kubectl(&["get", "pods", "--selector=app=web", &path]).unwrap();
    told.lines().map(str::to_owned).collect()
}

/// Waits until the sidecar that runs now in each pod has carried enough requests.
#[track_caller]
fn each_carries(namespace: &KubeNamespace) {
    namespace.eventually(&format!("{ENOUGH} requests through each pod's sidecar"), || {
        let names = namespace.kubectl(&["get", "pods", "--selector=app=web", "--output=name"])?;
        let pods = names.lines().map(|name| name.trim_start_matches("pod/"));
        let carried = pods.map(|pod| Ok((pod, requests(namespace, pod)?))).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(carried.iter().all(|(_, requests)| *requests >= ENOUGH), "so far {carried:?}");
        Ok(())
    });
}

#[test]
fn a_rollout_fails_no_request_and_stops_at_an_image_that_is_not_there() {
    let _alone = the_only_controllers();
    let namespace = KubeNamespace::new("");
    namespace.apply(&outrigger_kubernetes::definitions::rollouts().to_string());
    namespace.apply(&inject(&deployment()).unwrap());
    namespace.apply(&service("web", 8080));
    let mut client = app("app", &[]);
    client["command"] = json!(["sleep", "900"]);
    namespace.apply(&pod("client", &json!({ "terminationGracePeriodSeconds": 1, "containers": [client] })));
    namespace.wait_for("deployment/web", "Available");
    namespace.wait_for("pod/client", "Ready");
    namespace.eventually("all pods", || {
        let ready = namespace.get("deployment/web", "{.status.readyReplicas}")?;
        ensure!(ready == REPLICAS.to_string(), "{ready} ready");
        Ok(())
    });
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "controller:\n  namespace: {}\n  kubernetes: {{ kubeconfig: {} }}\n  repair: {{ action: \"off\" }}\n",
        namespace.name,
        namespace.kubeconfig().display()
    );
    let _controller = start_outrigger(folder.path(), &config);
    let next = namespace.next_image();

    let calls = namespace.calls("client", "http://web-service/", 200);
    each_carries(&namespace);
    let (code, said) = upgrade(&namespace, &next);
    let restarts = of_pods(&namespace, ".status.containerStatuses[0].restartCount");
    each_carries(&namespace);
    let counts = calls.end().unwrap();
    assert_eq!(code, 0, "{said}");
    assert_eq!(restarts, ["0"; REPLICAS], "applications went on");
    assert!(counts.failed == 0 && counts.answered >= ENOUGH, "{counts:?}");
    let image = ".spec.initContainers[?(@.name==\"outrigger\")].image";
    assert_eq!(of_pods(&namespace, image), [next.as_str(); REPLICAS]);
    let restarts = ".status.initContainerStatuses[?(@.name==\"outrigger\")].restartCount";
    assert_eq!(of_pods(&namespace, restarts), ["1"; REPLICAS]);

    let (code, said) = upgrade(&namespace, "outrigger:of-nowhere");
    assert!(code == 4 && said.contains("ErrImageNeverPull"), "{code}: {said}");
    assert_eq!(of_pods(&namespace, image), [next.as_str(); REPLICAS], "no sidecar was touched");
    let keepers = of_pods(&namespace, ".spec.ephemeralContainers[*].image").join(" ");
    assert_eq!(keepers.matches("of-nowhere").count(), 1, "it stops at the first pod: {keepers}");
    assert_eq!(of_pods(&namespace, restarts), ["1"; REPLICAS]);

    // Through the API server, from the sidecars themselves.
    let fleet = namespace.eventually("all sidecars to answer", || {
        let (code, said) = outrigger(&namespace, &["fleet", "-n", &namespace.name, "--format", "json"]);
        ensure!(code == 0, "{said}");
        let fleet: Value = serde_json::from_str(&said)?;
        let known = fleet["sidecars"].as_array().into_iter().flatten().filter(|one| one["version"].is_string()).count();
        ensure!(known == REPLICAS, "{said}");
        Ok(fleet)
    });
    assert_eq!(fleet["sidecars"][0]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(fleet["sidecars"][0]["configGeneration"], 1);
    namespace.kubectl(&["delete", "sidecarrollouts", "--all"]).unwrap();
}
