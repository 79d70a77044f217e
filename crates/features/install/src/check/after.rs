//! How an installation is.
//!
//! In: what the API server told, settings. Out: findings. Promise: the webhook is judged by what it does to a pod, not by what
//! is written about it; whatever is not green comes with what to do.

use serde_json::Value;
use x509_parser::pem::Pem;

use super::before::{Skew, pod_security, skew};
use super::drift::differences;
use super::facts::{After, Seen, Trial, annotation, base64, items, label, name, opted_in, text};
use super::finding::{Finding, State, count, some_of};
use super::trust;
use crate::settings::Settings;
use outrigger_kubernetes::names;

/// What injected pods are annotated with.
const STATUS: &str = names::STATUS_ANNOTATION;
/// A certificate that ends sooner should have been renewed.
const SOON: i64 = 7 * 86_400;

/// All findings.
pub(crate) fn findings(facts: &After, settings: &Settings, version: &str) -> Vec<Finding> {
    let mut all = vec![
        release(version),
        objects(facts, version),
        controllers(facts, settings),
        service(&facts.slices),
        bundle(facts, "webhook certificate", "MutatingWebhookConfiguration"),
        trial(&facts.trials),
        limits(&facts.trials),
        bundle(facts, "profiles' certificate", "ValidatingWebhookConfiguration"),
        judging(&facts.judged),
        lease(facts),
    ];
    if settings.authority_secret.is_none() {
        all.push(roots(facts));
    }
    all.push(trust::bundles(facts));
    all.extend([
        namespaces(&facts.namespaces),
        pod_security(&facts.namespaces, settings.interception),
        missed(&facts.pods),
        sidecars(&facts.pods, version),
    ]);
    all
}

fn release(theirs: &str) -> Finding {
    const WHAT: &str = "version";
    let ours = env!("CARGO_PKG_VERSION");
    match skew(theirs, ours) {
        Skew::None => Finding::ok(WHAT, format!("{ours}, here and in the cluster")),
        _ => Finding::warning(
            WHAT,
            format!("{theirs} is installed, and this is {ours}; objects are not compared"),
            format!("check with `outrigger` {theirs}, or apply what this one prints"),
        ),
    }
}

fn objects(facts: &After, version: &str) -> Finding {
    const WHAT: &str = "objects";
    const MEND: &str = "`outrigger install … | kubectl apply -f -` with the settings of the installation";
    let (mut missing, mut different, mut unseen) = (Vec::new(), Vec::new(), Vec::new());
    for (object, seen) in &facts.objects {
        let reference = object.reference();
        match seen {
            Err(why) => unseen.push(format!("{reference}: {why}")),
            Ok(None) => missing.push(reference.to_string()),
            Ok(Some(_)) if version != env!("CARGO_PKG_VERSION") => {}
            Ok(Some(found)) => {
                different.extend(differences(&object.value, found).iter().map(|one| format!("{reference}: {one}")))
            }
        }
    }
    if !missing.is_empty() {
        return Finding::failed(WHAT, format!("missing: {}", some_of(&missing)), MEND);
    }
    if !different.is_empty() {
        return Finding::warning(WHAT, format!("not as installed: {}", different.join("; ")), MEND);
    }
    match unseen.as_slice() {
        [] => Finding::ok(WHAT, format!("all {} are there, as installed", facts.objects.len())),
        unseen => Finding::unknown(WHAT, &some_of(unseen)),
    }
}

fn controllers(facts: &After, settings: &Settings) -> Finding {
    const WHAT: &str = "controllers";
    let pods = match &facts.controllers {
        Ok(pods) => pods,
        Err(why) => return Finding::unknown(WHAT, why),
    };
    let ready = |pod: &&Value| {
        items(pod, "/status/conditions").iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
    };
    let good = pods.iter().filter(ready).count();
    let wanted = settings.replicas as usize;
    let reasons: Vec<String> =
        pods.iter().filter(|pod| !ready(pod)).map(|pod| format!("{}: {}", name(pod), why_not_ready(pod))).collect();
    let mend = format!(
        "`kubectl describe pods -n {0}` and `kubectl logs -n {0} deploy/{1}` say more",
        settings.namespace,
        names::CONTROLLER
    );
    let told = |of: usize| match reasons.is_empty() {
        true => format!("{good} of {of} ready"),
        false => format!("{good} of {of} ready; {}", some_of(&reasons)),
    };
    match good {
        0 => Finding::failed(WHAT, told(wanted), mend),
        good if good < wanted => Finding::warning(WHAT, told(wanted), mend),
        good => {
            let mut nodes: Vec<&str> = pods.iter().map(|pod| text(pod, "/spec/nodeName")).collect();
            nodes.sort_unstable();
            nodes.dedup();
            Finding::ok(WHAT, format!("{good} of {wanted} ready, on {}", count(nodes.len(), "node")))
        }
    }
}

