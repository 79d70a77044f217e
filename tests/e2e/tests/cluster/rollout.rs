//! `outrigger upgrade` in an installation, on pods that call one another by mTLS all the time.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use anyhow::ensure;
use outrigger_e2e::{KubeNamespace, outrigger_command};
use serde_json::{Value, json};

use crate::api::the_only_controllers;
use crate::installation::Installation;
use crate::manifest::{app, requests, service};

/// All pods: one that calls, two of the workload that it calls, and the only one of the workload that those call.
const PODS: usize = 4;
/// Requests through each pod before the rollout, and after it.
const ENOUGH: u64 = 30;

fn deployment(name: &str, replicas: u32, containers: &[Value]) -> String {
    let labels = json!({ "app": name, "part": "shop" });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": labels, "annotations": { "outrigger.dev/mtls": "strict" } },
                "spec": { "terminationGracePeriodSeconds": 6, "containers": containers },
            },
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
    let told = namespace.kubectl(&["get", "pods", "--selector=part=shop", &path]).unwrap();
    told.lines().map(str::to_owned).collect()
}

/// Waits until the sidecar that runs now in each pod has carried enough requests.
#[track_caller]
fn each_carries(namespace: &KubeNamespace) {
    namespace.eventually(&format!("{ENOUGH} requests through each pod's sidecar"), || {
        let names = namespace.kubectl(&["get", "pods", "--selector=part=shop", "--output=name"])?;
        let pods = names.lines().map(|name| name.trim_start_matches("pod/"));
        let carried = pods.map(|pod| Ok((pod, requests(namespace, pod)?))).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(carried.iter().all(|(_, requests)| *requests >= ENOUGH), "so far {carried:?}");
        Ok(())
    });
}

#[test]
fn a_rollout_fails_no_request_and_stops_at_an_image_that_is_not_there() {
    let _alone = the_only_controllers();
    let installation = Installation::new();
    installation.checked();
    let namespace = KubeNamespace::new("outrigger.dev/inject: enabled");
    let (web, one) = (format!("http://web-service.{}/chain", namespace.name), "http://one-service/chain");
    let mut idle = app("app", &[]);
    idle["command"] = json!(["sleep", "900"]);
    let redis = |command: &[&str]| json!({ "name": "redis", "image": "localhost/redis:1", "imagePullPolicy": "Never", "command": command });
    let store = redis(&["redis-server", "--save", "", "--protected-mode", "no"]);
    namespace.apply(&deployment("one", 1, &[app("app", &["serve", "-name", "one"]), store]));
    namespace.apply(&deployment("web", 2, &[app("app", &["serve", "-name", "web", "-calls", one])]));
    namespace.apply(&deployment("client", 1, &[idle, redis(&["sleep", "900"])]));
    for name in ["one", "web"] {
        namespace.apply(&service(name, 8080));
    }
    // What is spoken there finds out the sidecar by itself, on both sides.
    let store = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "store" },
        "spec": { "selector": { "app": "one" }, "ports": [{ "port": 6379 }] },
    });
    namespace.apply(&store.to_string());
    namespace.eventually("all pods", || {
        let ready = of_pods(&namespace, ".status.conditions[?(@.type==\"Ready\")].status");
        ensure!(ready == ["True"; PODS], "ready: {ready:?}");
        Ok(())
    });
    let client = namespace.get("pods", "{.items[?(@.metadata.labels.app=='client')].metadata.name}").unwrap();
    let caller = format!("spiffe://cluster.local/ns/{}/sa/default", namespace.name);
    namespace.eventually("calls by mTLS", || {
        let answer = namespace.exec(&format!("{client} -c app"), &["/app", "get", "-for", "3s", &web])?;
        ensure!(answer == format!("web {caller}\none {caller}\n"), "{answer}");
        Ok(())
    });
    let store = |arguments: &[&str]| {
        namespace.exec(&format!("{client} -c redis"), &[&["redis-cli", "-h", "store"], arguments].concat())
    };
    namespace.eventually("Redis to answer by mTLS, for nothing else is taken", || {
        let said = store(&["set", "basket", "3 apples"])?;
        ensure!(said == "OK\n", "{said}");
        Ok(())
    });
    let next = namespace.next_image();

    let calls = namespace.calls(&client, &web, 100);
    each_carries(&namespace);
    let (code, said) = upgrade(&namespace, &next);
    let restarts = of_pods(&namespace, ".status.containerStatuses[0].restartCount");
    each_carries(&namespace);
    let counts = calls.end().unwrap();
    println!("{} requests, the slowest took {:?}\n{}", counts.answered, counts.slowest, counts.remarks);
    assert_eq!(code, 0, "{said}");
    assert_eq!(restarts, ["0"; PODS], "applications went on");
    assert_eq!(store(&["get", "basket"]).unwrap(), "3 apples\n");
    assert!(counts.failed == 0 && counts.answered >= ENOUGH, "{counts:?}");
    let image = ".spec.initContainers[?(@.name==\"outrigger\")].image";
    assert_eq!(of_pods(&namespace, image), [next.as_str(); PODS]);
    let restarts = ".status.initContainerStatuses[?(@.name==\"outrigger\")].restartCount";
    assert_eq!(of_pods(&namespace, restarts), ["1"; PODS]);

    let (code, said) = upgrade(&namespace, "outrigger:of-nowhere");
    assert!(code == 4 && said.contains("ErrImageNeverPull"), "{code}: {said}");
    assert_eq!(of_pods(&namespace, image), [next.as_str(); PODS], "no sidecar was touched");
    let keepers = of_pods(&namespace, ".spec.ephemeralContainers[*].image").join(" ");
    assert_eq!(keepers.matches("of-nowhere").count(), 1, "it stops at the first pod: {keepers}");
    assert_eq!(of_pods(&namespace, restarts), ["1"; PODS]);

    // Through the API server, from the sidecars themselves.
    let fleet = namespace.eventually("all sidecars to answer", || {
        let (code, said) = outrigger(&namespace, &["fleet", "-n", &namespace.name, "--format", "json"]);
        ensure!(code == 0, "{said}");
        let fleet: Value = serde_json::from_str(&said)?;
        let known = fleet["sidecars"].as_array().into_iter().flatten().filter(|one| one["version"].is_string()).count();
        ensure!(known == PODS, "{said}");
        Ok(fleet)
    });
    assert_eq!(fleet["sidecars"][0]["version"], env!("CARGO_PKG_VERSION"));
    assert!(fleet["sidecars"][0]["configGeneration"].as_u64() >= Some(1), "{fleet}");
    namespace.kubectl(&["delete", "sidecarrollouts", "--all"]).unwrap();
}
