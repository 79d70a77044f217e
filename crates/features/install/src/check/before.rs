//! Whether a cluster can take an installation.
//!
//! In: what the API server told, settings. Out: findings. Promise: whatever would make `kubectl apply` or the first injected pod
//! fail is found here, with what to do.

use serde_json::Value;

use super::facts::{Before, Seen, annotation, items, label, name, opted_in, text};
use super::finding::{Finding, count, some_of};
use crate::settings::{Interception, Settings};

/// Native sidecars are on by default from this minor version on.
const MINOR: u32 = 29;

/// Webhooks of other meshes: a part of the configuration's name, and whose it is.
const MESHES: &[(&str, &str)] = &[
    ("istio", "Istio"),
    ("linkerd-proxy-injector", "Linkerd"),
    ("consul-connect-injector", "Consul"),
    ("kuma-admission", "Kuma"),
];

/// All findings.
pub(crate) fn findings(facts: &Before, settings: &Settings) -> Vec<Finding> {
    vec![
        version(&facts.version),
        nodes(&facts.nodes),
        groups(&facts.groups, settings),
        rights(&facts.rights),
        namespace(&facts.namespaces, settings),
        installed(&facts.installed),
        pod_security(&facts.namespaces, settings.interception),
        meshes(&facts.webhooks, &facts.namespaces),
    ]
}

fn version(version: &Seen<Value>) -> Finding {
    const WHAT: &str = "Kubernetes version";
    let version = match version {
        Ok(version) => version,
        Err(why) => return Finding::unknown(WHAT, why),
    };
    let told = text(version, "/gitVersion");
    match minor(told) {
        Some((1, minor)) if minor < MINOR => Finding::failed(
            WHAT,
            format!("{told}: sidecars as init containers need 1.{MINOR}"),
            "update the cluster; `outrigger inject --no-native-sidecars` is for manifests of older ones",
        ),
        Some(_) => Finding::ok(WHAT, told),
        None => Finding::unknown(WHAT, &format!("`{told}` is no version that we know how to read")),
    }
}

/// Of `v1.34.4+k3s1`.
pub(super) fn minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix('v').unwrap_or(version).split('.');
    let digits = |part: &str| part.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    Some((digits(parts.next()?)?, digits(parts.next()?)?))
}

fn nodes(nodes: &Seen<Vec<Value>>) -> Finding {
    const WHAT: &str = "nodes";
    let nodes = match nodes {
        Ok(nodes) => nodes,
        Err(why) => return Finding::unknown(WHAT, why),
    };
    let of = |node: &Value| text(node, "/status/nodeInfo/kubeletVersion").to_owned();
    let old: Vec<String> = nodes
        .iter()
        .filter(|node| minor(&of(node)).is_some_and(|(major, minor)| major == 1 && minor < MINOR))
        .map(|node| format!("{} ({})", name(node), of(node)))
        .collect();
    let linux = nodes.iter().filter(|node| text(node, "/status/nodeInfo/operatingSystem") != "windows").count();
    if !old.is_empty() {
        let mend =
            format!("update their kubelets to 1.{MINOR} or later, or keep injected pods off them by their labels");
        return Finding::failed(
            WHAT,
            format!(
                "{} would run sidecars as ordinary init containers: {}",
                count(old.len(), "kubelet"),
                some_of(&old)
            ),
            mend,
        );
    }
    if linux == 0 {
        return Finding::warning(WHAT, "no node runs Linux, so no controller can run", "add a node");
    }
    Finding::ok(WHAT, format!("{}, all with native sidecars", count(nodes.len(), "node")))
}

