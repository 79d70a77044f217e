//! The controller against a real API server: what its webhook does to pods, how its certificate changes, what it repairs,
//! and what it says when it lacks a right.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use outrigger_e2e::{ApiServer, Outrigger, eventually, eventually_within, free_port, run, start_outrigger_with, tool};

use crate::kubernetes::Busy;

const PATIENCE: Duration = Duration::from_secs(60);
const SYSTEM: &str = "outrigger-system";

/// The rights that docs/controller.md names, and nothing else.
const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: outrigger-system, labels: { outrigger.dev/inject: enabled } }
---
apiVersion: v1
kind: Namespace
metadata: { name: shop, labels: { outrigger.dev/inject: enabled } }
---
apiVersion: v1
kind: Namespace
metadata: { name: plain }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: outrigger-controller, namespace: outrigger-system }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: outrigger-controller }
rules:
  - { apiGroups: [''], resources: [namespaces, pods], verbs: [get, list, watch] }
  - { apiGroups: [''], resources: [pods/eviction], verbs: [create] }
  - { apiGroups: [apps], resources: [replicasets], verbs: [get] }
  - { apiGroups: [batch], resources: [jobs], verbs: [get] }
  - { apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch] }
  - apiGroups: [admissionregistration.k8s.io]
    resources: [mutatingwebhookconfigurations]
    resourceNames: [outrigger-injector]
    verbs: [get, list, watch, patch]
  - { apiGroups: [outrigger.dev], resources: [sidecarprofiles, clustersidecarprofiles], verbs: [get, list, watch] }
  - { apiGroups: [outrigger.dev], resources: [sidecarprofiles/status, clustersidecarprofiles/status], verbs: [patch] }
  - { apiGroups: [''], resources: [pods], verbs: [patch] }
  - apiGroups: [admissionregistration.k8s.io]
    resources: [validatingwebhookconfigurations]
    resourceNames: [outrigger-profiles]
    verbs: [get, list, watch, patch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: outrigger-controller }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: outrigger-controller }
subjects: [{ kind: ServiceAccount, name: outrigger-controller, namespace: outrigger-system }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: outrigger-controller, namespace: outrigger-system }
rules:
  - { apiGroups: [''], resources: [secrets], verbs: [create] }
  - { apiGroups: [''], resources: [secrets], resourceNames: [outrigger-webhook], verbs: [get, list, watch, update] }
  - { apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create] }
  - { apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [outrigger-controller], verbs: [get, update] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: outrigger-controller, namespace: outrigger-system }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: outrigger-controller }
subjects: [{ kind: ServiceAccount, name: outrigger-controller, namespace: outrigger-system }]
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: default, namespace: shop }
";

pub(crate) struct Cluster {
    pub(crate) api: ApiServer,
    folder: PathBuf,
}

