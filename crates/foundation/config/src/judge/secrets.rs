//! Rules of the section `secrets`, and of all files that we write.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::path::Path;

use super::Judge;
use crate::diagnostic::Problem;
use crate::{Config, ConfigPath, Name, Secrets, VaultAuth, VaultProvider};

pub(super) fn rules(config: &Config, judge: &mut Judge<'_>) {
    written_files(config, judge);
    let Some(secrets) = &config.secrets else { return };
    let at = ConfigPath::from("secrets");
    let providers = at.key("providers");
    let named = secrets.providers.iter().enumerate();
    judge.unique(
        "provider name",
        "give each a name of its own",
        named.map(|(i, provider)| (providers.index(i).key("name"), &provider.name)),
    );
    for (index, provider) in secrets.providers.iter().enumerate() {
        let at = providers.index(index);
        judge.exactly_one(&at, &[("file", provider.file.is_some()), ("vault", provider.vault.is_some())]);
        if let Some(vault) = &provider.vault {
            vault_rules(vault, &at.key("vault"), judge);
        }
    }
    for (index, file) in secrets.files.iter().enumerate() {
        let at = at.key("files").index(index);
        provider_of(secrets, file.provider.as_ref(), &at, judge);
        not_blank(&file.template, &at, judge);
        if file.mode.0 & 0o007 != 0 {
            let message =
                format!("the mode `{}` opens the secret to every user", judge.shown(&at.key("mode"), &file.mode));
            judge.warning(
                "risk",
                &at.key("mode"),
                message,
                "let its last digit be 0, and set `uid` or `gid` to whom the application runs as",
            );
        }
    }
    for (index, variable) in secrets.env.iter().enumerate() {
        let at = at.key("env").index(index);
        provider_of(secrets, variable.provider.as_ref(), &at, judge);
        not_blank(&variable.template, &at, judge);
    }
    let variables = secrets.env.iter().enumerate();
    judge.unique(
        "variable",
        "give each a name of its own",
        variables.map(|(i, variable)| (at.key("env").index(i).key("name"), &variable.name)),
    );
    unused_providers(secrets, &at, judge);
}

/// The provider must be known, and named when there are several.
fn provider_of(secrets: &Secrets, provider: Option<&Name>, at: &ConfigPath, judge: &mut Judge<'_>) {
    let home = ConfigPath::from("secrets.providers");
    let providers = secrets.providers.iter().enumerate();
    let known: Vec<_> = providers.map(|(i, provider)| (home.index(i).key("name"), provider.name.as_str())).collect();
    match provider {
        Some(provider) => {
            judge.known("provider", &at.key("provider"), provider, &known, &home);
        }
        None if known.len() > 1 && !judge.checked.is_blurred(&at.key("provider")) => {
            let names: BTreeSet<_> = known.iter().map(|(path, name)| judge.shown(path, name)).collect();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let help = format!("add `provider:` with one of {}", crate::check::list_of(&names));
            judge.error(
                "missing",
                at,
                format!("`{at}` does not say which provider it reads, and there are several"),
                help,
            );
        }
        None => {}
    }
}

fn not_blank(template: &str, at: &ConfigPath, judge: &mut Judge<'_>) {
    if template.trim().is_empty() {
        let help = "write what it shall hold, such as '{{ with secret \"secret/data/db\" }}{{ .Data.data.password }}{{ end }}'";
        judge.error("value", &at.key("template"), "the template is empty", help);
    }
}

fn vault_rules(vault: &VaultProvider, at: &ConfigPath, judge: &mut Judge<'_>) {
    judge.not_zero(&at.key("timeout"), vault.timeout);
    judge.not_zero(&at.key("refresh"), vault.refresh);
    login_to_vault(&vault.address, &vault.auth, vault.ca_file.is_some(), at, judge);
}