fn groups(served: &Seen<Vec<String>>, settings: &Settings) -> Finding {
    const WHAT: &str = "API groups";
    let served = match served {
        Ok(served) => served,
        Err(why) => return Finding::unknown(WHAT, why),
    };
    let mut needed: Vec<String> = crate::objects(settings)
        .iter()
        .map(|object| object.reference().api_version)
        .filter(|version| version != "v1")
        .chain(
            ["authentication.k8s.io/v1", "authorization.k8s.io/v1", "coordination.k8s.io/v1", "events.k8s.io/v1"]
                .map(str::to_owned),
        )
        .collect();
    needed.sort();
    needed.dedup();
    let missing: Vec<&String> = needed.iter().filter(|group| !served.contains(group)).collect();
    if missing.is_empty() {
        return Finding::ok(WHAT, format!("all {} that are needed are served", needed.len()));
    }
    let mend = if missing.iter().any(|group| group.starts_with("cert-manager.io/")) {
        "install cert-manager first, or have the controllers make the webhook's certificate (`webhookCertificate: own`)"
    } else {
        "turn them on at the API server (`--runtime-config`)"
    };
    Finding::failed(WHAT, format!("not served: {}", some_of(&missing)), mend)
}

fn rights(rights: &Seen<(Vec<String>, usize)>) -> Finding {
    const WHAT: &str = "your rights";
    match rights {
        Err(why) => Finding::unknown(WHAT, why),
        Ok((missing, asked)) if missing.is_empty() => {
            Finding::ok(WHAT, format!("you may do all {asked} things that applying does"))
        }
        Ok((missing, _)) => Finding::failed(
            WHAT,
            format!("you may not {}", some_of(missing)),
            "apply as a user with the ClusterRole `cluster-admin`, or have these rights given to you",
        ),
    }
}

fn namespace(namespaces: &Seen<Vec<Value>>, settings: &Settings) -> Finding {
    let what = format!("namespace {}", settings.namespace);
    let namespaces = match namespaces {
        Ok(namespaces) => namespaces,
        Err(why) => return Finding::unknown(&what, why),
    };
    let Some(found) = namespaces.iter().find(|one| name(one) == settings.namespace) else {
        return match settings.create_namespace {
            true => Finding::ok(&what, "will be made"),
            false => Finding::failed(
                &what,
                "is not there, and is not among the objects",
                format!("make it: `kubectl create namespace {}`", settings.namespace),
            ),
        };
    };
    if text(found, "/status/phase") == "Terminating" {
        return Finding::failed(&what, "is being removed", "wait until it has gone");
    }
    if opted_in(found) == Some(true) && !settings.create_namespace {
        let mend =
            format!("`kubectl label namespace {} outrigger.dev/inject=disabled --overwrite`", settings.namespace);
        return Finding::warning(&what, "is labelled for injection, which never happens to the controllers' own", mend);
    }
    Finding::ok(&what, "is there")
}

fn installed(installed: &Seen<Option<Value>>) -> Finding {
    const WHAT: &str = "existing installation";
    match installed {
        Err(why) => Finding::unknown(WHAT, why),
        Ok(None) => Finding::ok(WHAT, "none"),
        Ok(Some(config)) => {
            let theirs = label(config, "app.kubernetes.io/version").unwrap_or("an unknown version");
            let by = annotation(config, "meta.helm.sh/release-name").map(|release| format!(", by Helm as `{release}`"));
            let by = by.unwrap_or_default();
            match skew(theirs, env!("CARGO_PKG_VERSION")) {
                Skew::None => Finding::ok(WHAT, format!("{theirs}{by}; applying brings its settings up to date")),
                Skew::Small => {
                    Finding::ok(WHAT, format!("{theirs}{by}; applying makes it {}", env!("CARGO_PKG_VERSION")))
                }
                Skew::Large => Finding::warning(
                    WHAT,
                    format!("{theirs}{by}, more than one minor version from {}", env!("CARGO_PKG_VERSION")),
                    "go one minor version at a time, and sidecars after the controllers",
                ),
            }
        }
    }
}

/// How far two versions are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Skew {
    None,
    /// At most one minor version, which is tested.
    Small,
    Large,
}

pub(super) fn skew(one: &str, other: &str) -> Skew {
    if one == other {
        return Skew::None;
    }
    match (minor(one), minor(other)) {
        (Some((a, b)), Some((c, d))) if a == c && b.abs_diff(d) <= 1 => Skew::Small,
        _ => Skew::Large,
    }
}

