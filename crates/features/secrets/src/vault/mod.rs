//! The provider `vault`: Vault or OpenBao over its HTTP API.
//!
//! In: paths of secrets, and what the config says of logging in. Out: secrets with leases.
//! Promise: the first read costs no request that it does not need; a token that can be
//! renewed is; what was lent to us is given back at the stop.

mod answer;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use http::Method;
use outrigger_config::{Secret, VaultProvider};
use outrigger_http::Resolver;
use outrigger_vault::{Answer, Call, Error as VaultError, Session, VaultClient, VaultSettings, given_token};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use crate::error::Error;
use crate::metrics::Metrics;
use crate::provider::{Fetched, LIST, Lease};

/// Leases given back at a time.
const REVOKED_AT_ONCE: usize = 8;

/// One Vault, and our session with it.
pub(crate) struct Vault {
    client: VaultClient,
    config: VaultProvider,
    session: Option<Session>,
    /// Mounts of KV version 2 found after a path without `data/` had led nowhere.
    mounts: Mutex<BTreeSet<String>>,
}

/// What came of a try to renew a lease.
pub(crate) enum Renewal {
    Renewed(Lease),
    /// It cannot be; the secret has to be read again.
    Over,
}

impl Vault {
    pub(crate) fn new(provider: String, config: VaultProvider, resolver: Resolver, metrics: Metrics) -> Self {
        let observer = move |operation: &'static str, result: &str| metrics.request(&provider, operation, result);
        let client = VaultClient::new("secrets", VaultSettings::from(&config), resolver, Box::new(observer));
        Self { client, config, session: None, mounts: Mutex::default() }
    }

    pub(crate) fn refresh(&self) -> Duration {
        self.config.refresh.into()
    }

    pub(crate) fn watched(&self) -> Vec<PathBuf> {
        let auth = &self.config.auth;
        let token = auth.token.as_ref().and_then(|token| token.file.clone());
        let secret_id = auth.app_role.as_ref().map(|role| role.secret_id_file.clone());
        token.into_iter().chain(secret_id).chain(self.client.settings().ca_file.clone()).collect()
    }

    /// Takes up what has changed in the files of [`Self::watched`]; true when another token took the place of ours, to
    /// which old leases do not belong.
    pub(crate) fn files_changed(&mut self) -> bool {
        self.client.forget_tls();
        let Some(session) = self.session.as_ref().filter(|_| self.config.auth.token.is_some()) else { return false };
        let replaced = given_token(self.client.settings()).is_ok_and(|token| token != *session.token());
        if replaced {
            self.session = None;
        }
        replaced
    }

    /// Logs in unless we are.
    pub(crate) async fn prepare(&mut self) -> Result<(), Error> {
        self.client.prepare()?;
        if self.session.is_none() {
            self.session = Some(Session::begin(&self.client).await?);
        }
        Ok(())
    }

    /// Whether another token can be had than the one we hold.
    pub(crate) fn can_log_in_again(&self) -> bool {
        let auth = &self.config.auth;
        auth.app_role.is_some()
            || auth.kubernetes.is_some()
            || auth.token.as_ref().is_some_and(|token| token.file.is_some())
    }

    /// Forgets a token that Vault does not accept any more.
    pub(crate) fn forget_session(&mut self) {
        self.session = None;
    }

    /// When the token wants attention; `None` while there is none or it never does.
    pub(crate) fn attention(&self) -> Option<Instant> {
        self.session.as_ref().and_then(Session::attention)
    }

    /// Looks up or renews the token when that is due; true when a new one took its place, to which old leases do not belong.
    pub(crate) async fn attend(&mut self) -> Result<bool, Error> {
        self.client.prepare()?;
        let Some(session) = &mut self.session else { return Ok(false) };
        match session.attend(&self.client).await {
            Ok(()) => Ok(false),
            Err(error @ VaultError::Unavailable { .. }) => Err(error.into()),
            Err(error) if !self.can_log_in_again() => Err(error.into()),
            Err(_) => {
                // The token in hand stays until there is a new one.
                let fresh = Session::begin(&self.client).await?;
                let replaced = self.session.as_ref().is_none_or(|old| old.token() != fresh.token());
                self.session = Some(fresh);
                Ok(replaced)
            }
        }
    }

