//! Pod in, pod out.
//!
//! In: a pod, its namespace, settings. Out: the pod with the sidecar and the reason of each change;
//! or why it was left alone, or refused. Promise: nothing is read but the arguments; injecting what
//! was injected changes nothing; containers of the application change only as the reasons say.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::annotations::{self, EFFECTIVE, MTLS, STATUS};
use crate::config::{self, Folders};
use crate::decide::{self, Decision, Namespace, clashes, decide};
use crate::json;
use crate::layers::Layer;
use crate::probes::{self, Rewritten};
use crate::record::{self, Record};
use crate::settings::{Interception, Mtls, Settings};
use crate::sidecar::{self, CONFIG_FOLDER};
use crate::vault::{self, Plan};
use crate::{INIT, SIDECAR};

/// Who says what the installation's profile says.
pub(crate) const INSTALLATION: &str = "the installation's profile";

/// What became of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It has the sidecar.
    Injected(Box<Injected>),
    /// It stays as it is, and is fine so.
    Left(String),
    /// It must not run as it is; each problem says how to mend it.
    Refused(Vec<String>),
}

/// An injected pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Injected {
    /// The pod, whole.
    pub pod: Value,
    /// What was added or changed, and why.
    pub reasons: Vec<Reason>,
    /// What its owner should know.
    pub warnings: Vec<String>,
    /// What its config is made of, the later ones counting more; [`crate::rows`] tells which says what.
    pub layers: Vec<Layer>,
}

/// A change, and why it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// What was added or changed.
    pub what: String,
    /// Why.
    pub why: String,
}

/// Puts the sidecar into a pod.
pub fn inject(pod: &Value, namespace: &Namespace, settings: &Settings) -> Outcome {
    if let Some(why) = decide::malformed(pod) {
        return Outcome::Refused(vec![format!("this is no pod: {why}")]);
    }
    // Injected before, perhaps by an older version: we begin anew from what it was.
    let (original, before, given_before) = match record::undo(pod) {
        Ok(None) => (pod.clone(), Vec::new(), None),
        Ok(Some(undone)) => (undone.pod, undone.removed, undone.given),
        Err(why) => return Outcome::Refused(vec![why]),
    };
    if let Some(why) = decide::malformed(&original) {
        return Outcome::Refused(vec![format!("this is no pod: {why}")]);
    }
    match decide(&original, namespace, settings) {
        Decision::Inject => {}
        Decision::Leave(why) => return Outcome::Left(why),
        Decision::Refuse(problems) => return Outcome::Refused(problems),
    }
    let mut settings = settings.clone();
    let mut problems = annotations::refine(&mut settings, &original);
    problems.extend(settings.check().err());
    problems.extend(clashes(&original, namespace, &settings));
    let plan = vault::plan(&original, &settings).unwrap_or_else(|more| {
        problems.extend(more);
        None
    });
    if !problems.is_empty() {
        return Outcome::Refused(problems);
    }
    let change = Change {
        pod: original,
        before,
        given_before,
        settings,
        record: Record::default(),
        reasons: Vec::new(),
        warnings: Vec::new(),
        layers: Vec::new(),
    };
    match change.make(plan) {
        Ok(injected) => Outcome::Injected(Box::new(injected)),
        Err(problems) => Outcome::Refused(problems),
    }
}

/// Takes the sidecar out of a pod; `None` when it has none of ours.
///
/// # Errors
/// When what was noted of the injection cannot be read.
pub fn uninject(pod: &Value) -> Result<Option<Value>, String> {
    Ok(record::undo(pod)?.map(|undone| undone.pod))
}

/// An injection under way.
struct Change {
    pod: Value,
    before: Vec<Value>,
    given_before: Option<Vec<String>>,
    settings: Settings,
    record: Record,
    reasons: Vec<Reason>,
    warnings: Vec<String>,
    layers: Vec<Layer>,
}

