//! One pod with the sidecar: start, traffic, probes, and the sidecar's end.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use anyhow::{Result, ensure};
use outrigger_e2e::{KubeNamespace, outrigger_image};
use serde_json::json;

use crate::manifest::{Interception, PROXY, REDIRECTED, app, config, plain, pod, server, service, spec, taken};

/// The application calls out and is called, and all of it goes through the sidecar.
fn goes_through(interception: Interception) -> KubeNamespace {
    let namespace = KubeNamespace::new("");
    config(&namespace, "outrigger", REDIRECTED);
    plain(&namespace, "outside");
    namespace.apply(&pod("web", &spec(interception, "outrigger", vec![server("web")])));
    for name in ["web", "outside"] {
        namespace.apply(&service(name, 8080));
        namespace.wait_for(&format!("pod/{name}"), "Ready");
    }
    let before = (taken(&namespace, "web", "out").unwrap(), taken(&namespace, "web", "in").unwrap());
    let answer = namespace.exec("outside", &["/app", "get", "http://web-service/"]).unwrap();
    assert_eq!(answer, "web 1\n");
    let fetch = "http://127.0.0.1:8080/fetch?url=http://outside-service/";
    assert_eq!(namespace.exec("web -c app", &["/app", "get", fetch]).unwrap(), "outside 1\n");
    let after = (taken(&namespace, "web", "out").unwrap(), taken(&namespace, "web", "in").unwrap());
    assert!(after.0 > before.0, "the call out came through the sidecar: {before:?}, {after:?}");
    assert!(after.1 > before.1, "the call in came through the sidecar: {before:?}, {after:?}");
    namespace
}

#[test]
fn an_application_reaches_the_network_only_through_its_sidecar() {
    let namespace = goes_through(Interception::Init);
    // By default they mean the application's container, which is the first of the ordinary ones.
    assert_eq!(namespace.kubectl(&["logs", "web"]).unwrap(), "web serves on 8080\n");
    assert_eq!(namespace.exec("web", &["cat", "/etc/release"]).unwrap(), "1\n");
    let log = namespace.kubectl(&["logs", "web", "--container=outrigger"]).unwrap();
    assert!(log.contains("listening") && log.contains("ready"), "{log}");

    namespace.kill("web", "outrigger");
    let restarts = "{.status.initContainerStatuses[?(@.name==\"outrigger\")].restartCount}/{.status.containerStatuses[0].restartCount}";
    namespace.eventually("the sidecar, and only it, to be started again", || {
        let restarts = namespace.get("pod/web", restarts)?;
        ensure!(restarts == "1/0", "restarts of sidecar and application: {restarts}");
        Ok(())
    });
    namespace.wait_for("pod/web", "Ready");
    assert_eq!(namespace.exec("outside", &["/app", "get", "http://web-service/"]).unwrap(), "web 1\n");
    assert!(taken(&namespace, "web", "in").unwrap() > 0, "through the new sidecar");
    assert_eq!(namespace.get("pod/web", restarts).unwrap(), "1/0");
}

#[test]
fn a_sidecar_that_makes_the_rules_itself_keeps_no_privilege() {
    let namespace = goes_through(Interception::Own);
    let processes = namespace.processes("web", "outrigger").unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", processes[0])).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in {status}"))
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for set in ["CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    let user = PROXY.to_string();
    assert_eq!((field("Uid"), field("Gid")), (vec![user.clone(); 4], vec![user; 4]));
    assert_eq!(field("NoNewPrivs"), ["1"]);
    // Started again it may make the rules again: they are replaced.
    namespace.kill("web", "outrigger");
    namespace.eventually("the next sidecar to take connections", || {
        let before = taken(&namespace, "web", "in")?;
        namespace.exec("outside", &["/app", "get", "-for", "1s", "http://web-service/"])?;
        ensure!(taken(&namespace, "web", "in")? > before, "not yet");
        Ok(())
    });
}

#[test]
fn an_application_waits_for_its_sidecar() {
    let namespace = KubeNamespace::new("");
    // A secret from nowhere: the sidecar runs, and is not ready.
    let waits = "secrets:\n  providers: [{ name: bao, vault: { address: \"http://127.0.0.1:9\", auth: { token: { value: t } } } }]\n  \
                 files: [{ path: /tmp/db, template: '{{ with secret \"secret/data/db\" }}{{ .Data.data.password }}{{ end }}' }]\n";
    config(&namespace, "outrigger", waits);
    let mut spec = spec(Interception::Explicit, "outrigger", vec![server("web")]);
    spec["initContainers"][0]["lifecycle"]["postStart"]["exec"]["command"] =
        json!(["/outrigger", "wait", "--timeout", "2s"]);
    namespace.apply(&pod("web", &spec));
    let event = namespace.eventually("the hook to fail", || {
        let events = namespace.kubectl(&[
            "get",
            "events",
            "--output=jsonpath={range .items[*]}{.reason}: {.message}{'\\n'}{end}",
        ])?;
        let event = events.lines().find(|line| line.starts_with("FailedPostStartHook")).map(str::to_owned);
        event.ok_or_else(|| anyhow::anyhow!("no such event among {events}"))
    });
    assert!(event.contains("FailedPostStartHook"), "{event}");
    let waiting = namespace.get("pod/web", "{.status.containerStatuses[0].state.waiting.reason}").unwrap();
    assert_eq!(waiting, "PodInitializing", "the application was not started");
}