impl Cluster {
    pub(crate) fn start(folder: &Path) -> Self {
        let api = ApiServer::start(folder);
        api.apply(OBJECTS);
        api.write_access(folder, SYSTEM, "outrigger-controller");
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
             clusters: [{{ name: it, cluster: {{ server: '{}', certificate-authority: api-ca.pem }} }}]\n\
             users: [{{ name: it, user: {{ tokenFile: api-token }} }}]\n\
             contexts: [{{ name: it, context: {{ cluster: it, user: it }} }}]\n",
            api.server()
        );
        fs::write(folder.join("controller.conf"), config).unwrap();
        Self { api, folder: folder.to_path_buf() }
    }

    /// A controller that serves at `port`. `more` are further keys of its section.
    pub(crate) fn controller(&self, name: &str, port: u16, webhook: &str, more: &str) -> Outrigger {
        let home = self.folder.join(name);
        fs::create_dir_all(&home).unwrap();
        let config = format!(
            "controller:\n  identity: {name}\n  kubernetes: {{ kubeconfig: {}/controller.conf }}\n  \
             election: {{ duration: 4s, renewDeadline: 2s, retry: 300ms }}\n  \
             webhook: {{ listen: '127.0.0.1:{port}', names: [127.0.0.1]{webhook} }}\n{more}",
            self.folder.display()
        );
        start_outrigger_with(&home, &config, &[])
    }

    /// The webhook configuration, for a controller at each of these ports.
    pub(crate) fn configure(&self, ports: &[u16], policy: &str) {
        let webhook = |(at, port): (usize, &u16)| {
            format!(
                "- name: w{at}.inject.outrigger.dev\n  admissionReviewVersions: [v1]\n  sideEffects: NoneOnDryRun\n  \
                 reinvocationPolicy: IfNeeded\n  failurePolicy: {policy}\n  timeoutSeconds: 10\n  \
                 namespaceSelector: {{ matchLabels: {{ outrigger.dev/inject: enabled }} }}\n  \
                 clientConfig: {{ url: 'https://127.0.0.1:{port}/inject' }}\n  \
                 rules: [{{ apiGroups: ['', apps], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [pods, pods/ephemeralcontainers, daemonsets] }}]\n"
            )
        };
        let webhooks: String = ports.iter().enumerate().map(webhook).collect();
        self.api.apply(&format!(
            "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {{ name: outrigger-injector }}\nwebhooks:\n{webhooks}"
        ));
    }

    /// Waits until a pod is injected, which needs everything.
    pub(crate) fn wait_injecting(&self, controller: &Outrigger) {
        eventually_within(PATIENCE, "a pod to be injected", || {
            let made = self.api.create(&pod("shop", "probe", ""), &["--dry-run=server", "--output=json"])?;
            let status = controller.get("/readyz?verbose").map(|response| response.body).unwrap_or_default();
            ensure!(is_injected(&made), "{made}\n{status}");
            Ok(())
        });
    }

    fn events(&self, reason: &str) -> Result<String> {
        let format = "--output=jsonpath={range .items[*]}{.regarding.kind}/{.regarding.name} {.note}{\"\\n\"}{end}";
        let selector = format!("--field-selector=reason={reason}");
        self.api.kubectl(&["get", "events.events.k8s.io", "--namespace=shop", &selector, format])
    }
}

fn pod(namespace: &str, name: &str, annotations: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ generateName: {name}-, namespace: {namespace}, annotations: {{ {annotations} }} }}\n\
         spec: {{ containers: [{{ name: app, image: none }}] }}\n"
    )
}

fn deployment(name: &str, annotations: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n  replicas: 1\n  \
         selector: {{ matchLabels: {{ app: {name} }} }}\n  template:\n    \
         metadata: {{ labels: {{ app: {name} }}, annotations: {{ {annotations} }} }}\n    \
         spec: {{ containers: [{{ name: app, image: none }}] }}\n"
    )
}

fn is_injected(text: &str) -> bool {
    text.contains("outrigger.dev/status") && text.contains("\"name\": \"outrigger-init\"")
}

