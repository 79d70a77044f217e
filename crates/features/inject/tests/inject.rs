//! Golden files, properties and refusals of the injection as a whole.
//!
//! `testdata/manifests/NAME.yaml` must come out as `NAME.out.yaml`, with `NAME.explain` as reasons;
//! `cargo xtask bless` (`OUTRIGGER_BLESS=1`) rewrites the expectations.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::path::{Path, PathBuf};

use outrigger_inject::{
    Action, Interception, Manifests, Namespace, Outcome, Settings, annotations_reference, inject, process, uninject,
};
use proptest::option;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn settings() -> Settings {
    let vault =
        outrigger_inject::Vault { address: Some("https://vault.example:8200".to_owned()), ..Default::default() };
    Settings { image: "outrigger:test".to_owned(), vault, ..Settings::default() }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/manifests")
}

/// Compares with a file, or writes it when blessing.
fn golden(path: &Path, text: &str, drifted: &mut Vec<String>) {
    // The version is part of what is injected.
    let text = text
        .replace(&format!("\\\"version\\\":\\\"{}\\\"", env!("CARGO_PKG_VERSION")), "\\\"version\\\":\\\"VERSION\\\"");
    let text = text.replace(&format!("\"version\":\"{}\"", env!("CARGO_PKG_VERSION")), "\"version\":\"VERSION\"");
    if std::env::var_os("OUTRIGGER_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    if std::fs::read_to_string(path).unwrap_or_default() != text {
        drifted.push(format!("{}:\n{text}", path.display()));
    }
}

fn told(manifests: &Manifests) -> String {
    let mut text = String::new();
    for report in &manifests.reports {
        text.push_str(&format!("document {} {}/{}: ", report.document, report.object.kind, report.object.name));
        match &report.outcome {
            Outcome::Injected(injected) => {
                text.push_str("injected\n");
                injected.reasons.iter().for_each(|one| text.push_str(&format!("  + {}: {}\n", one.what, one.why)));
                injected.warnings.iter().for_each(|one| text.push_str(&format!("  ! {one}\n")));
            }
            Outcome::Left(why) => text.push_str(&format!("left alone\n  {why}\n")),
            Outcome::Refused(problems) => {
                text.push_str("refused\n");
                problems.iter().for_each(|one| text.push_str(&format!("  x {one}\n")));
            }
        }
    }
    text
}

fn manifests() -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            (name.ends_with(".yaml") || name.ends_with(".json")) && !name.contains(".out.")
        })
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn manifests_of_the_world_come_out_as_expected() {
    let (mut drifted, settings) = (Vec::new(), settings());
    let all = manifests();
    assert!(all.len() >= 12, "{}", all.len());
    for (name, text) in all {
        let done = process(&name, &text, "shop", Action::Inject(&settings, &[])).unwrap();
        let (stem, kind) = name.rsplit_once('.').unwrap();
        golden(&folder().join(format!("{stem}.out.{kind}")), &done.text, &mut drifted);
        golden(&folder().join(format!("{stem}.explain")), &told(&done), &mut drifted);
        // Once more changes nothing, and it can be taken back.
        let twice = process(&name, &done.text, "shop", Action::Inject(&settings, &[])).unwrap();
        assert_eq!(twice.text, done.text, "{name}");
        let back = process(&name, &done.text, "shop", Action::Uninject).unwrap();
        let plain = process(&name, &text, "shop", Action::Uninject).unwrap();
        assert_eq!(plain.text, text, "{name}: what has no sidecar comes out byte for byte");
        let values = |text: &str| -> Vec<Value> { read_all(&name, text) };
        assert_eq!(values(&back.text), values(&text), "{name}");
    }
    assert!(drifted.is_empty(), "not as expected (`cargo xtask bless` takes it over):\n{}", drifted.join("\n"));
}

/// Every document as a value, by way of a list in JSON that changes nothing.
fn read_all(name: &str, text: &str) -> Vec<Value> {
    let settings = Settings { excluded_namespaces: Vec::new(), ..settings() };
    // What the injector reads of a manifest is what it writes of it; compare after one more turn there and back.
    let turned = process(name, text, "shop", Action::Inject(&settings, &[])).unwrap();
    turned
        .reports
        .into_iter()
        .map(|report| match report.outcome {
            Outcome::Injected(injected) => uninject(&injected.pod).unwrap().unwrap(),
            Outcome::Left(why) => json!(why),
            Outcome::Refused(problems) => json!(problems),
        })
        .collect()
}

