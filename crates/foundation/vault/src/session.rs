//! Our token: where it comes from, how it is kept alive, how it ends.
//!
//! In: a token given to us, or an AppRole or service account to log in with. Out: a session. Promise: it is
//! renewed at about two thirds of its life; a token that was issued to us is revoked at the
//! end, one that was given to us is not.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use http::Method;
use outrigger_config::Secret;
use outrigger_runtime::jittered;
use serde_json::json;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::client::{Call, VaultClient, VaultSettings};
use crate::error::Error;
use crate::login::{self, Login};

/// A token or secret ID is not longer.
const MOST_BYTES: u64 = 64 << 10;

/// A token in use.
pub struct Session {
    token: Secret,
    /// Issued to us by a login, so that it is ours to revoke, and of a kind that can be.
    revocable: bool,
    life: Life,
}

/// How long the token lasts.
enum Life {
    /// Not looked up yet: the first secrets come first.
    Unknown { since: Instant },
    /// It neither expires nor wants anything of us.
    Endless,
    /// To be renewed, or replaced, at `due`.
    Limited { due: Instant, ttl: Duration, renewable: bool },
}

/// What is shown to an auth method.
struct Credentials<'a> {
    method: &'static str,
    mount: &'a str,
    body: serde_json::Value,
    /// What to look at when they are refused.
    check: String,
}

/// Those of the config; `None` when it has a token.
fn credentials(config: &VaultSettings) -> Result<Option<Credentials<'_>>, Error> {
    let auth = &config.auth;
    if let Some(role) = &auth.app_role {
        let secret_id = read_credential("the AppRole secret ID file", &role.secret_id_file)?;
        let body = json!({ "role_id": role.role_id, "secret_id": secret_id.expose() });
        let check = format!("`roleId` and {}", role.secret_id_file.display());
        return Ok(Some(Credentials { method: "AppRole", mount: &role.mount, body, check }));
    }
    let Some(account) = &auth.kubernetes else { return Ok(None) };
    let token = read_credential("the service account's token file", &account.token_file)?;
    let body = json!({ "role": account.role, "jwt": token.expose() });
    let check = format!("that the role `{}` takes the pod's namespace and service account", account.role);
    Ok(Some(Credentials { method: "Kubernetes", mount: &account.mount, body, check }))
}

/// The token of the config, or of the file it names.
///
/// # Errors
/// When the file cannot be read, or holds no token.
pub fn given_token(config: &VaultSettings) -> Result<Secret, Error> {
    let token = config.auth.token.as_ref();
    if let Some(value) = token.and_then(|token| token.value.as_ref()) {
        return Ok(Secret::new(value.expose().trim().to_owned()));
    }
    let path = token.and_then(|token| token.file.as_deref()).unwrap_or(Path::new(""));
    read_credential("the Vault token file", path)
}

async fn log_in(client: &VaultClient, login: Credentials<'_>) -> Result<Session, Error> {
    let Credentials { method, mount, body, check } = login;
    let path = format!("auth/{}/login", mount.trim_matches('/'));
    let call = Call { operation: "login", method: Method::POST, path: &path, token: None, body: Some(body) };
    let answer = client.call(call).await?;
    let words = answer.words();
    match (answer.status, answer.json.as_ref().and_then(login::login)) {
        (200, Some(Login { token, ttl, renewable, batch })) => {
            Ok(Session { token, revocable: !batch, life: Life::of(ttl, renewable) })
        }
        (200, None) => Err(client.refused(format!("answers the login at `{path}` without a token"))),
        (400 | 403, _) => Err(client.refused(format!(
            "does not accept the {method} login at `{path}` ({}){words}; check {check}",
            answer.status
        ))),
        (404, _) => Err(client.refused(format!("has no auth method at `{path}` (404); check `mount`{words}"))),
        (status, _) => Err(client.refused(format!("answers {status} to the login at `{path}`{words}"))),
    }
}

fn read_credential(what: &'static str, path: &Path) -> Result<Secret, Error> {
    let failed = |problem: String| Error::Credential { what, path: path.to_owned(), problem };
    let file = File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => failed("it does not exist yet".to_owned()),
        _ => failed(error.to_string()),
    })?;
    let mut text = Zeroizing::new(String::with_capacity(256));
    file.take(MOST_BYTES).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    match text.trim() {
        "" => Err(failed("it is empty".to_owned())),
        text if text.contains(|c: char| !c.is_ascii_graphic()) => {
            Err(failed("it holds characters that no token or ID has".to_owned()))
        }
        text => Ok(Secret::new(text.to_owned())),
    }
}

