//! Profiles as objects, against a real API server: their definitions, who judges them, what pods get, and what is told of it.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};
use outrigger_e2e::{ApiServer, eventually_within, free_port, one_line, outrigger_command};

use crate::controller::Cluster;

const PATIENCE: Duration = Duration::from_secs(60);

/// The installation's profile.
const INSTALLED: &str = "image: registry.example/outrigger:7\nmesh: { trustDomain: shop.example, authority: 'a.example:15012', \
                         audience: outrigger, trustBundle: bundle }\n";

/// What `outrigger install` prints, but for what needs a Service that answers.
fn definitions() -> String {
    let printed = outrigger_command().arg("install").output().expect("the executable can be started");
    let printed = String::from_utf8(printed.stdout).unwrap();
    let all = printed.split("---\n").filter(|one| one.contains("kind: CustomResourceDefinition"));
    let all: Vec<&str> = all.filter(|one| one.contains("sidecarprofiles.outrigger.dev")).collect();
    assert_eq!(all.len(), 2, "two definitions of profiles");
    all.join("---\n")
}

/// The webhook that judges profiles, at a port of this machine.
fn judging(port: u16) -> String {
    format!(
        "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {{ name: outrigger-profiles }}\n\
         webhooks:\n- name: profiles.outrigger.dev\n  admissionReviewVersions: [v1]\n  sideEffects: None\n  failurePolicy: Fail\n  timeoutSeconds: 10\n  \
         clientConfig: {{ url: 'https://127.0.0.1:{port}/validate-profile' }}\n  \
         rules: [{{ apiGroups: [outrigger.dev], apiVersions: [v1alpha1], operations: [CREATE, UPDATE], resources: [sidecarprofiles, clustersidecarprofiles] }}]\n"
    )
}

fn profile(kind: &str, name: &str, spec: &str) -> String {
    let namespace = if kind == "SidecarProfile" { ", namespace: shop" } else { "" };
    format!("apiVersion: outrigger.dev/v1alpha1\nkind: {kind}\nmetadata: {{ name: {name}{namespace} }}\nspec: {spec}\n")
}

fn pod(name: &str, app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: shop, labels: {{ app: {app} }} }}\n\
         spec: {{ containers: [{{ name: app, image: none }}] }}\n"
    )
}

/// What a pod would become.
fn tried(api: &ApiServer, app: &str) -> Result<String> {
    api.create(&pod("trial", app), &["--dry-run=server", "--output=json"])
}

fn wait_for(api: &ApiServer, app: &str, what: &str) {
    eventually_within(PATIENCE, what, || {
        let made = tried(api, app)?;
        ensure!(made.contains(what), "{made}");
        Ok(())
    });
}

/// `outrigger explain pod`: its exit code, and what it prints.
fn explained(api: &ApiServer, pod: &str, more: &[&str]) -> (i32, String) {
    let mut command = outrigger_command();
    command.env("KUBECONFIG", api.kubeconfig()).args(["explain", "pod", pod, "--namespace=shop"]).args(more);
    let output = command.stdin(Stdio::null()).output().expect("the executable can be started");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), said)
}

/// A cluster with profiles, and a controller that knows them.
fn start(folder: &Path) -> (Cluster, outrigger_e2e::Outrigger) {
    let cluster = Cluster::start(folder);
    let port = free_port();
    cluster.api.apply(&definitions());
    cluster.configure(&[port], "Fail");
    cluster.api.apply(&judging(port));
    let file = folder.join("profile.yaml");
    fs::write(&file, INSTALLED).unwrap();
    let controller = cluster.controller("one", port, &format!(", profile: {}", file.display()), "  profiles: {}\n");
    cluster.wait_injecting(&controller);
    // What the installation keeps its profile in.
    let profile = INSTALLED.replace('\'', "''").replace('\n', "\n\n    ");
    cluster.api.apply(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: outrigger-controller, namespace: outrigger-system }}\ndata:\n  profile.yaml: '{profile}'\n"));
    (cluster, controller)
}