impl Change {
    fn make(mut self, plan: Option<Plan>) -> Result<Injected, Vec<String>> {
        let scrape = self.prometheus();
        let (config, folders) = self.config(plan.as_ref(), scrape)?;
        let rewritten = self.probes();
        let mut mounts = vec![json!({ "name": "outrigger-config", "mountPath": CONFIG_FOLDER, "readOnly": true })];
        self.config_volume(config.as_deref());
        self.mtls(&folders)?;
        self.tokens(plan.is_some(), &mut mounts)?;
        self.trust_bundle(&folders, &mut mounts);
        self.vault_tls(plan.as_ref(), &mut mounts);
        let seen_by = plan.as_ref().and_then(|plan| plan.containers.clone());
        self.secrets(&folders, seen_by, &mut mounts)?;
        self.logs(&mut mounts)?;
        self.state(&folders, &mut mounts)?;
        self.containers(&rewritten, mounts);
        self.defaults();
        if let Some(plan) = plan {
            self.annotate(vault::STATUS, "injected", "vault-k8s is to leave the pod alone");
            self.warnings.extend(plan.warnings);
        }
        self.warn_of_class();
        self.finish(config)
    }

    fn because(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.reasons.push(Reason { what: what.into(), why: why.into() });
    }

    /// Where the application's metrics are, if they are to be served with ours.
    fn prometheus(&mut self) -> Option<Value> {
        const SCRAPE: &str = "prometheus.io/scrape";
        if !self.settings.merge_metrics || json::annotation(&self.pod, SCRAPE) != Some("true") {
            return None;
        }
        let of = |key: &str| json::annotation(&self.pod, &format!("prometheus.io/{key}")).map(str::to_owned);
        let declared: BTreeSet<u64> = json::items(json::spec(&self.pod), "containers")
            .iter()
            .flat_map(|container| json::items(container, "ports"))
            .filter_map(|port| port["containerPort"].as_u64())
            .collect();
        let port = match of("port") {
            Some(word) => word.parse().ok().filter(|port| (1..=65535).contains(port)),
            None if declared.len() == 1 => declared.first().copied(),
            None => None,
        };
        let scheme = of("scheme").unwrap_or_else(|| "http".to_owned());
        let path = of("path").unwrap_or_else(|| "/metrics".to_owned());
        let refusal = if self.settings.config_map.is_some() {
            Some("the config is in a ConfigMap; add `metrics.scrape` there".to_owned())
        } else if scheme != "http" {
            Some(format!("`prometheus.io/scheme` is `{scheme}`, and only `http` can be merged"))
        } else if port.is_none() {
            Some("`prometheus.io/port` names no port, and the containers do not declare exactly one".to_owned())
        } else {
            None
        };
        let port = match (port, refusal) {
            (Some(port), None) => port,
            (_, why) => {
                let why = why.unwrap_or_default();
                self.warnings.push(format!("the application's metrics are not merged with Outrigger's: {why}"));
                return None;
            }
        };
        // Then it asks us already.
        if port == 15020 {
            return None;
        }
        let why = format!("metrics of the application ({port}{path}) and of Outrigger are served together");
        for (key, value) in [("port", "15020"), ("path", "/metrics"), ("scheme", "http")] {
            self.annotate(&format!("prometheus.io/{key}"), value, &why);
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        let url = config::literal(&format!("http://127.0.0.1:{port}{slash}{path}"));
        Some(json!({ "metrics": { "scrape": [{ "name": "application", "url": url }] } }))
    }

    /// The config that the sidecar reads, or `None` when it is in a ConfigMap; and the folders it needs.
    fn config(&mut self, plan: Option<&Plan>, scrape: Option<Value>) -> Result<(Option<String>, Folders), Vec<String>> {
        if let Some(map) = self.settings.config_map.clone() {
            if plan.is_some() {
                let problem = "secrets by `vault.hashicorp.com/` annotations cannot be added to a config in a ConfigMap; write them into its `secrets`, or use `outrigger.dev/config`";
                return Err(vec![problem.to_owned()]);
            }
            self.because("config", format!("ConfigMap `{}`, key `{}`", map.name, map.key));
            return Ok((None, Folders::default()));
        }
        let grace = self.pod["spec"]["terminationGracePeriodSeconds"].as_u64();
        let mut layers = vec![Layer::new("default", config::foundation(&self.settings, grace))];
        if grace.is_some_and(|grace| grace != 30) {
            self.because("config: runtime.shutdownBudget", "follows from the pod's terminationGracePeriodSeconds");
        }
        layers.extend(self.settings.config.take().map(|given| Layer::new(INSTALLATION, given)));
        layers.append(&mut self.settings.layers);
        if layers.iter().skip(1).any(|layer| config::has_own_identity(&layer.value)) {
            let mut defaults = config::foundation(&self.settings, grace);
            defaults.as_object_mut().map(|defaults| defaults.shift_remove("identity"));
            layers[0] = Layer::new("default", defaults);
        }
        match layers.len() {
            1 => self.because("config", "the defaults: everything passes, and is counted"),
            _ => self.because("config", "the profile's and the pod's, over the defaults"),
        }
        if let Some(level) = &self.settings.log_level {
            let annotated = json::annotation(&self.pod, "outrigger.dev/log-level").is_some();
            let origin = if annotated { "annotation outrigger.dev/log-level" } else { "logLevel of the profiles" };
            layers.push(Layer::new(origin, config::section("telemetry", json!({ "log": { "level": level } }))));
        }
        if let Some(plan) = plan {
            layers.push(Layer::new("annotations vault.hashicorp.com/", plan.config.clone()));
            self.because(format!("config: {} secret files", plan.files), "annotations `vault.hashicorp.com/`");
        }
        layers.extend(scrape.map(|scrape| Layer::new("annotations prometheus.io/", scrape)));
        let mut value = layers.iter().fold(json!({}), |value, layer| config::merged(value, &layer.value));
        self.layers = layers;
        let fs_group = self.pod["spec"]["securityContext"]["fsGroup"].is_u64();
        if config::open_secrets(&mut value, fs_group) {
            let who = if fs_group { "the pod's fsGroup" } else { "the containers that see their folder" };
            self.because(
                "config: mode of secret files",
                format!("the application runs as another user, so {who} may read them"),
            );
        }
        // Of another trust domain it can neither ask our discovery nor be spoken to by ours.
        let mesh = self.settings.mesh.as_ref();
        let foreign = mesh.is_some_and(|mesh| value["identity"]["trustDomain"] != mesh.trust_domain.as_str());
        if foreign && let Some(proxy) = value.get_mut("proxy").and_then(Value::as_object_mut) {
            proxy.shift_remove("discovery");
        }
        let effective = config::checked(value, &self.settings)?;
        let mut folders = config::folders(&effective.value);
        folders.mtls = folders.mtls.filter(|_| !foreign);
        Ok((Some(effective.text), folders))
    }

    /// Tells others how to speak to the pod.
    fn mtls(&mut self, folders: &Folders) -> Result<(), Vec<String>> {
        let asked = json::annotation(&self.pod, MTLS).map(str::to_owned);
        if self.settings.config_map.is_some() {
            // What is in there is known to who wrote it.
            return Ok(());
        }
        match (folders.mtls, asked) {
            (Some(mtls), _) => {
                self.annotate(MTLS, mtls.word(), "so others speak mTLS to it");
                let redirect = self.settings.redirect.clone();
                // A profile's, too: others speak as ever to ports that the sidecar does not see.
                for (name, ports) in
                    [("exclude", redirect.exclude_inbound_ports), ("include", redirect.include_inbound_ports)]
                {
                    let key = format!("outrigger.dev/{name}-inbound-ports");
                    if !ports.is_empty() && json::annotation(&self.pod, &key).is_none() {
                        self.annotate(&key, &ports.join(","), "so others speak mTLS to the other ports alone");
                    }
                }
            }
            (None, None) => {}
            (None, Some(word)) if word == Mtls::Disabled.word() => {}
            (None, Some(word)) => {
                return Err(vec![format!(
                    "`{MTLS}` is `{word}`, but the inbound listener of the config has no such `tls`: that takes a profile with `mesh` and redirected connections, or the config's own"
                )]);
            }
        }
        Ok(())
    }

    /// Whom to trust when the first certificate is asked for.
    fn trust_bundle(&mut self, folders: &Folders, mounts: &mut Vec<Value>) {
        let Some(mesh) = self.settings.mesh.clone() else { return };
        if !folders.trust_bundle && self.settings.config_map.is_none() {
            return;
        }
        let source = json!({ "name": mesh.trust_bundle, "items": [{ "key": "ca.crt", "path": "ca.crt" }] });
        self.volume("outrigger-ca", json!({ "configMap": source }));
        mounts.push(json!({ "name": "outrigger-ca", "mountPath": config::CA_FOLDER, "readOnly": true }));
        self.because("volume outrigger-ca", "whom to trust when the first certificate is asked for");
    }

    fn config_volume(&mut self, config: Option<&str>) {
        let field = |path: &str, file: &str| json!({ "path": file, "fieldRef": { "fieldPath": path } });
        let mut about = vec![field("metadata.labels", "labels"), field("metadata.annotations", "annotations")];
        let sources = match &self.settings.config_map {
            Some(map) if config.is_none() => json!([
                { "configMap": { "name": map.name, "items": [{ "key": map.key, "path": "outrigger.yaml" }] } },
                { "downwardAPI": { "items": about } },
            ]),
            _ => {
                about.insert(0, field(&format!("metadata.annotations['{EFFECTIVE}']"), "outrigger.yaml"));
                json!([{ "downwardAPI": { "items": about } }])
            }
        };
        self.volume("outrigger-config", json!({ "projected": { "sources": sources } }));
        self.because(
            "volume outrigger-config",
            "the config, and the pod's labels and annotations; changes reach the running sidecar",
        );
    }

    fn tokens(&mut self, vault: bool, mounts: &mut Vec<Value>) -> Result<(), Vec<String>> {
        let mut files = BTreeSet::new();
        let mut sources = Vec::new();
        let seconds = self.settings.token_seconds;
        let mut audiences = self.settings.tokens.clone();
        let of_mesh = self.settings.mesh.as_ref().map(|mesh| mesh.audience.clone());
        audiences.extend(of_mesh.filter(|audience| !self.settings.tokens.contains(audience)));
        for audience in &audiences {
            let file = config::token_file(audience);
            if !files.insert(file.clone()) || file == vault::TOKEN_FILE || file.starts_with('.') {
                return Err(vec![format!(
                    "the token for the audience `{audience}` would be the file `{file}`, which is taken; leave out one of them"
                )]);
            }
            sources.push(
                json!({ "serviceAccountToken": { "audience": audience, "expirationSeconds": seconds, "path": file } }),
            );
        }
        if vault {
            let mut token = json!({ "expirationSeconds": seconds, "path": vault::TOKEN_FILE });
            if let Some(audience) = &self.settings.vault.audience {
                token["audience"] = json!(audience);
            }
            sources.push(json!({ "serviceAccountToken": token }));
        }
        if sources.is_empty() {
            return Ok(());
        }
        let count = sources.len();
        self.volume("outrigger-tokens", json!({ "projected": { "sources": sources } }));
        mounts.push(json!({ "name": "outrigger-tokens", "mountPath": vault::TOKENS, "readOnly": true }));
        self.because("volume outrigger-tokens", format!("{count} service account tokens, for Outrigger alone"));
        Ok(())
    }

    fn vault_tls(&mut self, plan: Option<&Plan>, mounts: &mut Vec<Value>) {
        let Some(secret) = plan.and_then(|plan| plan.tls_secret.as_ref()) else { return };
        self.volume("outrigger-vault-tls", json!({ "secret": { "secretName": secret } }));
        mounts.push(json!({ "name": "outrigger-vault-tls", "mountPath": Plan::TLS_FOLDER, "readOnly": true }));
        self.because("volume outrigger-vault-tls", "`vault.hashicorp.com/tls-secret`");
    }

    /// Folders in memory, written by us and read by the application.
    fn secrets(
        &mut self,
        folders: &Folders,
        seen_by: Option<Vec<String>>,
        mounts: &mut Vec<Value>,
    ) -> Result<(), Vec<String>> {
        let all: BTreeSet<String> = folders.secrets.iter().chain(&self.settings.secret_folders).cloned().collect();
        for (at, folder) in topmost(&all).into_iter().enumerate() {
            self.may_cover(&folder, "secrets.files")?;
            let name = numbered("outrigger-secrets", at);
            self.volume(&name, json!({ "emptyDir": { "medium": "Memory", "sizeLimit": "16Mi" } }));
            mounts.push(json!({ "name": name, "mountPath": folder }));
            let mount = json!({ "name": name, "mountPath": folder, "readOnly": true });
            self.mount(&mount, seen_by.as_deref());
            self.because(format!("volume {name}"), format!("secrets in memory, at {folder} of the application"));
        }
        Ok(())
    }

    /// Folders that the application writes logs to.
    fn logs(&mut self, mounts: &mut Vec<Value>) -> Result<(), Vec<String>> {
        let mut fresh = 0;
        for folder in self.settings.log_folders.clone() {
            // The volume there, or at the nearest folder above.
            let existing = json::items(json::spec(&self.pod), "containers")
                .iter()
                .flat_map(|container| json::items(container, "volumeMounts"))
                .filter(|mount| is_within(&folder, json::text(mount, "mountPath").trim_end_matches('/')))
                .max_by_key(|mount| json::text(mount, "mountPath").len());
            if let Some(existing) = existing.cloned() {
                let mut mount = existing;
                mount["readOnly"] = json!(true);
                if let Some(mount) = mount.as_object_mut() {
                    mount.shift_remove("mountPropagation");
                }
                if mounts.contains(&mount) {
                    continue;
                }
                let why = format!("the application's volume `{}`, read-only", json::name(&mount));
                mounts.push(mount);
                self.because(format!("log folder {folder}"), why);
                continue;
            }
            self.may_cover(&folder, "outrigger.dev/log-folders")?;
            let name = numbered("outrigger-logs", fresh);
            fresh += 1;
            self.volume(&name, json!({ "emptyDir": {} }));
            mounts.push(json!({ "name": name, "mountPath": folder, "readOnly": true }));
            self.mount(&json!({ "name": name, "mountPath": folder }), None);
            self.because(
                format!("volume {name}"),
                format!("log folder {folder}, written by the application and read by Outrigger"),
            );
        }
        Ok(())
    }

    /// Folders that only we write to; the rest of our file system is read-only.
    fn state(&mut self, folders: &Folders, mounts: &mut Vec<Value>) -> Result<(), Vec<String>> {
        let taken: Vec<String> = mounts.iter().map(|mount| json::text(mount, "mountPath").to_owned()).collect();
        let covered = |folder: &str| taken.iter().any(|mount| is_within(folder, mount));
        self.record.handover.clone_from(&folders.socket);
        if let Some(folder) = folders.handover.as_ref().filter(|folder| !covered(folder)) {
            // What was told of services may have some megabytes.
            let kept = folders.memory.iter().any(|kept| is_within(kept, folder));
            let limit = if kept { "16Mi" } else { "1Mi" };
            self.volume("outrigger-handover", json!({ "emptyDir": { "medium": "Memory", "sizeLimit": limit } }));
            mounts.push(json!({ "name": "outrigger-handover", "mountPath": folder }));
            self.because(
                "volume outrigger-handover",
                format!("{folder}, where the next version takes over the sockets"),
            );
        }
        let handover = folders.handover.as_deref();
        let elsewhere = |folder: &&String| !covered(folder) && !handover.is_some_and(|there| is_within(folder, there));
        let memory: BTreeSet<String> = folders.memory.iter().filter(elsewhere).cloned().collect();
        for (at, folder) in topmost(&memory).into_iter().enumerate() {
            let name = numbered("outrigger-memory", at);
            self.volume(&name, json!({ "emptyDir": { "medium": "Memory", "sizeLimit": "16Mi" } }));
            mounts.push(json!({ "name": name, "mountPath": folder }));
            self.because(format!("volume {name}"), format!("{folder}, in memory: what a restart finds again"));
        }
        let state: BTreeSet<String> = folders.state.iter().filter(|folder| !covered(folder)).cloned().collect();
        for (at, folder) in topmost(&state).into_iter().enumerate() {
            if folder == "/" {
                return Err(vec![
                    "the config writes to a file in `/`, which is read-only; use a folder below it".to_owned(),
                ]);
            }
            let name = numbered("outrigger-state", at);
            self.volume(&name, json!({ "emptyDir": {} }));
            mounts.push(json!({ "name": name, "mountPath": folder }));
            self.because(format!("volume {name}"), format!("{folder}, which Outrigger writes to"));
        }
        Ok(())
    }

    /// Whether a volume at this folder of the application's containers would hide what is there.
    fn may_cover(&self, folder: &str, by: &str) -> Result<(), Vec<String>> {
        const SYSTEM: &[&str] = &[
            "/bin",
            "/boot",
            "/dev",
            "/etc",
            "/home",
            "/lib",
            "/lib64",
            "/opt",
            "/proc",
            "/root",
            "/run",
            "/sbin",
            "/srv",
            "/sys",
            "/tmp",
            "/usr",
            "/var",
            "/usr/bin",
            "/usr/lib",
            "/usr/local",
            "/usr/sbin",
            "/usr/share",
            "/var/lib",
            "/var/run",
            "/etc/ssl",
        ];
        if folder == "/" || SYSTEM.contains(&folder) {
            return Err(vec![format!(
                "`{by}` names the folder `{folder}`, and a volume there would hide what is in it; use a folder below it"
            )]);
        }
        for container in json::all_containers(&self.pod) {
            for mount in json::items(container, "volumeMounts") {
                let there = json::text(mount, "mountPath").trim_end_matches('/');
                if there == folder || is_within(there, folder) {
                    return Err(vec![format!(
                        "`{by}` names the folder `{folder}`, but container `{}` mounts the volume `{}` at `{there}`; use another folder",
                        json::name(container),
                        json::name(mount)
                    )]);
                }
            }
        }
        Ok(())
    }

    fn probes(&mut self) -> Rewritten {
        let mut done = Rewritten::default();
        // Without redirection the kubelet reaches the application as ever.
        if !self.settings.rewrite_probes || !self.settings.interception.redirects() {
            return done;
        }
        let hooks = self.settings.native_sidecars;
        json::all_containers_mut(&mut self.pod).for_each(|container| probes::rewrite(container, hooks, &mut done));
        for (container, places) in &done.originals {
            let places: Vec<&str> = places.as_object().into_iter().flatten().map(|(place, _)| place.as_str()).collect();
            self.because(
                format!("container {container}: {} through port {}", places.join(", "), probes::PORT),
                "the kubelet has no certificate, and its calls are no traffic",
            );
        }
        self.warnings.append(&mut done.warnings);
        self.record.probes = done.originals.clone();
        done
    }

    fn containers(&mut self, rewritten: &Rewritten, mounts: Vec<Value>) {
        let native = self.settings.native_sidecars;
        let mut sidecar = sidecar::sidecar(&self.settings, &rewritten.asks, mounts);
        let mut init = (self.settings.interception == Interception::Init).then(|| sidecar::init(&self.settings));
        let volumes = json::items(json::spec(&self.pod), "volumes").to_vec();
        self.record.given = Some(sidecar::given(&sidecar));
        for fresh in init.iter_mut().chain([&mut sidecar]) {
            if let Some(before) = self.before.iter().find(|before| json::name(before) == json::name(fresh)) {
                sidecar::carry_over(fresh, before, &volumes);
                if let Some(given) = &self.given_before {
                    sidecar::carry_over_defaults(fresh, before, given);
                }
            }
        }
        if init.is_some() || native {
            self.note_created("spec/initContainers");
        }
        let Some(spec) = self.pod.get_mut("spec") else { return };
        if let Some(init) = init {
            if let Some(list) = json::list_at(spec, "initContainers") {
                // Beside a plain sidecar init containers of the application run before it, and must find the network as it was.
                let at = if native { 0 } else { list.len() };
                list.insert(at, init);
            }
            self.record.containers.push(INIT.to_owned());
        }
        let (list, at) = if native { ("initContainers", self.record.containers.len()) } else { ("containers", 0) };
        if let Some(list) = json::list_at(spec, list) {
            list.insert(at, sidecar);
        }
        self.record.containers.push(SIDECAR.to_owned());
        if self.settings.interception == Interception::Init {
            self.because(
                format!("init container {INIT}"),
                "redirects TCP connections to Outrigger, with NET_ADMIN and nothing else",
            );
        }
        if self.settings.interception == Interception::Own {
            self.because(
                format!("container {SIDECAR}: NET_ADMIN, SETUID, SETPCAP at its start"),
                "it redirects TCP connections itself, and gives every capability up before it reads a byte",
            );
        }
        if native {
            self.because(
                format!("init container {SIDECAR}"),
                "a native sidecar, before the application's own init containers",
            );
        } else {
            self.because(
                format!("container {SIDECAR}"),
                "the first container, for the cluster knows no native sidecars",
            );
        }
    }

    /// What kubectl takes when no container is named.
    fn defaults(&mut self) {
        let containers = json::items(json::spec(&self.pod), "containers");
        let first = containers.iter().map(json::name).find(|name| *name != SIDECAR).unwrap_or_default().to_owned();
        for key in ["kubectl.kubernetes.io/default-container", "kubectl.kubernetes.io/default-logs-container"] {
            if json::annotation(&self.pod, key).is_none() {
                self.annotate(key, &first, "kubectl exec, logs and attach are to show the application");
            }
        }
    }

    fn warn_of_class(&mut self) {
        let guaranteed = |container: &Value| {
            let of = |kind: &str, what: &str| container["resources"][kind][what].clone();
            ["cpu", "memory"].iter().all(|what| {
                let (request, limit) = (of("requests", what), of("limits", what));
                !limit.is_null() && (request.is_null() || request == limit)
            })
        };
        let ours = |container: &&Value| !self.record.containers.iter().any(|name| name == json::name(container));
        let mut all = json::all_containers(&self.pod).filter(ours).peekable();
        let theirs = all.peek().is_some() && all.all(guaranteed);
        let resources = &self.settings.resources;
        let own = resources.cpu_limit.is_some()
            && resources.cpu_request == resources.cpu_limit
            && resources.memory_request == resources.memory_limit
            && resources.memory_limit.is_some();
        if theirs && !own {
            self.warnings.push("the pod's quality of service was Guaranteed and is Burstable now".to_owned());
        }
    }

    fn volume(&mut self, name: &str, source: Value) {
        self.note_created("spec/volumes");
        let mut volume = json!({ "name": name });
        if let (Some(volume), Some(source)) = (volume.as_object_mut(), source.as_object()) {
            volume.extend(source.clone());
        }
        let list = self.pod.get_mut("spec").and_then(|spec| json::list_at(spec, "volumes"));
        list.into_iter().for_each(|list| list.push(volume.clone()));
        self.record.volumes.push(name.to_owned());
    }

    /// Mounts a volume of ours in the application's containers: all, or those that are named.
    fn mount(&mut self, mount: &Value, only: Option<&[String]>) {
        let mut created = Vec::new();
        for container in json::all_containers_mut(&mut self.pod) {
            let name = json::name(container).to_owned();
            if only.is_some_and(|only| !only.contains(&name)) {
                continue;
            }
            if container.get("volumeMounts").is_none() {
                created.push(format!("container/{name}/volumeMounts"));
            }
            json::list_at(container, "volumeMounts").into_iter().for_each(|list| list.push(mount.clone()));
        }
        self.record.created.extend(created);
    }

    fn annotate(&mut self, key: &str, value: &str, why: &str) {
        let was = json::annotation(&self.pod, key).map(str::to_owned);
        if was.as_deref() == Some(value) {
            return;
        }
        self.record.annotation(key, was.as_deref(), value);
        self.because(format!("annotation {key}: {value}"), why);
        self.set_annotation(key, value);
    }

    fn set_annotation(&mut self, key: &str, value: &str) {
        self.note_created("metadata");
        self.note_created("metadata/annotations");
        let metadata = json::map_at(&mut self.pod, "metadata").is_some().then(|| &mut self.pod["metadata"]);
        let annotations = metadata.and_then(|metadata| json::map_at(metadata, "annotations"));
        annotations.into_iter().for_each(|map| {
            map.insert(key.to_owned(), json!(value));
        });
    }

    /// Notes that a map or list is about to be made where none is.
    fn note_created(&mut self, place: &str) {
        let here = place.split('/').try_fold(&self.pod, |value, step| value.get(step));
        if here.is_none() && !self.record.created.iter().any(|known| known == place) {
            self.record.created.push(place.to_owned());
        }
    }

    fn finish(mut self, config: Option<String>) -> Result<Injected, Vec<String>> {
        if let Some(config) = config {
            self.set_annotation(EFFECTIVE, &config);
        }
        // Noted before the record is written, for the record tells of it.
        self.note_created("metadata");
        self.note_created("metadata/annotations");
        self.record.version = env!("CARGO_PKG_VERSION").to_owned();
        let status = serde_json::to_string(&self.record).map_err(|error| vec![error.to_string()])?;
        self.set_annotation(STATUS, &status);
        let bytes: usize = json::annotations(&self.pod).map(|(key, value)| key.len() + value.len()).sum();
        if bytes > 256 << 10 {
            return Err(vec![format!(
                "the pod would have {bytes} bytes of annotations, and Kubernetes takes 262144; put the config into a ConfigMap (`outrigger.dev/config-map`)"
            )]);
        }
        Ok(Injected { pod: self.pod, reasons: self.reasons, warnings: self.warnings, layers: self.layers })
    }
}

fn numbered(name: &str, at: usize) -> String {
    if at == 0 { name.to_owned() } else { format!("{name}-{}", at + 1) }
}

fn is_within(path: &str, folder: &str) -> bool {
    path == folder || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// Folders that are in none of the others.
fn topmost(folders: &BTreeSet<String>) -> Vec<String> {
    let others = |folder: &&String| !folders.iter().any(|other| other != *folder && is_within(folder, other));
    folders.iter().filter(others).cloned().collect()
}