/// The kubelet's or scheduler's word for it.
fn why_not_ready(pod: &Value) -> String {
    for status in items(pod, "/status/containerStatuses") {
        let waiting = &status["state"]["waiting"];
        if let Some(reason) = waiting["reason"].as_str() {
            return match waiting["message"].as_str() {
                Some(message) => format!("{reason} ({message})"),
                None => reason.to_owned(),
            };
        }
        if let Some(reason) = status["state"]["terminated"]["reason"].as_str() {
            return reason.to_owned();
        }
    }
    let condition = items(pod, "/status/conditions").iter().find(|one| one["status"] == "False");
    let told = condition.and_then(|one| one["message"].as_str().or_else(|| one["reason"].as_str()));
    told.unwrap_or("it has just been made").to_owned()
}

fn service(slices: &Seen<Vec<Value>>) -> Finding {
    const WHAT: &str = "service";
    let slices = match slices {
        Ok(slices) => slices,
        Err(why) => return Finding::unknown(WHAT, why),
    };
    let ready = slices
        .iter()
        .flat_map(|slice| items(slice, "/endpoints"))
        .filter(|endpoint| endpoint["conditions"]["ready"] != false)
        .count();
    match ready {
        0 => Finding::failed(
            WHAT,
            "no controller stands behind it, so the webhook and the authority are not reached",
            "see `controllers` above; if these are ready, see whether the Service's selector was changed",
        ),
        ready => Finding::ok(WHAT, format!("{} behind it", count(ready, "controller"))),
    }
}

/// When certificates in PEM end, in seconds since the epoch; none when they cannot be read.
fn ends(pem: &[u8]) -> Option<Vec<i64>> {
    let mut all = Vec::new();
    for block in Pem::iter_from_buffer(pem) {
        all.push(block.ok()?.parse_x509().ok()?.validity().not_after.timestamp());
    }
    (!all.is_empty()).then_some(all)
}

/// `3 days`.
fn left(seconds: i64) -> String {
    match seconds {
        s if s >= 2 * 86_400 => format!("{} days", s / 86_400),
        s if s >= 2 * 3600 => format!("{} hours", s / 3600),
        s => format!("{} min", s / 60),
    }
}

/// Whom the API server trusts when it asks a webhook.
fn bundle(facts: &After, what: &'static str, kind: &str) -> Finding {
    const MEND: &str =
        "the controllers write it: see whether one is ready, holds the lease, and may patch the webhook configuration";
    let configuration = facts.objects.iter().find(|(object, _)| object.value["kind"] == kind);
    let found = match configuration.map(|(_, seen)| seen) {
        Some(Ok(Some(found))) => found,
        Some(Err(why)) => return Finding::unknown(what, why),
        _ => return Finding::failed(what, "there is no webhook configuration", "see `objects` above"),
    };
    let mut soonest = i64::MAX;
    for webhook in items(found, "/webhooks") {
        let whose = webhook["name"].as_str().unwrap_or_default();
        let encoded = text(webhook, "/clientConfig/caBundle");
        if encoded.is_empty() {
            return Finding::failed(
                what,
                format!("`{whose}` has no `caBundle`, so the API server trusts no controller"),
                MEND,
            );
        }
        // The API server takes whatever is written there.
        let Some(all) = base64(encoded).and_then(|pem| ends(&pem)) else {
            return Finding::failed(what, format!("`caBundle` of `{whose}` holds no certificates in PEM"), MEND);
        };
        soonest = soonest.min(all.into_iter().max().unwrap_or_default());
    }
    match soonest - facts.now {
        left if left <= 0 => Finding::failed(what, "the authority that the API server trusts has ended", MEND),
        seconds if seconds < SOON => {
            Finding::warning(what, format!("the authority that the API server trusts ends in {}", left(seconds)), MEND)
        }
        seconds => Finding::ok(what, format!("the API server trusts it, for {} at least", left(seconds))),
    }
}