impl Life {
    fn of(ttl: Duration, renewable: bool) -> Self {
        if ttl.is_zero() {
            return Self::Endless;
        }
        Self::Limited { due: Instant::now() + jittered(ttl, 0.6, 0.7), ttl, renewable }
    }
}

impl Session {
    /// Takes the given token, or logs in. Cancel-safe: a token that Vault issues to nobody ends by itself.
    ///
    /// # Errors
    /// When there is no token to show, or Vault does not accept it.
    pub async fn begin(client: &VaultClient) -> Result<Self, Error> {
        if let Some(login) = credentials(&client.settings)? {
            return log_in(client, login).await;
        }
        let life = Life::Unknown { since: Instant::now() };
        Ok(Self { token: given_token(&client.settings)?, revocable: false, life })
    }

    /// What is shown to Vault.
    pub fn token(&self) -> &Secret {
        &self.token
    }

    /// When [`Self::attend`] has something to do.
    pub fn attention(&self) -> Option<Instant> {
        match self.life {
            Life::Unknown { since } => Some(since),
            Life::Endless => None,
            Life::Limited { due, .. } => Some(due),
        }
    }

    /// Looks the token up, or renews it.
    ///
    /// # Errors
    /// All but [`Error::Unavailable`] mean that it will not live on.
    pub async fn attend(&mut self, client: &VaultClient) -> Result<(), Error> {
        match self.life {
            Life::Endless => Ok(()),
            Life::Unknown { .. } => self.look_up(client).await,
            Life::Limited { due, .. } if due > Instant::now() => Ok(()),
            Life::Limited { ttl, renewable: true, .. } => self.renew(client, ttl).await,
            Life::Limited { .. } => Err(client.refused("gave a token that expires soon and cannot be renewed")),
        }
    }

    async fn look_up(&mut self, client: &VaultClient) -> Result<(), Error> {
        let path = "auth/token/lookup-self";
        let call = Call { operation: "lookup_self", method: Method::GET, path, token: Some(&self.token), body: None };
        let answer = client.call(call).await?;
        let found = answer.json.as_ref().filter(|_| answer.status == 200).and_then(login::lookup);
        // A policy may forbid looking: then we use the token as long as it lasts.
        let (ttl, renewable) = found.unwrap_or_default();
        self.life = match Life::of(ttl, renewable) {
            // Nothing to be done about its end, so nothing to be said before it comes.
            Life::Limited { renewable: false, .. } => Life::Endless,
            life => life,
        };
        tracing::debug!(component = client.component, ttl_seconds = ttl.as_secs(), renewable, "vault token looked up");
        Ok(())
    }

    async fn renew(&mut self, client: &VaultClient, before: Duration) -> Result<(), Error> {
        let path = "auth/token/renew-self";
        let body = Some(json!({}));
        let call = Call { operation: "renew_self", method: Method::POST, path, token: Some(&self.token), body };
        let answer = client.call(call).await?;
        let words = answer.words();
        let renewed = answer.json.as_ref().filter(|_| answer.status == 200).and_then(login::login);
        let Some(Login { ttl, renewable, .. }) = renewed else {
            return Err(client.refused(format!("does not renew the token ({}){words}", answer.status)));
        };
        // Near its greatest age a token is renewed by ever less: then only a new one helps.
        let renewable = renewable && ttl * 3 > before;
        self.life = Life::of(ttl, renewable);
        tracing::debug!(component = client.component, ttl_seconds = ttl.as_secs(), renewable, "vault token renewed");
        Ok(())
    }

    /// Revokes a token that was issued to us, and with it all leases it still has.
    pub async fn end(self, client: &VaultClient) {
        if !self.revocable {
            return;
        }
        let path = "auth/token/revoke-self";
        let body = Some(json!({}));
        let call = Call { operation: "revoke_self", method: Method::POST, path, token: Some(&self.token), body };
        match client.call(call).await {
            Ok(answer) if answer.status < 300 => {}
            Ok(answer) => {
                let (status, words) = (answer.status, answer.words());
                tracing::warn!(component = client.component, status, words, "the vault token is not revoked");
            }
            Err(error) => tracing::warn!(component = client.component, %error, "the vault token is not revoked"),
        }
    }
}
