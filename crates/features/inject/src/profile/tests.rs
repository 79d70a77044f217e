use proptest::prelude::*;

use super::*;
use crate::inject::Injected;
use crate::layers::rows;

fn profile(yaml: &str) -> Profile {
    let text = format!("apiVersion: {API_VERSION}\n{yaml}");
    read_manifests(&text).unwrap().remove(0)
}

fn namespaced(name: &str, spec: &str) -> Profile {
    profile(&format!("kind: SidecarProfile\nmetadata: {{ name: {name}, namespace: shop }}\nspec: {spec}\n"))
}

fn cluster(name: &str, spec: &str) -> Profile {
    profile(&format!("kind: ClusterSidecarProfile\nmetadata: {{ name: {name} }}\nspec: {spec}\n"))
}

fn shop() -> Namespace {
    Namespace { name: "shop".to_owned(), labels: [("tier".to_owned(), "gold".to_owned())].into() }
}

fn pod(annotations: Value) -> Value {
    json!({
        "metadata": { "labels": { "app": "web", "track": "canary" }, "annotations": annotations },
        "spec": { "containers": [{ "name": "app", "image": "app:1" }] },
    })
}

fn injected(annotations: Value, profiles: &[Profile]) -> Injected {
    match inject_with(&pod(annotations), &shop(), &Settings::default(), profiles) {
        Outcome::Injected(injected) => *injected,
        other => panic!("{other:?}"),
    }
}

#[test]
fn profiles_are_selected_by_labels_and_namespaces() {
    let rows = [
        ("{}", None),
        ("{ selector: { matchLabels: { app: web } } }", None),
        ("{ selector: { matchLabels: { app: api } } }", Some("label `app` is `web`, not `api`")),
        ("{ selector: { matchLabels: { zone: a } } }", Some("it has no label `zone`")),
        ("{ selector: { matchExpressions: [{ key: app, operator: In, values: [api, web] }] } }", None),
        ("{ selector: { matchExpressions: [{ key: app, operator: NotIn, values: [web] }] } }", Some("none of web")),
        ("{ selector: { matchExpressions: [{ key: zone, operator: NotIn, values: [a] }] } }", None),
        (
            "{ selector: { matchExpressions: [{ key: zone, operator: Exists }] } }",
            Some("label `zone` is absent, and has to be there"),
        ),
        ("{ selector: { matchExpressions: [{ key: app, operator: DoesNotExist }] } }", Some("has to be absent")),
        ("{ namespaceSelector: { matchLabels: { tier: gold } } }", None),
        (
            "{ namespaceSelector: { matchLabels: { tier: iron } } }",
            Some("`namespaceSelector` does not mean the namespace"),
        ),
    ];
    for (spec, expected) in rows {
        let why = cluster("a", spec).mismatch(&pod(json!({})), &shop());
        assert_eq!(why.is_some(), expected.is_some(), "{spec}: {why:?}");
        assert!(why.unwrap_or_default().contains(expected.unwrap_or_default()), "{spec}");
    }
    let elsewhere = Namespace::named("other");
    assert_eq!(namespaced("a", "{}").mismatch(&pod(json!({})), &elsewhere).unwrap(), "it is of the namespace `shop`");
}

