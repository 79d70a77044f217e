//! What `outrigger install` prints: the same as the Helm chart, taken by a real API server, and doing there what it promises.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::{Result, ensure};
use outrigger_e2e::{ApiServer, eventually, outrigger_command, run, tool};
use serde_json::Value;

fn outrigger(arguments: &[&str]) -> Output {
    outrigger_command().args(arguments).stdin(Stdio::null()).output().expect("the executable can be started")
}

fn printed(arguments: &[&str]) -> String {
    let output = outrigger(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "hints are for terminals: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn documents(text: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    all.into_iter().filter(|document| !document.is_null()).collect()
}

/// Values that between them take each way there is.
const VALUES: &[(&str, &str)] = &[
    ("defaults", "{}"),
    (
        "everything",
        "namespace: mesh\nimage: \"registry.example:5000/outrigger@sha256:abc\"\nimagePullPolicy: Always\n\
         imagePullSecrets: [registry]\nreplicas: 3\ntrustDomain: shop.example\ninterception: self\nmtls: strict\n\
         profile: { logLevel: debug, redirect: { excludeOutboundPorts: [\"3306\"] }, config: { metrics: {} } }\n\
         failurePolicy: Ignore\nrepair: evict\nwebhookTimeoutSeconds: 2\nwebhookCertificate: certManager\n\
         certManagerIssuer: { kind: ClusterIssuer, name: company }\nauthoritySecret: company-ca\n\
         resources: { cpuRequest: \"1\", cpuLimit: \"2\", memoryRequest: 1Gi, memoryLimit: 2Gi }\n\
         nodeSelector: { \"node-role.kubernetes.io/control-plane\": \"\" }\n\
         tolerations: [{ key: node-role.kubernetes.io/control-plane, operator: Exists, effect: NoSchedule }]\n\
         priorityClassName: system-cluster-critical\nlogLevel: debug\n",
    ),
    ("cert-manager alone", "webhookCertificate: certManager\ncertManagerIssuer: { name: here }\n"),
    (
        "an issuer that is made",
        "webhookCertificate: certManager\nresources: { cpuRequest: null, memoryRequest: null, memoryLimit: null }\n",
    ),
    ("an authority of somebody else's", "authoritySecret: company-ca\ninterception: none\nrepair: \"off\"\n"),
];

/// Objects by kind and name; texts that hold YAML as what they hold.
fn by_name(text: &str) -> Vec<(String, Value)> {
    let mut all: Vec<(String, Value)> = documents(text)
        .into_iter()
        .map(|mut object| {
            let name = format!("{}/{}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
            if name.starts_with("ConfigMap/") {
                for (key, text) in object["data"].as_object_mut().unwrap() {
                    // The settings are held by what they give; see below.
                    *text =
                        if key == "install.yaml" { Value::Null } else { documents(text.as_str().unwrap()).remove(0) };
                }
            }
            (name, object)
        })
        .collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all
}

#[test]
fn the_chart_renders_what_install_prints() {
    let folder = tempfile::tempdir().unwrap();
    let chart = repository().join("deploy/chart");
    for (name, values) in VALUES {
        let file = folder.path().join("values.yaml");
        // What the two differ in by default, for Helm has its own way to make namespaces.
        fs::write(&file, format!("{}createNamespace: true\n", values.trim_start_matches("{}"))).unwrap();
        let file = file.to_str().unwrap();
        let mut helm = tool("helm");
        // It keeps caches in the home folder.
        helm.env("HOME", folder.path()).args(["template", "outrigger"]).arg(&chart);
        let rendered = run(helm.args(["--namespace", "outrigger-system", "--values", file])).unwrap();
        let printed_here = printed(&["install", "-f", file]);
        // What the chart records as its settings gives all of it again.
        let config = documents(&rendered).into_iter().find(|one| one["kind"] == "ConfigMap").unwrap();
        let recorded = folder.path().join("recorded.yaml");
        fs::write(&recorded, config["data"]["install.yaml"].as_str().unwrap()).unwrap();
        let again = printed(&["install", "-f", recorded.to_str().unwrap()]);
        let (rendered, ours) = (by_name(&rendered), by_name(&printed_here));
        assert!(by_name(&again) == ours, "{name}: the chart records other settings than it was given");
        let names = |all: &[(String, Value)]| all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&rendered), names(&ours), "{name}");
        for ((object, theirs), (_, ours)) in rendered.iter().zip(&ours) {
            assert_eq!(theirs, ours, "{name}: {object}");
        }
    }
    // A key that nobody knows is a mistake there, too, and the notes and a lint pass.
    let mut helm = tool("helm");
    helm.env("HOME", folder.path()).args(["template", "outrigger"]).arg(&chart);
    let error = format!("{:#}", run(helm.args(["--set", "imgae=x"])).unwrap_err());
    assert!(error.contains("imgae"), "{error}");
    let mut helm = tool("helm");
    run(helm.env("HOME", folder.path()).args(["lint", "--strict"]).arg(&chart)).unwrap();
    let version = format!("version: {0}\nappVersion: {0}\n", env!("CARGO_PKG_VERSION"));
    assert!(fs::read_to_string(chart.join("Chart.yaml")).unwrap().contains(&version), "the chart has our version");
}