#[test]
fn bad_profiles_are_refused_with_the_path_of_the_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, controller) = start(folder.path());
    let api = &cluster.api;
    // As soon as the API server trusts who judges.
    eventually_within(PATIENCE, "a profile to be taken", || {
        api.create(&profile("ClusterSidecarProfile", "trial", "{ priority: 1 }"), &["--dry-run=server"])
    });
    for (kind, spec, expected) in [
        (
            "SidecarProfile",
            "{ config: { proxy: { listeners: [{ name: outbound, protocol: gopher }] } } }",
            "spec.config.proxy.listeners[0].protocol: `gopher`",
        ),
        (
            "ClusterSidecarProfile",
            "{ config: { telemetry: { log: { levl: warn } } } }",
            "spec.config.telemetry.log.levl: ",
        ),
        ("SidecarProfile", "{ config: { controller: {} } }", "spec.config.controller: the section is a controller's"),
        ("SidecarProfile", "{ injection: { imgae: x } }", "spec.injection.imgae: unknown field"),
        (
            "SidecarProfile",
            "{ injection: { image: x, configMap: { name: a } }, config: { metrics: {} } }",
            "`config` and `injection.configMap` exclude one another",
        ),
        (
            "SidecarProfile",
            "{ selector: { matchExpressions: [{ key: a, operator: In }] } }",
            "`In` and `NotIn` take `values`",
        ),
        ("SidecarProfile", "{ injection: { interception: magic } }", "spec.injection.interception"),
    ] {
        let error = format!("{:#}", api.create(&profile(kind, "bad", spec), &[]).unwrap_err());
        assert!(error.contains(expected), "{spec}: {error}");
    }
    let route = "{ config: { proxy: { listeners: [{ name: outbound, routes: [{ name: r, backendRefs: [{ name: nowhere }] }] }] } } }";
    let warned = api.create(&profile("SidecarProfile", "part", route), &["--dry-run=server"]).unwrap();
    assert!(warned.contains("Warning: outrigger: spec.config.proxy.listeners[0].routes[0]"), "{warned}");
    // A variable instead of a number, and null, are what the config takes, too.
    let odd = "{ injection: { resources: { cpuRequest: null } }, config: { runtime: { workers: '${WORKERS:-2}' }, metrics: {} } }";
    api.create(&profile("SidecarProfile", "odd", odd), &["--dry-run=server"]).unwrap();
    eventually_within(PATIENCE, "the counts", || {
        let of = |result: &str| controller.metric(&format!("outrigger_profile_reviews_total{{result=\"{result}\"}}"));
        ensure!(of("refused")? >= 4.0 && of("accepted")? >= 3.0, "too few");
        Ok(())
    });
}