/// Where Vault is, and how we log in to it.
pub(super) fn login_to_vault(url: &str, login: &VaultAuth, ca_file: bool, at: &ConfigPath, judge: &mut Judge<'_>) {
    unused_ca(url, ca_file, at, judge);
    let address = at.key("address");
    if url.starts_with("http://") && !is_local(url) {
        judge.warning(
            "risk",
            &address,
            "secrets travel in clear text over `http://`",
            "use `https://`, with `caFile` for a private authority",
        );
    }
    let auth = at.key("auth");
    let methods = [
        ("token", login.token.is_some()),
        ("appRole", login.app_role.is_some()),
        ("kubernetes", login.kubernetes.is_some()),
    ];
    judge.exactly_one(&auth, &methods);
    if let Some(token) = &login.token {
        let at = auth.key("token");
        judge.exactly_one(&at, &[("file", token.file.is_some()), ("value", token.value.is_some())]);
        let value = at.key("value");
        if token.value.as_ref().is_some_and(|token| token.expose().trim().is_empty()) {
            judge.error("value", &value, "the token is empty", "give `${VAULT_TOKEN}` a value, or use `file`");
        } else if token.value.is_some() && judge.is_literal(&value) {
            let problem = Problem::error("risk", judge.key_span(&value), value, "the token is written out in the file");
            judge.report(problem.help("use `file`, or take it from the environment: `${VAULT_TOKEN}`").warning());
        }
    }
    let not_empty = |judge: &mut Judge<'_>, method: &str, key: &str, value: &str| {
        if value.trim_matches('/').trim().is_empty() {
            judge.error("value", &auth.key(method).key(key), format!("`{key}` is empty"), "give it a value");
        }
    };
    if let Some(role) = &login.app_role {
        not_empty(judge, "appRole", "roleId", &role.role_id);
        not_empty(judge, "appRole", "mount", &role.mount);
    }
    if let Some(account) = &login.kubernetes {
        not_empty(judge, "kubernetes", "role", &account.role);
        not_empty(judge, "kubernetes", "mount", &account.mount);
    }
}

/// A CA bundle says nothing about plain HTTP.
pub(super) fn unused_ca(url: &str, ca_file: bool, at: &ConfigPath, judge: &mut Judge<'_>) {
    if ca_file && url.starts_with("http://") {
        let message = "`caFile` has no effect: the address begins with `http://`";
        judge.warning("unused", &at.key("caFile"), message, "write `https://`, or remove `caFile`");
    }
}

fn is_local(url: &str) -> bool {
    let host = url.trim_start_matches("http://").split(['/', '?']).next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host).trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn unused_providers(secrets: &Secrets, at: &ConfigPath, judge: &mut Judge<'_>) {
    let (files, env) = (at.key("files"), at.key("env"));
    if judge.checked.has_blurred_member(at)
        || judge.checked.is_blurred_within(&files)
        || judge.checked.is_blurred_within(&env)
    {
        return;
    }
    if secrets.files.is_empty() && secrets.env.is_empty() {
        judge.warning(
            "unused",
            at,
            "`secrets` has providers, but neither `files` nor `env` to fill",
            "add `files` or `env`, or remove the section",
        );
        return;
    }
    if secrets.providers.len() < 2 {
        return;
    }
    let readers =
        secrets.files.iter().map(|file| &file.provider).chain(secrets.env.iter().map(|variable| &variable.provider));
    let readers: Vec<_> = readers.collect();
    if readers.contains(&&None) {
        return; // It may have meant any of them, and was told to say which.
    }
    let used: HashSet<_> = readers.into_iter().flatten().collect();
    if used.iter().any(|name| !secrets.providers.iter().any(|provider| provider.name == **name)) {
        return; // A mistyped reference, reported already, may have meant any of them.
    }
    for (index, provider) in secrets.providers.iter().enumerate().filter(|(_, provider)| !used.contains(&provider.name))
    {
        let at = at.key("providers").index(index).key("name");
        let message = format!("nothing reads the provider `{}`", judge.shown(&at, &provider.name.as_str()));
        judge.warning("unused", &at, message, "name it as the `provider` of a file or a variable, or remove it");
    }
}

/// No two parts of Outrigger may write one file.
fn written_files(config: &Config, judge: &mut Judge<'_>) {
    let mut files: Vec<(ConfigPath, &Path)> = Vec::new();
    if let Some(path) = config.proxy.as_ref().and_then(|proxy| proxy.access_log.as_ref()?.path.as_deref()) {
        files.push(("proxy.accessLog.path".into(), path));
    }
    for (index, sink) in config.logs.iter().flat_map(|logs| &logs.sinks).enumerate() {
        if let Some(file) = &sink.file {
            files.push((ConfigPath::from("logs.sinks").index(index).key("file").key("path"), &file.path));
        }
    }
    for (index, file) in config.secrets.iter().flat_map(|secrets| &secrets.files).enumerate() {
        files.push((ConfigPath::from("secrets.files").index(index).key("path"), &file.path));
    }
    judge.unique("file", "write each to a file of its own", files);
}