    /// Reads a path.
    pub(crate) async fn read(&self, path: &str) -> Result<Fetched, Error> {
        let known = self.known_mount(path);
        let asked = known.as_deref().unwrap_or(path);
        let answer = self.get("read", asked).await?;
        // A policy for `secret/data/db` alone denies `secret/db` before anyone sees that nothing is there.
        if !matches!(answer.status, 403 | 404) || known.is_some() {
            return self.taken(path, asked, answer).await;
        }
        match self.kv2_path(path).await {
            Some(asked) => {
                let answer = self.get("read", &asked).await?;
                self.taken(path, &asked, answer).await
            }
            None => self.taken(path, path, answer).await,
        }
    }

    /// Renews a lease.
    pub(crate) async fn renew(&self, lease: &Lease) -> Result<Renewal, Error> {
        let body = json!({ "lease_id": lease.id.expose(), "increment": lease.duration.as_secs() });
        let call = Call {
            operation: "renew_lease",
            method: Method::PUT,
            path: "sys/leases/renew",
            token: self.token(),
            body: Some(body),
        };
        let answer = self.client.call(call).await?;
        let renewed = answer.json.as_ref().filter(|_| answer.status == 200).and_then(answer::lease);
        // A lease near its end is renewed by less than was asked for: time for a new secret.
        Ok(match renewed {
            Some(renewed) if renewed.duration * 3 > lease.duration => Renewal::Renewed(renewed),
            _ => Renewal::Over,
        })
    }

    /// Gives back leases, without the session.
    pub(crate) async fn revoke(&self, leases: Vec<Lease>) {
        let revoke = |lease: Lease| async move {
            let call = Call {
                operation: "revoke_lease",
                method: Method::PUT,
                path: "sys/leases/revoke",
                token: self.token(),
                body: Some(json!({ "lease_id": lease.id.expose() })),
            };
            match self.client.call(call).await {
                Ok(answer) if answer.status < 300 => {}
                Ok(answer) => {
                    let (status, words) = (answer.status, answer.words());
                    tracing::debug!(component = "secrets", status, words, "a lease is not revoked");
                }
                Err(error) => tracing::warn!(component = "secrets", %error, "a lease is not revoked"),
            }
        };
        stream::iter(leases).map(revoke).buffer_unordered(REVOKED_AT_ONCE).collect::<()>().await;
    }

    /// Gives back leases and, when it was issued to us, the token. Ends when Vault has answered: bound it.
    pub(crate) async fn leave(mut self, leases: Vec<Lease>) {
        if self.client.prepare().is_err() {
            return;
        }
        self.revoke(leases).await;
        if let Some(session) = self.session.take() {
            session.end(&self.client).await;
        }
    }

    fn token(&self) -> Option<&Secret> {
        self.session.as_ref().map(Session::token)
    }

    async fn get(&self, operation: &'static str, path: &str) -> Result<Answer, Error> {
        let call = Call { operation, method: Method::GET, path, token: self.token(), body: None };
        Ok(self.client.call(call).await?)
    }

    /// What an answer to a read means.
    async fn taken(&self, path: &str, asked: &str, mut answer: Answer) -> Result<Fetched, Error> {
        let words = answer.words();
        match answer.status {
            200 => {
                let json = answer.json.take().unwrap_or_default();
                answer::fetched(json).ok_or_else(|| self.missing(path, ": Vault answers no data there"))
            }
            404 => {
                let deleted = answer.json.as_ref().and_then(|json| json.pointer("/data/metadata/deletion_time"));
                let deleted = deleted.and_then(Json::as_str).is_some_and(|time| !time.is_empty());
                let destroyed = answer.json.as_ref().and_then(|json| json.pointer("/data/metadata/destroyed"));
                Err(self.missing(
                    path,
                    match (deleted, destroyed.and_then(Json::as_bool)) {
                        (_, Some(true)) => ": its version is destroyed".to_owned(),
                        (true, _) => ": its version is deleted".to_owned(),
                        _ if asked != path => format!(": nor at `{asked}`, where KV version 2 would have it"),
                        _ => words,
                    }
                    .as_str(),
                ))
            }
            403 => Err(self.denied(asked, &words).await),
            status => Err(self.client.refused(format!("answers {status} to a read of `{asked}`{words}")).into()),
        }
    }

