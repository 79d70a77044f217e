//! Pods written for vault-k8s: `vault.hashicorp.com/*` annotations as our `secrets`.
//!
//! In: a pod's annotations. Out: a section `secrets`, and what it needs. Promise: an annotation is
//! honoured, or a warning says that it has no effect, or the pod is refused; none is passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::{Value, json};

use crate::annotations::{boolean, shortened};
use crate::config::literal;
use crate::json;
use crate::settings::Settings;

const PREFIX: &str = "vault.hashicorp.com/";
/// vault-k8s leaves pods alone that have it.
pub(crate) const STATUS: &str = "vault.hashicorp.com/agent-inject-status";
/// Where vault-k8s mounts what `tls-secret` names.
const TLS_FOLDER: &str = "/vault/tls";
/// The login's token among our projected tokens.
pub(crate) const TOKEN_FILE: &str = "vault-auth";
/// Where projected tokens are mounted.
pub(crate) const TOKENS: &str = "/var/run/secrets/outrigger/tokens";
const PROVIDER: &str = "vault-annotations";

/// What becomes of an annotation.
#[derive(Clone, Copy)]
enum Treatment {
    Honoured,
    /// It has no effect, and a warning says so unless its value is one of these.
    Idle(&'static [&'static str]),
    /// The pod is refused unless its value is one of these.
    Refused(&'static [&'static str]),
}

use Treatment::{Honoured, Idle, Refused};

