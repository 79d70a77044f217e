//! What controllers make pods of: Jobs, CronJobs, StatefulSets; and two pods that speak of other things than HTTP.

use anyhow::ensure;
use outrigger_e2e::KubeNamespace;
use serde_json::{Value, json};

use crate::manifest::{Interception, REDIRECTED, app, config, plain, pod, server, service, spec, taken};

/// A namespace with a server that has no sidecar.
fn with_server() -> KubeNamespace {
    let namespace = KubeNamespace::new("");
    config(&namespace, "outrigger", REDIRECTED);
    plain(&namespace, "backend");
    namespace.apply(&service("backend", 8080));
    namespace.wait_for("pod/backend", "Ready");
    namespace
}

/// A Job's spec that calls the server, beside a sidecar.
fn job() -> Value {
    let client = app("app", &["get", "http://backend-service/"]);
    let mut pod = spec(Interception::Init, "outrigger", vec![client]);
    pod["restartPolicy"] = "Never".into();
    json!({ "backoffLimit": 0, "template": { "spec": pod } })
}

#[test]
fn jobs_and_cron_jobs_complete() {
    let namespace = with_server();
    let meta = |name: &str| json!({ "name": name });
    namespace.apply(
        &json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": meta("once"), "spec": job() }).to_string(),
    );
    let cron = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": meta("nightly"),
        "spec": { "schedule": "0 3 * * *", "suspend": true, "jobTemplate": { "spec": job() } },
    });
    namespace.apply(&cron.to_string());
    // Not at night: now.
    namespace.kubectl(&["create", "job", "--from=cronjob/nightly", "tonight"]).unwrap();
    for name in ["once", "tonight"] {
        let object = format!("job/{name}");
        namespace.wait_for(&object, "Complete");
        assert_eq!(namespace.kubectl(&["logs", &object, "--container=app"]).unwrap(), "backend 1\n");
        let log = namespace.kubectl(&["logs", &object, "--container=outrigger"]).unwrap();
        assert!(log.contains("stopping cause=SIGTERM"), "the sidecar was asked to go, and went: {log}");
    }
}

#[test]
fn init_containers_of_the_application_have_the_network() {
    let namespace = with_server();
    let mut spec = spec(Interception::Init, "outrigger", vec![server("web")]);
    let own = app("migrate", &["get", "-for", "5s", "http://backend-service/"]);
    spec["initContainers"].as_array_mut().unwrap().push(own);
    namespace.apply(&pod("web", &spec));
    namespace.wait_for("pod/web", "Ready");
    assert_eq!(namespace.kubectl(&["logs", "web", "--container=migrate"]).unwrap(), "backend 1\n");
    assert!(taken(&namespace, "web", "out").unwrap() > 0, "through the sidecar");
}

#[test]
fn members_of_a_stateful_set_reach_one_another_by_name() {
    let namespace = KubeNamespace::new("");
    config(&namespace, "outrigger", REDIRECTED);
    let headless = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "peers" },
        "spec": { "clusterIP": "None", "selector": { "app": "member" }, "ports": [{ "port": 8080 }], "publishNotReadyAddresses": true },
    });
    namespace.apply(&headless.to_string());
    let mut member = server("member");
    member["readinessProbe"] = json!({ "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 1 });
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "member" },
        "spec": {
            "serviceName": "peers", "replicas": 2, "podManagementPolicy": "Parallel",
            "selector": { "matchLabels": { "app": "member" } },
            "template": { "metadata": { "labels": { "app": "member" } }, "spec": spec(Interception::Init, "outrigger", vec![member]) },
        },
    });
    namespace.apply(&set.to_string());
    namespace.eventually("both members", || {
        let ready = namespace.get("statefulset/member", "{.status.readyReplicas}")?;
        ensure!(ready == "2", "{ready} are ready");
        Ok(())
    });
    for (from, to) in [("member-0", "member-1"), ("member-1", "member-0")] {
        let (out, inside) = (taken(&namespace, from, "out").unwrap(), taken(&namespace, to, "in").unwrap());
        let url = format!("http://127.0.0.1:8080/fetch?url=http://{to}.peers:8080/");
        assert_eq!(namespace.exec(&format!("{from} -c app"), &["/app", "get", &url]).unwrap(), "member 1\n");
        assert!(taken(&namespace, from, "out").unwrap() > out && taken(&namespace, to, "in").unwrap() > inside);
    }
}

#[test]
fn redis_is_spoken_between_two_pods() {
    let namespace = KubeNamespace::new("");
    config(&namespace, "outrigger", REDIRECTED);
    let container = |command: &[&str]| json!({ "name": "app", "image": "localhost/redis:1", "imagePullPolicy": "Never", "command": command });
    let store = container(&["redis-server", "--save", "", "--protected-mode", "no"]);
    namespace.apply(&pod("store", &spec(Interception::Init, "outrigger", vec![store])));
    namespace.apply(&service("store", 6379));
    let client = container(&["sleep", "600"]);
    namespace.apply(&pod("client", &spec(Interception::Init, "outrigger", vec![client])));
    for name in ["pod/store", "pod/client"] {
        namespace.wait_for(name, "Ready");
    }
    let redis = |arguments: &[&str]| {
        namespace.exec("client -c app", &[&["redis-cli", "-h", "store-service", "-p", "80"], arguments].concat())
    };
    namespace.eventually("Redis to answer", || {
        let said = redis(&["ping"])?;
        ensure!(said == "PONG\n", "{said}");
        Ok(())
    });
    assert_eq!(redis(&["set", "basket", "3 apples"]).unwrap(), "OK\n");
    assert_eq!(redis(&["get", "basket"]).unwrap(), "3 apples\n");
    assert!(taken(&namespace, "client", "out").unwrap() > 0 && taken(&namespace, "store", "in").unwrap() > 0);
}