/// Namespaces that ask for sidecars which their own policy forbids.
pub(super) fn pod_security(namespaces: &Seen<Vec<Value>>, interception: Interception) -> Finding {
    const WHAT: &str = "Pod Security of namespaces";
    let namespaces = match namespaces {
        Ok(namespaces) => namespaces,
        Err(why) => return Finding::unknown(WHAT, why),
    };
    let mine: Vec<&Value> = namespaces.iter().filter(|one| opted_in(one) == Some(true)).collect();
    let strict = |one: &&&Value| {
        matches!(label(one, "pod-security.kubernetes.io/enforce"), Some("baseline" | "restricted"))
            && interception != Interception::None
    };
    let strict: Vec<&str> = mine.iter().filter(strict).map(|one| name(one)).collect();
    if mine.is_empty() {
        return Finding::ok(WHAT, "none opted in yet");
    }
    if strict.is_empty() {
        return Finding::ok(
            WHAT,
            format!("{} opted in, none forbids what the sidecar needs", count(mine.len(), "namespace")),
        );
    }
    Finding::warning(
        WHAT,
        format!(
            "{} enforce a level at which no container may redirect connections, so pods are refused there",
            some_of(&strict)
        ),
        "annotate those pods `outrigger.dev/interception: none`, or label the namespaces `pod-security.kubernetes.io/enforce: privileged`",
    )
}