#[test]
fn wrong_settings_are_told_and_nothing_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let (unknown, broken) = (write("unknown.yaml", "imgae: x\n"), write("broken.yaml", "image: [\n"));
    let profile = write("profile.yaml", "profile: { interceptoin: none }\n");
    for (arguments, code, expected) in [
        (&["install", "-f", &unknown][..], 2, "unknown.yaml are wrong: unknown field `imgae`"),
        (&["install", "-f", &broken], 2, "broken.yaml are wrong: line "),
        (&["install", "-f", &profile], 2, "`profile` is wrong: unknown field `interceptoin`"),
        (&["install", "-f", "/nowhere"], 1, "cannot read /nowhere"),
        (&["install", "--replicas", "0"], 2, "`replicas` is 0"),
        (&["install", "--namespace", "kube-system"], 2, "which others share"),
        (&["install", "--trust-domain", "A B"], 2, "trust domain"),
        (&["install", "--failure-policy", "fail"], 2, "[possible values: Fail, Ignore]"),
        (&["install", "extra"], 2, "unexpected argument"),
        (&["uninstall", "--namespace", "Not One"], 2, "a namespace has"),
    ] {
        let output = outrigger(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(expected), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}: nothing that could be applied");
    }
    assert_eq!(printed(&["install"]), printed(&["install"]));
    assert_eq!(printed(&["install", "--uninstall", "-n", "mesh"]), printed(&["uninstall", "-n", "mesh"]));
    assert!(!printed(&["install", "-n", "mesh", "--no-namespace"]).contains("kind: Namespace"));
}

/// What cert-manager brings, as far as our objects are judged by it.
fn cert_manager() -> String {
    let one = |kind: &str, plural: &str| {
        format!(
            "---\napiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {{ name: {plural}.cert-manager.io }}\n\
             spec:\n  group: cert-manager.io\n  scope: Namespaced\n  names: {{ kind: {kind}, plural: {plural}, singular: {} }}\n  versions:\n  - name: v1\n    \
             served: true\n    storage: true\n    schema: {{ openAPIV3Schema: {{ type: object, x-kubernetes-preserve-unknown-fields: true }} }}\n",
            kind.to_lowercase()
        )
    };
    one("Certificate", "certificates") + &one("Issuer", "issuers")
}

struct Cluster {
    api: ApiServer,
    folder: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { api: ApiServer::start(folder.path()), folder }
    }

    /// `kubectl ARGUMENTS -f` a manifest.
    fn with(&self, arguments: &[&str], manifest: &str) -> Result<String> {
        let file = self.folder.path().join("manifest.yaml");
        fs::write(&file, manifest)?;
        self.api.kubectl(&[arguments, &["--filename", file.to_str().unwrap()]].concat())
    }
}