/// What the webhook did to pods that were made for trial; the worst of it.
fn trial(trials: &[(String, Trial)]) -> Finding {
    const WHAT: &str = "webhook";
    let rank = |trial: &Trial| match trial {
        Trial::Refused(why) if why.contains("failed calling webhook") => 0,
        Trial::Made(pod) if annotation(pod, STATUS).is_none() => 1,
        Trial::Refused(why) if is_limit(why) => 5,
        Trial::Refused(_) => 2,
        Trial::NotAllowed(_) => 3,
        Trial::Made(_) => 4,
    };
    let Some((namespace, worst)) = trials.iter().min_by_key(|(_, trial)| rank(trial)) else {
        return Finding::unknown(WHAT, "no pod was made for trial");
    };
    match worst {
        Trial::Made(pod) if annotation(pod, STATUS).is_some() => {
            Finding::ok(WHAT, "puts the sidecar into a pod made for trial")
        }
        Trial::Made(_) => Finding::failed(
            WHAT,
            format!(
                "a pod made for trial in `{namespace}` came back without a sidecar: the API server could not ask, and `Ignore` let it pass"
            ),
            "see `controllers`, `service` and `webhook certificate` above; the API server's log says why it could not ask. A firewall \
             between it and the nodes must let port 15017 pass",
        ),
        Trial::Refused(why) if why.contains("failed calling webhook") => Finding::failed(
            WHAT,
            why.clone(),
            "see `controllers`, `service` and `webhook certificate` above. A firewall between the API server and the nodes must let port 15017 pass",
        ),
        // Who refuses comes after it was asked.
        Trial::Refused(why) if is_limit(why) => {
            Finding::ok(WHAT, "was asked; see `quotas and limits` for what refused the pod")
        }
        Trial::Refused(why) => Finding::bad(
            WHAT,
            State::Unknown,
            format!("a pod made for trial in `{namespace}` was refused: {why}"),
            "see what refuses it; other webhooks and policies do",
        ),
        Trial::NotAllowed(why) => Finding::unknown(WHAT, why),
    }
}

/// Whether a ResourceQuota or a LimitRange says so.
fn is_limit(why: &str) -> bool {
    ["exceeded quota", "failed quota", " usage per Container ", " usage per Pod ", " limit to request ratio "]
        .iter()
        .any(|words| why.contains(words))
}

/// Namespaces whose quotas and limits let no pod with a sidecar in.
fn limits(trials: &[(String, Trial)]) -> Finding {
    const WHAT: &str = "quotas and limits";
    let refused = trials.iter().filter_map(|(namespace, trial)| match trial {
        Trial::Refused(why) if is_limit(why) => Some(format!("{namespace}: {why}")),
        _ => None,
    });
    match refused.collect::<Vec<_>>().as_slice() {
        [] => Finding::ok(WHAT, "let a pod with a sidecar in"),
        refused => Finding::warning(
            WHAT,
            format!("a small pod with a sidecar would be refused: {}", some_of(refused)),
            "give sidecars there what is asked for, by a SidecarProfile of the namespace (`injection.resources`: cpuRequest, cpuLimit, \
             memoryRequest, memoryLimit) or annotations (`outrigger.dev/cpu-limit` and so on), or raise the quota",
        ),
    }
}

/// What became of a profile that was made for trial.
fn judging(trial: &Trial) -> Finding {
    const WHAT: &str = "profiles' webhook";
    match trial {
        Trial::Made(_) => Finding::ok(WHAT, "judges a profile made for trial"),
        Trial::Refused(why) => Finding::failed(
            WHAT,
            format!("profiles cannot be made or changed: {why}"),
            "see `controllers`, `service` and `profiles' certificate` above. Whichever controller leads writes a `caBundle` that is old \
             anew, within seconds: its status says what keeps it",
        ),
        Trial::NotAllowed(why) => Finding::unknown(WHAT, why),
    }
}