#[test]
fn the_reference_of_annotations_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../docs/reference/annotations.md");
    let mut drifted = Vec::new();
    golden(&path, &annotations_reference(), &mut drifted);
    assert!(drifted.is_empty(), "docs/reference/annotations.md is out of date; `cargo xtask bless` writes it anew");
}

fn pod(spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a" }, "spec": spec })
}

fn app() -> Value {
    json!({ "containers": [{ "name": "app", "image": "app" }] })
}

#[test]
fn who_is_left_alone_and_who_is_refused() {
    let labelled = |labels: &[(&str, &str)]| Namespace {
        name: "shop".to_owned(),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    };
    let asked = |mut pod: Value| {
        pod["metadata"]["labels"] = json!({ "outrigger.dev/inject": "enabled" });
        pod
    };
    let with = |key: &str, value: Value| {
        let mut spec = app();
        spec[key] = value;
        pod(spec)
    };
    let of = |container: Value| pod(json!({ "containers": [container] }));
    let annotated = |key: &str, value: &str| {
        let mut pod = pod(app());
        pod["metadata"]["annotations"] = json!({ key: value });
        pod
    };
    let plain = labelled(&[]);
    let rows: Vec<(&str, Value, Namespace, &str, &str)> = vec![
        ("system", pod(app()), Namespace::named("kube-system"), "left", "never injected"),
        ("own namespace", asked(pod(app())), Namespace::named("outrigger-system"), "left", "never injected"),
        ("hostNetwork", with("hostNetwork", json!(true)), plain.clone(), "left", "the node's network"),
        ("hostNetwork, asked", asked(with("hostNetwork", json!(true))), plain.clone(), "refused", "the node's network"),
        ("windows", with("os", json!({"name": "windows"})), plain.clone(), "left", "Windows"),
        ("istio there", of(json!({"name": "istio-proxy"})), plain.clone(), "left", "Istio already"),
        ("istio to come", pod(app()), labelled(&[("istio-injection", "enabled")]), "refused", "Istio would inject"),
        (
            "linkerd to come",
            annotated("linkerd.io/inject", "enabled"),
            plain.clone(),
            "refused",
            "Linkerd would inject",
        ),
        ("opted out", annotated("outrigger.dev/inject", "disabled"), plain.clone(), "left", "opts out"),
        ("bad word", annotated("outrigger.dev/inject", "perhaps"), plain.clone(), "refused", "allowed: `enabled`"),
        ("namespace out", pod(app()), labelled(&[("outrigger.dev/inject", "disabled")]), "left", "opts out"),
        ("namespace out, pod in", asked(pod(app())), labelled(&[("outrigger.dev/inject", "disabled")]), "injected", ""),
        (
            "port",
            of(json!({"name": "a", "ports": [{"containerPort": 15006}]})),
            plain.clone(),
            "refused",
            "uses port 15006",
        ),
        ("name", of(json!({"name": "outrigger"})), plain.clone(), "refused", "rename it"),
        ("volume", with("volumes", json!([{"name": "outrigger-config"}])), plain.clone(), "refused", "are Outrigger's"),
        (
            "user",
            of(json!({"name": "a", "securityContext": {"runAsUser": 15000}})),
            plain.clone(),
            "refused",
            "runs as user 15000",
        ),
        (
            "level",
            pod(app()),
            labelled(&[("pod-security.kubernetes.io/enforce", "restricted")]),
            "refused",
            "NET_ADMIN",
        ),
        ("bad annotation", annotated("outrigger.dev/cpu-limit", "x"), plain.clone(), "refused", "allowed: a quantity"),
        (
            "bad config",
            annotated("outrigger.dev/config", "proxy: {listener: []}"),
            plain.clone(),
            "refused",
            "`proxy.listener`",
        ),
        ("covered", annotated("outrigger.dev/secret-folders", "/etc"), plain.clone(), "refused", "would hide"),
        ("no spec", json!({ "metadata": {} }), plain.clone(), "refused", "no `spec`"),
        ("no containers", pod(json!({ "containers": "x" })), plain.clone(), "refused", "no list of containers"),
        ("status", annotated("outrigger.dev/status", "x"), plain.clone(), "refused", "is broken"),
        ("tokens", annotated("outrigger.dev/tokens", "a/b,a:b"), plain.clone(), "refused", "which is taken"),
    ];
    for (name, pod, namespace, expected, part) in rows {
        let (found, words) = match inject(&pod, &namespace, &settings()) {
            Outcome::Injected(_) => ("injected", String::new()),
            Outcome::Left(why) => ("left", why),
            Outcome::Refused(problems) => ("refused", problems.join("; ")),
        };
        assert!(found == expected && words.contains(part), "{name}: {found}: {words}");
    }
}