#[test]
fn cluster_then_namespace_then_workload_then_annotations() {
    let level = |level: &str| format!("config: {{ telemetry: {{ log: {{ level: {level} }} }} }}");
    let of_cluster = cluster(
        "base",
        &format!(
            "{{ injection: {{ image: 'a:1', redirect: {{ excludeOutboundPorts: ['1'] }} }}, {} }}",
            level("error")
        ),
    );
    let of_namespace = namespaced(
        "z",
        &format!("{{ injection: {{ redirect: {{ excludeInboundPorts: ['2'] }} }}, {} }}", level("warn")),
    );
    let of_workload = namespaced("a", &format!("{{ selector: {{ matchLabels: {{ app: web }} }}, {} }}", level("info")));
    let all = [of_workload, of_namespace, of_cluster];
    let level_of = |injected: &Injected| {
        let row = rows(&injected.layers).into_iter().find(|row| row.place() == "telemetry.log.level").unwrap();
        (row.value.as_str().unwrap().to_owned(), row.origin.to_string())
    };
    let made = injected(json!({}), &all);
    assert_eq!(level_of(&made), ("info".to_owned(), "SidecarProfile shop/a".to_owned()));
    let text = made.pod.to_string();
    assert!(
        text.contains("\"a:1\"")
            && text.contains("--exclude-outbound-ports=1")
            && text.contains("--exclude-inbound-ports=2"),
        "{text}"
    );
    assert_eq!(level_of(&injected(json!({}), &all[1..])).1, "SidecarProfile shop/z");
    assert_eq!(level_of(&injected(json!({}), &all[2..])).1, "ClusterSidecarProfile base");
    let annotated = json!({ "outrigger.dev/config": "telemetry: { log: { level: debug } }" });
    assert_eq!(
        level_of(&injected(annotated, &all)),
        ("debug".to_owned(), "annotation outrigger.dev/config".to_owned())
    );
    // An image of the installation is not lost by a profile that says nothing of it.
    assert!(injected(json!({}), &all[..2]).pod.to_string().contains(&Settings::default().image));
}

#[test]
fn priority_and_then_the_name_decide_among_equals() {
    let of = |name: &str, priority: i32| {
        namespaced(name, &format!("{{ priority: {priority}, config: {{ telemetry: {{ log: {{ level: warn }} }} }} }}"))
    };
    let (pod, shop) = (pod(json!({})), shop());
    let order = |all: &[Profile]| selected(all, &pod, &shop).iter().map(|one| one.name.clone()).collect::<Vec<_>>();
    assert_eq!(order(&[of("a", 5), of("c", -1), of("b", 5)]), ["c", "a", "b"]);
}

#[test]
fn a_config_map_and_a_config_put_each_other_away() {
    let map = namespaced("m", "{ priority: 1, injection: { configMap: { name: mine } } }");
    let config = |priority: i32| namespaced("c", &format!("{{ priority: {priority}, config: {{ metrics: {{}} }} }}"));
    let has_map = |profiles: &[Profile]| injected(json!({}), profiles).pod.to_string().contains("\"configMap\"");
    assert!(has_map(&[map.clone(), config(0)]) && !has_map(&[map, config(2)]));
}

#[test]
fn mistakes_are_told_with_their_path() {
    for (spec, path, problem) in [
        ("[]", "spec", "no map"),
        ("{ selecter: {} }", "spec.selecter", "unknown; known are selector"),
        ("{ namespaceSelector: {} }", "spec.namespaceSelector", "unknown"),
        ("{ selector: { labels: {} } }", "spec.selector", "unknown field `labels`"),
        (
            "{ selector: { matchExpressions: [{ key: a, operator: In }] } }",
            "spec.selector.matchExpressions[0].values",
            "take `values`",
        ),
        ("{ priority: high }", "spec.priority", "invalid type"),
        ("{ injection: { imgae: x } }", "spec.injection.imgae", "unknown field `imgae`"),
        ("{ injection: { runAsUser: 0 } }", "spec.injection.runAsUser", "needs no root"),
        ("{ injection: { interception: magic } }", "spec.injection.interception", "unknown variant `magic`"),
        ("{ injection: { namespaces: all } }", "spec.injection.namespaces", "only the installation's profile"),
        ("{ injection: { configMap: { name: a } }, config: {} }", "spec.config", "exclude one another"),
        ("{ config: { controller: {} } }", "spec.config.controller", "a controller's, not a sidecar's"),
        ("{ config: { prxy: {} } }", "spec.config.prxy", "proxy"),
        ("{ config: { telemetry: { log: { level: loud } } } }", "spec.config.telemetry.log.level", "`loud`"),
        (
            "{ config: { proxy: { listeners: [{ name: outbound, protocol: gopher }] } } }",
            "spec.config.proxy.listeners[0].protocol",
            "`gopher`",
        ),
        (
            "{ config: { proxy: { listeners: [{ name: outbound, address: '[::]:15009' }] } } }",
            "spec.config.proxy.listeners",
            "no outbound listener at port 15001",
        ),
    ] {
        let judged = judge(&namespaced("a", spec), &Settings::default());
        let found = judged.mistakes.iter().find(|one| one.path == path && one.problem.contains(problem));
        assert!(found.is_some(), "{spec}: {judged:?}");
    }
}