/// All that we know of, by name; those that end in `-` take a secret's name.
const TABLE: &[(&str, Treatment, &str)] = &[
    ("agent-inject", Honoured, "`true`: the secrets below are written"),
    ("agent-inject-secret-", Honoured, "path of a secret in Vault; it is written to a file of that name"),
    ("agent-inject-template-", Honoured, "what is written, in consul-template's language"),
    ("agent-inject-file-", Honoured, "name of the file, if it is not the secret's"),
    ("agent-inject-perms-", Honoured, "mode of the file, `0644` without it"),
    (
        "agent-inject-default-template",
        Honoured,
        "`map` (default) or `json`: what is written where there is no template",
    ),
    ("agent-inject-containers", Honoured, "containers that see the secrets, separated by commas; all without it"),
    ("agent-inject-status", Honoured, "set to `injected`, so that vault-k8s leaves the pod alone"),
    ("secret-volume-path", Honoured, "folder of the files, `/vault/secrets` without it"),
    ("secret-volume-path-", Honoured, "the same for one secret"),
    ("preserve-secret-case", Honoured, "whether names of files keep their capital letters"),
    ("role", Honoured, "role of the Kubernetes auth method"),
    ("service", Honoured, "address of Vault; the profile's `vault.address` without it"),
    ("namespace", Honoured, "namespace of Vault Enterprise"),
    ("auth-path", Honoured, "where the auth method is mounted, `auth/kubernetes` without it"),
    ("auth-type", Refused(&["kubernetes"]), "only `kubernetes`"),
    ("tls-secret", Honoured, "a Secret that is mounted at `/vault/tls`"),
    ("ca-cert", Honoured, "file with Vault's authority, below `/vault/tls`"),
    ("log-level", Honoured, "level of Outrigger's own log"),
    ("template-static-secret-render-interval", Honoured, "how often secrets without a lease are read again"),
    ("agent-pre-populate", Idle(&["true"]), "secrets are always there before the application starts"),
    ("agent-pre-populate-only", Idle(&["false"]), "the sidecar stays, and renews"),
    ("agent-init-first", Idle(&["true", "false"]), "Outrigger always is before the application's own init containers"),
    ("agent-revoke-on-shutdown", Idle(&["true"]), "leases and token are always revoked"),
    ("agent-revoke-grace", Idle(&[]), "the time for it is `runtime.flushBudget`"),
    ("agent-share-process-namespace", Idle(&["false"]), "nothing needs it"),
    ("error-on-missing-key-", Idle(&["true"]), "a missing key is always an error"),
    ("template-config-exit-on-retry-failure", Idle(&[]), "the last good file stays"),
    ("template-max-connections-per-host", Idle(&[]), "connections are few and kept"),
    ("template-lease-renewal-threshold", Idle(&[]), "leases are renewed at two thirds of their life"),
    ("client-max-retries", Idle(&[]), "failures are tried again with growing waits"),
    ("client-timeout", Idle(&[]), "a request has 5 s"),
    ("log-format", Idle(&["standard"]), "set `telemetry.log.format`"),
    ("agent-image", Idle(&[]), "set `outrigger.dev/image`"),
    (
        "agent-run-as-user",
        Idle(&[]),
        "set `outrigger.dev/run-as-user`; files can be read by all users of the containers",
    ),
    ("agent-run-as-group", Idle(&[]), "as `agent-run-as-user`"),
    ("agent-run-as-same-user", Idle(&["false"]), "as `agent-run-as-user`"),
    ("agent-set-security-context", Idle(&["true"]), "Outrigger sets its own"),
    ("agent-limits-cpu", Idle(&[]), "set `outrigger.dev/cpu-limit`"),
    ("agent-limits-mem", Idle(&[]), "set `outrigger.dev/memory-limit`"),
    ("agent-limits-ephemeral", Idle(&[]), "nothing is written to the node's disk"),
    ("agent-requests-cpu", Idle(&[]), "set `outrigger.dev/cpu-request`"),
    ("agent-requests-mem", Idle(&[]), "set `outrigger.dev/memory-request`"),
    ("agent-requests-ephemeral", Idle(&[]), "nothing is written to the node's disk"),
    ("agent-cache-enable", Refused(&["false"]), "there is no cache that applications could ask"),
    ("agent-enable-quit", Idle(&["false"]), "`/quitquitquit` is at the admin port"),
    (
        "agent-inject-command-",
        Refused(&[""]),
        "no command is run when a secret changes; let the application watch the file",
    ),
    ("agent-inject-template-file-", Refused(&[]), "write the template into `agent-inject-template-`"),
    ("agent-inject-token", Refused(&["false"]), "Vault's token is given to nobody"),
    ("agent-configmap", Refused(&[]), "write `secrets` into `outrigger.dev/config`"),
    ("agent-extra-secret", Refused(&[]), "mount the Secret in the pod"),
    ("agent-copy-volume-mounts", Refused(&[]), "mount the volume where it is needed"),
    ("agent-json-patch", Refused(&[]), "use `outrigger.dev/` annotations"),
    ("agent-init-json-patch", Refused(&[]), "use `outrigger.dev/` annotations"),
    ("agent-service-account-token-volume-name", Refused(&[]), "the token is projected for Outrigger alone"),
    ("tls-skip-verify", Refused(&["false"]), "name Vault's authority with `tls-secret` and `ca-cert`"),
    ("tls-server-name", Refused(&[]), "use the name in the certificate as `service`"),
    ("client-cert", Refused(&[]), "log in with the Kubernetes auth method"),
    ("client-key", Refused(&[]), "log in with the Kubernetes auth method"),
    ("proxy-address", Refused(&[""]), "Vault is called directly"),
];

/// What follows from the annotations.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Merged into the config.
    pub(crate) config: Value,
    /// Containers that see the secrets; `None` for all.
    pub(crate) containers: Option<Vec<String>>,
    /// A Secret to be mounted at [`TLS_FOLDER`].
    pub(crate) tls_secret: Option<String>,
    /// How many files.
    pub(crate) files: usize,
    pub(crate) warnings: Vec<String>,
}

impl Plan {
    pub(crate) const TLS_FOLDER: &str = TLS_FOLDER;
}

