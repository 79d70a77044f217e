//! The config that an injected sidecar reads.
//!
//! In: the profile's config, the pod's, and what follows from the pod itself. Out: one config,
//! checked by the very code that will read it, and the folders it needs. Promise: a config that
//! the sidecar would refuse refuses the pod, with the place of the mistake.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::settings::{Mtls, Settings};
use crate::{json, vault, yaml};

/// Annotations of an object hold 256 KiB in all.
const MOST_BYTES: usize = 160 << 10;

/// Where a keeper gives the next version the sockets, while the sidecar's image is changed under a running application.
const HANDOVER: &str = "/run/outrigger/keeper.sock";

/// Where it is said whom to trust at first.
pub(crate) const CA_FOLDER: &str = "/var/run/secrets/outrigger/ca";
/// What a restart of the sidecar finds again: its certificate and key, and what it was told of services. In memory.
const STATE: &str = "/run/outrigger";

/// Variables that the sidecar has, and values that stand in for them when a config is checked.
pub(crate) const VARIABLES: &[(&str, &str, &str)] = &[
    ("POD_NAME", "metadata.name", "pod-0"),
    ("POD_NAMESPACE", "metadata.namespace", "default"),
    ("POD_UID", "metadata.uid", "00000000-0000-0000-0000-000000000000"),
    ("POD_IP", "status.podIP", "10.0.0.1"),
    ("HOST_IP", "status.hostIP", "10.0.0.2"),
    ("NODE_NAME", "spec.nodeName", "node1"),
    ("SERVICE_ACCOUNT", "spec.serviceAccountName", "default"),
];

/// Maps are merged, lists of things with a `name` by that name, everything else is replaced.
pub(crate) fn merged(base: Value, over: &Value) -> Value {
    match (base, over) {
        (Value::Object(mut base), Value::Object(over)) => {
            for (key, value) in over {
                let merged = match base.get_mut(key) {
                    Some(before) => merged(before.take(), value),
                    None => value.clone(),
                };
                base.insert(key.clone(), merged);
            }
            Value::Object(base)
        }
        (Value::Array(mut base), Value::Array(over)) if named(&base) && named(over) => {
            for item in over {
                match base.iter_mut().find(|before| before["name"] == item["name"]) {
                    Some(before) => *before = merged(before.take(), item),
                    None => base.push(item.clone()),
                }
            }
            Value::Array(base)
        }
        (_, over) => over.clone(),
    }
}

pub(crate) fn named(items: &[Value]) -> bool {
    !items.is_empty() && items.iter().all(|item| item.get("name").is_some_and(Value::is_string))
}

/// A text that stays as it is when the config's variables are filled in.
pub(crate) fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        out.push(c);
        if c == '$' && matches!(rest.peek(), Some('$' | '{')) {
            out.push('$');
        }
    }
    out
}

/// What holds when neither profile nor pod say more: everything passes, and is counted.
pub(crate) fn foundation(settings: &Settings, grace_seconds: Option<u64>) -> Value {
    let mut config = json!({ "metrics": {}, "runtime": { "handover": { "socket": HANDOVER } } });
    if settings.interception.redirects() {
        let listener = |name: &str, port: u16| json!({ "name": name, "direction": name, "address": format!("[::]:{port}"), "protocol": "auto", "redirected": true });
        config["proxy"] = json!({ "listeners": [listener("inbound", 15006), listener("outbound", 15001)] });
    }
    mesh(settings, &mut config);
    if let Some(grace) = grace_seconds.filter(|grace| *grace != 30) {
        // A sixth is left for the kubelet, as of the usual 30 seconds.
        let budget = (grace * 1000 * 5 / 6).max(500);
        let flush = (budget / 5).min(5000);
        config["runtime"]["shutdownBudget"] = json!(format!("{budget}ms"));
        config["runtime"]["flushBudget"] = json!(format!("{flush}ms"));
    }
    config
}