#[test]
fn what_other_profiles_may_bring_is_a_warning() {
    let route = "{ config: { proxy: { listeners: [{ name: outbound, routes: [{ name: r, backendRefs: [{ name: nowhere }] }] }] } } }";
    let judged = judge(&namespaced("a", route), &Settings::default());
    assert_eq!(judged.mistakes, []);
    assert!(
        judged.warnings.iter().any(|one| one.path.starts_with("spec.config.proxy.listeners[0].routes[0]")),
        "{judged:?}"
    );
    // A pod that nobody brings it to is refused.
    let refused = inject_with(&pod(json!({})), &shop(), &Settings::default(), &[namespaced("a", route)]);
    assert!(matches!(&refused, Outcome::Refused(problems) if problems[0].contains("nowhere")), "{refused:?}");
}

#[test]
fn a_profile_that_is_wrong_refuses_the_pods_that_it_means() {
    let wrong = namespaced("bad", "{ priority: high }");
    let outcome = inject_with(&pod(json!({})), &shop(), &Settings::default(), std::slice::from_ref(&wrong));
    let Outcome::Refused(problems) = outcome else { panic!("{outcome:?}") };
    assert!(
        problems[0].contains("SidecarProfile shop/bad is wrong") && problems[0].contains("spec.priority"),
        "{problems:?}"
    );
    let left =
        inject_with(&pod(json!({ "outrigger.dev/inject": "disabled" })), &shop(), &Settings::default(), &[wrong]);
    assert!(matches!(left, Outcome::Left(_)), "{left:?}");
}

#[test]
fn a_pod_is_explained_by_what_injects_it() {
    let profiles = [
        namespaced(
            "web",
            "{ selector: { matchLabels: { app: web } }, config: { telemetry: { log: { level: warn } } } }",
        ),
        namespaced("api", "{ selector: { matchLabels: { app: api } } }"),
    ];
    let made = injected(json!({ "outrigger.dev/cpu-limit": "1" }), &profiles);
    let told = crate::explain::explain(&made.pod, &shop(), &Settings::default(), &profiles);
    assert_eq!(told.differences, Vec::<String>::new());
    assert_eq!(told.counted, ["SidecarProfile shop/web"]);
    assert_eq!(told.passed_over[0].0, "SidecarProfile shop/api");
    let origin = |rows: &[crate::layers::Row], place: &str| {
        rows.iter().find(|row| row.place() == place).map(|row| row.origin.to_string())
    };
    assert_eq!(origin(&told.config, "telemetry.log.level").as_deref(), Some("SidecarProfile shop/web"));
    assert_eq!(origin(&told.config, "proxy.listeners[inbound].address").as_deref(), Some("default"));
    assert_eq!(origin(&told.injection, "resources.cpuLimit").as_deref(), Some("annotation outrigger.dev/cpu-limit"));
    // Another profile now: the place is told.
    let other =
        [namespaced("web", "{ injection: { image: 'b:2' }, config: { telemetry: { log: { level: error } } } }")];
    let told = crate::explain::explain(&made.pod, &shop(), &Settings::default(), &other);
    assert!(told.differences.iter().any(|one| one.contains("telemetry.log.level")), "{:?}", told.differences);
    assert!(told.differences.iter().any(|one| one.contains("would be `b:2`")), "{:?}", told.differences);
    let bare = crate::explain::explain(&pod(json!({})), &shop(), &Settings::default(), &other);
    assert!(bare.differences[0].contains("has no sidecar"), "{:?}", bare.differences);
}