fn lease(facts: &After) -> Finding {
    const WHAT: &str = "leader";
    const MEND: &str =
        "one of the controllers takes over by itself; if none does, see whether they may update the lease";
    let lease = match &facts.lease {
        Ok(Some(lease)) => lease,
        Ok(None) => return Finding::failed(WHAT, "no controller has taken the lease yet", MEND),
        Err(why) => return Finding::unknown(WHAT, why),
    };
    let holder = text(lease, "/spec/holderIdentity");
    let for_seconds = lease["spec"]["leaseDurationSeconds"].as_i64().unwrap_or(15);
    let renewed = seconds(text(lease, "/spec/renewTime")).unwrap_or_default();
    let age = facts.now - renewed;
    match holder {
        "" => Finding::warning(WHAT, "nobody holds the lease", MEND),
        // Clocks differ by some seconds.
        holder if age > for_seconds + 10 => {
            Finding::failed(WHAT, format!("`{holder}` has not renewed its lease for {age} s"), MEND)
        }
        holder => Finding::ok(WHAT, holder),
    }
}

/// Of `2026-01-02T03:04:05.678901Z`.
fn seconds(date: &str) -> Option<i64> {
    let format = &time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::parse(date, format).ok().map(time::OffsetDateTime::unix_timestamp)
}

fn roots(facts: &After) -> Finding {
    const WHAT: &str = "authority";
    const MEND: &str =
        "the controllers make and change the roots: see their status, `kubectl logs` of them says what keeps them";
    let secret = match &facts.roots {
        Ok(Some(secret)) => secret,
        Ok(None) => return Finding::failed(WHAT, "there are no roots yet, so no identity is signed", MEND),
        Err(why) => return Finding::unknown(WHAT, why),
    };
    let encoded = secret.get("data").and_then(|data| data.get("ca.crt")).and_then(Value::as_str).unwrap_or_default();
    let Some(all) = base64(encoded).and_then(|pem| ends(&pem)) else {
        return Finding::failed(WHAT, "the Secret of the roots has no bundle in `ca.crt`", MEND);
    };
    let latest = all.iter().max().copied().unwrap_or_default() - facts.now;
    let told = format!("{}, the last ends in {}", count(all.len(), "root"), left(latest.max(0)));
    match latest {
        latest if latest <= 0 => Finding::failed(WHAT, "all its roots have ended", MEND),
        latest if latest < SOON => Finding::warning(WHAT, told, MEND),
        _ => Finding::ok(WHAT, told),
    }
}

fn namespaces(namespaces: &Seen<Vec<Value>>) -> Finding {
    const WHAT: &str = "namespaces";
    let namespaces = match namespaces {
        Ok(namespaces) => namespaces,
        Err(why) => return Finding::unknown(WHAT, why),
    };
    let odd: Vec<&str> = namespaces.iter().filter(|one| opted_in(one).is_none()).map(name).collect();
    if !odd.is_empty() {
        return Finding::warning(
            WHAT,
            format!("the label `{}` of {} is neither `enabled` nor `disabled`", names::INJECT_LABEL, some_of(&odd)),
            format!("`kubectl label namespace {} {}=enabled --overwrite`", odd[0], names::INJECT_LABEL),
        );
    }
    let system = |one: &&Value| names::SYSTEM_NAMESPACES.contains(&name(one));
    let on: Vec<&Value> = namespaces.iter().filter(|one| opted_in(one) == Some(true)).collect();
    let never: Vec<&str> = on.iter().copied().filter(system).map(name).collect();
    if !never.is_empty() {
        return Finding::warning(
            WHAT,
            format!("{} opted in, which is never injected", some_of(&never)),
            format!("`kubectl label namespace {} {}-`", never[0], names::INJECT_LABEL),
        );
    }
    let on: Vec<&str> = on.into_iter().map(name).collect();
    match on.len() {
        0 => Finding::ok(
            WHAT,
            format!("none opted in yet: `kubectl label namespace NAME {}=enabled`", names::INJECT_LABEL),
        ),
        _ => Finding::ok(WHAT, format!("{} opted in: {}", on.len(), some_of(&on))),
    }
}