/// An identity of the installation's authority, mTLS by it, and word of services.
fn mesh(settings: &Settings, config: &mut Value) {
    let Some(mesh) = &settings.mesh else { return };
    config["identity"] = json!({
        "trustDomain": mesh.trust_domain,
        "authority": {
            "address": mesh.authority,
            "caFile": format!("{CA_FOLDER}/ca.crt"),
            "tokenFile": format!("{}/{}", vault::TOKENS, token_file(&mesh.audience)),
            "stateDirectory": format!("{STATE}/identity"),
        },
    });
    if !settings.interception.redirects() {
        return;
    }
    if settings.mtls != Mtls::Disabled {
        config["proxy"]["listeners"][0]["tls"] = json!({ "mode": settings.mtls.word() });
    }
    if let Some(discovery) = &mesh.discovery {
        config["proxy"]["discovery"] = json!({
            "servers": [discovery.server],
            "tls": { "spiffeIds": [discovery.spiffe_id] },
            "stateDirectory": format!("{STATE}/discovery"),
            "onDemand": {},
        });
    }
}

/// The file of a token, by its audience.
pub(crate) fn token_file(audience: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') { c } else { '-' };
    audience.chars().map(plain).collect()
}

/// Whether a config takes its identity from elsewhere than the installation's authority.
pub(crate) fn has_own_identity(config: &Value) -> bool {
    let identity = config["identity"].as_object();
    identity.is_some_and(|identity| identity.keys().any(|key| !matches!(key.as_str(), "trustDomain" | "authority")))
}

fn is_inbound(listener: &Value) -> bool {
    listener["direction"] == "inbound" && listener["redirected"] == true
}

/// The same config with a sidecar that takes plain text as well as mTLS; `None` where it has no such listener, or cannot.
pub(crate) fn taking_both(config: &Value) -> Option<String> {
    let mut config = config.clone();
    let listeners = config.get_mut("proxy")?.get_mut("listeners")?.as_array_mut()?;
    let inbound = listeners.iter_mut().find(|one| is_inbound(one))?;
    json::map_at(inbound, "tls")?.insert("mode".to_owned(), json!(Mtls::Permissive.word()));
    let text = yaml::write(&config);
    parsed(&text).ok().map(|_| text)
}

/// What connections that are redirected to the pod's ports must be.
pub(crate) fn mtls(config: &Value) -> Option<Mtls> {
    let inbound = config["proxy"]["listeners"].as_array()?.iter().find(|one| is_inbound(one))?;
    match inbound["tls"].as_object()?.get("mode").and_then(Value::as_str) {
        Some("permissive") => Some(Mtls::Permissive),
        None | Some("strict") => Some(Mtls::Strict),
        Some(_) => None,
    }
}

/// A config that was put together.
pub(crate) struct Effective {
    /// As the sidecar reads it.
    pub(crate) text: String,
    pub(crate) value: Value,
}

/// Prints and checks a config.
pub(crate) fn checked(value: Value, settings: &Settings) -> Result<Effective, Vec<String>> {
    let text = yaml::write(&value);
    if text.len() > MOST_BYTES {
        let problem = format!(
            "the config has {} bytes, and annotations take {MOST_BYTES}; put it into a ConfigMap (`outrigger.dev/config-map`)",
            text.len()
        );
        return Err(vec![problem]);
    }
    let key = (settings.interception.redirects(), text.into_boxed_str());
    if settings.known_good.knows(&key) {
        return Ok(Effective { text: key.1.into(), value });
    }
    let loaded = parsed(&key.1).map_err(|diagnostics| {
        let told = diagnostics.iter().filter(|one| one.severity == outrigger_config::Severity::Error);
        let told = told.map(|one| {
            let help = one.help.as_ref().map(|help| format!("; {help}")).unwrap_or_default();
            let at = one.path.to_string();
            let place = if at.is_empty() { String::new() } else { format!(" at `{at}`") };
            format!("the config is invalid{place}: {}{help}", one.message)
        });
        told.collect::<Vec<_>>()
    })?;
    let problems = unheard(&loaded.config, settings);
    if !problems.is_empty() {
        return Err(problems);
    }
    let text = key.1.to_string();
    settings.known_good.remember(key);
    Ok(Effective { text, value })
}