#[test]
fn pods_are_injected_refused_or_left_alone_as_they_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path());
    let port = free_port();
    cluster.configure(&[port], "Fail");
    let profile = folder.path().join("profile.yaml");
    fs::write(&profile, "image: registry.example/outrigger:7\n").unwrap();
    let controller = cluster.controller("one", port, &format!(", profile: {}", profile.display()), "");
    cluster.wait_injecting(&controller);
    let api = &cluster.api;
    let make = |manifest: &str| api.create(manifest, &["--output=json"]);

    let made = make(&pod("shop", "web", "")).unwrap();
    assert!(is_injected(&made) && made.contains("registry.example/outrigger:7"), "{made}");
    let plain = make(&pod("plain", "web", "")).unwrap();
    assert!(!plain.contains("outrigger"), "a namespace that did not ask: {plain}");
    let own = make(&pod(SYSTEM, "web", "")).unwrap();
    assert!(!own.contains("outrigger-init"), "its own namespace, although labelled: {own}");
    let host = pod("shop", "host", "").replace("spec: {", "spec: { hostNetwork: true,");
    assert!(!make(&host).unwrap().contains("outrigger-init"));
    let out = make(&pod("shop", "out", "outrigger.dev/inject: disabled")).unwrap();
    assert!(!out.contains("outrigger-init"));

    let warned = make(&pod("shop", "warn", "prometheus.io/scrape: 'true', prometheus.io/scheme: https")).unwrap();
    assert!(warned.contains("Warning: outrigger: the application's metrics are not merged"), "{warned}");
    let other = "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: { name: d, namespace: shop }\nspec: { selector: { matchLabels: { a: b } }, template: { metadata: { labels: { a: b } }, spec: { containers: [{ name: app, image: none }] } } }\n";
    let other = api.create(other, &["--dry-run=server"]).unwrap();
    assert!(other.contains("was asked about `apps/v1, DaemonSet`; correct its `rules`"), "{other}");

    // What is there already is not touched: neither by a change, nor by a debugger's container.
    let name =
        api.kubectl(&["get", "pods", "--namespace=shop", "--output=jsonpath={.items[0].metadata.name}"]).unwrap();
    api.kubectl(&["label", "pod", &name, "--namespace=shop", "a=b"]).unwrap();
    let patch = "{\"spec\":{\"ephemeralContainers\":[{\"name\":\"debug\",\"image\":\"none\"}]}}";
    api.kubectl(&[
        "patch",
        "pod",
        &name,
        "--namespace=shop",
        "--subresource=ephemeralcontainers",
        "--type=strategic",
        "--patch",
        patch,
    ])
    .unwrap();

    // A refusal names the annotation, to who makes the pod and on what makes it.
    let bad = "outrigger.dev/interception: sometimes";
    let refused = format!("{:#}", api.create(&pod("shop", "bad", bad), &["--dry-run=server"]).unwrap_err());
    assert!(refused.contains("outrigger.dev/interception") && refused.contains("`init`"), "{refused}");
    assert_eq!(cluster.events("InjectionRefused").unwrap(), "", "a dry run leaves no event");
    api.apply(&deployment("orders", bad));
    eventually_within(PATIENCE, "the event on the Deployment", || {
        let events = cluster.events("InjectionRefused")?;
        ensure!(events.contains("Deployment/orders") && events.contains("outrigger.dev/interception"), "{events}");
        Ok(())
    });

    // Another profile counts from the next pod on, and a bad one changes nothing.
    fs::write(&profile, "image: registry.example/outrigger:8\n").unwrap();
    eventually("the new profile", || {
        let made = api.create(&pod("shop", "new", ""), &["--dry-run=server", "--output=json"])?;
        ensure!(made.contains("registry.example/outrigger:8"), "{made}");
        Ok(())
    });
    fs::write(&profile, "imgae: x\n").unwrap();
    eventually("the refusal", || {
        ensure!(controller.process.log().contains("imgae"), "it is not told yet");
        Ok(())
    });
    assert!(is_injected(&make(&pod("shop", "last", "")).unwrap()));
    eventually("the counts", || {
        let of = |result: &str| controller.metric(&format!("outrigger_webhook_reviews_total{{result=\"{result}\"}}"));
        ensure!(of("injected")? >= 4.0 && of("refused")? >= 2.0 && of("left")? >= 4.0, "too few");
        Ok(())
    });
}

/// What a namespace may use, and a service account for its pods.
fn bounded(namespace: &str, bounds: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {namespace}, labels: {{ outrigger.dev/inject: enabled }} }}\n---\n\
         apiVersion: v1\nkind: ServiceAccount\nmetadata: {{ name: default, namespace: {namespace} }}\n---\n\
         apiVersion: v1\n{bounds}\n"
    )
}

