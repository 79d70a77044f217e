//! Credentials from a program, as a kubeconfig's `exec` names one ([client-go credential plugins]).
//!
//! In: the program. Out: a token or a certificate, kept until it expires or is refused. Promise: the program ends within a
//! minute; what it prints is shown nowhere.
//!
//! [client-go credential plugins]: https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use outrigger_config::Secret;
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use crate::access::{AccessError, Pem, blocking};

/// A login in a browser may take a while.
const PATIENCE: Duration = Duration::from_secs(60);
/// Certificates and tokens are far smaller.
const MAX_ANSWER: u64 = 1 << 20;

/// A program that gives credentials.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) command: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) api_version: String,
    /// How to get the program.
    pub(crate) install_hint: Option<String>,
    pub(crate) known: tokio::sync::Mutex<Option<Credential>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Credential {
    token: Option<Secret>,
    client_certificate_data: Option<String>,
    client_key_data: Option<Secret>,
    expiration_timestamp: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    api_version: String,
    status: Option<Credential>,
}

impl Exec {
    pub(crate) async fn token(&self) -> Result<Option<Secret>, AccessError> {
        Ok(self.credential().await?.token)
    }

    pub(crate) async fn certificate(&self) -> Result<Option<(Pem, Pem)>, AccessError> {
        let credential = self.credential().await?;
        let (Some(certificate), Some(key)) = (credential.client_certificate_data, credential.client_key_data) else {
            return Ok(None);
        };
        let given = |bytes: &str| Pem::Given { place: self.command.clone(), bytes: Zeroizing::new(bytes.into()) };
        Ok(Some((given(&certificate), given(key.expose()))))
    }

    /// Has the program asked again; whether that may help.
    pub(crate) fn forget(&self) -> bool {
        self.known.try_lock().is_ok_and(|mut known| known.take().is_some())
    }

    async fn credential(&self) -> Result<Credential, AccessError> {
        let mut known = self.known.lock().await;
        if let Some(credential) = known.as_ref().filter(|credential| credential.is_fresh()) {
            return Ok(credential.clone());
        }
        let fresh = self.run().await?;
        *known = Some(fresh.clone());
        Ok(fresh)
    }

    async fn run(&self) -> Result<Credential, AccessError> {
        let name = self.command.display();
        let info =
            json!({ "apiVersion": self.api_version, "kind": "ExecCredential", "spec": { "interactive": false } });
        let mut command = Command::new(&self.command);
        command.args(&self.args).envs(self.env.iter().map(|(key, value)| (key, value)));
        command.env("KUBERNETES_EXEC_INFO", info.to_string()).stdin(Stdio::null()).stdout(Stdio::piped());
        let hint = || self.install_hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
        let mut child = command
            .spawn()
            .map_err(|error| AccessError::new(format!("cannot run `{name}` for credentials: {error}{}", hint())))?;
        let Some(printed) = child.stdout.take() else { return Err(AccessError::new("the plugin has no output")) };
        let reading = blocking(move || {
            let mut text = Zeroizing::new(Vec::new());
            let read = printed.take(MAX_ANSWER).read_to_end(&mut text);
            read.map(|_| text).map_err(|error| AccessError::new(error.to_string()))
        });
        let text = tokio::time::timeout(PATIENCE, reading).await;
        if text.is_err() {
            let _ = child.kill();
        }
        // It has closed its output, so it is about to end. Where somebody else reaps our children, the text alone counts.
        let ended = blocking(move || child.wait().map_err(|error| AccessError::new(error.to_string()))).await;
        let text = match text {
            Ok(text) => text?,
            Err(_) => return Err(AccessError::new(format!("`{name}` gave no credentials within {PATIENCE:?}"))),
        };
        if let Ok(status) = ended
            && !status.success()
        {
            return Err(AccessError::new(format!("`{name}` gave no credentials: {status}")));
        }
        // Its text may hold the token, so no error repeats it.
        let answer: Answer = serde_json::from_slice(&text)
            .map_err(|_| AccessError::new(format!("`{name}` printed no ExecCredential as JSON")))?;
        if answer.api_version != self.api_version {
            let (theirs, ours) = (&answer.api_version, &self.api_version);
            return Err(AccessError::new(format!(
                "`{name}` answered in version `{theirs}`, and `{ours}` was asked for"
            )));
        }
        answer.status.ok_or_else(|| AccessError::new(format!("`{name}` printed an ExecCredential without a status")))
    }
}

impl Credential {
    fn is_fresh(&self) -> bool {
        let Some(text) = &self.expiration_timestamp else { return true };
        OffsetDateTime::parse(text, &Rfc3339).is_ok_and(|end| OffsetDateTime::now_utc() + Duration::from_secs(10) < end)
    }
}
