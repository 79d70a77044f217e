//! Requests to Vault's HTTP API.
//!
//! In: an operation, a path, a token. Out: the answer as JSON, or an error that tells a
//! sealed Vault from a refused token from a missing path. Promise: each request ends in time
//! and within a size; what Vault says in errors is bounded and on one line; bodies are zeroed.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderValue, LOCATION};
use http::{Method, Request, Response};
use outrigger_config::{AuthorityVault, Secret, VaultAuth, VaultProvider};
use outrigger_http::{Client, ClientOptions, HttpError, Resolver, Stage};
use serde_json::Value as Json;
use zeroize::{Zeroize, Zeroizing};

use crate::error::Error;

/// A larger answer is refused. Vault's own limit for what is written is 1 MiB by default.
const MOST_ANSWER: usize = 4 << 20;
/// How much of Vault's own words is shown, in characters.
const MOST_WORDS: usize = 200;
/// Connections kept between requests; reads at the start go out side by side.
const MOST_IDLE: usize = 4;

/// Told of each request: what it was for, and what came of it (a status, or where it failed).
pub type Observer = Box<dyn Fn(&'static str, &str) + Send + Sync>;

/// Which Vault, and how we log in to it.
#[derive(Debug, Clone)]
pub struct VaultSettings {
    /// `http://` or `https://`, without a path.
    pub address: String,
    /// How we log in.
    pub auth: VaultAuth,
    /// Sent as `X-Vault-Namespace`.
    pub namespace: Option<String>,
    /// PEM bundle for `https://`; `None` means the public authorities.
    pub ca_file: Option<PathBuf>,
    /// Time for one request.
    pub timeout: Duration,
}

impl From<&VaultProvider> for VaultSettings {
    fn from(provider: &VaultProvider) -> Self {
        let VaultProvider { address, auth, namespace, ca_file, timeout, .. } = provider.clone();
        Self { address, auth, namespace, ca_file, timeout: timeout.into() }
    }
}

impl From<&AuthorityVault> for VaultSettings {
    fn from(authority: &AuthorityVault) -> Self {
        let AuthorityVault { address, auth, namespace, ca_file, timeout, .. } = authority.clone();
        Self { address, auth, namespace, ca_file, timeout: timeout.into() }
    }
}

/// One Vault, as we talk to it.
pub struct VaultClient {
    pub(crate) component: &'static str,
    pub(crate) settings: VaultSettings,
    http: Option<Client>,
    resolver: Resolver,
    observer: Observer,
}

/// One request.
pub struct Call<'a> {
    /// What it is for, in metrics.
    pub operation: &'static str,
    /// The request's.
    pub method: Method,
    /// Without `/v1/`; may have a query.
    pub path: &'a str,
    /// What is shown to Vault.
    pub token: Option<&'a Secret>,
    /// What is sent.
    pub body: Option<Json>,
}

/// A status and what came with it.
pub struct Answer {
    /// HTTP's.
    pub status: u16,
    /// `None` when it is no object of JSON.
    pub json: Option<Json>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.json.iter_mut().for_each(scrub);
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.body.iter_mut().for_each(scrub);
    }
}

/// Zeroes all texts of a JSON value.
fn scrub(json: &mut Json) {
    match json {
        Json::String(text) => text.zeroize(),
        Json::Array(items) => items.iter_mut().for_each(scrub),
        Json::Object(members) => members.values_mut().for_each(scrub),
        _ => {}
    }
}

impl VaultClient {
    /// A client for a `component`, which the log names. Costs nothing before the first request.
    pub fn new(component: &'static str, mut settings: VaultSettings, resolver: Resolver, observer: Observer) -> Self {
        settings.address.truncate(settings.address.trim_end_matches('/').len());
        Self { component, settings, http: None, resolver, observer }
    }

    /// Which Vault it is.
    pub fn settings(&self) -> &VaultSettings {
        &self.settings
    }

    /// Reads the CA bundle again before the next request.
    pub fn forget_tls(&mut self) {
        self.http = None;
    }