/// Reads a config as the sidecar will.
fn parsed(text: &str) -> Result<outrigger_config::Loaded, outrigger_config::Diagnostics> {
    let variable = |name: &str| {
        let known = VARIABLES.iter().find(|(known, ..)| *known == name);
        known.map(|(_, _, value)| (*value).to_owned())
    };
    outrigger_config::parse("config", text, &variable)
}

/// All that is to be said of a config that is part of one.
pub(crate) fn diagnostics(value: &Value, settings: &Settings) -> (outrigger_config::Diagnostics, Vec<String>) {
    match parsed(&yaml::write(value)) {
        Ok(loaded) => (loaded.warnings, unheard(&loaded.config, settings)),
        Err(diagnostics) => (diagnostics, Vec::new()),
    }
}

/// Ports to which connections are redirected, and where nobody would listen.
fn unheard(config: &outrigger_config::Config, settings: &Settings) -> Vec<String> {
    use outrigger_config::Direction;
    if !settings.interception.redirects() {
        return Vec::new();
    }
    let listeners = config.proxy.iter().flat_map(|proxy| &proxy.listeners).filter(|one| one.redirected);
    let ports: Vec<_> = listeners.map(|one| (one.direction, one.address.port())).collect();
    let missing = [(Direction::Inbound, 15006, "inbound"), (Direction::Outbound, 15001, "outbound")];
    let missing = missing.iter().filter(|(direction, port, _)| !ports.contains(&(*direction, *port)));
    missing
        .map(|(_, port, name)| {
            format!("the config has no {name} listener at port {port} with `redirected: true`, but connections are redirected there; add it, or set `outrigger.dev/interception` to `none`")
        })
        .collect()
}

/// A config as the sidecar has it, every default filled in, with what is secret masked.
pub(crate) fn masked(text: &str) -> Value {
    parsed(text).ok().and_then(|loaded| serde_json::to_value(&loaded.config).ok()).unwrap_or_default()
}

/// Folders that the sidecar writes to, and what else of the pod follows from its config.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Folders {
    /// What connections to the pod must be.
    pub(crate) mtls: Option<Mtls>,
    /// It asks an authority that it trusts by the installation's bundle.
    pub(crate) trust_bundle: bool,
    /// Secrets, which the application reads.
    pub(crate) secrets: BTreeSet<String>,
    /// The folder of the hand-over's socket.
    pub(crate) handover: Option<String>,
    /// The hand-over's socket.
    pub(crate) socket: Option<String>,
    /// What must stay in memory.
    pub(crate) memory: BTreeSet<String>,
    /// Checkpoints, and files of its own.
    pub(crate) state: BTreeSet<String>,
}

pub(crate) fn folders(config: &Value) -> Folders {
    let ca = config["identity"]["authority"]["caFile"].as_str().and_then(parent);
    let mut folders =
        Folders { mtls: mtls(config), trust_bundle: ca.as_deref() == Some(CA_FOLDER), ..Folders::default() };
    for file in config["secrets"]["files"].as_array().into_iter().flatten() {
        folders.secrets.extend(file["path"].as_str().and_then(parent));
    }
    let socket = config["runtime"]["handover"]["socket"].as_str();
    folders.handover = socket.and_then(parent);
    folders.socket = folders.handover.as_ref().and(socket).map(str::to_owned);
    if let Some(logs) = config.get("logs").and_then(Value::as_object) {
        let directory = logs.get("stateDirectory").and_then(Value::as_str).unwrap_or("/var/lib/outrigger");
        folders.state.insert(directory.trim_end_matches('/').to_owned());
        let sinks = logs.get("sinks").and_then(Value::as_array);
        folders.state.extend(sinks.into_iter().flatten().filter_map(|sink| parent(sink["file"]["path"].as_str()?)));
    }
    for kept in [&config["identity"]["authority"], &config["proxy"]["discovery"]] {
        let folder = kept["stateDirectory"].as_str().filter(|folder| folder.starts_with('/'));
        folders.memory.extend(folder.map(|folder| folder.trim_end_matches('/').to_owned()));
    }
    let authority = config["identity"]["development"]["directory"].as_str();
    folders.state.extend(
        authority.filter(|folder| folder.starts_with('/')).map(|folder| folder.trim_end_matches('/').to_owned()),
    );
    folders.state.extend(config["proxy"]["accessLog"]["path"].as_str().and_then(parent));
    folders
}