proptest! {
    #[test]
    fn the_order_in_which_profiles_come_does_not_matter(
        specs in prop::collection::vec((0..3_i32, any::<bool>(), any::<bool>(), prop::sample::select(vec!["error", "warn", "info"])), 1..6),
        seed in any::<u64>(),
    ) {
        let all: Vec<Profile> = specs.iter().enumerate().map(|(at, (priority, of_cluster, selects, level))| {
            let selector = if *selects { "selector: { matchLabels: { app: web } }, " } else { "" };
            let spec = format!("{{ {selector}priority: {priority}, config: {{ telemetry: {{ log: {{ level: {level} }} }} }} }}");
            if *of_cluster { cluster(&format!("p{at}"), &spec) } else { namespaced(&format!("p{at}"), &spec) }
        }).collect();
        let mut other = all.clone();
        let middle = usize::try_from(seed % all.len() as u64).unwrap();
        other.rotate_left(middle);
        other.reverse();
        prop_assert_eq!(injected(json!({}), &all).pod, injected(json!({}), &other).pod);
    }

    #[test]
    fn whatever_stands_there_is_read_without_a_panic(text in "[a-zA-Z0-9 :{}\\[\\],'\n-]{0,200}") {
        let _ = read_manifests(&format!("apiVersion: {API_VERSION}\nkind: SidecarProfile\nspec: {{ {text} }}\n"))
            .map(|all| all.iter().map(|one| judge(one, &Settings::default()).mistakes.len()).sum::<usize>());
    }
}

#[test]
fn running_pods_are_told_what_their_volumes_allow() {
    use crate::refresh::{Refresh, Telling, refresh};
    let of = |config: &str| [namespaced("web", &format!("{{ config: {config} }}"))];
    let running = injected(json!({}), &of("{ telemetry: { log: { level: warn } } }")).pod;
    let told = |profiles: &[Profile]| refresh(&running, &shop(), &Settings::default(), profiles);
    assert_eq!(told(&of("{ telemetry: { log: { level: warn } } }")), Refresh::Current);
    let config = |refresh| match refresh {
        Refresh::Tell(Telling { config, last: true, annotations, .. }) if annotations.len() == 1 => config,
        other => panic!("{other:?}"),
    };
    assert!(config(told(&of("{ telemetry: { log: { level: info } } }"))).contains("level: info"));
    assert!(!config(told(&[])).contains("level"), "a profile that is gone");
    let log = "{ proxy: { accessLog: { path: /var/log/mesh/access.log } } }";
    assert_eq!(told(&of(log)), Refresh::Anew("it has no volume at /var/log/mesh".to_owned()));
    assert!(matches!(told(&of("{ runtime: { handover: { socket: /other/x.sock } } }")), Refresh::Anew(_)));
    let map = [namespaced("web", "{ injection: { configMap: { name: mine } } }")];
    assert!(matches!(told(&map), Refresh::Anew(why) if why.contains("ConfigMap")));
    assert!(matches!(told(&[namespaced("bad", "{ priority: high }")]), Refresh::Refused(_)));
    assert_eq!(refresh(&pod(json!({})), &shop(), &Settings::default(), &of("{}")), Refresh::None);
    // Told so, it is as it should be.
    let mut next = running.clone();
    let level = of("{ telemetry: { log: { level: info } } }");
    next["metadata"]["annotations"]["outrigger.dev/effective-config"] = json!(config(told(&level)));
    assert_eq!(refresh(&next, &shop(), &Settings::default(), &level), Refresh::Current);
}