/// Reads a pod's annotations; `None` when it asks for nothing.
pub(crate) fn plan(pod: &Value, settings: &Settings) -> Result<Option<Plan>, Vec<String>> {
    let given: BTreeMap<&str, &str> =
        json::annotations(pod).filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value))).collect();
    let mut problems = Vec::new();
    match given.get("agent-inject").map(|word| boolean(word)) {
        None | Some(Ok(false)) => return Ok(None),
        Some(Ok(true)) => {}
        Some(Err(_)) => {
            return Err(vec![bad("agent-inject", given["agent-inject"], "`true` or `false`")]);
        }
    }
    let mut warnings = Vec::new();
    sort_out(&given, &mut warnings, &mut problems);
    let address = given.get("service").map(|text| (*text).to_owned()).or_else(|| settings.vault.address.clone());
    let role = given.get("role").map(|text| (*text).to_owned()).or_else(|| settings.vault.role.clone());
    if address.is_none() {
        problems.push("the pod asks for secrets of Vault, but nothing says where Vault is; set `vault.hashicorp.com/service`, or `vault.address` of the profile".to_owned());
    }
    if role.is_none() {
        problems.push("the pod asks for secrets of Vault without a role; set `vault.hashicorp.com/role`".to_owned());
    }
    let files = files(&given, &mut problems);
    if files.is_empty() && problems.is_empty() {
        problems.push(
            "the pod asks for secrets of Vault but names none; add `vault.hashicorp.com/agent-inject-secret-NAME`"
                .to_owned(),
        );
    }
    let auth_path = given.get("auth-path").copied().unwrap_or(&settings.vault.auth_path);
    let mount = auth_path.trim_matches('/');
    let mount = mount.strip_prefix("auth/").unwrap_or(mount);
    let mut vault = json!({
        "address": literal(address.as_deref().unwrap_or_default().trim_end_matches('/')),
        "auth": { "kubernetes": {
            "role": literal(role.as_deref().unwrap_or_default()),
            "tokenFile": format!("{TOKENS}/{TOKEN_FILE}"),
            "mount": literal(mount),
        } },
    });
    let namespace = given.get("namespace").map(|text| (*text).to_owned()).or_else(|| settings.vault.namespace.clone());
    if let Some(namespace) = namespace {
        vault["namespace"] = json!(literal(&namespace));
    }
    if let Some(every) = given.get("template-static-secret-render-interval") {
        vault["refresh"] = json!(literal(every));
    }
    if let Some(file) = given.get("ca-cert") {
        if given.contains_key("tls-secret") && file.starts_with("/vault/tls/") && !file.contains("..") {
            vault["caFile"] = json!(literal(file));
        } else {
            problems.push(bad(
                "ca-cert",
                file,
                "a file below `/vault/tls`, together with `vault.hashicorp.com/tls-secret`",
            ));
        }
    }
    let count = files.len();
    let mut config = json!({ "secrets": { "providers": [{ "name": PROVIDER, "vault": vault }], "files": files } });
    if let Some(level) = given.get("log-level") {
        match *level {
            "trace" | "debug" | "info" | "warn" | "error" => config["telemetry"] = json!({ "log": { "level": level } }),
            other => problems.push(bad("log-level", other, "`trace`, `debug`, `info`, `warn` or `error`")),
        }
    }
    let containers = given.get("agent-inject-containers").map(|list| {
        let names: Vec<String> =
            list.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        names
    });
    for name in containers.iter().flatten() {
        if !json::all_containers(pod).any(|container| json::name(container) == name) {
            problems.push(bad("agent-inject-containers", name, "names of containers of the pod"));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let tls_secret = given.get("tls-secret").map(|name| (*name).to_owned());
    Ok(Some(Plan { config, containers, tls_secret, files: count, warnings }))
}

/// Warns of what has no effect, refuses what cannot be done.
fn sort_out(given: &BTreeMap<&str, &str>, warnings: &mut Vec<String>, problems: &mut Vec<String>) {
    for (name, value) in given {
        // The longest name that fits: `agent-inject-template-file-x` is not the template of `file-x`.
        let fits = |known: &str| {
            known == *name || (known.ends_with('-') && name.starts_with(known) && name.len() > known.len())
        };
        let row = TABLE.iter().filter(|(known, ..)| fits(known)).max_by_key(|(known, ..)| known.len());
        match row {
            None => warnings.push(format!("annotation `{PREFIX}{name}` is unknown to Outrigger and has no effect")),
            Some((_, Idle(harmless), why)) if !harmless.contains(value) => {
                warnings.push(format!("annotation `{PREFIX}{name}` has no effect: {why}"));
            }
            Some((_, Refused(harmless), why)) if !harmless.contains(value) => {
                let value = shortened(value);
                problems
                    .push(format!("annotation `{PREFIX}{name}` with the value `{value}` cannot be honoured: {why}"));
            }
            Some(_) => {}
        }
    }
}

/// The files to write, as our config names them.
fn files(given: &BTreeMap<&str, &str>, problems: &mut Vec<String>) -> Vec<Value> {
    let keep_case = match given.get("preserve-secret-case").map(|word| boolean(word)) {
        None => false,
        Some(Ok(keep)) => keep,
        Some(Err(_)) => {
            problems.push(bad("preserve-secret-case", given["preserve-secret-case"], "`true` or `false`"));
            false
        }
    };
    let as_json = match given.get("agent-inject-default-template").copied() {
        None | Some("map") => false,
        Some("json") => true,
        Some(other) => {
            problems.push(bad("agent-inject-default-template", other, "`map` or `json`"));
            false
        }
    };
    let secrets = given.keys().filter_map(|key| key.strip_prefix("agent-inject-secret-"));
    let templates = given.keys().filter_map(|key| key.strip_prefix("agent-inject-template-"));
    let templates = templates.filter(|name| !name.starts_with("file-"));
    let names: BTreeSet<&str> = secrets.chain(templates).filter(|name| !name.is_empty()).collect();
    let mut files = Vec::new();
    for name in names {
        let of = |kind: &str| given.get(format!("{kind}-{name}").as_str()).copied();
        let secret = of("agent-inject-secret").unwrap_or_default();
        let template = match of("agent-inject-template") {
            Some(template) if !template.trim().is_empty() => template.to_owned(),
            _ if secret.is_empty() => {
                problems.push(bad(
                    &format!("agent-inject-secret-{name}"),
                    "",
                    "a path in Vault such as `secret/data/db`",
                ));
                continue;
            }
            // Both are vault-k8s's own words.
            _ if as_json => format!("{{{{ with secret {secret:?} }}}}{{{{ .Data | toJSON }}}}\n{{{{ end }}}}"),
            _ => format!(
                "{{{{ with secret {secret:?} }}}}{{{{ range $k, $v := .Data }}}}{{{{ $k }}}}: {{{{ $v }}}}\n{{{{ end }}}}{{{{ end }}}}"
            ),
        };
        let folder =
            of("secret-volume-path").or_else(|| given.get("secret-volume-path").copied()).unwrap_or("/vault/secrets");
        let lower = name.to_lowercase();
        let file = of("agent-inject-file").unwrap_or(if keep_case { name } else { &lower });
        let path = format!("{}/{}", folder.trim_end_matches('/'), file.trim_start_matches('/'));
        if !folder.starts_with('/') || path.split('/').any(|step| step == "..") {
            problems.push(bad(
                &format!("agent-inject-file-{name}"),
                &path,
                "a file in an absolute folder, without `..`",
            ));
            continue;
        }
        let mode = of("agent-inject-perms").unwrap_or("0644");
        let octal = (3..=4).contains(&mode.len()) && mode.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        if !octal {
            problems.push(bad(&format!("agent-inject-perms-{name}"), mode, "an octal mode such as `0640`"));
            continue;
        }
        files.push(
            json!({ "path": literal(&path), "provider": PROVIDER, "template": literal(&template), "mode": mode }),
        );
    }
    files
}

fn bad(name: &str, value: &str, allowed: &str) -> String {
    format!("annotation `{PREFIX}{name}` has the value `{}`; allowed: {allowed}", shortened(value))
}

/// The part of the reference.
pub(crate) fn reference() -> String {
    let mut text = String::from(
        "## `vault.hashicorp.com/`\n\nA pod written for vault-k8s gets its secrets from Outrigger. `NAME` is a secret's name.\n\n\
         | annotation | | |\n|---|---|---|\n",
    );
    for (name, treatment, about) in TABLE {
        let name = if name.ends_with('-') { format!("{name}NAME") } else { (*name).to_owned() };
        let harmless = |values: &[&str]| {
            let values: Vec<String> =
                values.iter().filter(|value| !value.is_empty()).map(|value| format!("`{value}`")).collect();
            if values.is_empty() { String::new() } else { format!(" unless {}", values.join(", ")) }
        };
        let treatment = match treatment {
            Honoured => "honoured".to_owned(),
            Idle(values) => format!("no effect, with a warning{}", harmless(values)),
            Refused(values) => format!("refused{}", harmless(values)),
        };
        let _ = writeln!(text, "| `{name}` | {treatment} | {about} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    fn pod(annotations: &[(&str, &str)]) -> Value {
        let annotations: Map<String, Value> =
            annotations.iter().map(|(key, value)| (format!("{PREFIX}{key}"), json!(value))).collect();
        json!({ "metadata": { "annotations": annotations }, "spec": { "containers": [{ "name": "app" }, { "name": "aide" }] } })
    }

    const BASE: &[(&str, &str)] =
        &[("agent-inject", "true"), ("role", "shop"), ("service", "https://vault.example:8200")];

    #[test]
    fn secrets_get_their_names_folders_and_templates() {
        let all = [
            BASE,
            &[
                ("agent-inject-secret-DB", "database/creds/shop"),
                ("agent-inject-secret-api", "secret/data/api"),
                ("agent-inject-template-api", "{{ with secret \"secret/data/api\" }}${x}{{ end }}"),
                ("agent-inject-file-api", "api.env"),
                ("agent-inject-perms-api", "0640"),
                ("secret-volume-path-api", "/etc/api/"),
                ("agent-inject-containers", "aide"),
                ("auth-path", "auth/k8s-eu"),
                ("tls-secret", "vault-ca"),
                ("ca-cert", "/vault/tls/ca.crt"),
            ],
        ]
        .concat();
        let plan = plan(&pod(&all), &Settings::default()).unwrap().unwrap();
        assert_eq!(plan.warnings, Vec::<String>::new());
        assert_eq!(plan.containers, Some(vec!["aide".to_owned()]));
        assert_eq!(plan.tls_secret.as_deref(), Some("vault-ca"));
        let vault = &plan.config["secrets"]["providers"][0]["vault"];
        assert_eq!(vault["auth"]["kubernetes"]["mount"], "k8s-eu");
        assert_eq!(vault["caFile"], "/vault/tls/ca.crt");
        let files = &plan.config["secrets"]["files"];
        assert_eq!(files[0]["path"], "/vault/secrets/db");
        assert_eq!(files[0]["mode"], "0644");
        assert_eq!(
            files[0]["template"],
            "{{ with secret \"database/creds/shop\" }}{{ range $k, $v := .Data }}{{ $k }}: {{ $v }}\n{{ end }}{{ end }}"
        );
        assert_eq!(
            files[1],
            json!({ "path": "/etc/api/api.env", "provider": PROVIDER, "template": "{{ with secret \"secret/data/api\" }}$${x}{{ end }}", "mode": "0640" })
        );
    }

    #[test]
    fn none_is_passed_over() {
        for (extra, expected) in [
            (
                &[("agent-inject-command-db", "kill 1")][..],
                "`vault.hashicorp.com/agent-inject-command-db` with the value `kill 1` cannot be honoured",
            ),
            (&[("agent-inject-template-file-db", "/x")], "cannot be honoured: write the template"),
            (&[("tls-skip-verify", "true")], "cannot be honoured"),
            (&[("auth-type", "approle")], "only `kubernetes`"),
            (&[("agent-inject-perms-db", "rw")], "allowed: an octal mode"),
            (&[("agent-inject-file-db", "../../etc/passwd")], "without `..`"),
            (&[("agent-inject-containers", "nobody")], "names of containers of the pod"),
            (&[("ca-cert", "/etc/ca")], "below `/vault/tls`"),
            (&[("agent-inject-secret-x", "")], "a path in Vault"),
        ] {
            let all = [BASE, &[("agent-inject-secret-db", "secret/data/db")], extra].concat();
            let problems = plan(&pod(&all), &Settings::default()).unwrap_err();
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{extra:?}: {problems:?}");
        }
        let warned = [
            BASE,
            &[
                ("agent-inject-secret-db", "x"),
                ("agent-limits-cpu", "1"),
                ("agent-pre-populate", "true"),
                ("tls-skip-verify", "false"),
                ("nonsense", "1"),
            ],
        ]
        .concat();
        let warnings = plan(&pod(&warned), &Settings::default()).unwrap().unwrap().warnings;
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(plan(&pod(&[("agent-inject", "false"), ("role", "x")]), &Settings::default()).unwrap().is_none());
        let problems = plan(&pod(&[("agent-inject", "true")]), &Settings::default()).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}