    /// Makes the HTTP client, for which the CA bundle must be there.
    ///
    /// # Errors
    /// When it is not, or holds no certificates.
    pub fn prepare(&mut self) -> Result<(), Error> {
        if self.http.is_some() {
            return Ok(());
        }
        let tls = match (&self.settings.ca_file, self.settings.address.starts_with("https://")) {
            (Some(path), true) => {
                let config = outrigger_identity::client_config_with_roots(Some(path));
                let problem = |error: outrigger_identity::Error| Error::Credential {
                    what: "the CA bundle for Vault",
                    path: path.clone(),
                    problem: error.to_string(),
                };
                Some(config.map_err(problem)?)
            }
            _ => None,
        };
        let timeout = self.settings.timeout;
        let options = ClientOptions {
            tls,
            connect_timeout: timeout,
            timeout,
            max_response: MOST_ANSWER,
            max_idle: MOST_IDLE,
            ..ClientOptions::default()
        };
        self.http = Some(Client::new(options, self.resolver.clone()));
        Ok(())
    }

    /// Sends a request. Whatever Vault answers is `Ok` unless it is in no state to answer; see [`Answer`].
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is no answer, or Vault is in no state to give one.
    pub async fn call(&self, call: Call<'_>) -> Result<Answer, Error> {
        let call_is_renewal = matches!(call.operation, "renew_self" | "renew_lease");
        let response = self.exchange(&call).await?;
        let status = response.status().as_u16();
        let answer = Answer { status, json: parse(response) };
        match status {
            429 | 412 => Err(self.unavailable(format!("asks us to slow down ({status}){}", answer.words()))),
            // Of health only: uninitialised, and standbys of several kinds.
            472 | 473 => Err(self.unavailable(format!("is a standby that does not serve requests ({status})"))),
            501 => Err(self.unavailable("is not initialised (501); run `vault operator init`")),
            // OpenBao's way to say that a token or lease has reached its greatest age.
            500 if call_is_renewal && !answer.words().is_empty() => Ok(answer),
            500..=599 => Err(self.ill(&answer).await),
            300..=399 => Err(self.unavailable(format!("redirects us more than once ({status})"))),
            200 if answer.json.is_none() => {
                Err(self.unavailable("answers something that is not Vault's JSON; check the address"))
            }
            _ => Ok(answer),
        }
    }

    async fn exchange(&self, call: &Call<'_>) -> Result<Response<Bytes>, Error> {
        let url = format!("{}/v1/{}", self.settings.address, encoded(call.path));
        let response = self.send(call, &url).await?;
        if !matches!(response.status().as_u16(), 301 | 302 | 307 | 308) {
            return Ok(response);
        }
        // A standby that does not forward names the active server.
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kept = self.settings.address.starts_with("http://") && location.starts_with("http://");
        if !kept && !location.starts_with("https://") {
            return Err(self.unavailable("redirects us to an address that is not as safe; set the active server's"));
        }
        self.send(call, location).await
    }

    async fn send(&self, call: &Call<'_>, url: &str) -> Result<Response<Bytes>, Error> {
        let result = match (&self.http, self.request(call, url)) {
            (Some(http), Some(request)) => http.send(request).await.map_err(Some),
            _ => Err(None),
        };
        let label = match &result {
            Ok(response) => response.status().as_u16().to_string(),
            Err(error) => error.as_ref().map_or("request", |error| error.stage().as_str()).to_owned(),
        };
        (self.observer)(call.operation, &label);
        result.map_err(|error| match error {
            Some(error) => self.unavailable(reached(&error)),
            None => self.refused("the token, namespace or path holds characters that HTTP does not allow"),
        })
    }

    fn request(&self, call: &Call<'_>, url: &str) -> Option<Request<Bytes>> {
        let mut request = Request::builder().method(call.method.clone()).uri(url).header("x-vault-request", "true");
        if let Some(token) = call.token {
            let mut token = HeaderValue::from_str(token.expose()).ok()?;
            token.set_sensitive(true);
            request = request.header("x-vault-token", token);
        }
        if let Some(namespace) = &self.settings.namespace {
            request = request.header("x-vault-namespace", namespace);
        }
        let body = match &call.body {
            Some(json) => Bytes::from_owner(Zeroizing::new(json.to_string().into_bytes())),
            None => Bytes::new(),
        };
        request.body(body).ok()
    }

    /// What is wrong with a Vault that answers 5xx: sealed, not initialised, or something it says itself.
    async fn ill(&self, answer: &Answer) -> Error {
        let words = answer.words();
        if words.to_lowercase().contains("sealed") {
            return self.unavailable("is sealed (503); unseal it");
        }
        let health = Call { operation: "health", method: Method::GET, path: "sys/health", token: None, body: None };
        let health = self.exchange(&health).await.map(|response| response.status().as_u16()).unwrap_or_default();
        match health {
            501 => self.unavailable("is not initialised (501); run `vault operator init`"),
            503 => self.unavailable("is sealed (503); unseal it"),
            429 | 472 | 473 => self.unavailable(format!("is a standby that cannot reach its active server ({health})")),
            _ => self.unavailable(format!("answers {}{words}", answer.status)),
        }
    }