#[test]
fn a_running_pod_changes_its_mtls_in_steps_and_its_other_words_with_them() {
    use crate::refresh::{Refresh, refresh};
    let mesh = "{ trustDomain: shop.example, authority: 'a:15012', audience: outrigger, trustBundle: bundle }";
    let settings = Settings::from_yaml(&format!("mesh: {mesh}\n")).unwrap();
    let of = |injection: &str| [namespaced("web", &format!("{{ injection: {injection} }}"))];
    let mut pod = pod(json!({ "prometheus.io/scrape": "true", "prometheus.io/port": "8080" }));
    let Outcome::Injected(injected) = inject_with(&pod, &shop(), &settings, &of("{ mtls: disabled }")) else {
        panic!()
    };
    pod = injected.pod;
    let original = crate::uninject(&pod).unwrap();
    let mut through = |profiles: &[Profile]| {
        let mut steps = Vec::new();
        loop {
            let telling = match refresh(&pod, &shop(), &settings, profiles) {
                Refresh::Current => break,
                Refresh::Tell(telling) => telling,
                other => panic!("{other:?}"),
            };
            assert!(steps.len() < 4, "it does not end: {steps:?}");
            for (key, value) in telling.annotations {
                let annotations = pod["metadata"]["annotations"].as_object_mut().unwrap();
                match value {
                    Some(value) => drop(annotations.insert(key.to_owned(), json!(value))),
                    None => drop(annotations.shift_remove(key)),
                }
            }
            let annotations = &pod["metadata"]["annotations"];
            assert_eq!(annotations["outrigger.dev/effective-config"], telling.config.as_str());
            let config = yaml::read(&telling.config, Dialect::Config).unwrap();
            let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
            let takes = word(&config["proxy"]["listeners"][0]["tls"]["mode"]);
            steps.push((takes, word(&annotations["outrigger.dev/mtls"]), telling.when));
        }
        // What is there is what a pod that is made now would have, and comes out as it went in.
        let Outcome::Injected(now) = inject_with(&pod, &shop(), &settings, profiles) else { panic!() };
        let noted = |pod: &Value| {
            let mut annotations = pod["metadata"]["annotations"].clone();
            let status = annotations["outrigger.dev/status"].as_str().unwrap().to_owned();
            annotations["outrigger.dev/status"] = serde_json::from_str(&status).unwrap();
            annotations
        };
        assert_eq!(noted(&now.pod), noted(&pod));
        assert_eq!(crate::uninject(&pod).unwrap(), original);
        let steps: Vec<String> = steps.iter().map(|(takes, told, when)| format!("{takes}/{told} {when:?}")).collect();
        (steps.join(", "), pod["metadata"]["annotations"]["prometheus.io/port"].clone())
    };
    let strict = through(&of("{ mtls: strict }"));
    assert_eq!(strict, ("permissive/- Now, permissive/strict Taken, strict/strict Heard".to_owned(), json!("15020")));
    assert_eq!(through(&of("{ mtls: permissive }")).0, "permissive/permissive Now");
    assert_eq!(through(&of("{ mtls: strict }")).0, "strict/strict Heard");
    let plain = through(&of("{ mtls: disabled }")).0;
    assert_eq!(plain, "permissive/strict Now, permissive/- Taken, -/- Heard");
    // The application's metrics are no longer served with ours: whoever scrapes must know.
    assert_eq!(through(&of("{ mtls: disabled, mergeMetrics: false }")), ("-/- Now".to_owned(), json!("8080")));
    assert_eq!(through(&of("{ mtls: disabled }")), ("-/- Now".to_owned(), json!("15020")));
    let other = of("{ mtls: strict, redirect: { excludeInboundPorts: ['9000'] } }");
    assert!(
        matches!(refresh(&pod, &shop(), &settings, &other), Refresh::Anew(why) if why.contains("redirected otherwise"))
    );
}