#[test]
fn quotas_and_limits_let_the_sidecar_in_or_say_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path());
    let (port, api) = (free_port(), &cluster.api);
    cluster.configure(&[port], "Fail");
    let quota = |name: &str| {
        format!(
            "kind: ResourceQuota\nmetadata: {{ name: all, namespace: {name} }}\nspec: {{ hard: {{ limits.cpu: '2', requests.cpu: '1', limits.memory: 1Gi, requests.memory: 500Mi }} }}"
        )
    };
    let range = |name: &str, more: &str| {
        format!(
            "kind: LimitRange\nmetadata: {{ name: each, namespace: {name} }}\nspec: {{ limits: [{{ type: Container, {more} }}] }}"
        )
    };
    let defaults = range("filled", "default: { cpu: 200m, memory: 96Mi }, defaultRequest: { cpu: 20m, memory: 24Mi }");
    api.apply(&format!("{}---\napiVersion: v1\n{}\n", bounded("filled", &defaults), quota("filled")));
    api.apply(&bounded("bare", &quota("bare")));
    api.apply(&bounded("large", &range("large", "min: { memory: 48Mi }")));
    api.apply(&bounded("small", &range("small", "max: { memory: 100Mi }")));
    let controller = cluster.controller("one", port, "", "");
    cluster.wait_injecting(&controller);
    let resources = "resources: { requests: { cpu: 50m, memory: 60Mi }, limits: { cpu: 100m, memory: 60Mi } }";
    let make = |namespace: &str, annotations: &str, resources: &str| {
        let pod = pod(namespace, "web", annotations).replace("image: none", &format!("image: none, {resources}"));
        api.create(&pod, &["--output=json"])
    };
    // Their status is written a moment after they were made.
    for namespace in ["filled", "bare"] {
        eventually_within(PATIENCE, "the quota", || {
            let told = api.kubectl(&[
                "get",
                "resourcequota/all",
                "--namespace",
                namespace,
                "--output=jsonpath={.status.hard}",
            ])?;
            ensure!(told.contains("limits.cpu"), "{told}");
            Ok(())
        });
    }
    // What nobody says is said by the LimitRange, of our containers, too, whoever of the two comes first.
    let made: serde_json::Value = serde_json::from_str(&make("filled", "", "").unwrap()).unwrap();
    for container in made["spec"]["initContainers"].as_array().unwrap() {
        let expected = serde_json::json!({ "requests": { "cpu": "10m", "memory": "32Mi" }, "limits": { "cpu": "200m", "memory": "128Mi" } });
        assert_eq!(container["resources"], expected, "{container}");
    }
    // Refused with what is missing, and in with it.
    for (namespace, told, mend) in [
        ("bare", "must specify limits.cpu for: outrigger,outrigger-init", "outrigger.dev/cpu-limit: 100m"),
        (
            "large",
            "minimum memory usage per Container is 48Mi, but request is 32Mi",
            "outrigger.dev/memory-request: 48Mi",
        ),
        (
            "small",
            "maximum memory usage per Container is 100Mi, but limit is 128Mi",
            "outrigger.dev/memory-limit: 64Mi",
        ),
    ] {
        let refused = format!("{:#}", make(namespace, "", resources).unwrap_err());
        assert!(refused.contains(told), "{namespace}: {refused}");
        let made = make(namespace, mend, resources).unwrap();
        assert!(is_injected(&made), "{namespace}: {made}");
    }
}

/// Asks a webhook directly, as the API server reaches it by its Service; status and body.
fn ask(folder: &Path, port: u16, arguments: &[&str]) -> String {
    let name = "outrigger-controller.outrigger-system.svc";
    let mut curl = tool("curl");
    curl.args(["--silent", "--max-time", "20", "--write-out", " %{http_code}", "--cacert"])
        .arg(folder.join("webhook-ca.pem"));
    curl.args(["--resolve", &format!("{name}:{port}:127.0.0.1")]);
    if !arguments.contains(&"--header") {
        curl.args(["--header", "Content-Type: application/json"]);
    }
    run(curl.args(arguments).arg(format!("https://{name}:{port}/inject"))).unwrap()
}

#[test]
fn bad_reviews_are_refused_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path());
    let port = free_port();
    cluster.configure(&[port], "Fail");
    let controller = cluster.controller("one", port, ", maxBody: 64KiB", "");
    cluster.wait_injecting(&controller);
    let path = "--output=jsonpath={.data.ca\\.crt}";
    let bundle = cluster.api.kubectl(&["get", "secret", "outrigger-webhook", "--namespace", SYSTEM, path]).unwrap();
    let folder = folder.path();
    fs::write(folder.join("bundle.b64"), bundle).unwrap();
    let bundle = run(tool("base64").arg("--decode").arg(folder.join("bundle.b64"))).unwrap();
    fs::write(folder.join("webhook-ca.pem"), bundle).unwrap();
    fs::write(folder.join("large"), vec![b' '; 70 << 10]).unwrap();
    let large = format!("@{}", folder.join("large").display());
    let rows: &[(&str, &[&str], &str)] = &[
        ("not sent by POST", &[], "sent by POST 405"),
        ("empty", &["--data", ""], "the body is empty"),
        ("no JSON", &["--data", "kind: Pod"], "no JSON: expected value at line 1 column 1 400"),
        (
            "another version",
            &["--data", "{\"kind\":\"AdmissionReview\",\"apiVersion\":\"admission.k8s.io/v1beta1\",\"request\":{}}"],
            "only `admission.k8s.io/v1` is known",
        ),
        ("another kind", &["--data", "{\"kind\":\"Pod\",\"apiVersion\":\"v1\"}"], "its `kind` is `Pod` 400"),
        ("no JSON by its type", &["--header", "Content-Type: text/plain", "--data", "{}"], "415"),
        ("too large", &["--data-binary", &large], "larger than 65536 bytes 413"),
    ];
    for (name, arguments, expected) in rows {
        let answer = ask(folder, port, arguments);
        assert!(answer.contains(expected), "{name}: {answer}");
    }
    eventually("the counts", || {
        let of = |result: &str| controller.metric(&format!("outrigger_webhook_reviews_total{{result=\"{result}\"}}"));
        ensure!(of("malformed")? >= 4.0 && of("overloaded")? >= 1.0, "too few");
        Ok(())
    });
}