#[test]
fn without_redirection_nothing_wants_a_privilege() {
    let settings = Settings { interception: Interception::None, ..settings() };
    let namespace = Namespace {
        name: "shop".to_owned(),
        labels: [("pod-security.kubernetes.io/enforce".to_owned(), "restricted".to_owned())].into(),
    };
    let Outcome::Injected(injected) = inject(&pod(app()), &namespace, &settings) else { panic!("it is injected") };
    let init = injected.pod["spec"]["initContainers"].as_array().unwrap();
    assert_eq!(init.len(), 1, "no init container");
    let context = &init[0]["securityContext"];
    assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!((&context["runAsNonRoot"], &context["allowPrivilegeEscalation"]), (&json!(true), &json!(false)));
    assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    let kinds: Vec<&str> = injected.pod["spec"]["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|v| v.as_object().unwrap().keys())
        .map(String::as_str)
        .filter(|key| *key != "name")
        .collect();
    assert!(kinds.iter().all(|kind| ["projected", "emptyDir"].contains(kind)), "{kinds:?}");
}

#[test]
fn what_others_add_to_our_containers_stays_when_we_are_asked_again() {
    let Outcome::Injected(first) = inject(&pod(app()), &Namespace::named("shop"), &settings()) else { panic!() };
    let mut changed = first.pod;
    let sidecar = &mut changed["spec"]["initContainers"][1];
    assert_eq!(sidecar["name"], "outrigger");
    sidecar["env"].as_array_mut().unwrap().push(json!({ "name": "HTTP_PROXY", "value": "http://proxy" }));
    sidecar["volumeMounts"].as_array_mut().unwrap().push(json!({ "name": "api-access", "mountPath": "/var/run/x" }));
    changed["spec"]["volumes"].as_array_mut().unwrap().push(json!({ "name": "api-access", "emptyDir": {} }));
    changed["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "name": "late", "readinessProbe": { "httpGet": { "port": 80 } } }));
    let Outcome::Injected(second) = inject(&changed, &Namespace::named("shop"), &settings()) else { panic!() };
    let sidecar = &second.pod["spec"]["initContainers"][1];
    assert!(
        sidecar["env"].to_string().contains("HTTP_PROXY") && sidecar["volumeMounts"].to_string().contains("api-access")
    );
    assert_eq!(
        second.pod["spec"]["containers"][1]["readinessProbe"]["httpGet"]["port"], 15021,
        "who came later is served, too"
    );
    let Outcome::Injected(third) = inject(&second.pod, &Namespace::named("shop"), &settings()) else { panic!() };
    assert_eq!(third.pod, second.pod);
}

#[test]
fn documents_without_pods_come_out_byte_for_byte() {
    for text in [
        "",
        "\n",
        "# only a comment\n",
        "---\n---\n# nothing\n---\n",
        "a:   1 # odd   spaces\n---\nkind: Service\napiVersion: v1\nmetadata: {name: x}\n...\n",
        "\u{feff}kind: ConfigMap\r\napiVersion: v1\r\n",
        "apiVersion: example.com/v1\nkind: Deployment\nspec: {template: {}}\n",
        "{\"kind\":\"Service\"}\n\n{\"kind\": \"ConfigMap\"}  \n",
        "kind: List\napiVersion: v1\nitems: [ {kind: Service} ]",
    ] {
        let done = process("x", text, "shop", Action::Inject(&settings(), &[])).unwrap();
        assert_eq!(done.text, text);
        assert!(done.reports.is_empty());
    }
}

#[test]
fn pods_are_found_wherever_they_stand() {
    let pod = "{metadata: {name: p}, spec: {containers: [{name: a, image: a}]}}";
    let whole = format!("{{apiVersion: v1, kind: Pod, {}", &pod[1..]);
    for (name, text, kinds) in [
        ("a map in braces", format!("{whole}\n"), vec!["Pod"]),
        ("a list of its kind", format!("apiVersion: v1\nkind: PodList\nitems: [{pod}, {pod}]\n"), vec!["Pod", "Pod"]),
        (
            "of lists",
            format!("apiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: List, items: [{whole}]}}\n"),
            vec!["Pod"],
        ),
        (
            "after comments",
            format!(
                "# a\n---\n# b\napiVersion: v1\nkind: Pod\n{}\n",
                &pod[1..pod.len() - 1].replace(", spec", "\nspec")
            ),
            vec!["Pod"],
        ),
    ] {
        let done = process("x", &text, "shop", Action::Inject(&settings(), &[])).unwrap();
        let found: Vec<&str> = done.reports.iter().map(|report| report.object.kind.as_str()).collect();
        assert_eq!(found, kinds, "{name}");
        assert!(done.reports.iter().all(|report| matches!(report.outcome, Outcome::Injected(_))), "{name}");
        assert_eq!(
            done.text.matches("kind: Pod\n").count() + done.text.matches("kind: PodList").count(),
            1,
            "{name}: {}",
            done.text
        );
        assert_eq!(done.text.starts_with("# a\n---\n# b\n"), text.starts_with('#'), "{name}: {}", done.text);
        let again = process("x", &done.text, "shop", Action::Inject(&settings(), &[])).unwrap();
        assert_eq!(again.text, done.text, "{name}");
    }
    // What nobody here knows, and looks as if it made pods, is told.
    let text = format!("apiVersion: argoproj.io/v1alpha1\nkind: Rollout\nspec: {{template: {pod}}}\n");
    let done = process("x", &text, "shop", Action::Inject(&settings(), &[])).unwrap();
    assert_eq!(done.text, text);
    assert!(matches!(&done.reports[0].outcome, Outcome::Left(why) if why.contains("not known here")));
    // Neither JSON nor YAML.
    let error = process("x", "{\"a\": 1} }", "shop", Action::Inject(&settings(), &[])).unwrap_err().to_string();
    assert!(error.contains("this is no JSON"), "{error}");
}

#[test]
fn mistakes_are_told_with_document_line_and_name() {
    for (text, expected) in [
        ("a: 1\n---\nb: [\n", "x: document 2 (line "),
        ("a: 1\n---\nb: 1\nb: 2\n", "x: document 2 (line 4, column 1): the key `b` is given twice"),
        ("{\"a\": 1}\n{\"b\": }", "x: document 2: this is no JSON"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {}\n",
            "x: document 1 (Deployment/a): it has no pod template at `spec.template`",
        ),
    ] {
        let error = process("x", text, "shop", Action::Inject(&settings(), &[])).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn namespaces_of_the_same_input_are_looked_at() {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: quiet, labels: {outrigger.dev/inject: disabled}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: quiet}\nspec: {containers: [{name: a}]}\n";
    let done = process("x", text, "shop", Action::Inject(&settings(), &[])).unwrap();
    assert_eq!(done.text, text);
    assert!(matches!(&done.reports[0].outcome, Outcome::Left(why) if why.contains("opts out")));
}

fn probe() -> impl Strategy<Value = Value> {
    prop_oneof![
        (any::<u16>(), "/[a-z]{0,5}")
            .prop_map(|(port, path)| json!({ "httpGet": { "port": port, "path": path }, "periodSeconds": 3 })),
        Just(json!({ "httpGet": { "port": "http" } })),
        (1..=65535_u16).prop_map(|port| json!({ "tcpSocket": { "port": port }, "timeoutSeconds": 2 })),
        (1..=65535_u16).prop_map(|port| json!({ "grpc": { "port": port } })),
        Just(json!({ "exec": { "command": ["true"] } })),
    ]
}

fn container(names: &'static str) -> impl Strategy<Value = Value> {
    (
        names,
        option::of(probe()),
        option::of(probe()),
        option::of(0..20_000_u16),
        option::of(Just(json!([]))),
        option::of("[a-z]{1,4}"),
    )
        .prop_map(|(name, live, ready, port, mounts, unknown)| {
            let mut container = json!({ "name": name, "image": "x" });
            let mut set = |key: &str, value: Option<Value>| value.into_iter().for_each(|value| container[key] = value);
            set("livenessProbe", live);
            set("readinessProbe", ready);
            set("ports", port.map(|port| json!([{ "name": "http", "containerPort": port }])));
            set("volumeMounts", mounts);
            set("fieldOfTheFuture", unknown.map(|word| json!({ "x": word })));
            container
        })
}

fn any_pod() -> impl Strategy<Value = Value> {
    let annotation = prop_oneof![
        Just(("prometheus.io/scrape", "true")),
        Just(("prometheus.io/port", "9102")),
        Just(("prometheus.io/port", "x")),
        Just(("outrigger.dev/log-folders", "/var/log/app")),
        Just(("outrigger.dev/interception", "none")),
        Just(("outrigger.dev/interception", "self")),
        Just(("outrigger.dev/tokens", "a,b")),
        Just(("outrigger.dev/native-sidecar", "false")),
        Just(("outrigger.dev/config", "metrics: {statsd: {}}")),
        Just(("outrigger.dev/config-map", "mine")),
        Just(("outrigger.dev/secret-folders", "/secrets,/secrets/deep")),
        Just(("kubectl.kubernetes.io/default-container", "c")),
        Just(("note", "yes")),
    ];
    let annotations = prop::collection::vec(annotation, 0..5);
    (
        prop::collection::vec(container("a[a-c]?"), 1..3),
        option::of(prop::collection::vec(container("i[a-c]?"), 0..3)),
        option::of(annotations),
        option::of(Just(json!([]))),
        option::of(0..100_u64),
        any::<bool>(),
    )
        .prop_map(|(containers, init, annotations, volumes, grace, metadata)| {
            let mut spec = json!({ "containers": containers, "unknownField": [1, {"deep": true}] });
            let mut set = |key: &str, value: Option<Value>| value.into_iter().for_each(|value| spec[key] = value);
            set("initContainers", init.map(Value::Array));
            set("volumes", volumes);
            set("terminationGracePeriodSeconds", grace.map(|grace| json!(grace)));
            let mut pod = json!({ "spec": spec });
            if let Some(annotations) = annotations {
                let map: Map<String, Value> =
                    annotations.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect();
                pod["metadata"] = json!({ "annotations": map });
            } else if metadata {
                pod["metadata"] = json!({ "generateName": "x-" });
            }
            pod
        })
}

/// A container without what the reasons name.
fn stripped(container: &Value) -> Value {
    let mut container = container.clone();
    let map = container.as_object_mut().unwrap();
    for key in ["volumeMounts", "livenessProbe", "readinessProbe", "startupProbe"] {
        map.remove(key);
    }
    container
}

proptest! {
    #[test]
    fn injection_is_idempotent_can_be_undone_and_leaves_the_application_alone(pod in any_pod()) {
        let namespace = Namespace::named("shop");
        if let Outcome::Injected(once) = inject(&pod, &namespace, &settings()) {
            prop_assert_eq!(uninject(&once.pod), Ok(Some(pod.clone())));
            match inject(&once.pod, &namespace, &settings()) {
                Outcome::Injected(twice) => prop_assert_eq!(&twice.pod, &once.pod),
                other => prop_assert!(false, "{other:?}"),
            }
            let all = |pod: &Value| -> Vec<Value> {
                let lists = ["initContainers", "containers"].into_iter().flat_map(|list| pod["spec"][list].as_array().cloned().unwrap_or_default());
                lists.filter(|one| !one["name"].as_str().unwrap().starts_with("outrigger")).map(|one| stripped(&one)).collect()
            };
            prop_assert_eq!(all(&once.pod), all(&pod));
            let ours = once.pod["spec"].to_string().matches("\"name\":\"outrigger\"").count();
            prop_assert_eq!(ours, 1, "one sidecar");
            for mount in ["initContainers", "containers"].into_iter().flat_map(|list| once.pod["spec"][list].as_array().cloned().unwrap_or_default()).flat_map(|one| one["volumeMounts"].as_array().cloned().unwrap_or_default()) {
                let there = once.pod["spec"]["volumes"].as_array().unwrap().iter().any(|volume| volume["name"] == mount["name"]);
                prop_assert!(there, "{mount} has its volume");
            }
        }
    }

    #[test]
    fn nothing_panics(text in any::<String>(), pod in any_pod()) {
        let _ = process("x", &text, "shop", Action::Inject(&settings(), &[]));
        let mut odd = pod;
        odd["metadata"] = json!({ "annotations": { "outrigger.dev/config": text, "outrigger.dev/status": "{}" } });
        let _ = inject(&odd, &Namespace::named("shop"), &settings());
    }
}

fn meshed() -> Settings {
    let text = "
image: outrigger:test
mesh:
  trustDomain: shop.example
  authority: controller.mesh.svc:15012
  discovery: { server: \"controller.mesh.svc:15011\", spiffeId: spiffe://shop.example/ns/mesh/sa/controller }
";
    Settings::from_yaml(text).unwrap()
}

#[test]
fn a_mesh_gives_identity_mtls_and_services() {
    let settings = meshed();
    let annotated = |annotations: Value| {
        let mut pod = pod(app());
        pod["metadata"]["annotations"] = annotations;
        pod
    };
    let injected = |pod: &Value, settings: &Settings| match inject(pod, &Namespace::named("shop"), settings) {
        Outcome::Injected(injected) => {
            let again = inject(&injected.pod, &Namespace::named("shop"), settings);
            assert!(matches!(again, Outcome::Injected(again) if again.pod == injected.pod), "again changes nothing");
            assert_eq!(uninject(&injected.pod).unwrap().unwrap(), *pod, "and it can be taken back");
            injected.pod
        }
        other => panic!("{other:?}"),
    };
    let mtls = |pod: &Value| pod["metadata"]["annotations"]["outrigger.dev/mtls"].as_str().map(str::to_owned);
    let config =
        |pod: &Value| pod["metadata"]["annotations"]["outrigger.dev/effective-config"].as_str().unwrap().to_owned();
    let volumes = |pod: &Value| pod["spec"]["volumes"].to_string();
    let all = [
        "authority:",
        "mode: permissive",
        "onDemand:",
        "spiffe://shop.example/ns/mesh/sa/controller",
        "/run/outrigger/identity",
    ];

    let made = injected(&pod(app()), &settings);
    assert_eq!(mtls(&made).as_deref(), Some("permissive"));
    assert!(all.iter().all(|part| config(&made).contains(part)), "{}", config(&made));
    for part in ["outrigger-ca-root-cert", "\"audience\":\"outrigger\"", "\"medium\":\"Memory\",\"sizeLimit\":\"16Mi\""]
    {
        assert!(volumes(&made).contains(part), "{part}: {}", volumes(&made));
    }
    let strict = injected(&annotated(json!({ "outrigger.dev/mtls": "strict" })), &settings);
    assert!(config(&strict).contains("mode: strict") && mtls(&strict).as_deref() == Some("strict"));
    let off = injected(&annotated(json!({ "outrigger.dev/mtls": "disabled" })), &settings);
    assert!(!config(&off).contains("mode:") && config(&off).contains("authority:"), "{}", config(&off));
    let profile = Settings { mtls: outrigger_inject::Mtls::Strict, ..settings.clone() };
    assert_eq!(mtls(&injected(&pod(app()), &profile)).as_deref(), Some("strict"));

    // Without redirection nobody is told to speak mTLS, and a config's own identity counts.
    let none = injected(&annotated(json!({ "outrigger.dev/interception": "none" })), &profile);
    assert!(mtls(&none).is_none() && config(&none).contains("authority:") && !config(&none).contains("proxy:"));
    let own = "identity: { trustDomain: other.example, files: { certificate: /a, key: /b, trustBundle: /c } }";
    let own = injected(&annotated(json!({ "outrigger.dev/config": own })), &settings);
    assert!(!config(&own).contains("authority:") && !volumes(&own).contains("outrigger-ca"), "{}", config(&own));
    let map = injected(&annotated(json!({ "outrigger.dev/config-map": "theirs" })), &settings);
    assert!(mtls(&map).is_none() && volumes(&map).contains("outrigger-ca-root-cert"), "the config in there may use it");

    // Ports that pass the sidecar by are told, whoever said so.
    let mut excluding = settings.clone();
    excluding.redirect.exclude_inbound_ports = vec!["9000-9010".to_owned()];
    let told = injected(&pod(app()), &excluding);
    assert_eq!(told["metadata"]["annotations"]["outrigger.dev/exclude-inbound-ports"], "9000-9010");

    // What cannot be had is refused.
    for (settings, annotations) in [
        (&Settings::default(), json!({ "outrigger.dev/mtls": "strict" })),
        (&settings, json!({ "outrigger.dev/mtls": "strict", "outrigger.dev/interception": "none" })),
        (&settings, json!({ "outrigger.dev/mtls": "yes" })),
    ] {
        match inject(&annotated(annotations), &Namespace::named("shop"), settings) {
            Outcome::Refused(problems) => assert!(problems[0].contains("outrigger.dev/mtls"), "{problems:?}"),
            other => panic!("{other:?}"),
        }
    }
    for wrong in ["mesh: { trustDomain: a }", "mesh: { trustDomain: '', authority: 'a:1' }", "mtls: maybe"] {
        assert!(Settings::from_yaml(wrong).is_err(), "{wrong}");
    }
}