#[test]
fn an_api_server_takes_every_way_to_install() {
    let cluster = Cluster::start();
    cluster.with(&["apply"], &cert_manager()).unwrap();
    for namespace in ["outrigger-system", "mesh"] {
        cluster.api.kubectl(&["create", "namespace", namespace]).unwrap();
    }
    let values = cluster.folder.path().join("values.yaml");
    for (name, content) in VALUES {
        fs::write(&values, content).unwrap();
        let manifest = printed(&["install", "-f", values.to_str().unwrap()]);
        eventually(name, || {
            let taken = cluster.with(&["apply", "--dry-run=server", "--validate=strict"], &manifest)?;
            let documents = documents(&manifest).len();
            ensure!(taken.lines().count() == documents, "{documents} objects, but: {taken}");
            Ok(())
        });
    }
}

/// A pod with labels, annotations and more of its spec.
fn pod(namespace: &str, labels: &str, annotations: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ generateName: p-, namespace: {namespace}, labels: {{ {labels} }}, annotations: \
         {{ {annotations} }} }}\nspec: {{ containers: [{{ name: app, image: none }}], {spec} }}\n"
    )
}

#[test]
fn an_installation_holds_up_nobody_who_did_not_ask_for_it() {
    let cluster = Cluster::start();
    let values = cluster.folder.path().join("values.yaml");
    fs::write(&values, "webhookTimeoutSeconds: 1\n").unwrap();
    let manifest = printed(&["install", "-f", values.to_str().unwrap()]);
    let created = cluster.with(&["apply"], &manifest).unwrap();
    assert_eq!(created.matches(" created").count(), documents(&manifest).len(), "{created}");
    // What the controllers write meanwhile stays.
    let patch = "[{\"op\":\"add\",\"path\":\"/webhooks/0/clientConfig/caBundle\",\"value\":\"QUJD\"}]";
    let webhooks = "mutatingwebhookconfiguration/outrigger-injector";
    cluster.api.kubectl(&["patch", webhooks, "--type=json", "-p", patch]).unwrap();
    cluster.with(&["apply"], &manifest).unwrap();
    // The controllers of Kubernetes write beside us, so it may look different for a moment.
    eventually("no difference", || cluster.with(&["diff"], &manifest));
    let kept = cluster.api.kubectl(&["get", webhooks, "-o", "jsonpath={.webhooks[0].clientConfig.caBundle}"]).unwrap();
    assert_eq!(kept, "QUJD");

    // The controllers' own pods pass their namespace's Pod Security level, and wait for no webhook.
    eventually("the controllers' pods", || {
        let pods = cluster.api.kubectl(&["get", "pods", "-n", "outrigger-system", "-o", "name"])?;
        ensure!(pods.lines().count() == 2, "{pods}");
        Ok(())
    });

    // No controller answers here; so whoever is asked about is not made.
    for (namespace, label) in [("shop", "enabled"), ("other", ""), ("odd", "true"), ("out", "disabled")] {
        cluster.api.kubectl(&["create", "namespace", namespace]).unwrap();
        cluster.api.kubectl(&["create", "serviceaccount", "pods", "-n", namespace]).unwrap();
        if !label.is_empty() {
            let label = format!("outrigger.dev/inject={label}");
            cluster.api.kubectl(&["label", "namespace", namespace, &label]).unwrap();
        }
    }
    cluster.api.kubectl(&["label", "namespace", "kube-system", "outrigger.dev/inject=enabled"]).unwrap();
    let (on, off) = ("outrigger.dev/inject: enabled", "outrigger.dev/inject: disabled");
    let node = "hostNetwork: true";
    for (name, pod, held_up) in [
        ("of a namespace that opted in", pod("shop", "", "", ""), true),
        ("of one with the other word for it", pod("odd", "", "", ""), true),
        ("of a namespace that said nothing", pod("other", "", "", ""), false),
        ("that opts out by a label", pod("shop", off, "", ""), false),
        ("that opts out by an annotation", pod("shop", "", off, ""), false),
        ("that opts in by the label, which counts more", pod("shop", on, off, ""), true),
        ("on its node's network", pod("shop", "", "", node), false),
        ("on its node's network that asks all the same", pod("shop", "", on, node), true),
        ("that mirrors a static one", pod("shop", "", "kubernetes.io/config.mirror: x", "nodeName: n1"), false),
        ("of a namespace that opted out", pod("out", "", "", ""), false),
        ("that opts in by itself", pod("other", on, "", ""), false),
        ("of the system", pod("kube-system", "", "", ""), false),
    ] {
        let pod = pod.replace("spec: { ", "spec: { serviceAccountName: pods, automountServiceAccountToken: false, ");
        let pod = if name == "of the system" { pod.replace("serviceAccountName: pods, ", "") } else { pod };
        let make = || cluster.with(&["create", "--dry-run=server"], &pod);
        if held_up {
            // The API server learns of webhooks and labels by watches of its own.
            eventually(&format!("a pod {name} to be held up"), || match make() {
                Err(error) if format!("{error:#}").contains("failed calling webhook") => Ok(()),
                other => anyhow::bail!("{other:?}"),
            });
            continue;
        }
        match make() {
            Ok(_) => {}
            // Only the kubelet makes mirrors.
            Err(error) if name.contains("mirrors") && !format!("{error:#}").contains("webhook") => {}
            Err(error) => panic!("a pod {name}: {error:#}"),
        }
    }

    // What the controllers may do, and what not.
    let account = "--as=system:serviceaccount:outrigger-system:outrigger-controller";
    for (question, allowed) in [
        (&["create", "tokenreviews.authentication.k8s.io"][..], true),
        (&["watch", "pods", "--all-namespaces"], true),
        (&["patch", "mutatingwebhookconfigurations/outrigger-injector"], true),
        (&["patch", "mutatingwebhookconfigurations/of-others"], false),
        (&["get", "secrets/outrigger-roots", "-n", "outrigger-system"], true),
        (&["get", "secrets/of-others", "-n", "outrigger-system"], false),
        (&["list", "secrets", "-n", "outrigger-system"], false),
        (&["create", "pods/eviction", "-n", "shop"], false),
        (&["get", "secrets/outrigger-roots", "-n", "shop"], false),
        (&["update", "pods", "-n", "shop"], false),
        (&["patch", "pods", "-n", "shop"], true),
        (&["patch", "pods/ephemeralcontainers", "-n", "shop"], true),
        (&["patch", "configmaps/outrigger-ca-root-cert", "-n", "shop"], true),
        (&["create", "configmaps", "-n", "shop"], false),
        (&["get", "configmaps/of-others", "-n", "shop"], false),
        (&["create", "pods/exec", "-n", "shop"], false),
        (&["update", "leases/outrigger-controller", "-n", "outrigger-system"], true),
        (&["update", "leases/of-others", "-n", "outrigger-system"], false),
    ] {
        let said = cluster.api.kubectl(&[&["auth", "can-i", account], question].concat());
        assert_eq!(said.is_ok(), allowed, "{question:?}: {said:?}");
    }

    // All that was made goes, and pods are held up no more.
    let removal = printed(&["uninstall"]);
    cluster.with(&["delete", "--wait=false"], &removal).unwrap();
    let pod = pod("odd", "", "", "serviceAccountName: pods, automountServiceAccountToken: false");
    eventually("a pod to be made", || cluster.with(&["create"], &pod));
    let left = cluster
        .api
        .kubectl(&["get", "clusterroles,clusterrolebindings,mutatingwebhookconfigurations", "-o", "name"])
        .unwrap();
    assert!(!left.contains("outrigger"), "{left}");
}