#[test]
fn authorities_change_and_leaders_die_while_every_pod_is_injected() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path());
    let ports = [free_port(), free_port()];
    // Both replicas are asked about each pod.
    cluster.configure(&ports, "Fail");
    let short = ", certificate: { lifetime: 42s, propagation: 7s }";
    let mut first = cluster.controller("first", ports[0], short, "");
    let second = cluster.controller("second", ports[1], short, "");
    cluster.wait_injecting(&second);
    let bundle = || {
        let path = "--output=jsonpath={.webhooks[*].clientConfig.caBundle}";
        cluster.api.kubectl(&["get", "mutatingwebhookconfiguration", "outrigger-injector", path])
    };
    let before = bundle().unwrap();
    let made = || cluster.api.create(&pod("shop", "turn", ""), &["--dry-run=server", "--output=json"]);
    // A whole change: the next authority is trusted, signs, and the first has gone.
    eventually_within(PATIENCE * 2, "other authorities", || {
        let made = made().unwrap();
        assert!(is_injected(&made), "{made}");
        let now = bundle()?;
        let old = before.split(' ').next().unwrap_or_default();
        ensure!(!now.is_empty() && !now.contains(&old[..old.len() / 2]), "the first one is still there");
        Ok(())
    });

    // Somebody puts the configuration back as it was installed.
    cluster.configure(&ports, "Fail");
    let patch = "[{\"op\":\"remove\",\"path\":\"/webhooks/0/clientConfig/caBundle\"}]";
    cluster
        .api
        .kubectl(&["patch", "mutatingwebhookconfiguration", "outrigger-injector", "--type=json", "--patch", patch])
        .unwrap();
    cluster.wait_injecting(&second);

    // The leader is killed; the other one leads, and keeps the certificate.
    let leader = |controller: &Outrigger| controller.metric("outrigger_controller_leader");
    eventually("one leader", || {
        let all = (leader(&first)?, leader(&second)?);
        ensure!(all.0 + all.1 == 1.0, "{all:?}");
        Ok(())
    });
    first.process.kill();
    cluster.configure(&ports[1..], "Fail");
    eventually_within(PATIENCE, "the second to lead", || {
        ensure!(leader(&second)? == 1.0, "it does not yet");
        Ok(())
    });
    cluster
        .api
        .kubectl(&["patch", "mutatingwebhookconfiguration", "outrigger-injector", "--type=json", "--patch", patch])
        .unwrap();
    cluster.wait_injecting(&second);
}