#[test]
fn probes_of_every_kind_keep_working() {
    let namespace = KubeNamespace::new("");
    config(&namespace, "outrigger", REDIRECTED);
    let mut containers = vec![server("app")];
    for (name, port, probe) in [
        ("http", 8081, json!({ "httpGet": { "path": "/", "port": "probed" } })),
        ("tcp", 8082, json!({ "tcpSocket": { "port": 8082 } })),
        ("grpc", 8083, json!({ "grpc": { "port": 8083 } })),
        ("exec", 8084, json!({ "exec": { "command": ["/app", "get", "-for", "1s", "http://127.0.0.1:8084/"] } })),
    ] {
        let mut container = app(name, &["serve", "-port", &port.to_string()]);
        container["ports"] =
            if name == "http" { json!([{ "name": "probed", "containerPort": port }]) } else { json!([]) };
        for kind in ["startupProbe", "readinessProbe", "livenessProbe"] {
            container[kind] = probe.clone();
            container[kind]["periodSeconds"] = 1.into();
        }
        containers.push(container);
    }
    namespace.apply(&pod("web", &spec(Interception::Init, "outrigger", containers)));
    namespace.wait_for("pod/web", "Ready");
    // The kubelet's HTTP, TCP and gRPC probes all came through the inbound listener.
    namespace.eventually("probes through the sidecar", || {
        let count = taken(&namespace, "web", "in")?;
        ensure!(count >= 6, "{count} connections");
        Ok(())
    });
    let restarts = namespace.get("pod/web", "{.status.containerStatuses[*].restartCount}").unwrap();
    assert_eq!(restarts, "0 0 0 0 0");
}

#[test]
fn a_restricted_namespace_takes_explicit_listeners() {
    let namespace = KubeNamespace::new("pod-security.kubernetes.io/enforce: restricted");
    let explicit = "proxy:\n  listeners:\n  - { name: out, direction: outbound, address: \"127.0.0.1:15001\", \
                    routes: [{ name: all, backendRefs: [{ name: backend }] }] }\n  \
                    clusters: [{ name: backend, endpoints: [\"backend-service:80\"] }]\n";
    config(&namespace, "outrigger", explicit);
    let context = json!({
        "runAsUser": 1000, "runAsNonRoot": true, "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    let mut backend = server("backend");
    backend["securityContext"] = context.clone();
    namespace.apply(&pod("backend", &json!({ "terminationGracePeriodSeconds": 1, "containers": [backend] })));
    namespace.apply(&service("backend", 8080));
    namespace.wait_for("pod/backend", "Ready");
    let mut web = server("web");
    web["securityContext"] = context;
    let refused = namespace.try_apply(&pod("redirected", &spec(Interception::Init, "outrigger", vec![web.clone()])));
    assert!(format!("{:#}", refused.unwrap_err()).contains("NET_ADMIN"), "an init container is no option here");
    namespace.apply(&pod("web", &spec(Interception::Explicit, "outrigger", vec![web])));
    namespace.wait_for("pod/web", "Ready");
    let answer: Result<String> = namespace.exec("web -c app", &["/app", "get", "http://127.0.0.1:15001/"]);
    assert_eq!(answer.unwrap(), "backend 1\n");
}

#[test]
fn the_image_holds_the_executable_and_no_shell() {
    let namespace = KubeNamespace::new("");
    config(&namespace, "outrigger", REDIRECTED);
    namespace.apply(&pod("web", &spec(Interception::Explicit, "outrigger", vec![server("web")])));
    namespace.wait_for("pod/web", "Ready");
    assert!(namespace.exec("web -c outrigger", &["/outrigger", "version"]).unwrap().starts_with("outrigger "));
    assert!(namespace.exec("web -c outrigger", &["sh", "-c", "true"]).is_err(), "there is no shell");
    // Read-only: even its own user writes nowhere but into volumes.
    let processes = namespace.processes("web", "outrigger").unwrap();
    let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", processes[0])).unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).unwrap();
    assert!(root.split(' ').nth(3).unwrap().split(',').any(|option| option == "ro"), "{root}");
    let image = namespace.get("pod/web", "{.status.initContainerStatuses[0].image}").unwrap();
    assert!(image.ends_with(&outrigger_image()), "{image}");
}