/// `outrigger check`, its exit code and what it printed.
fn check(kubeconfig: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = outrigger_command();
    command.env("KUBECONFIG", kubeconfig).arg("check").args(arguments).stdin(Stdio::null());
    let output = command.output().expect("the executable can be started");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// What a report in JSON says of a thing: its state and what was found.
fn finding(report: &str, what: &str) -> (String, String) {
    let report: Value = serde_json::from_str(report).unwrap_or_else(|error| panic!("{error}: {report}"));
    let all = report["findings"].as_array().unwrap();
    let found = all.iter().find(|one| one["what"] == what).unwrap_or_else(|| panic!("no `{what}` in {report:#}"));
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    assert_eq!(text("mend").is_empty(), text("state") == "ok", "{found}");
    (text("state"), text("told"))
}

#[test]
fn check_tells_what_a_cluster_lacks_and_what_was_changed() {
    let cluster = Cluster::start();
    let (admin, json) = (cluster.folder.path().join("cluster/admin.conf"), ["--format", "json"]);
    let node =
        "apiVersion: v1\nkind: Node\nmetadata: { name: n1 }\nstatus: { nodeInfo: { kubeletVersion: v1.34.4 } }\n";
    let kubectl = |arguments: &[&str]| cluster.api.kubectl(arguments).unwrap();
    cluster.with(&["create"], node).unwrap();
    let (code, report) = check(&admin, &["--pre"]);
    assert!(code == Some(0) && report.ends_with("\nall is well\n"), "{report}");
    assert!(report.contains("ok       Kubernetes version") && report.contains("v1.34"), "{report}");
    let (code, report) = check(&admin, &["--pre", "-f", "-"]);
    assert_eq!(code, Some(0), "an empty values file: {report}");

    // A user who may do nothing.
    kubectl(&["create", "serviceaccount", "nobody"]);
    let limited = cluster.folder.path().join("limited.conf");
    fs::copy(&admin, &limited).unwrap();
    let token = format!("--token={}", kubectl(&["create", "token", "nobody"]).trim());
    let config = format!("--kubeconfig={}", limited.display());
    kubectl(&["config", "set-credentials", "nobody", &token, &config]);
    kubectl(&["config", "set-context", "--current", "--user=nobody", &config]);
    let (code, report) = check(&limited, &["--pre", "--format", "json"]);
    assert_eq!(code, Some(3), "{report}");
    let (state, told) = finding(&report, "your rights");
    assert!(state == "failed" && told.contains("you may not get customresourcedefinitions, create"), "{told}");
    assert!(told.contains("get namespaces, create namespaces"), "{told}");
    let (state, told) = finding(&report, "nodes");
    assert!(state == "unknown" && told.contains("nodes") && told.contains("nobody"), "{told}");

    // Nothing there, then no controllers: this API server has no nodes that run any.
    let (code, report) = check(&admin, &json);
    assert_eq!(code, Some(3));
    assert!(finding(&report, "installation").1.contains("none in the namespace `outrigger-system`"), "{report}");
    cluster.with(&["apply"], &printed(&["install"])).unwrap();
    let (code, report) = check(&admin, &json);
    assert_eq!(code, Some(3), "{report}");
    for (what, state, told) in [
        ("version", "ok", "here and in the cluster"),
        ("objects", "ok", "all 15 are there, as installed"),
        ("controllers", "failed", "0 of 2 ready"),
        ("service", "failed", "no controller stands behind it"),
        ("webhook certificate", "failed", "has no `caBundle`"),
        ("webhook", "failed", "without a sidecar"),
        ("profiles' certificate", "failed", "has no `caBundle`"),
        ("profiles' webhook", "failed", "cannot be made or changed"),
        ("leader", "failed", "no controller has taken the lease"),
        ("authority", "failed", "no roots yet"),
        ("trust bundles", "ok", "in all 0 namespaces"),
        ("namespaces", "ok", "none opted in yet"),
        ("pods without a sidecar", "ok", "none"),
    ] {
        let (found, said) = finding(&report, what);
        assert!(found == state && said.contains(told), "{what}: {found}: {said}");
    }

    // What somebody changed is named, place by place; where a webhook that fails is an error, its word is shown.
    kubectl(&["scale", "deployment/outrigger-controller", "--replicas=5", "-n", "outrigger-system"]);
    let rule = "[{\"op\":\"add\",\"path\":\"/rules/-\",\"value\":{\"apiGroups\":[\"\"],\"resources\":[\"secrets\"],\"verbs\":[\"list\"]}}]";
    kubectl(&["patch", "clusterrole/outrigger-controller", "--type=json", "-p", rule]);
    kubectl(&["delete", "poddisruptionbudget/outrigger-controller", "-n", "outrigger-system"]);
    let (_, report) = check(&admin, &json);
    let (state, told) = finding(&report, "objects");
    assert_eq!(
        (state.as_str(), told.as_str()),
        ("failed", "missing: PodDisruptionBudget outrigger-system/outrigger-controller")
    );
    cluster.with(&["apply"], &printed(&["install"])).unwrap();
    kubectl(&["scale", "deployment/outrigger-controller", "--replicas=5", "-n", "outrigger-system"]);
    kubectl(&["patch", "clusterrole/outrigger-controller", "--type=json", "-p", rule]);
    kubectl(&["create", "namespace", "shop"]);
    kubectl(&["label", "namespace", "shop", "outrigger.dev/inject=enabled"]);
    // One that is on its way out, and cannot go yet, is nobody's concern.
    let gone = "apiVersion: v1\nkind: Namespace\nmetadata: { name: gone, labels: { outrigger.dev/inject: enabled } }\n---\n\
                apiVersion: v1\nkind: ConfigMap\nmetadata: { name: stays, namespace: gone, finalizers: [test.example/stays] }\n";
    cluster.with(&["create"], gone).unwrap();
    kubectl(&["delete", "namespace", "gone", "--wait=false"]);
    let (_, report) = check(&admin, &json);
    let (state, told) = finding(&report, "objects");
    let places = [
        "Deployment outrigger-system/outrigger-controller: spec.replicas is `5`, not `2`",
        "ClusterRole outrigger-controller: rules[17] is `{",
    ];
    assert!(state == "warning" && places.iter().all(|place| told.contains(place)), "{told}");
    assert_eq!(finding(&report, "namespaces").1, "1 opted in: shop");
    eventually("the webhook's failure", || {
        let (_, report) = check(&admin, &json);
        let (state, told) = finding(&report, "webhook");
        ensure!(state == "failed" && told.contains("failed calling webhook"), "{told}");
        Ok(())
    });

    // It waits for what comes, and tells when nobody answers at all.
    let late = std::thread::spawn({
        let (admin, values) = (admin.clone(), ["--pre", "--no-namespace", "-n", "later", "--wait", "60s"]);
        move || check(&admin, &values)
    });
    kubectl(&["create", "namespace", "later"]);
    let (code, report) = late.join().unwrap();
    assert_ne!(code, Some(3), "{report}");
    let nowhere = cluster.folder.path().join("nowhere.conf");
    fs::copy(&admin, &nowhere).unwrap();
    let config = format!("--kubeconfig={}", nowhere.display());
    let name = kubectl(&["config", "view", "--output=jsonpath={.clusters[0].name}"]);
    kubectl(&["config", "set-cluster", &name, "--server=https://127.0.0.1:1", &config]);
    let (code, said) = check(&nowhere, &[]);
    assert!(code == Some(1) && said.contains("cannot be reached"), "{said}");
    let (code, said) = check(Path::new("/nowhere"), &["--context", "none"]);
    assert!(code == Some(1) && said.contains("/nowhere"), "{said}");
}