fn parent(path: &str) -> Option<String> {
    // Those of `/proc` and `/dev` are there already.
    if !path.starts_with('/') || path.starts_with("/proc/") || path.starts_with("/dev/") {
        return None;
    }
    path.rsplit_once('/').map(|(folder, _)| if folder.is_empty() { "/".to_owned() } else { folder.to_owned() })
}

/// Lets the application read secrets that the config gives no mode: it runs as another user than we do.
pub(crate) fn open_secrets(config: &mut Value, fs_group: bool) -> bool {
    let files = config.get_mut("secrets").and_then(|secrets| secrets.get_mut("files")).and_then(Value::as_array_mut);
    let mut opened = false;
    for file in files.into_iter().flatten().filter_map(Value::as_object_mut) {
        if !["mode", "uid", "gid"].iter().any(|key| file.contains_key(*key)) {
            file.insert("mode".to_owned(), json!(if fs_group { "0440" } else { "0444" }));
            opened = true;
        }
    }
    opened
}

/// An empty section, to be merged into.
pub(crate) fn section(name: &str, value: Value) -> Value {
    let mut map = Map::new();
    map.insert(name.to_owned(), value);
    Value::Object(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Interception;

    #[test]
    fn configs_are_merged_by_name() {
        let base = json!({ "a": {"x": 1, "y": 2}, "list": [{"name": "p", "v": 1, "w": 1}], "plain": [1, 2] });
        let over = json!({ "a": {"y": 3}, "list": [{"name": "p", "v": 2}, {"name": "q"}], "plain": [3], "new": true });
        let expected = json!({ "a": {"x": 1, "y": 3}, "list": [{"name": "p", "v": 2, "w": 1}, {"name": "q"}], "plain": [3], "new": true });
        assert_eq!(merged(base, &over), expected);
    }

    #[test]
    fn what_holds_by_default_is_a_valid_config() {
        for interception in [Interception::Init, Interception::None] {
            for grace in [None, Some(1), Some(30), Some(600)] {
                let settings = Settings { interception, ..Settings::default() };
                checked(foundation(&settings, grace), &settings)
                    .map_err(|problems| problems.join("; "))
                    .map(drop)
                    .unwrap();
            }
        }
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let settings = Settings::default();
        for (config, expected) in [
            (json!({ "proxy": {"listener": []} }), "the config is invalid at `proxy.listener`"),
            (json!({ "metrics": {"listen": "${WHERE}"} }), "WHERE"),
            (json!({ "metrics": {} }), "no inbound listener at port 15006"),
            (json!({ "metrics": {}, "tests": "x".repeat(MOST_BYTES) }), "put it into a ConfigMap"),
        ] {
            let problems = checked(config, &settings).map(drop).unwrap_err();
            assert!(problems[0].contains(expected), "{problems:?}");
        }
        let mut config = foundation(&settings, None);
        config["proxy"]["zone"] = json!("${POD_IP}-${NODE_NAME}");
        assert!(checked(config, &settings).is_ok(), "variables of the pod are known");
    }

    #[test]
    fn what_was_found_good_is_good_for_pods_of_its_kind_alone() {
        let unredirected = Settings { interception: Interception::None, ..Settings::default() };
        let config = || json!({ "metrics": {} });
        for _ in 0..2 {
            assert_eq!(checked(config(), &unredirected).map(|good| good.text).unwrap_or_default(), "metrics: {}\n");
        }
        let redirected = Settings { interception: Interception::Init, ..unredirected };
        assert!(checked(config(), &redirected).is_err(), "nobody listens where connections are redirected");
    }

    #[test]
    fn literals_survive_the_filling_in_of_variables() {
        for (text, expected) in [("$k: {{ $v }}", "$k: {{ $v }}"), ("${x}", "$${x}"), ("$$k", "$$$k"), ("a$", "a$")] {
            assert_eq!(literal(text), expected);
        }
    }
}