    /// A 403 says the same of a bad token and of a policy: asking for the token itself tells them apart.
    async fn denied(&self, path: &str, words: &str) -> Error {
        let address = self.client.settings().address.clone();
        let rejected = |problem: &str| Error::TokenRejected {
            address: address.clone(),
            path: path.to_owned(),
            problem: problem.to_owned(),
        };
        let right = if path.ends_with(LIST) { "list" } else { "read" };
        match self.get("lookup_self", "auth/token/lookup-self").await {
            Ok(answer) if answer.status == 403 && !answer.is_of_policy() => {
                rejected("it is wrong, has expired or was revoked")
            }
            _ => self
                .client
                .refused(format!("denies `{path}` (403): the token's policies do not allow `{right}` there{words}"))
                .into(),
        }
    }

    fn missing(&self, path: &str, hint: &str) -> Error {
        Error::Missing {
            provider: format!("vault {}", self.client.settings().address),
            path: path.to_owned(),
            hint: hint.to_owned(),
        }
    }

    /// The path as KV version 2 has it, for paths in mounts that are known to be of it.
    fn known_mount(&self, path: &str) -> Option<String> {
        let mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        let mount = mounts.iter().rev().find(|mount| path.starts_with(mount.as_str()))?;
        within_kv2(mount, path)
    }

    /// Asks Vault which mount a path that led nowhere belongs to.
    async fn kv2_path(&self, path: &str) -> Option<String> {
        let plain = path.split('?').next().unwrap_or(path);
        let answer = self.get("mounts", &format!("sys/internal/ui/mounts/{plain}")).await.ok()?;
        let data = answer.json.as_ref()?.get("data")?;
        let mount = data.get("path")?.as_str()?.to_owned();
        let kv2 = data.get("type")?.as_str()? == "kv" && data.pointer("/options/version")?.as_str()? == "2";
        let asked = within_kv2(&mount, path).filter(|_| kv2);
        if asked.is_some() {
            self.mounts.lock().unwrap_or_else(PoisonError::into_inner).insert(mount);
        }
        asked
    }
}

/// `secret/data/db` for `secret/db`, and `secret/metadata/` for a list of `secret/`; `None` when it has its place already.
fn within_kv2(mount: &str, path: &str) -> Option<String> {
    let rest = path.strip_prefix(mount).filter(|_| !mount.is_empty())?;
    let has_place = rest.is_empty() || rest.starts_with("data/") || rest.starts_with("metadata/");
    let place = if path.ends_with(LIST) { "metadata" } else { "data" };
    (!has_place).then(|| format!("{mount}{place}/{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_find_their_place_in_kv_version_2() {
        let cases = [
            ("short", "secret/", "secret/db/x", Some("secret/data/db/x")),
            ("a version", "secret/", "secret/db?version=2", Some("secret/data/db?version=2")),
            ("data", "secret/", "secret/data/db", None),
            ("metadata", "secret/", "secret/metadata/db", None),
            ("deep mount", "team/a/kv/", "team/a/kv/db", Some("team/a/kv/data/db")),
            ("list", "secret/", "secret/db/?list=true", Some("secret/metadata/db/?list=true")),
            ("list of all", "secret/", "secret/?list=true", Some("secret/metadata/?list=true")),
            ("list, placed", "secret/", "secret/metadata/?list=true", None),
            ("another mount", "secret/", "secrets/db", None),
            ("the mount", "secret/", "secret/", None),
        ];
        for (name, mount, path, expected) in cases {
            assert_eq!(within_kv2(mount, path).as_deref(), expected, "{name}");
        }
    }
}