#[test]
fn pods_get_what_the_profiles_say_and_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, _controller) = start(folder.path());
    let api = &cluster.api;
    let level = |level: &str| format!("config: {{ telemetry: {{ log: {{ level: {level} }} }} }}");
    api.apply(&profile(
        "ClusterSidecarProfile",
        "base",
        &format!("{{ injection: {{ image: 'registry.example/outrigger:8' }}, {} }}", level("error")),
    ));
    api.apply(&profile(
        "SidecarProfile",
        "web",
        &format!("{{ selector: {{ matchLabels: {{ app: web }} }}, {} }}", level("warn")),
    ));
    wait_for(api, "web", "level: warn");
    wait_for(api, "other", "level: error");
    assert!(tried(api, "web").unwrap().contains("registry.example/outrigger:8"), "the cluster's image");

    // A pod that is there, explained value by value.
    api.create(&pod("web-0", "web"), &[]).unwrap();
    let (code, said) = explained(api, "web-0", &[]);
    let line = one_line(&said);
    assert_eq!(code, 0, "{said}");
    assert!(line.contains("pod shop/web-0: it has what it should have"), "{said}");
    assert!(line.contains("telemetry.log.level warn SidecarProfile shop/web"), "{said}");
    assert!(line.contains("image registry.example/outrigger:8 ClusterSidecarProfile base"), "{said}");
    assert!(line.contains("proxy.listeners[inbound].address [::]:15006 default"), "{said}");
    let (_, told) = explained(api, "web-0", &["--format=json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["profiles"], serde_json::json!(["ClusterSidecarProfile base", "SidecarProfile shop/web"]));

    // A change counts from the next pod on, and reaches the one that runs; its status tells of both.
    let web = |level: &str, more: &str| {
        profile("SidecarProfile", "web", &format!("{{ selector: {{ matchLabels: {{ app: web }} }}, {more}{level} }}"))
    };
    let told = |kind: &str, name: &str| -> Result<String> {
        let format = "--output=jsonpath={.status.programmed}/{.status.pods}{range .status.conditions[*]} {.type}={.status} {.message}{end}";
        api.kubectl(&["get", kind, name, "--namespace=shop", format])
    };
    let wait_told = |kind: &str, name: &str, expected: &[&str]| {
        eventually_within(PATIENCE, "the status", || {
            let status = told(kind, name)?;
            ensure!(expected.iter().all(|one| status.contains(one)), "{status}, and not {expected:?}");
            Ok(())
        });
    };
    wait_told("sidecarprofile", "web", &["1/1 ", "Accepted=True", "Programmed=True 1 of 1 pods"]);
    api.apply(&web(&level("debug"), ""));
    wait_for(api, "web", "level: debug");
    eventually_within(PATIENCE, "the running pod to be told", || {
        let (code, said) = explained(api, "web-0", &[]);
        ensure!(
            code == 0 && one_line(&said).contains("telemetry.log.level debug SidecarProfile shop/web"),
            "{code}: {said}"
        );
        Ok(())
    });
    // What others are to send to it changes with what it takes, in steps; then it is as a pod that is made now.
    let wait_mtls = |injection: &str, told: &str, takes: &str| {
        api.apply(&web(&level("debug"), injection));
        eventually_within(PATIENCE, "the pod's annotations", || {
            let format = "--output=jsonpath={.metadata.annotations.outrigger\\.dev/mtls}|{.metadata.annotations.outrigger\\.dev/effective-config}";
            let now = api.kubectl(&["get", "pod", "web-0", "--namespace=shop", format])?;
            let mode = now.lines().find_map(|line| line.trim().strip_prefix("mode: ")).unwrap_or_default();
            ensure!(now.starts_with(&format!("{told}|")) && mode == takes, "{now}");
            Ok(())
        });
        let (code, said) = explained(api, "web-0", &[]);
        assert!(code == 0, "{code}: {said}");
    };
    wait_mtls("injection: { mtls: disabled }, ", "", "");
    wait_mtls("injection: { mtls: strict }, ", "strict", "strict");
    wait_mtls("", "permissive", "permissive");
    // What counts when a pod is made waits for that.
    api.apply(&web(&level("debug"), "injection: { image: 'registry.example/outrigger:9' }, "));
    wait_for(api, "web", "registry.example/outrigger:9");
    let (code, said) = explained(api, "web-0", &[]);
    assert!(code == 3 && said.contains("would be `registry.example/outrigger:9`"), "{code}: {said}");
    // So does what takes a volume; the pod keeps what it has, whole.
    let log =
        "config: { telemetry: { log: { level: info } }, proxy: { accessLog: { path: /var/log/mesh/access.log } } }";
    api.apply(&web(log, ""));
    wait_told(
        "sidecarprofile",
        "web",
        &[
            "0/1 ",
            "Programmed=False 0 of 1 pods, 1 not: shop/web-0: it has to be made anew: it has no volume at /var/log/mesh",
        ],
    );
    wait_told("clustersidecarprofile", "base", &["/1 "]);
    let (code, said) = explained(api, "web-0", &[]);
    assert!(code == 3 && said.contains("different now: proxy.accessLog.path, telemetry.log.level"), "{code}: {said}");
    // One that means it no longer.
    api.apply(&profile(
        "SidecarProfile",
        "web",
        &format!("{{ selector: {{ matchLabels: {{ app: api }} }}, {} }}", level("debug")),
    ));
    wait_for(api, "web", "level: error");
    wait_told("sidecarprofile", "web", &["0/0 ", "Programmed=True no running pod is meant"]);
    let (_, said) = explained(api, "web-0", &[]);
    assert!(said.contains("label `app` is `web`, not `api`"), "{said}");
    let (code, said) = explained(api, "nobody", &[]);
    assert!(code == 1 && said.contains("there is no pod `nobody`"), "{said}");

    // What changed while the API server was away, and was forgotten by etcd, is known all the same.
    api.stop_api();
    api.start_api();
    api.apply(&profile("SidecarProfile", "web", &format!("{{ {} }}", level("info"))));
    api.compact();
    wait_for(api, "web", "level: info");

    // One that came past its judge refuses the pods that it means, and no others.
    api.kubectl(&["delete", "validatingwebhookconfigurations", "outrigger-profiles"]).unwrap();
    api.create(
        &profile("SidecarProfile", "bad", "{ selector: { matchLabels: { app: bad } }, injection: { tokenz: [] } }"),
        &[],
    )
    .unwrap();
    eventually_within(PATIENCE, "the refusal", || {
        let refused = tried(api, "bad").err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(
            refused.contains("SidecarProfile shop/bad is wrong") && refused.contains("spec.injection.tokenz"),
            "{refused}"
        );
        Ok(())
    });
}

#[test]
fn without_the_definitions_no_pod_is_made_by_half_of_what_holds() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path());
    let port = free_port();
    cluster.configure(&[port], "Fail");
    let controller = cluster.controller("one", port, "", "  profiles: {}\n");
    eventually_within(PATIENCE, "the reason", || {
        let status = controller.get("/readyz?verbose")?.body;
        ensure!(status.contains("sidecarprofiles"), "{status}");
        Ok(())
    });
    let refused = format!("{:#}", tried(&cluster.api, "web").unwrap_err());
    assert!(refused.contains("webhook"), "{refused}");
    cluster.api.apply(&definitions());
    cluster.wait_injecting(&controller);
}