fn meshes(webhooks: &Seen<Vec<Value>>, namespaces: &Seen<Vec<Value>>) -> Finding {
    const WHAT: &str = "other meshes";
    let webhooks = match webhooks {
        Ok(webhooks) => webhooks,
        Err(why) => return Finding::unknown(WHAT, why),
    };
    let whose = |one: &Value| MESHES.iter().find(|(part, _)| name(one).contains(part)).map(|(_, mesh)| *mesh);
    let mut found: Vec<&str> =
        webhooks.iter().filter(|one| !items(one, "/webhooks").is_empty()).filter_map(whose).collect();
    found.dedup();
    if found.is_empty() {
        return Finding::ok(WHAT, "none puts sidecars into pods");
    }
    let both: Vec<&str> = namespaces
        .iter()
        .flatten()
        .filter(|one| opted_in(one) == Some(true))
        .filter(|one| {
            label(one, "istio-injection") == Some("enabled") || annotation(one, "linkerd.io/inject") == Some("enabled")
        })
        .map(name)
        .collect();
    if both.is_empty() {
        return Finding::ok(
            WHAT,
            format!("{} puts sidecars into pods, but of no namespace that opted in here", some_of(&found)),
        );
    }
    Finding::failed(
        WHAT,
        format!("{} would put sidecars into pods of {}, too, which are refused", some_of(&found), some_of(&both)),
        format!("take one of the two labels away, such as `kubectl label namespace {} istio-injection-`", both[0]),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::State;
    use super::*;
    use crate::settings::WebhookCertificate;

    fn facts() -> Before {
        let groups = [
            "apps/v1",
            "apiextensions.k8s.io/v1",
            "policy/v1",
            "rbac.authorization.k8s.io/v1",
            "admissionregistration.k8s.io/v1",
            "apiextensions.k8s.io/v1",
            "authentication.k8s.io/v1",
            "authorization.k8s.io/v1",
            "coordination.k8s.io/v1",
            "events.k8s.io/v1",
        ];
        Before {
            version: Ok(json!({ "gitVersion": "v1.34.4" })),
            groups: Ok(groups.map(str::to_owned).to_vec()),
            nodes: Ok(vec![
                json!({ "metadata": { "name": "n1" }, "status": { "nodeInfo": { "kubeletVersion": "v1.34.4" } } }),
            ]),
            namespaces: Ok(vec![namespace("shop", json!({ "outrigger.dev/inject": "enabled" }))]),
            webhooks: Ok(Vec::new()),
            rights: Ok((Vec::new(), 20)),
            installed: Ok(None),
        }
    }

    fn namespace(name: &str, labels: Value) -> Value {
        json!({ "metadata": { "name": name, "labels": labels }, "status": { "phase": "Active" } })
    }

    #[test]
    fn a_good_cluster_is_green() {
        let all = findings(&facts(), &Settings::default());
        assert!(all.iter().all(|finding| finding.state == State::Ok), "{all:#?}");
        assert_eq!(all.len(), 8);
    }

    #[test]
    fn each_obstacle_is_found_with_its_mend() {
        type Spoil = fn(&mut Before, &mut Settings);
        let rows: &[(&str, State, &str, &str, Spoil)] = &[
            ("Kubernetes version", State::Failed, "v1.27.3", "update", |f, _| {
                f.version = Ok(json!({ "gitVersion": "v1.27.3" }))
            }),
            ("Kubernetes version", State::Unknown, "refused", "ask as", |f, _| f.version = Err("refused".to_owned())),
            ("nodes", State::Failed, "n2 (v1.28.1)", "update their kubelets", |f, _| {
                f.nodes.as_mut().unwrap().push(
                    json!({ "metadata": { "name": "n2" }, "status": { "nodeInfo": { "kubeletVersion": "v1.28.1" } } }),
                );
            }),
            ("API groups", State::Failed, "cert-manager.io/v1", "install cert-manager", |_, s| {
                s.webhook_certificate = WebhookCertificate::CertManager;
            }),
            ("API groups", State::Failed, "policy/v1", "--runtime-config", |f, _| {
                f.groups.as_mut().unwrap().retain(|group| group != "policy/v1");
            }),
            ("your rights", State::Failed, "create clusterroles", "cluster-admin", |f, _| {
                f.rights = Ok((vec!["create clusterroles".to_owned()], 20));
            }),
            ("namespace outrigger-system", State::Failed, "being removed", "wait", |f, _| {
                let mut gone = namespace("outrigger-system", json!({}));
                gone["status"]["phase"] = json!("Terminating");
                f.namespaces.as_mut().unwrap().push(gone);
            }),
            ("namespace outrigger-system", State::Failed, "is not there", "kubectl create namespace", |_, s| {
                s.create_namespace = false
            }),
            ("existing installation", State::Warning, "more than one minor", "one minor version at a time", |f, _| {
                f.installed = Ok(Some(json!({ "metadata": { "labels": { "app.kubernetes.io/version": "1.9.0" } } })));
            }),
            ("Pod Security of namespaces", State::Warning, "strict enforce", "interception: none", |f, _| {
                let labels =
                    json!({ "outrigger.dev/inject": "enabled", "pod-security.kubernetes.io/enforce": "restricted" });
                f.namespaces.as_mut().unwrap().push(namespace("strict", labels));
            }),
            (
                "other meshes",
                State::Failed,
                "Istio would put sidecars into pods of both",
                "istio-injection-",
                |f, _| {
                    f.webhooks =
                        Ok(vec![json!({ "metadata": { "name": "istio-sidecar-injector" }, "webhooks": [{}] })]);
                    let labels = json!({ "outrigger.dev/inject": "enabled", "istio-injection": "enabled" });
                    f.namespaces.as_mut().unwrap().push(namespace("both", labels));
                },
            ),
        ];
        for (what, state, told, mend, spoil) in rows {
            let (mut facts, mut settings) = (facts(), Settings::default());
            spoil(&mut facts, &mut settings);
            let all = findings(&facts, &settings);
            let bad: Vec<&Finding> = all.iter().filter(|finding| finding.state != State::Ok).collect();
            assert_eq!(bad.len(), 1, "{what}: {bad:#?}");
            assert_eq!((bad[0].what.as_str(), bad[0].state), (*what, *state), "{bad:#?}");
            assert!(bad[0].told.contains(told) && bad[0].mend.as_ref().unwrap().contains(mend), "{bad:#?}");
        }
    }

    #[test]
    fn versions() {
        assert_eq!(minor("v1.34.4+k3s1"), Some((1, 34)));
        assert_eq!(minor("v1.34+"), Some((1, 34)));
        assert_eq!(minor("main"), None);
        for (one, other, expected) in [
            ("0.1.0", "0.1.0", Skew::None),
            ("0.1.0", "0.1.1", Skew::Small),
            ("0.1.0", "0.2.0", Skew::Small),
            ("0.1.0", "0.3.0", Skew::Large),
            ("1.0.0", "0.9.0", Skew::Large),
            ("dev", "0.9.0", Skew::Large),
        ] {
            assert_eq!(skew(one, other), expected, "{one} {other}");
        }
    }
}