    /// An error that time may mend.
    pub fn unavailable(&self, problem: impl Into<String>) -> Error {
        Error::Unavailable { address: self.settings.address.clone(), problem: problem.into() }
    }

    /// An error that somebody has to mend.
    pub fn refused(&self, problem: impl Into<String>) -> Error {
        Error::Refused { address: self.settings.address.clone(), problem: problem.into() }
    }
}

impl Answer {
    /// Whether a 403 is a policy's. Vault lists what a policy says, and says the rest plainly or adds `invalid token`.
    pub fn is_of_policy(&self) -> bool {
        let words = self.words();
        words.starts_with(": 1 error occurred") && !words.contains("invalid token")
    }

    /// Vault's own words, beginning with `: `, or nothing.
    pub fn words(&self) -> String {
        let errors = self.json.as_ref().and_then(|json| json.get("errors")).and_then(Json::as_array);
        let errors: Vec<&str> = errors.into_iter().flatten().filter_map(Json::as_str).collect();
        let text = one_line(&errors.iter().map(|error| error.trim()).collect::<Vec<_>>().join("; "));
        if text.is_empty() { text } else { format!(": {text}") }
    }
}

/// One line of bounded length, without control characters.
fn one_line(text: &str) -> String {
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let line = words.join(" ");
    if line.chars().count() <= MOST_WORDS {
        return line;
    }
    line.chars().take(MOST_WORDS - 1).chain(std::iter::once('…')).collect()
}

fn reached(error: &HttpError) -> String {
    match error.stage() {
        Stage::Connect if error.detail().contains("refused") => "refused the connection".to_owned(),
        Stage::Timeout => format!("did not answer: {}", error.detail()),
        _ => format!("cannot be reached: {}", error.detail()),
    }
}

/// The JSON of an answer; its bytes are zeroed where nobody else holds them.
fn parse(response: Response<Bytes>) -> Option<Json> {
    let body = response.into_body();
    let json = serde_json::from_slice(&body).ok().filter(Json::is_object);
    if let Ok(mut body) = body.try_into_mut() {
        body.zeroize();
    }
    json
}

/// A path as it stands in a URL; a query is left as it is, but for what no URL holds.
fn encoded(path: &str) -> String {
    use std::fmt::Write as _;
    let mut url = String::with_capacity(path.len());
    let query = path.find('?').unwrap_or(path.len());
    for (index, byte) in path.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric()
            || b"-._~/:@!$'()*+,;=".contains(&byte)
            || (index >= query && b"?&%".contains(&byte));
        if plain {
            url.push(char::from(byte));
        } else {
            let _ = write!(url, "%{byte:02X}");
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded_and_queries_kept() {
        let cases = [
            ("secret/data/db", "secret/data/db"),
            ("secret/data/my db", "secret/data/my%20db"),
            ("secret/data/a%b#c", "secret/data/a%25b%23c"),
            ("secret/data/db?version=2&x=%41", "secret/data/db?version=2&x=%41"),
            ("secret/data/ü", "secret/data/%C3%BC"),
        ];
        for (path, expected) in cases {
            assert_eq!(encoded(path), expected, "{path}");
        }
    }

    #[test]
    fn policies_are_told_from_bad_tokens() {
        let cases = [
            ("openbao, policy", "1 error occurred:\n\t* permission denied\n\n", true),
            ("openbao, token", "permission denied", false),
            ("vault, token", "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n", false),
            ("nothing", "", false),
        ];
        for (name, words, of_policy) in cases {
            let json = Some(serde_json::json!({ "errors": [words] }));
            assert_eq!(Answer { status: 403, json }.is_of_policy(), of_policy, "{name}");
        }
    }

    #[test]
    fn words_are_bounded_and_on_one_line() {
        let json = serde_json::json!({ "errors": ["1 error occurred:\n\t* permission denied\n\n", "x".repeat(500)] });
        let words = Answer { status: 403, json: Some(json) }.words();
        assert!(words.starts_with(": 1 error occurred: * permission denied; x"), "{words}");
        assert!(words.chars().count() <= MOST_WORDS + 2 && !words.contains('\n'));
    }
}