#[test]
fn missed_pods_are_reported_and_evicted_as_their_budgets_allow() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path());
    let (port, api) = (free_port(), &cluster.api);
    cluster.configure(&[port], "Ignore");
    // While no controller is there.
    api.apply(&deployment("orders", ""));
    api.create(&pod("shop", "lone", ""), &[]).unwrap();
    let pods = "--output=jsonpath={.items[*].metadata.name}";
    let orders = || api.kubectl(&["get", "pods", "--namespace=shop", "--selector=app=orders", pods]);
    let first = eventually_within(PATIENCE, "the pod", || {
        let names = orders()?;
        ensure!(!names.is_empty(), "there is none");
        Ok(names)
    });
    // It counts as well, so that its budget protects it.
    let ready = "{\"status\":{\"phase\":\"Running\",\"conditions\":[{\"type\":\"Ready\",\"status\":\"True\"}]}}";
    api.kubectl(&["patch", "pod", &first, "--namespace=shop", "--subresource=status", "--patch", ready]).unwrap();
    api.apply("apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: { name: orders, namespace: shop }\nspec: { minAvailable: 1, selector: { matchLabels: { app: orders } } }\n");
    eventually_within(PATIENCE, "the budget", || {
        let healthy =
            api.kubectl(&["get", "pdb", "orders", "--namespace=shop", "--output=jsonpath={.status.currentHealthy}"])?;
        ensure!(healthy == "1", "{healthy} healthy");
        Ok(())
    });
    let repair = "  repair: { action: evict, after: 1s, pace: 300ms }\n";
    let controller = cluster.controller("one", port, "", repair);
    eventually_within(PATIENCE, "both to be reported", || {
        let events = cluster.events("InjectionMissed")?;
        ensure!(events.contains("Deployment/orders") && events.contains("Pod/lone-"), "{events}");
        ensure!(controller.metric("outrigger_repair_missed_pods")? == 2.0, "not counted yet");
        ensure!(controller.metric("outrigger_repair_evictions_total{result=\"budget\"}")? >= 1.0, "not tried yet");
        Ok(())
    });
    assert_eq!(orders().unwrap(), first, "the budget holds it");
    api.kubectl(&["delete", "pdb", "orders", "--namespace=shop"]).unwrap();
    eventually_within(PATIENCE, "another pod, injected", || {
        let all = api.kubectl(&["get", "pods", "--namespace=shop", "--selector=app=orders", "--output=json"])?;
        ensure!(!all.contains(&format!("\"name\": \"{first}\"")) && is_injected(&all), "{all}");
        ensure!(controller.metric("outrigger_repair_missed_pods")? == 1.0, "counted still");
        Ok(())
    });
    let lone = api.kubectl(&["get", "pods", "--namespace=shop", "--output=name"]).unwrap();
    assert!(lone.contains("pod/lone-"), "what nobody makes anew stays: {lone}");
}

#[test]
fn rights_that_are_missing_are_named_and_the_api_server_may_go_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path());
    let port = free_port();
    cluster.configure(&[port], "Fail");
    cluster.api.kubectl(&["delete", "clusterrolebinding", "outrigger-controller"]).unwrap();
    let controller = cluster.controller("one", port, "", "");
    let status = |part: &str| {
        eventually_within(PATIENCE, part, || {
            let text = controller.get("/readyz?verbose")?.body;
            ensure!(text.contains(part), "{text}");
            Ok(())
        });
    };
    status(
        "`system:serviceaccount:outrigger-system:outrigger-controller` may not `list` `namespaces` in the whole cluster",
    );
    cluster.api.apply(OBJECTS);
    cluster.wait_injecting(&controller);
    let rule = "[{\"op\":\"replace\",\"path\":\"/rules/5/verbs\",\"value\":[\"get\",\"list\",\"watch\"]}]";
    cluster.api.kubectl(&["patch", "clusterrole", "outrigger-controller", "--type=json", "--patch", rule]).unwrap();
    let broken = "[{\"op\":\"remove\",\"path\":\"/webhooks/0/clientConfig/caBundle\"}]";
    cluster
        .api
        .kubectl(&["patch", "mutatingwebhookconfiguration", "outrigger-injector", "--type=json", "--patch", broken])
        .unwrap();
    status("may not `patch` `mutatingwebhookconfigurations.admissionregistration.k8s.io` in the whole cluster");
    cluster.api.apply(OBJECTS);
    cluster.wait_injecting(&controller);

    // An API server that is too busy for it says so by 429: reviews are answered by what is known, everything else is made up for.
    let busy = Busy::start(&cluster.api, SYSTEM, "outrigger-controller");
    eventually_within(PATIENCE, "429", || {
        ensure!(controller.get("/metrics")?.body.contains("code=\"429\""), "it was not told yet");
        Ok(())
    });
    let made = cluster.api.create(&pod("shop", "meanwhile", ""), &["--dry-run=server", "--output=json"]).unwrap();
    assert!(is_injected(&made), "{made}");
    cluster
        .api
        .kubectl(&["patch", "mutatingwebhookconfiguration", "outrigger-injector", "--type=json", "--patch", broken])
        .unwrap();
    busy.end();
    cluster.wait_injecting(&controller);

    cluster.api.stop_api();
    cluster.api.compact();
    cluster.api.start_api();
    cluster.wait_injecting(&controller);
    eventually_within(PATIENCE, "all to be well", || {
        let text = controller.get("/readyz?verbose")?.body;
        ensure!(!text.contains("degraded") && text.contains("controller"), "{text}");
        Ok(())
    });
}