/// Pods that should have a sidecar and have none.
fn missed(pods: &Seen<Vec<Value>>) -> Finding {
    const WHAT: &str = "pods without a sidecar";
    let pods = match pods {
        Ok(pods) => pods,
        Err(why) => return Finding::unknown(WHAT, why),
    };
    let missed: Vec<String> = pods
        .iter()
        .filter(|pod| annotation(pod, STATUS).is_none() && should_have(pod))
        .map(|pod| format!("{}/{}", text(pod, "/metadata/namespace"), name(pod)))
        .collect();
    if missed.is_empty() {
        return Finding::ok(WHAT, "none of those that should have one");
    }
    let namespace = missed[0].split('/').next().unwrap_or_default();
    Finding::warning(
        WHAT,
        format!("{}: {}", count(missed.len(), "pod"), some_of(&missed)),
        format!("have them made anew: `kubectl -n {namespace} rollout restart deployment`"),
    )
}

fn should_have(pod: &Value) -> bool {
    let word = label(pod, names::INJECT_LABEL).or_else(|| annotation(pod, names::INJECT_LABEL));
    !matches!(word, Some("disabled" | "false"))
        && pod["spec"]["hostNetwork"] != true
        && annotation(pod, "kubernetes.io/config.mirror").is_none()
        && pod["metadata"]["deletionTimestamp"].is_null()
        && !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

/// Versions of the sidecars that run.
fn sidecars(pods: &Seen<Vec<Value>>, version: &str) -> Finding {
    const WHAT: &str = "sidecars";
    let pods = match pods {
        Ok(pods) => pods,
        Err(why) => return Finding::unknown(WHAT, why),
    };
    let of = |pod: &Value| -> Option<String> {
        let status: Value = serde_json::from_str(annotation(pod, STATUS)?).ok()?;
        Some(status["version"].as_str()?.to_owned())
    };
    let all: Vec<(String, &str)> = pods.iter().filter_map(|pod| Some((of(pod)?, name(pod)))).collect();
    let far: Vec<String> = all
        .iter()
        .filter(|(theirs, _)| skew(theirs, version) == Skew::Large)
        .map(|(theirs, name)| format!("{name} ({theirs})"))
        .collect();
    let older = all.iter().filter(|(theirs, _)| theirs != version).count();
    let mend = "have the pods made anew, or roll the sidecars";
    match (far.as_slice(), older) {
        ([], _) if all.is_empty() => Finding::ok(WHAT, "none yet"),
        ([], 0) => Finding::ok(WHAT, format!("{}, injected by {version}", all.len())),
        ([], older) => Finding::ok(
            WHAT,
            format!("{}, {older} of them injected by another version, at most one minor away", all.len()),
        ),
        (far, _) => Finding::warning(
            WHAT,
            format!("{} more than one minor version from the controllers: {}", count(far.len(), "pod"), some_of(far)),
            mend,
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A certificate that ends in 2125.
    const LONG: &str = include_str!("../../testdata/long.pem");
    const NOW: i64 = 1_800_000_000;

    fn encoded(text: &str) -> String {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(text)
    }

    fn facts(settings: &Settings) -> After {
        let objects = crate::objects(settings).into_iter().map(|object| {
            let mut found = object.value.clone();
            if object.value["kind"].as_str().is_some_and(|kind| kind.ends_with("WebhookConfiguration")) {
                for webhook in found["webhooks"].as_array_mut().unwrap() {
                    webhook["clientConfig"]["caBundle"] = json!(encoded(LONG));
                }
            }
            (object, Ok(Some(found)))
        });
        let pod = |name: &str| json!({ "metadata": { "name": name }, "spec": { "nodeName": "n1" }, "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
        After {
            objects: objects.collect(),
            controllers: Ok(vec![pod("c-1"), pod("c-2")]),
            slices: Ok(vec![json!({ "endpoints": [{ "conditions": { "ready": true } }] })]),
            lease: Ok(Some(
                json!({ "spec": { "holderIdentity": "c-1", "leaseDurationSeconds": 15, "renewTime": "2027-01-15T08:00:00.000000Z" } }),
            )),
            roots: Ok(Some(json!({ "data": { "ca.crt": encoded(LONG) } }))),
            bundles: Ok(vec![json!({ "metadata": { "namespace": "shop" }, "data": { "ca.crt": LONG } })]),
            namespaces: Ok(vec![
                json!({ "metadata": { "name": "shop", "labels": { "outrigger.dev/inject": "enabled" } } }),
            ]),
            pods: Ok(vec![injected("web", env!("CARGO_PKG_VERSION"))]),
            trials: vec![("shop".to_owned(), Trial::Made(injected("trial", "x")))],
            judged: Trial::Made(json!({})),
            now: NOW,
        }
    }

    fn injected(name: &str, version: &str) -> Value {
        let status = json!({ "version": version }).to_string();
        json!({ "metadata": { "name": name, "namespace": "shop", "annotations": { STATUS: status } }, "status": { "phase": "Running" } })
    }

    #[test]
    fn a_good_installation_is_green() {
        let settings = Settings::default();
        let all = findings(&facts(&settings), &settings, env!("CARGO_PKG_VERSION"));
        assert!(all.iter().all(|finding| finding.state == State::Ok), "{all:#?}");
        assert_eq!(all.len(), 16);
    }

    #[test]
    fn each_fault_is_found_with_its_mend() {
        type Spoil = fn(&mut After);
        fn found<'a>(facts: &'a mut After, kind: &str) -> &'a mut Value {
            let (_, seen) = facts.objects.iter_mut().find(|(object, _)| object.value["kind"] == kind).unwrap();
            seen.as_mut().unwrap().as_mut().unwrap()
        }
        let rows: &[(&str, State, &str, Spoil)] = &[
            ("objects", State::Failed, "missing: Service outrigger-system/outrigger-controller", |f| {
                f.objects.iter_mut().find(|(object, _)| object.value["kind"] == "Service").unwrap().1 = Ok(None);
            }),
            ("objects", State::Warning, "spec.replicas is `5`, not `2`", |f| {
                found(f, "Deployment")["spec"]["replicas"] = json!(5)
            }),
            ("objects", State::Unknown, "forbidden", |f| f.objects[0].1 = Err("forbidden".to_owned())),
            ("trust bundles", State::Failed, "missing or old in shop", |f| f.bundles = Ok(Vec::new())),
            ("trust bundles", State::Failed, "missing or old in shop", |f| {
                f.bundles.as_mut().unwrap()[0]["data"]["ca.crt"] = json!("of before");
            }),
            ("controllers", State::Warning, "1 of 2 ready; c-2: ErrImagePull (no such image)", |f| {
                f.controllers.as_mut().unwrap()[1]["status"] = json!({ "containerStatuses": [{ "state": { "waiting": { "reason": "ErrImagePull", "message": "no such image" } } }] });
            }),
            ("controllers", State::Failed, "0 of 2 ready", |f| f.controllers = Ok(Vec::new())),
            ("service", State::Failed, "no controller stands behind it", |f| f.slices = Ok(Vec::new())),
            ("webhook certificate", State::Failed, "has no `caBundle`", |f| {
                found(f, "MutatingWebhookConfiguration")["webhooks"][1]["clientConfig"]
                    .as_object_mut()
                    .unwrap()
                    .remove("caBundle");
            }),
            ("webhook certificate", State::Failed, "holds no certificates", |f| {
                found(f, "MutatingWebhookConfiguration")["webhooks"][0]["clientConfig"]["caBundle"] = json!("QUJD");
            }),
            ("profiles' certificate", State::Failed, "has no `caBundle`", |f| {
                found(f, "ValidatingWebhookConfiguration")["webhooks"][0]["clientConfig"]["caBundle"] = json!("");
            }),
            ("profiles' webhook", State::Failed, "cannot be made or changed: failed calling webhook", |f| {
                f.judged = Trial::Refused("failed calling webhook \"x\": x509".to_owned());
            }),
            ("profiles' webhook", State::Unknown, "forbidden", |f| {
                f.judged = Trial::NotAllowed("forbidden".to_owned())
            }),
            ("webhook", State::Failed, "without a sidecar", |f| f.trials[0].1 = Trial::Made(json!({}))),
            ("webhook", State::Failed, "connection refused", |f| {
                f.trials[0].1 = Trial::Refused("failed calling webhook \"x\": connection refused".to_owned());
            }),
            ("webhook", State::Unknown, "no privileged pods", |f| {
                f.trials[0].1 = Trial::Refused("no privileged pods".to_owned());
            }),
            ("quotas and limits", State::Warning, "refused: shop: exceeded quota: q", |f| {
                f.trials[0].1 = Trial::Refused("exceeded quota: q".to_owned());
            }),
            ("leader", State::Failed, "`c-1` has not renewed its lease for 100 s", |f| {
                f.lease.as_mut().unwrap().as_mut().unwrap()["spec"]["renewTime"] = json!("2027-01-15T07:58:20.000000Z");
            }),
            ("leader", State::Failed, "no controller has taken", |f| f.lease = Ok(None)),
            ("authority", State::Failed, "no roots yet", |f| f.roots = Ok(None)),
            ("authority", State::Unknown, "forbidden", |f| f.roots = Err("forbidden".to_owned())),
            ("namespaces", State::Warning, "of shop is neither", |f| {
                f.namespaces.as_mut().unwrap()[0]["metadata"]["labels"]["outrigger.dev/inject"] = json!("yes");
            }),
            ("namespaces", State::Warning, "kube-system opted in, which is never", |f| {
                f.namespaces.as_mut().unwrap()[0]["metadata"]["name"] = json!("kube-system");
            }),
            ("pods without a sidecar", State::Warning, "1 pod: shop/web", |f| {
                f.pods.as_mut().unwrap()[0]["metadata"].as_object_mut().unwrap().remove("annotations");
            }),
            ("sidecars", State::Warning, "web (7.1.0)", |f| f.pods = Ok(vec![injected("web", "7.1.0")])),
        ];
        for (what, state, told, spoil) in rows {
            let settings = Settings::default();
            let mut facts = facts(&settings);
            spoil(&mut facts);
            let all = findings(&facts, &settings, env!("CARGO_PKG_VERSION"));
            let bad: Vec<&Finding> = all.iter().filter(|finding| finding.state != State::Ok).collect();
            assert_eq!(bad.len(), 1, "{what}: {bad:#?}");
            assert_eq!((bad[0].what.as_str(), bad[0].state), (*what, *state), "{bad:#?}");
            assert!(bad[0].told.contains(told) && bad[0].mend.is_some(), "{told}: {bad:#?}");
        }
    }

    #[test]
    fn certificates_that_end_are_told_before() {
        let settings = Settings::default();
        let mut facts = facts(&settings);
        let end = ends(LONG.as_bytes()).unwrap()[0];
        for (now, state) in [(end - SOON - 60, State::Ok), (end - 86_400, State::Warning), (end + 1, State::Failed)] {
            facts.now = now;
            assert_eq!(bundle(&facts, "x", "MutatingWebhookConfiguration").state, state);
            assert_eq!(roots(&facts).state, state);
        }
        assert_eq!((left(3 * 86_400).as_str(), left(7300).as_str(), left(90).as_str()), ("3 days", "2 hours", "1 min"));
    }

    #[test]
    fn pods_that_need_none_are_not_missed() {
        for (more, missed_one) in [
            (json!({}), true),
            (json!({ "metadata": { "labels": { "outrigger.dev/inject": "disabled" } } }), false),
            (json!({ "metadata": { "annotations": { "outrigger.dev/inject": "disabled" } } }), false),
            (json!({ "spec": { "hostNetwork": true } }), false),
            (json!({ "status": { "phase": "Succeeded" } }), false),
            (json!({ "metadata": { "deletionTimestamp": "x" } }), false),
        ] {
            assert_eq!(missed(&Ok(vec![more.clone()])).state == State::Warning, missed_one, "{more}");
        }
        assert_eq!(trial(&[("shop".to_owned(), Trial::NotAllowed("no".to_owned()))]).state, State::Unknown);
    }
}
